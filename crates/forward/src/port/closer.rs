//! The second look: what is answered, and what a sender is told.

use super::{Call, PortWork};
use crate::{
    Frame, Meta, Tables, Verdict,
    packet::is_multicast,
    verdict::{Words, dropped},
};
use tenet_tables::DropReason;
use tenet_wire::{Be16, Icmp, Icmp6, Ipv4, Ipv6, ProtocolNumber, QUOTE6, QUOTE6_MORE};

/// Looks again at a frame that [`super::port_first`] said `words` of.
#[inline(always)]
pub fn port_closer<F: Frame, T: Tables>(
    frame: &F,
    meta: &Meta,
    tables: &T,
    words: Words,
    work: &mut PortWork,
) -> Words {
    let Some(port) = tables.port(meta.ifindex) else { return dropped(DropReason::UnknownPort) };
    let Some(config) = tables.config() else { return dropped(DropReason::NotConfigured) };
    let call = Call { frame, meta, tables, port, config };
    // What is not discovery's own business goes on as any packet does.
    let words =
        if matches!(Verdict::from_words(words), Verdict::Discovery) { call.discovery(work) } else { words };
    match Verdict::from_words(words) {
        Verdict::Arp => call.arp(work),
        Verdict::Gateway => call.gateway(work),
        Verdict::Complain(reason) => call.complain(work, reason),
        _ => words,
    }
}

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// Packets for the gateway itself: it answers pings and nothing else.
    #[inline(always)]
    fn gateway(&self, work: &PortWork) -> Words {
        let packet = &work.packet;
        let (icmp, echo) = if packet.v6 {
            (ProtocolNumber::ICMPV6, Icmp6::ECHO)
        } else {
            (ProtocolNumber::ICMP, Icmp::ECHO)
        };
        if packet.protocol != icmp {
            return self.complain(work, DropReason::Consumed);
        }
        if packet.fragment || packet.len < packet.transport + Icmp::LEN || (packet.v6 && !packet.plain) {
            return dropped(DropReason::Consumed);
        }
        let mut ty_code = Be16::default();
        if self.frame.load(packet.transport_at(), &mut ty_code).is_err() {
            return dropped(DropReason::Truncated);
        }
        // A machine that has no address yet cannot be answered.
        if ty_code == Icmp6::ty_code(echo, 0) && !packet.src.is_unset() {
            Verdict::AnswerEcho.to_words()
        } else {
            dropped(DropReason::Consumed)
        }
    }

    /// An ICMP error, where one may be sent at all; else a plain drop.
    #[inline(always)]
    fn complain(&self, work: &PortWork, reason: DropReason) -> Words {
        let mtu = if matches!(reason, DropReason::TooBig) { self.port.mtu } else { 0 };
        let (may, (ty, code)) = if work.packet.v6 {
            (self.may_complain6(work, reason), error6(reason))
        } else {
            (may_complain4(work), error4(reason))
        };
        if may { Verdict::Error { reason, ty, code, mtu }.to_words() } else { dropped(reason) }
    }

    /// RFC 4443 §2.4 e. Packets with more than one short extension header get none: an error of few sizes is all that
    /// eBPF can sum up cheaply.
    #[inline(always)]
    fn may_complain6(&self, work: &PortWork, reason: DropReason) -> bool {
        let packet = &work.packet;
        let group = is_multicast(&packet.dst) || work.head.eth.dst.is_group();
        if packet.src.is_unset() || group && !matches!(reason, DropReason::TooBig) || packet.later_fragment {
            return false;
        }
        let quote = if packet.plain { QUOTE6 } else { QUOTE6 + QUOTE6_MORE } as u32;
        if packet.transport > Ipv6::LEN + QUOTE6_MORE as u32 || packet.len < quote {
            return false;
        }
        if packet.protocol != ProtocolNumber::ICMPV6 {
            return true;
        }
        let mut ty_code = Be16::default();
        match self.frame.load(packet.transport_at(), &mut ty_code) {
            Ok(()) => !Icmp6::is_error((ty_code.get() >> 8) as u8),
            Err(_) => false,
        }
    }
}

/// RFC 1122 §3.2.2, RFC 1812 §4.3.2.7. Packets with options, or of less than eight bytes after the header, get none: an
/// error of one size is all that eBPF can sum up cheaply.
#[inline(always)]
fn may_complain4(work: &PortWork) -> bool {
    let ip = work.head.l3.v4();
    if !work.packet.plain
        || work.packet.later_fragment
        || work.head.eth.dst.is_group()
        || !ip.src.is_routable()
        || !ip.dst.is_routable()
        || ip.total_len.get() < Ipv4::LEN as u16 + 8
    {
        return false;
    }
    let ty = (work.head.l3.v4_transport().ports.src.get() >> 8) as u8;
    ip.protocol != ProtocolNumber::ICMP || !Icmp::is_error(ty)
}

/// Type and code for a reason.
#[inline(always)]
const fn error4(reason: DropReason) -> (u8, u8) {
    match reason {
        DropReason::TooBig => (Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED),
        DropReason::TtlExceeded => (Icmp::TIME_EXCEEDED, 0),
        DropReason::NoRecord => (Icmp::UNREACHABLE, Icmp::HOST),
        DropReason::Consumed => (Icmp::UNREACHABLE, Icmp::PORT),
        _ => (Icmp::UNREACHABLE, Icmp::NET),
    }
}

/// As [`error4`], of ICMPv6.
#[inline(always)]
const fn error6(reason: DropReason) -> (u8, u8) {
    match reason {
        DropReason::TooBig => (Icmp6::TOO_BIG, 0),
        DropReason::TtlExceeded => (Icmp6::TIME_EXCEEDED, 0),
        DropReason::NoRecord => (Icmp6::UNREACHABLE, Icmp6::ADDRESS),
        DropReason::Consumed => (Icmp6::UNREACHABLE, Icmp6::PORT),
        _ => (Icmp6::UNREACHABLE, Icmp6::NO_ROUTE),
    }
}
