//! What holds for every frame and every table.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::prelude::*;
use std::collections::BTreeSet;
use tenet_forward::model::MemoryFrame;
use tenet_forward::model::{self, Outcome, site, traffic, truncate};
use tenet_forward::packet::addr6;
use tenet_forward::stt::{Arrival, checksum_is_right};
use tenet_forward::{Action, HubFrame, Tables as _, Verdict, bucket, combine_ecn, needs_closer_look};
use tenet_tables::image::{Image, Prefix};
use tenet_tables::{Addr, Bucket, DropReason, METHOD_GENEVE, METHOD_NVGRE, METHOD_STT, METHOD_VXLAN, Route};
use tenet_wire::parse::{Kind, Outer, TunnelPorts};
use tenet_wire::{Mac, checksum, parse};

const FRAMES: usize = 60_000;

fn play(sample: &traffic::Sample, site: &site::Site) -> Outcome {
    if sample.from_wire {
        return model::uplink_in(&sample.bytes, &sample.meta, &site.image);
    }
    let mut bucket = Bucket { flood_tokens: 1_000_000, ..Bucket::default() };
    model::port_in(&sample.bytes, &sample.meta, &mut site.image.clone(), &mut bucket, 0)
}

/// Sites that differ in what stands outside: NVGRE in IPv4, all tunnels in IPv4, all in IPv6.
fn sites() -> [site::Site; 3] {
    let new = || site::site(std::array::from_fn(|i| 100 + i as u32), 99);
    let (plain, mut mixed, mut over_ipv6) = (new(), new(), new());
    for site in [&mut mixed, &mut over_ipv6] {
        site.mix_methods(&[METHOD_NVGRE, METHOD_VXLAN, METHOD_GENEVE, METHOD_STT]);
    }
    over_ipv6.move_to_ipv6();
    [plain, mixed, over_ipv6]
}

#[test]
fn every_frame_ends_where_it_may() {
    let mut reasons = BTreeSet::new();
    for site in sites() {
        run(site, &mut reasons);
    }
    // What the example site cannot make: a kernel that refuses, a host without configuration, an empty bucket; and what
    // other methods and other tests make.
    let impossible = [
        DropReason::KernelRefused,
        DropReason::NotConfigured,
        DropReason::FloodLimited,
        DropReason::SttIncomplete,
        DropReason::SttUnsupported,
        DropReason::RewriteUnsupported,
        DropReason::RewriteUnknown,
        DropReason::RewritePair,
        DropReason::NoRewriteAddress,
    ];
    for reason in DropReason::ALL.iter().filter(|r| !impossible.contains(r)) {
        assert!(reasons.contains(reason), "no frame was dropped for {}", reason.name());
    }
}

fn run(mut site: site::Site, reasons: &mut BTreeSet<DropReason>) {
    site.taps(98);
    let mut hubs = 0;
    let mut dice = traffic::Dice::new(20);
    let mut kinds = BTreeSet::new();
    for n in 0..FRAMES {
        let sample = traffic::sample(&mut dice, &site);
        let outcome = play(&sample, &site);
        let context = || format!("frame {n}: {sample:02x?}\n{outcome:02x?}");
        match outcome.action {
            Action::Pass => {
                assert!(sample.from_wire, "what a VM sends reached the host's stack: {}", context());
                assert_eq!(outcome.frame.bytes, sample.bytes, "not ours, but touched: {}", context());
            }
            Action::Drop(reason) | Action::Back(Some(reason)) | Action::Slow(reason) => {
                assert_ne!(reason, DropReason::KernelRefused, "{}", context());
                reasons.insert(reason);
            }
            Action::Port { ifindex, .. } => {
                let port = &site.image.ports[&ifindex];
                let to = Mac::new(*outcome.frame.bytes.first_chunk().unwrap());
                assert_eq!(to, port.mac, "{}", context());
            }
            Action::Hub { ifindex } => {
                let port = &site.image.ports[&ifindex];
                let (head, inner) = outcome.frame.bytes.split_at(HubFrame::LEN as usize);
                assert_eq!(Mac::new(*inner.first_chunk().unwrap()), port.mac, "{}", context());
                assert_eq!(head[12..16], [0x86, 0xdd, 0x60, 0], "{}", context());
                assert_eq!(
                    usize::from(u16::from_be_bytes([head[18], head[19]])),
                    inner.len(),
                    "{}",
                    context()
                );
                assert_eq!(head[38..54], HubFrame::SID.octets(), "{}", context());
                assert_eq!(
                    &inner[34..],
                    &sample.bytes[sample.bytes.len() - inner.len() + 34..],
                    "{}",
                    context()
                );
                hubs += 1;
            }
            Action::Back(None) => assert!(!sample.from_wire, "{}", context()),
            Action::Wire | Action::WireByMark => {
                let sent_by_us = sample.meta.mark == tenet_forward::SEND_MARK;
                if !sent_by_us {
                    kinds.insert(check_tunnel(&outcome.frame.bytes, &site, &context));
                }
            }
        }
        for copy in &outcome.frame.to_wire {
            kinds.insert(check_tunnel(copy, &site, &context));
        }
        // Nobody hears himself, but may hear of the gateway more than he asked for.
        let back = matches!(outcome.action, Action::Back(None));
        let itself = |copies: &[(u32, Vec<u8>)]| copies.iter().any(|(i, _)| *i == sample.meta.ifindex);
        assert!(sample.from_wire || back || !itself(&outcome.frame.to_ports), "{}", context());
    }
    assert!(hubs > 100, "{hubs} frames went by the hub");
    let mixed = site.image.subnets.values().any(|s| s.method != u32::from(METHOD_NVGRE));
    // Redirected frames stay in whatever they came in.
    assert!(kinds.len() == 4 || !mixed, "{kinds:?}");
}

