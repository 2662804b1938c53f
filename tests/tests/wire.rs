//! What is on the wire, judged by tshark.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;
use tenet_hostnet::Links;
use tenet_lab::tool::{Probe, Stream, ask};
use tenet_tests::frame::{self, Packet};
use tenet_tests::{Fixture, SITE, Watch, World, pcap, skipped};
use tenet_wire::{Mac, ProtocolNumber, parse};

static LAB: Fixture = Fixture::new("wire", SITE);

const PATIENCE: Duration = Duration::from_secs(3);
/// RFC 7637 §3.4: for messages between virtualization endpoints.
const PROBES: u32 = 0xff_ffff;
const VSIDS: [u32; 4] = [5001, 5002, 6001, 6002];
const PAS: [&str; 2] = ["192.168.1.10", "192.168.2.20"];

#[test]
fn every_frame_on_the_wire_is_good_nvgre() {
    let Some(world) = LAB.world() else { return };
    let router = world.lab.router().unwrap();
    without_offloads(&world);
    let watch = Watch::start(&router, &world.lab.host("h1").unwrap().record().router_device, None);
    make_traffic(&world);
    let frames: Vec<_> = watch.stop().into_iter().filter(|f| is_gre(f)).collect();
    assert!(frames.len() > 500, "{} NVGRE frames", frames.len());
    check_flows(&frames);
    check_kinds(&frames);
    if !pcap::has_tshark() {
        return skipped("tshark is not installed");
    }
    let dir = pcap::TempDir::new("wire");
    let path = dir.0.join("wire.pcap");
    pcap::write(&path, &frames);
    check_by_tshark(&path, frames.len());
}

/// Underlay devices without offloads: what is captured is what a real NIC would send.
fn without_offloads(world: &World) {
    let router = Links::in_netns(&world.lab.router().unwrap()).unwrap();
    for host in &world.lab.record().hosts {
        router.set_offloads(&host.router_device, false).unwrap();
        let netns = world.lab.host(host.name.as_str()).unwrap().netns().clone();
        Links::in_netns(&netns).unwrap().set_offloads(&host.uplink, false).unwrap();
    }
}

fn make_traffic(world: &World) {
    tenet_tests::check_reach(world);
    let (sql, web, app) = (world.nic("contoso/sql"), world.nic("contoso/web"), world.nic("contoso/app"));
    let gateway = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
    assert!(sql.ping(web.mac, web.ip) && web.ping(gateway, app.ip), "ping");
    assert_eq!(sql.who_has(web.ip, Some(web.mac), PATIENCE), Some(web.mac), "unicast ARP");
    let broadcast =
        Packet::udp((sql.ip, 5), ([10, 1, 1, 255].into(), 9), b"odd").frame(Mac::BROADCAST, sql.mac);
    sql.send(&broadcast);
    let closed = Packet::udp((sql.ip, 4000), (web.ip, 4001), b"closed port").frame(web.mac, sql.mac);
    assert_eq!(sql.error(&closed).map(|e| (e.from, e.code)), Some((web.ip, 3)), "an error of the VM itself");
    // Datagrams of several sizes, and one with options in its header.
    for size in [0, 1, 17, 1400, 1430] {
        sql.send(&Packet::udp((sql.ip, 5), (web.ip, 7007), &vec![3; size]).frame(web.mac, sql.mac));
    }
    let vm = |name: &str| world.lab.vm(name).unwrap().netns().clone();
    let address = |name: &str| IpAddr::V4(world.ip(name));
    for _ in 0..40 {
        assert!(ask(&vm("contoso/sql"), address("contoso/web"), PATIENCE).unwrap().is_some());
        assert!(ask(&vm("fabrikam/app"), address("fabrikam/web"), PATIENCE).unwrap().is_some());
    }
    let pace = Duration::from_millis(50);
    let streams = [
        Stream::start(&vm("contoso/sql"), address("contoso/web"), pace).unwrap(),
        Stream::start(&vm("contoso/web"), address("contoso/app"), pace).unwrap(),
        Stream::start(&vm("fabrikam/log"), address("fabrikam/sql"), pace).unwrap(),
    ];
    let probe = Probe::start(&vm("fabrikam/sql"), address("fabrikam/log"), "fabrikam/log", 500).unwrap();
    // Enough of the probe's questions are out when a second asker, with its own pace, got this many answers.
    let socket = vm("contoso/web").run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..500 {
        socket.send_to(b"x", (world.ip("contoso/log"), 7007)).unwrap();
        socket.recv(&mut [0; 100]).unwrap();
    }
    for stream in streams {
        let report = stream.stop().unwrap();
        assert!(
            report.received.in_order && report.received.bytes == report.sent && report.sent > 0,
            "{report:?}"
        );
    }
    let report = probe.stop().unwrap();
    assert!(report.answered > 0 && report.strangers == 0, "{report:?}");
}

fn is_gre(frame: &[u8]) -> bool {
    tenet_tests::ipv4(frame).is_some_and(|(header, _)| header.protocol == ProtocolNumber::GRE)
}

