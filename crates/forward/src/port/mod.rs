//! What a VM sends.

mod arp;

use crate::{
    Frame, Meta, Note, Refused, Tables, Target, Verdict,
    reach::{Place, towards},
};
use tenet_tables::{
    Addr, Config, DropReason, EventKind, LAYOUT_VERSION, METHOD_GATEWAY, MacKey, PORT_ACTIVE,
    PORT_FLAG_SECURITY, PORT_PREPARED, Port, RecordKey,
};
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Icmp, Ipv4, Ipv4Frame, NVGRE_OVERHEAD, Ports, ProtocolNumber,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first bytes of a frame; what lies beyond its end stays zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Head {
    /// Link header.
    pub eth: Ethernet,
    /// Network header, if the link header says IPv4.
    pub ip: Ipv4,
    /// Ports, if TCP or UDP follows without options.
    pub ports: Ports,
}

/// What [`port_ingress`] leaves for the edits and for the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortWork {
    /// The frame's first bytes, rewritten if the gateway routed it.
    pub head: Head,
    /// Where the frame goes if it is encapsulated.
    pub to: Target,
    /// Whether the gateway routed the frame.
    pub routed: bool,
    /// Whether this is the first frame of a prepared port, which makes it active.
    pub activated: bool,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What the agent may be told.
    pub note: Note,
}

/// Everything fixed about one call.
struct Call<'a, F, T> {
    frame: &'a F,
    meta: &'a Meta,
    tables: &'a T,
    port: &'a Port,
    config: &'a Config,
}

/// Judges a frame that a VM sent. Never [`Verdict::Pass`]: what a VM sends does not reach the host's stack.
#[inline(always)]
pub fn port_ingress<F: Frame, T: Tables>(frame: &F, meta: &Meta, tables: &T, work: &mut PortWork) -> Verdict {
    let Some(port) = tables.port(meta.ifindex) else { return Verdict::Drop(DropReason::UnknownPort) };
    let Some(config) = tables.config() else { return Verdict::Drop(DropReason::NotConfigured) };
    if config.layout != LAYOUT_VERSION {
        return Verdict::Drop(DropReason::NotConfigured);
    }
    if load_head(frame, meta.len, &mut work.head).is_err() {
        return Verdict::Drop(DropReason::Truncated);
    }
    if port.state != PORT_ACTIVE && port.state != PORT_PREPARED {
        return Verdict::Drop(DropReason::PortBlocked);
    }
    let call = Call { frame, meta, tables, port, config };
    if work.head.eth.src.is_group() {
        return Verdict::Drop(DropReason::Malformed);
    }
    if call.secure() && work.head.eth.src != port.mac {
        call.note(work, EventKind::Spoof, Addr::UNSET);
        return Verdict::Drop(DropReason::SpoofedMac);
    }
    work.activated = port.state == PORT_PREPARED;
    if meta.tagged || EtherType::is_vlan(work.head.eth.ty) {
        return Verdict::Drop(DropReason::InnerVlan);
    }
    if work.head.eth.ty == EtherType::IPV4 {
        call.ipv4(work)
    } else if work.head.eth.ty == EtherType::ARP {
        call.arp(work)
    } else {
        Verdict::Drop(DropReason::UnsupportedProtocol)
    }
}

#[inline(always)]
fn load_head<F: Frame>(frame: &F, len: u32, head: &mut Head) -> Result<(), Refused> {
    if len >= Ipv4Frame::LEN + 4 {
        return frame.load(0, head);
    }
    if len < Ipv4Frame::LEN {
        return frame.load(0, &mut head.eth);
    }
    let mut short = Ipv4Frame::default();
    frame.load(0, &mut short)?;
    head.eth = short.eth;
    head.ip = short.ip;
    Ok(())
}

