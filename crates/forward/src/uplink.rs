//! What comes from the provider network.

use crate::{
    Frame, Meta, Note, SEND_MARK, Tables, Target, Verdict, hub,
    outer::check_geneve,
    packet::{addr6, is_link_local, is_mapped},
    reach::{Fate, fate, skips_queue},
    stt::{Arrival, Kind},
};
use tenet_tables::{
    Addr, CONFIG_FLAG_OTHER_GENEVE, Config, DEVICE_TAP, DropReason, EventKind, LAYOUT_VERSION, MacKey,
    PEER_FLAG_ANY_SOURCE, PeerKey, RecordKey, VXLAN_PORT,
};
use tenet_wire::{
    Arp, Be16, Envelope, EtherType, Ethernet, Ipv4, Ipv4Frame, Ipv6, Ipv6Fragment, Ipv6Frame, Mac,
    ProtocolNumber, STT_HEADERS, SttFault, SttSegment, TunnelFrame, TunnelHeader, Udp, checksum,
};

/// What [`uplink_ingress`] leaves for the edits and for the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct UplinkWork {
    /// The outer link header, and the network header if it is IPv4.
    pub outer: Ipv4Frame,
    /// The outer network header if it is IPv6.
    pub outer6: Ipv6,
    /// The outer source.
    pub from: Addr,
    /// The tunnel's header, the inner link header, and the inner network header if it is IPv4.
    pub tunnel: TunnelFrame,
    /// The inner network header if it is IPv6.
    pub inner6: Ipv6,
    /// What is to be taken off.
    pub shed: Shed,
    /// Where the outer packet ends; padding may follow.
    pub end: u32,
    /// Virtual subnet that the tunnel's header names, if [`Self::sound`].
    pub vsid: u32,
    /// Whether the tunnel's header is what its RFC wants.
    pub sound: bool,
    /// The outer checksum, if somebody has to look at it.
    pub sum: OuterSum,
    /// Where the frame goes if its port has moved.
    pub to: Target,
    /// Whether the inner network header took over a congestion mark.
    pub marked: bool,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What has come of an STT frame.
    pub stt: Arrival,
    /// What the agent may be told.
    pub note: Note,
}

impl UplinkWork {
    /// Forgets what the frame before left and the decision does not write in any case.
    #[inline(always)]
    fn begin(&mut self) {
        self.shed.summed = false;
        self.vsid = 0;
        self.sound = false;
        self.sum.at = 0;
        self.marked = false;
        self.moved = 0;
        self.stt.kind = Kind::Foreign;
        self.note.kind = None;
    }
}

/// The headers that a tunnelled frame is to lose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shed {
    /// Which they are.
    pub envelope: Envelope,
    /// Their length up to the inner link header, Geneve's options included.
    pub len: u32,
    /// Type of what the inner link header announces.
    pub inner: Be16,
    /// Whether they hold a checksum, so that the kernel's knowledge of the first checksum is not about the inner one.
    pub summed: bool,
}

/// A UDP checksum that nobody has verified yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OuterSum {
    /// Where the UDP header starts; 0: there is nothing to verify.
    pub at: u32,
    /// Sum of the halves of the outer addresses.
    pub addresses: u32,
    /// Whether the tunnel header may have options.
    pub geneve: bool,
}

/// Judges a frame from the provider network: [`Verdict::Pass`] for all that is not a tunnel of ours.
///
/// In two looks, the second only for frames with an unverified checksum: in eBPF both together want too much stack.
#[inline(always)]
pub fn uplink_ingress<F: Frame, T: Tables>(
    frame: &F,
    meta: &Meta,
    tables: &T,
    work: &mut UplinkWork,
) -> Verdict {
    let verdict = uplink_first(frame, meta, tables, work);
    if work.sum.at == 0 || is_sound(frame, work) { verdict } else { damaged(verdict, work) }
}

/// Whether the outer checksum that nobody has verified is right.
#[inline(always)]
pub fn is_sound<F: Frame>(frame: &F, work: &UplinkWork) -> bool {
    if work.stt.kind == Kind::Foreign {
        frame.outer_checksum(&work.sum)
    } else {
        frame.stt_checksum(&work.stt, work.sum.addresses, work.sum.at)
    }
}

