//! Sizes: what does not fit is told, what is bundled stays whole.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;
use tenet_hostnet::Links;
use tenet_lab::tool::Stream;
use tenet_model::Method;
use tenet_tests::frame::Packet;
use tenet_tests::{Fixture, Nic, SITE, Setup, Watch, World, until};
use tenet_wire::{Icmp, Mac, checksum};

static LAB: Fixture = Fixture::new("mtu", SITE);
static ANY: Fixture = Fixture::set_up("mtua", SITE, Setup::ANY_METHOD);

const PATIENCE: Duration = Duration::from_secs(5);
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
/// 1500 less 42 bytes of outer and inner headers.
const INNER: usize = 1458;
const MEGABYTE: u64 = 1 << 20;

/// A VM whose administrator did not hear of the smaller MTU; put right again when dropped.
struct Wrong<'a> {
    world: &'a World,
    vm: &'a str,
    right: u32,
}

impl<'a> Wrong<'a> {
    fn new(world: &'a World, vm: &'a str) -> Self {
        Self::of(world, vm, 1500, INNER as u32)
    }

    fn of(world: &'a World, vm: &'a str, wrong: u32, right: u32) -> Self {
        set_mtu(world, vm, wrong);
        Self { world, vm, right }
    }
}

impl Drop for Wrong<'_> {
    fn drop(&mut self) {
        set_mtu(self.world, self.vm, self.right);
    }
}

/// Sets the MTU of both ends of a VM's leg, so that the VM's frames come through to the port's program.
fn set_mtu(world: &World, vm: &str, mtu: u32) {
    let handle = world.lab.vm(vm).unwrap();
    let port = &handle.record().ports[0];
    Links::in_netns(handle.netns()).unwrap().set_mtu(&port.link, mtu).unwrap();
    let host = world.lab.host(&world.host_of(vm)).unwrap();
    Links::in_netns(host.netns()).unwrap().set_mtu(&port.device, mtu).unwrap();
}

#[test]
fn ports_have_the_uplinks_mtu_less_the_overhead() {
    let Some(world) = LAB.world() else { return };
    for host in world.status().hosts {
        assert_eq!(host.uplink_mtu, Some(1500));
        assert!(!host.ports.is_empty());
        for port in host.ports {
            assert_eq!(port.mtu as usize, INNER, "{}", port.port);
        }
    }
}

#[test]
fn packet_that_does_not_fit_is_told_the_next_hops_mtu() {
    let Some(world) = LAB.world() else { return };
    let _wrong = Wrong::new(&world, "contoso/sql");
    let sql = world.nic("contoso/sql");
    // Another host, the same host, another subnet: where a VM is does not show.
    for (name, routed) in [("contoso/web", false), ("contoso/log", false), ("contoso/app", true)] {
        let to = world.nic(name);
        let mac = if routed { GATEWAY } else { to.mac };
        for (size, dont_fragment) in [(INNER + 1, true), (1500, true), (1500, false)] {
            let before = world.vm_drops("contoso/sql", "too_big");
            let packet = Packet::udp((sql.ip, 1), (to.ip, 9), &vec![7; size - 28]);
            let packet = if dont_fragment { packet.dont_fragment() } else { packet };
            let error = sql.error(&packet.frame(mac, sql.mac));
            let error =
                error.unwrap_or_else(|| panic!("no error for {size} bytes to {name}, DF {dont_fragment}"));
            assert_eq!(
                (error.ty, error.code, error.mtu, error.from),
                (Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED, INNER as u16, sql.gateway),
                "{size} bytes to {name}"
            );
            until("a counted drop", PATIENCE, || {
                (world.vm_drops("contoso/sql", "too_big") > before).then_some(())
            });
        }
        let packet = Packet::udp((sql.ip, 1), (to.ip, 9), &vec![7; INNER - 28]).dont_fragment();
        let watch = to.watch();
        sql.send(&packet.frame(mac, sql.mac));
        assert!(sql.ping(mac, to.ip));
        let fits = |bytes: &Vec<u8>| bytes.len() == INNER + 14 && bytes.ends_with(&[7; 100]);
        assert!(watch.stop().iter().any(fits), "{INNER} bytes fit, to {name}");
    }
}

#[test]
fn tcp_of_guests_with_the_wrong_mtu_arrives_intact() {
    let Some(world) = LAB.world() else { return };
    let _wrong = [
        Wrong::new(&world, "contoso/sql"),
        Wrong::new(&world, "contoso/web"),
        Wrong::new(&world, "contoso/app"),
    ];
    for to in ["contoso/web", "contoso/app"] {
        let report = transfer(&world, "contoso/sql", to, 10 * MEGABYTE);
        println!("to {to}: {report:?}");
    }
}

