//! Forged frames from the provider network, by every method and both families: none arrives, each is counted by name.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;
use tenet_hostnet::Links;
use tenet_lab::packet::PacketSocket;
use tenet_model::{Family, Method};
use tenet_tests::tunnel::{Packet, stt, tunnel, udp};
use tenet_tests::{DUAL, Fixture, Setup, World, block_on, frame};
use tenet_wire::Mac;

static OVER_V4: Fixture = Fixture::set_up("fg4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("fg6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);
const TUNNELS: [Method; 4] = [Method::Nvgre, Method::Vxlan, Method::Geneve, Method::Stt];
/// A UDP port that the host listens on.
const LISTENED: u16 = 9999;
const MARKER: &[u8] = b"from outside";
const VSID: u32 = 5001;

/// A VM's addresses.
#[derive(Clone, Copy)]
struct Vm {
    mac: Mac,
    v4: IpAddr,
    v6: IpAddr,
}

/// The provider network as an attacker there sees it.
struct Outside<'a> {
    world: &'a World,
    family: Family,
    tx: PacketSocket,
    /// MACs of the router and of the host's uplink.
    router: Mac,
    own: Mac,
    h1: IpAddr,
    h2: IpAddr,
    log: Vm,
    sql: Vm,
    web: Vm,
}

/// A frame and the counter of the uplink that it must raise.
struct Case {
    what: String,
    reason: &'static str,
    packet: Packet,
}

impl<'a> Outside<'a> {
    fn new(world: &'a World, family: Family) -> Self {
        let router = world.lab.router().unwrap();
        let host = world.lab.host("h1").unwrap();
        let device = host.record().router_device.clone();
        let mac = |links: Links, name: &str| Mac::new(links.get(name).unwrap().mac.unwrap());
        let vm = |name: &str| {
            let vm = world.lab.vm(name).unwrap();
            let of = |family| vm.address_of(family).unwrap();
            let mac = Mac::new(vm.record().ports[0].mac.unwrap().octets());
            Vm { mac, v4: of(Family::V4), v6: of(Family::V6) }
        };
        Self {
            world,
            family,
            tx: PacketSocket::sender(&router, &device).unwrap(),
            router: mac(Links::in_netns(&router).unwrap(), &device),
            own: mac(Links::in_netns(host.netns()).unwrap(), &host.record().uplink),
            h1: host.record().pa,
            h2: world.lab.host("h2").unwrap().record().pa,
            log: vm("contoso/log"),
            sql: vm("contoso/sql"),
            web: vm("contoso/web"),
        }
    }

    fn send(&self, packet: &Packet) {
        self.tx.send(&packet.frame(self.own, self.router)).unwrap();
    }

