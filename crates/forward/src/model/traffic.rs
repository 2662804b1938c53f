//! Frames of all kinds for the [`site`](super::site): good, hostile and broken, reproducible from a seed.

use super::site::{MTU, Machine, OWN, PORTS, Site};
use super::traffic6;
use super::tunnels::tunnelled;
use crate::{Meta, SEND_MARK};
use alloc::vec::Vec;
use tenet_tables::GATEWAY_MAC;
use tenet_wire::{
    Arp, ArpFrame, Be16, Be32, EtherType, Ethernet, Icmp, Ipv4, Mac, Ports, ProtocolNumber, checksum,
};
use zerocopy::IntoBytes;

/// A generator of pseudo-random numbers (xorshift64*); the same seed gives the same frames for ever.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Any seed will do.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() >> 33) as usize % n.max(1)
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A frame at the ingress of an interface.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Whether it comes from the provider network, and not from a VM.
    pub from_wire: bool,
    /// The frame.
    pub bytes: Vec<u8>,
    /// What is known beside its bytes.
    pub meta: Meta,
}

/// The next frame.
pub fn sample(dice: &mut Dice, site: &Site) -> Sample {
    let from_wire = dice.one_in(2);
    let mut mark = 0;
    let (mut bytes, ifindex) = if from_wire {
        if dice.one_in(20) {
            mark = SEND_MARK;
        }
        let bytes = if dice.one_in(12) { foreign(dice, site) } else { tunnelled(dice, site) };
        (bytes, site.uplink)
    } else {
        let port = if dice.one_in(40) { site.uplink } else { site.interfaces[dice.below(PORTS)] };
        let me = site.machines.iter().find(|m| m.port.is_some_and(|p| site.interfaces[p] == port));
        let me = me.copied().unwrap_or(site.machines[0]);
        (inner(dice, site, &me, false), port)
    };
    spoil(dice, &mut bytes);
    let len = bytes.len() as u32;
    let ip = matches!(bytes.get(12..14), Some(&[8, 0] | &[0x86, 0xdd]));
    let gso_size =
        if !from_wire && ip && len > 200 && dice.one_in(10) { 1 + dice.below(1500) as u32 } else { 0 };
    Sample { from_wire, bytes, meta: Meta { ifindex, len, gso_size, mark, tagged: false } }
}

/// Breaks one frame in four a little.
pub(super) fn spoil(dice: &mut Dice, bytes: &mut Vec<u8>) {
    if dice.one_in(8) {
        for _ in 0..=dice.below(3) {
            let at = dice.below(bytes.len().min(100));
            bytes[at] = dice.pick(&[0, 1, 0x45, 0x7f, 0x80, 0xff, dice.clone().roll() as u8]);
        }
    }
    if dice.one_in(16) {
        let keep = dice.below(bytes.len().min(110));
        bytes.truncate(keep.max(14));
    }
    if dice.one_in(16) {
        let more = bytes.len() + dice.below(60);
        bytes.resize(more, 0x5a);
    }
}

