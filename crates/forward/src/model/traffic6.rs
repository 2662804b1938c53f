//! Frames of IPv6 for [`super::traffic`].

use super::site::{IPV4_ONLY, MTU, Machine, Site, address6};
use super::traffic::{Dice, open};
use alloc::vec::Vec;
use tenet_tables::{GATEWAY_LINK_LOCAL, GATEWAY_MAC};
use tenet_wire::{
    Be16, EtherType, Ethernet, Icmp6, Ipv6, Ipv6Halves, LinkOption, Mac, Neighbour, Ports, ProtocolNumber,
    checksum, pseudo6,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 1, 11];
const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const OPAQUE: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0];

/// The link-local address that a MAC makes.
#[must_use]
pub const fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

fn halves(octets: [u8; 16]) -> Ipv6Halves {
    Ipv6Halves::read_from_bytes(&octets).unwrap_or_default()
}

fn gateway_local() -> [u8; 16] {
    let mut octets = [0; 16];
    octets.copy_from_slice(GATEWAY_LINK_LOCAL.as_bytes());
    octets
}

/// Where the group of an address is sought (RFC 4291 §2.7.1), and its MAC.
fn solicited(target: [u8; 16]) -> ([u8; 16], Mac) {
    let [.., a, b, c] = target;
    ([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c], Mac::new([0x33, 0x33, 0xff, a, b, c]))
}

