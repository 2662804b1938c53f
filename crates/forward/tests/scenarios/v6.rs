//! The words of a scenario of IPv6.
//!
//! `v6` and one of `udp`, `tcp`, `syn=MSS`, `ping`, `pong`, `icmp=TYPE`, `ns=TARGET`, `na=TARGET`, `rs`, `ra`,
//! `redirect`, `mld`; `from=`, `to=`, `smac=`, `dmac=`, `gw`, `hops=`, `size=`, `options=HEX`, `chain=TYPES`.

use super::Words;
use std::fmt::Write as _;
use std::net::Ipv6Addr;
use tenet_forward::model::{site, traffic6::link_local};
use tenet_tables::GATEWAY_MAC;
use tenet_wire::parse::{self, Discovery, Transport};
use tenet_wire::{
    Be16, EtherType, Ethernet, Icmp6, Ipv6, LinkOption, Mac, Neighbour, ProtocolNumber, checksum, pseudo6,
};
use zerocopy::{FromBytes, IntoBytes as _};

fn address(words: &Words<'_>, key: &str, me: &site::Machine) -> Option<[u8; 16]> {
    words.0.get(key).map(|v| match *v {
        "local" => link_local(me.mac),
        v => v.parse::<Ipv6Addr>().unwrap_or_else(|_| panic!("{v}")).octets(),
    })
}

/// The frame that a line speaks of.
pub fn inner(words: &Words<'_>, site: &site::Site, me: &site::Machine) -> Vec<u8> {
    let src = address(words, "from", me).unwrap_or(me.ca6());
    let target = address(words, "ns", me).or(address(words, "na", me));
    let [.., a, b, c] = target.unwrap_or_default();
    let natural = match (words.has("rs"), words.has("ns")) {
        (true, _) => "ff02::2".parse::<Ipv6Addr>().unwrap().octets(),
        (_, true) => [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c],
        _ => site::address6(1, 31),
    };
    let dst = address(words, "to", me).unwrap_or(natural);
    let neighbour =
        site.machines.iter().find(|m| m.vsid == me.vsid && (m.ca6() == dst || link_local(m.mac) == dst));
    let mac = match (words.has("gw"), dst[0] == 0xff) {
        (true, _) => GATEWAY_MAC,
        (_, true) => Mac::new([0x33, 0x33, dst[12], dst[13], dst[14], dst[15]]),
        _ => neighbour.map_or(Mac::new([2, 0, 0, 0, 0, 0x99]), |m| Mac::new(m.mac)),
    };
    let own = words.mac("smac").unwrap_or(Mac::new(me.mac));
    let eth = Ethernet { dst: words.mac("dmac").unwrap_or(mac), src: own, ty: EtherType::IPV6 };
    let (protocol, hops, payload) = payload(words, src, dst, own, target);
    let mut chain = Vec::new();
    let mut next = protocol;
    if let Some(types) = words.0.get("chain") {
        let types: Vec<u8> = types.split(',').map(|t| t.parse().unwrap()).collect();
        next = types[0];
        for (i, _) in types.iter().enumerate() {
            chain.extend([types.get(i + 1).copied().unwrap_or(protocol), 0, 0, 1, 0, 0, 0, 0]);
        }
    }
    let ip = Ipv6 {
        start: Be16::new(0x6000),
        flow: Be16::new(0),
        payload_len: Be16::new((chain.len() + payload.len()) as u16),
        next,
        hop_limit: words.number("hops").unwrap_or(hops) as u8,
        src: FromBytes::read_from_bytes(&src).unwrap(),
        dst: FromBytes::read_from_bytes(&dst).unwrap(),
    };
    [eth.as_bytes(), ip.as_bytes(), &chain, &payload].concat()
}