/// A frame as `me` sends it, or as somebody else sends it to `me`.
pub(super) fn inner(dice: &mut Dice, site: &Site, me: &Machine, to_me: bool) -> Vec<u8> {
    if dice.one_in(2) {
        return traffic6::inner(dice, site, me, to_me);
    }
    let near: Vec<&Machine> = site.machines.iter().filter(|m| m.vsid == me.vsid).collect();
    let far: Vec<&Machine> = site.machines.iter().filter(|m| m.net == me.net).collect();
    let mut peer = *near[dice.below(near.len())];
    let mut routed = false;
    if dice.one_in(2) {
        peer = *far[dice.below(far.len())];
        routed = peer.vsid != me.vsid || dice.one_in(4);
    }
    let (from, to) = if to_me { (peer, *me) } else { (*me, peer) };
    let mut src_mac = if to_me && routed { GATEWAY_MAC } else { Mac::new(from.mac) };
    let mut dst_mac = if !to_me && routed { GATEWAY_MAC } else { Mac::new(to.mac) };
    let (mut src, mut dst) = (from.ca, to.ca);
    if dice.one_in(15) {
        src_mac = dice.pick(&[Mac::new([2, 9, 9, 9, 9, 9]), Mac::BROADCAST, GATEWAY_MAC]);
    }
    if dice.one_in(8) {
        let multicast = Mac::new([1, 0, 0x5e, 1, 1, 1]);
        dst_mac = dice.pick(&[Mac::BROADCAST, multicast, Mac::new([2, 8, 8, 8, 8, 8]), GATEWAY_MAC]);
    }
    if dice.one_in(15) {
        src = dice.pick(&[[0, 0, 0, 0], [10, 1, 1, 99], [127, 0, 0, 1], [224, 0, 0, 1], [10, 1, 1, 12], OWN]);
    }
    if dice.one_in(6) {
        dst = dice.pick(&[
            [10, 1, 1, 1],
            [10, 1, 2, 1],
            [10, 1, 1, 99],
            [10, 1, 1, 255],
            [255, 255, 255, 255],
            [239, 1, 1, 1],
            [127, 0, 0, 1],
            [8, 8, 8, 8],
            [172, 16, 5, 5],
            [172, 16, 9, 5],
            [172, 17, 1, 1],
            [0, 0, 0, 0],
            OWN,
        ]);
    }
    let ty = if dice.one_in(12) {
        Be16::new(dice.pick(&[0x8100, 0x88a8, 0x86dd, 0x8035, 0x0000, 0x6558, 0x0800, 0x0806]))
    } else if dice.one_in(5) {
        EtherType::ARP
    } else {
        EtherType::IPV4
    };
    let eth = Ethernet { dst: dst_mac, src: src_mac, ty };
    if ty == EtherType::ARP { arp(dice, eth, src, dst) } else { ipv4(dice, eth, src, dst) }
}

fn arp(dice: &mut Dice, mut eth: Ethernet, mut sender: [u8; 4], mut target: [u8; 4]) -> Vec<u8> {
    if dice.one_in(2) {
        eth.dst = Mac::BROADCAST;
    }
    if dice.one_in(8) {
        sender = [0; 4];
    }
    if dice.one_in(10) {
        target = sender;
    }
    let operation =
        if dice.one_in(4) { Arp::REPLY } else { dice.pick(&[Arp::REQUEST, Arp::REQUEST, Be16::new(7)]) };
    let arp = Arp {
        hardware: Be16::new(if dice.one_in(30) { 6 } else { 1 }),
        protocol: EtherType::IPV4,
        lengths: Be16::new(if dice.one_in(30) { 0x0610 } else { 0x0604 }),
        operation,
        sender_mac: if dice.one_in(10) { Mac::new([2, 7, 7, 7, 7, 7]) } else { eth.src },
        sender: Be32::from_octets(sender),
        target_mac: Mac::default(),
        target: Be32::from_octets(target),
    };
    let mut bytes = ArpFrame { eth, arp }.as_bytes().to_vec();
    if dice.one_in(3) {
        bytes.resize(60, 0);
    }
    bytes
}

fn ipv4(dice: &mut Dice, eth: Ethernet, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let protocol = dice.pick(&[1, 1, 6, 6, 17, 17, 47, 89]);
    let options = if dice.one_in(15) { dice.below(11) } else { 0 };
    let payload = transport(dice, protocol);
    let total = 20 + options * 4 + payload.len();
    let fragment = match dice.below(12) {
        0 => Ipv4::MORE_FRAGMENTS,
        1 => 100,
        2..=6 => Ipv4::DONT_FRAGMENT,
        _ => 0,
    };
    let ip = Ipv4 {
        version_ihl: Ipv4::PLAIN + options as u8,
        tos: dice.pick(&[0, 0, 1, 2, 3, 0xb8]),
        total_len: Be16::new(total as u16),
        id: Be16::new(dice.roll() as u16),
        fragment: Be16::new(fragment),
        ttl: dice.pick(&[64, 64, 64, 255, 2, 1, 0]),
        protocol,
        checksum: Be16::new(0),
        src: Be32::from_octets(src),
        dst: Be32::from_octets(dst),
    }
    .with_checksum();
    let mut bytes = eth.as_bytes().to_vec();
    bytes.extend_from_slice(ip.as_bytes());
    bytes.resize(bytes.len() + options * 4, 1);
    bytes.extend_from_slice(&payload);
    bytes
}

