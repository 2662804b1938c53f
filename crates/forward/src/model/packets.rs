//! Packets of every shape, the same for any pair of addresses, with all checksums computed from scratch.

use super::traffic::Dice;
use alloc::vec::Vec;
use tenet_tables::Addr;
use tenet_wire::{ProtocolNumber, checksum};

/// Everything about a packet but its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Whether it is IPv6.
    pub v6: bool,
    /// The transport protocol.
    pub protocol: u8,
    /// DSCP and ECN.
    pub class: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Words of IPv4 options, or number of IPv6 extension headers (hop-by-hop options first).
    pub extras: u8,
    /// The transport's bytes; its checksum is filled in.
    pub transport: Vec<u8>,
    /// Whether UDP goes without a checksum.
    pub unsummed: bool,
    /// The part of the packet that this is, if it is a fragment: offset and length in the transport's bytes.
    pub part: Option<(usize, usize)>,
}

impl Shape {
    /// A random one.
    pub fn random(dice: &mut Dice) -> Self {
        let v6 = dice.one_in(2);
        let icmp = if v6 { ProtocolNumber::ICMPV6 } else { ProtocolNumber::ICMP };
        let protocol = dice.pick(&[6, 6, 6, 17, 17, 17, icmp, icmp, 132, 50, 136]);
        let body = match dice.below(8) {
            0 => 0,
            1 => dice.below(8),
            2 => 1000 + dice.below(280),
            _ => dice.below(200),
        };
        let mut transport: Vec<u8> = match protocol {
            6 => alloc::vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0],
            17 => alloc::vec![0x12, 0x34, 0, 53, 0, 0, 0, 0],
            1 => alloc::vec![8, 0, 0, 0, 0, 7, 0, 1],
            58 => alloc::vec![128, 0, 0, 0, 0, 7, 0, 1],
            _ => Vec::new(),
        };
        transport.extend((0..body).map(|_| dice.roll() as u8));
        let mut shape = Self {
            v6,
            protocol,
            class: dice.pick(&[0, 0, 1, 2, 3, 0xb8]),
            hop_limit: dice.pick(&[64, 64, 64, 255, 2, 1]),
            extras: if dice.one_in(8) { 1 + dice.below(if v6 { 3 } else { 9 }) as u8 } else { 0 },
            transport,
            unsummed: dice.one_in(3),
            part: None,
        };
        if shape.transport.len() >= 16 && dice.one_in(6) {
            let cut = 8 * (1 + dice.below(shape.transport.len() / 8 - 1));
            let len = shape.transport.len();
            shape.part = Some(if dice.one_in(2) { (0, cut) } else { (cut, len - cut) });
        }
        shape
    }

    /// Where in the transport its checksum is, if it has one over the addresses.
    #[must_use]
    pub const fn checksum_at(&self) -> Option<usize> {
        match self.protocol {
            ProtocolNumber::TCP => Some(16),
            ProtocolNumber::UDP => Some(6),
            ProtocolNumber::ICMPV6 if self.v6 => Some(2),
            _ => None,
        }
    }

    /// The packet between two addresses of its family.
    #[must_use]
    pub fn build(&self, src: Addr, dst: Addr) -> Vec<u8> {
        let transport = self.summed(src, dst);
        let (offset, len) = self.part.unwrap_or((0, transport.len()));
        let more = offset + len < transport.len();
        let body = &transport[offset..offset + len];
        if self.v6 {
            self.build6(src, dst, body, offset, more)
        } else {
            self.build4(src, dst, body, offset, more)
        }
    }

    /// The whole transport with its checksum.
    fn summed(&self, src: Addr, dst: Addr) -> Vec<u8> {
        let mut transport = self.transport.clone();
        let len = transport.len() as u16;
        if self.protocol == ProtocolNumber::UDP && len >= 8 {
            transport[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let at = match (self.checksum_at(), self.protocol) {
            (None, ProtocolNumber::ICMP) => 2,
            (Some(at), _) => at,
            (None, _) => return transport,
        };
        if transport.len() < at + 2 {
            return transport;
        }
        transport[at..at + 2].fill(0);
        if self.protocol == ProtocolNumber::UDP && self.unsummed {
            return transport;
        }
        let pseudo = if self.checksum_at().is_some() {
            [&bytes(src)[..], &bytes(dst), &len.to_be_bytes(), &[0, self.protocol]].concat()
        } else {
            Vec::new()
        };
        let sum = checksum::finish(checksum::sum_bytes(&[&pseudo[..], &transport].concat()));
        let sum = if sum == 0 && self.protocol == ProtocolNumber::UDP { 0xffff } else { sum };
        transport[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        transport
    }

    fn build4(&self, src: Addr, dst: Addr, body: &[u8], offset: usize, more: bool) -> Vec<u8> {
        let options = usize::from(self.extras) * 4;
        let total = (20 + options + body.len()) as u16;
        let fragment = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        let mut ip = alloc::vec![0x45 + self.extras, self.class];
        ip.extend(total.to_be_bytes());
        ip.extend([0x77, 0x11]);
        ip.extend(fragment.to_be_bytes());
        ip.extend([self.hop_limit, self.protocol, 0, 0]);
        ip.extend(bytes(src));
        ip.extend(bytes(dst));
        ip.resize(20 + options, 1);
        let sum = checksum::finish(checksum::sum_bytes(&ip));
        ip[10..12].copy_from_slice(&sum.to_ne_bytes());
        ip.extend(body);
        ip
    }

    fn build6(&self, src: Addr, dst: Addr, body: &[u8], offset: usize, more: bool) -> Vec<u8> {
        // Hop-by-hop options first, destination options after, the fragment header last.
        let mut chain: Vec<u8> = (0..self.extras).map(|i| if i == 0 { 0 } else { 60 }).collect();
        if self.part.is_some() {
            chain.push(ProtocolNumber::FRAGMENT);
        }
        let payload = (8 * chain.len() + body.len()) as u16;
        let mut ip = alloc::vec![0x60 | self.class >> 4, self.class << 4 | 3, 0xab, 0xcd];
        ip.extend(payload.to_be_bytes());
        ip.extend([chain.first().copied().unwrap_or(self.protocol), self.hop_limit]);
        ip.extend(bytes(src));
        ip.extend(bytes(dst));
        for (i, header) in chain.iter().enumerate() {
            ip.push(chain.get(i + 1).copied().unwrap_or(self.protocol));
            if *header == ProtocolNumber::FRAGMENT {
                ip.push(0);
                ip.extend(((offset as u16) | u16::from(more)).to_be_bytes());
                ip.extend([0, 0, 0x77, 0x11]);
            } else {
                // Padding of six bytes.
                ip.extend([0, 1, 4, 0, 0, 0, 0]);
            }
        }
        ip.extend(body);
        ip
    }

    /// Whether the receiver finds the transport's checksum in the packet.
    #[must_use]
    pub fn reaches_checksum(&self) -> bool {
        let Some(at) = self.checksum_at() else { return false };
        let (offset, len) = self.part.unwrap_or((0, self.transport.len()));
        offset == 0 && len >= at + 2
    }

    /// An ICMP error of a router about this packet between two addresses, with at most `quote` bytes of it.
    #[must_use]
    pub fn error(
        &self,
        (ty, code): (u8, u8),
        mtu: u16,
        ends: [Addr; 2],
        quoted: [Addr; 2],
        quote: usize,
    ) -> Vec<u8> {
        let mut body = alloc::vec![ty, code, 0, 0, 0, 0];
        body.extend(mtu.to_be_bytes());
        let packet = self.build(quoted[0], quoted[1]);
        body.extend(&packet[..packet.len().min(quote)]);
        Self {
            v6: self.v6,
            protocol: if self.v6 { ProtocolNumber::ICMPV6 } else { ProtocolNumber::ICMP },
            class: 0xc0,
            hop_limit: 61,
            extras: 0,
            transport: body,
            unsummed: false,
            part: None,
        }
        .build(ends[0], ends[1])
    }
}

/// An address' bytes as its own family writes them.
#[must_use]
pub fn bytes(addr: Addr) -> Vec<u8> {
    match core::net::IpAddr::from(addr) {
        core::net::IpAddr::V4(a) => a.octets().to_vec(),
        core::net::IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A frame around a packet.
#[must_use]
pub fn frame(dst: tenet_wire::Mac, src: tenet_wire::Mac, packet: &[u8]) -> Vec<u8> {
    let ty: [u8; 2] = if packet.first().is_some_and(|b| b >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    [&dst.octets()[..], &src.octets(), &ty, packet].concat()
}