/// One flow, one FlowID; many flows, many FlowIDs.
fn check_flows(frames: &[Vec<u8>]) {
    type Flow = (u32, Ipv4Addr, Ipv4Addr, u8, Vec<u8>);
    let mut flows: BTreeMap<Flow, BTreeSet<u8>> = BTreeMap::new();
    for bytes in frames {
        let nvgre = parse::nvgre(bytes).unwrap().unwrap();
        let parse::Payload::Ipv4(ip, payload) = nvgre.inner.payload else { continue };
        let has_ports = [ProtocolNumber::TCP, ProtocolNumber::UDP].contains(&ip.protocol);
        let ports = if has_ports { payload[..4].to_vec() } else { Vec::new() };
        let flow = (nvgre.gre.vsid(), frame::ip(ip.src), frame::ip(ip.dst), ip.protocol, ports);
        flows.entry(flow).or_default().insert(nvgre.gre.flow());
    }
    let all: BTreeSet<u8> = flows.values().flatten().copied().collect();
    println!("{} flows, {} FlowIDs", flows.len(), all.len());
    for (flow, ids) in &flows {
        assert_eq!(ids.len(), 1, "{flow:?} has the FlowIDs {ids:?}");
    }
    assert!(
        flows.len() > 60 && all.len() > flows.len().min(256) / 3,
        "{} FlowIDs of {} flows",
        all.len(),
        flows.len()
    );
}

/// All kinds of traffic were there, or the rest proves little.
fn check_kinds(frames: &[Vec<u8>]) {
    let mut kinds = BTreeSet::new();
    for bytes in frames {
        let inner = parse::nvgre(bytes).unwrap().unwrap().inner;
        kinds.insert(match inner.payload {
            parse::Payload::Arp(_) => "arp",
            parse::Payload::Ipv4(..) if inner.eth.dst == Mac::BROADCAST => "broadcast",
            parse::Payload::Ipv4(ip, payload) => match (ip.protocol, payload.first()) {
                (ProtocolNumber::ICMP, Some(3)) => "icmp error",
                (ProtocolNumber::ICMP, _) => "icmp",
                (ProtocolNumber::TCP, _) => "tcp",
                (ProtocolNumber::UDP, _) => "udp",
                other => panic!("nobody sent {other:?}"),
            },
            parse::Payload::Ipv6(..) | parse::Payload::Other(_) => panic!("nobody sent {:?}", inner.eth),
        });
    }
    assert_eq!(kinds, BTreeSet::from(["arp", "broadcast", "icmp", "icmp error", "tcp", "udp"]));
}

fn check_by_tshark(path: &std::path::Path, count: usize) {
    let fields = [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ip.flags.df",
        "ip.checksum.status",
        "gre.flags_and_version",
        "gre.proto",
        "gre.key",
        "tcp.checksum.status",
        "udp.checksum.status",
        "icmp.checksum.status",
        "_ws.malformed",
        "eth.type",
        "_ws.expert.message",
    ];
    let lines = pcap::fields(path, "", &fields);
    assert_eq!(lines.len(), count);
    let (mut vsids, mut summed) = (BTreeSet::new(), 0);
    for (at, line) in lines.iter().enumerate() {
        let get =
            |name: &str| line[fields.iter().position(|f| *f == name).unwrap()].split(',').collect::<Vec<_>>();
        let whole = format!("frame {}: {line:?}", at + 1);
        assert!(get("_ws.malformed")[0].is_empty(), "malformed, {whole}");
        assert!(get("frame.protocols")[0].starts_with("eth:ethertype:ip:gre:eth:ethertype:"), "{whole}");
        assert!(PAS.contains(&get("ip.src")[0]) && PAS.contains(&get("ip.dst")[0]), "{whole}");
        assert!(
            ["1", "True"].contains(&get("ip.flags.df")[0]),
            "the outer header may not be fragmented, {whole}"
        );
        assert_eq!(get("gre.flags_and_version"), ["0x2000"], "{whole}");
        assert_eq!(get("gre.proto"), ["0x6558"], "{whole}");
        assert!(!get("eth.type").contains(&"0x8100"), "tagged, {whole}");
        let key = u32::from_str_radix(get("gre.key")[0].trim_start_matches("0x"), 16).unwrap();
        vsids.insert(key >> 8);
        for status in
            ["ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status"]
        {
            for value in get(status) {
                // An ICMP error quotes a packet cut short, whose checksum tshark leaves alone ("2").
                let quoted = !get("icmp.checksum.status")[0].is_empty() && value == "2";
                assert!(["1", "Good", ""].contains(&value) || quoted, "{status} is {value}, {whole}");
                summed += usize::from(!value.is_empty());
            }
        }
    }
    println!("{count} frames, {summed} checksums");
    // The agents' own probes are on their way, too, by the number that no virtual subnet has.
    vsids.remove(&PROBES);
    assert_eq!(vsids, VSIDS.into(), "VSIDs on the wire");
    assert!(summed > 3 * count - 100, "{summed} checksums in {count} frames");
}
