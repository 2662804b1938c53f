//! Every header: taken apart, put together in a dirty buffer, too short, lying about its length.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::prelude::*;
use tenet_wire::parse::{self, ParseError, Payload, TunnelPorts};
use tenet_wire::{
    Arp, ArpFrame, Be16, Be32, EtherType, Ethernet, Gre, GreOuter, Icmp, IcmpErrorFrame, Ipv4, Ipv4Frame,
    Mac, Ports, ProtocolNumber, QUOTE, TunnelFrame, checksum, outer_ipv4,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes in, bytes out; nothing beyond the header is touched, and one byte less is refused.
fn survives<T: FromBytes + IntoBytes + Immutable>(bytes: &[u8]) {
    let len = size_of::<T>();
    let (value, _) = T::read_from_prefix(bytes).unwrap();
    let mut dirty = vec![0xa5; len + 3];
    value.write_to_prefix(&mut dirty).unwrap();
    assert_eq!(&dirty[..len], &bytes[..len]);
    assert_eq!(&dirty[len..], [0xa5; 3]);
    assert!(T::read_from_prefix(&bytes[..len - 1]).is_err());
}

proptest! {
    #[test]
    fn headers_survive_a_round_trip_at_any_alignment(bytes in proptest::collection::vec(any::<u8>(), 100), at in 0usize..4) {
        let bytes = &bytes[at..];
        survives::<Ethernet>(bytes);
        survives::<Arp>(bytes);
        survives::<ArpFrame>(bytes);
        survives::<Ipv4>(bytes);
        survives::<Ipv4Frame>(bytes);
        survives::<Ports>(bytes);
        survives::<Icmp>(bytes);
        survives::<IcmpErrorFrame>(bytes);
        survives::<Gre>(bytes);
        survives::<GreOuter>(bytes);
        survives::<TunnelFrame>(bytes);
    }

    #[test]
    fn parsers_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse::frame(&bytes);
        let _ = parse::ipv4(&bytes);
        let _ = parse::ipv6(&bytes);
        let _ = parse::nvgre(&bytes);
        let _ = parse::tunnel(&bytes, TunnelPorts::default());
    }

    #[test]
    fn numbers_keep_their_value(a in any::<u16>(), b in any::<u32>()) {
        prop_assert_eq!(Be16::new(a).get(), a);
        let bytes = Be16::new(a);
        prop_assert_eq!(bytes.as_bytes(), a.to_be_bytes());
        prop_assert_eq!(Be32::new(b).get(), b);
        prop_assert_eq!(Be32::new(b).octets(), b.to_be_bytes());
        prop_assert_eq!(Be32::from_octets(b.to_be_bytes()), Be32::new(b));
        prop_assert_eq!(Be32::from_word(Be32::new(b).word()), Be32::new(b));
    }

    #[test]
    fn macs_keep_their_octets(octets in any::<[u8; 6]>()) {
        prop_assert_eq!(Mac::new(octets).octets(), octets);
        prop_assert_eq!(Mac::new(octets).is_group(), octets[0] & 1 == 1);
    }

    #[test]
    fn a_header_with_its_checksum_sums_up_to_nothing(bytes in any::<[u8; 20]>()) {
        let ip = Ipv4::read_from_bytes(&bytes).unwrap().with_checksum();
        prop_assert_eq!(checksum::finish(checksum::sum_bytes(ip.as_bytes())), 0);
    }

    #[test]
    fn a_mended_checksum_is_right(bytes in any::<[u8; 20]>(), ttl in any::<u8>(), tos in any::<u8>()) {
        let mut ip = Ipv4::read_from_bytes(&bytes).unwrap().with_checksum();
        ip.set_ttl(ttl);
        ip.set_tos(tos);
        ip.decrement_ttl();
        prop_assert_eq!(ip.ttl, ttl.wrapping_sub(1));
        prop_assert_eq!(ip.tos, tos);
        // All ones and all zeros are the same sum; a receiver accepts either (RFC 1624 §3).
        prop_assert_eq!(checksum::finish(checksum::sum_bytes(ip.as_bytes())), 0);
    }

    #[test]
    fn sums_of_halves_and_of_bytes_agree(halves in any::<[u16; 14]>()) {
        let (a, b) = (checksum::sum(&halves), checksum::sum_bytes(halves.as_bytes()));
        prop_assert_eq!(checksum::finish(a), checksum::finish(b));
    }

    #[test]
    fn lengths_are_believed_only_if_they_can_be(first in any::<u8>(), total in any::<u16>(), available in 0u32..70_000) {
        let ip = Ipv4 { version_ihl: first, total_len: Be16::new(total), ..Ipv4::default() };
        let header = u32::from(first & 0xf) * 4;
        let possible = first >> 4 == 4 && header >= 20 && header <= u32::from(total) && u32::from(total) <= available;
        prop_assert_eq!(ip.fits(available), possible);
    }

    #[test]
    fn an_nvgre_frame_is_found_again(vsid in 0u32..1 << 24, flow in any::<u8>(), src in any::<[u8; 4]>(), ecn in 0u8..4) {
        let inner = Ethernet { dst: Mac::BROADCAST, src: Mac::new([2, 0, 0, 0, 0, 1]), ty: Be16::new(0x1234) };
        let (src, dst) = (Be32::from_octets(src), Be32::from_octets([192, 168, 2, 20]));
        let outer = GreOuter {
            eth: Ethernet { ty: EtherType::IPV4, ..Ethernet::default() },
            ip: outer_ipv4(src, dst, ProtocolNumber::GRE, (GreOuter::LEN - Ethernet::LEN) as u16, ecn),
            tunnel: Gre::nvgre(vsid, flow).into(),
            inner,
        };
        let found = parse::nvgre(outer.as_bytes()).unwrap().unwrap();
        prop_assert_eq!((found.gre.vsid(), found.gre.flow()), (vsid, flow));
        prop_assert_eq!((found.outer.src, found.outer.dst, found.outer.tos), (src, dst, ecn));
        prop_assert!(found.outer.dont_fragment() && !found.outer.is_fragment());
        prop_assert_eq!(found.inner.eth, inner);
    }

    #[test]
    fn an_error_is_a_sound_packet(quote in any::<[u16; QUOTE / 2]>(), mtu in any::<u16>()) {
        let mut error = IcmpErrorFrame { quote, ..IcmpErrorFrame::default() };
        let (gateway, vm) = (Be32::from_octets([10, 1, 1, 1]), Be32::from_octets([10, 1, 1, 11]));
        error.complete((Mac::new([2; 6]), gateway), (Mac::new([4; 6]), vm), Icmp::UNREACHABLE, 4, mtu);
        let frame = parse::frame(error.as_bytes()).unwrap();
        let Payload::Ipv4(ip, payload) = frame.payload else { panic!("{frame:?}") };
        prop_assert_eq!((ip.src, ip.dst), (gateway, vm));
        prop_assert_eq!(checksum::finish(checksum::sum_bytes(payload)), 0);
        prop_assert_eq!(payload[6..8].to_vec(), mtu.to_be_bytes());
        prop_assert_eq!(&payload[8..], quote.as_bytes());
    }
}

