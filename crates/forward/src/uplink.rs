//! What comes from the provider network.

use crate::{
    Frame, Meta, Note, SEND_MARK, Tables, Target, Verdict, hub,
    reach::{Fate, fate, skips_queue},
};
use tenet_tables::{
    Addr, Config, DEVICE_TAP, DropReason, EventKind, LAYOUT_VERSION, MacKey, PEER_FLAG_ANY_SOURCE, PeerKey,
    RecordKey,
};
use tenet_wire::{
    Arp, Be32, EtherType, Ethernet, Gre, Ipv4, Ipv4Frame, NVGRE_OVERHEAD, NvgreFrame, ProtocolNumber,
};

/// What [`uplink_ingress`] leaves for the edits and for the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct UplinkWork {
    /// The outer link and network headers.
    pub outer: Ipv4Frame,
    /// The tunnel's header and the inner link and network headers.
    pub inner: NvgreFrame,
    /// Where the frame goes if its port has moved.
    pub to: Target,
    /// Whether the inner network header took over a congestion mark.
    pub marked: bool,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What the agent may be told.
    pub note: Note,
}

/// Judges a frame from the provider network: [`Verdict::Pass`] for all that is not a tunnel of ours.
#[inline(always)]
pub fn uplink_ingress<F: Frame, T: Tables>(
    frame: &F,
    meta: &Meta,
    tables: &T,
    work: &mut UplinkWork,
) -> Verdict {
    // A tagged frame belongs to a VLAN device above this one.
    if meta.tagged || frame.load(0, &mut work.outer).is_err() {
        return Verdict::Pass;
    }
    if work.outer.eth.ty != EtherType::IPV4 || work.outer.ip.protocol != ProtocolNumber::GRE {
        return Verdict::Pass;
    }
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(own) = config.pa.as_v4_word() else { return Verdict::Pass };
    if config.layout != LAYOUT_VERSION {
        return Verdict::Pass;
    }
    if meta.mark == SEND_MARK {
        let ours = work.outer.ip.src.word() == own;
        return if ours { Verdict::Send } else { Verdict::Drop(DropReason::Loop) };
    }
    if work.outer.ip.dst.word() != own {
        return Verdict::Pass;
    }
    // Nobody else may speak for us, and we send ourselves nothing.
    if work.outer.ip.src.word() == own {
        return Verdict::Drop(DropReason::Loop);
    }
    let call = Call { frame, meta, tables, config };
    if work.outer.ip.version_ihl != Ipv4::PLAIN || work.outer.ip.is_fragment() {
        return call.odd(work);
    }
    if frame.load(Ipv4Frame::LEN, &mut work.inner).is_err() {
        return call.short(work);
    }
    if !work.inner.gre.is_bridged() {
        return Verdict::Pass;
    }
    if !work.inner.gre.is_nvgre() {
        return call.refuse(work, DropReason::BadTunnelHeader);
    }
    // The other way round is padding. A kernel that joins more than 64 KB says 0.
    if work.outer.ip.total_len.get() as u32 > meta.len.wrapping_sub(Ethernet::LEN) {
        return call.refuse(work, DropReason::Truncated);
    }
    call.tunnelled(work)
}

