//! Probes as frames: a small format of our own in UDP, and TCP segments for what offloads do to them.
//!
//! Inside UDP, in network order: magic `TnPb`, version 1, kind, method, 0, a mark of 64 bits, a size or stream number
//! of 32 bits, then the kind's own fields. All else is ignored: other hosts of the site may send what they like.

use super::{mac, overhead, rewrite_ca};
use std::net::IpAddr;
use tenet_tables::{METHOD_REWRITE, Mac};

const MAGIC: [u8; 4] = *b"TnPb";
const VERSION: u8 = 1;
/// UDP and TCP port of probes. Those by IP Rewrite come to a host's stack, too, where nobody has the port; what it
/// answers them (a reset, an error) nobody hears.
pub const PORT: u16 = 7446;
const ETHERNET: usize = 14;
const UDP: usize = 8;
const TCP: usize = 20;
const HEADER: usize = 20;
const REPORT: usize = 24;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const ACK_PUSH: u8 = 0x18;
const ACK: u8 = 0x10;

/// A probe, or an answer to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Provider address of the host that sends it.
    pub src: IpAddr,
    /// And of the one that it is for.
    pub dst: IpAddr,
    /// `METHOD_*` that it goes by.
    pub method: u8,
    /// What it says.
    pub content: Content,
}

/// What a probe says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Answer this; it is an outer packet of `size` bytes.
    Probe {
        /// Mark for the answer.
        id: u64,
        /// Size of the outer packet.
        size: u16,
    },
    /// It came.
    Answer {
        /// The probe's mark.
        id: u64,
        /// Its size.
        size: u16,
    },
    /// What did you see of my stream of this number?
    Ask {
        /// Mark for the answer.
        id: u64,
        /// The stream.
        stream: u16,
    },
    /// This.
    Told {
        /// The question's mark.
        id: u64,
        /// What was seen.
        report: Report,
    },
}

/// What a host saw of a stream of test frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Frames.
    pub frames: u32,
    /// Bytes of payload.
    pub bytes: u32,
    /// Payload of the largest frame.
    pub largest: u32,
    /// Frames with other content than was sent.
    pub garbled: u32,
    /// Frames whose checksum was wrong.
    pub checksum: u32,
    /// Frames whose checksum was left to the receiver's kernel.
    pub unfinished: u32,
}

/// The header before each frame of a tap (`struct virtio_net_hdr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// 1: the checksum is to be finished; 2: it is known to be right.
    pub flags: u8,
    /// Which segmentation.
    pub gso_type: u8,
    /// Length of the headers.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where to begin to sum.
    pub csum_start: u16,
    /// Where the checksum goes, from there.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Its length.
    pub const LEN: usize = 10;
    /// The checksum is to be finished.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was found right.
    pub const DATA_VALID: u8 = 2;
    /// TCP in IPv4 is to be cut.
    pub const TCPV4: u8 = 1;
    /// TCP in IPv6 is to be cut.
    pub const TCPV6: u8 = 4;

    /// Its bytes, in the host's order, as the kernel wants them.
    #[must_use]
    pub fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Reads one; the rest is the frame.
    #[must_use]
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, frame) = bytes.split_first_chunk::<{ Self::LEN }>()?;
        let word = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let header = Self {
            flags: head[0],
            gso_type: head[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
        Some((header, frame))
    }
}

/// What came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen<'a> {
    /// A probe or an answer.
    Message(Frame),
    /// A piece of a stream.
    Data {
        /// Who sent it.
        src: IpAddr,
        /// Number of the stream.
        stream: u16,
        /// Where in it the piece belongs.
        offset: u32,
        /// The piece.
        payload: &'a [u8],
        /// Whether the checksum is right, as far as it is done.
        good: bool,
        /// Whether the checksum is yet to be finished.
        unfinished: bool,
    },
}