    /// Sends a case's frame and waits until it is counted as it must be.
    fn is_dropped(&self, case: &Case) {
        let before = self.world.uplink_drops("h1", case.reason);
        let all_before = self.world.uplink_counters("h1").drops;
        self.send(&case.packet);
        let begin = std::time::Instant::now();
        while self.world.uplink_drops("h1", case.reason) <= before {
            assert!(
                begin.elapsed() < PATIENCE,
                "{} is not counted as {}; before {all_before:?}, now {:?}",
                case.what,
                case.reason,
                self.world.uplink_counters("h1").drops
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn inner(&self, src: IpAddr, dst: IpAddr, from: Mac, to: Mac) -> Vec<u8> {
        Packet::udp((src, 1), (dst, LISTENED), MARKER).frame(to, from)
    }

    /// What any tunnel can be abused for.
    fn cases(&self, method: Method) -> Vec<Case> {
        let Self { h1, h2, log, sql, web, own, .. } = *self;
        let good = self.inner(web.v4, log.v4, web.mac, log.mac);
        let stranger: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::new(192, 168, 2, 99).into(),
            Family::V6 => Ipv6Addr::new(0xfd7e, 192, 168, 2, 0, 0, 0, 99).into(),
        };
        let nobody: IpAddr = Ipv4Addr::new(10, 1, 1, 222).into();
        let nobody6: IpAddr = Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, 0x222).into();
        let gateway: IpAddr = Ipv4Addr::new(10, 1, 1, 1).into();
        let link_local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99).into();
        let group = Mac::new([3, 0, 0, 0, 0, 1]);
        let from_h2 = |vsid, inner: &[u8]| tunnel(method, h2, h1, vsid, inner);
        let tagged = {
            let packet = Packet::udp((web.v4, 1), (log.v4, LISTENED), MARKER).bytes();
            frame::ethernet(log.mac, web.mac, 0x8100, &[&[0, 5, 8, 0][..], &packet].concat())
        };
        let lying = {
            let mut bytes = Packet::udp((web.v4, 1), (log.v4, LISTENED), MARKER).bytes();
            bytes[2..4].copy_from_slice(&1400_u16.to_be_bytes());
            frame::ethernet(log.mac, web.mac, frame::IPV4, &bytes)
        };
        let lying6 = {
            let mut bytes = Packet::udp((web.v6, 1), (log.v6, LISTENED), MARKER).bytes();
            bytes[4..6].copy_from_slice(&1400_u16.to_be_bytes());
            frame::ethernet(log.mac, web.mac, tenet_tests::tunnel::IPV6, &bytes)
        };
        let fragment = |at| Packet { fragment: Some(at), ..from_h2(VSID, &good) };
        let cases = [
            ("unknown outer source", "unknown_pa", tunnel(method, stranger, h1, VSID, &good)),
            (
                "this host as outer source",
                "loop",
                tunnel(method, h1, h1, VSID, &self.inner(sql.v4, log.v4, sql.mac, log.mac)),
            ),
            (
                "inner source of this host",
                "wrong_pa",
                from_h2(VSID, &self.inner(sql.v4, log.v4, sql.mac, log.mac)),
            ),
            (
                "inner IPv6 source of this host",
                "wrong_pa",
                from_h2(VSID, &self.inner(sql.v6, log.v6, sql.mac, log.mac)),
            ),
            (
                "inner source of nobody",
                "wrong_pa",
                from_h2(VSID, &self.inner(nobody, log.v4, web.mac, log.mac)),
            ),
            (
                "inner IPv6 source of nobody",
                "wrong_pa",
                from_h2(VSID, &self.inner(nobody6, log.v6, web.mac, log.mac)),
            ),
            (
                "inner link-local source with the MAC of a VM of this host",
                "wrong_pa",
                from_h2(VSID, &self.inner(link_local, log.v6, sql.mac, log.mac)),
            ),
            (
                "inner source is the gateway",
                "wrong_pa",
                from_h2(VSID, &self.inner(gateway, log.v4, GATEWAY, log.mac)),
            ),
            (
                "broadcast from a wrong source",
                "wrong_pa",
                from_h2(
                    VSID,
                    &self.inner(sql.v4, Ipv4Addr::new(10, 1, 1, 255).into(), sql.mac, Mac::BROADCAST),
                ),
            ),
            ("another tenant's VSID", "unknown_mac", from_h2(6001, &good)),
            ("unknown VSID", "unknown_vsid", from_h2(7777, &good)),
            ("reserved VSID 0", "unknown_vsid", from_h2(0, &good)),
            (
                "inner destination is the host's MAC and PA",
                "unknown_mac",
                from_h2(VSID, &self.inner(web.v4, Ipv4Addr::new(192, 168, 1, 10).into(), web.mac, own)),
            ),
            (
                "inner destination is the gateway's MAC",
                "unknown_mac",
                from_h2(VSID, &self.inner(web.v6, log.v6, web.mac, GATEWAY)),
            ),
            (
                "a host is no transit",
                "unknown_mac",
                from_h2(VSID, &self.inner(web.v4, web.v4, web.mac, web.mac)),
            ),
            ("tagged inner frame", "inner_vlan", from_h2(VSID, &tagged)),
            (
                "inner source is a group",
                "malformed",
                from_h2(VSID, &self.inner(web.v4, log.v4, group, log.mac)),
            ),
            ("inner length lies", "malformed", from_h2(VSID, &lying)),
            ("inner IPv6 length lies", "malformed", from_h2(VSID, &lying6)),
            ("first outer fragment", "outer_fragment", fragment((0, true))),
            ("cut inside the inner header", "truncated", self.cut(method, &good, 24)),
        ];
        let case = |(what, reason, packet): (&str, &'static str, Packet)| Case {
            what: format!("{method} in {}: {what}", self.family),
            reason,
            packet,
        };
        cases.into_iter().chain(self.own_cases(method, &good)).map(case).collect()
    }

