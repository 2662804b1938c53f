//! Tries to break out, in and through.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use futures::StreamExt as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tenet_hostnet::Links;
use tenet_lab::tool::{Probe, ask};
use tenet_tests::frame::{self, Packet};
use tenet_tests::{Fixture, Nic, SITE, Watch, World, block_on, until};
use tenet_wire::{Icmp, Ipv4, Mac, ProtocolNumber};

static LAB: Fixture = Fixture::new("iso", SITE);

const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
const H1: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const H2: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 20);
/// A UDP port that a host listens on.
const LISTENED: u16 = 9999;

#[test]
fn vm_cannot_send_as_another() {
    let Some(world) = LAB.world() else { return };
    let (sql, log, web) = (world.nic("contoso/sql"), world.nic("contoso/log"), world.nic("contoso/web"));
    let stranger = Mac::new([2, 0, 0, 0, 0, 0x99]);
    let nobody = Ipv4Addr::new(10, 1, 1, 222);
    let zero = Mac::default();
    let forged: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "another VM's MAC",
            "spoofed_mac",
            Packet::udp((sql.ip, 1), (web.ip, 9), b"forged").frame(web.mac, log.mac),
        ),
        (
            "a made-up MAC",
            "spoofed_mac",
            Packet::udp((sql.ip, 1), (log.ip, 9), b"forged").frame(log.mac, stranger),
        ),
        (
            "the gateway's MAC",
            "spoofed_mac",
            Packet::udp((sql.ip, 1), (log.ip, 9), b"forged").frame(log.mac, GATEWAY),
        ),
        (
            "a neighbour's CA",
            "spoofed_ca",
            Packet::udp((web.ip, 1), (log.ip, 9), b"forged").frame(log.mac, sql.mac),
        ),
        (
            "an unused CA",
            "spoofed_ca",
            Packet::udp((nobody, 1), (web.ip, 9), b"forged").frame(web.mac, sql.mac),
        ),
        (
            "the gateway's CA",
            "spoofed_ca",
            Packet::udp((sql.gateway, 1), (log.ip, 9), b"forged").frame(log.mac, sql.mac),
        ),
        (
            "no CA",
            "spoofed_ca",
            Packet::udp((Ipv4Addr::UNSPECIFIED, 68), (web.ip, 67), b"forged").frame(web.mac, sql.mac),
        ),
        ("a host's PA", "spoofed_ca", Packet::udp((H2, 1), (log.ip, 9), b"forged").frame(GATEWAY, sql.mac)),
        (
            "a foreign CA, routed",
            "spoofed_ca",
            Packet::udp((nobody, 1), ([10, 1, 2, 11].into(), 9), b"forged").frame(GATEWAY, sql.mac),
        ),
        (
            "ARP with another MAC inside",
            "spoofed_mac",
            frame::arp(web.mac, sql.mac, false, (log.mac, sql.ip), (web.mac, web.ip)),
        ),
        (
            "ARP with another's CA",
            "spoofed_ca",
            frame::arp(web.mac, sql.mac, false, (sql.mac, log.ip), (web.mac, web.ip)),
        ),
        (
            "ARP as the gateway",
            "spoofed_ca",
            frame::arp(log.mac, sql.mac, false, (sql.mac, sql.gateway), (log.mac, log.ip)),
        ),
        (
            "announcement of another's CA",
            "spoofed_ca",
            frame::arp(Mac::BROADCAST, sql.mac, true, (sql.mac, web.ip), (zero, web.ip)),
        ),
        (
            "broadcast with another's CA",
            "spoofed_ca",
            Packet::udp((web.ip, 1), ([10, 1, 1, 255].into(), 9), b"forged").frame(Mac::BROADCAST, sql.mac),
        ),
    ];
    let watches = [log.watch(), web.watch(), world.nic("contoso/app").watch()];
    for (what, reason, frame) in &forged {
        let before = world.vm_drops("contoso/sql", reason);
        sql.send(frame);
        until(what, PATIENCE, || (world.vm_drops("contoso/sql", reason) > before).then_some(()));
    }
    for watch in watches {
        let got = watch.stop();
        for (what, _, frame) in &forged {
            assert!(!got.contains(frame) && !got.iter().any(|f| f.ends_with(b"forged")), "{what} arrived");
        }
    }
    has_event(&world, "spoof", "h1");
}

