//! Frames in tunnels of all kinds for the [`site`](super::site): good, hostile and broken.

use super::site::{OTHER, OTHER_GENEVE_PORT, OWN, STRANGER, Site, THIRD};
use super::traffic::{Dice, inner};
use crate::packet::halves6;
use alloc::vec::Vec;
use tenet_tables::{GENEVE_PORT, STT_PORT, VXLAN_PORT};
use tenet_wire::parse::{Outer, pseudo_sum};
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Geneve, Gre, Ipv4, Ipv6, Mac, ProtocolNumber, SttHeader, SttSegment,
    TunnelHeader, Udp, Vxlan, checksum, outer_ipv4, outer_ipv6, outer_protocol, outer_udp,
};
use zerocopy::IntoBytes;

/// Options that a sender may have put: fine, fine, critical, and one that says more than there is.
const OPTIONS: [&[u8]; 4] = [
    &[1, 2, 3, 0],
    &[1, 2, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 0x7f, 0xe0],
    &[1, 2, 0x80, 1, 0, 1, 0, 2],
    &[1, 2, 3, 9],
];

/// A frame in a tunnel, mostly for this host.
pub(super) fn tunnelled(dice: &mut Dice, site: &Site) -> Vec<u8> {
    let me = site.machines[dice.below(site.machines.len())];
    let mut inner = inner(dice, site, &me, true);
    if dice.one_in(12) {
        let mac = Mac::BROADCAST.octets();
        inner[..6].copy_from_slice(&mac);
    }
    let from = dice.pick(&[OTHER, OTHER, OTHER, THIRD, STRANGER, OWN]);
    let to = if dice.one_in(12) { OTHER } else { OWN };
    let vsid = if dice.one_in(12) { dice.pick(&[0, 1, 4096, 0xff_ffff, 6001, 5002]) } else { me.vsid };
    let (port, payload) = match dice.below(5) {
        4 => (STT_PORT, stt(dice, vsid, &inner)),
        0 | 1 => (0, nvgre(dice, vsid, &inner)),
        2 => (VXLAN_PORT, vxlan(dice, vsid, &inner)),
        _ => (dice.pick(&[GENEVE_PORT, GENEVE_PORT, OTHER_GENEVE_PORT]), geneve(dice, vsid, &inner)),
    };
    let ecn = dice.pick(&[0, 1, 2, 3]);
    // Now and then in the family that this host does not have.
    if site.over_ipv6 != dice.one_in(30) {
        in_ipv6(dice, from, to, port, &payload, ecn)
    } else {
        in_ipv4(dice, from, to, port, &payload, ecn)
    }
}

fn nvgre(dice: &mut Dice, vsid: u32, inner: &[u8]) -> Vec<u8> {
    let mut gre = Gre::nvgre(vsid, dice.roll() as u8);
    if dice.one_in(15) {
        gre.flags = Be16::new(dice.pick(&[0, 0xa000, 0x3000, 0x2001, 0x6000]));
    }
    if dice.one_in(25) {
        gre.protocol = Be16::new(dice.pick(&[0x0800, 0x6559, 0x88be]));
    }
    [gre.as_bytes(), inner].concat()
}

/// An STT frame with its TCP-like header: whole, or a part of one.
fn stt(dice: &mut Dice, vsid: u32, inner: &[u8]) -> Vec<u8> {
    let mut header = SttHeader { context_low: Be32::new(vsid), ..SttHeader::default() };
    if inner.get(12..14) == Some(&[8, 0]) {
        header.flags |= SttHeader::IPV4;
    }
    let v6 = inner.get(12..14) == Some(&[0x86, 0xdd]);
    if inner.get(if v6 { 20 } else { 23 }) == Some(&6) {
        header.flags |= SttHeader::TCP;
        if dice.one_in(3) {
            header.flags |= SttHeader::PARTIAL;
            header.l4_offset = if v6 { 54 } else { 34 };
            header.mss = Be16::new(dice.pick(&[0, 1000, 1000]));
        }
    }
    if dice.one_in(8) {
        header.flags |= SttHeader::VERIFIED;
    }
    if dice.one_in(12) {
        match dice.below(6) {
            0 => header.version = 1,
            1 => header.flags ^= 1 << dice.below(8),
            2 => header.l4_offset = dice.roll() as u8,
            3 => header.vlan = Be16::new(dice.roll() as u16),
            4 => header.context_high = Be32::new(1),
            _ => header.context_low = Be32::new(dice.roll() as u32),
        }
    }
    let bytes = [header.as_bytes(), inner].concat();
    let mut segment = SttSegment::whole(50_000, bytes.len() as u16, dice.roll() as u32);
    let mut part = &bytes[..];
    if dice.one_in(5) {
        let at = dice.below(bytes.len());
        part = if dice.one_in(2) { &bytes[..at] } else { &bytes[at..] };
        if part.len() != at {
            segment.offset = Be16::new(at as u16);
        }
    }
    if dice.one_in(30) {
        segment.total = Be16::new(dice.roll() as u16);
    }
    if dice.one_in(30) {
        segment.flags = Be16::new(dice.pick(&[0x5002, 0x5010, 0x6018, 0x5011]));
    }
    [segment.as_bytes(), part].concat()
}