    /// An inner frame of which only the first bytes are there, in an outer packet without a lie.
    fn cut(&self, method: Method, inner: &[u8], length: usize) -> Packet {
        tunnel(method, self.h2, self.h1, VSID, &inner[..length])
    }

    /// What is special about a tunnel.
    fn own_cases(&self, method: Method, good: &[u8]) -> Vec<(&'static str, &'static str, Packet)> {
        let Self { h1, h2, .. } = *self;
        let vni = &VSID.to_be_bytes()[1..];
        let wrong_sum = |mut packet: Packet, at: usize| {
            packet.sum(at);
            packet.payload[at] ^= 0x55;
            packet
        };
        match method {
            Method::Nvgre => {
                let gre = |flags: [u8; 2], rest: &[u8]| {
                    let header = [&flags[..], &[0x65, 0x58], vni, &[1], rest].concat();
                    Packet::new(h2, h1, 47, [&header, good].concat())
                };
                // The others' later fragments have no port that tells them from the host's own: they pass, and its
                // stack, which never sees a first one, gives them up.
                let later = Packet { fragment: Some((20, false)), ..gre([0x20, 0], &[]) };
                vec![
                    ("later outer fragment", "outer_fragment", later),
                    ("checksum flag", "bad_tunnel_header", gre([0xa0, 0], &[])),
                    ("sequence flag", "bad_tunnel_header", gre([0x30, 0], &[])),
                ]
            }
            Method::Vxlan => {
                let vxlan = |first: u8| udp(h2, h1, 4789, &[&[first, 0, 0, 0], vni, &[0], good].concat());
                vec![
                    ("no I flag", "bad_tunnel_header", vxlan(0)),
                    ("cut inside the tunnel header", "truncated", udp(h2, h1, 4789, &[8, 0, 0, 0])),
                    ("wrong checksum", "outer_checksum", wrong_sum(vxlan(8), 6)),
                ]
            }
            Method::Geneve => {
                let geneve = |first: [u8; 2], ty: [u8; 2], options: &[u8]| {
                    udp(h2, h1, 6081, &[&first[..], &ty, vni, &[0], options, good].concat())
                };
                let eth = [0x65, 0x58];
                vec![
                    ("version 1", "tunnel_version", geneve([0x40, 0], eth, &[])),
                    ("control frame", "geneve_control", geneve([0, 0x80], eth, &[])),
                    ("critical option", "geneve_critical", geneve([1, 0x40], eth, &[1, 2, 0x80, 0])),
                    ("option longer than all", "geneve_options", geneve([1, 0], eth, &[1, 2, 0, 5])),
                    ("other payload type", "bad_tunnel_header", geneve([0, 0], [8, 0], &[])),
                    ("wrong checksum", "outer_checksum", wrong_sum(geneve([0, 0], eth, &[]), 6)),
                ]
            }
            Method::Stt => vec![
                ("version 1", "tunnel_version", stt(h2, h1, [1, 0, 0, 0], VSID, good)),
                ("wrong checksum", "outer_checksum", wrong_sum(stt(h2, h1, [0; 4], VSID, good), 16)),
            ],
            Method::Rewrite => Vec::new(),
        }
    }
}

#[test]
fn forged_tunnels_over_ipv4_are_dropped_for_the_right_reason() {
    forged(&OVER_V4, Family::V4);
}

#[test]
fn forged_tunnels_over_ipv6_are_dropped_for_the_right_reason() {
    forged(&OVER_V6, Family::V6);
}