#[test]
fn vms_own_tunnels_stay_inside() {
    let Some(world) = LAB.world() else { return };
    let (sql, web, fab) = (world.nic("contoso/sql"), world.nic("contoso/web"), world.nic("fabrikam/sql"));
    let inner = Packet::udp((fab.ip, 1), (fab.ip, LISTENED), b"smuggled").frame(fab.mac, fab.mac);
    let others = others(&world, &["contoso/sql", "contoso/web"]);
    let hosts = [host_listener(&world, "h1"), host_listener(&world, "h2")];
    let to_web = web.watch();

    let error = sql.error(&frame::nvgre(sql.ip, H2, 6001, &inner).frame(GATEWAY, sql.mac));
    assert_eq!(error.map(|e| (e.ty, e.code)), Some((Icmp::UNREACHABLE, Icmp::NET)), "to a host's PA");
    let error = sql.error(&frame::nvgre(sql.ip, sql.gateway, 6001, &inner).frame(GATEWAY, sql.mac));
    assert_eq!(error.map(|e| (e.ty, e.code)), Some((Icmp::UNREACHABLE, Icmp::PORT)), "to the gateway");
    // Forged outer source and the host's own MACs as destination.
    for device in ["eth0", "contoso-sql"] {
        let mac = device_mac(&world, "h1", device);
        sql.send(&frame::nvgre(H1, H2, 6001, &inner).frame(mac, sql.mac));
        sql.send(&frame::nvgre(sql.ip, H1, 6001, &inner).frame(mac, sql.mac));
    }
    let tunnel = frame::nvgre(sql.ip, web.ip, 6001, &inner).frame(web.mac, sql.mac);
    sql.send(&tunnel);
    assert!(sql.ping(web.mac, web.ip));
    assert!(to_web.stop().contains(&tunnel), "between VMs it is payload like any other");
    assert_silent(others, b"smuggled");
    for host in hosts {
        assert_eq!(heard(&host), None);
    }
}

#[test]
fn provider_network_is_out_of_reach() {
    let Some(world) = LAB.world() else { return };
    let sql = world.nic("contoso/sql");
    let netns = world.lab.vm("contoso/sql").unwrap().netns().clone();
    let hosts = [host_listener(&world, "h1"), host_listener(&world, "h2")];
    let router = Watch::start(&world.lab.router().unwrap(), "to-h1", None);
    let controller = world.lab.record().controller.address;
    let gateways = world.lab.record().segments.iter().map(|s| s.gateway);
    for address in [IpAddr::V4(H1), IpAddr::V4(H2), controller].into_iter().chain(gateways) {
        assert_eq!(ask(&netns, address, SILENCE).unwrap(), None, "{address}");
        let port = |port| SocketAddr::new(address, port);
        let connected = netns.run(|| TcpStream::connect_timeout(&port(7443), SILENCE)).unwrap();
        assert!(connected.is_err(), "{address}");
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
        _ = socket.send_to(b"knock", port(LISTENED));
    }
    // Straight to the host's own MACs, in case its stack listens there.
    for device in ["eth0", "contoso-sql"] {
        let mac = device_mac(&world, "h1", device);
        sql.send(&Packet::udp((sql.ip, 1), (H1, LISTENED), b"knock").frame(mac, sql.mac));
        assert!(!sql.ping_within(SILENCE, mac, H1), "the host's stack answers at {device}");
        assert_eq!(sql.who_has(H1, Some(mac), SILENCE), None);
    }
    assert_eq!(sql.who_has(H1, None, SILENCE), None);
    for host in hosts {
        assert_eq!(heard(&host), None);
    }
    let leaked = router.stop().iter().any(|f| f.ends_with(b"knock"));
    assert!(!leaked, "nothing of it reached the provider network");
}

/// A frame from the provider network and what should become of it.
struct Outside {
    what: &'static str,
    /// The counter of the uplink, or `None` if the frame is the host stack's business.
    reason: Option<&'static str>,
    packet: Vec<u8>,
}

