//! Who reaches whom, and how the gateway and the table answer.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};
use tenet_hostnet::Links;
use tenet_lab::tool::{PORT, Probe};
use tenet_tests::frame::{self, Packet};
use tenet_tests::{Fixture, SITE, World, until};
use tenet_wire::{Icmp, Ipv4, Mac, ProtocolNumber, parse};

static LAB: Fixture = Fixture::new("reach", SITE);

const PATIENCE: Duration = Duration::from_secs(3);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(400);
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 255);

#[test]
fn every_vm_reaches_its_own_tenants_vms_and_none_of_the_others() {
    let Some(world) = LAB.world() else { return };
    tenet_tests::check_reach(&world);
}

#[test]
fn gateway_answers_ping_in_every_subnet() {
    let Some(world) = LAB.world() else { return };
    for vm in world.vms() {
        let nic = world.nic(&vm);
        assert!(nic.ping(GATEWAY, nic.gateway), "{vm} pings {}", nic.gateway);
        let other = if nic.gateway == Ipv4Addr::new(10, 1, 1, 1) { 2 } else { 1 };
        let other = Ipv4Addr::new(10, 1, other, 1);
        assert!(nic.ping(GATEWAY, other), "{vm} pings the gateway's address in the other subnet, {other}");
    }
}

#[test]
fn unknown_address_is_host_unreachable_and_unrouted_one_net_unreachable() {
    let Some(world) = LAB.world() else { return };
    let nic = world.nic("contoso/sql");
    let expect = |to: [u8; 4], code, reason| {
        let before = world.vm_drops("contoso/sql", reason);
        let packet = Packet::udp((nic.ip, 5000), (to.into(), 5000), b"hello");
        let error = nic.error(&packet.frame(GATEWAY, nic.mac)).unwrap();
        assert_eq!((error.ty, error.code, error.from), (Icmp::UNREACHABLE, code, nic.gateway), "{to:?}");
        until(reason, PATIENCE, || (world.vm_drops("contoso/sql", reason) > before).then_some(()));
    };
    expect([10, 1, 2, 200], Icmp::HOST, "no_record");
    expect([10, 1, 2, 77], Icmp::HOST, "no_record");
    expect([172, 31, 9, 9], Icmp::NET, "no_route");
    expect([192, 168, 1, 10], Icmp::NET, "no_route");
}

#[test]
fn last_hop_across_subnets_is_time_exceeded_and_the_one_before_arrives() {
    let Some(world) = LAB.world() else { return };
    let (from, to) = (world.nic("contoso/web"), world.nic("contoso/app"));
    let ping = Packet::echo(from.ip, to.ip, 77, b"ttl");
    let error = from.error(&ping.clone().ttl(1).frame(GATEWAY, from.mac)).unwrap();
    assert_eq!((error.ty, error.code, error.from), (Icmp::TIME_EXCEEDED, 0, from.gateway));
    let watch = to.watch();
    from.send(&ping.ttl(2).frame(GATEWAY, from.mac));
    let ttl =
        |bytes: &Vec<u8>| tenet_tests::ipv4(bytes).map(|(header, _)| (header.ttl, frame::ip(header.src)));
    assert!(from.ping(GATEWAY, to.ip));
    let seen = watch.stop();
    assert!(seen.iter().filter_map(ttl).any(|s| s == (1, from.ip)), "two hops less one arrive as one");
}

#[test]
fn same_subnet_keeps_hops_and_macs() {
    let Some(world) = LAB.world() else { return };
    let (from, to) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    let watch = to.watch();
    assert!(from.ping(to.mac, to.ip));
    let ping = Packet::udp((from.ip, 1), (to.ip, 9), b"one hop").ttl(1).frame(to.mac, from.mac);
    from.send(&ping);
    assert!(from.ping(to.mac, to.ip));
    assert!(watch.stop().contains(&ping), "the frame arrives as it was sent");
}

#[test]
fn arp_is_answered_with_the_real_mac() {
    let Some(world) = LAB.world() else { return };
    let sql = world.nic("contoso/sql");
    for target in ["contoso/web", "contoso/log"] {
        let target = world.nic(target);
        assert_eq!(sql.who_has(target.ip, None, PATIENCE), Some(target.mac), "{}", target.name);
    }
    assert_eq!(sql.who_has(sql.gateway, None, PATIENCE), Some(GATEWAY));
    assert_eq!(sql.who_has(sql.gateway, Some(GATEWAY), PATIENCE), Some(GATEWAY));
    assert_eq!(sql.who_has([10, 1, 1, 200].into(), None, SILENCE), None, "nobody has it");
    assert_eq!(sql.who_has([10, 1, 2, 11].into(), None, SILENCE), None, "it is in another subnet");
}