/// What each method leaves of 1500 bytes over IPv4: the largest packet is told by the status, by ICMP, and to TCP.
#[test]
fn every_method_tells_the_size_that_it_leaves() {
    const LEAVES: [(Method, usize); 5] = [
        (Method::Nvgre, 1458),
        (Method::Vxlan, 1450),
        (Method::Geneve, 1450),
        (Method::Stt, 1428),
        (Method::Rewrite, 1500),
    ];
    let Some(world) = ANY.world() else { return };
    let vms = ["contoso/sql", "contoso/web", "contoso/app"];
    let _wrong = vms.map(|vm| Wrong::of(&world, vm, 1600, 1408));
    let (sql, web) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    for (method, inner) in LEAVES {
        let begin = std::time::Instant::now();
        world.set_method("contoso/prod", method);
        world.in_sync();
        for port in world.status().hosts.into_iter().flat_map(|h| h.ports) {
            if port.port.to_string().starts_with("contoso/") {
                assert_eq!(port.mtu as usize, inner, "{method}: {}", port.port);
            }
        }
        // Told what fits, and what fits arrives.
        let datagram = |size: usize| {
            Packet::udp((sql.ip, 1), (web.ip, 9), &vec![7; size - 28]).dont_fragment().frame(web.mac, sql.mac)
        };
        let before = world.vm_drops("contoso/sql", "too_big");
        let error = sql.error(&datagram(inner + 1)).unwrap_or_else(|| panic!("{method}: no error"));
        assert_eq!(
            (error.ty, error.code, error.mtu, error.from),
            (Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED, inner as u16, sql.gateway),
            "{method}"
        );
        until("a counted drop", PATIENCE, || {
            (world.vm_drops("contoso/sql", "too_big") > before).then_some(())
        });
        let arrived = web.watch();
        sql.send(&datagram(inner));
        assert!(sql.ping(web.mac, web.ip));
        let fits = |bytes: &Vec<u8>| bytes.len() == inner + 14 && bytes.ends_with(&[7; 100]);
        assert!(arrived.stop().iter().any(fits), "{method}: {inner} bytes fit");
        // A connection is opened with segments that fit, or with smaller ones that were asked for.
        for (offered, expected) in [(1560, inner - 40), (500, 500)] {
            let clamped = world.vm_counters("contoso/sql").clamped;
            let arrived = web.watch();
            sql.send(&syn(&sql, &web, offered).frame(web.mac, sql.mac));
            assert!(sql.ping(web.mac, web.ip));
            let heard: Vec<u16> = arrived.stop().iter().filter_map(|bytes| offer(bytes)).collect();
            assert_eq!(heard, [expected as u16], "{method}: segments of {offered} offered");
            let lowered = u64::from(usize::from(offered) > expected);
            assert_eq!(world.vm_counters("contoso/sql").clamped - clamped, lowered, "{method}: {offered}");
        }
        for to in ["contoso/web", "contoso/app"] {
            transfer(&world, "contoso/sql", to, 4 * MEGABYTE);
        }
        println!("{method}: {} ms", begin.elapsed().as_millis());
    }
}

/// Port of connections that nobody answers.
const NOBODY: u16 = 7;

/// The opening of a TCP connection that offers a segment size.
fn syn(from: &Nic, to: &Nic, size: u16) -> Packet {
    let mut tcp =
        vec![0x9c, 0x40, 0, NOBODY as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4];
    tcp.extend(size.to_be_bytes());
    let pseudo = [&from.ip.octets()[..], &to.ip.octets(), &[0, 6, 0, tcp.len() as u8], &tcp].concat();
    let sum = checksum::finish(checksum::sum_bytes(&pseudo));
    tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
    Packet::new(from.ip, to.ip, 6, tcp)
}

/// The segment size that such an opening offers; its checksum must be right.
fn offer(bytes: &[u8]) -> Option<u16> {
    let (ip, tcp) = tenet_tests::ipv4(bytes)?;
    if ip.protocol != 6 || tcp.get(2..4)? != NOBODY.to_be_bytes() {
        return None;
    }
    let [src, dst] = [ip.src, ip.dst].map(|a| a.octets());
    let pseudo = [&src[..], &dst, &[0, 6, 0, tcp.len() as u8], tcp].concat();
    assert_eq!(checksum::finish(checksum::sum_bytes(&pseudo)), 0, "{bytes:x?}");
    tcp.get(22..24).map(|size| u16::from_be_bytes([size[0], size[1]]))
}

#[test]
fn large_frames_stay_whole_from_end_to_end() {
    let Some(world) = LAB.world() else { return };
    let before = (world.vm_counters("contoso/sql"), world.vm_counters("contoso/web"));
    let host = world.lab.host("h1").unwrap();
    let wire = Watch::start(host.netns(), &host.record().uplink, None);
    let received = world.nic("contoso/web").watch();
    transfer(&world, "contoso/sql", "contoso/web", 20 * MEGABYTE);
    let mean = |watch: Watch| {
        let frames: Vec<_> = watch.stop().into_iter().filter(|f| f.len() > 1000).collect();
        frames.iter().map(Vec::len).sum::<usize>() / frames.len().max(1)
    };
    let (wire, received) = (mean(wire), mean(received));
    println!("mean size of a frame: {wire} on the wire, {received} at the receiver");
    assert!(wire > 10_000 && received > 10_000, "{wire} on the wire, {received} at the receiver");
    // Counters count what a NIC without offloads would send.
    let after = (world.vm_counters("contoso/sql"), world.vm_counters("contoso/web"));
    let sent = (after.0.tx_bytes - before.0.tx_bytes) / (after.0.tx_frames - before.0.tx_frames);
    assert!((1000..1500).contains(&sent), "{sent} bytes a segment");
    let (tx, rx) = (after.0.tx_bytes - before.0.tx_bytes, after.1.rx_bytes - before.1.rx_bytes);
    assert!(tx.abs_diff(rx) < tx / 50, "{tx} bytes sent, {rx} received");
}

/// Sends at least this much from one VM to another and has the receiver check it.
fn transfer(world: &World, from: &str, to: &str, bytes: u64) -> tenet_lab::tool::StreamReport {
    let before = world.vm_counters(from).tx_bytes;
    let stream =
        Stream::start(world.lab.vm(from).unwrap().netns(), IpAddr::V4(world.ip(to)), Duration::ZERO).unwrap();
    until("the transfer", Duration::from_secs(30), || {
        (world.vm_counters(from).tx_bytes > before + bytes).then_some(())
    });
    let report = stream.stop().unwrap();
    assert_eq!(report.peer, to);
    assert!(
        report.received.in_order && report.received.bytes == report.sent && report.sent >= bytes / 2,
        "{report:?}"
    );
    report
}