#[test]
fn forged_tunnels_from_outside_are_dropped_for_the_right_reason() {
    let Some(world) = LAB.world() else { return };
    let (log, sql, web) = (world.nic("contoso/log"), world.nic("contoso/sql"), world.nic("contoso/web"));
    let (flog, own) = (world.nic("fabrikam/log"), device_mac(&world, "h1", "eth0"));
    let router = router_nic(&world);
    let udp = |src: Ipv4Addr, dst: Ipv4Addr| Packet::udp((src, 1), (dst, LISTENED), b"from outside");
    let good = udp(web.ip, log.ip).frame(log.mac, web.mac);
    let from_h2 = |vsid, inner: &[u8]| frame::nvgre(H2, H1, vsid, inner).bytes();
    let flags = |flags| Packet::new(H2, H1, ProtocolNumber::GRE, frame::gre(flags, 5001, 1, &good)).bytes();
    let tagged = {
        let payload = [&[0, 5, 8, 0][..], &udp(web.ip, log.ip).bytes()].concat();
        frame::ethernet(log.mac, web.mac, 0x8100, &payload)
    };
    let cut = |bytes: Vec<u8>, length: usize| {
        let Some((header, payload)) =
            tenet_tests::ipv4(&frame::ethernet(own, own, frame::IPV4, &bytes)).map(|(h, p)| (h, p.to_vec()))
        else {
            panic!("a packet")
        };
        let mut packet = Packet::new(frame::ip(header.src), frame::ip(header.dst), header.protocol, payload);
        packet.payload.truncate(length);
        packet.dont_fragment().bytes()
    };
    let group = Mac::new([0x03, 0, 0, 0, 0, 1]);
    let mut lying = udp(web.ip, log.ip).bytes();
    lying[2..4].copy_from_slice(&1400_u16.to_be_bytes());
    let options = {
        let mut bytes = frame::nvgre(H2, H1, 5001, &good).bytes();
        bytes.splice(20..20, [1, 1, 1, 0]);
        bytes[0] = 0x46;
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[10..12].fill(0);
        let sum = tenet_wire::checksum::finish(tenet_wire::checksum::sum_bytes(&bytes[..24]));
        bytes[10..12].copy_from_slice(&sum.to_ne_bytes());
        bytes
    };
    let case = |what, reason, packet| Outside { what, reason, packet };
    let cases = [
        case(
            "unknown outer source",
            Some("unknown_pa"),
            frame::nvgre([192, 168, 2, 99].into(), H1, 5001, &good).bytes(),
        ),
        case("router as outer source", Some("unknown_pa"), frame::nvgre(router.ip, H1, 5001, &good).bytes()),
        case(
            "this host as outer source",
            Some("loop"),
            frame::nvgre(H1, H1, 5001, &udp(sql.ip, log.ip).frame(log.mac, sql.mac)).bytes(),
        ),
        case(
            "inner source of this host",
            Some("wrong_pa"),
            from_h2(5001, &udp(sql.ip, log.ip).frame(log.mac, sql.mac)),
        ),
        case(
            "inner source of nobody",
            Some("wrong_pa"),
            from_h2(5001, &udp([10, 1, 1, 222].into(), log.ip).frame(log.mac, web.mac)),
        ),
        case(
            "inner source is the gateway",
            Some("wrong_pa"),
            from_h2(5001, &udp(log.gateway, log.ip).frame(log.mac, GATEWAY)),
        ),
        case(
            "broadcast from a wrong source",
            Some("wrong_pa"),
            from_h2(5001, &udp(sql.ip, [10, 1, 1, 255].into()).frame(Mac::BROADCAST, sql.mac)),
        ),
        case(
            "ARP from a wrong source",
            Some("wrong_pa"),
            from_h2(5001, &frame::arp(log.mac, web.mac, false, (web.mac, sql.ip), (log.mac, log.ip))),
        ),
        case("another tenant's VSID", Some("unknown_mac"), from_h2(6001, &good)),
        case("another subnet's VSID", Some("unknown_mac"), from_h2(5002, &good)),
        case("unknown VSID", Some("unknown_vsid"), from_h2(7777, &good)),
        case(
            "unknown VSID, broadcast",
            Some("unknown_vsid"),
            from_h2(7777, &udp(web.ip, [10, 1, 1, 255].into()).frame(Mac::BROADCAST, web.mac)),
        ),
        case("reserved VSID 0", Some("unknown_vsid"), from_h2(0, &good)),
        // The agents' own probes have it; no VM's MAC is in it.
        case("the probes' VSID", Some("unknown_mac"), from_h2(0xff_ffff, &good)),
        case(
            "inner destination is the host's MAC and PA",
            Some("unknown_mac"),
            from_h2(5001, &udp(web.ip, H1).frame(own, web.mac)),
        ),
        case(
            "inner destination is the host's MAC",
            Some("unknown_mac"),
            from_h2(5001, &udp(web.ip, log.ip).frame(own, web.mac)),
        ),
        case(
            "inner destination is the gateway's MAC",
            Some("unknown_mac"),
            from_h2(5001, &udp(web.ip, H1).frame(GATEWAY, web.mac)),
        ),
        case(
            "a host is no transit",
            Some("unknown_mac"),
            from_h2(5001, &udp(web.ip, web.ip).frame(web.mac, web.mac)),
        ),
        case("tagged inner frame", Some("inner_vlan"), from_h2(5001, &tagged)),
        case(
            "inner IPv6 whose length lies",
            Some("malformed"),
            from_h2(5001, &frame::ethernet(log.mac, web.mac, 0x86dd, &[0x60; 60])),
        ),
        case(
            "inner frame of another protocol",
            Some("unsupported_protocol"),
            from_h2(5001, &frame::ethernet(log.mac, web.mac, 0x88b5, &[0x60; 60])),
        ),
        case(
            "inner source is a group",
            Some("malformed"),
            from_h2(5001, &udp(web.ip, log.ip).frame(log.mac, group)),
        ),
        case(
            "inner length lies",
            Some("malformed"),
            from_h2(5001, &frame::ethernet(log.mac, web.mac, frame::IPV4, &lying)),
        ),
        case(
            "first outer fragment",
            Some("outer_fragment"),
            frame::nvgre(H2, H1, 5001, &good).fragment(Ipv4::MORE_FRAGMENTS).bytes(),
        ),
        case(
            "later outer fragment",
            Some("outer_fragment"),
            frame::nvgre(H2, H1, 5001, &good).fragment(20).bytes(),
        ),
        case("cut inside the tunnel header", Some("truncated"), cut(from_h2(5001, &good), 8)),
        case("cut inside the inner header", Some("truncated"), cut(from_h2(5001, &good), 30)),
        case("checksum flag", Some("bad_tunnel_header"), flags(0xa000)),
        case("sequence flag", Some("bad_tunnel_header"), flags(0x3000)),
        case("routing flag", Some("bad_tunnel_header"), flags(0x6000)),
        case("no key", Some("bad_tunnel_header"), flags(0)),
        case("version 1", Some("tunnel_version"), flags(0x2001)),
        case("outer options", Some("bad_tunnel_header"), options),
        case(
            "tunnel for another host",
            None,
            frame::nvgre(H2, [192, 168, 1, 77].into(), 5001, &good).bytes(),
        ),
    ];
    let others = others(&world, &[]);
    let listener = host_listener(&world, "h1");
    for Outside { what, reason, packet } in cases {
        let before = reason.map(|r| world.uplink_drops("h1", r));
        router.send(&frame::ethernet(own, router.mac, frame::IPV4, &packet));
        if let (Some(reason), Some(before)) = (reason, before) {
            until(&format!("{what} counted as {reason}"), PATIENCE, || {
                (world.uplink_drops("h1", reason) > before).then_some(())
            });
        }
    }
    assert_silent(others, b"from outside");
    assert_eq!(heard(&listener), None, "the host's stack");
    has_event(&world, "unknown_pa", "h1");

    // The very same frame with nothing wrong arrives: the cases above fail for their reasons alone.
    let watch = log.watch();
    router.send(&frame::nvgre(H2, H1, 5001, &good).frame(own, router.mac));
    assert!(flog.ping(GATEWAY, flog.gateway));
    assert!(watch.stop().contains(&good), "a good frame arrives");
}