#[test]
fn unicast_arp_reaches_the_vm_itself() {
    let Some(world) = LAB.world() else { return };
    let sql = world.nic("contoso/sql");
    for target in ["contoso/web", "contoso/log"] {
        let target = world.nic(target);
        let watch = target.watch();
        assert_eq!(sql.who_has(target.ip, Some(target.mac), PATIENCE), Some(target.mac), "{}", target.name);
        let asked = watch.stop().iter().any(|bytes| match parse::frame(bytes).map(|f| f.payload) {
            Ok(parse::Payload::Arp(arp)) => {
                frame::ip(arp.sender) == sql.ip && frame::ip(arp.target) == target.ip
            }
            _ => false,
        });
        assert!(asked, "{} was asked itself", target.name);
    }
}

#[test]
fn gratuitous_arp_and_probes_do_no_harm() {
    let Some(world) = LAB.world() else { return };
    let (sql, web, log) = (world.nic("contoso/sql"), world.nic("contoso/web"), world.nic("contoso/log"));
    let watches = [web.watch(), log.watch(), world.nic("fabrikam/web").watch()];
    for request in [true, false] {
        sql.send(&frame::arp(Mac::BROADCAST, sql.mac, request, (sql.mac, sql.ip), (Mac::default(), sql.ip)));
    }
    assert_eq!(sql.dad(sql.ip, SILENCE), None, "one's own address is free to oneself");
    assert_eq!(sql.dad([10, 1, 1, 200].into(), SILENCE), None, "a free address");
    assert_eq!(sql.dad(web.ip, PATIENCE), Some(web.mac), "another VM's address is taken");
    assert_eq!(sql.dad(sql.gateway, PATIENCE), Some(GATEWAY), "the gateway's address is taken");
    for watch in watches {
        let arps = watch.stop().iter().filter(|b| b.get(12..14) == Some(&[8, 6])).count();
        assert_eq!(arps, 0, "no announcement is spread");
    }
    tenet_tests::check_reach(&world);
}

#[test]
fn broadcast_reaches_the_subnet_on_all_hosts_and_nobody_else() {
    let Some(world) = LAB.world() else { return };
    for vm in world.vms() {
        Links::in_netns(world.lab.vm(&vm).unwrap().netns())
            .unwrap()
            .set_sysctl("ipv4/icmp_echo_ignore_broadcasts", "0")
            .unwrap();
    }
    let sql = world.nic("contoso/sql");
    let marker = b"to everybody in the subnet";
    let watches: Vec<_> = world.vms().into_iter().map(|vm| (world.nic(&vm).watch(), vm)).collect();
    // By the VM's own stack, which makes a broadcast frame of it, and answered by name.
    let socket = sql_socket(&world);
    let mut names = BTreeSet::new();
    let begin = Instant::now();
    while names.len() < 2 && begin.elapsed() < PATIENCE {
        socket.send_to(marker, (BROADCAST, PORT)).unwrap();
        let mut buffer = [0; 200];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            // The VM's own stack hears its broadcasts without our help.
            names.extend(text.lines().next().filter(|name| *name != "contoso/sql").map(str::to_owned));
        }
    }
    let expected = ["contoso/log", "contoso/web"];
    assert_eq!(
        names.iter().map(String::as_str).collect::<Vec<_>>(),
        expected,
        "who answered a UDP broadcast"
    );

    let ping = Packet::echo(sql.ip, BROADCAST, 99, marker).frame(Mac::BROADCAST, sql.mac);
    let rx = sql.watch();
    sql.send(&ping);
    let (web, log) = (world.nic("contoso/web"), world.nic("contoso/log"));
    assert!(sql.ping(web.mac, web.ip) && sql.ping(log.mac, log.ip));
    let answers: BTreeSet<Ipv4Addr> = rx
        .stop()
        .iter()
        .filter_map(|b| tenet_tests::ipv4(b))
        .filter(|(h, p)| h.protocol == ProtocolNumber::ICMP && p.first() == Some(&0) && p.ends_with(marker))
        .map(|(h, _)| frame::ip(h.src))
        .collect();
    assert_eq!(answers, BTreeSet::from([web.ip, log.ip]), "who answered a broadcast ping");

    for (watch, vm) in watches {
        let got = watch.stop().iter().filter(|b| b.ends_with(marker) && is_broadcast(b)).count();
        match vm.as_str() {
            "contoso/web" | "contoso/log" => assert!(got >= 2, "{vm} got {got} broadcasts"),
            _ => assert_eq!(got, 0, "{vm} is not in the subnet"),
        }
    }
    assert!(world.vm_counters("contoso/sql").flooded >= 2);
}

