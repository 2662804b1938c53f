//! From frames to segments.

use crate::segment::{fold, pseudo_sum};
use crate::{FrameId, Outer};
use std::net::IpAddr;
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Ipv4, Ipv6, Ipv6Halves, ProtocolNumber, SttHeader, SttSegment, checksum,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The header that the kernel takes and gives with a frame (virtio 1.2 §5.1.6), in this machine's byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VirtioHeader {
    /// Set of `VirtioHeader::*` flags.
    pub flags: u8,
    /// One of the kinds of segmentation.
    pub gso_type: u8,
    /// Length of the headers that every segment repeats.
    pub header_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where the unfinished checksum's range begins.
    pub checksum_start: u16,
    /// Where in that range the checksum stands.
    pub checksum_offset: u16,
}

impl VirtioHeader {
    /// Length in bytes.
    pub const LEN: usize = 10;
    /// The checksum is still to be finished.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// The checksum was found right.
    pub const DATA_VALID: u8 = 2;
    /// TCP segments in IPv4.
    pub const TCPV4: u8 = 1;
    /// TCP segments in IPv6.
    pub const TCPV6: u8 = 4;
    /// The bit that says that congestion was signalled.
    const ECN: u8 = 0x80;

    /// Whether the kernel vouches for the outermost checksum.
    #[must_use]
    pub const fn is_checked(&self) -> bool {
        self.flags & (Self::NEEDS_CHECKSUM | Self::DATA_VALID) != 0
    }
}

/// TCP segmentation still to be done on an inner frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tso {
    /// Payload bytes of a segment.
    pub mss: u16,
}

/// What is still to be done on an inner frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// Where the transport header whose checksum is unfinished starts.
    pub checksum_start: Option<u8>,
    /// Whether it stands for several.
    pub tso: Option<Tso>,
}

/// Why a frame cannot cross by STT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsendable {
    /// Longer than the sixteen bits of its length can say, or the outer header's.
    TooLong,
    /// Shorter than a link header.
    Truncated,
    /// Another protocol is segmented, or segmentation without an unfinished checksum.
    Offload,
}

/// Where frames go, and as what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Source, destination, and the frame's number.
    pub frame: FrameId,
    /// The outer headers' other fields.
    pub outer: Outer,
}

impl Way {
    /// Puts all headers before an inner frame: virtio header and one large segment, which the kernel will cut.
    ///
    /// The frame's congestion mark is copied outside (RFC 6040 §4.1).
    ///
    /// # Errors
    /// If STT cannot carry it.
    pub fn encapsulate(
        &self,
        inner: &[u8],
        offload: Offload,
        vsid: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Unsendable> {
        let (header, ecn) = header(inner, offload, vsid)?;
        let outer = Outer { class: self.outer.class & !Ipv4::ECN | ecn, ..self.outer };
        Self { outer, ..*self }.put(&[header.as_bytes(), inner], header.mss.get(), out)
    }

    /// Puts virtio, link, network and TCP-like headers before a whole STT frame.
    ///
    /// # Errors
    /// [`Unsendable::TooLong`]
    pub fn whole(&self, stt: &[u8], mss: u16, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.put(&[stt], mss, out)
    }

    fn put(&self, parts: &[&[u8]], mss: u16, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let total = u16::try_from(len).map_err(|_| Unsendable::TooLong)?;
        let v6 = self.frame.src.is_ipv6();
        let network = if v6 { Ipv6::LEN } else { Ipv4::LEN } as u16;
        let at = Ethernet::LEN as u16 + network;
        let cut = mss != 0 && total > mss;
        let virtio = VirtioHeader {
            flags: VirtioHeader::NEEDS_CHECKSUM,
            gso_type: match (cut, v6) {
                (false, _) => 0,
                (true, false) => VirtioHeader::TCPV4,
                (true, true) => VirtioHeader::TCPV6,
            },
            header_len: at + SttSegment::LEN as u16,
            gso_size: if cut { mss } else { 0 },
            checksum_start: at,
            checksum_offset: SttSegment::CHECKSUM_AT as u16,
        };
        let mut tcp = SttSegment::whole(self.outer.flow, total, self.frame.id);
        let tcp_len = len + SttSegment::LEN as usize;
        let sum = fold(pseudo_sum(self.frame.src, self.frame.dst, tcp_len));
        tcp.checksum = Be16::from_half(sum as u16);
        out.clear();
        out.extend_from_slice(virtio.as_bytes());
        self.network(tcp_len, out)?;
        out.extend_from_slice(tcp.as_bytes());
        parts.iter().for_each(|p| out.extend_from_slice(p));
        Ok(())
    }

    /// Link and network header.
    fn network(&self, tcp_len: usize, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        match (self.frame.src, self.frame.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = tcp_len + Ipv4::LEN as usize;
                let ip = Ipv4 {
                    version_ihl: Ipv4::PLAIN,
                    tos: self.outer.class,
                    total_len: Be16::new(u16::try_from(len).map_err(|_| Unsendable::TooLong)?),
                    id: Be16::new(0),
                    fragment: Be16::new(Ipv4::DONT_FRAGMENT),
                    ttl: self.outer.hop_limit,
                    protocol: ProtocolNumber::TCP,
                    checksum: Be16::new(0),
                    src: Be32::from_octets(src.octets()),
                    dst: Be32::from_octets(dst.octets()),
                };
                out.extend_from_slice(Ethernet { ty: EtherType::IPV4, ..self.outer.eth }.as_bytes());
                out.extend_from_slice(ip.with_checksum().as_bytes());
            }
            (src, dst) => {
                let halves = |a: IpAddr| -> Ipv6Halves {
                    let octets = match a {
                        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                        IpAddr::V6(a) => a.octets(),
                    };
                    zerocopy::transmute!(octets)
                };
                let mut ip = Ipv6 {
                    start: Be16::new(0x6000),
                    payload_len: Be16::new(u16::try_from(tcp_len).map_err(|_| Unsendable::TooLong)?),
                    next: ProtocolNumber::TCP,
                    hop_limit: self.outer.hop_limit,
                    src: halves(src),
                    dst: halves(dst),
                    ..Ipv6::default()
                };
                ip.set_class(self.outer.class);
                out.extend_from_slice(Ethernet { ty: EtherType::IPV6, ..self.outer.eth }.as_bytes());
                out.extend_from_slice(ip.as_bytes());
            }
        }
        Ok(())
    }
}

