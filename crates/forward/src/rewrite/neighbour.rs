//! Link addresses: this host answers for its rewrite addresses, which no stack owns.
//!
//! The rows say which those are; an address stays answered for while frames to it go on to where its machine has
//! moved. Probes for duplicates are answered like any question, by which the address shows as taken.

use super::receive::{Call, PASS, RewriteWork};
use crate::packet::{Packet, addr6};
use crate::{
    Frame, FrameMut, Refused, Tables, Verdict,
    verdict::{Words, dropped},
};
use tenet_tables::{Addr, DropReason, RewriteKey};
use tenet_wire::{
    ALL_NODES, ALL_NODES_MAC, AdvertisementFrame, Arp, Be16, Ends, Ethernet, Icmp6, Ipv6, Neighbour,
    ProtocolNumber,
};

/// Hop limit of what comes from the link itself; other solicitations are refused (RFC 4861 §7.1.1).
const ON_LINK: u8 = 255;
const SOLICITATION: Be16 = Icmp6::ty_code(Icmp6::NEIGHBOUR_SOLICITATION, 0);

/// Answers an ARP request for a rewrite address of this host. All other ARP is the host's.
#[inline(always)]
pub(super) fn arp<F: FrameMut, T: Tables>(call: &Call<'_, T>, frame: &mut F) -> Words {
    let mut arp = Arp::default();
    if frame.load(Ethernet::LEN, &mut arp).is_err() || !arp.is_ipv4() || arp.operation != Arp::REQUEST {
        return PASS;
    }
    if arp.sender_mac.is_group() || !is_here(call, Addr::v4_word(arp.target.word())) {
        return PASS;
    }
    match frame.store(0, &arp.reply(call.config.uplink_mac)) {
        Ok(()) => Verdict::AnswerArp { mac: call.config.uplink_mac }.to_words(),
        Err(Refused) => dropped(DropReason::KernelRefused),
    }
}

/// Whether the address is one of those that questions for an address' link address go to (RFC 4291 §2.7.1).
#[inline(always)]
pub(super) const fn is_solicited_node(addr: &Addr) -> bool {
    let [a, b, c, d] = addr.words;
    a == 0xff02_0000u32.to_be() && b == 0 && c == 1u32.to_be() && d.to_ne_bytes()[0] == 0xff
}

/// Whether the packet is a neighbour solicitation.
#[inline(always)]
pub(super) fn is_solicitation<F: Frame>(frame: &F, packet: &Packet) -> bool {
    let mut start = Be16::default();
    packet.v6
        && packet.plain
        && packet.protocol == ProtocolNumber::ICMPV6
        && packet.hop_limit == ON_LINK
        && frame.load(packet.transport_at(), &mut start).is_ok()
        && start == SOLICITATION
}

/// Answers a neighbour solicitation for a rewrite address of this host; all others are the host's.
#[inline(always)]
pub(super) fn solicited<F: FrameMut, T: Tables>(
    call: &Call<'_, T>,
    frame: &mut F,
    work: &mut RewriteWork,
) -> Words {
    let ip = work.head.l3.v6();
    let mut question = Neighbour::default();
    if ip.next != ProtocolNumber::ICMPV6
        || ip.hop_limit != ON_LINK
        || (ip.payload_len.get() as u32) < Neighbour::LEN
        || frame.load(Ethernet::LEN + Ipv6::LEN, &mut question).is_err()
        || question.ty_code != SOLICITATION
        || work.head.eth.src.is_group()
        || !is_here(call, addr6(&question.target))
    {
        // What was sent to a rewrite address itself is not for the host either.
        let ours = !is_solicited_node(&work.packet.dst);
        return if ours { dropped(DropReason::RewritePair) } else { PASS };
    }
    // Who asks without an address of its own probes for a duplicate, and hears of one by multicast (§7.2.4).
    let probe = addr6(&ip.src).is_unset();
    let ends = Ends {
        dst_mac: if probe { ALL_NODES_MAC } else { work.head.eth.src },
        dst: if probe { ALL_NODES } else { ip.src },
        src_mac: call.config.uplink_mac,
        src: question.target,
    };
    let flags = Neighbour::OVERRIDE | if probe { 0 } else { Neighbour::SOLICITED };
    let answer = AdvertisementFrame::new(&ends, question.target, flags);
    if frame.remake(AdvertisementFrame::LEN).is_err() || frame.store(0, &answer).is_err() {
        return dropped(DropReason::KernelRefused);
    }
    Verdict::AnswerArp { mac: call.config.uplink_mac }.to_words()
}

/// Whether the address stands for a machine of this host, on the uplink that was asked.
#[inline(always)]
fn is_here<T: Tables>(call: &Call<'_, T>, pa: Addr) -> bool {
    if call.meta.ifindex != call.config.uplink {
        return false;
    }
    match call.tables.rewrite(&RewriteKey { pa }) {
        Some(row) => row.ifindex != 0,
        None => false,
    }
}
