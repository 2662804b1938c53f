//! A segment as it came from the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_wire::{EtherType, Ethernet, Ipv4, Ipv6, ProtocolNumber, SttSegment, checksum};
use zerocopy::{FromBytes, IntoBytes as _};

/// Which STT frame a segment is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId {
    /// The sending host.
    pub src: IpAddr,
    /// The receiving host.
    pub dst: IpAddr,
    /// The sender's number of the frame.
    pub id: u32,
}

/// What is said outside of a frame, beside [`FrameId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The link header.
    pub eth: Ethernet,
    /// DSCP and ECN.
    pub class: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// The flow's number.
    pub flow: u16,
}

/// A segment taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Its frame.
    pub frame: FrameId,
    /// Its outer headers.
    pub outer: Outer,
    /// Length of the frame.
    pub total: u16,
    /// Where its bytes belong.
    pub offset: u16,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Whether somebody has looked at a segment's checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The kernel or the NIC has, or the frame never was on a wire.
    Checked,
    /// Nobody has.
    Unchecked,
}

/// Why some bytes are no segment that could be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// Sound as far as we look, but something else.
    Other,
    /// The frame ends before its headers do, or a header contradicts itself.
    Malformed,
    /// A fragment of an IP packet.
    Fragment,
    /// The checksum is wrong.
    Checksum,
}

impl<'a> Segment<'a> {
    /// Takes an Ethernet frame apart.
    ///
    /// # Errors
    /// If it is no segment, or a broken one.
    pub fn read(bytes: &'a [u8], trust: Trust) -> Result<Self, Unreadable> {
        let (eth, rest) = Ethernet::read_from_prefix(bytes).map_err(|_| Unreadable::Malformed)?;
        let network = if eth.ty == EtherType::IPV4 {
            Network::v4(rest)?
        } else if eth.ty == EtherType::IPV6 {
            Network::v6(rest)?
        } else {
            return Err(Unreadable::Other);
        };
        let (tcp, data) = SttSegment::read_from_prefix(network.payload).map_err(|_| Unreadable::Malformed)?;
        if !tcp.is_stt() {
            return Err(Unreadable::Other);
        }
        if trust == Trust::Unchecked {
            let pseudo = pseudo_sum(network.src, network.dst, network.payload.len());
            let sum = pseudo.wrapping_add(fold(checksum::sum_bytes(network.payload)));
            if checksum::finish(fold(sum)) != 0 {
                return Err(Unreadable::Checksum);
            }
        }
        Ok(Self {
            frame: FrameId { src: network.src, dst: network.dst, id: tcp.id.get() },
            outer: Outer { eth, class: network.class, hop_limit: network.hop_limit, flow: tcp.src.get() },
            total: tcp.total.get(),
            offset: tcp.offset.get(),
            bytes: data,
        })
    }

    /// Whether a router on the way has marked congestion.
    #[must_use]
    pub const fn is_marked(&self) -> bool {
        self.outer.class & Ipv4::ECN == Ipv4::ECN_CE
    }
}

/// The outer network header, whichever it is.
struct Network<'a> {
    src: IpAddr,
    dst: IpAddr,
    class: u8,
    hop_limit: u8,
    payload: &'a [u8],
}

impl<'a> Network<'a> {
    fn v4(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (ip, _) = Ipv4::read_from_prefix(bytes).map_err(|_| Unreadable::Malformed)?;
        // A kernel that joined 64 KB may say 0.
        let len = match usize::from(ip.total_len.get()) {
            0 => bytes.len(),
            len => len,
        };
        let payload = bytes.get(ip.header_len() as usize..len).ok_or(Unreadable::Malformed)?;
        if ip.version_ihl >> 4 != 4 || ip.header_len() < Ipv4::LEN {
            return Err(Unreadable::Malformed);
        }
        if ip.protocol != ProtocolNumber::TCP {
            return Err(Unreadable::Other);
        }
        if ip.is_fragment() {
            return Err(Unreadable::Fragment);
        }
        let (src, dst) = (Ipv4Addr::from(ip.src.octets()), Ipv4Addr::from(ip.dst.octets()));
        Ok(Self { src: src.into(), dst: dst.into(), class: ip.tos, hop_limit: ip.ttl, payload })
    }

    fn v6(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (ip, rest) = Ipv6::read_from_prefix(bytes).map_err(|_| Unreadable::Malformed)?;
        if ip.version() != 6 {
            return Err(Unreadable::Malformed);
        }
        if ip.next == ProtocolNumber::FRAGMENT {
            return Err(Unreadable::Fragment);
        }
        if ip.next != ProtocolNumber::TCP {
            return Err(Unreadable::Other);
        }
        let payload = rest.get(..usize::from(ip.payload_len.get())).ok_or(Unreadable::Malformed)?;
        let address = |halves: &tenet_wire::Ipv6Halves| {
            let mut octets = [0; 16];
            octets.copy_from_slice(halves.as_bytes());
            IpAddr::from(Ipv6Addr::from(octets))
        };
        let (src, dst) = (address(&ip.src), address(&ip.dst));
        Ok(Self { src, dst, class: ip.class(), hop_limit: ip.hop_limit, payload })
    }
}

/// The sum of TCP's pseudo header (RFC 9293 §3.1), in sixteen bits.
pub(crate) fn pseudo_sum(src: IpAddr, dst: IpAddr, len: usize) -> u32 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            checksum::sum_bytes(&src.octets()) + checksum::sum_bytes(&dst.octets())
        }
        (src, dst) => {
            let octets = |a: IpAddr| match a {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            checksum::sum_bytes(&octets(src)) + checksum::sum_bytes(&octets(dst))
        }
    };
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    fold(addresses + checksum::sum_bytes(&len) + checksum::sum_bytes(&[0, ProtocolNumber::TCP]))
}

/// A sum in sixteen bits.
pub(crate) const fn fold(sum: u32) -> u32 {
    (!checksum::finish(sum)) as u32
}