/// A frame as `me` sends it, or as somebody else sends it to `me`.
pub(super) fn inner(dice: &mut Dice, site: &Site, me: &Machine, to_me: bool) -> Vec<u8> {
    let near: Vec<&Machine> = site.machines.iter().filter(|m| m.vsid == me.vsid).collect();
    let far: Vec<&Machine> = site.machines.iter().filter(|m| m.net == me.net).collect();
    let mut peer = *near[dice.below(near.len())];
    let mut routed = false;
    if dice.one_in(2) {
        peer = *far[dice.below(far.len())];
        routed = peer.vsid != me.vsid || dice.one_in(4);
    }
    let (from, to) = if to_me { (peer, *me) } else { (*me, peer) };
    let local = dice.one_in(6);
    let address = |m: &Machine| if local { link_local(m.mac) } else { m.ca6() };
    let (mut src, mut dst) = (address(&from), address(&to));
    let mut src_mac = if to_me && routed { GATEWAY_MAC } else { Mac::new(from.mac) };
    let mut dst_mac = if !to_me && routed { GATEWAY_MAC } else { Mac::new(to.mac) };
    if dice.one_in(20) {
        src_mac = dice.pick(&[Mac::new([2, 9, 9, 9, 9, 9]), Mac::BROADCAST, GATEWAY_MAC]);
    }
    if dice.one_in(10) {
        src = dice.pick(&[
            [0; 16],
            MAPPED,
            LOOPBACK,
            ALL_NODES,
            OPAQUE,
            gateway_local(),
            address6(1, 99),
            address6(1, 12),
        ]);
    }
    if dice.one_in(6) {
        dst = dice.pick(&[
            [0; 16],
            MAPPED,
            LOOPBACK,
            ALL_NODES,
            ALL_ROUTERS,
            OPAQUE,
            gateway_local(),
            address6(1, 1),
            address6(2, 1),
            address6(1, 99),
            address6(9, 9),
            [0xfd, 0x72, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
            [0xfd, 0x72, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
            [0xfd, 0x72, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        ]);
        dst_mac = if dst[0] == 0xff { Mac::new([0x33, 0x33, 0, 0, 0, dst[15]]) } else { GATEWAY_MAC };
    }
    if dice.one_in(10) {
        dst_mac = dice.pick(&[Mac::BROADCAST, Mac::new([2, 8, 8, 8, 8, 8]), GATEWAY_MAC, ALL_NODES_MAC]);
    }
    let mut ends = (src, dst, dst_mac);
    let (mut next, mut hops, payload) = if dice.one_in(3) {
        discovery(dice, &mut ends, src_mac, me.vsid != IPV4_ONLY)
    } else {
        let protocol = dice.pick(&[6, 6, 17, 17, 58, 58, 58, 47, 59]);
        let hops = dice.pick(&[64, 64, 64, 255, 2, 1, 0]);
        (protocol, hops, transport(dice, protocol, ends.0, ends.1))
    };
    if dice.one_in(30) {
        hops = dice.roll() as u8;
    }
    let mut chain = Vec::new();
    if dice.one_in(8) {
        next = extensions(dice, next, &mut chain);
    }
    let mut len = chain.len() + payload.len();
    if dice.one_in(20) {
        len = dice.pick(&[0, len + 1, len.saturating_sub(3), 0xffff]);
    }
    let ip = Ipv6 {
        start: Be16::new(if dice.one_in(40) {
            dice.roll() as u16
        } else {
            0x6000 | dice.pick(&[0, 0x10, 0xb8a])
        }),
        flow: Be16::new(dice.roll() as u16),
        payload_len: Be16::new(len as u16),
        next,
        hop_limit: hops,
        src: halves(ends.0),
        dst: halves(ends.1),
    };
    let eth = Ethernet { dst: ends.2, src: src_mac, ty: EtherType::IPV6 };
    [eth.as_bytes(), ip.as_bytes(), &chain, &payload].concat()
}

const ALL_NODES_MAC: Mac = tenet_wire::ALL_NODES_MAC;

/// Puts extension headers before what `next` names; what to write as the first header's type.
fn extensions(dice: &mut Dice, next: u8, chain: &mut Vec<u8>) -> u8 {
    let count = dice.pick(&[1, 1, 1, 2, 3, 4, 5, 6]);
    let mut types: Vec<u8> = (0..count).map(|_| dice.pick(&[0, 43, 44, 60, 60])).collect();
    types.push(next);
    for pair in types.windows(2) {
        let mut header = [pair[1], 0, 1, 4, 0, 0, 0, 0];
        if pair[0] == ProtocolNumber::FRAGMENT {
            let offset = dice.pick(&[0, 1, 8, 0x100, 0x101]) as u16;
            header[2..4].copy_from_slice(&offset.to_be_bytes());
        } else if dice.one_in(6) {
            header[1] = dice.pick(&[1, 2, 255]);
        }
        chain.extend(header);
        chain.resize(chain.len() + if header[1] < 3 { usize::from(header[1]) * 8 } else { 0 }, 0);
    }
    types[0]
}

fn sum(message: &mut [u8], src: [u8; 16], dst: [u8; 16]) {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let pseudo = pseudo6(&halves(src), &halves(dst), len, ProtocolNumber::ICMPV6);
    let sum = checksum::finish(checksum::add(pseudo, checksum::sum_bytes(message)));
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_ne_bytes());
    }
}

fn transport(dice: &mut Dice, protocol: u8, src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
    let body = match dice.below(10) {
        0 => 0,
        1 => dice.below(8),
        2 => usize::from(MTU) - 60 + dice.below(80),
        3 => 1480,
        _ => dice.below(300),
    };
    let mut bytes = Vec::new();
    if protocol == ProtocolNumber::ICMPV6 {
        let ty = dice.pick(&[Icmp6::ECHO, Icmp6::ECHO, Icmp6::ECHO_REPLY, 1, 2, 3, 4, 139]);
        bytes.extend([ty, 0, 0, 0, 0, 7, 0, 1]);
    } else {
        let ports =
            Ports { src: Be16::new(dice.roll() as u16), dst: Be16::new(dice.pick(&[53, 80, 443, 4789])) };
        bytes.extend_from_slice(ports.as_bytes());
        bytes.extend_from_slice(&[0, 8, 0, 0, 0, 0, 0, 0, 0x50, 0x10]);
        if protocol == ProtocolNumber::TCP && dice.one_in(2) {
            open(dice, &mut bytes);
        }
    }
    bytes.extend((0..body).map(|i| i as u8));
    if protocol == ProtocolNumber::ICMPV6 {
        sum(&mut bytes, src, dst);
    }
    if dice.one_in(20) {
        let keep = dice.below(12);
        bytes.truncate(keep);
    }
    bytes
}

/// A message of discovery; protocol, hop limit and message.
fn discovery(
    dice: &mut Dice,
    ends: &mut ([u8; 16], [u8; 16], Mac),
    mac: Mac,
    ask: bool,
) -> (u8, u8, Vec<u8>) {
    let ty = dice.pick(&[133, 133, 134, 135, 135, 135, 135, 136, 136, 137, 130, 131, 143]);
    let target = match dice.below(12) {
        0 => gateway_local(),
        1 => address6(dice.pick(&[1, 2]), 1),
        2 => address6(1, 99),
        3 => OPAQUE,
        4 => ends.0,
        5 => ALL_NODES,
        6 => link_local([2, 1, 1, 0, 0, 31]),
        _ => ends.1,
    };
    match ty {
        133 if dice.one_in(2) || !ask => {
            (ends.1, ends.2) = (ALL_ROUTERS, Mac::new([0x33, 0x33, 0, 0, 0, 2]));
        }
        135 if !dice.one_in(4) => (ends.1, ends.2) = solicited(target),
        136 if dice.one_in(3) => (ends.1, ends.2) = (ALL_NODES, ALL_NODES_MAC),
        _ => {}
    }
    if dice.one_in(6) {
        ends.0 = [0; 16];
    }
    let mut bytes = Vec::new();
    let nd = Neighbour {
        ty_code: Icmp6::ty_code(ty, u8::from(dice.one_in(30))),
        target: halves(target),
        ..Neighbour::default()
    };
    bytes.extend_from_slice(nd.as_bytes());
    if ty == 133 {
        bytes.truncate(8);
    }
    for _ in 0..dice.pick(&[0, 1, 1, 1, 2, 5]) {
        let whose = if dice.one_in(8) { Mac::new([2, 7, 7, 7, 7, 7]) } else { mac };
        let mut option = LinkOption::new(dice.pick(&[1, 2, 2, 14, 5]), whose).as_bytes().to_vec();
        if dice.one_in(10) {
            option[1] = dice.pick(&[0, 2, 200]);
        }
        bytes.extend(option);
    }
    if dice.one_in(20) {
        let keep = dice.below(bytes.len());
        bytes.truncate(keep);
    }
    sum(&mut bytes, ends.0, ends.1);
    let hops = if dice.one_in(20) { dice.pick(&[254, 64, 1]) } else { 255 };
    (ProtocolNumber::ICMPV6, hops, bytes)
}
