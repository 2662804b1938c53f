//! What a VM sends.
//!
//! In two looks: [`port_first`] judges what is frequent, and what it finds to be rare ([`Verdict::Arp`] and its like)
//! [`port_closer`] looks at again. In eBPF they are two functions, so that frequent frames need not carry the others'
//! weight; [`port_ingress`] is both.

mod arp;
mod closer;
mod discovery;
mod rewrite;
mod syn;
mod work;

pub use closer::port_closer;
pub use syn::clamp;
pub use work::{Head, PortWork};

use crate::{
    Frame, Meta, Note, Tables, Verdict,
    packet::{eui64_mac, is_link_local, is_mapped, is_multicast, is_routable6},
    reach::{Place, towards},
    verdict::{Words, dropped},
};
use tenet_tables::{
    Addr, Config, DropReason, EventKind, GATEWAY_LINK_LOCAL, LAYOUT_VERSION, METHOD_GATEWAY, METHOD_REWRITE,
    MacKey, PORT_ACTIVE, PORT_FLAG_SECURITY, PORT_PREPARED, Port, RecordKey,
};
use tenet_wire::{Be16, EtherType, Ethernet, Icmp6, Mac, Ports, ProtocolNumber, Tcp};

/// The most that any method puts before an inner packet, its link header included: STT over IPv6.
const LARGEST_OVERHEAD: u32 = 92;

/// Everything fixed about one call.
struct Call<'a, F, T> {
    frame: &'a F,
    meta: &'a Meta,
    tables: &'a T,
    port: &'a Port,
    config: &'a Config,
}

/// Judges a frame that a VM sent. Never [`Verdict::Pass`]: what a VM sends does not reach the host's stack.
pub fn port_ingress<F: Frame, T: Tables>(frame: &F, meta: &Meta, tables: &T, work: &mut PortWork) -> Verdict {
    let words = port_first(frame, meta, tables, work);
    Verdict::from_words(if needs_closer_look(words) {
        port_closer(frame, meta, tables, words, work)
    } else {
        words
    })
}

/// Whether [`port_closer`] has to look at a frame that [`port_first`] judged so.
#[inline(always)]
#[must_use]
pub const fn needs_closer_look(words: Words) -> bool {
    let [tag, ..] = words;
    tag >= Verdict::FIRST_CLOSER && tag < Verdict::FIRST_RARE
}

/// The first look.
#[inline(always)]
pub fn port_first<F: Frame, T: Tables>(frame: &F, meta: &Meta, tables: &T, work: &mut PortWork) -> Words {
    work.begin();
    let Some(port) = tables.port(meta.ifindex) else { return dropped(DropReason::UnknownPort) };
    let Some(config) = tables.config() else { return dropped(DropReason::NotConfigured) };
    if config.layout != LAYOUT_VERSION {
        return dropped(DropReason::NotConfigured);
    }
    if work.head.load(frame, meta.len).is_err() {
        return dropped(DropReason::Truncated);
    }
    if port.state != PORT_ACTIVE && port.state != PORT_PREPARED {
        return dropped(DropReason::PortBlocked);
    }
    let call = Call { frame, meta, tables, port, config };
    if work.head.eth.src.is_group() {
        return dropped(DropReason::Malformed);
    }
    if call.secure() && work.head.eth.src != port.mac {
        call.note(work, EventKind::Spoof, Addr::UNSET);
        return dropped(DropReason::SpoofedMac);
    }
    work.activated = port.state == PORT_PREPARED;
    if meta.tagged || EtherType::is_vlan(work.head.eth.ty) {
        return dropped(DropReason::InnerVlan);
    }
    if work.head.eth.ty == EtherType::IPV4 || work.head.eth.ty == EtherType::IPV6 {
        call.ip(work)
    } else if work.head.eth.ty == EtherType::ARP {
        Verdict::Arp.to_words()
    } else if work.head.eth.ty == EtherType::RARP {
        // A hypervisor announces the VM: it has activated a prepared port, and the table needs no telling.
        dropped(DropReason::ArpSuppressed)
    } else {
        dropped(DropReason::UnsupportedProtocol)
    }
}