/// Checks a frame for the provider network; the kind of its tunnel.
fn check_tunnel(bytes: &[u8], site: &site::Site, context: &dyn Fn() -> String) -> &'static str {
    if let Ok(segment) = tenet_stt::Segment::read(bytes, tenet_stt::Trust::Checked) {
        let pa = |octets| if site.over_ipv6 { site::Site::pa6(octets) } else { Addr::v4(octets) };
        assert_eq!(Addr::from(segment.frame.src), pa(site::OWN), "{}", context());
        let to = Addr::from(segment.frame.dst);
        assert!([site::OTHER, site::THIRD].map(pa).contains(&to), "{}", context());
        // What goes on to another host may have come with a checksum that only a kernel knows to be unfinished.
        let ours = segment.frame.id == 0 && segment.outer.hop_limit == 64;
        assert!(!ours || stt_is_right(bytes), "{}", context());
        return "stt";
    }
    // What goes on to another host keeps the port that it came to, which may be the one that is about to be sent to.
    let other = TunnelPorts { geneve: site::OTHER_GENEVE_PORT, ..TunnelPorts::default() };
    let found = match parse::tunnel(bytes, TunnelPorts::default()) {
        Ok(None) => parse::tunnel(bytes, other),
        found => found,
    };
    let Ok(Some(found)) = found else { panic!("{found:?} {}", context()) };
    let (src, dst) = match found.outer {
        Outer::V4(ip) => {
            assert_eq!(checksum::finish(checksum::sum_bytes(&bytes[14..34])), 0, "{}", context());
            // What goes on to another host has the flags that it came with.
            assert!(ip.ttl < 64 || ip.dont_fragment(), "{}", context());
            assert!(!ip.is_fragment(), "{}", context());
            assert!(usize::from(ip.total_len.get()) + 14 <= bytes.len(), "{}", context());
            (Addr::v4_word(ip.src.word()), Addr::v4_word(ip.dst.word()))
        }
        Outer::V6(ip) => {
            assert!(usize::from(ip.payload_len.get()) + 54 <= bytes.len(), "{}", context());
            (addr6(&ip.src), addr6(&ip.dst))
        }
    };
    let pa = |octets| if site.over_ipv6 { site::Site::pa6(octets) } else { Addr::v4(octets) };
    assert_eq!(src, pa(site::OWN), "{}", context());
    assert!([site::OTHER, site::THIRD].map(pa).contains(&dst), "{}", context());
    assert!(found.udp.is_none_or(|udp| udp.src.get() >= 0xc000), "{}", context());
    match found.kind {
        Kind::Nvgre(_) => "nvgre",
        Kind::Vxlan(_) => "vxlan",
        Kind::Geneve(..) => "geneve",
    }
}

/// Whether STT's checksum is right, as far as the inner one is.
fn stt_is_right(bytes: &[u8]) -> bool {
    let frame = MemoryFrame::new(bytes);
    let v6 = bytes[12] == 0x86;
    let (at, addresses) = if v6 { (54, &bytes[22..54]) } else { (34, &bytes[26..34]) };
    let mut arrival = Arrival::default();
    arrival.look(&frame, at, bytes.len() as u32 - at);
    checksum_is_right(&frame, &arrival, checksum::sum_bytes(addresses), at) == Ok(true)
}

