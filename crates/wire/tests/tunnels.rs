//! Every tunnel over both families: put together, taken apart, and each way of lying refused by name.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::prelude::*;
use tenet_wire::parse::{self, Kind, Outer, ParseError, TunnelPorts};
use tenet_wire::{
    Be16, Be32, Envelope, EtherType, Ethernet, Geneve, Gre, GreOuter, GreOuter6, Mac, TUNNEL_OVERHEAD_MAX,
    TunnelFrame, TunnelHeader, Udp, UdpOuter, UdpOuter6, Vxlan, checksum, outer_ipv4, outer_ipv6,
    outer_protocol, outer_udp,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const PORTS: TunnelPorts = TunnelPorts { vxlan: 4789, geneve: 6081 };
const SRC: [u8; 4] = [192, 168, 1, 10];
const DST: [u8; 4] = [192, 168, 2, 20];

/// A sound IPv4 frame of `n` bytes of payload.
fn inner(n: usize) -> Vec<u8> {
    let eth = Ethernet { dst: Mac::new([2; 6]), src: Mac::new([4; 6]), ty: EtherType::IPV4 };
    let ip = outer_ipv4(
        Be32::from_octets([10, 0, 0, 1]),
        Be32::from_octets([10, 0, 0, 2]),
        99,
        (20 + n) as u16,
        0,
    );
    [eth.as_bytes(), ip.as_bytes(), &vec![0x5a; n]].concat()
}

/// A tunnelled frame; `middle` is what follows the outer network header.
fn packet(v6: bool, protocol: u8, middle: &[u8], ecn: u8) -> Vec<u8> {
    let ty = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let eth = Ethernet { ty, ..Ethernet::default() };
    if v6 {
        let half = |last| core::array::from_fn(|i| if i == 7 { last } else { 0xfd });
        let ip = outer_ipv6(half(1), half(2), protocol, middle.len() as u16, ecn, 0xfff1_2345);
        [eth.as_bytes(), ip.as_bytes(), middle].concat()
    } else {
        let len = (20 + middle.len()) as u16;
        let ip = outer_ipv4(Be32::from_octets(SRC), Be32::from_octets(DST), protocol, len, ecn);
        [eth.as_bytes(), ip.as_bytes(), middle].concat()
    }
}

fn over_udp(v6: bool, port: u16, payload: &[u8], ecn: u8) -> Vec<u8> {
    let udp = outer_udp(port, (8 + payload.len()) as u16, 0x8000_0001);
    packet(v6, outer_protocol(true), &[udp.as_bytes(), payload].concat(), ecn)
}

fn tunnelled(kind: usize, v6: bool, vsid: u32, ecn: u8, inner: &[u8]) -> Vec<u8> {
    match kind {
        0 => packet(v6, outer_protocol(false), &[Gre::nvgre(vsid, 7).as_bytes(), inner].concat(), ecn),
        1 => over_udp(v6, PORTS.vxlan, &[Vxlan::new(vsid).as_bytes(), inner].concat(), ecn),
        _ => over_udp(v6, PORTS.geneve, &[Geneve::new(vsid).as_bytes(), inner].concat(), ecn),
    }
}

/// Fills in the outer UDP checksum.
fn sum_up(frame: &mut [u8], v6: bool) {
    let at = Envelope { v6, udp: true }.tunnel_at() as usize - 8;
    frame[at + 6..at + 8].copy_from_slice(&[0; 2]);
    let (eth, outer) = frame.split_at(14);
    assert_eq!(eth.len(), 14);
    let outer =
        if v6 { Outer::V6(parse::ipv6(outer).unwrap().0) } else { Outer::V4(parse::ipv4(outer).unwrap().0) };
    let udp = Udp::read_from_prefix(&frame[at..]).unwrap().0;
    let sum = parse::pseudo_sum(&outer, &udp) + u32::from(checksum::fold(checksum::sum_bytes(&frame[at..])));
    frame[at + 6..at + 8].copy_from_slice(&checksum::finish(sum).to_ne_bytes());
}

proptest! {
    #[test]
    fn every_tunnel_is_found_again(
        kind in 0usize..3, v6 in any::<bool>(), vsid in 0u32..1 << 24, ecn in 0u8..4, n in 0usize..100, sum in any::<bool>(),
    ) {
        let inside = inner(n);
        let mut frame = tunnelled(kind, v6, vsid, ecn, &inside);
        if sum && kind > 0 {
            sum_up(&mut frame, v6);
        }
        let found = parse::tunnel(&frame, PORTS).unwrap().unwrap();
        prop_assert_eq!((found.vsid, found.bytes), (vsid, &*inside));
        prop_assert_eq!((found.outer.class(), found.outer.hop_limit()), (ecn, 64));
        prop_assert_eq!(found.kind.header().vsid(), vsid);
        prop_assert_eq!(found.udp.is_some(), kind > 0);
        prop_assert_eq!(frame.len() - inside.len(), Envelope { v6, udp: kind > 0 }.overhead() as usize);
        if let Some(udp) = found.udp {
            prop_assert!(udp.src.get() >= 0xc000);
        }
        if let Outer::V6(ip) = found.outer {
            prop_assert_eq!((ip.start.get() & 0xf, ip.flow.get()), (1, 0x2345));
        }
        // Any one byte less is noticed, however far in.
        for len in 0..frame.len() {
            prop_assert!(parse::tunnel(&frame[..len], PORTS).is_err(), "{} of {}", len, frame.len());
        }
    }

    #[test]
    fn one_wrong_bit_under_a_checksum_is_noticed(v6 in any::<bool>(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut frame = tunnelled(1, v6, 5001, 0, &inner(40));
        sum_up(&mut frame, v6);
        let start = Envelope { v6, udp: true }.tunnel_at() as usize;
        let at = start + at.index(frame.len() - start);
        frame[at] ^= 1 << bit;
        prop_assert_eq!(parse::tunnel(&frame, PORTS), Err(ParseError::Checksum("UDP")));
    }

    #[test]
    fn layouts_survive_a_round_trip(bytes in proptest::collection::vec(any::<u8>(), 100), at in 0usize..4) {
        macro_rules! survives { ($($t:ty),*) => { $({
            let (value, _) = <$t>::read_from_prefix(&bytes[at..]).unwrap();
            prop_assert_eq!(value.as_bytes(), &bytes[at..at + size_of::<$t>()]);
        })* } }
        survives!(TunnelHeader, TunnelFrame, GreOuter, GreOuter6, UdpOuter, UdpOuter6, Vxlan, Geneve, Udp);
    }
}

#[test]
fn overheads_are_the_documented_ones() {
    let overhead = |v6, udp| Envelope { v6, udp }.overhead();
    assert_eq!([overhead(false, false), overhead(true, false)], [42, 62]);
    assert_eq!([overhead(false, true), overhead(true, true)], [50, 70]);
    assert_eq!(TUNNEL_OVERHEAD_MAX, 70);
}

#[test]
fn refuses_by_name() {
    let check = |frame: &[u8], wanted: Result<bool, ParseError>| {
        assert_eq!(parse::tunnel(frame, PORTS).map(|t| t.is_some()), wanted, "{frame:02x?}");
    };
    let geneve = |start: u16, protocol: u16, options: &[u8]| {
        let header =
            Geneve { start: Be16::new(start), protocol: Be16::new(protocol), vni: Be32::new(5001 << 8) };
        over_udp(false, PORTS.geneve, &[header.as_bytes(), options, &inner(4)].concat(), 0)
    };
    check(&geneve(0, 0x6558, &[]), Ok(true));
    check(&geneve(0x3f, 0x6558, &[]), Ok(true));
    check(&geneve(0x0200, 0x6558, &[0, 1, 2, 1, 9, 9, 9, 9]), Ok(true));
    check(&geneve(0x4000, 0x6558, &[]), Err(ParseError::Version("Geneve")));
    check(&geneve(Geneve::CONTROL, 0x6558, &[]), Err(ParseError::Control));
    check(&geneve(0x0240, 0x6558, &[1, 2, 0x80, 1, 0, 1, 0, 2]), Err(ParseError::Critical));
    check(&geneve(0x0200, 0x6558, &[1, 2, 0x80, 2, 0, 1, 0, 2]), Err(ParseError::Options));
    check(&geneve(0x3f00, 0x6558, &[]), Err(ParseError::Options));
    check(&geneve(0, 0x0800, &[]), Err(ParseError::Malformed("Geneve")));

    let vxlan = |flags: u8| {
        over_udp(true, PORTS.vxlan, &[&[flags, 1, 2, 3, 0, 19, 137, 255], &*inner(4)].concat(), 0)
    };
    check(&vxlan(0xff), Ok(true));
    check(&vxlan(0xf7), Err(ParseError::Malformed("VXLAN")));

    let mut lying = tunnelled(1, false, 5001, 0, &inner(4));
    lying[39] += 1;
    check(&lying, Err(ParseError::Malformed("UDP")));
    lying[38..40].copy_from_slice(&[0, 7]);
    check(&lying, Err(ParseError::Malformed("UDP")));
    lying[38..40].copy_from_slice(&[0, 15]);
    check(&lying, Err(ParseError::Malformed("UDP")));
    check(&over_udp(false, PORTS.vxlan, &[8, 0, 0, 0, 0, 19, 137], 0), Err(ParseError::Truncated("VXLAN")));
    check(
        &packet(false, 47, Gre { flags: Be16::new(0x2001), ..Gre::nvgre(1, 0) }.as_bytes(), 0),
        Err(ParseError::Version("GRE")),
    );
    check(&over_udp(false, 53, &inner(4), 0), Ok(false));
    check(&packet(true, 89, &[0; 40], 0), Ok(false));

    // Behind a hop-by-hop header; and a later fragment, of which nothing can be said.
    let nvgre = [Gre::nvgre(5001, 0).as_bytes(), &inner(4)].concat();
    check(&packet(true, 0, &[&[47, 0, 1, 4, 0, 0, 0, 0], &*nvgre].concat(), 0), Ok(true));
    check(&packet(true, 44, &[&[47, 0, 0, 8, 0, 0, 0, 0], &*nvgre].concat(), 0), Ok(false));
    check(&packet(true, 0, &[47, 2, 1, 4, 0, 0, 0, 0], 0), Err(ParseError::Malformed("IPv6 extension")));
}

#[test]
fn a_tunnel_in_a_tunnel_is_a_frame_of_the_outer_one() {
    let within = tunnelled(1, false, 6001, 0, &inner(4));
    let frame = tunnelled(2, true, 5001, 0, &within);
    let found = parse::tunnel(&frame, PORTS);
    assert!(found.is_ok_and(|t| t.is_some_and(|t| t.vsid == 5001 && matches!(t.kind, Kind::Geneve(..)))));
}
