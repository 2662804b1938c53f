//! Captures of others, where they are.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;
use tenet_stt::{Limits, Reassembly, Segment, Trust};
use tenet_wire::{SttHeader, parse};
use zerocopy::FromBytes as _;

/// Frames of a capture in the classic format, in this machine's byte order.
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while rest.len() >= 16 {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(&rest[16..16 + len]);
        rest = &rest[16 + len..];
    }
    frames
}

#[test]
fn captures_of_stt_become_frames() {
    let folder = std::env::var("TENET_CAPTURES").unwrap_or_else(|_| "../../../shared/captures".to_owned());
    let folder = Path::new(&folder);
    for (name, segments) in
        [("stt-one-segment.pcap", 1), ("stt-three-segments.pcap", 3), ("stt-out-of-order.pcap", 3)]
    {
        let Ok(file) = std::fs::read(folder.join(name)) else {
            eprintln!("SKIPPED: no {name} in {} (name the folder in TENET_CAPTURES)", folder.display());
            continue;
        };
        let frames = frames(&file);
        assert_eq!(frames.len(), segments, "{name}");
        let mut reassembly = Reassembly::new(Limits::default());
        let mut wholes = Vec::new();
        for frame in frames {
            let segment = Segment::read(frame, Trust::Unchecked).unwrap();
            wholes.extend(reassembly.add(&segment, 0).unwrap());
        }
        assert_eq!(wholes.len(), 1, "{name}");
        let (header, inner) = SttHeader::read_from_prefix(&wholes[0].bytes).unwrap();
        assert_eq!(header.fault(), None, "{name}: {header:?}");
        let inner = parse::frame(inner).unwrap();
        println!("{name}: {header:?} {:?}", inner.eth);
        assert!(matches!(inner.payload, parse::Payload::Ipv4(..)), "{name}");
    }
}
