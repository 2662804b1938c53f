//! Segments in any order, more than once, or lost.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{payload, tcp, way};
use proptest::prelude::*;
use tenet_stt::{
    FrameId, Limits, Offload, Reassembly, Refusal, Segment, Trust, Unreadable, Unsendable, VirtioHeader, cut,
};
use tenet_wire::{SttHeader, SttSegment};
use zerocopy::FromBytes as _;

const VSID: u32 = 5001;

fn segments(v6: bool, id: u32, len: usize, mss: u16) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (inner, offload) = tcp(v6, &payload(len));
    let mut whole = Vec::new();
    way(v6, id).encapsulate(&inner, offload, VSID, &mut whole).unwrap();
    (inner, cut(&whole, mss))
}

fn read(bytes: &[u8]) -> Segment<'_> {
    Segment::read(bytes, Trust::Unchecked).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order, and however often each comes: the frame, once, exactly when its last segment is there.
    #[test]
    fn any_order_and_any_duplicates(
        v6: bool, len in 1usize..20_000, mss in 64u16..3000, order in any::<u64>(), twice in any::<u64>(),
    ) {
        let (inner, cut) = segments(v6, 7, len, mss);
        let mut order = order;
        let mut places: Vec<usize> = (0..cut.len()).collect();
        for i in (1..places.len()).rev() {
            order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            places.swap(i, (order >> 33) as usize % (i + 1));
        }
        let mut reassembly = Reassembly::new(Limits::default());
        let mut left = cut.len();
        for &place in &places {
            let segment = read(&cut[place]);
            left -= 1;
            let whole = reassembly.add(&segment, 1).unwrap();
            prop_assert_eq!(whole.is_some(), left == 0);
            if left > 0 && twice >> (place % 64) & 1 == 1 {
                prop_assert_eq!(reassembly.add(&segment, 1), Err(Refusal::Overlap));
            }
            if let Some(whole) = whole {
                let (header, frame) = SttHeader::read_from_prefix(&whole.bytes).unwrap();
                prop_assert_eq!(frame, &inner[..]);
                prop_assert_eq!(header.vsid(), VSID);
                prop_assert_eq!(header.fault(), None);
                prop_assert_eq!(header.mss.get(), 1400);
                prop_assert_eq!(whole.outer.class, 2, "the inner mark outside");
            }
        }
        prop_assert_eq!((reassembly.waiting(), reassembly.memory()), (0, 0));
    }

    /// A frame that lost a segment never comes out, and its memory is given back in time.
    #[test]
    fn a_lost_segment_loses_the_frame(v6: bool, len in 2000usize..20_000, lost in any::<prop::sample::Index>()) {
        let (_, cut) = segments(v6, 7, len, 600);
        let lost = lost.index(cut.len());
        let mut reassembly = Reassembly::new(Limits::default());
        for (i, segment) in cut.iter().enumerate() {
            if i != lost {
                prop_assert_eq!(reassembly.add(&read(segment), 5), Ok(None));
            }
        }
        prop_assert_eq!(reassembly.waiting(), 1);
        reassembly.expire(5 + Limits::default().patience - 1);
        prop_assert_eq!(reassembly.waiting(), 1);
        reassembly.expire(5 + Limits::default().patience);
        prop_assert_eq!((reassembly.waiting(), reassembly.memory()), (0, 0));
        prop_assert_eq!(reassembly.counters().expired, 1);
    }

    /// Any bytes: an answer, no panic; and no more memory than allowed.
    #[test]
    fn any_segments(parts in prop::collection::vec((0u32..4, any::<u16>(), any::<u16>(), 0usize..3000), 1..200)) {
        let limits = Limits { memory: 200_000, keep: 100_000, patience: 1000 };
        let mut reassembly = Reassembly::new(limits);
        let bytes = payload(3000);
        for (n, (id, total, offset, len)) in parts.into_iter().enumerate() {
            let way = way(false, id);
            let segment =
                Segment { frame: way.frame, outer: way.outer, total, offset, bytes: &bytes[..len] };
            if let Ok(Some(whole)) = reassembly.add(&segment, n as u64) {
                prop_assert_eq!(whole.bytes.len(), usize::from(total));
            }
            prop_assert!(reassembly.memory() <= limits.memory + 70_000);
        }
    }
}

