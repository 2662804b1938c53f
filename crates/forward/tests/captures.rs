//! Captures of others, where they are: each frame through the parser and through the decision.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use tenet_forward::model::{self, MemoryFrame, Outcome};
use tenet_forward::packet::addr6;
use tenet_forward::{Action, combine_ecn};
use tenet_tables::image::Image;
use tenet_tables::{
    Addr, Config, DropReason, GENEVE_PORT, LAYOUT_VERSION, MacEntry, MacKey, PORT_ACTIVE, Peer, PeerKey,
    Port, Record, RecordKey, Subnet, VXLAN_PORT,
};
use tenet_wire::parse::{self, Kind, Outer, ParseError, Payload, TunnelPorts, Tunnelled};
use tenet_wire::{Ethernet, Geneve, TunnelHeader};
use zerocopy::FromBytes as _;

const UPLINK: u32 = 9;
const PORT: u32 = 7;

/// The frames of a capture in the classic format, in this machine's byte order; `None` where it is not.
fn capture(name: &str) -> Option<Vec<Vec<u8>>> {
    let folder = std::env::var("TENET_CAPTURES").unwrap_or_else(|_| "../../../shared/captures".to_owned());
    let Ok(file) = std::fs::read(Path::new(&folder).join(name)) else {
        eprintln!("SKIPPED: no {name} in {folder} (name the folder in TENET_CAPTURES)");
        return None;
    };
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while rest.len() >= 16 {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    Some(frames)
}

fn ends(outer: &Outer) -> (Addr, Addr) {
    match outer {
        Outer::V4(ip) => (Addr::v4_word(ip.src.word()), Addr::v4_word(ip.dst.word())),
        Outer::V6(ip) => (addr6(&ip.src), addr6(&ip.dst)),
    }
}

/// The tables of the host that an encapsulated frame is for, if all that it says is so.
fn tables(outer: &Outer, vsid: u32, inner: &parse::Frame<'_>) -> Image {
    let (from, own) = ends(outer);
    let ca = match inner.payload {
        Payload::Ipv4(ip, _) => Addr::v4_word(ip.src.word()),
        Payload::Ipv6(ip, _) => addr6(&ip.src),
        _ => panic!("{inner:?}"),
    };
    let config = Config {
        layout: LAYOUT_VERSION,
        uplink: UPLINK,
        pa: own,
        vxlan_port: VXLAN_PORT,
        geneve_port: GENEVE_PORT,
        ..Config::default()
    };
    let mut image = Image { config: Some(config), ..Image::default() };
    image.subnets.insert(vsid, Subnet { net: 1, ..Subnet::default() });
    image.peers.insert(PeerKey { net: 0, pa: from }, Peer::default());
    image.records.insert(RecordKey { net: 1, ca }, Record { pa: from, vsid, ..Record::default() });
    let key = MacKey { vsid, mac: inner.eth.dst, reserved: 0 };
    image.macs.insert(key, MacEntry { pa: own, ifindex: PORT, ..MacEntry::default() });
    image.ports.insert(PORT, Port { net: 1, vsid, state: PORT_ACTIVE, ..Port::default() });
    image
}

fn receive(bytes: &[u8], image: &Image) -> Outcome {
    model::uplink_in(bytes, &model::meta(bytes, UPLINK), image)
}

/// Parses a frame and has it delivered.
fn delivered<'a>(bytes: &'a [u8], name: &str) -> (Tunnelled<'a>, MemoryFrame) {
    let found = parse::tunnel(bytes, TunnelPorts::default()).unwrap().unwrap();
    let outcome = receive(bytes, &tables(&found.outer, found.vsid, &found.inner.unwrap()));
    assert_eq!(outcome.action, Action::Port { ifindex: PORT, peer: false }, "{name}: {found:?}");
    (found, outcome.frame)
}

#[test]
fn nvgre_of_all_families() {
    let Some(frames) = capture("nvgre-good.pcap") else { return };
    let mut seen = Vec::new();
    for bytes in &frames {
        let (found, frame) = delivered(bytes, "nvgre-good");
        let Kind::Nvgre(gre) = found.kind else { panic!("{found:?}") };
        assert_eq!(frame.bytes, found.bytes);
        let inner_v6 = matches!(found.inner.unwrap().payload, Payload::Ipv6(..));
        seen.push((matches!(found.outer, Outer::V6(_)), inner_v6, gre.vsid(), gre.flow()));
    }
    assert_eq!(seen[..2], [(false, false, 5001, 0x2a), (false, true, 6001, 2)]);
    assert_eq!((seen[2].0, seen[2].1), (true, false));
    assert_eq!((seen[3].0, seen[3].1, seen[3].2), (true, true, 0xff_fffe));
}

