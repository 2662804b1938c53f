//! What a VM may not say, or says to nobody, under every method and in both families: it is counted by name, and nobody
//! hears it.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};
use tenet_hostnet::Links;
use tenet_model::{Family, Method};
use tenet_tests::tunnel::{Packet, tunnel};
use tenet_tests::{DUAL, Fixture, Setup, Watch, World, binary, frame, until};
use tenet_wire::Mac;

static OVER_V4: Fixture = Fixture::set_up("sp4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("sp6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";
const LIAR: &str = "contoso/sql";
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
const MARKER: &[u8] = b"forged inside";
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn no_vm_speaks_as_another_over_ipv4() {
    lies(&OVER_V4);
}

#[test]
fn no_vm_speaks_as_another_over_ipv6() {
    lies(&OVER_V6);
}

fn lies(lab: &'static Fixture) {
    let Some(world) = lab.world() else { return };
    let mut wrong = Vec::new();
    for method in Method::ALL {
        world.set_method(NETWORK, method);
        let host = world.lab.host("h1").unwrap();
        let wire = Watch::start(&world.lab.router().unwrap(), &host.record().router_device, None);
        let others = world.vms().into_iter().filter(|vm| vm != LIAR);
        let watches: Vec<_> = others.map(|vm| (world.nic(&vm).watch(), vm)).collect();
        let nic = world.nic(LIAR);
        let quiet = unanswered(&world);
        for (what, reason, frame) in forged(&world).into_iter().chain(quiet) {
            let before = world.vm_drops(LIAR, reason);
            nic.send(&frame);
            let begin = Instant::now();
            while world.vm_drops(LIAR, reason) <= before {
                if begin.elapsed() > PATIENCE {
                    let now = world.vm_counters(LIAR).drops;
                    wrong.push(format!("{method}: {what} is not counted as {reason}: {now:?}"));
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for (watch, vm) in watches {
            if let Some(frame) = watch.stop().into_iter().find(|f| holds(f)) {
                wrong.push(format!("{method}: {vm} heard {frame:x?}"));
            }
        }
        if let Some(frame) = wire.stop().into_iter().find(|f| holds(f)) {
            wrong.push(format!("{method}: on the wire {frame:x?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is forged, the counter it must raise, and the frame.
fn forged(world: &World) -> Vec<(String, &'static str, Vec<u8>)> {
    let vm = |name: &str, family| world.lab.vm(name).unwrap().address_of(family).unwrap();
    let mac = |name: &str| Mac::new(world.lab.vm(name).unwrap().record().ports[0].mac.unwrap().octets());
    let (own, log, web) = (mac(LIAR), mac("contoso/log"), mac("contoso/web"));
    let pa = world.lab.host("h2").unwrap().record().pa;
    let other_pa = world.lab.host("h2").unwrap().record().other.unwrap();
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let (sql, log_ca, web_ca) = (vm(LIAR, family), vm("contoso/log", family), vm("contoso/web", family));
        let app = vm("contoso/app", family);
        let (nobody, gateway, pa): (IpAddr, IpAddr, IpAddr) = match family {
            Family::V4 => (
                Ipv4Addr::new(10, 1, 1, 222).into(),
                Ipv4Addr::new(10, 1, 1, 1).into(),
                if pa.is_ipv4() { pa } else { other_pa },
            ),
            Family::V6 => (
                Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, 0x222).into(),
                Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, 1).into(),
                if pa.is_ipv6() { pa } else { other_pa },
            ),
        };
        let udp = |src: IpAddr, dst: IpAddr| Packet::udp((src, 1), (dst, 9), MARKER);
        let smuggled = tunnel(Method::Vxlan, pa, log_ca, 6001, MARKER);
        let cases = [
            ("another VM's MAC", "spoofed_mac", udp(sql, web_ca).frame(web, log)),
            ("a made-up MAC", "spoofed_mac", udp(sql, log_ca).frame(log, Mac::new([2, 0, 0, 0, 0, 0x99]))),
            ("the gateway's MAC", "spoofed_mac", udp(sql, log_ca).frame(log, GATEWAY)),
            ("a neighbour's CA", "spoofed_ca", udp(web_ca, log_ca).frame(log, own)),
            ("a neighbour's CA, to another host", "spoofed_ca", udp(log_ca, web_ca).frame(web, own)),
            ("an unused CA", "spoofed_ca", udp(nobody, web_ca).frame(web, own)),
            ("the gateway's CA", "spoofed_ca", udp(gateway, log_ca).frame(log, own)),
            ("a host's PA", "spoofed_ca", udp(pa, log_ca).frame(GATEWAY, own)),
            ("a foreign CA, routed", "spoofed_ca", udp(nobody, app).frame(GATEWAY, own)),
            ("a tunnel of its own with a host's PA", "spoofed_ca", smuggled.frame(log, own)),
        ];
        all.extend(cases.map(|(what, reason, frame)| (format!("{family}, {what}"), reason, frame)));
    }
    let gateway: IpAddr = Ipv6Addr::from([0xfe80, 0, 0, 0, 0x54, 0x65ff, 0xfe6e, 0x6574]).into();
    let log_ca = vm("contoso/log", Family::V6);
    let as_gateway = Packet::udp((gateway, 1), (log_ca, 9), MARKER).frame(log, own);
    all.push(("the gateway's link-local address".to_owned(), "spoofed_ca", as_gateway));
    let link_local: IpAddr = Ipv6Addr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0x77]).into();
    let all_nodes: IpAddr = Ipv6Addr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]).into();
    for (what, ty) in [("a router advertisement", 134_u8), ("a redirect", 137)] {
        let mut message = vec![ty, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        message.resize(40, 0);
        let mut packet = Packet::new(link_local, all_nodes, 58, message);
        packet.hops = 255;
        packet.sum(2);
        let frame = packet.frame(Mac::new([0x33, 0x33, 0, 0, 0, 1]), own);
        all.push((what.to_owned(), "router_guard", frame));
    }
    all
}

/// What is legal and leads nowhere: the hop limit ends at the gateway, or nobody has the address, or only the asker.
fn unanswered(world: &World) -> Vec<(String, &'static str, Vec<u8>)> {
    let vm = |name: &str, family| world.lab.vm(name).unwrap().address_of(family).unwrap();
    let own = Mac::new(world.lab.vm(LIAR).unwrap().record().ports[0].mac.unwrap().octets());
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut last = Packet::udp((vm(LIAR, family), 1), (vm("contoso/app", family), 9), MARKER);
        last.hops = 1;
        all.push((format!("{family}, the last hop"), "ttl_exceeded", last.frame(GATEWAY, own)));
    }
    let (IpAddr::V4(sql), IpAddr::V6(sql6)) = (vm(LIAR, Family::V4), vm(LIAR, Family::V6)) else {
        panic!("{LIAR} has an address of either family")
    };
    let who_has = |target| frame::arp(Mac::BROADCAST, own, true, (own, sql), (Mac::default(), target));
    all.push(("ARP for nobody".to_owned(), "arp_unknown", who_has(Ipv4Addr::new(10, 1, 1, 222))));
    all.push((
        "ARP for a VM of another subnet".to_owned(),
        "arp_unknown",
        who_has(Ipv4Addr::new(10, 1, 2, 11)),
    ));
    let nobody = Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, 0x222);
    for (what, reason, src, target) in [
        ("a solicitation for nobody", "nd_unknown", sql6, nobody),
        ("a probe for an address that nobody has", "nd_unknown", Ipv6Addr::UNSPECIFIED, nobody),
        ("a solicitation for its own address", "nd_suppressed", sql6, sql6),
        ("a probe for its own address", "nd_suppressed", Ipv6Addr::UNSPECIFIED, sql6),
    ] {
        all.push((what.to_owned(), reason, solicitation(own, src, target)));
    }
    all
}

/// A neighbour solicitation to the target's group (RFC 4861 §4.3); a probe for duplicates tells no MAC.
fn solicitation(own: Mac, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let octets = target.octets();
    let [.., a, b, c] = octets;
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &octets].concat();
    if !src.is_unspecified() {
        message.extend([1, 1]);
        message.extend(own.octets());
    }
    let mut packet = Packet::new(src.into(), group.into(), 58, message);
    packet.hops = 255;
    packet.sum(2);
    packet.frame(Mac::new([0x33, 0x33, 0xff, a, b, c]), own)
}

/// A VM whose NIC is down: what comes for it ends where it was sent, and `tenet counters` says so.
#[test]
fn frames_for_a_vm_whose_nic_is_down_are_counted() {
    let Some(world) = OVER_V4.world() else { return };
    let log = world.lab.vm("contoso/log").unwrap();
    let link = log.record().ports[0].link.clone();
    let links = Links::in_netns(log.netns()).unwrap();
    let (sql, to) = (world.nic(LIAR), world.nic("contoso/log"));
    links.set_down(&link).unwrap();
    let before = world.vm_drops(LIAR, "port_down");
    let frame = Packet::udp((sql.ip.into(), 1), (to.ip.into(), 9), MARKER).frame(to.mac, sql.mac);
    until("the frame is counted", PATIENCE, || {
        sql.send(&frame);
        (world.vm_drops(LIAR, "port_down") > before).then_some(())
    });
    let mut command = Command::new(binary());
    command.arg("counters").env("TENET_LAB", world.lab.record().name.as_str());
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("port_down"), "{text}");
    links.set_up(&link).unwrap();
    world.in_sync();
}

fn holds(frame: &[u8]) -> bool {
    frame.windows(MARKER.len()).any(|w| w == MARKER)
}