fn forged(lab: &'static Fixture, family: Family) {
    let Some(world) = lab.world() else { return };
    let outside = Outside::new(&world, family);
    let watches: Vec<_> = world.vms().into_iter().map(|vm| (world.nic(&vm).watch(), vm)).collect();
    let listener = listener(&world);
    let mut wrong = Vec::new();
    let mut cases = 0;
    for case in TUNNELS.into_iter().flat_map(|m| outside.cases(m)) {
        cases += 1;
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| outside.is_dropped(&case)));
        if let Err(panic) = checked {
            wrong.push(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| case.what.clone()));
        }
    }
    for (watch, vm) in watches {
        let got = watch.stop().into_iter().filter(|f| holds(f)).count();
        if got > 0 {
            wrong.push(format!("{vm} got {got} frames that are not its"));
        }
    }
    if let Some(bytes) = heard(&listener) {
        wrong.push(format!("the host's stack got {bytes:?}"));
    }
    println!("{cases} cases over {family}");
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));

    // The same frames with nothing wrong arrive, of either family, whatever the network's own method is.
    let watch = world.nic("contoso/log").watch();
    let (web, log) = (outside.web, outside.log);
    let mut expected = Vec::new();
    for method in TUNNELS {
        for (src, dst) in [(web.v4, log.v4), (web.v6, log.v6)] {
            let marker = format!("good {method} {}", Family::of(&src)).into_bytes();
            let inner = Packet::udp((src, 1), (dst, LISTENED), &marker).frame(log.mac, web.mac);
            outside.send(&tunnel(method, outside.h2, outside.h1, VSID, &inner));
            expected.push((format!("{method}, {} inside", Family::of(&src)), inner));
        }
    }
    // Reserved bits mean nothing on receipt (RFC 7348 §5), nor do options that need not be understood.
    let vni = &VSID.to_be_bytes()[1..];
    let inner = Packet::udp((web.v4, 2), (log.v4, LISTENED), b"good, reserved bits").frame(log.mac, web.mac);
    let reserved = [&[0xff, 1, 2, 3], vni, &[4], &inner].concat();
    outside.send(&udp(outside.h2, outside.h1, 4789, &reserved));
    expected.push(("VXLAN with reserved bits".to_owned(), inner));
    let inner = Packet::udp((web.v4, 3), (log.v4, LISTENED), b"good, an option").frame(log.mac, web.mac);
    let option = [&[2, 0, 0x65, 0x58], vni, &[0, 1, 2, 3, 1, 9, 9, 9, 9], &inner].concat();
    outside.send(&udp(outside.h2, outside.h1, 6081, &option));
    expected.push(("Geneve with an option".to_owned(), inner));
    let log = world.nic("contoso/log");
    assert!(log.ping(GATEWAY, log.gateway));
    let got = watch.stop();
    let missing: Vec<_> = expected.iter().filter(|(_, f)| !got.contains(f)).map(|(what, _)| what).collect();
    assert!(missing.is_empty(), "good frames did not arrive: {missing:?}");
}

#[test]
fn forged_rewrite_addresses_over_ipv4_are_dropped() {
    forged_rewrites(&OVER_V4, Family::V4);
}

#[test]
fn forged_rewrite_addresses_over_ipv6_are_dropped() {
    forged_rewrites(&OVER_V6, Family::V6);
}