fn part(id: u32, total: u16, offset: u16, bytes: &[u8]) -> Segment<'_> {
    let way = way(false, id);
    Segment { frame: way.frame, outer: way.outer, total, offset, bytes }
}

#[test]
fn hostile_segments_are_refused_by_name() {
    let mut r = Reassembly::new(Limits::default());
    assert_eq!(r.add(&part(1, 100, 0, &[]), 0), Err(Refusal::Empty));
    assert_eq!(r.add(&part(1, 100, 90, &[0; 11]), 0), Err(Refusal::OutOfRange));
    assert_eq!(r.add(&part(1, 18, 0, &[0; 18]), 0), Err(Refusal::OutOfRange), "no frame in it");
    assert_eq!(r.add(&part(1, 100, 65_535, &[0; 65_000]), 0), Err(Refusal::OutOfRange));
    assert_eq!(r.waiting(), 0);
    assert_eq!(r.add(&part(1, 100, 10, &[0; 40]), 0), Ok(None));
    assert_eq!(r.add(&part(1, 101, 60, &[0; 40]), 0), Err(Refusal::Length));
    for (offset, len) in [(10, 40), (0, 11), (49, 2), (0, 100), (20, 5)] {
        assert_eq!(r.add(&part(1, 100, offset, &vec![0; len]), 0), Err(Refusal::Overlap), "{offset} {len}");
    }
    // Another host with the same number is another frame.
    let mut other = part(1, 100, 10, &[0; 40]);
    other.frame = FrameId { src: [198, 51, 100, 1].into(), ..other.frame };
    assert_eq!(r.add(&other, 0), Ok(None));
    assert_eq!(r.waiting(), 2);
    assert_eq!(r.add(&part(1, 100, 50, &[0; 50]), 0), Ok(None));
    assert!(r.add(&part(1, 100, 0, &[0; 10]), 0).unwrap().is_some());
    let c = r.counters();
    assert_eq!(
        (c.segments, c.frames, c.empty, c.out_of_range, c.length_mismatch, c.overlaps),
        (4, 1, 1, 3, 1, 5)
    );
    assert_eq!(c.named().iter().find(|(n, ..)| *n == "overlaps").unwrap().2, 5);
}

#[test]
fn memory_is_bounded_and_the_longest_waiting_go_first() {
    let limits = Limits { memory: 1 << 20, keep: 768 << 10, patience: u64::MAX };
    let mut r = Reassembly::new(limits);
    for id in 0..100 {
        r.add(&part(id, 60_000, 0, &[1; 100]), u64::from(id)).unwrap();
        // The first is used again and again.
        r.add(&part(0, 60_000, 100 + id as u16, &[1; 1]), u64::from(id)).unwrap();
        assert!(r.memory() <= limits.memory);
    }
    let c = r.counters();
    assert!(c.evicted > 80 && c.evicted < 90, "{c:?}");
    assert_eq!(r.add(&part(99, 60_000, 0, &[1; 1]), 200), Err(Refusal::Overlap), "the last is there");
    assert_eq!(r.add(&part(0, 60_000, 0, &[1; 1]), 200), Err(Refusal::Overlap), "the first is");
    assert_eq!(r.add(&part(1, 60_000, 0, &[1; 1]), 200), Ok(None), "the second is not");
}

#[test]
fn congestion_on_any_segment_is_on_the_frame() {
    let mut r = Reassembly::new(Limits::default());
    for (offset, class) in [(0u16, 2u8), (50, 3), (80, 2)] {
        let mut segment = part(
            1,
            100,
            offset,
            &[0; 50][..if offset == 50 {
                30
            } else if offset == 0 {
                50
            } else {
                20
            }],
        );
        segment.outer.class = class;
        if let Some(whole) = r.add(&segment, 0).unwrap() {
            assert_eq!(whole.outer.class, 3);
            return;
        }
    }
    panic!("not complete");
}