fn vxlan(dice: &mut Dice, vsid: u32, inner: &[u8]) -> Vec<u8> {
    let mut header = TunnelHeader::from(Vxlan::new(vsid));
    if dice.one_in(4) {
        // Reserved bits, and at times without the one that counts.
        header.start = Be16::new(dice.roll() as u16 | if dice.one_in(4) { 0 } else { Vxlan::VALID });
        header.protocol = Be16::new(dice.roll() as u16);
        header.id = Be32::new(header.id.get() | dice.roll() as u32 & 0xff);
    }
    [header.as_bytes(), inner].concat()
}

fn geneve(dice: &mut Dice, vsid: u32, inner: &[u8]) -> Vec<u8> {
    let mut header = Geneve::new(vsid);
    let mut options = Vec::new();
    if dice.one_in(3) {
        for _ in 0..=dice.below(3) {
            let good = !dice.one_in(6);
            options.extend_from_slice(if good { OPTIONS[dice.below(2)] } else { OPTIONS[dice.below(4)] });
        }
        if dice.one_in(20) {
            options = [1, 2, 3, 0].repeat(Geneve::OPTIONS_MAX as usize);
        }
    }
    let mut start = (options.len() as u16 / 4) << 8;
    if dice.one_in(12) {
        start |= dice.pick(&[0x4000, 0xc000, Geneve::CONTROL, Geneve::CRITICAL, 0x3f]);
    }
    if dice.one_in(30) {
        start ^= 0x100 << dice.below(6);
    }
    header.start = Be16::new(start);
    if dice.one_in(25) {
        header.protocol = Be16::new(dice.pick(&[0x0800, 0x86dd, 0]));
    }
    [header.as_bytes(), &options, inner].concat()
}

/// What follows the outer network header; all but the UDP checksum.
fn transport(dice: &mut Dice, port: u16, payload: &[u8]) -> (Option<Udp>, Vec<u8>) {
    if port == 0 || port == STT_PORT {
        return (None, payload.to_vec());
    }
    let port = if dice.one_in(25) { dice.pick(&[53, GENEVE_PORT, VXLAN_PORT]) } else { port };
    let mut udp = outer_udp(port, (8 + payload.len()) as u16, dice.roll() as u32);
    if dice.one_in(40) {
        udp.len = Be16::new(udp.len.get().wrapping_add(dice.pick(&[1, 2, 0xffff, 100, 0x8000])));
    }
    (Some(udp), [udp.as_bytes(), payload].concat())
}

/// Fills in STT's checksum, at times a wrong one or the one that a kernel may leave.
fn sum_up_stt(dice: &mut Dice, outer: &Outer, transport: &mut [u8]) {
    let addresses = match outer {
        Outer::V4(ip) => checksum::sum(&ip.src.halves()) + checksum::sum(&ip.dst.halves()),
        Outer::V6(ip) => checksum::sum(&ip.src) + checksum::sum(&ip.dst),
    };
    let len = (transport.len() as u16).to_be();
    let pseudo = checksum::fold(addresses + u32::from(6_u16.to_be()) + u32::from(len));
    let whole = checksum::fold(checksum::sum_bytes(transport));
    let mut sum = checksum::finish(u32::from(pseudo) + u32::from(whole));
    match dice.below(12) {
        0 => sum = pseudo,
        1 => sum ^= 1 << dice.below(16),
        _ => {}
    }
    transport[16..18].copy_from_slice(&sum.to_ne_bytes());
}

/// Fills in the UDP checksum of one frame in three: right, wrong, or one of the two that a kernel may leave.
fn sum_up(dice: &mut Dice, outer: &Outer, udp: Option<Udp>, transport: &mut [u8]) {
    let Some(udp) = udp else { return };
    if !dice.one_in(3) {
        return;
    }
    let pseudo = pseudo_sum(outer, &udp);
    let mut sum = checksum::finish(pseudo + u32::from(checksum::fold(checksum::sum_bytes(transport))));
    match dice.below(6) {
        0 => sum = checksum::fold(pseudo),
        1 => sum ^= 1 << dice.below(16),
        2 => {
            if let Some(unfinished) = leave_unfinished(pseudo, transport) {
                sum = unfinished;
            }
        }
        _ => {}
    }
    transport[6..8].copy_from_slice(&sum.to_ne_bytes());
}