/// The verdict on a frame whose outer checksum is wrong: whatever else it says may be wrong too, but for who sent it.
#[inline(always)]
pub fn damaged(verdict: Verdict, work: &mut UplinkWork) -> Verdict {
    if verdict == Verdict::Drop(DropReason::UnknownPa) {
        return verdict;
    }
    work.note.kind = None;
    work.moved = 0;
    Verdict::Drop(DropReason::OuterChecksum)
}

/// The first look of [`uplink_ingress`].
#[inline(always)]
pub fn uplink_first<F: Frame, T: Tables>(
    frame: &F,
    meta: &Meta,
    tables: &T,
    work: &mut UplinkWork,
) -> Verdict {
    work.begin();
    // A tagged frame belongs to a VLAN device above this one.
    if meta.tagged || frame.load(0, &mut work.outer).is_err() {
        return Verdict::Pass;
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    if config.layout != LAYOUT_VERSION {
        return Verdict::Pass;
    }
    let call = Call { frame, meta, tables, config };
    if work.outer.eth.ty == EtherType::IPV4 {
        call.v4(work)
    } else if work.outer.eth.ty == EtherType::IPV6 {
        call.v6(work)
    } else {
        Verdict::Pass
    }
}

/// Everything fixed about one call.
struct Call<'a, F, T> {
    frame: &'a F,
    meta: &'a Meta,
    tables: &'a T,
    config: &'a Config,
}

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// A packet in IPv4.
    #[inline(always)]
    fn v4(&self, work: &mut UplinkWork) -> Verdict {
        let ip = work.outer.ip;
        if ip.protocol != ProtocolNumber::GRE
            && ip.protocol != ProtocolNumber::UDP
            && ip.protocol != ProtocolNumber::TCP
        {
            return Verdict::Pass;
        }
        work.from = Addr::v4_word(ip.src.word());
        if self.meta.mark == SEND_MARK {
            return self.marked(work);
        }
        if Addr::v4_word(ip.dst.word()) != self.config.pa {
            return Verdict::Pass;
        }
        if ip.version_ihl != Ipv4::PLAIN || ip.is_fragment() {
            return self.odd_v4(work);
        }
        work.shed.envelope = Envelope { v6: false, udp: ip.protocol == ProtocolNumber::UDP };
        // The other way round is padding. A kernel that joins more than 64 KB says 0.
        let lies = self.ends(work, Ethernet::LEN + ip.total_len.get() as u32);
        if ip.protocol == ProtocolNumber::GRE {
            return self.gre(work, Ipv4Frame::LEN, lies);
        }
        let addresses = ip.src.halves()[0] as u32
            + ip.src.halves()[1] as u32
            + ip.dst.halves()[0] as u32
            + ip.dst.halves()[1] as u32;
        if ip.protocol == ProtocolNumber::TCP {
            let len = (ip.total_len.get() as u32).wrapping_sub(Ipv4::LEN);
            return self.stt(work, Ipv4Frame::LEN, len, lies, addresses);
        }
        self.udp(work, Ipv4Frame::LEN, ip.total_len.get() as u32, Ipv4::LEN, lies, addresses)
    }

    /// A packet in IPv6.
    #[inline(always)]
    fn v6(&self, work: &mut UplinkWork) -> Verdict {
        if self.frame.load(Ethernet::LEN, &mut work.outer6).is_err() {
            return Verdict::Pass;
        }
        let next = work.outer6.next;
        if next != ProtocolNumber::GRE
            && next != ProtocolNumber::UDP
            && next != ProtocolNumber::TCP
            && !ProtocolNumber::is_extension(next)
        {
            return Verdict::Pass;
        }
        work.from = addr6(&work.outer6.src);
        // The tables have IPv4's addresses as mapped ones, which no packet of IPv6 may have (RFC 4291 §2.5.5.2).
        if is_mapped(&work.from) || is_mapped(&self.config.pa) {
            return Verdict::Pass;
        }
        if self.meta.mark == SEND_MARK {
            return self.marked(work);
        }
        if addr6(&work.outer6.dst) != self.config.pa || work.outer6.version() != 6 {
            return Verdict::Pass;
        }
        if ProtocolNumber::is_extension(next) {
            return self.odd_v6(work);
        }
        work.shed.envelope = Envelope { v6: true, udp: next == ProtocolNumber::UDP };
        let payload = work.outer6.payload_len.get() as u32;
        let lies = self.ends(work, Ipv6Frame::LEN + payload);
        if next == ProtocolNumber::GRE {
            return self.gre(work, Ipv6Frame::LEN, lies);
        }
        let addresses = checksum::sum(&work.outer6.src) + checksum::sum(&work.outer6.dst);
        if next == ProtocolNumber::TCP {
            return self.stt(work, Ipv6Frame::LEN, payload, lies, addresses);
        }
        self.udp(work, Ipv6Frame::LEN, payload, 0, lies, addresses)
    }

    /// Notes where the packet ends by its network header. True: behind the frame's end.
    #[inline(always)]
    fn ends(&self, work: &mut UplinkWork, end: u32) -> bool {
        work.end = if self.meta.gso_size == 0 { end } else { self.meta.len };
        end > self.meta.len
    }

    /// Marked by a program of this host as encapsulated already.
    #[inline(always)]
    fn marked(&self, work: &UplinkWork) -> Verdict {
        if work.from == self.config.pa { Verdict::Send } else { Verdict::Drop(DropReason::Loop) }
    }

    /// GRE at `at`: ours if it carries Ethernet.
    #[inline(always)]
    fn gre(&self, work: &mut UplinkWork, at: u32, lies: bool) -> Verdict {
        // Nobody else may speak for us, and we send ourselves nothing.
        if work.from == self.config.pa {
            return Verdict::Drop(DropReason::Loop);
        }
        let short = self.frame.load(at, &mut work.tunnel).is_err();
        if short && self.frame.load(at, &mut work.tunnel.header).is_err() {
            return Verdict::Pass;
        }
        let gre = work.tunnel.header.gre();
        if !gre.is_bridged() {
            return Verdict::Pass;
        }
        if short {
            return self.refuse(work, DropReason::Truncated);
        }
        if gre.version() != 0 {
            return self.refuse(work, DropReason::TunnelVersion);
        }
        if !gre.is_nvgre() {
            return self.refuse(work, DropReason::BadTunnelHeader);
        }
        work.sound = true;
        work.vsid = work.tunnel.header.vsid();
        if lies {
            return self.refuse(work, DropReason::Truncated);
        }
        work.shed.len = at + TunnelHeader::LEN;
        self.tunnelled(work)
    }

    /// UDP at `at`: ours if the port is a tunnel's. `claimed` is the length that the network header gives to `own` bytes
    /// of itself and what follows.
    #[inline(always)]
    fn udp(
        &self,
        work: &mut UplinkWork,
        at: u32,
        claimed: u32,
        own: u32,
        lies: bool,
        addresses: u32,
    ) -> Verdict {
        let mut udp = Udp::default();
        if self.frame.load(at, &mut udp).is_err() {
            return Verdict::Pass;
        }
        let geneve = self.is_geneve(&udp);
        if !geneve && !self.is_vxlan(&udp) {
            return Verdict::Pass;
        }
        if work.from == self.config.pa {
            return Verdict::Drop(DropReason::Loop);
        }
        if lies {
            return self.refuse(work, DropReason::Truncated);
        }
        // What the kernel joined may be longer than the fields can say.
        if self.meta.gso_size == 0 && udp.len.get() as u32 + own != claimed {
            return self.refuse(work, DropReason::Malformed);
        }
        if udp.checksum.half() != 0 {
            work.shed.summed = true;
            // Frames that the kernel joined or is to cut up have been looked at, or come from this very machine.
            if self.meta.gso_size == 0 && !self.frame.verified() {
                work.sum = OuterSum { at, addresses, geneve };
            }
        }
        let header_at = at + Udp::LEN;
        let short = self.frame.load(header_at, &mut work.tunnel).is_err();
        if short && self.frame.load(header_at, &mut work.tunnel.header).is_err() {
            return self.refuse(work, DropReason::Truncated);
        }
        work.shed.len = header_at + TunnelHeader::LEN;
        let header = if geneve { self.geneve(work) } else { self.vxlan(work) };
        if let Err(reason) = header {
            return self.refuse(work, reason);
        }
        work.sound = true;
        work.vsid = work.tunnel.header.vsid();
        // With options the inner headers stand further back.
        if work.shed.len != header_at + TunnelHeader::LEN {
            if self.frame.load(work.shed.len, &mut work.tunnel.inner).is_err() {
                return self.refuse(work, DropReason::Truncated);
            }
        } else if short {
            return self.refuse(work, DropReason::Truncated);
        }
        self.tunnelled(work)
    }

    /// STT at `at`: `len` bytes by the outer network header.
    #[inline(always)]
    fn stt(&self, work: &mut UplinkWork, at: u32, len: u32, lies: bool, addresses: u32) -> Verdict {
        if work.stt.look(self.frame, at, len) == Kind::Foreign {
            return Verdict::Pass;
        }
        if work.from == self.config.pa {
            return Verdict::Drop(DropReason::Loop);
        }
        if lies {
            return self.refuse(work, DropReason::Truncated);
        }
        if work.stt.kind == Kind::Broken {
            return self.refuse(work, DropReason::BadTunnelHeader);
        }
        // What the kernel joined it has looked at, and what it is to cut up comes from this very machine.
        if self.meta.gso_size == 0 && !self.frame.verified() {
            work.sum = OuterSum { at, addresses, geneve: false };
        }
        if work.stt.kind == Kind::Later {
            // Nobody but the hosts of the site makes this one keep or move anything.
            return if self.is_known(work) {
                Verdict::Part
            } else {
                self.refuse(work, DropReason::UnknownPa)
            };
        }
        work.shed.len = at + STT_HEADERS;
        // The inner packet ends where the whole frame would.
        work.end = at + SttSegment::LEN + work.stt.segment.total.get() as u32;
        if self.frame.load(work.shed.len, &mut work.tunnel.inner).is_err() {
            return self.refuse(work, DropReason::Truncated);
        }
        if let Some(fault) = work.stt.fault(&work.tunnel.inner.eth) {
            let reason = match fault {
                SttFault::Version => DropReason::TunnelVersion,
                SttFault::Fields => DropReason::BadTunnelHeader,
                SttFault::Vlan => DropReason::InnerVlan,
                SttFault::Context => DropReason::UnknownVsid,
            };
            return self.refuse(work, reason);
        }
        work.sound = true;
        work.vsid = work.stt.header.vsid();
        let verdict = self.tunnelled(work);
        let whole = work.stt.kind == Kind::Whole && work.stt.agrees_on(self.meta.gso_size);
        match verdict {
            // The kernel fills in a large frame's checksum on its way out of the host's side of a veth.
            Verdict::Deliver { ifindex, .. } if self.meta.gso_size != 0 && whole => {
                Verdict::Deliver { ifindex, peer: false }
            }
            // Of a whole frame whose segments are not the inner ones', somebody has to make one without segments.
            Verdict::Deliver { .. } if work.stt.kind == Kind::Whole && !whole => Verdict::Slow,
            Verdict::Flood { .. } if work.stt.kind != Kind::Whole || self.meta.gso_size != 0 => Verdict::Slow,
            other => other,
        }
    }

    #[inline(always)]
    fn is_vxlan(&self, udp: &Udp) -> bool {
        udp.dst.get() == self.config.vxlan_port || udp.dst == Be16::new(VXLAN_PORT) || self.is_other(udp, 0)
    }

    #[inline(always)]
    fn is_geneve(&self, udp: &Udp) -> bool {
        udp.dst.get() == self.config.geneve_port || self.is_other(udp, CONFIG_FLAG_OTHER_GENEVE)
    }

    /// Whether it is for the port that is about to be sent to, or was until now.
    #[inline(always)]
    fn is_other(&self, udp: &Udp, whose: u16) -> bool {
        let other = self.config.other_port;
        other != 0 && udp.dst.get() == other && self.config.flags & CONFIG_FLAG_OTHER_GENEVE == whose
    }

    #[inline(always)]
    fn vxlan(&self, work: &UplinkWork) -> Result<(), DropReason> {
        if work.tunnel.header.vxlan().is_valid() { Ok(()) } else { Err(DropReason::BadTunnelHeader) }
    }

    #[inline(always)]
    fn geneve(&self, work: &mut UplinkWork) -> Result<(), DropReason> {
        let geneve = work.tunnel.header.geneve();
        if geneve.version() != 0 {
            return Err(DropReason::TunnelVersion);
        }
        let options = geneve.options_len();
        if options != 0 {
            if work.shed.len + options > work.end {
                return Err(DropReason::GeneveOptions);
            }
            self.frame.geneve_options(work.shed.len, options)?;
            work.shed.len += options;
        }
        check_geneve(&geneve)
    }

    /// A tunnel of ours: checks, then to its port.
    #[inline(always)]
    fn tunnelled(&self, work: &mut UplinkWork) -> Verdict {
        let eth = work.tunnel.inner.eth;
        let at = work.shed.len + Ethernet::LEN;
        if at > work.end {
            return self.refuse(work, DropReason::Truncated);
        }
        let available = work.end - at;
        work.shed.inner = eth.ty;
        let mut ip = true;
        let source = if eth.ty == EtherType::IPV4 {
            if !work.tunnel.inner.ip.fits(available) {
                return self.refuse(work, DropReason::Malformed);
            }
            Addr::v4_word(work.tunnel.inner.ip.src.word())
        } else if eth.ty == EtherType::IPV6 {
            if self.frame.load(at, &mut work.inner6).is_err() {
                return self.refuse(work, DropReason::Truncated);
            }
            let source = addr6(&work.inner6.src);
            if !work.inner6.fits(available) || is_mapped(&source) {
                return self.refuse(work, DropReason::Malformed);
            }
            source
        } else if eth.ty == EtherType::ARP {
            let mut arp = Arp::default();
            if self.frame.load(at, &mut arp).is_err() {
                return self.refuse(work, DropReason::Truncated);
            }
            if !arp.is_ipv4() {
                return self.refuse(work, DropReason::UnsupportedProtocol);
            }
            ip = false;
            Addr::v4_word(arp.sender.word())
        } else if EtherType::is_vlan(eth.ty) {
            return self.refuse(work, DropReason::InnerVlan);
        } else {
            return self.refuse(work, DropReason::UnsupportedProtocol);
        };
        if eth.src.is_group() {
            return self.refuse(work, DropReason::Malformed);
        }
        if eth.dst.is_group() {
            return self.flooded(work, ip, source);
        }
        let vsid = work.vsid;
        let Some(entry) = self.tables.mac(&MacKey { vsid, mac: eth.dst, reserved: 0 }) else {
            return self.refuse(work, DropReason::UnknownMac);
        };
        // A host is no transit: a port that is not here is unknown here.
        if entry.ifindex == 0 {
            return self.refuse(work, DropReason::UnknownMac);
        }
        let Some(port) = self.tables.port(entry.ifindex) else {
            return self.refuse(work, DropReason::UnknownMac);
        };
        if !self.lives_there(work, port.net, source) && !self.vouches(port.net, &port.peer_pa, &work.from) {
            return self.wrong_pa(work, port.net, source);
        }
        match fate(port, &entry.pa, work.from, &self.config.pa) {
            Fate::Here => {
                if ip && !take_congestion(work) {
                    return Verdict::Drop(DropReason::EcnMismatch);
                }
                // All IP frames for a tap take one way, whatever their size, so that a flow keeps its order.
                if ip
                    && port.device == DEVICE_TAP
                    && self.config.hub != 0
                    && work.stt.kind == Kind::Foreign
                    && let Some(len) = hub::inner_len(self.meta.len, work.shed.len)
                {
                    return Verdict::DeliverWhole { ifindex: entry.ifindex, len };
                }
                Verdict::Deliver { ifindex: entry.ifindex, peer: skips_queue(port, ip) }
            }
            Fate::Drop(reason) => Verdict::Drop(reason),
            Fate::StillThere(pa) => self.onward(work, pa),
            Fate::Moved(pa) => {
                work.moved = entry.ifindex;
                let ca = if !ip {
                    Addr::UNSET
                } else if eth.ty == EtherType::IPV4 {
                    Addr::v4_word(work.tunnel.inner.ip.dst.word())
                } else {
                    addr6(&work.inner6.dst)
                };
                self.note(work, EventKind::Redirected, port.net, ca);
                work.note.mac = eth.dst;
                self.onward(work, pa)
            }
        }
    }

    /// Re-addresses the tunnel. The outer hop count goes on, so that hosts that disagree cannot loop a frame for ever.
    #[inline(always)]
    fn onward(&self, work: &mut UplinkWork, pa: &Addr) -> Verdict {
        let hops = if work.shed.envelope.v6 { work.outer6.hop_limit } else { work.outer.ip.ttl };
        if hops <= 1 || self.config.pa == *pa {
            return Verdict::Drop(DropReason::Loop);
        }
        work.to.pa = *pa;
        Verdict::Onward
    }

    /// Broadcast and multicast go to the ports of this host; the sender has served the other hosts.
    #[inline(always)]
    fn flooded(&self, work: &mut UplinkWork, ip: bool, source: Addr) -> Verdict {
        let vsid = work.vsid;
        let Some(subnet) = self.tables.subnet(vsid) else {
            return self.refuse(work, DropReason::UnknownVsid);
        };
        if !self.lives_there(work, subnet.net, source) && !self.vouches(subnet.net, &Addr::UNSET, &work.from)
        {
            return self.wrong_pa(work, subnet.net, source);
        }
        if !ip {
            return Verdict::Drop(DropReason::ArpSuppressed);
        }
        if !take_congestion(work) {
            return Verdict::Drop(DropReason::EcnMismatch);
        }
        Verdict::Flood { vsid }
    }

    /// Whether the inner source lives at the host that sent the frame, or did until a migration's end.
    ///
    /// No table has link-local addresses, nor the unspecified one that stands for a machine without any (RFC 4291
    /// §2.5.2): there the MAC speaks for the machine.
    #[inline(always)]
    fn lives_there(&self, work: &UplinkWork, net: u32, source: Addr) -> bool {
        if work.shed.inner == EtherType::IPV6 && (is_link_local(&source) || source.is_unset()) {
            return self.is_home(work.vsid, work.tunnel.inner.eth.src, &work.from);
        }
        match self.tables.record(&RecordKey { net, ca: source }) {
            Some(record) => record.pa == work.from || record.alt_pa == work.from,
            None => false,
        }
    }

    #[inline(always)]
    fn is_home(&self, vsid: u32, mac: Mac, from: &Addr) -> bool {
        match self.tables.mac(&MacKey { vsid, mac, reserved: 0 }) {
            Some(entry) => entry.pa == *from,
            None => false,
        }
    }

    /// Whether the sending host may speak for others: an appliance lives there, or it redirects to the port.
    #[inline(always)]
    fn vouches(&self, net: u32, peer_pa: &Addr, from: &Addr) -> bool {
        if *peer_pa == *from {
            return true;
        }
        match self.tables.peer(&PeerKey { net, pa: *from }) {
            Some(peer) => peer.flags & PEER_FLAG_ANY_SOURCE != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn wrong_pa(&self, work: &mut UplinkWork, net: u32, source: Addr) -> Verdict {
        self.note(work, EventKind::MovedAddress, net, source);
        self.refuse(work, DropReason::WrongPa)
    }

    /// Drops for the first reason in the documented order: unknown host, unknown subnet, then `reason`.
    ///
    /// Good frames never come here, so that the checks of hosts and subnets cost them nothing: a frame
    /// whose inner source lives at its outer source comes from a known host.
    #[inline(always)]
    fn refuse(&self, work: &mut UplinkWork, reason: DropReason) -> Verdict {
        if !self.is_known(work) {
            self.note(work, EventKind::UnknownPa, 0, Addr::UNSET);
            return Verdict::Drop(DropReason::UnknownPa);
        }
        if work.sound && self.tables.subnet(work.vsid).is_none() {
            work.note = Note::default();
            return Verdict::Drop(DropReason::UnknownVsid);
        }
        Verdict::Drop(reason)
    }

    /// Whether the frame comes from a host of the site.
    #[inline(always)]
    fn is_known(&self, work: &UplinkWork) -> bool {
        self.tables.peer(&PeerKey { net: 0, pa: work.from }).is_some()
    }

    /// Fragments, and IPv4 with options: ours are dropped by name, others are not our business.
    #[inline(always)]
    fn odd_v4(&self, work: &mut UplinkWork) -> Verdict {
        let ip = work.outer.ip;
        if ip.is_later_fragment() {
            return self.later_fragment(work, ip.protocol);
        }
        if ip.version_ihl >> 4 != 4 || ip.header_len() < Ipv4::LEN {
            return Verdict::Pass;
        }
        self.odd(work, ip.protocol, Ethernet::LEN + ip.header_len(), ip.is_fragment())
    }

    /// IPv6 with extension headers: a fragment, or one other header before that; we send neither.
    #[inline(always)]
    fn odd_v6(&self, work: &mut UplinkWork) -> Verdict {
        let mut at = Ipv6Frame::LEN;
        let mut next = work.outer6.next;
        let mut fragment = false;
        let mut left = EXTENSIONS;
        while left > 0 && ProtocolNumber::is_extension(next) {
            left -= 1;
            let mut header = Ipv6Fragment::default();
            if self.frame.load(at, &mut header).is_err() {
                return Verdict::Pass;
            }
            let is_fragment = next == ProtocolNumber::FRAGMENT;
            fragment |= is_fragment;
            next = header.next;
            if is_fragment && header.is_later() {
                return self.later_fragment(work, next);
            }
            // The second byte is the length in units of eight bytes, the first eight not counted.
            at += if is_fragment { Ipv6Fragment::LEN } else { (header.reserved as u32 + 1) * 8 };
        }
        self.odd(work, next, at, fragment)
    }

    /// Of a later fragment nothing tells whose it is, but a host of ours sends no other GRE. Of UDP it may send some;
    /// the first fragment of a tunnel's is dropped, so that its rest comes to nothing.
    #[inline(always)]
    fn later_fragment(&self, work: &UplinkWork, protocol: u8) -> Verdict {
        if protocol == ProtocolNumber::GRE && self.is_known(work) {
            return Verdict::Drop(DropReason::OuterFragment);
        }
        Verdict::Pass
    }

    /// A tunnel of ours at `at` is dropped for what stands before it.
    #[inline(always)]
    fn odd(&self, work: &mut UplinkWork, protocol: u8, at: u32, fragment: bool) -> Verdict {
        let mut start = Udp::default();
        if self.frame.load(at, &mut start).is_err() {
            return Verdict::Pass;
        }
        // Both headers have eight bytes; GRE's type stands where UDP's destination port does.
        let ours = if protocol == ProtocolNumber::GRE {
            start.dst == EtherType::BRIDGED
        } else {
            let udp = self.is_geneve(&start) || self.is_vxlan(&start);
            protocol == ProtocolNumber::UDP && udp
                || protocol == ProtocolNumber::TCP && start.dst == SttSegment::PORT
        };
        if !ours {
            return Verdict::Pass;
        }
        if work.from == self.config.pa {
            return Verdict::Drop(DropReason::Loop);
        }
        self.refuse(work, if fragment { DropReason::OuterFragment } else { DropReason::BadTunnelHeader })
    }

    #[inline(always)]
    fn note(&self, work: &mut UplinkWork, kind: EventKind, net: u32, ca: Addr) {
        work.note = Note {
            kind: Some(kind),
            net,
            vsid: if work.sound { work.vsid } else { 0 },
            ca,
            pa: work.from,
            mac: if work.sound { work.tunnel.inner.eth.src } else { Mac::default() },
        };
    }
}

/// Extension headers of an outer IPv6 header that are looked behind.
const EXTENSIONS: u32 = 4;

/// Takes a congestion mark over from the outer header (RFC 6040 §4.2, figure 4). False: the frame must be dropped.
#[inline(always)]
fn take_congestion(work: &mut UplinkWork) -> bool {
    let outer = if work.shed.envelope.v6 { work.outer6.class() } else { work.outer.ip.tos } & Ipv4::ECN;
    let v6 = work.shed.inner == EtherType::IPV6;
    let class = if v6 { work.inner6.class() } else { work.tunnel.inner.ip.tos };
    let inner = class & Ipv4::ECN;
    match combine_ecn(inner, outer) {
        Some(ecn) if ecn == inner => true,
        Some(ecn) => {
            let class = (class & !Ipv4::ECN) | ecn;
            if v6 {
                work.inner6.set_class(class);
            } else {
                work.tunnel.inner.ip.set_tos(class);
            }
            work.marked = true;
            true
        }
        None => false,
    }
}

/// The inner mark after decapsulation: the more severe of the two, but only if the flow speaks ECN at all.
#[inline(always)]
#[must_use]
pub const fn combine_ecn(inner: u8, outer: u8) -> Option<u8> {
    if outer == Ipv4::ECN_CE {
        return if inner == 0 { None } else { Some(Ipv4::ECN_CE) };
    }
    // ECT(1) outside and ECT(0) inside: ECT(1) wins.
    if outer == 1 && inner == 2 { Some(1) } else { Some(inner) }
}