fn transport(dice: &mut Dice, protocol: u8) -> Vec<u8> {
    let body = match dice.below(10) {
        0 => 0,
        1 => dice.below(8),
        2 => usize::from(MTU) - 40 + dice.below(80),
        3 => 1480,
        _ => dice.below(300),
    };
    let mut bytes = Vec::new();
    if protocol == ProtocolNumber::ICMP {
        let ty = dice.pick(&[
            Icmp::ECHO,
            Icmp::ECHO,
            Icmp::ECHO_REPLY,
            Icmp::UNREACHABLE,
            Icmp::TIME_EXCEEDED,
            13,
        ]);
        let icmp = Icmp { ty, code: 0, checksum: Be16::new(0), id: Be16::new(7), rest: Be16::new(1) };
        bytes.extend_from_slice(icmp.as_bytes());
    } else {
        let ports =
            Ports { src: Be16::new(dice.roll() as u16), dst: Be16::new(dice.pick(&[53, 80, 443, 4789])) };
        bytes.extend_from_slice(ports.as_bytes());
        // Data offset 5 where TCP has it.
        bytes.extend_from_slice(&[0, 8, 0, 0, 0, 0, 0, 0, 0x50, 0x10]);
        if protocol == ProtocolNumber::TCP && dice.one_in(2) {
            open(dice, &mut bytes);
        }
    }
    bytes.extend((0..body).map(|i| i as u8));
    if protocol == ProtocolNumber::ICMP {
        let sum = checksum::finish(checksum::sum_bytes(&bytes));
        bytes[2..4].copy_from_slice(&sum.to_ne_bytes());
    }
    if dice.one_in(20) {
        let keep = dice.below(12);
        bytes.truncate(keep);
    }
    bytes
}

/// Makes the start of a TCP header one that opens a connection, with options.
pub(super) fn open(dice: &mut Dice, header: &mut Vec<u8>) {
    let mut options = Vec::new();
    for _ in 0..dice.below(4) {
        let size = dice.pick(&[[5, 0xb4], [0xff, 0xff], [5, 0x50], [2, 0x18], [0, 0]]);
        match dice.below(7) {
            0 => options.push(1),
            1..=3 => options.extend([2, 4, size[0], size[1]]),
            4 => options.extend([3, 3, 7]),
            5 => options.extend([dice.pick(&[2, 4, 8]), dice.pick(&[0, 1, 2, 3, 5, 200]), 9]),
            _ => options.push(0),
        }
    }
    options.resize(options.len().next_multiple_of(4), 0);
    let words = 5 + options.len() / 4;
    header[12] = (if dice.one_in(8) { dice.below(16) } else { words } as u8) << 4;
    header[13] = dice.pick(&[0x02, 0x02, 0x12, 0xc2]);
    header.extend([0xff, 0xff, dice.roll() as u8, dice.roll() as u8, 0, 0]);
    header.extend(options);
}

/// Something else that the uplink receives: the host's own business.
fn foreign(dice: &mut Dice, site: &Site) -> Vec<u8> {
    let me = site.machines[dice.below(site.machines.len())];
    let mut bytes = inner(dice, site, &me, true);
    if bytes.len() >= 34 && dice.one_in(2) {
        bytes[30..34].copy_from_slice(&OWN);
    }
    bytes
}