/// The STT header of an inner frame, and the frame's congestion mark.
fn header(inner: &[u8], offload: Offload, vsid: u32) -> Result<(SttHeader, u8), Unsendable> {
    let (eth, rest) = Ethernet::read_from_prefix(inner).map_err(|_| Unsendable::Truncated)?;
    let mut header = SttHeader { context_low: Be32::new(vsid), ..SttHeader::default() };
    let (mut ecn, mut protocol, mut transport) = (0, 0, 0);
    if eth.ty == EtherType::IPV4
        && let Ok((ip, _)) = Ipv4::read_from_prefix(rest)
    {
        header.flags |= SttHeader::IPV4;
        (ecn, protocol, transport) = (ip.tos & Ipv4::ECN, ip.protocol, Ethernet::LEN + ip.header_len());
    } else if eth.ty == EtherType::IPV6
        && let Ok((ip, _)) = Ipv6::read_from_prefix(rest)
    {
        (ecn, protocol, transport) = (ip.class() & Ipv4::ECN, ip.next, Ethernet::LEN + Ipv6::LEN);
    }
    if protocol == ProtocolNumber::TCP {
        header.flags |= SttHeader::TCP;
    }
    if let Some(start) = offload.checksum_start {
        if !matches!(protocol, ProtocolNumber::TCP | ProtocolNumber::UDP) || u32::from(start) != transport {
            return Err(Unsendable::Offload);
        }
        header.flags |= SttHeader::PARTIAL;
        header.l4_offset = start;
    }
    if let Some(tso) = offload.tso {
        if offload.checksum_start.is_none() || protocol != ProtocolNumber::TCP || tso.mss == 0 {
            return Err(Unsendable::Offload);
        }
        header.mss = Be16::new(tso.mss);
    }
    Ok((header, ecn))
}

/// Cuts what [`Way::encapsulate`] or [`Way::whole`] made into segments of at most `mss` bytes with complete checksums, as
/// a NIC does; each is an Ethernet frame. Empty for anything else.
#[must_use]
pub fn cut(frame: &[u8], mss: u16) -> Vec<Vec<u8>> {
    segments(frame, mss).unwrap_or_default()
}

fn segments(frame: &[u8], mss: u16) -> Option<Vec<Vec<u8>>> {
    let (virtio, frame) = VirtioHeader::read_from_prefix(frame).ok()?;
    let at = usize::from(virtio.checksum_start);
    let headers = frame.get(..at)?;
    let (tcp, data) = SttSegment::read_from_prefix(frame.get(at..)?).ok()?;
    let mut all = Vec::new();
    let mut offset = 0u16;
    for part in data.chunks(usize::from(mss.max(1))) {
        let mut segment = headers.to_vec();
        let len = part.len() + SttSegment::LEN as usize;
        let (src, dst) = addresses(&mut segment, len)?;
        let mut tcp = SttSegment { offset: Be16::new(offset), checksum: Be16::new(0), ..tcp };
        offset = offset.checked_add(u16::try_from(part.len()).ok()?)?;
        if usize::from(offset) != data.len() {
            // PSH stands on the last one only.
            tcp.flags = Be16::new(tcp.flags.get() & !8);
        }
        let sum = pseudo_sum(src, dst, len)
            + fold(checksum::sum_bytes(tcp.as_bytes()))
            + fold(checksum::sum_bytes(part));
        tcp.checksum = Be16::from_half(checksum::finish(sum));
        segment.extend_from_slice(tcp.as_bytes());
        segment.extend_from_slice(part);
        all.push(segment);
    }
    Some(all)
}

/// Sets the length in a segment's network header; the header's addresses.
fn addresses(headers: &mut [u8], tcp_len: usize) -> Option<(IpAddr, IpAddr)> {
    let at = Ethernet::LEN as usize;
    let ip = headers.get_mut(at..)?;
    if ip.len() == Ipv4::LEN as usize {
        let header = Ipv4::mut_from_bytes(ip).ok()?;
        header.total_len = Be16::new(u16::try_from(tcp_len + Ipv4::LEN as usize).ok()?);
        *header = header.with_checksum();
        Some((header.src.octets().into(), header.dst.octets().into()))
    } else {
        let header = Ipv6::mut_from_bytes(ip).ok()?;
        header.payload_len = Be16::new(u16::try_from(tcp_len).ok()?);
        let octets = |h: Ipv6Halves| -> [u8; 16] { zerocopy::transmute!(h) };
        Some((octets(header.src).into(), octets(header.dst).into()))
    }
}

impl VirtioHeader {
    /// The kind of segmentation without the congestion bit.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.gso_type & !Self::ECN
    }
}