/// A probe as an Ethernet frame. Where it has a size, it is padded so that its outer packet has that size.
#[must_use]
pub fn write(frame: &Frame) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEADER + REPORT);
    let (kind, id, number) = match frame.content {
        Content::Probe { id, size } => (1, id, u32::from(size)),
        Content::Answer { id, size } => (2, id, u32::from(size)),
        Content::Ask { id, stream } => (3, id, u32::from(stream)),
        Content::Told { id, .. } => (4, id, 0),
    };
    body.extend(MAGIC);
    body.extend([VERSION, kind, frame.method, 0]);
    body.extend(id.to_be_bytes());
    body.extend(number.to_be_bytes());
    if let Content::Told { report: r, .. } = frame.content {
        for word in [r.frames, r.bytes, r.largest, r.garbled, r.checksum, r.unfinished] {
            body.extend(word.to_be_bytes());
        }
    }
    if let Content::Probe { size, .. } = frame.content {
        let headers = usize::from(overhead(frame.method, frame.dst)) + ip_len(frame.dst) + UDP;
        body.resize(usize::from(size).saturating_sub(headers).max(body.len()), 0);
    }
    let length = UDP + body.len();
    let (src, dst) = ends(frame.src, frame.dst, frame.method);
    let mut out = headers((frame.src, frame.dst, frame.method), PROTOCOL_UDP, length);
    let l4 = out.len();
    out.extend(PORT.to_be_bytes());
    out.extend(PORT.to_be_bytes());
    out.extend(u16_of(length).to_be_bytes());
    out.extend([0, 0]);
    out.extend(&body);
    let sum = checksum(&out[l4..], pseudo(src, dst, PROTOCOL_UDP, length));
    put(&mut out, l4 + 6, if sum == 0 { 0xffff } else { sum });
    out
}