#[test]
fn sums_the_example_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!((!checksum::finish(checksum::sum_bytes(&bytes))).to_ne_bytes(), [0xdd, 0xf2]);
}

#[test]
fn mends_the_example_of_rfc_1624() {
    // §4: a sum of 0xdd2f, a half that goes from 0x5555 to 0x3285; the right answer is zero.
    let swap = |n: u16| n.to_be();
    assert_eq!(checksum::update(swap(0xdd2f), swap(0x5555), swap(0x3285)), 0);
}

#[test]
fn arp_answers_stand_on_the_wire_as_rfc_826_says() {
    let request = Arp {
        operation: Arp::REQUEST,
        sender_mac: Mac::new([2, 0, 0, 0, 0, 0x11]),
        sender: Be32::from_octets([10, 1, 1, 11]),
        target: Be32::from_octets([10, 1, 1, 12]),
        ..Arp::default()
    };
    #[rustfmt::skip]
    let wanted = [
        2, 0, 0, 0, 0, 0x11,  2, 0, 0, 0, 0, 0x12,  8, 6,
        0, 1,  8, 0,  6, 4,  0, 2,
        2, 0, 0, 0, 0, 0x12,  10, 1, 1, 12,
        2, 0, 0, 0, 0, 0x11,  10, 1, 1, 11,
    ];
    assert_eq!(request.reply(Mac::new([2, 0, 0, 0, 0, 0x12])).as_bytes(), wanted);
}

#[test]
fn nvgre_headers_stand_on_the_wire_as_rfc_7637_says() {
    assert_eq!(Gre::nvgre(0x12_3456, 0x78).as_bytes(), [0x20, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0x78]);
}

#[test]
fn refuses_what_lies() {
    let check = |bytes: &[u8], wanted: ParseError| assert_eq!(parse::frame(bytes), Err(wanted));
    check(&[0; 13], ParseError::Truncated("Ethernet"));
    let mut frame = [0u8; 34];
    frame[12] = 8;
    check(&frame[..33], ParseError::Truncated("IPv4"));
    frame[14] = 0x65;
    check(&frame, ParseError::Malformed("IPv4"));
    frame[14] = 0x44;
    check(&frame, ParseError::Malformed("IPv4"));
    frame[14] = 0x45;
    frame[17] = 21;
    check(&frame, ParseError::Malformed("IPv4"));
    frame[13] = 6;
    check(&frame, ParseError::Truncated("ARP"));
    let arp = [0u8; 42];
    let mut arp_frame = arp;
    arp_frame[12..14].copy_from_slice(&[8, 6]);
    check(&arp_frame, ParseError::Malformed("ARP"));
}

#[test]
fn refuses_gre_flags_that_rfc_7637_forbids() {
    let check = |flags: u16, protocol: u16, wanted: Result<bool, ParseError>| {
        let outer = GreOuter {
            eth: Ethernet { ty: EtherType::IPV4, ..Ethernet::default() },
            ip: outer_ipv4(Be32::default(), Be32::default(), ProtocolNumber::GRE, 42, 0),
            tunnel: Gre {
                flags: Be16::new(flags),
                protocol: Be16::new(protocol),
                key: Be32::new(0x0013_8900),
            }
            .into(),
            inner: Ethernet::default(),
        };
        assert_eq!(parse::nvgre(outer.as_bytes()).map(|f| f.is_some()), wanted, "{flags:#x} {protocol:#x}");
    };
    check(0x2000, 0x6558, Ok(true));
    check(0x0000, 0x6558, Err(ParseError::Malformed("GRE")));
    check(0xa000, 0x6558, Err(ParseError::Malformed("GRE")));
    check(0x3000, 0x6558, Err(ParseError::Malformed("GRE")));
    check(0x2001, 0x6558, Err(ParseError::Malformed("GRE")));
    check(0x2000, 0x0800, Ok(false));
}
