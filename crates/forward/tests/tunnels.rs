//! Tunnelled frames through the parser and through the decision: captures of others, where they are, and our own of the
//! same kinds.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use tenet_forward::model::{self, MemoryFrame, Outcome};
use tenet_forward::packet::addr6;
use tenet_forward::stt::Stream;
use tenet_forward::{Action, UplinkWork, Verdict, combine_ecn, edit, uplink_ingress};
use tenet_tables::image::Image;
use tenet_tables::{
    Addr, CONFIG_FLAG_OTHER_GENEVE, Config, DropReason, GENEVE_PORT, LAYOUT_VERSION, MacEntry, MacKey,
    PORT_ACTIVE, Peer, PeerKey, Port, Record, RecordKey, Subnet, VXLAN_PORT,
};
use tenet_wire::parse::{self, Kind, Outer, ParseError, Payload, TunnelPorts, Tunnelled};
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Geneve, Gre, Ipv4, Ipv6, Mac, ProtocolNumber, SttHeader, SttSegment,
    TunnelHeader, Udp, Vxlan, checksum, outer_ipv4, outer_ipv6, outer_protocol, outer_udp,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

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
    assert_eq!(seen[..2], [(false, false, 5001, 0x2a), (false, true, 6001, 1)]);
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

/// A packet of either version between the first two machines of a network.
fn packet(v6: bool, protocol: u8, class: u8, payload: &[u8]) -> Vec<u8> {
    if v6 {
        let half = |last| std::array::from_fn(|i| if i == 7 { last } else { 0xfd });
        let ip = outer_ipv6(half(1), half(2), protocol, payload.len() as u16, class, 5);
        [ip.as_bytes(), payload].concat()
    } else {
        let len = (20 + payload.len()) as u16;
        let [a, b] = [1, 2].map(|n| Be32::from_octets([10, 0, 0, n]));
        [outer_ipv4(a, b, protocol, len, class).as_bytes(), payload].concat()
    }
}

fn framed(v6: bool, packet: &[u8]) -> Vec<u8> {
    let ty = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let eth = Ethernet { dst: Mac::new([2, 0, 0, 0, 0, 2]), src: Mac::new([2, 0, 0, 0, 0, 1]), ty };
    [eth.as_bytes(), packet].concat()
}

const KINDS: [&str; 3] = ["nvgre", "vxlan", "geneve"];
const STT_ID: u32 = 77;

fn tunnelled(kind: &str, outer_v6: bool, class: u8, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let (port, payload) = match kind {
        "nvgre" => (0, [Gre::nvgre(5001, 1).as_bytes(), inner].concat()),
        "vxlan" => (VXLAN_PORT, [Vxlan::new(5001).as_bytes(), inner].concat()),
        _ => {
            let mut header = Geneve::new(5001);
            header.start = Be16::new(options.len() as u16 / 4 * 0x100);
            (GENEVE_PORT, [header.as_bytes(), options, inner].concat())
        }
    };
    let udp = outer_udp(port, 8 + payload.len() as u16, 77);
    let transport = if port == 0 { payload } else { [udp.as_bytes(), &payload].concat() };
    framed(outer_v6, &packet(outer_v6, outer_protocol(port != 0), class, &transport))
}

/// A segment of an STT frame: so many bytes of the frame from `offset` on.
fn stt_segment(outer_v6: bool, class: u8, frame: &[u8], offset: usize, len: usize) -> Vec<u8> {
    let mut segment = SttSegment::whole(50_000, frame.len() as u16, STT_ID);
    segment.offset = Be16::new(offset as u16);
    let mut bytes = [segment.as_bytes(), &frame[offset..offset + len]].concat();
    let outer = packet(outer_v6, ProtocolNumber::TCP, class, &[]);
    let addresses = if outer_v6 { &outer[8..40] } else { &outer[12..20] };
    let pseudo = checksum::sum_bytes(addresses)
        + u32::from(u16::from(ProtocolNumber::TCP).to_be())
        + u32::from((bytes.len() as u16).to_be());
    let sum = checksum::finish(pseudo + u32::from(checksum::fold(checksum::sum_bytes(&bytes))));
    bytes[SttSegment::CHECKSUM_AT as usize..][..2].copy_from_slice(&sum.to_ne_bytes());
    framed(outer_v6, &packet(outer_v6, ProtocolNumber::TCP, class, &bytes))
}