/// A piece of a stream as a TCP segment; `finished` says whether its checksum is done or left to the kernel.
#[must_use]
pub fn write_tcp(
    hosts: (IpAddr, IpAddr, u8),
    stream: u16,
    offset: u32,
    payload: &[u8],
    finished: bool,
) -> Vec<u8> {
    let length = TCP + payload.len();
    let (src, dst) = ends(hosts.0, hosts.1, hosts.2);
    let mut out = headers(hosts, PROTOCOL_TCP, length);
    let l4 = out.len();
    out.extend(stream.to_be_bytes());
    out.extend(PORT.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(1u32.to_be_bytes());
    out.extend([0x50, if finished { ACK } else { ACK_PUSH }, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(payload);
    let pseudo = pseudo(src, dst, PROTOCOL_TCP, length);
    let sum = if finished { checksum(&out[l4..], pseudo) } else { !checksum(&[], pseudo) };
    put(&mut out, l4 + 16, sum);
    out
}

/// What the tap's header says of a TCP segment whose checksum (and cutting into pieces of `mss`) is left to the kernel.
#[must_use]
pub fn offloaded(dst: IpAddr, mss: Option<u16>) -> VnetHeader {
    let l4 = u16_of(ETHERNET + ip_len(dst));
    let gso_type = if dst.is_ipv4() { VnetHeader::TCPV4 } else { VnetHeader::TCPV6 };
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: mss.map_or(0, |_| gso_type),
        hdr_len: mss.map_or(0, |_| l4 + u16_of(TCP)),
        gso_size: mss.unwrap_or(0),
        csum_start: l4,
        csum_offset: 16,
    }
}

/// Largest payload of a TCP segment that fits an outer packet of this size.
#[must_use]
pub fn segment(mtu: u16, method: u8, dst: IpAddr) -> u16 {
    mtu.saturating_sub(overhead(method, dst)).saturating_sub(u16_of(ip_len(dst) + TCP)).max(1)
}

/// Reads a frame of the tap. `None`: not one of ours, or one that was damaged.
#[must_use]
pub fn parse<'a>(vnet: &VnetHeader, frame: &'a [u8]) -> Option<Seen<'a>> {
    let ty = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(ETHERNET..)?;
    let (src, dst, protocol, body) = match ty {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let pseudo = pseudo(src, dst, protocol, body.len());
    let unfinished = vnet.flags & VnetHeader::NEEDS_CSUM != 0;
    match protocol {
        PROTOCOL_UDP => {
            let length = usize::from(half(body, 4)?);
            let good = unfinished || half(body, 6)? == 0 || checksum(body, pseudo) == 0;
            if half(body, 2)? != PORT || length != body.len() || !good {
                return None;
            }
            let (method, content) = message(body.get(UDP..)?)?;
            Some(Seen::Message(Frame { src, dst, method, content }))
        }
        PROTOCOL_TCP => {
            if half(body, 2)? != PORT || *body.get(12)? != 0x50 {
                return None;
            }
            let good = if unfinished {
                half(body, 16)? == !checksum(&[], pseudo)
            } else {
                checksum(body, pseudo) == 0
            };
            let offset = u32::from_be_bytes(body.get(4..8)?.try_into().ok()?);
            let (stream, payload) = (half(body, 0)?, body.get(TCP..)?);
            Some(Seen::Data { src, stream, offset, payload, good, unfinished })
        }
        _ => None,
    }
}

fn message(body: &[u8]) -> Option<(u8, Content)> {
    let (head, rest) = body.split_at_checked(HEADER)?;
    if head[..4] != MAGIC || head[4] != VERSION {
        return None;
    }
    let id = u64::from_be_bytes(head[8..16].try_into().ok()?);
    let number = u32::from_be_bytes(head[16..20].try_into().ok()?);
    let size = u16::try_from(number).ok()?;
    let content = match head[5] {
        1 => Content::Probe { id, size },
        2 => Content::Answer { id, size },
        3 => Content::Ask { id, stream: size },
        4 => {
            let word = |n: usize| Some(u32::from_be_bytes(rest.get(n * 4..n * 4 + 4)?.try_into().ok()?));
            let report = Report {
                frames: word(0)?,
                bytes: word(1)?,
                largest: word(2)?,
                garbled: word(3)?,
                checksum: word(4)?,
                unfinished: word(5)?,
            };
            Content::Told { id, report }
        }
        _ => return None,
    };
    Some((head[6], content))
}

type Packet<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    if *packet.first()? != 0x45 || half(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let total = usize::from(half(packet, 2)?);
    // A kernel that joins more than 64 KB says 0; what follows a shorter packet is padding.
    let end = if total == 0 { packet.len() } else { total };
    Some((address(12)?, address(16)?, *packet.get(9)?, packet.get(20..end)?))
}

fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let length = usize::from(half(packet, 4)?);
    let end = if length == 0 { packet.len() } else { 40 + length };
    Some((address(8)?, address(24)?, *packet.get(6)?, packet.get(40..end)?))
}

/// The addresses that a frame from host to host leaves the tap with.
fn ends(src: IpAddr, dst: IpAddr, method: u8) -> (IpAddr, IpAddr) {
    if method == METHOD_REWRITE { (rewrite_ca(src), rewrite_ca(dst)) } else { (src, dst) }
}

/// Ethernet and IP headers; `length` is that of what follows.
fn headers((src, dst, method): (IpAddr, IpAddr, u8), protocol: u8, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(ETHERNET + 40 + length);
    let (to, from): (Mac, Mac) = (mac(dst, method), mac(src, method));
    let (src, dst) = ends(src, dst, method);
    out.extend(to.octets());
    out.extend(from.octets());
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            out.extend([0x08, 0x00, 0x45, 0]);
            out.extend(u16_of(20 + length).to_be_bytes());
            // No identification, whole or not at all (RFC 6864 §4).
            out.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            let sum = checksum(&out[ETHERNET..], 0);
            put(&mut out, ETHERNET + 10, sum);
        }
        (src, dst) => {
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(u16_of(length).to_be_bytes());
            out.extend([protocol, 64]);
            for address in [src, dst] {
                match address {
                    IpAddr::V4(a) => out.extend(a.to_ipv6_mapped().octets()),
                    IpAddr::V6(a) => out.extend(a.octets()),
                }
            }
        }
    }
    out
}

const fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { 40 }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn put(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn u16_of(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// Sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |a: IpAddr| match a {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    address(src) + address(dst) + u64::from(protocol) + length as u64
}

fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks(2);
    pairs.map(|p| u64::from(u16::from_be_bytes([p[0], p.get(1).copied().unwrap_or(0)]))).sum()
}

fn checksum(bytes: &[u8], more: u64) -> u16 {
    let mut sum = sum(bytes) + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16_of(usize::try_from(sum).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(six: bool) -> (IpAddr, IpAddr) {
        if six {
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        } else {
            ([172, 16, 1, 2].into(), [172, 16, 2, 2].into())
        }
    }

    #[test]
    fn a_probe_has_the_size_that_it_says() {
        for six in [false, true] {
            let (src, dst) = pair(six);
            for (method, name) in super::super::METHODS {
                let frame = Frame { src, dst, method, content: Content::Probe { id: 7, size: 1400 } };
                let bytes = write(&frame);
                let outer = bytes.len() - ETHERNET + usize::from(overhead(method, dst));
                assert_eq!(outer, 1400, "{name}");
                let ends = ends(src, dst, method);
                let seen = Frame { src: ends.0, dst: ends.1, ..frame };
                assert_eq!(parse(&VnetHeader::default(), &bytes), Some(Seen::Message(seen)), "{name}");
                assert_eq!(Mac::new(bytes[..6].try_into().unwrap()), mac(dst, method), "{name}");
            }
        }
    }

    #[test]
    fn damage_is_noticed() {
        let (src, dst) = pair(false);
        let content = Content::Told { id: 9, report: Report { frames: 3, largest: 5, ..Report::default() } };
        let frame = Frame { src, dst, method: 1, content };
        let good = write(&frame);
        assert_eq!(parse(&VnetHeader::default(), &good), Some(Seen::Message(frame)));
        for at in 34..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_ne!(parse(&VnetHeader::default(), &bad), Some(Seen::Message(frame)), "byte {at}");
        }
    }

    #[test]
    fn segments_say_whether_their_checksum_is_done() {
        for six in [false, true] {
            let (src, dst) = pair(six);
            let payload = [1, 2, 3, 4, 5];
            for finished in [true, false] {
                let bytes = write_tcp((src, dst, 1), 4711, 100, &payload, finished);
                let vnet = if finished { VnetHeader::default() } else { offloaded(dst, Some(1400)) };
                let Some(Seen::Data { stream, offset, payload: p, good, unfinished, .. }) =
                    parse(&vnet, &bytes)
                else {
                    panic!("not a segment");
                };
                assert_eq!((stream, offset, p, good), (4711, 100, &payload[..], true));
                assert_eq!(unfinished, !finished);
                let mut bad = bytes.clone();
                *bad.last_mut().unwrap() ^= 1;
                let Some(Seen::Data { good, .. }) = parse(&vnet, &bad) else { panic!("not a segment") };
                // What is not finished says nothing of the content.
                assert_eq!(good, !finished);
            }
            assert_eq!(
                VnetHeader::split(&offloaded(dst, Some(9)).bytes()).unwrap().0,
                offloaded(dst, Some(9))
            );
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_probe(bytes in prop::collection::vec(any::<u8>(), 0..200), flags in any::<u8>()) {
            let vnet = VnetHeader { flags, ..VnetHeader::default() };
            let _ = parse(&vnet, &bytes);
        }

        #[test]
        fn a_probe_with_garbage_in_it_is_no_panic(at in 0usize..120, value in any::<u8>(), cut in 0usize..120) {
            let (src, dst) = pair(at % 2 == 0);
            let mut bytes = write(&Frame { src, dst, method: 1, content: Content::Ask { id: 1, stream: 2 } });
            if let Some(b) = bytes.get_mut(at) {
                *b = value;
            }
            bytes.truncate(cut.max(20));
            let _ = parse(&VnetHeader { flags: 1, ..VnetHeader::default() }, &bytes);
        }
    }
}