/// Everything fixed about one call.
struct Call<'a, F, T> {
    frame: &'a F,
    meta: &'a Meta,
    tables: &'a T,
    config: &'a Config,
}

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// A tunnel of ours: checks, then to its port.
    #[inline(always)]
    fn tunnelled(&self, work: &mut UplinkWork) -> Verdict {
        let eth = work.inner.eth;
        let ip = eth.ty == EtherType::IPV4;
        let source = if ip {
            if !work.inner.ip.fits(self.meta.len.wrapping_sub(NVGRE_OVERHEAD + Ethernet::LEN)) {
                return self.refuse(work, DropReason::Malformed);
            }
            work.inner.ip.src
        } else if eth.ty == EtherType::ARP {
            let mut arp = Arp::default();
            if self.frame.load(NVGRE_OVERHEAD + Ethernet::LEN, &mut arp).is_err() {
                return self.refuse(work, DropReason::Truncated);
            }
            if !arp.is_ipv4() {
                return self.refuse(work, DropReason::UnsupportedProtocol);
            }
            arp.sender
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
        let vsid = work.inner.gre.vsid();
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
        let from = Addr::v4_word(work.outer.ip.src.word());
        if !self.lives_at(port.net, source, &from) && !self.vouches(port.net, &port.peer_pa, &from) {
            return self.wrong_pa(work, port.net, source);
        }
        match fate(port, &entry.pa, from, &self.config.pa) {
            Fate::Here => {
                if ip && !take_congestion(work) {
                    return Verdict::Drop(DropReason::EcnMismatch);
                }
                // All IP frames for a tap take one way, whatever their size, so that a flow keeps its order.
                if ip
                    && port.device == DEVICE_TAP
                    && self.config.hub != 0
                    && let Some(len) = hub::inner_len(self.meta.len)
                {
                    return Verdict::DeliverWhole { ifindex: entry.ifindex, len };
                }
                Verdict::Deliver { ifindex: entry.ifindex, peer: skips_queue(port, ip) }
            }
            Fate::Drop(reason) => Verdict::Drop(reason),
            Fate::StillThere(pa) => self.onward(work, pa),
            Fate::Moved(pa) => {
                work.moved = entry.ifindex;
                self.note(
                    work,
                    EventKind::Redirected,
                    port.net,
                    if ip { Addr::v4_word(work.inner.ip.dst.word()) } else { Addr::UNSET },
                );
                work.note.mac = eth.dst;
                self.onward(work, pa)
            }
        }
    }

    /// Re-addresses the tunnel. The outer hop count goes on, so that hosts that disagree cannot loop a frame for ever.
    #[inline(always)]
    fn onward(&self, work: &mut UplinkWork, pa: &Addr) -> Verdict {
        if work.outer.ip.ttl <= 1 || self.config.pa == *pa {
            return Verdict::Drop(DropReason::Loop);
        }
        work.to.pa = *pa;
        Verdict::Onward
    }

    /// Broadcast and multicast go to the ports of this host; the sender has served the other hosts.
    #[inline(always)]
    fn flooded(&self, work: &mut UplinkWork, ip: bool, source: Be32) -> Verdict {
        let vsid = work.inner.gre.vsid();
        let Some(subnet) = self.tables.subnet(vsid) else {
            return self.refuse(work, DropReason::UnknownVsid);
        };
        let from = Addr::v4_word(work.outer.ip.src.word());
        if !self.lives_at(subnet.net, source, &from) && !self.vouches(subnet.net, &Addr::UNSET, &from) {
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

    /// Whether the customer address lives at the host that sent the frame, or did until a migration's end.
    #[inline(always)]
    fn lives_at(&self, net: u32, ca: Be32, from: &Addr) -> bool {
        match self.tables.record(&RecordKey { net, ca: Addr::v4_word(ca.word()) }) {
            Some(record) => record.pa == *from || record.alt_pa == *from,
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
    fn wrong_pa(&self, work: &mut UplinkWork, net: u32, source: Be32) -> Verdict {
        self.note(work, EventKind::MovedAddress, net, Addr::v4_word(source.word()));
        self.refuse(work, DropReason::WrongPa)
    }

    /// Drops for the first reason in the documented order: unknown host, unknown subnet, then `reason`.
    ///
    /// Good frames never come here, so that the checks of hosts and subnets cost them nothing: a frame
    /// whose inner source lives at its outer source comes from a known host.
    #[inline(always)]
    fn refuse(&self, work: &mut UplinkWork, reason: DropReason) -> Verdict {
        let pa = Addr::v4_word(work.outer.ip.src.word());
        if self.tables.peer(&PeerKey { net: 0, pa }).is_none() {
            self.note(work, EventKind::UnknownPa, 0, Addr::UNSET);
            return Verdict::Drop(DropReason::UnknownPa);
        }
        if work.inner.gre.is_nvgre() && self.tables.subnet(work.inner.gre.vsid()).is_none() {
            work.note = Note::default();
            return Verdict::Drop(DropReason::UnknownVsid);
        }
        Verdict::Drop(reason)
    }

    /// Fragments, and outer headers with options: ours are dropped by name, others are not our business.
    #[inline(always)]
    fn odd(&self, work: &mut UplinkWork) -> Verdict {
        if work.outer.ip.is_later_fragment() {
            // Nothing tells whose it is; a host of ours sends no other GRE.
            let pa = Addr::v4_word(work.outer.ip.src.word());
            let known = self.tables.peer(&PeerKey { net: 0, pa }).is_some();
            return if known { Verdict::Drop(DropReason::OuterFragment) } else { Verdict::Pass };
        }
        if work.outer.ip.version_ihl >> 4 != 4 || work.outer.ip.header_len() < Ipv4::LEN {
            return Verdict::Pass;
        }
        let mut gre = Gre::default();
        if self.frame.load(Ethernet::LEN + work.outer.ip.header_len(), &mut gre).is_err() || !gre.is_bridged()
        {
            return Verdict::Pass;
        }
        let fragment = work.outer.ip.is_fragment();
        self.refuse(work, if fragment { DropReason::OuterFragment } else { DropReason::BadTunnelHeader })
    }

    /// A frame that ends within the headers.
    #[inline(always)]
    fn short(&self, work: &mut UplinkWork) -> Verdict {
        let mut gre = Gre::default();
        if self.frame.load(Ipv4Frame::LEN, &mut gre).is_err() || !gre.is_bridged() {
            return Verdict::Pass;
        }
        self.refuse(work, DropReason::Truncated)
    }

    #[inline(always)]
    fn note(&self, work: &mut UplinkWork, kind: EventKind, net: u32, ca: Addr) {
        work.note = Note {
            kind: Some(kind),
            net,
            vsid: if work.inner.gre.is_nvgre() { work.inner.gre.vsid() } else { 0 },
            ca,
            pa: Addr::v4_word(work.outer.ip.src.word()),
            mac: work.inner.eth.src,
        };
    }
}

/// Takes a congestion mark over from the outer header (RFC 6040 §4.2, figure 4). False: the frame must be dropped.
#[inline(always)]
fn take_congestion(work: &mut UplinkWork) -> bool {
    let outer = work.outer.ip.tos & Ipv4::ECN;
    let inner = work.inner.ip.tos & Ipv4::ECN;
    match combine_ecn(inner, outer) {
        Some(ecn) if ecn == inner => true,
        Some(ecn) => {
            work.inner.ip.set_tos((work.inner.ip.tos & !Ipv4::ECN) | ecn);
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