/// RFC 6040 §4.2, figure 4, in the order of its rows and columns: Not-ECT, ECT(0), ECT(1), CE.
#[test]
fn congestion_marks_combine_as_figure_4_says() {
    const ORDER: [u8; 4] = [0, 2, 1, 3];
    let rows: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(2), Some(2), Some(1), Some(3)],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (inner, row) in ORDER.into_iter().zip(rows) {
        for (outer, wanted) in ORDER.into_iter().zip(row) {
            assert_eq!(combine_ecn(inner, outer), wanted, "inner {inner}, outer {outer}");
        }
    }
}

#[test]
fn nothing_happens_before_the_host_is_configured() {
    let mut site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
    site.image.config = None;
    let mut dice = traffic::Dice::new(3);
    for _ in 0..2000 {
        let sample = traffic::sample(&mut dice, &site);
        let action = play(&sample, &site).action;
        let wanted = if sample.from_wire {
            Action::Pass
        } else if sample.meta.ifindex == site.uplink {
            Action::Drop(DropReason::UnknownPort)
        } else {
            Action::Drop(DropReason::NotConfigured)
        };
        assert_eq!(action, wanted, "{sample:02x?}");
    }
}

#[test]
fn a_port_floods_no_more_than_its_limit() {
    let mut site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
    let port = site.image.ports.get_mut(&100).unwrap();
    (port.flood_rate, port.flood_burst) = (10, 5);
    let me = site.machines[0];
    let mut frame = vec![0xff; 6];
    frame.extend(me.mac);
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(me.ca);
    frame.extend([10, 1, 1, 255, 0, 1, 0, 2, 0, 8, 0, 0]);
    assert!(parse::frame(&frame).is_ok());
    let mut bucket = Bucket { flood_tokens: bucket::full(5), ..Bucket::default() };
    let mut passed = 0;
    // A frame each millisecond for ten seconds.
    for now in (0..10_000u64).map(|ms| ms * 1_000_000) {
        let meta = model::meta(&frame, 100);
        match model::port_in(&frame, &meta, &mut site.image, &mut bucket, now).action {
            Action::Drop(DropReason::Replicated) => passed += 1,
            other => assert_eq!(other, Action::Drop(DropReason::FloodLimited)),
        }
    }
    assert!((100..=105).contains(&passed), "{passed}");
}

fn prefix() -> impl Strategy<Value = (Prefix, [u8; 4])> {
    (0u32..3, any::<[u8; 4]>(), 0u32..=32, any::<[u8; 4]>()).prop_map(|(net, ca, len, hop)| {
        // Few networks and few first bytes, so that prefixes nest.
        let ca = [ca[0] & 3, ca[1] & 1, ca[2], ca[3]];
        (Prefix { net, ca: truncate(Addr::v4(ca), 96 + len), len: 96 + len }, hop)
    })
}