/// Protocol, hop limit and message.
fn payload(
    words: &Words<'_>,
    src: [u8; 16],
    dst: [u8; 16],
    mac: Mac,
    target: Option<[u8; 16]>,
) -> (u8, u32, Vec<u8>) {
    let mut bytes = Vec::new();
    if words.has("udp") || words.has("tcp") || words.has("syn") {
        bytes.extend([0x0f, 0xa0, 0, 53, 0, 0, 0, 0]);
        if !words.has("udp") {
            bytes.extend([0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        }
        if let Some(mss) = words.number("syn") {
            (bytes[12], bytes[13]) = (0x60, 2);
            bytes.extend([2, 4, (mss >> 8) as u8, mss as u8]);
        }
        bytes.resize((words.number("size").unwrap_or(64) as usize - 40).max(bytes.len()), 0);
        let protocol = if words.has("udp") { ProtocolNumber::UDP } else { ProtocolNumber::TCP };
        if protocol == ProtocolNumber::TCP {
            sum(&mut bytes, src, dst, protocol, 16);
        }
        return (protocol, 64, bytes);
    }
    let (ty, hops) = match words {
        w if w.has("ping") => (Icmp6::ECHO, 64),
        w if w.has("pong") => (Icmp6::ECHO_REPLY, 64),
        w if w.has("icmp") => (w.number("icmp").unwrap() as u8, 64),
        w if w.has("rs") => (Icmp6::ROUTER_SOLICITATION, 255),
        w if w.has("ra") => (Icmp6::ROUTER_ADVERTISEMENT, 255),
        w if w.has("redirect") => (Icmp6::REDIRECT, 255),
        w if w.has("mld") => (Icmp6::MLD2_REPORT, 1),
        w if w.has("ns") => (Icmp6::NEIGHBOUR_SOLICITATION, 255),
        w if w.has("na") => (Icmp6::NEIGHBOUR_ADVERTISEMENT, 255),
        _ => panic!("what does this line say?"),
    };
    bytes.extend([ty, 0, 0, 0, 0, 0, 0, 0]);
    if let Some(target) = target {
        bytes.extend(target);
    }
    if let Some(options) = words.0.get("options") {
        bytes.extend(
            (0..options.len() / 2).map(|i| u8::from_str_radix(&options[2 * i..2 * i + 2], 16).unwrap()),
        );
    } else if target.is_some() && src != [0; 16] {
        let kind = if words.has("ns") { LinkOption::SOURCE } else { LinkOption::TARGET };
        bytes.extend(LinkOption::new(kind, mac).as_bytes());
    } else if target.is_none() {
        bytes.resize((words.number("size").unwrap_or(64) as usize - 40).max(8), 0);
    }
    sum(&mut bytes, src, dst, ProtocolNumber::ICMPV6, 2);
    (ProtocolNumber::ICMPV6, hops, bytes)
}

fn sum(message: &mut [u8], src: [u8; 16], dst: [u8; 16], protocol: u8, at: usize) {
    let half = |a: [u8; 16]| FromBytes::read_from_bytes(&a).unwrap();
    let pseudo = pseudo6(&half(src), &half(dst), message.len() as u16, protocol);
    let sum = checksum::finish(checksum::add(pseudo, checksum::sum_bytes(message)));
    message[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

fn show(octets: &[u16; 8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::read_from_bytes(octets.as_bytes()).unwrap())
}

/// What a packet says, its checksum checked.
pub fn packet(ip: &Ipv6, transport: &Transport<'_>) -> String {
    let mut text = format!("{} > {} hops {}", show(&ip.src), show(&ip.dst), ip.hop_limit);
    let message = transport.bytes;
    let summed = matches!(transport.protocol, ProtocolNumber::ICMPV6 | ProtocolNumber::TCP);
    if summed && transport.fragment.is_none() {
        let pseudo = pseudo6(&ip.src, &ip.dst, message.len() as u16, transport.protocol);
        assert_eq!(checksum::finish(checksum::add(pseudo, checksum::sum_bytes(message))), 0, "{text}");
    }
    if transport.protocol == ProtocolNumber::TCP && message.len() >= 24 && message[20] == 2 {
        write!(text, " mss {}", u16::from_be_bytes([message[22], message[23]])).unwrap();
    }
    if transport.protocol != ProtocolNumber::ICMPV6 || transport.fragment.is_some() {
        return text;
    }
    let (icmp, quote) = Icmp6::read_from_prefix(message).unwrap();
    let mac = |m: Mac| m.octets().map(|o| format!("{o:02x}")).join(":");
    match parse::discovery(message) {
        Ok(Some(Discovery::RouterAdvertisement(nd))) => write!(
            text,
            " ra from {} mtu {} prefix {}/{} flags {:02x} lifetime {}",
            mac(nd.link.mac),
            nd.mtu.get(),
            show(&nd.prefix),
            nd.prefix_len_flags.get() >> 8,
            nd.prefix_len_flags.get() & 0xff,
            nd.lifetime.get()
        ),
        Ok(Some(Discovery::Neighbour(nd, options))) if icmp.ty() == Icmp6::NEIGHBOUR_ADVERTISEMENT => {
            let flags = nd.flags.get();
            let letter = |flag, letter| if flags & flag != 0 { letter } else { "-" };
            let option = options.flatten().next();
            write!(
                text,
                " na {}{}{} {} is at {}",
                letter(Neighbour::ROUTER, "r"),
                letter(Neighbour::SOLICITED, "s"),
                letter(Neighbour::OVERRIDE, "o"),
                show(&nd.target),
                option.map_or("?".to_owned(), |(o, _)| mac(o.mac))
            )
        }
        Ok(Some(Discovery::Neighbour(nd, _))) => write!(text, " ns {}", show(&nd.target)),
        _ => write!(text, " icmp {}/{}", icmp.ty(), icmp.ty_code.get() & 0xff),
    }
    .unwrap();
    if icmp.ty() == Icmp6::TOO_BIG {
        write!(text, " mtu {}", icmp.rest.get()).unwrap();
    }
    if Icmp6::is_error(icmp.ty()) {
        let (about, _) = Ipv6::read_from_prefix(quote).unwrap();
        write!(text, " about {} > {}", show(&about.src), show(&about.dst)).unwrap();
    }
    text
}
