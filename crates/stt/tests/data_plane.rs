//! The data plane's own STT against this crate's: what one sends the other takes, whole and in parts.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{payload, tcp};
use proptest::prelude::*;
use tenet_forward::model::MemoryFrame;
use tenet_forward::packet::{L3, Packet};
use tenet_forward::stt::{
    Arrival, Job, Kind, PartFate, Sent, Stream, SttWork, checksum_is_right, decapsulate, deliver_first,
    deliver_later, encapsulate, later, outer_addresses,
};
use tenet_forward::{Frame as _, PortWork, Target};
use tenet_stt::{Limits, Reassembly, Segment, Trust, VirtioHeader, cut};
use tenet_tables::{Addr, METHOD_STT};
use tenet_wire::{
    Be16, EtherType, Ethernet, Ipv4, Ipv6, ProtocolNumber, SttHeader, SttSegment, Tcp, checksum,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const VSID: u32 = 5001;

fn hosts(v6: bool) -> (Addr, Addr) {
    if v6 {
        let host = |n| Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
        (host(1), host(2))
    } else {
        (Addr::v4([192, 0, 2, 1]), Addr::v4([192, 0, 2, 2]))
    }
}

/// What the port's decision leaves for this frame.
fn work(frame: &MemoryFrame) -> PortWork {
    let mut work = PortWork::default();
    frame.load(0, &mut work.head.eth).unwrap();
    if work.is_ip() {
        let len = frame.bytes.len() as u32;
        let ty = work.head.eth.ty;
        Packet::load(frame, Ethernet::LEN, len, ty, &mut work.head.l3, &mut work.packet).unwrap();
    }
    work
}

fn send(inner: &[u8], v6: bool, gso_size: u32) -> (Sent, Vec<u8>) {
    let mut frame = MemoryFrame::new(inner);
    let work = work(&frame);
    let (own, pa) = hosts(v6);
    let to = Target { pa, method: METHOD_STT.into(), vsid: VSID, flow: 0x1234_5678 };
    let job = Job { len: inner.len() as u32, gso_size, own: &own, to: &to, id: 77 };
    let sent = encapsulate(&mut frame, &mut SttWork::default(), &work, &job).unwrap();
    (sent, frame.bytes)
}

/// Fills in the TCP or UDP checksum of a frame.
fn finish(frame: &mut [u8]) {
    let v6 = frame[12] == 0x86;
    let (at, protocol, addresses) = if v6 {
        (54, frame[20], checksum::sum_bytes(&frame[22..54]))
    } else {
        (34, frame[23], checksum::sum_bytes(&frame[26..34]))
    };
    let check = at + if protocol == ProtocolNumber::TCP { 16 } else { 6 };
    frame[check..check + 2].fill(0);
    let len = (frame.len() - at) as u16;
    let pseudo = addresses + checksum::sum_bytes(&[0, protocol]) + checksum::sum_bytes(&len.to_be_bytes());
    let sum =
        u32::from(checksum::fold(pseudo)) + u32::from(checksum::fold(checksum::sum_bytes(&frame[at..])));
    frame[check..check + 2].copy_from_slice(&checksum::finish(sum).to_ne_bytes());
}

/// Whether the checksum is as it must be.
fn is_finished(frame: &[u8]) -> bool {
    let mut copy = frame.to_vec();
    finish(&mut copy);
    copy == frame
}

fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let (mut frame, _) = tcp(v6, payload);
    let (at, protocol) = if v6 { (54, 20) } else { (34, 23) };
    frame[protocol] = ProtocolNumber::UDP;
    frame.drain(at..at + 12);
    let len = (frame.len() - at) as u16;
    frame[at + 4..at + 6].copy_from_slice(&len.to_be_bytes());
    if v6 {
        frame[18..20].copy_from_slice(&len.to_be_bytes());
    } else {
        let ip = Ipv4::mut_from_bytes(&mut frame[14..34]).unwrap();
        ip.total_len = Be16::new(len + 20);
        *ip = ip.with_checksum();
    }
    finish(&mut frame);
    frame
}

