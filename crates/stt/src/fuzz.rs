//! What the fuzz target `stt` runs; the stable test runs the same over its corpus.

use crate::{Limits, Reassembly, Segment, Trust, Unreadable};
use tenet_wire::SttHeader;
use zerocopy::FromBytes as _;

/// Any bytes as a series of Ethernet frames, each behind two bytes of its length (high bit: nobody checked it).
pub fn segments(bytes: &[u8]) {
    let limits = Limits { memory: 100_000, keep: 50_000, patience: 100 };
    let mut reassembly = Reassembly::new(limits);
    let mut rest = bytes;
    let mut now = 0;
    while let Some(([high, low], after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes([high & 0x7f, *low])).min(after.len());
        let (frame, next) = after.split_at(len);
        rest = next;
        now += u64::from(*low & 0xf);
        let trust = if high & 0x80 == 0 { Trust::Checked } else { Trust::Unchecked };
        match Segment::read(frame, trust) {
            Ok(segment) => {
                if let Ok(Some(whole)) = reassembly.add(&segment, now) {
                    assert_eq!(whole.bytes.len(), usize::from(segment.total));
                    if let Ok((header, _)) = SttHeader::read_from_prefix(&whole.bytes) {
                        assert!(header.fault().is_some() || header.vsid() < 1 << 24);
                    }
                    reassembly.recycle(whole.bytes);
                }
            }
            Err(Unreadable::Checksum) => {
                assert!(Segment::read(frame, Trust::Checked).is_ok(), "only the checksum was wrong");
            }
            Err(Unreadable::Other | Unreadable::Malformed | Unreadable::Fragment) => {}
        }
        assert!(reassembly.memory() <= limits.memory + (1 << 17), "memory is bounded");
    }
}