#[test]
fn broken_segments_are_told_from_others() {
    let (_, cut) = segments(false, 1, 3000, 1000);
    let mut bytes = cut[1].clone();
    assert_eq!(read(&bytes).offset, 1000);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(Segment::read(&bytes, Trust::Unchecked), Err(Unreadable::Checksum));
    assert!(Segment::read(&bytes, Trust::Checked).is_ok());
    bytes[last] ^= 1;
    for len in 0..54 {
        let error = Segment::read(&bytes[..len], Trust::Checked).unwrap_err();
        assert_eq!(error, Unreadable::Malformed, "{len}");
    }
    let mut syn = bytes.clone();
    syn[14 + 20 + 13] |= 2;
    assert_eq!(Segment::read(&syn, Trust::Checked), Err(Unreadable::Other));
    let mut fragment = bytes.clone();
    fragment[14 + 6] = 0x20;
    assert_eq!(Segment::read(&fragment, Trust::Checked), Err(Unreadable::Fragment));
    let mut arp = bytes;
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(Segment::read(&arp, Trust::Checked), Err(Unreadable::Other));
}

#[test]
fn what_stt_cannot_carry_is_refused_by_name() {
    let mut out = Vec::new();
    let (frame, offload) = tcp(false, &payload(100));
    let send =
        |frame: &[u8], offload, out: &mut Vec<u8>| way(false, 1).encapsulate(frame, offload, VSID, out);
    assert_eq!(send(&frame[..13], Offload::default(), &mut out), Err(Unsendable::Truncated));
    assert_eq!(send(&vec![0; 65_518], Offload::default(), &mut out), Err(Unsendable::TooLong));
    assert_eq!(
        send(&vec![0; 65_517], Offload::default(), &mut out),
        Err(Unsendable::TooLong),
        "the outer header's"
    );
    assert_eq!(send(&frame, Offload { checksum_start: None, ..offload }, &mut out), Err(Unsendable::Offload));
    assert_eq!(
        send(&frame, Offload { checksum_start: Some(33), ..offload }, &mut out),
        Err(Unsendable::Offload)
    );
    assert_eq!(send(&frame, offload, &mut out), Ok(()));
    let (virtio, _) = VirtioHeader::read_from_prefix(&out).unwrap();
    assert_eq!(virtio.kind(), 0, "smaller than a segment");
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
    assert_eq!(send(&arp, Offload::default(), &mut out), Ok(()));
    assert_eq!(read(&cut(&out, 1400)[0]).bytes.len(), arp.len() + SttHeader::LEN as usize);
}

#[test]
fn headers_that_contradict_themselves() {
    use tenet_wire::{Be16, Be32, SttFault};
    let good = SttHeader {
        flags: SttHeader::PARTIAL | SttHeader::IPV4 | SttHeader::TCP,
        l4_offset: 34,
        mss: Be16::new(1400),
        context_low: Be32::new(VSID),
        ..SttHeader::default()
    };
    let partial = SttHeader::PARTIAL;
    assert_eq!(good.fault(), None);
    assert_eq!(SttHeader { version: 1, ..good }.fault(), Some(SttFault::Version));
    assert_eq!(SttHeader { flags: good.flags | 0x10, ..good }.fault(), Some(SttFault::Fields));
    assert_eq!(SttHeader { flags: good.flags & !partial, ..good }.fault(), Some(SttFault::Fields));
    assert_eq!(SttHeader { l4_offset: 33, ..good }.fault(), Some(SttFault::Fields));
    assert_eq!(SttHeader { flags: good.flags & !SttHeader::IPV4, ..good }.fault(), Some(SttFault::Fields));
    assert_eq!(SttHeader { flags: good.flags & !SttHeader::TCP, ..good }.fault(), Some(SttFault::Fields));
    assert_eq!(SttHeader { vlan: Be16::new(0x1005), ..good }.fault(), Some(SttFault::Vlan));
    assert_eq!(SttHeader { context_high: Be32::new(1), ..good }.fault(), Some(SttFault::Context));
    assert_eq!(SttHeader { context_low: Be32::new(1 << 24), ..good }.fault(), Some(SttFault::Context));
    assert!(SttSegment::whole(50_000, 100, 1).is_stt());
    assert!(!SttSegment { dst: Be16::new(80), ..SttSegment::whole(50_000, 100, 1) }.is_stt());
}