impl<F: Frame, T: Tables> Call<'_, F, T> {
    #[inline(always)]
    fn secure(&self) -> bool {
        self.port.flags & PORT_FLAG_SECURITY != 0
    }

    #[inline(always)]
    fn ip(&self, work: &mut PortWork) -> Words {
        let PortWork { head, packet, .. } = work;
        if let Err(reason) = packet.take(self.frame, Ethernet::LEN, self.meta.len, head.eth.ty, &head.l3) {
            return dropped(reason);
        }
        if self.secure() && !self.may_send_from(work) {
            self.note(work, EventKind::Spoof, work.packet.src);
            return dropped(DropReason::SpoofedCa);
        }
        if work.packet.v6 && work.packet.protocol == ProtocolNumber::ICMPV6 && !work.packet.later_fragment {
            let mut ty_code = Be16::default();
            if self.frame.load(work.packet.transport_at(), &mut ty_code).is_err() {
                return dropped(DropReason::Truncated);
            }
            if Icmp6::is_discovery((ty_code.get() >> 8) as u8) {
                return Verdict::Discovery.to_words();
            }
            if self.secure() && work.packet.src.is_unset() {
                self.note(work, EventKind::Spoof, Addr::UNSET);
                return dropped(DropReason::SpoofedCa);
            }
        }
        self.transport(work);
        self.onwards(work)
    }

    /// Whether the source address may be this port's. Link-local addresses are in no table; the MAC stands for them.
    #[inline(always)]
    fn may_send_from(&self, work: &PortWork) -> bool {
        let packet = &work.packet;
        if packet.v6 {
            if is_link_local(&packet.src) {
                return packet.src != GATEWAY_LINK_LOCAL && !self.is_anothers(&packet.src);
            }
            // Before it has an address, a machine speaks to groups only, and only of discovery.
            if packet.src.is_unset() {
                return packet.protocol == ProtocolNumber::ICMPV6 && is_multicast(&packet.dst);
            }
        }
        self.owns(packet.src)
    }

    /// Whether a link-local address was formed of the MAC of another port of the subnet.
    #[inline(always)]
    fn is_anothers(&self, local: &Addr) -> bool {
        match eui64_mac(local) {
            Some(mac) if mac != self.port.mac => {
                self.tables.mac(&MacKey { vsid: self.port.vsid, mac, reserved: 0 }).is_some()
            }
            _ => false,
        }
    }

    /// Whether the customer address is this port's.
    #[inline(always)]
    fn owns(&self, ca: Addr) -> bool {
        match self.tables.record(&RecordKey { net: self.port.net, ca }) {
            Some(record) => record.ifindex == self.meta.ifindex,
            None => false,
        }
    }

    /// Reads what the decision wants of the transport's header: ports, and if it is TCP length and flags.
    #[inline(always)]
    fn transport(&self, work: &mut PortWork) {
        let tcp = work.packet.protocol == ProtocolNumber::TCP;
        if work.packet.fragment || !(tcp || work.packet.protocol == ProtocolNumber::UDP) {
            return;
        }
        if !work.packet.v6 && work.packet.plain {
            let start = work.head.l3.v4_transport();
            work.transport.ports = start.ports;
            if tcp {
                work.transport.offset_flags = start.offset_flags;
            }
        } else {
            let at = work.packet.transport_at();
            let loaded = if tcp {
                self.frame.load(at, &mut work.transport)
            } else {
                self.frame.load(at, &mut work.transport.ports)
            };
            // What has no ports spreads as well as it can.
            if loaded.is_err() {
                work.transport.ports = Ports::default();
                work.transport.offset_flags = Be16::default();
            }
        }
        if Tcp::opens(work.transport.offset_flags) {
            work.segment = self.port.mtu.saturating_sub(if work.packet.v6 { 60 } else { 40 });
        }
    }

    /// A packet that may be sent: to where it is addressed.
    #[inline(always)]
    fn onwards(&self, work: &mut PortWork) -> Words {
        match self.size(work) {
            Size::Fits => {}
            Size::TooBig => return Verdict::Complain(DropReason::TooBig).to_words(),
            Size::TooBigToTell => return dropped(DropReason::TooBig),
            Size::Lies => return dropped(DropReason::Malformed),
        }
        if work.head.eth.dst.is_group() {
            return Verdict::Flood { vsid: self.port.vsid }.to_words();
        }
        if work.head.eth.dst == self.config.gateway_mac {
            return self.routed(work);
        }
        self.bridged(work, true)
    }

    /// Same subnet: by MAC.
    #[inline(always)]
    fn bridged(&self, work: &mut PortWork, ip: bool) -> Words {
        let key = MacKey { vsid: self.port.vsid, mac: work.head.eth.dst, reserved: 0 };
        let Some(entry) = self.tables.mac(&key) else {
            self.note_unknown(work, if ip { work.packet.dst } else { Addr::UNSET });
            return dropped(DropReason::UnknownMac);
        };
        if entry.ifindex == self.meta.ifindex {
            return dropped(DropReason::UnknownMac);
        }
        let place =
            Place { pa: &entry.pa, ifindex: entry.ifindex, method: entry.method, vsid: self.port.vsid };
        self.go(work, place, ip)
    }

    /// Other subnet: by route and record, with new MACs and one hop less.
    #[inline(always)]
    fn routed(&self, work: &mut PortWork) -> Words {
        let target = work.packet.dst;
        if work.packet.v6 {
            if target == GATEWAY_LINK_LOCAL {
                return Verdict::Gateway.to_words();
            }
            if !is_routable6(&target) {
                return dropped(DropReason::NoRoute);
            }
            if !is_routable6(&work.packet.src) {
                // RFC 4291 §2.5.6: link-local sources stay on their link, which the gateway is on.
                let own = self.is_own_gateway(&target);
                return if own { Verdict::Gateway.to_words() } else { dropped(DropReason::NoRoute) };
            }
        } else if !work.head.l3.v4().dst.is_routable() {
            return dropped(DropReason::NoRoute);
        }
        let Some(route) = self.tables.route(self.port.net, target) else {
            if self.is_own_gateway(&target) {
                return Verdict::Gateway.to_words();
            }
            return Verdict::Complain(DropReason::NoRoute).to_words();
        };
        let on_link = route.next_hop.is_unset();
        let hop = if on_link { target } else { route.next_hop };
        // A default route of IPv6 holds the mapped addresses, too.
        if !work.packet.v6 && !is_mapped(&hop) {
            return if self.is_own_gateway(&target) {
                Verdict::Gateway.to_words()
            } else {
                Verdict::Complain(DropReason::NoRoute).to_words()
            };
        }
        let Some(record) = self.tables.record(&RecordKey { net: self.port.net, ca: hop }) else {
            if self.is_own_gateway(&target) {
                return Verdict::Gateway.to_words();
            }
            self.note_unknown(work, hop);
            return Verdict::Complain(DropReason::NoRecord).to_words();
        };
        if record.method == METHOD_GATEWAY {
            if on_link {
                return Verdict::Gateway.to_words();
            }
            return Verdict::Complain(DropReason::NoRoute).to_words();
        }
        if work.packet.hop_limit <= 1 {
            return Verdict::Complain(DropReason::TtlExceeded).to_words();
        }
        set(&mut work.head.eth.dst, &record.mac);
        set(&mut work.head.eth.src, &self.config.gateway_mac);
        if work.packet.v6 {
            let ip = work.head.l3.v6_mut();
            ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        } else {
            work.head.l3.v4_mut().decrement_ttl();
        }
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
    fn go(&self, work: &mut PortWork, place: Place<'_>, ip: bool) -> Words {
        let flow = if ip { work.flow() } else { 0 };
        let rewritten = place.method == METHOD_REWRITE as u32;
        let (words, moved) = towards(self.tables, place, ip, flow, &self.config.pa, &mut work.to);
        if moved != 0 {
            work.moved = moved;
            self.note_unknown(work, if ip { work.packet.dst } else { Addr::UNSET });
            work.note.kind = Some(EventKind::Redirected);
        }
        if rewritten && words[0] == Verdict::Encapsulate.to_words()[0] {
            return self.rewritten(work, ip);
        }
        words
    }

    #[inline(always)]
    fn is_own_gateway(&self, ca: &Addr) -> bool {
        match self.tables.subnet(self.port.vsid) {
            Some(subnet) => !ca.is_unset() && (subnet.gateway == *ca || subnet.gateway6 == *ca),
            None => false,
        }
    }

    /// Compares the packet, or each of its segments, with what the provider network carries.
    ///
    /// The limit is the same for a neighbour on this host, so that a VM's placement does not show.
    #[inline(always)]
    fn size(&self, work: &PortWork) -> Size {
        let mtu = self.port.mtu as u32;
        let packet = &work.packet;
        if self.meta.len + LARGEST_OVERHEAD > Ethernet::LEN + 0xffff {
            return Size::TooBigToTell;
        }
        if self.meta.gso_size == 0 {
            if packet.len > mtu {
                return Size::TooBig;
            }
            return if self.meta.len > Ethernet::LEN + mtu { Size::Lies } else { Size::Fits };
        }
        let mut headers = packet.transport + 8;
        if packet.protocol == ProtocolNumber::TCP {
            // Nobody segments what is a part already.
            if packet.fragment || Tcp::header_len(work.transport.offset_flags) < Tcp::LEN {
                return Size::Lies;
            }
            headers = packet.transport + Tcp::header_len(work.transport.offset_flags);
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

/// Copies a MAC by halves: for a copy between places that might overlap the compiler calls a slow function.
#[inline(always)]
fn set(to: &mut Mac, from: &Mac) {
    let [a, b, c] = from.halves;
    to.halves = [a, b, c];
}

enum Size {
    Fits,
    TooBig,
    /// No ICMP error could be of use: not even the outer header could state the length.
    TooBigToTell,
    /// More bytes than the header admits, and more than fit.
    Lies,
}
