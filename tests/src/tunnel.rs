//! Builds what a host sends to another, byte by byte from the RFCs and drafts: on purpose none of our own encoders.

use std::net::IpAddr;
use tenet_model::Method;
use tenet_wire::checksum;

use crate::frame;

/// IPv6's EtherType.
pub const IPV6: u16 = 0x86dd;

/// A packet of either family, to be altered before [`Packet::bytes`] makes it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source.
    pub src: IpAddr,
    /// Destination, of the same family.
    pub dst: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Hops left.
    pub hops: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Place in units of eight bytes and whether more follow, if it is a fragment.
    pub fragment: Option<(u16, bool)>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet of any protocol.
    #[must_use]
    pub fn new(src: IpAddr, dst: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "one family");
        Self { src, dst, protocol, hops: 64, tos: 0, fragment: None, payload }
    }

    /// A UDP datagram with its checksum.
    #[must_use]
    pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Self {
        let mut bytes = Vec::new();
        let length = u16::try_from(payload.len() + 8).expect("a datagram's length");
        for half in [src.1, dst.1, length, 0] {
            bytes.extend_from_slice(&half.to_be_bytes());
        }
        bytes.extend_from_slice(payload);
        let mut new = Self::new(src.0, dst.0, 17, bytes);
        new.sum(6);
        new
    }

    /// Fills in the checksum at a place of the payload, over the pseudo header as well.
    pub fn sum(&mut self, at: usize) {
        self.payload[at..at + 2].fill(0);
        let length = u32::try_from(self.payload.len()).expect("a packet's length").to_be_bytes();
        let pseudo =
            [octets(self.src), octets(self.dst), length.to_vec(), vec![0, 0, 0, self.protocol]].concat();
        let all = [pseudo, self.payload.clone()].concat();
        let sum = checksum::finish(checksum::sum_bytes(&all));
        let sum = if sum == 0 && self.protocol == 17 { 0xffff } else { sum };
        self.payload[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut packet =
                    frame::Packet::new(src, dst, self.protocol, self.payload.clone()).ttl(self.hops);
                packet.fragment = match self.fragment {
                    None => 0x4000,
                    Some((offset, more)) => offset | if more { 0x2000 } else { 0 },
                };
                let mut bytes = packet.bytes();
                if self.tos != 0 {
                    bytes[1] = self.tos;
                    bytes[10..12].fill(0);
                    let sum = checksum::finish(checksum::sum_bytes(&bytes[..20]));
                    bytes[10..12].copy_from_slice(&sum.to_ne_bytes());
                }
                bytes
            }
            (src, dst) => {
                let mut payload = Vec::new();
                let mut next = self.protocol;
                if let Some((offset, more)) = self.fragment {
                    payload.extend_from_slice(&[self.protocol, 0]);
                    payload.extend_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
                    payload.extend_from_slice(&[0, 0, 0, 7]);
                    next = 44;
                }
                payload.extend_from_slice(&self.payload);
                let length = u16::try_from(payload.len()).expect("a packet's length");
                let mut bytes = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(&[next, self.hops]);
                bytes.extend(octets(src));
                bytes.extend(octets(dst));
                bytes.extend(payload);
                bytes
            }
        }
    }

    /// EtherType of its family.
    #[must_use]
    pub const fn ty(&self) -> u16 {
        if self.src.is_ipv4() { frame::IPV4 } else { IPV6 }
    }

    /// The packet in a frame.
    #[must_use]
    pub fn frame(&self, dst: tenet_wire::Mac, src: tenet_wire::Mac) -> Vec<u8> {
        frame::ethernet(dst, src, self.ty(), &self.bytes())
    }
}

/// An address's bytes.
#[must_use]
pub fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An inner frame as a host sends it to another by a method's tunnel.
///
/// # Panics
/// For [`Method::Rewrite`], which has none.
#[must_use]
pub fn tunnel(method: Method, src: IpAddr, dst: IpAddr, vsid: u32, inner: &[u8]) -> Packet {
    let number = &vsid.to_be_bytes()[1..];
    match method {
        Method::Nvgre => {
            let header = [&[0x20, 0, 0x65, 0x58], number, &[1]].concat();
            Packet::new(src, dst, 47, [&header, inner].concat())
        }
        Method::Vxlan => udp(src, dst, 4789, &[&[8, 0, 0, 0], number, &[0], inner].concat()),
        Method::Geneve => udp(src, dst, 6081, &[&[0, 0, 0x65, 0x58], number, &[0], inner].concat()),
        Method::Stt => stt(src, dst, [0; 4], vsid, inner),
        Method::Rewrite => panic!("rewriting puts nothing around a frame"),
    }
}

/// A datagram with checksum zero, as tunnels send it.
#[must_use]
pub fn udp(src: IpAddr, dst: IpAddr, port: u16, payload: &[u8]) -> Packet {
    let mut packet = Packet::udp((src, 50_000), (dst, port), payload);
    packet.payload[6..8].fill(0);
    packet
}

/// STT in one segment, with the first four bytes of its header (version, flags, L4 offset, reserved) as given; flags
/// zero with an inner frame whose checksum is whole.
#[must_use]
pub fn stt(src: IpAddr, dst: IpAddr, first: [u8; 4], vsid: u32, inner: &[u8]) -> Packet {
    let mut header = first.to_vec();
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&u64::from(vsid).to_be_bytes());
    header.extend_from_slice(&[0; 2]);
    let total = u16::try_from(header.len() + inner.len()).expect("an STT frame's length");
    let mut segment =
        [50_000_u16.to_be_bytes(), 7471_u16.to_be_bytes(), total.to_be_bytes(), [0, 0]].concat();
    segment.extend_from_slice(&[0, 0, 0, 9, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(&header);
    segment.extend_from_slice(inner);
    let mut packet = Packet::new(src, dst, 6, segment);
    packet.sum(16);
    packet
}
