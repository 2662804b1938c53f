//! Builds frames, good and bad.

use std::net::Ipv4Addr;
use tenet_wire::{Arp, Be16, Be32, EtherType, Ethernet, Gre, Icmp, Ipv4, Mac, ProtocolNumber, checksum};
use zerocopy::IntoBytes as _;

/// IPv4's EtherType.
pub const IPV4: u16 = 0x0800;
/// ARP's EtherType.
pub const ARP: u16 = 0x0806;

/// An Ethernet frame.
#[must_use]
pub fn ethernet(dst: Mac, src: Mac, ty: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [dst.octets(), src.octets()].concat();
    frame.extend_from_slice(&ty.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An IPv4 packet without options, to be altered before [`Packet::bytes`] fills in length and checksum.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet of any protocol.
    #[must_use]
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        Self { src, dst, protocol, ttl: 64, fragment: 0, payload }
    }

    /// A ping.
    #[must_use]
    pub fn echo(src: Ipv4Addr, dst: Ipv4Addr, id: u16, payload: &[u8]) -> Self {
        let icmp =
            Icmp { ty: Icmp::ECHO, code: 0, checksum: Be16::new(0), id: Be16::new(id), rest: Be16::new(1) };
        let mut bytes = [icmp.as_bytes(), payload].concat();
        let sum = checksum::finish(checksum::sum_bytes(&bytes));
        bytes[2..4].copy_from_slice(&sum.to_ne_bytes());
        Self::new(src, dst, ProtocolNumber::ICMP, bytes)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + 8).expect("a datagram's length");
        let mut bytes = Vec::new();
        for half in [src.1, dst.1, length, 0] {
            bytes.extend_from_slice(&half.to_be_bytes());
        }
        bytes.extend_from_slice(payload);
        let pseudo = [
            &src.0.octets()[..],
            &dst.0.octets()[..],
            &[0, ProtocolNumber::UDP],
            &length.to_be_bytes()[..],
            &bytes,
        ]
        .concat();
        let sum = checksum::finish(checksum::sum_bytes(&pseudo));
        bytes[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_ne_bytes());
        Self::new(src.0, dst.0, ProtocolNumber::UDP, bytes)
    }

    /// With this many hops left.
    #[must_use]
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Not to be fragmented.
    #[must_use]
    pub const fn dont_fragment(mut self) -> Self {
        self.fragment |= Ipv4::DONT_FRAGMENT;
        self
    }

    /// With these flags and this offset.
    #[must_use]
    pub const fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let total = u16::try_from(self.payload.len() + 20).expect("a packet's length");
        let header = Ipv4 {
            version_ihl: Ipv4::PLAIN,
            tos: 0,
            total_len: Be16::new(total),
            id: Be16::new(7),
            fragment: Be16::new(self.fragment),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: Be16::new(0),
            src: be(self.src),
            dst: be(self.dst),
        }
        .with_checksum();
        [header.as_bytes(), &self.payload].concat()
    }

    /// The packet in a frame.
    #[must_use]
    pub fn frame(&self, dst: Mac, src: Mac) -> Vec<u8> {
        ethernet(dst, src, IPV4, &self.bytes())
    }
}

/// An ARP frame.
#[must_use]
pub fn arp(dst: Mac, src: Mac, request: bool, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let arp = Arp {
        hardware: Be16::new(1),
        protocol: EtherType::IPV4,
        lengths: Be16::new(0x0604),
        operation: if request { Arp::REQUEST } else { Arp::REPLY },
        sender_mac: sender.0,
        sender: be(sender.1),
        target_mac: target.0,
        target: be(target.1),
    };
    ethernet(dst, src, ARP, arp.as_bytes())
}

/// GRE's header and an inner frame, as the payload of an outer packet of protocol 47.
#[must_use]
pub fn gre(flags: u16, vsid: u32, flow: u8, inner: &[u8]) -> Vec<u8> {
    let mut gre = Gre::nvgre(vsid, flow);
    gre.flags = Be16::new(flags);
    [gre.as_bytes(), inner].concat()
}

/// An NVGRE packet.
#[must_use]
pub fn nvgre(src: Ipv4Addr, dst: Ipv4Addr, vsid: u32, inner: &[u8]) -> Packet {
    Packet::new(src, dst, ProtocolNumber::GRE, gre(Gre::KEY_ONLY.get(), vsid, 1, inner)).dont_fragment()
}

/// An address in wire order.
#[must_use]
pub const fn be(a: Ipv4Addr) -> Be32 {
    Be32::from_octets(a.octets())
}

/// An address from wire order.
#[must_use]
pub const fn ip(a: Be32) -> Ipv4Addr {
    let o = a.octets();
    Ipv4Addr::new(o[0], o[1], o[2], o[3])
}

const _: () = assert!(Ethernet::LEN == 14);