#[test]
fn broadcast_flood_is_limited_and_others_go_on() {
    let Some(world) = LAB.world() else { return };
    let (log, web) = (world.nic("contoso/log"), world.lab.vm("contoso/web").unwrap());
    let before = world.vm_drops("contoso/log", "flood_limited");
    let probe = Probe::start(web.netns(), IpAddr::V4(world.ip("contoso/sql")), "contoso/sql", 1000).unwrap();
    let frame = Packet::udp((log.ip, 1), (BROADCAST, 9), &[0x55; 200]).frame(Mac::BROADCAST, log.mac);
    let watch = world.nic("contoso/sql").watch();
    for _ in 0..50_000 {
        log.send(&frame);
    }
    let report = probe.stop().unwrap();
    let copies = watch.stop().iter().filter(|b| b.as_slice() == frame).count();
    let limited = until("the flood's drops are counted", PATIENCE, || {
        let limited = world.vm_drops("contoso/log", "flood_limited") - before;
        (limited > 25_000).then_some(limited)
    });
    println!("{copies} copies arrived, {limited} were refused; {report:?}");
    assert!(copies < 25_000, "{copies} copies are no limit");
    assert!(report.sent > 50 && report.strangers == 0);
    assert!(report.lost * 50 <= report.sent, "another VM's traffic suffers: {report:?}");
}

#[test]
fn multicast_stays_in_the_subnet() {
    let Some(world) = LAB.world() else { return };
    let sql = world.nic("contoso/sql");
    let group = Mac::new([0x01, 0, 0x5e, 1, 2, 3]);
    let frame = Packet::udp((sql.ip, 1), ([239, 1, 2, 3].into(), 9), b"a group").ttl(1).frame(group, sql.mac);
    let watches: Vec<_> = world.vms().into_iter().map(|vm| (world.nic(&vm).watch(), vm)).collect();
    sql.send(&frame);
    let web = world.nic("contoso/web");
    assert!(sql.ping(web.mac, web.ip));
    for (watch, vm) in watches {
        let got = watch.stop().iter().filter(|b| **b == frame).count();
        let expected = usize::from(["contoso/web", "contoso/log"].contains(&vm.as_str()));
        assert_eq!(got, expected, "{vm}");
    }
}

#[test]
fn what_is_neither_ip_nor_arp_ends_at_the_port() {
    let Some(world) = LAB.world() else { return };
    let (sql, web) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    let watch = web.watch();
    let drops = || {
        ["unsupported_protocol", "inner_vlan", "malformed"]
            .map(|reason| world.vm_drops("contoso/sql", reason))
    };
    let before = drops();
    // IPv6 by its type alone: its length lies.
    sql.send(&frame::ethernet(web.mac, sql.mac, 0x86dd, &[0x60; 60]));
    sql.send(&frame::ethernet(web.mac, sql.mac, 0x88b5, &[0x60; 60]));
    sql.send(&frame::ethernet(web.mac, sql.mac, 0x88cc, &[1; 60]));
    let packet = Packet::udp((sql.ip, 1), (web.ip, 9), b"tagged").bytes();
    let tagged = [&[0, 5, 8, 0][..], &packet].concat();
    sql.send(&frame::ethernet(web.mac, sql.mac, 0x8100, &tagged));
    until("drops", PATIENCE, || {
        let now = drops();
        (now[0] >= before[0] + 2 && now[1] > before[1] && now[2] > before[2]).then_some(())
    });
    let strange = watch.stop().iter().any(|b| {
        b.ends_with(b"tagged")
            || [[0x86, 0xdd], [0x88, 0xb5]]
                .iter()
                .any(|ty| b.get(12..14) == Some(ty) && b.ends_with(&[0x60; 60]))
    });
    assert!(!strange);
}

#[test]
fn fragments_arrive_and_are_put_together() {
    let Some(world) = LAB.world() else { return };
    let (from, to) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    let whole = Packet::echo(from.ip, to.ip, 4242, &[7; 1600]);
    let first =
        Packet { payload: whole.payload[..800].to_vec(), ..whole.clone() }.fragment(Ipv4::MORE_FRAGMENTS);
    let second = Packet { payload: whole.payload[800..].to_vec(), ..whole }.fragment(100);
    let watch = from.watch();
    from.send(&first.frame(to.mac, from.mac));
    from.send(&second.frame(to.mac, from.mac));
    assert!(from.ping(to.mac, to.ip));
    let answer: usize = watch
        .stop()
        .iter()
        .filter_map(|b| tenet_tests::ipv4(b))
        .filter(|(h, _)| h.is_fragment() && frame::ip(h.src) == to.ip)
        .map(|(_, p)| p.len())
        .sum();
    assert_eq!(answer, 1608, "the answer's fragments");
}

fn sql_socket(world: &World) -> UdpSocket {
    let vm = world.lab.vm("contoso/sql").unwrap();
    let socket = vm.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn is_broadcast(bytes: &[u8]) -> bool {
    bytes.get(..6) == Some(&[0xff; 6])
}