#[test]
fn flood_of_unknown_destinations_stops_nobody_else() {
    let Some(world) = LAB.world() else { return };
    let (log, sql, web) = (world.nic("contoso/log"), world.nic("contoso/sql"), world.nic("contoso/web"));
    let netns = world.lab.vm("contoso/sql").unwrap().netns().clone();
    let before = (world.vm_drops("contoso/log", "unknown_mac"), world.vm_drops("contoso/log", "no_record"));
    let probe = Probe::start(&netns, IpAddr::V4(web.ip), "contoso/web", 500).unwrap();
    let mut pings = 0;
    for n in 0..50_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let unknown = Packet::udp((log.ip, 1), ([10, 1, 2, 100 + c % 100].into(), 9), b"flood");
        let frame = if n % 2 == 0 {
            unknown.frame(Mac::new([2, 9, 9, a, b, c]), log.mac)
        } else {
            unknown.frame(GATEWAY, log.mac)
        };
        log.send(&frame);
        if n % 5000 == 0 {
            assert!(sql.ping(web.mac, web.ip), "ping during the flood");
            pings += 1;
        }
    }
    let report = probe.stop().unwrap();
    println!("{pings} pings, {report:?}");
    assert!(report.lost * 50 <= report.sent && report.sent > 50 && report.strangers == 0, "{report:?}");
    until("every frame of the flood is counted", PATIENCE, || {
        let now = (world.vm_drops("contoso/log", "unknown_mac"), world.vm_drops("contoso/log", "no_record"));
        (now.0 - before.0 >= 25_000 && now.1 - before.1 >= 25_000).then_some(())
    });
    has_event(&world, "unknown_destination", "h1");
    world.in_sync();
}