/// Makes the checksum of an inner UDP or TCP over IPv4 the bare sum of its pseudo header, and says what the outer is then.
fn leave_unfinished(pseudo: u32, transport: &mut [u8]) -> Option<u16> {
    const IP: usize = 8 + 8 + 14;
    let ip = transport.get(IP..IP + 20)?;
    if transport[IP - 2..IP] != [8, 0] || ip[0] != 0x45 || ip[6] & 0x3f != 0 || ip[7] != 0 {
        return None;
    }
    let field = IP
        + 20
        + match ip[9] {
            6 => 16,
            17 => 6,
            _ => return None,
        };
    let len = u16::from_be_bytes([ip[2], ip[3]]).checked_sub(20)?;
    let inner =
        checksum::sum_bytes(&ip[12..20]) + u32::from(u16::from(ip[9]).to_be()) + u32::from(len.to_be());
    let inner = checksum::fold(inner);
    transport.get_mut(field..field + 2)?.copy_from_slice(&inner.to_ne_bytes());
    let headers = checksum::sum_bytes(&transport[..IP + 20]);
    Some(checksum::finish(pseudo + u32::from(checksum::fold(headers)) + u32::from(!inner)))
}

fn link(ty: Be16) -> Ethernet {
    Ethernet { dst: Mac::new([2, 0, 0, 0, 0, 1]), src: Mac::new([2, 0, 0, 0, 0, 2]), ty }
}

fn in_ipv4(dice: &mut Dice, from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8], ecn: u8) -> Vec<u8> {
    let (udp, mut transport) = transport(dice, port, payload);
    let total = 20 + transport.len();
    let (from, to) = (Be32::from_octets(from), Be32::from_octets(to));
    let stt = port == STT_PORT;
    let protocol = if stt { ProtocolNumber::TCP } else { outer_protocol(port != 0) };
    let mut ip = outer_ipv4(from, to, protocol, total as u16, ecn);
    if stt {
        sum_up_stt(dice, &Outer::V4(ip), &mut transport);
    }
    sum_up(dice, &Outer::V4(ip), udp, &mut transport);
    if dice.one_in(15) {
        ip.ttl = dice.pick(&[0, 1, 2]);
    }
    if dice.one_in(15) {
        ip.fragment = Be16::new(dice.pick(&[Ipv4::MORE_FRAGMENTS, 0x2010, 20]));
    }
    if dice.one_in(30) {
        ip.version_ihl = dice.pick(&[0x46, 0x4f, 0x44, 0x65]);
    }
    if dice.one_in(60) {
        ip.protocol = dice.pick(&[6, 17, 47, 4]);
    }
    [link(EtherType::IPV4).as_bytes(), ip.with_checksum().as_bytes(), &transport].concat()
}

fn in_ipv6(dice: &mut Dice, from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8], ecn: u8) -> Vec<u8> {
    let (udp, mut transport) = transport(dice, port, payload);
    let (from, to) = (halves6(&Site::pa6(from)), halves6(&Site::pa6(to)));
    let stt = port == STT_PORT;
    let protocol = if stt { ProtocolNumber::TCP } else { outer_protocol(port != 0) };
    let mut ip = outer_ipv6(from, to, protocol, 0, ecn, dice.roll() as u32);
    if stt {
        sum_up_stt(dice, &Outer::V6(ip), &mut transport);
    }
    sum_up(dice, &Outer::V6(ip), udp, &mut transport);
    let mut extensions = Vec::new();
    if dice.one_in(12) {
        // Hop by hop, then perhaps a fragment header: the whole packet, the first part, or a later one.
        if dice.one_in(2) {
            extensions.extend_from_slice(&[ip.next, dice.pick(&[0, 0, 1, 200]), 1, 4, 0, 0, 0, 0]);
            ip.next = 0;
        }
        if dice.one_in(2) {
            let next = extensions.first().copied().unwrap_or(ip.next);
            let offset = dice.pick(&[[0, 0], [0, 1], [0, 8], [1, 0]]);
            let fragment = [next, 0, offset[0], offset[1], 0, 0, 0, 7];
            match extensions.first_mut() {
                Some(first) => *first = 44,
                None => ip.next = 44,
            }
            extensions.extend_from_slice(&fragment);
        }
    }
    ip.payload_len = Be16::new((extensions.len() + transport.len()) as u16);
    if dice.one_in(15) {
        ip.hop_limit = dice.pick(&[0, 1, 2]);
    }
    if dice.one_in(40) {
        ip.payload_len = Be16::new(ip.payload_len.get().wrapping_add(dice.pick(&[1, 0xffff, 40])));
    }
    if dice.one_in(60) {
        ip = Ipv6 { start: Be16::new(0x5000), ..ip };
    }
    if dice.one_in(60) {
        ip.next = dice.pick(&[6, 17, 47, 59]);
    }
    [link(EtherType::IPV6).as_bytes(), ip.as_bytes(), &extensions, &transport].concat()
}