impl<F: Frame, T: Tables> Call<'_, F, T> {
    #[inline(always)]
    fn secure(&self) -> bool {
        self.port.flags & PORT_FLAG_SECURITY != 0
    }

    #[inline(always)]
    fn ipv4(&self, work: &mut PortWork) -> Verdict {
        if self.meta.len < Ipv4Frame::LEN {
            return Verdict::Drop(DropReason::Truncated);
        }
        if !work.head.ip.fits(self.meta.len - Ethernet::LEN) {
            return Verdict::Drop(DropReason::Malformed);
        }
        if self.secure() && !self.owns(work.head.ip.src) {
            self.note(work, EventKind::Spoof, Addr::v4_word(work.head.ip.src.word()));
            return Verdict::Drop(DropReason::SpoofedCa);
        }
        let size = self.size(&work.head.ip);
        if work.head.eth.dst.is_group() {
            return match size {
                Size::Fits => Verdict::Flood { vsid: self.port.vsid },
                Size::TooBig | Size::TooBigToTell => Verdict::Drop(DropReason::TooBig),
                Size::Lies => Verdict::Drop(DropReason::Malformed),
            };
        }
        match size {
            Size::Fits => {}
            Size::TooBig => {
                return self.error(work, DropReason::TooBig, Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED);
            }
            Size::TooBigToTell => return Verdict::Drop(DropReason::TooBig),
            Size::Lies => return Verdict::Drop(DropReason::Malformed),
        }
        if work.head.eth.dst == self.config.gateway_mac {
            return self.routed(work);
        }
        self.bridged(work, true)
    }

    /// Whether the customer address is this port's.
    #[inline(always)]
    fn owns(&self, ca: Be32) -> bool {
        match self.tables.record(&RecordKey { net: self.port.net, ca: Addr::v4_word(ca.word()) }) {
            Some(record) => record.ifindex == self.meta.ifindex,
            None => false,
        }
    }

    /// Same subnet: by MAC.
    #[inline(always)]
    fn bridged(&self, work: &mut PortWork, ip: bool) -> Verdict {
        let key = MacKey { vsid: self.port.vsid, mac: work.head.eth.dst, reserved: 0 };
        let Some(entry) = self.tables.mac(&key) else {
            self.note_unknown(work, if ip { Addr::v4_word(work.head.ip.dst.word()) } else { Addr::UNSET });
            return Verdict::Drop(DropReason::UnknownMac);
        };
        if entry.ifindex == self.meta.ifindex {
            return Verdict::Drop(DropReason::UnknownMac);
        }
        let place =
            Place { pa: &entry.pa, ifindex: entry.ifindex, method: entry.method, vsid: self.port.vsid };
        self.go(work, place, ip)
    }

    /// Other subnet: by route and record, with new MACs and one hop less.
    #[inline(always)]
    fn routed(&self, work: &mut PortWork) -> Verdict {
        let dst = work.head.ip.dst;
        if !dst.is_routable() {
            return Verdict::Drop(DropReason::NoRoute);
        }
        let target = Addr::v4_word(dst.word());
        let Some(route) = self.tables.route(self.port.net, target) else {
            if self.is_own_gateway(&target) {
                return self.gateway(work);
            }
            return self.error(work, DropReason::NoRoute, Icmp::UNREACHABLE, Icmp::NET);
        };
        let on_link = route.next_hop.is_unset();
        let hop = if on_link { target } else { route.next_hop };
        let Some(record) = self.tables.record(&RecordKey { net: self.port.net, ca: hop }) else {
            if self.is_own_gateway(&target) {
                return self.gateway(work);
            }
            self.note_unknown(work, hop);
            return self.error(work, DropReason::NoRecord, Icmp::UNREACHABLE, Icmp::HOST);
        };
        if record.method == METHOD_GATEWAY {
            if on_link {
                return self.gateway(work);
            }
            return self.error(work, DropReason::NoRoute, Icmp::UNREACHABLE, Icmp::NET);
        }
        if work.head.ip.ttl <= 1 {
            return self.error(work, DropReason::TtlExceeded, Icmp::TIME_EXCEEDED, 0);
        }
        work.head.eth.dst = record.mac;
        work.head.eth.src = self.config.gateway_mac;
        work.head.ip.decrement_ttl();
        work.routed = true;
        let place = Place {
            pa: &record.pa,
            ifindex: record.ifindex,
            method: record.method as u32,
            vsid: record.vsid,
        };
        self.go(work, place, true)
    }

    #[inline(always)]
    fn go(&self, work: &mut PortWork, place: Place<'_>, ip: bool) -> Verdict {
        let flow = if ip { flow_id(&work.head) } else { 0 };
        let (verdict, moved) = towards(self.tables, place, ip, flow, &self.config.pa, &mut work.to);
        if moved != 0 {
            work.moved = moved;
            self.note_unknown(work, if ip { Addr::v4_word(work.head.ip.dst.word()) } else { Addr::UNSET });
            work.note.kind = Some(EventKind::Redirected);
        }
        verdict
    }

    #[inline(always)]
    fn is_own_gateway(&self, ca: &Addr) -> bool {
        match self.tables.subnet(self.port.vsid) {
            Some(subnet) => subnet.gateway == *ca,
            None => false,
        }
    }

    /// Packets for the gateway itself: it answers pings and nothing else.
    #[inline(always)]
    fn gateway(&self, work: &PortWork) -> Verdict {
        if work.head.ip.protocol != ProtocolNumber::ICMP {
            return self.error(work, DropReason::Consumed, Icmp::UNREACHABLE, Icmp::PORT);
        }
        if work.head.ip.is_fragment()
            || (work.head.ip.total_len.get() as u32) < work.head.ip.header_len() + Icmp::LEN
        {
            return Verdict::Drop(DropReason::Consumed);
        }
        let mut ty = Be16::default();
        if self.frame.load(Ethernet::LEN + work.head.ip.header_len(), &mut ty).is_err() {
            return Verdict::Drop(DropReason::Truncated);
        }
        if ty == Be16::new((Icmp::ECHO as u16) << 8) {
            Verdict::AnswerEcho
        } else {
            Verdict::Drop(DropReason::Consumed)
        }
    }

    /// An ICMP error, where one may be sent at all (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7); else a plain drop.
    ///
    /// Packets with options, or of less than eight bytes after the header, get none: an error of one size is
    /// all that eBPF can sum up cheaply.
    #[inline(always)]
    fn error(&self, work: &PortWork, reason: DropReason, ty: u8, code: u8) -> Verdict {
        let ip = &work.head.ip;
        let silent = Verdict::Drop(reason);
        if ip.version_ihl != Ipv4::PLAIN
            || ip.is_later_fragment()
            || !ip.src.is_routable()
            || !ip.dst.is_routable()
            || ip.total_len.get() < Ipv4::LEN as u16 + 8
        {
            return silent;
        }
        if ip.protocol == ProtocolNumber::ICMP && Icmp::is_error((work.head.ports.src.get() >> 8) as u8) {
            return silent;
        }
        let mtu = if code == Icmp::FRAGMENTATION_NEEDED { self.port.mtu } else { 0 };
        Verdict::Error { reason, ty, code, mtu }
    }

    /// Compares the packet, or each of its segments, with what the provider network carries.
    ///
    /// The limit is the same for a neighbour on this host, so that a VM's placement does not show.
    #[inline(always)]
    fn size(&self, ip: &Ipv4) -> Size {
        let mtu = self.port.mtu as u32;
        if self.meta.len + NVGRE_OVERHEAD > Ethernet::LEN + 0xffff {
            return Size::TooBigToTell;
        }
        if self.meta.gso_size == 0 {
            if ip.total_len.get() as u32 > mtu {
                return Size::TooBig;
            }
            return if self.meta.len > Ethernet::LEN + mtu { Size::Lies } else { Size::Fits };
        }
        let mut headers = ip.header_len() + 8;
        if ip.protocol == ProtocolNumber::TCP {
            // The data offset is the high half of the byte at 12.
            let mut offset = Be16::default();
            if self.frame.load(Ethernet::LEN + ip.header_len() + 12, &mut offset).is_err() {
                return Size::Lies;
            }
            headers = ip.header_len() + ((offset.get() >> 12) as u32) * 4;
        }
        if self.meta.gso_size.wrapping_add(headers) > mtu { Size::TooBig } else { Size::Fits }
    }

    /// Tells about the sender.
    #[inline(always)]
    fn note(&self, work: &mut PortWork, kind: EventKind, ca: Addr) {
        work.note = Note {
            kind: Some(kind),
            net: self.port.net,
            vsid: self.port.vsid,
            ca,
            pa: Addr::UNSET,
            mac: work.head.eth.src,
        };
    }

    /// Tells about the destination.
    #[inline(always)]
    fn note_unknown(&self, work: &mut PortWork, ca: Addr) {
        self.note(work, EventKind::UnknownDestination, ca);
        work.note.mac = work.head.eth.dst;
    }
}

enum Size {
    Fits,
    TooBig,
    /// No ICMP error could be of use: not even the outer header could state the length.
    TooBigToTell,
    /// More bytes than the header admits, and more than fit.
    Lies,
}

/// Bits that tell flows apart (the high ones best), equal for all frames of one flow and for all fragments of one packet.
#[inline(always)]
pub(crate) fn flow_id(head: &Head) -> u32 {
    let mut mix = head.ip.src.word() ^ head.ip.dst.word().rotate_left(7) ^ head.ip.protocol as u32;
    let has_ports = head.ip.protocol == ProtocolNumber::TCP || head.ip.protocol == ProtocolNumber::UDP;
    if has_ports && head.ip.version_ihl == Ipv4::PLAIN && !head.ip.is_fragment() {
        mix ^= (head.ports.src.half() as u32) << 16 | head.ports.dst.half() as u32;
    }
    // Fibonacci hashing: the high bits depend on all bits.
    mix.wrapping_mul(0x9e37_79b9)
}