fn forged_rewrites(lab: &'static Fixture, family: Family) {
    let Some(world) = lab.world() else { return };
    for network in ["contoso/prod", "fabrikam/prod"] {
        world.set_method(network, Method::Rewrite);
    }
    let outside = Outside::new(&world, family);
    let watches: Vec<_> = world.vms().into_iter().map(|vm| (world.nic(&vm).watch(), vm)).collect();
    let listener = listener(&world);
    for inside in [Family::V4, Family::V6] {
        let of = |vm: &str| rewrite_address(&world, vm, inside);
        let (log, sql, web) = (of("contoso/log"), of("contoso/sql"), of("contoso/web"));
        let fabrikam = of("fabrikam/sql");
        let unused = unused_address(&world, "h1", inside);
        let stranger: IpAddr = match inside {
            Family::V4 => Ipv4Addr::new(192, 168, 2, 99).into(),
            Family::V6 => Ipv6Addr::new(0xfd7e, 192, 168, 2, 0, 0, 0, 99).into(),
        };
        let udp = |src, dst| Packet::udp((src, 1), (dst, LISTENED), MARKER);
        let cases = [
            ("from an unknown address", "rewrite_pair", udp(stranger, log)),
            ("from another tenant's address", "rewrite_pair", udp(fabrikam, log)),
            ("from an address of this host", "loop", udp(sql, log)),
            ("from itself", "loop", udp(log, log)),
            ("to an address that stands for nobody", "rewrite_unknown", udp(web, unused)),
            ("another tenant's, to nobody", "rewrite_unknown", udp(fabrikam, unused)),
        ];
        for (what, reason, packet) in cases {
            let what = format!("{inside} over {family}: {what}");
            outside.is_dropped(&Case { what, reason, packet });
        }
    }
    for (watch, vm) in watches {
        assert_eq!(watch.stop().into_iter().find(|f| holds(f)), None, "{vm} got a frame that is not its");
    }
    assert_eq!(heard(&listener), None, "the host's stack");

    // A VM cannot speak to or as a rewrite address: it is on no network of its tenant.
    let sql = world.lab.vm("contoso/sql").unwrap();
    for inside in [Family::V4, Family::V6] {
        let address = rewrite_address(&world, "contoso/web", inside);
        let answer = tenet_lab::tool::ask(sql.netns(), address, SILENCE).unwrap();
        assert_eq!(answer, None, "{address} is not a customer address");
    }

    // With nothing wrong it arrives, as from the customer address.
    let watch = world.nic("contoso/log").watch();
    for inside in [Family::V4, Family::V6] {
        let of = |vm: &str| rewrite_address(&world, vm, inside);
        outside.send(&Packet::udp((of("contoso/web"), 1), (of("contoso/log"), LISTENED), b"good"));
    }
    let log = world.nic("contoso/log");
    assert!(log.ping(GATEWAY, log.gateway));
    let got = watch.stop();
    for (src, dst) in [(outside.web.v4, outside.log.v4), (outside.web.v6, outside.log.v6)] {
        let expected =
            Packet::udp((src, 1), (dst, LISTENED), b"good").frame(outside.log.mac, outside.web.mac);
        assert!(
            got.contains(&expected),
            "{src} to {dst} is delivered with the customers' addresses and checksum"
        );
    }
    for network in ["contoso/prod", "fabrikam/prod"] {
        world.set_method(network, Method::Nvgre);
    }
}

/// The provider address that stands for a VM's address of a family.
fn rewrite_address(world: &World, vm: &str, family: Family) -> IpAddr {
    let view = block_on(world.client.vm(&vm.parse().unwrap())).unwrap();
    let found = view.ports[0].rewrite.iter().find(|(ca, _)| Family::of(ca) == family).map(|(_, pa)| *pa);
    found.unwrap_or_else(|| panic!("{vm} has no rewrite address of {family}: {view:?}"))
}

/// The last address of a host's range of a family, which stands for nobody.
fn unused_address(world: &World, host: &str, family: Family) -> IpAddr {
    let hosts = block_on(world.client.site()).unwrap().hosts;
    let pools = hosts.into_iter().find(|h| h.name.as_str() == host).and_then(|h| h.rewrite_pool);
    let pool = pools.unwrap_or_default().into_iter().find(|p| Family::of(&p.addr()) == family).unwrap();
    match pool.broadcast() {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() - 1).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() - 1).into(),
    }
}

fn holds(frame: &[u8]) -> bool {
    frame.windows(MARKER.len()).any(|w| w == MARKER)
}

/// Whatever of the host's stack would hear a datagram for any of its addresses.
fn listener(world: &World) -> UdpSocket {
    let netns = world.lab.host("h1").unwrap().netns().clone();
    let socket = netns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LISTENED))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2000];
    socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
}