/// An STT frame in one segment.
fn stt_whole(outer_v6: bool, class: u8, inner: &[u8]) -> Vec<u8> {
    let header = SttHeader { context_low: Be32::new(5001), ..SttHeader::default() };
    let frame = [header.as_bytes(), inner].concat();
    stt_segment(outer_v6, class, &frame, 0, frame.len())
}

/// The tables of the receiver of [`tunnelled`].
fn site(frame: &[u8], inner: &[u8]) -> Image {
    let outer = match parse::frame(frame).unwrap().payload {
        Payload::Ipv4(ip, _) => Outer::V4(ip),
        Payload::Ipv6(ip, _) => Outer::V6(ip),
        other => panic!("{other:?}"),
    };
    tables(&outer, 5001, &parse::frame(inner).unwrap())
}

/// All sixteen combinations, in every tunnel, both families inside and outside.
#[test]
fn congestion_comes_out_as_rfc_6040_says() {
    let mut cases = 0;
    for kind in KINDS.into_iter().chain(["stt"]) {
        for n in 0..64u8 {
            let (outer_v6, inner_v6, outer, inner) = (n & 1 != 0, n & 2 != 0, n >> 2 & 3, n >> 4 & 3);
            let context = format!("{kind}, outer v6 {outer_v6} {outer}, inner v6 {inner_v6} {inner}");
            // DSCP of both stays what it is: the pipe model.
            let mut inside = framed(inner_v6, &packet(inner_v6, 17, inner, &[0; 40]));
            set_class(&mut inside, inner_v6, 0xb8 | inner);
            let mut bytes = match kind {
                "stt" => stt_whole(outer_v6, outer, &inside),
                _ => tunnelled(kind, outer_v6, outer, &[], &inside),
            };
            set_class(&mut bytes, outer_v6, 0x28 | outer);
            let outcome = receive(&bytes, &site(&bytes, &inside));
            cases += 1;
            let Some(wanted) = combine_ecn(inner, outer) else {
                assert_eq!(outcome.action, Action::Drop(DropReason::EcnMismatch), "{context}");
                continue;
            };
            assert_eq!(outcome.action, Action::Port { ifindex: PORT, peer: false }, "{context}");
            set_class(&mut inside, inner_v6, 0xb8 | wanted);
            assert_eq!(outcome.frame.bytes, inside, "{context}");
        }
    }
    assert_eq!(cases, 256);
}

