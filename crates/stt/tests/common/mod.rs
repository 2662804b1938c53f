//! Frames for the tests.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::IpAddr;
use tenet_stt::{FrameId, Offload, Outer, Tso, Way};
use tenet_wire::{Be16, Be32, EtherType, Ethernet, Ipv4, Ipv6, Mac, ProtocolNumber};
use zerocopy::IntoBytes as _;

pub fn way(v6: bool, id: u32) -> Way {
    let (src, dst): (IpAddr, IpAddr) = if v6 {
        ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
    } else {
        ([192, 0, 2, 1].into(), [192, 0, 2, 2].into())
    };
    let eth = Ethernet { dst: Mac::new([2; 6]), src: Mac::new([4; 6]), ty: Be16::new(0) };
    Way { frame: FrameId { src, dst, id }, outer: Outer { eth, class: 0, hop_limit: 64, flow: 50_000 } }
}

/// A TCP frame with an unfinished checksum.
pub fn tcp(v6: bool, payload: &[u8]) -> (Vec<u8>, Offload) {
    let ty = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let mut frame = Ethernet { dst: Mac::new([2, 0, 0, 0, 0, 1]), src: Mac::new([2, 0, 0, 0, 0, 2]), ty }
        .as_bytes()
        .to_vec();
    let len = payload.len() as u16 + 20;
    if v6 {
        let mut ip = Ipv6 {
            start: Be16::new(0x6000),
            payload_len: Be16::new(len),
            next: ProtocolNumber::TCP,
            hop_limit: 64,
            src: [0xfd, 0, 0, 0, 0, 0, 0, 7],
            dst: [0xfd, 0, 0, 0, 0, 0, 0, 8],
            ..Ipv6::default()
        };
        ip.set_class(2);
        frame.extend(ip.as_bytes());
    } else {
        let ip = Ipv4 {
            version_ihl: Ipv4::PLAIN,
            tos: 2,
            total_len: Be16::new(len + 20),
            ttl: 64,
            protocol: ProtocolNumber::TCP,
            src: Be32::from_octets([10, 0, 0, 1]),
            dst: Be32::from_octets([10, 0, 0, 2]),
            ..Ipv4::default()
        };
        frame.extend(ip.with_checksum().as_bytes());
    }
    let start = frame.len() as u8;
    frame.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(payload);
    (frame, Offload { checksum_start: Some(start), tso: Some(Tso { mss: 1400 }) })
}

pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}