#[test]
fn traffic_that_is_not_ours_passes() {
    let Some(world) = LAB.world() else { return };
    let (router, own) = (router_nic(&world), device_mac(&world, "h1", "eth0"));
    assert!(router.ping(own, H1), "the host answers ping");
    let host = world.lab.host("h1").unwrap().netns().clone();
    let listener = host.run(|| TcpListener::bind((H1, 0))).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut near = world
        .lab
        .router()
        .unwrap()
        .run(|| TcpStream::connect_timeout(&(H1, port).into(), PATIENCE))
        .unwrap()
        .unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let sent = vec![0x5a; 1 << 20];
    let copy = sent.clone();
    let writer = std::thread::spawn(move || near.write_all(&copy));
    let mut got = vec![0; sent.len()];
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut got).unwrap();
    writer.join().unwrap().unwrap();
    assert!(got == sent, "a megabyte to the host, byte for byte");
    // Another tunnel's GRE is the host stack's, which has no use for it and says so.
    let gre = Packet::new(router.ip, H1, ProtocolNumber::GRE, [&[0, 0, 8, 0][..], &[0x45; 40]].concat());
    let error = router.error(&gre.frame(own, router.mac));
    assert_eq!(
        error.map(|e| (e.ty, e.code, e.from)),
        Some((Icmp::UNREACHABLE, 2, H1)),
        "protocol unreachable"
    );
}

/// The router's NIC towards h1.
fn router_nic(world: &World) -> Nic {
    let router = world.lab.router().unwrap();
    let device = world.lab.host("h1").unwrap().record().router_device.clone();
    let mac = Links::in_netns(&router).unwrap().get(&device).unwrap().mac.unwrap();
    Nic::open(&router, "router", &device, Mac::new(mac), [192, 168, 1, 1].into(), H1)
}

fn device_mac(world: &World, host: &str, device: &str) -> Mac {
    let netns = world.lab.host(host).unwrap().netns().clone();
    Mac::new(Links::in_netns(&netns).unwrap().get(device).unwrap().mac.unwrap())
}

/// Watches all VMs but these.
fn others(world: &World, except: &[&str]) -> Vec<(String, Watch)> {
    let vms = world.vms().into_iter().filter(|vm| !except.contains(&vm.as_str()));
    vms.map(|vm| (vm.clone(), world.nic(&vm).watch())).collect()
}

fn assert_silent(watches: Vec<(String, Watch)>, marker: &[u8]) {
    for (vm, watch) in watches {
        let got = watch.stop().into_iter().find(|f| f.windows(marker.len()).any(|w| w == marker));
        assert_eq!(got, None, "{vm} got a frame that is not its");
    }
}

/// Whatever of the host's stack would hear a datagram for any of its addresses.
fn host_listener(world: &World, host: &str) -> UdpSocket {
    let netns = world.lab.host(host).unwrap().netns().clone();
    let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, LISTENED))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2000];
    socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
}

/// Waits until the controller knows of an event of this kind on this host.
fn has_event(world: &World, kind: &str, host: &str) {
    let same = |a: &str| a.replace('-', "_") == kind;
    until(&format!("event {kind}"), PATIENCE, || {
        let events: Vec<_> = block_on(async { world.client.events(false).await.unwrap().collect().await });
        let found = events.into_iter().map(Result::unwrap).any(|e: tenet_api::rest::EventLine| {
            same(&e.kind) && e.host.as_ref().is_some_and(|h| h.as_str() == host)
        });
        found.then_some(())
    });
}