fn look(frame: &MemoryFrame, v6: bool) -> (Arrival, u32) {
    let network = if v6 { 40 } else { 20 };
    let at = Ethernet::LEN + network;
    let mut arrival = Arrival::default();
    arrival.look(frame, at, frame.bytes.len() as u32 - at);
    (arrival, at)
}

fn is_right(frame: &MemoryFrame, v6: bool) -> bool {
    let (arrival, at) = look(frame, v6);
    let (mut l3, mut packet) = (L3::default(), Packet::default());
    let ty = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    Packet::load(frame, Ethernet::LEN, frame.bytes.len() as u32, ty, &mut l3, &mut packet).unwrap();
    let outer = outer_addresses(&l3, v6);
    checksum_is_right(frame, &arrival, outer, at).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Small frames of all kinds: whole, with a right checksum, and the same after.
    #[test]
    fn small_frames_cross(v6: bool, inner_v6: bool, kind in 0u8..4, len in 0usize..1400, flip in any::<prop::sample::Index>()) {
        let mut inner = match kind {
            0 => tcp(inner_v6, &payload(len)).0,
            1 => udp(inner_v6, &payload(len)),
            2 => [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &payload(28 + len % 20)].concat(),
            _ => {
                // A datagram without checksum.
                let mut frame = udp(false, &payload(len));
                frame[40..42].fill(0);
                frame
            }
        };
        if kind == 0 {
            finish(&mut inner);
        }
        let (sent, bytes) = send(&inner, v6, 0);
        prop_assert_eq!(sent, Sent::Ready);
        let segment = Segment::read(&bytes, Trust::Unchecked).unwrap();
        let whole = Reassembly::new(Limits::default()).add(&segment, 0).unwrap().unwrap();
        prop_assert_eq!(&whole.bytes[SttHeader::LEN as usize..], &inner[..]);
        let header = SttHeader::read_from_prefix(&whole.bytes).unwrap().0;
        prop_assert_eq!((header.fault(), header.vsid()), (None, VSID));
        if kind < 2 {
            prop_assert_eq!(whole.outer.class & Ipv4::ECN, 2, "the inner mark outside");
        }

        let mut frame = MemoryFrame::new(&bytes);
        prop_assert!(is_right(&frame, v6));
        let (arrival, _) = look(&frame, v6);
        prop_assert_eq!(arrival.kind, Kind::Whole);
        let eth = Ethernet::read_from_prefix(&inner).unwrap().0;
        decapsulate(&mut frame, &arrival, v6, &eth, 0).unwrap();
        prop_assert_eq!(&frame.bytes, &inner);

        // Damage anywhere behind the addresses is found, by the outer checksum or by the inner one.
        let mut damaged = bytes.clone();
        let start = if v6 { 54 } else { 34 };
        let at = start + flip.index(damaged.len() - start);
        damaged[at] ^= 0x10;
        let damaged = MemoryFrame::new(&damaged);
        if look(&damaged, v6).0.kind == Kind::Whole && is_right(&damaged, v6) {
            let inner_at = start + 20 + 18;
            let inner = &damaged.bytes[inner_at..];
            let ip = Ipv4::read_from_prefix(&inner[14..]).unwrap().0;
            let header = !inner_v6 && ip.with_checksum() != ip;
            prop_assert!(kind < 2 && at >= inner_at + 14 && (header || !is_finished(inner)));
        }
    }

    /// A frame that the kernel has not finished: its checksum is right as soon as the inner one is.
    #[test]
    fn unfinished_inner_checksums(v6: bool, inner_v6: bool, len in 1usize..1400) {
        let (mut inner, _) = tcp(inner_v6, &payload(len));
        finish(&mut inner);
        let (_, complete) = send(&inner, v6, 0);
        let at = if inner_v6 { 54 } else { 34 } + 16;
        inner[at..at + 2].copy_from_slice(&[0x12, 0x34]);
        let (_, mut unfinished) = send(&inner, v6, 0);
        let outer = unfinished.len() - inner.len();
        finish(&mut unfinished[outer..]);
        prop_assert_eq!(complete, unfinished);
    }

    /// Large frames: cut by this crate, joined by it, and taken by the data plane when whole.
    #[test]
    fn large_frames_cross(v6: bool, inner_v6: bool, len in 1500usize..60_000) {
        let (inner, _) = tcp(inner_v6, &payload(len));
        let (sent, bytes) = send(&inner, v6, 1400);
        prop_assert_eq!(sent, Sent::Ready);
        let start = if v6 { 54 } else { 34 };
        let virtio = VirtioHeader { checksum_start: start, ..VirtioHeader::default() };
        let mut reassembly = Reassembly::new(Limits::default());
        let mut whole = None;
        for segment in cut(&[virtio.as_bytes(), &bytes].concat(), 1400) {
            whole = reassembly.add(&Segment::read(&segment, Trust::Unchecked).unwrap(), 0).unwrap();
        }
        prop_assert_eq!(&whole.unwrap().bytes[SttHeader::LEN as usize..], &inner[..]);
        let mut frame = MemoryFrame::new(&bytes);
        let (arrival, _) = look(&frame, v6);
        prop_assert_eq!(arrival.kind, Kind::Whole);
        prop_assert!(arrival.is_stream() && arrival.agrees_on(1400) && !arrival.agrees_on(1300));
        let eth = Ethernet::read_from_prefix(&inner).unwrap().0;
        prop_assert_eq!(arrival.fault(&eth), None);
        decapsulate(&mut frame, &arrival, v6, &eth, 1400).unwrap();
        prop_assert_eq!(&frame.bytes, &inner);
        // And by a receiver that finds it in one piece without segments: it fills in the checksum.
        let mut frame = MemoryFrame::new(&bytes);
        let pseudo_at = start as usize + 20 + 18 + if inner_v6 { 54 } else { 34 } + 16;
        let pseudo = {
            let header = if inner_v6 { 14 + 8..54 } else { 14 + 12..34 };
            let tcp_len = (inner.len() - if inner_v6 { 54 } else { 34 }) as u16;
            checksum::sum_bytes(&inner[header])
                + checksum::sum_bytes(&[0, 6])
                + checksum::sum_bytes(&tcp_len.to_be_bytes())
        };
        frame.bytes[pseudo_at..pseudo_at + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        decapsulate(&mut frame, &arrival, v6, &eth, 0).unwrap();
        prop_assert!(is_finished(&frame.bytes));
    }

    /// Parts, each of any number of segments: every one becomes a sound TCP segment, and together they are the first one.
    #[test]
    fn parts_become_segments(
        v6: bool, inner_v6: bool, len in 3000usize..60_000, sizes in prop::collection::vec(1usize..12, 1..40), ce: bool,
    ) {
        let (mut inner, _) = tcp(inner_v6, &payload(len));
        let tcp_at = if inner_v6 { 54 } else { 34 };
        // FIN, PSH, ACK and CWR.
        inner[tcp_at + 13] = 0x99;
        let (_, bytes) = send(&inner, v6, 1400);
        let start = if v6 { 54 } else { 34usize };
        let virtio = VirtioHeader { checksum_start: start as u16, ..VirtioHeader::default() };
        let segments = cut(&[virtio.as_bytes(), &bytes].concat(), 1400);
        // As the kernel joins them.
        let mut parts = Vec::new();
        let mut left = &segments[..];
        let mut sizes = sizes.iter().cycle();
        while !left.is_empty() {
            let (these, rest) = left.split_at((*sizes.next().unwrap()).min(left.len()));
            left = rest;
            let mut part = these[0].clone();
            for more in &these[1..] {
                part.extend(&more[start + 20..]);
            }
            parts.push((part, these.len() > 1));
        }
        prop_assume!(parts.len() > 1);
        let mut stream = Stream::default();
        let mut got: Vec<u8> = Vec::new();
        let ecn = ce.then_some(3);
        for (n, (part, large)) in parts.iter().enumerate() {
            let mut frame = MemoryFrame::new(part);
            let (arrival, at) = look(&frame, v6);
            let gso = if *large { 1400 } else { 0 };
            prop_assert!(!large && is_right(&frame, v6) || *large);
            if n == 0 {
                prop_assert_eq!(arrival.kind, Kind::First);
                let eth = Ethernet::read_from_prefix(&inner).unwrap().0;
                let first =
                    deliver_first(&mut frame, &mut stream, &arrival, (v6, at + 38), (&eth, ecn), gso).unwrap();
                prop_assert!(first);
            } else {
                prop_assert_eq!(arrival.kind, Kind::Later);
                let before = stream;
                prop_assert_eq!(later(&mut stream, &arrival, gso), PartFate::Deliver);
                deliver_later(&mut frame, &mut stream, &arrival, v6, ecn, gso).unwrap();
                if n + 1 == parts.len() {
                    prop_assert_eq!(later(&mut stream, &arrival, gso), PartFate::Broken, "twice");
                }
                prop_assert_eq!(before.total, stream.total);
            }
            let out = &frame.bytes;
            let (tcp, data) = Tcp::read_from_prefix(&out[tcp_at..]).unwrap();
            prop_assert_eq!(tcp.sequence.get(), 1 + got.len() as u32);
            let flags = if n == 0 { 0x90 } else if n + 1 == parts.len() { 0x19 } else { 0x10 };
            prop_assert_eq!(tcp.offset_flags.get() & 0xff, flags);
            if inner_v6 {
                let ip = Ipv6::read_from_prefix(&out[14..]).unwrap().0;
                prop_assert_eq!(usize::from(ip.payload_len.get()), out.len() - 54);
                prop_assert_eq!(ip.class(), if ce { 3 } else { 2 });
            } else {
                let ip = Ipv4::read_from_prefix(&out[14..]).unwrap().0;
                prop_assert_eq!(ip.with_checksum(), ip);
                prop_assert_eq!(usize::from(ip.total_len.get()), out.len() - 14);
                prop_assert_eq!(ip.tos, if ce { 3 } else { 2 });
            }
            prop_assert_eq!(&out[..14], &inner[..14]);
            prop_assert!(*large || is_finished(out));
            got.extend(data);
        }
        prop_assert_eq!(&got[..], &inner[tcp_at + 20..]);
    }

    /// Any bytes behind outer headers: an answer, no panic.
    #[test]
    fn any_arrivals(v6: bool, bytes in prop::collection::vec(any::<u8>(), 0..300), stt: bool, gso: bool) {
        let (_, mut frame) = send(&tcp(false, &payload(50)).0, v6, 0);
        let start = if v6 { 54 } else { 34 };
        frame.truncate(start);
        frame.extend(&bytes);
        if stt && bytes.len() >= 20 {
            let tcp = SttSegment::whole(1, bytes.len() as u16 - 20, 1);
            frame[start..start + 4].copy_from_slice(&tcp.as_bytes()[..4]);
            frame[start + 12..start + 14].copy_from_slice(&tcp.as_bytes()[12..14]);
        }
        let mut frame = MemoryFrame::new(&frame);
        let (arrival, at) = look(&frame, v6);
        let size = if gso { 1400 } else { 0 };
        let mut stream = Stream::default();
        match arrival.kind {
            Kind::Foreign | Kind::Broken => {}
            Kind::Whole | Kind::First => {
                let mut eth = Ethernet::default();
                if frame.load(at + 38, &mut eth).is_ok() && arrival.fault(&eth).is_none() {
                    if arrival.kind == Kind::Whole {
                        decapsulate(&mut frame, &arrival, v6, &eth, size).ok();
                    } else {
                        deliver_first(&mut frame, &mut stream, &arrival, (v6, at + 38), (&eth, None), size).ok();
                    }
                }
            }
            Kind::Later => {
                stream.total = arrival.segment.total.get().into();
                stream.payload_at = 72;
                if later(&mut stream, &arrival, size) == PartFate::Deliver {
                    deliver_later(&mut frame, &mut stream, &arrival, v6, None, size).ok();
                }
            }
        }
    }
}

#[test]
fn what_tcp_cannot_cut_is_left_as_it_was() {
    let frame = udp(false, &payload(4000));
    assert_eq!(send(&frame, false, 1000), (Sent::Uncut, frame.clone()));
    let (large, _) = tcp(false, &payload(65_535 - 18 - 40 - 54 + 1));
    assert_eq!(send(&large, false, 1000).0, Sent::Uncut);
    let (large, _) = tcp(false, &payload(65_535 - 18 - 40 - 54));
    assert_eq!(send(&large, false, 1000).0, Sent::Ready);
}