#[test]
fn nvgre_of_another_maker() {
    let Some(frames) = capture("gre_nvgre.pcap") else { return };
    let (found, frame) = delivered(&frames[0], "gre_nvgre");
    let Kind::Nvgre(gre) = found.kind else { panic!("{found:?}") };
    assert_eq!((gre.vsid(), gre.flow()), (0x12_3456, 2));
    assert_eq!(frame.bytes, found.bytes);
}

/// Outer marks in the order 0 to 3, and within each the inner ones.
#[test]
fn marks_of_congestion_in_vxlan() {
    let Some(frames) = capture("vxlan-ecn-matrix.pcap") else { return };
    assert_eq!(frames.len(), 16);
    for (n, bytes) in frames.iter().enumerate() {
        let (outer, inner) = (n as u8 / 4, n as u8 % 4);
        let found = parse::tunnel(bytes, TunnelPorts::default()).unwrap().unwrap();
        assert_eq!(found.outer.class(), outer);
        let outcome = receive(bytes, &tables(&found.outer, found.vsid, &found.inner.unwrap()));
        let Some(wanted) = combine_ecn(inner, outer) else {
            assert_eq!((outer, inner, outcome.action), (3, 0, Action::Drop(DropReason::EcnMismatch)));
            continue;
        };
        assert_eq!(outcome.action, Action::Port { ifindex: PORT, peer: false });
        let Payload::Ipv4(ip, _) = parse::frame(&outcome.frame.bytes).unwrap().payload else { panic!() };
        assert_eq!(
            (ip.tos, ip.with_checksum().checksum),
            (wanted, ip.checksum),
            "outer {outer}, inner {inner}"
        );
    }
}

/// One connection in two virtual subnets and bare: only the virtual subnet tells them apart. It was captured on a
/// loopback, whose address is no host's.
#[test]
fn one_connection_in_two_subnets() {
    let Some(frames) = capture("vxlan-overlapping-http-get.pcap") else { return };
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    let mut loops = 0;
    for bytes in &frames {
        match parse::tunnel(bytes, TunnelPorts::default()).unwrap() {
            Some(found) => {
                assert!(found.udp.unwrap().checksum.get() != 0 && found.inner.is_ok());
                *seen.entry(found.vsid).or_default() += 1;
                let outcome = receive(bytes, &tables(&found.outer, found.vsid, &found.inner.unwrap()));
                assert_eq!(outcome.action, Action::Drop(DropReason::Loop));
                loops += 1;
            }
            None => *seen.entry(0).or_default() += 1,
        }
    }
    assert_eq!(seen, BTreeMap::from([(0, 14), (4242, 14), (4711, 14)]));
    assert_eq!(loops, 28);
}

/// One side sends an option that is marked critical and that we do not know, the other none.
#[test]
fn geneve_with_and_without_options() {
    let Some(frames) = capture("geneve.pcap") else { return };
    let (mut without, mut critical) = (0, 0);
    for bytes in &frames {
        match parse::tunnel(bytes, TunnelPorts::default()) {
            Ok(Some(found)) => {
                assert_eq!(found.vsid, 11);
                let (_, frame) = delivered(bytes, "geneve");
                assert_eq!(frame.bytes, found.bytes);
                without += 1;
            }
            Err(ParseError::Critical) => {
                // The frame's inside, past the options that the parser stopped at.
                let Payload::Ipv4(ip, datagram) = parse::frame(bytes).unwrap().payload else { panic!() };
                let header = TunnelHeader::read_from_prefix(&datagram[8..]).unwrap().0;
                let options = header.geneve().options_len() as usize;
                assert_eq!((header.vsid(), options), (10, 8));
                let inner = parse::frame(&datagram[8 + Geneve::LEN as usize + options..]).unwrap();
                assert_ne!(inner.eth, Ethernet::default());
                let outcome = receive(bytes, &tables(&Outer::V4(ip), 10, &inner));
                assert_eq!(outcome.action, Action::Drop(DropReason::GeneveCritical));
                critical += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{without} without options, {critical} with a critical one");
    assert!(without > 10 && critical > 10 && without + critical == frames.len());
}