/// The same where an STT frame comes in three parts: each carries the mark of its own segment into its TCP segment, and
/// what a segment without a mark brings stays as the VM sent it.
#[test]
fn congestion_comes_out_of_parts_of_stt_frames() {
    for n in 0..64u8 {
        let (outer_v6, inner_v6, outer, inner) = (n & 1 != 0, n & 2 != 0, n >> 2 & 3, n >> 4 & 3);
        let context = format!("outer v6 {outer_v6} {outer}, inner v6 {inner_v6} {inner}");
        let payload: Vec<u8> = (0..3000u16).map(|i| i as u8).collect();
        let tcp = [0x1f, 0x90, 0, 80, 0, 0, 1, 0, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
        let mut inside =
            framed(inner_v6, &packet(inner_v6, ProtocolNumber::TCP, inner, &[&tcp[..], &payload].concat()));
        set_class(&mut inside, inner_v6, 0xb8 | inner);
        let l4 = if inner_v6 { 54 } else { 34 };
        let family = if inner_v6 { 0 } else { SttHeader::IPV4 };
        let header = SttHeader {
            flags: SttHeader::PARTIAL | SttHeader::TCP | family,
            l4_offset: l4,
            mss: Be16::new(1000),
            context_low: Be32::new(5001),
            ..SttHeader::default()
        };
        let frame = [header.as_bytes(), &inside].concat();
        let begin = SttHeader::LEN as usize + usize::from(l4) + tcp.len();
        let arriving = |offset, len, ecn: u8| {
            let mut bytes = stt_segment(outer_v6, ecn, &frame, offset, len);
            set_class(&mut bytes, outer_v6, 0x28 | ecn);
            bytes
        };
        let check = |frame: &MemoryFrame, wanted: u8, number: usize| {
            let part = &payload[number * 1000..][..1000];
            let mut headers = inside[..begin - SttHeader::LEN as usize].to_vec();
            headers[usize::from(l4) + 7] = (number * 1000) as u8;
            headers[usize::from(l4) + 6] = 1 + ((number * 1000) >> 8) as u8;
            let mut expected = [&headers[..], part].concat();
            set_len_and_sums(&mut expected, inner_v6);
            set_class(&mut expected, inner_v6, 0xb8 | wanted);
            assert_eq!(frame.bytes, expected, "{context}, part {number}");
        };
        let delivered = Action::Port { ifindex: PORT, peer: false };
        let image = site(&arriving(0, frame.len(), 0), &inside);
        let config = image.config.unwrap();

        // The first part has the mark, or a later one has it: either way it is that part's alone.
        for marked in 0..3 {
            let mut stream = Stream::default();
            let mut lost = false;
            for number in 0..3 {
                let ecn = if number == marked { outer } else { 0 };
                let (offset, len) =
                    if number == 0 { (0, begin + 1000) } else { (begin + number * 1000, 1000) };
                let bytes = arriving(offset, len, ecn);
                let mut arrived = MemoryFrame::new(&bytes);
                let mut work = UplinkWork::default();
                let verdict = uplink_ingress(&arrived, &model::meta(&bytes, UPLINK), &image, &mut work);
                let (action, kept) = if number == 0 {
                    edit::stt(&mut arrived, verdict, &image, &work, &mut stream)
                } else {
                    assert_eq!(verdict, Verdict::Part, "{context}");
                    let stream = Some(&mut stream).filter(|_| !lost);
                    (edit::stt_part(&mut arrived, &work, &config, stream), false)
                };
                match combine_ecn(inner, ecn) {
                    // Without its first part, a frame is the slow path's.
                    _ if lost => assert_eq!(action, Action::Slow(DropReason::SttIncomplete), "{context}"),
                    None => {
                        assert_eq!(action, Action::Drop(DropReason::EcnMismatch), "{context}");
                        lost = number == 0;
                    }
                    Some(wanted) => {
                        assert_eq!((action, kept), (delivered, number == 0), "{context}, part {number}");
                        check(&arrived, wanted, number);
                    }
                }
            }
        }
    }
}

/// Puts right what says how long a TCP segment's packet is, and the checksum of TCP.
fn set_len_and_sums(frame: &mut [u8], v6: bool) {
    let (addresses, tcp_at) = if v6 { (22..54, 54) } else { (26..34, 34) };
    let tcp = frame.len() - tcp_at;
    if v6 {
        frame[18..20].copy_from_slice(&(tcp as u16).to_be_bytes());
    } else {
        frame[16..18].copy_from_slice(&(tcp as u16 + 20).to_be_bytes());
    }
    frame[tcp_at + 16..tcp_at + 18].fill(0);
    let pseudo = checksum::sum_bytes(&frame[addresses])
        + u32::from(u16::from(ProtocolNumber::TCP).to_be())
        + u32::from((tcp as u16).to_be());
    let sum = checksum::finish(pseudo + u32::from(checksum::fold(checksum::sum_bytes(&frame[tcp_at..]))));
    frame[tcp_at + 16..tcp_at + 18].copy_from_slice(&sum.to_ne_bytes());
}

fn set_class(frame: &mut [u8], v6: bool, class: u8) {
    if v6 {
        let mut ip = Ipv6::read_from_prefix(&frame[14..]).unwrap().0;
        ip.set_class(class);
        ip.write_to_prefix(&mut frame[14..]).unwrap();
    } else {
        let mut ip = Ipv4::read_from_prefix(&frame[14..]).unwrap().0;
        ip.tos = class;
        ip.with_checksum().write_to_prefix(&mut frame[14..]).unwrap();
    }
}

#[test]
fn geneves_options_by_name() {
    let inside = framed(false, &packet(false, 17, 0, &[0; 40]));
    let check = |options: &[u8], wanted: Action| {
        for outer_v6 in [false, true] {
            let bytes = tunnelled("geneve", outer_v6, 0, options, &inside);
            let outcome = receive(&bytes, &site(&bytes, &inside));
            assert_eq!(outcome.action, wanted, "{options:02x?}");
            assert!(wanted != Action::Port { ifindex: PORT, peer: false } || outcome.frame.bytes == inside);
        }
    };
    let delivered = Action::Port { ifindex: PORT, peer: false };
    check(&[], delivered);
    check(&[1, 2, 3, 0], delivered);
    check(&[1, 2, 3, 0].repeat(63), delivered);
    check(&[1, 2, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 0x7f, 0xe0], delivered);
    check(&[0, 0, 0x80, 1, 0, 0, 0, 12], Action::Drop(DropReason::GeneveCritical));
    check(&[1, 2, 3, 0, 1, 2, 0xff, 0], Action::Drop(DropReason::GeneveCritical));
    check(&[1, 2, 3, 9], Action::Drop(DropReason::GeneveOptions));
    check(&[1, 2, 0x80, 9], Action::Drop(DropReason::GeneveOptions));
}

#[test]
fn a_port_that_changes_is_taken_for_its_own_method() {
    const NEW: u16 = 8472;
    let inside = framed(false, &packet(false, 17, 0, &[0; 40]));
    for (kind, v6) in [("vxlan", false), ("vxlan", true), ("geneve", false), ("geneve", true)] {
        let mut bytes = tunnelled(kind, v6, 0, &[], &inside);
        let mut image = site(&bytes, &inside);
        let port_at = 14 + if v6 { 40 } else { 20 } + 2;
        let (old, new) = (bytes.clone(), NEW.to_be_bytes());
        bytes[port_at..port_at + 2].copy_from_slice(&new);
        let own = if kind == "geneve" { CONFIG_FLAG_OTHER_GENEVE } else { 0 };
        let mut set = |other_port, flags| {
            let config = Config { other_port, flags, ..image.config.unwrap() };
            image.config = Some(config);
            [&old, &bytes].map(|frame| receive(frame, &image).action)
        };
        let delivered = Action::Port { ifindex: PORT, peer: false };
        assert_eq!(set(0, own), [delivered, Action::Pass], "{kind}");
        assert_eq!(set(NEW + 1, own), [delivered, Action::Pass], "{kind}");
        assert_eq!(set(NEW, own), [delivered; 2], "{kind}");
        let [old, new] = set(NEW, own ^ CONFIG_FLAG_OTHER_GENEVE);
        assert!(old == delivered && matches!(new, Action::Drop(_)), "{kind}: {new:?}");
    }
}

/// Right, wrong by one bit anywhere, and the two that a kernel leaves on frames that were on no cable.
#[test]
fn outer_checksums_by_name() {
    for (kind, v6) in [("vxlan", false), ("vxlan", true), ("geneve", false), ("geneve", true)] {
        let segment =
            [0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0, 7, 7, 7];
        let mut inside = framed(false, &packet(false, 6, 0, &segment));
        let at = if v6 { 54 } else { 34 };
        let with = |inside: &[u8], fill: &dyn Fn(u32, &[u8]) -> u16| {
            let mut bytes = tunnelled(kind, v6, 0, &[], inside);
            let outer = if v6 {
                Outer::V6(parse::ipv6(&bytes[14..]).unwrap().0)
            } else {
                Outer::V4(parse::ipv4(&bytes[14..]).unwrap().0)
            };
            let udp = Udp::read_from_prefix(&bytes[at..]).unwrap().0;
            let sum = fill(parse::pseudo_sum(&outer, &udp), &bytes[at..]);
            bytes[at + 6..at + 8].copy_from_slice(&sum.to_ne_bytes());
            bytes
        };
        let action = |bytes: &[u8], inside: &[u8]| receive(bytes, &site(bytes, inside)).action;
        let delivered = Action::Port { ifindex: PORT, peer: false };
        let whole = |pseudo: u32, rest: &[u8]| {
            checksum::finish(pseudo + u32::from(checksum::fold(checksum::sum_bytes(rest))))
        };
        let good = with(&inside, &whole);
        assert_eq!(action(&good, &inside), delivered);
        for bit in at * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A wrong destination port is not ours, and a wrong length is seen before.
            let outcome = receive(&bad, &site(&good, &inside)).action;
            let by_name = outcome == Action::Drop(DropReason::OuterChecksum);
            let header = (at + 2..at + 6).contains(&(bit / 8));
            assert!(by_name || header && outcome != delivered, "bit {bit}: {outcome:?}");
        }
        // The sum of the pseudo header alone: nobody has summed up the rest yet.
        assert_eq!(action(&with(&inside, &|pseudo, _| checksum::fold(pseudo)), &inside), delivered);
        // Right once the inner one is filled in.
        let inner_at = 14 + 20 + 16;
        let tcp = parse::ipv4(&inside[14..]).unwrap().1.to_vec();
        let pseudo = checksum::sum_bytes(&inside[26..34])
            + u32::from(6u16.to_be())
            + u32::from((tcp.len() as u16).to_be());
        inside[inner_at..inner_at + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        let unfinished = |outer: u32, rest: &[u8]| {
            let mut finished = rest.to_vec();
            let tcp_at = finished.len() - tcp.len();
            let sum = checksum::finish(checksum::sum_bytes(&finished[tcp_at..]));
            finished[tcp_at + 16..tcp_at + 18].copy_from_slice(&sum.to_ne_bytes());
            whole(outer, &finished)
        };
        assert_eq!(action(&with(&inside, &unfinished), &inside), delivered, "{kind} {v6}");
    }
}

#[test]
fn ipv4_and_ipv6_fit_into_each_other() {
    for kind in KINDS {
        for n in 0..4 {
            let (outer_v6, inner_v6) = (n & 1 != 0, n & 2 != 0);
            let inside = framed(inner_v6, &packet(inner_v6, 17, 0, &[7; 9]));
            let bytes = tunnelled(kind, outer_v6, 0, &[], &inside);
            let (found, frame) = delivered(&bytes, kind);
            assert_eq!((found.bytes, &*frame.bytes), (&*inside, &*inside));
        }
    }
}

/// The tables have IPv4's addresses as mapped ones: a packet of IPv6 that has one must not pass for IPv4.
#[test]
fn mapped_addresses_are_nobodys() {
    let mapped = |octets: [u8; 4]| {
        let [a, b, c, d] = octets;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    };
    // Inside: as the IPv4 machine that the tables have.
    let machine = framed(false, &packet(false, 17, 0, &[7; 9]));
    let mut inside = framed(true, &packet(true, 17, 0, &[7; 9]));
    inside[22..38].copy_from_slice(&mapped([10, 0, 0, 1]));
    for kind in KINDS {
        let bytes = tunnelled(kind, false, 0, &[], &inside);
        assert_eq!(
            receive(&bytes, &site(&bytes, &machine)).action,
            Action::Drop(DropReason::Malformed),
            "{kind}"
        );
    }
    // Outside: from one IPv4 host to the other.
    let bytes = tunnelled("nvgre", false, 0, &[], &machine);
    let image = site(&bytes, &machine);
    let mut bytes = tunnelled("nvgre", true, 0, &[], &machine);
    bytes[22..38].copy_from_slice(&mapped([10, 0, 0, 1]));
    bytes[38..54].copy_from_slice(&mapped([10, 0, 0, 2]));
    assert_eq!(receive(&bytes, &image).action, Action::Pass);
}

/// Whoever puts STT frames together is there for a while after it last looked, by a clock that may be read a little before.
#[test]
fn a_joiner_that_does_not_look_any_more_is_gone() {
    use tenet_forward::stt::{JOINER_PATIENCE, is_joining};
    let check = |looked, now, wanted| assert_eq!(is_joining(looked, now), wanted, "{looked} {now}");
    check(0, 1, false);
    check(0, u64::MAX, false);
    check(1, 1, true);
    check(10, 9, true);
    check(5, 4 + JOINER_PATIENCE, true);
    check(5, 5 + JOINER_PATIENCE, false);
}