/// The start of a TCP connection of either version with these options, its checksum right.
fn opening(v6: bool, options: &[u8]) -> Vec<u8> {
    let site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
    let (from, to) = (site.machines[0], site.machines[9]);
    let mut tcp = vec![0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    tcp[12] += (options.len() as u8 / 4) << 4;
    tcp.extend(options);
    let (head, pseudo) = if v6 {
        let mut ip = vec![0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 64];
        ip.extend([from.ca6(), to.ca6()].concat());
        let half = |a: [u8; 16]| zerocopy::FromBytes::read_from_bytes(&a).unwrap();
        let sum = tenet_wire::pseudo6(&half(from.ca6()), &half(to.ca6()), tcp.len() as u16, 6);
        ([&[0x86, 0xdd][..], &ip].concat(), sum)
    } else {
        let mut ip = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip.extend([from.ca, to.ca].concat());
        let pseudo = [&from.ca[..], &to.ca, &[0, 6, 0, tcp.len() as u8]].concat();
        ([&[8, 0][..], &ip].concat(), checksum::sum_bytes(&pseudo))
    };
    let sum = checksum::finish(checksum::add(pseudo, checksum::sum_bytes(&tcp)));
    tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
    [&to.mac[..], &from.mac, &head, &tcp].concat()
}

/// Padding, other options and a segment size in any order, up to the forty bytes that there are.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let other = (2u8..12, 3u8..9).prop_map(|(len, kind)| {
        let mut bytes = vec![kind, len];
        bytes.resize(len.into(), 9);
        bytes
    });
    let option = prop_oneof![
        3 => Just(vec![1]),
        2 => any::<u16>().prop_map(|mss| [&[2, 4][..], &mss.to_be_bytes()].concat()),
        2 => other,
    ];
    proptest::collection::vec(option, 0..6).prop_map(|all| {
        let mut bytes = all.concat();
        bytes.truncate(40);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

/// The first segment size in a list of options, and where it stands.
fn offered(options: &[u8]) -> Option<(usize, u16)> {
    let mut at = 0;
    while at + 4 <= options.len() {
        match options[at] {
            0 => return None,
            1 => at += 1,
            2 if options[at + 1] == 4 => {
                return Some((at, u16::from_be_bytes([options[at + 2], options[at + 3]])));
            }
            _ if options[at + 1] < 2 => return None,
            _ => at += usize::from(options[at + 1]),
        }
    }
    None
}

proptest! {
    #[test]
    fn connections_offer_no_larger_segments_than_fit(v6: bool, options in options()) {
        let site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
        let before = opening(v6, &options);
        let sample = traffic::Sample { from_wire: false, meta: model::meta(&before, 100), bytes: before.clone() };
        let outcome = play(&sample, &site);
        prop_assert_eq!(outcome.action, Action::Wire);
        let mut wanted = options.clone();
        let most = site::MTU - if v6 { 60 } else { 40 };
        let lowered = offered(&options).filter(|(_, mss)| *mss > most);
        if let Some((at, _)) = lowered {
            wanted[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
        }
        // Only so many options are looked at.
        prop_assume!(outcome.clamped == lowered.is_some() || options.iter().filter(|b| **b == 1).count() >= 5);
        if outcome.clamped {
            // With the right checksum, this is the frame that a modest sender would have sent.
            prop_assert_eq!(&outcome.frame.bytes[42..], &opening(v6, &wanted));
        } else {
            prop_assert_eq!(&outcome.frame.bytes[42..], &before);
        }
    }

    #[test]
    fn the_longest_prefix_wins(routes in proptest::collection::vec(prefix(), 0..30), net in 0u32..3, ca in any::<[u8; 4]>()) {
        let ca = Addr::v4([ca[0] & 3, ca[1] & 1, ca[2], ca[3]]);
        let mut image = Image::default();
        for (key, hop) in &routes {
            image.routes.insert(*key, Route { next_hop: Addr::v4(*hop), ..Route::default() });
        }
        let scan = image
            .routes
            .iter()
            .filter(|(key, _)| key.net == net && truncate(ca, key.len) == key.ca)
            .max_by_key(|(key, _)| key.len)
            .map(|(_, route)| *route);
        prop_assert_eq!(image.route(net, ca).copied(), scan);
    }

    #[test]
    fn verdicts_survive_a_map(words in any::<[u32; 3]>(), tag in 0u32..23) {
        let verdict = Verdict::from_words([tag, words[1], words[2]]);
        prop_assert_eq!(Verdict::from_words(verdict.to_words()), verdict);
        // Answers and what is above them go to the functions for rare verdicts.
        let rare = matches!(
            verdict,
            Verdict::AnswerArp { .. }
                | Verdict::AnswerEcho
                | Verdict::AnswerNeighbour { .. }
                | Verdict::AnswerRouter
                | Verdict::Error { .. }
                | Verdict::Flood { .. }
        );
        let closer = matches!(
            verdict,
            Verdict::Arp | Verdict::Discovery | Verdict::Gateway | Verdict::Complain(_)
        );
        prop_assert_eq!(needs_closer_look(verdict.to_words()), closer);
        prop_assert_eq!(verdict.to_words()[0] >= Verdict::FIRST_RARE, rare);
    }

    #[test]
    fn buckets_give_no_more_than_rate_and_burst(
        rate in 0u32..100_000,
        burst in 0u32..1000,
        steps in proptest::collection::vec(0u64..50_000_000, 1..200),
    ) {
        let (mut at, mut tokens, mut now, mut granted) = (0, bucket::full(burst), 0, 0u64);
        for step in steps {
            now += step;
            granted += u64::from(bucket::take(&mut at, &mut tokens, now, rate, burst));
        }
        prop_assert!(granted <= u64::from(burst) + now * u64::from(rate) / 1_000_000_000 + 1);
    }
}
