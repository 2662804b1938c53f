//! Scenarios as text: `scenarios.txt` says what comes in and what becomes of it.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use tenet_forward::model::{self, Outcome, site};
use tenet_forward::{Action, HubFrame};
use tenet_tables::{Bucket, GATEWAY_MAC, PORT_ACTIVE};
use tenet_wire::parse::{self, Payload};
use tenet_wire::{
    Arp, ArpFrame, Be16, Be32, EtherType, Ethernet, Gre, GreOuter, Icmp, Ipv4, Mac, Ports, ProtocolNumber,
    checksum, outer_ipv4,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

#[path = "scenarios/v6.rs"]
mod v6;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios.txt");

#[test]
fn scenarios_end_as_written() {
    let interfaces = std::array::from_fn(|i| 100 + i as u32);
    let site = site::site(interfaces, 99);
    let written = std::fs::read_to_string(FILE).unwrap();
    let mut now = String::new();
    for line in written.lines() {
        let scenario = line.split(" => ").next().unwrap().trim_end();
        if scenario.is_empty() || scenario.starts_with('#') {
            writeln!(now, "{line}").unwrap();
        } else {
            writeln!(now, "{scenario} => {}", play(&site, scenario)).unwrap();
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(FILE, &now).unwrap();
        return;
    }
    for (wanted, got) in written.lines().zip(now.lines()) {
        assert_eq!(wanted, got, "UPDATE=1 writes the answers anew");
    }
}

/// A line's words: `key=value`, or a bare word.
struct Words<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    fn new(words: impl Iterator<Item = &'a str>) -> Self {
        Self(words.map(|w| w.split_once('=').unwrap_or((w, ""))).collect())
    }
    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
    fn ip(&self, key: &str) -> Option<[u8; 4]> {
        self.0.get(key).map(|v| v.parse::<std::net::Ipv4Addr>().unwrap().octets())
    }
    fn mac(&self, key: &str) -> Option<Mac> {
        let octet = |o: &str| u8::from_str_radix(o, 16).unwrap();
        self.0.get(key).map(|v| Mac::new(v.split(':').map(octet).collect::<Vec<_>>().try_into().unwrap()))
    }
    fn number(&self, key: &str) -> Option<u32> {
        self.0.get(key).map(|v| v.parse().unwrap())
    }
    fn hex(&self, key: &str) -> Option<u16> {
        self.0.get(key).map(|v| u16::from_str_radix(v, 16).unwrap())
    }
}

fn play(site: &site::Site, scenario: &str) -> String {
    let mut words = scenario.split_whitespace();
    let (kind, who) = (words.next().unwrap(), words.next().unwrap());
    let words = Words::new(words);
    if kind == "port" {
        let index: usize = who.parse().unwrap();
        let me = &site.machines[index];
        let bytes = if words.has("v6") {
            v6::inner(&words, site, me)
        } else {
            inner(&words, site, me.vsid, me.ca, Mac::new(me.mac))
        };
        let mut image = site.image.clone();
        let meta = model::meta(&bytes, site.interfaces[index]);
        let mut bucket = Bucket { flood_tokens: 1_000_000, ..Bucket::default() };
        let outcome = model::port_in(&bytes, &meta, &mut image, &mut bucket, 0);
        assert_eq!(outcome.activated, image != site.image);
        assert!(!outcome.activated || image.ports[&meta.ifindex].state == PORT_ACTIVE);
        return tell(&outcome, site);
    }
    let vsid = words.number("vsid").unwrap();
    let from = words.ip("from").unwrap_or([10, 1, 1, 31]);
    let sender = site.machines.iter().find(|m| m.ca == from && m.vsid / 1000 == vsid / 1000);
    let bytes = inner(&words, site, vsid, from, sender.map_or(Mac::new([2; 6]), |m| Mac::new(m.mac)));
    let bytes = outer(&words, who.parse::<std::net::Ipv4Addr>().unwrap().octets(), vsid, &bytes);
    tell(&model::uplink_in(&bytes, &model::meta(&bytes, site.uplink), &site.image), site)
}

/// The frame that a line speaks of.
fn inner(words: &Words<'_>, site: &site::Site, vsid: u32, own: [u8; 4], mac: Mac) -> Vec<u8> {
    let (src, dst) = (words.ip("from").unwrap_or(own), words.ip("to").unwrap_or([10, 1, 1, 31]));
    let arp = words.has("arp");
    let target = site.machines.iter().find(|m| m.ca == dst && m.vsid == vsid).map(|m| Mac::new(m.mac));
    let natural = match (words.has("gw"), arp) {
        (true, _) => GATEWAY_MAC,
        (false, true) => Mac::BROADCAST,
        (false, false) => target.unwrap_or(Mac::new([2, 0, 0, 0, 0, 0x99])),
    };
    let mut eth = Ethernet {
        dst: words.mac("dmac").unwrap_or(natural),
        src: words.mac("smac").unwrap_or(mac),
        ty: EtherType::IPV4,
    };
    let (src, dst) = (Be32::from_octets(src), Be32::from_octets(dst));
    if let Some(ty) = words.hex("raw") {
        eth.ty = Be16::new(ty);
        return [eth.as_bytes(), &[0; 46]].concat();
    }
    if arp {
        eth.ty = EtherType::ARP;
        let question =
            Arp { operation: Arp::REQUEST, sender_mac: eth.src, sender: src, target: dst, ..Arp::default() };
        let arp = Arp { operation: Arp::REQUEST, target_mac: Mac::default(), ..question.reply(eth.src).arp };
        return ArpFrame { eth, arp: Arp { sender: src, target: dst, ..arp } }.as_bytes().to_vec();
    }
    let total = words.number("size").unwrap_or(64) as u16;
    let icmp = words.has("ping") || words.has("pong");
    let ip = Ipv4 {
        version_ihl: Ipv4::PLAIN,
        tos: words.number("tos").unwrap_or(0) as u8,
        total_len: Be16::new(total),
        id: Be16::new(1),
        fragment: Be16::new(if words.has("df") { Ipv4::DONT_FRAGMENT } else { 0 }),
        ttl: words.number("ttl").unwrap_or(64) as u8,
        protocol: if icmp { ProtocolNumber::ICMP } else { ProtocolNumber::UDP },
        checksum: Be16::new(0),
        src,
        dst,
    }
    .with_checksum();
    let start = if icmp {
        let ty = if words.has("ping") { Icmp::ECHO } else { Icmp::ECHO_REPLY };
        let mut icmp = Icmp { ty, id: Be16::new(7), rest: Be16::new(1), ..Icmp::default() };
        icmp.checksum = Be16::from_half(checksum::finish(checksum::sum_bytes(icmp.as_bytes())));
        icmp.as_bytes().to_vec()
    } else {
        Ports { src: Be16::new(4000), dst: Be16::new(53) }.as_bytes().to_vec()
    };
    let mut bytes = [eth.as_bytes(), ip.as_bytes(), &start].concat();
    bytes.resize(usize::from(total) + 14, 0);
    bytes
}

fn outer(words: &Words<'_>, from: [u8; 4], vsid: u32, inner: &[u8]) -> Vec<u8> {
    let to = words.ip("dst").unwrap_or(site::OWN);
    let ecn = words.number("ecn").unwrap_or(0) as u8;
    let mut ip = outer_ipv4(
        Be32::from_octets(from),
        Be32::from_octets(to),
        ProtocolNumber::GRE,
        (inner.len() + 28) as u16,
        ecn,
    );
    ip.ttl = words.number("ottl").map_or(ip.ttl, |t| t as u8);
    ip.fragment = words.hex("fragment").map_or(ip.fragment, Be16::new);
    let mut gre = Gre::nvgre(vsid, 0);
    gre.flags = words.hex("flags").map_or(gre.flags, Be16::new);
    gre.protocol = words.hex("inner").map_or(gre.protocol, Be16::new);
    let eth = Ethernet { ty: EtherType::IPV4, ..Ethernet::default() };
    [eth.as_bytes(), ip.with_checksum().as_bytes(), gre.as_bytes(), inner].concat()
}

/// What became of a frame, with its headers decoded and its checksums checked.
fn tell(outcome: &Outcome, site: &site::Site) -> String {
    let bytes = &outcome.frame.bytes;
    let mut text = match outcome.action {
        Action::Pass => "pass".to_owned(),
        Action::Drop(reason) | Action::Slow(reason) => format!("drop {}", reason.name()),
        Action::Port { ifindex, peer } => {
            let port = site.interfaces.iter().position(|i| *i == ifindex).unwrap();
            format!("port {port}{} {}", if peer { " by peer" } else { "" }, frame(bytes))
        }
        Action::Hub { ifindex } => {
            let port = site.interfaces.iter().position(|i| *i == ifindex).unwrap();
            format!("port {port} by the hub {}", frame(&bytes[HubFrame::LEN as usize..]))
        }
        Action::Back(None) => format!("answer {}", frame(bytes)),
        Action::Back(Some(reason)) => format!("error {} {}", reason.name(), frame(bytes)),
        Action::Wire | Action::WireByMark => tunnel(bytes),
    };
    if outcome.clamped {
        text.push_str(", clamped");
    }
    for (ifindex, copy) in &outcome.frame.to_ports {
        let port = site.interfaces.iter().position(|i| i == ifindex).unwrap();
        assert!(parse::frame(copy).is_ok());
        write!(text, ", copy to port {port}").unwrap();
    }
    for copy in &outcome.frame.to_wire {
        write!(text, ", copy {}", tunnel(copy)).unwrap();
    }
    if outcome.moved != 0 {
        let port = site.interfaces.iter().position(|i| *i == outcome.moved).unwrap();
        write!(text, ", port {port} has moved").unwrap();
    }
    if outcome.activated {
        text.push_str(", activated");
    }
    if let Some(kind) = outcome.note.kind {
        let ca = std::net::IpAddr::from(outcome.note.ca);
        write!(text, ", event {} {ca}", kind.name()).unwrap();
    }
    text
}

fn tunnel(bytes: &[u8]) -> String {
    let found = parse::nvgre(bytes).unwrap().unwrap();
    assert_eq!(checksum::finish(checksum::sum_bytes(&bytes[14..34])), 0);
    let inner = &bytes[GreOuter::LEN as usize - 14..];
    format!(
        "wire {:?} to {:?} ttl {} vsid {} ({})",
        found.outer.src,
        found.outer.dst,
        found.outer.ttl,
        found.gre.vsid(),
        frame(inner)
    )
}

fn frame(bytes: &[u8]) -> String {
    let mac = |m: Mac| m.octets().map(|o| format!("{o:02x}")).join(":");
    let frame = parse::frame(bytes).unwrap();
    let link = format!("{} > {}", mac(frame.eth.src), mac(frame.eth.dst));
    match frame.payload {
        Payload::Arp(arp) if arp.operation == Arp::REPLY => {
            format!("{link} arp {:?} is at {}", arp.sender, mac(arp.sender_mac))
        }
        Payload::Arp(arp) => format!("{link} arp who has {:?}", arp.target),
        Payload::Ipv4(ip, payload) => {
            assert_eq!(checksum::finish(checksum::sum_bytes(&bytes[14..34])), 0, "{ip:?}");
            let mut text = format!("{link} {:?} > {:?} ttl {}", ip.src, ip.dst, ip.ttl);
            if ip.tos & Ipv4::ECN != 0 {
                write!(text, " ecn {}", ip.tos & Ipv4::ECN).unwrap();
            }
            if ip.protocol == ProtocolNumber::ICMP {
                assert_eq!(checksum::finish(checksum::sum_bytes(payload)), 0);
                let (icmp, _) = Icmp::read_from_prefix(payload).unwrap();
                write!(text, " icmp {}/{}", icmp.ty, icmp.code).unwrap();
                if icmp.code == Icmp::FRAGMENTATION_NEEDED {
                    write!(text, " mtu {}", icmp.rest.get()).unwrap();
                }
            }
            text
        }
        Payload::Ipv6(ip, transport) => format!("{link} {}", v6::packet(&ip, &transport)),
        Payload::Other(_) => format!("{link} {:?}", frame.eth.ty),
    }
}
