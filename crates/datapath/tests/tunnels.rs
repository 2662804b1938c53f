//! Two hosts and a wire, with the kernel's own stacks in the VMs: every tunnel over both families carries both families,
//! large frames stay whole, and the kernel's own vxlan device is understood and understands.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::tap::Relay;
use common::{Pins, has, root};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tenet_datapath::{Datapath, Hook, Image, Role};
use tenet_hostnet::{Links, Netns, TapOptions, UdpTunnel};
use tenet_tables::{
    Addr, Config, DEVICE_TAP, DEVICE_VETH, DropReason, GATEWAY_MAC, GENEVE_PORT, LAYOUT_VERSION,
    METHOD_GENEVE, METHOD_NVGRE, METHOD_VXLAN, MacEntry, MacKey, PORT_ACTIVE, PORT_FLAG_SECURITY, Peer,
    PeerKey, Port, Record, RecordKey, Subnet, VXLAN_PORT,
};
use tenet_wire::{Envelope, Mac};

const NET: u32 = 1;
const VSID: u32 = 5001;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x12]];
const UNDERLAY_MTU: u32 = 1500;
const PATIENCE: Duration = Duration::from_secs(10);
/// Not a multiple of a segment, so that a swapped one does not look like the right one.
const BLOCK: usize = 99_991;
const BLOCKS: usize = 60;

/// What is different from site to site.
#[derive(Clone, Copy, Debug)]
struct Setup {
    method: u8,
    /// Whether the hosts have IPv6 addresses.
    v6: bool,
    /// Whether the wire takes large frames, as one between two veths does, or segments, as a cable does.
    offloads: bool,
    /// Whether the second host is one of ours, its VM on a tap; else it is nobody's yet.
    ours: bool,
}

impl Setup {
    fn pa(&self, host: usize) -> IpAddr {
        let last = 1 + host as u8;
        if self.v6 {
            Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(10, 99, 0, last).into()
        }
    }

    fn inner_mtu(&self) -> u32 {
        let udp = self.method != METHOD_NVGRE;
        // The inner link header takes the place of the outer one, which the overhead counts.
        UNDERLAY_MTU - Envelope { v6: self.v6, udp }.overhead()
    }
}

fn ca(vm: usize, v6: bool) -> IpAddr {
    let last = 11 + vm as u8;
    if v6 {
        Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into()).into()
    } else {
        Ipv4Addr::new(10, 1, 1, last).into()
    }
}

fn lengths(v6: bool) -> u8 {
    if v6 { 64 } else { 24 }
}

struct Site {
    setup: Setup,
    hosts: [Netns; 2],
    /// Where the customer addresses are.
    vms: [Netns; 2],
    planes: Vec<Datapath>,
    relay: Option<Relay>,
    _pins: Vec<Pins>,
}

impl Site {
    fn new(setup: Setup) -> Self {
        let namespaces = || [Netns::anonymous().unwrap(), Netns::anonymous().unwrap()];
        let (hosts, mut vms) = (namespaces(), namespaces());
        let links = hosts.each_ref().map(|h| Links::in_netns(h).unwrap());
        links[0].add_veth("up", "up", &hosts[1]).unwrap();
        for (i, link) in links.iter().enumerate() {
            link.set_sysctl("ipv6/conf/up/disable_ipv6", "0").unwrap();
            link.set_up("up").unwrap();
            link.add_addr("up", setup.pa(i), lengths(setup.v6)).unwrap();
        }
        if !setup.offloads {
            links[0].set_offloads("up", false).unwrap();
            links[1].set_offloads("up", true).unwrap();
        }
        links[0].add_veth("port", "eth0", &vms[0]).unwrap();
        let relay = setup.ours.then(|| {
            let inside = Links::in_netns(&vms[1]).unwrap();
            links[1].add_tap("port", TapOptions::default()).unwrap();
            inside.add_tap("eth0", TapOptions::default()).unwrap();
            let end = |l: &Links, name| l.open_tap(name, TapOptions::default()).unwrap();
            Relay::start(end(&links[1], "port"), end(&inside, "eth0"))
        });
        let ours = if setup.ours { 2 } else { 1 };
        let mut pins = Vec::new();
        let mut planes = Vec::new();
        for i in 0..ours {
            links[i].quiet("port").unwrap();
            links[i].set_up("port").unwrap();
            set_up_vm(&vms[i], "eth0", i, setup.inner_mtu());
            for (tunnel, port) in [(UdpTunnel::Vxlan, VXLAN_PORT), (UdpTunnel::Geneve, GENEVE_PORT)] {
                links[i].ensure_udp_gro(tunnel, port).unwrap();
            }
            pins.push(Pins::new(&hosts[i], Hook::Tcx));
            let plane = pins[i].open();
            let hub = if i == 1 { hosts[1].run(|| plane.ensure_hub()).unwrap().unwrap() } else { 0 };
            let number = |name| links[i].index(name).unwrap();
            let image = image(&setup, i, number("port"), number("up"), hub);
            plane.apply(&Image::default().operations_to(&image)).unwrap();
            hosts[i].run(|| plane.attach_name("port", Role::Port)).unwrap().unwrap();
            hosts[i].run(|| plane.attach_name("up", Role::Uplink)).unwrap().unwrap();
            planes.push(plane);
        }
        if !setup.ours {
            vms[1] = hosts[1].clone();
        }
        Self { setup, hosts, vms, planes, relay, _pins: pins }
    }

    /// Sends so many blocks from one VM to the other, which compares them.
    fn transfer(&self, from: usize, v6: bool) {
        let context = || format!("{:?}, from {from}, inner v6 {v6}, drops {:?}", self.setup, self.drops());
        let to = 1 - from;
        let listener = self.vms[to].run(|| TcpListener::bind((ca(to, v6), 0))).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let connect = || TcpStream::connect_timeout(&target, PATIENCE);
                let mut stream =
                    self.vms[from].run(connect).unwrap().unwrap_or_else(|e| panic!("{e}: {}", context()));
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let block = block();
                for _ in 0..BLOCKS {
                    stream.write_all(&block).unwrap();
                }
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (block, mut got) = (block(), vec![0; BLOCK]);
            for n in 0..BLOCKS {
                stream.read_exact(&mut got).unwrap_or_else(|e| panic!("{e} at block {n}: {}", context()));
                assert!(got == block, "block {n} is not what was sent: {}", context());
            }
        });
    }

    /// A datagram there and back.
    fn echo(&self, v6: bool, payload: &[u8]) -> bool {
        let bind = |i: usize| self.vms[i].run(|| UdpSocket::bind((ca(i, v6), 0))).unwrap().unwrap();
        let sockets = [bind(0), bind(1)];
        let mut buffer = vec![0; 65536];
        for s in &sockets {
            s.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        sockets[0].send_to(payload, sockets[1].local_addr().unwrap()).unwrap();
        let Ok((len, from)) = sockets[1].recv_from(&mut buffer) else { return false };
        sockets[1].send_to(&buffer[..len], from).unwrap();
        let Ok((len, _)) = sockets[0].recv_from(&mut buffer) else { return false };
        buffer[..len] == *payload
    }

    fn drops(&self) -> Vec<String> {
        self.planes.iter().map(|p| format!("{:?}", p.drops().unwrap())).collect()
    }

    fn count(&self, reason: DropReason) -> u64 {
        let of = |plane: &Datapath| -> u64 {
            plane.drops().unwrap().iter().filter(|(key, _)| key.1 == reason).map(|(_, n)| *n).sum()
        };
        self.planes.iter().map(of).sum()
    }

    /// Bytes and frames that the first VM's device got so far, as its kernel counts them.
    fn received(&self) -> (u64, u64) {
        let text = self.vms[0].run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
        let line = text.lines().find_map(|l| l.trim().strip_prefix("eth0:")).unwrap().to_owned();
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    }
}

fn set_up_vm(netns: &Netns, link: &str, vm: usize, mtu: u32) {
    let inside = Links::in_netns(netns).unwrap();
    inside.set_mac(link, MACS[vm]).unwrap();
    inside.set_mtu(link, mtu).unwrap();
    inside.set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "0").unwrap();
    inside.set_up(link).unwrap();
    for v6 in [false, true] {
        inside.add_addr(link, ca(vm, v6), lengths(v6)).unwrap();
    }
}

fn block() -> Vec<u8> {
    (0..BLOCK).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn image(setup: &Setup, own: usize, port: u32, uplink: u32, hub: u32) -> Image {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: setup.pa(own).into(),
            gateway_mac: GATEWAY_MAC,
            hub,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            ..Config::default()
        }),
        ..Image::default()
    };
    let subnet = Subnet {
        net: NET,
        prefix_len: 96 + 24,
        prefix6_len: 64,
        method: setup.method.into(),
        gateway: IpAddr::from([10, 1, 1, 1]).into(),
        gateway6: Addr::v6([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        generation: 1,
    };
    image.subnets.insert(VSID, subnet);
    for (i, mac) in MACS.map(Mac::new).into_iter().enumerate() {
        let pa = Addr::from(setup.pa(i));
        let ifindex = if i == own { port } else { 0 };
        for v6 in [false, true] {
            let key = RecordKey { net: NET, ca: ca(i, v6).into() };
            let record = Record { pa, mac, method: setup.method, vsid: VSID, ifindex, ..Record::default() };
            image.records.insert(key, record);
        }
        let entry = MacEntry { pa, ifindex, method: setup.method.into() };
        image.macs.insert(MacKey { vsid: VSID, mac, reserved: 0 }, entry);
        for net in [0, NET] {
            image.peers.insert(PeerKey { net, pa }, Peer::default());
        }
    }
    let port_row = Port {
        net: NET,
        vsid: VSID,
        mac: Mac::new(MACS[own]),
        mtu: setup.inner_mtu() as u16,
        state: PORT_ACTIVE,
        device: if own == 1 { DEVICE_TAP } else { DEVICE_VETH },
        flags: PORT_FLAG_SECURITY,
        flood_rate: 100,
        flood_burst: 100,
        generation: 1,
        ..Port::default()
    };
    image.ports.insert(port, port_row);
    image
}

fn can() -> bool {
    root() && has(Hook::Tcx)
}

fn carries(method: u8) {
    if !can() {
        return;
    }
    for (v6, offloads) in [(false, true), (false, false), (true, true), (true, false)] {
        let setup = Setup { method, v6, offloads, ours: true };
        let site = Site::new(setup);
        let relay = site.relay.as_ref().unwrap();
        for inner_v6 in [false, true] {
            let context = || format!("{setup:?}, inner v6 {inner_v6}, drops {:?}", site.drops());
            // The smallest packets are shorter than a header of the outer family.
            assert!(site.echo(inner_v6, b""), "{}", context());
            assert!(site.echo(inner_v6, &[7; 4000]), "fragments, {}", context());
            let before = relay.seen();
            site.transfer(0, inner_v6);
            let into = relay.seen().since(&before);
            println!("{setup:?}, inner v6 {inner_v6}: {} bytes a frame into the tap", into.mean_in());
            assert!(into.mean_in() > 5000, "{into:?}, {}", context());
            let before = site.received();
            site.transfer(1, inner_v6);
            let (bytes, frames) = site.received();
            let mean = (bytes - before.0) / (frames - before.1);
            println!("{setup:?}, inner v6 {inner_v6}: {mean} bytes a frame into the veth");
            assert!(mean > 5000, "{mean}, {}", context());
        }
        assert_eq!(site.count(DropReason::KernelRefused), 0, "{:?}", site.drops());
    }
}

#[test]
fn nvgre_carries_both_families_over_both_families() {
    carries(METHOD_NVGRE);
}

#[test]
fn vxlan_carries_both_families_over_both_families() {
    carries(METHOD_VXLAN);
}

/// Where the kernel has no geneve device, a vxlan device on Geneve's port has it join the segments.
#[test]
fn geneve_carries_both_families_over_both_families() {
    carries(METHOD_GENEVE);
}

/// What the sockets are for: without them every segment comes alone.
#[test]
fn without_a_socket_segments_stay_single() {
    if !can() {
        return;
    }
    let site = Site::new(Setup { method: METHOD_VXLAN, v6: false, offloads: false, ours: true });
    Links::in_netns(&site.hosts[1]).unwrap().keep_udp_gro(&[]).unwrap();
    let before = site.relay.as_ref().unwrap().seen();
    site.transfer(0, false);
    let into = site.relay.as_ref().unwrap().seen().since(&before);
    assert!(into.mean_in() < 1600, "{into:?}");
}

/// The other end is the kernel's vxlan device, with and without checksums, on a wire that takes large frames (where the
/// kernel leaves checksums for later) and on one that does not.
#[test]
fn the_kernels_vxlan_device_understands_and_is_understood() {
    if !can() {
        return;
    }
    for v6 in [false, true] {
        for offloads in [true, false] {
            for checksum in ["noudpcsum udp6zerocsumtx", "udpcsum noudp6zerocsumtx"] {
                let setup = Setup { method: METHOD_VXLAN, v6, offloads, ours: false };
                let site = Site::new(setup);
                kernels_vxlan(&site, checksum);
                for inner_v6 in [false, true] {
                    let context =
                        || format!("{setup:?} {checksum} inner v6 {inner_v6} drops {:?}", site.drops());
                    assert!(site.echo(inner_v6, b"x"), "{}", context());
                    assert!(site.echo(inner_v6, &[7; 4000]), "fragments, {}", context());
                    site.transfer(0, inner_v6);
                    site.transfer(1, inner_v6);
                }
                assert_eq!(site.count(DropReason::OuterChecksum), 0, "{setup:?} {checksum}");
                assert_eq!(site.count(DropReason::KernelRefused), 0, "{setup:?} {checksum}");
            }
        }
    }
}

/// Gives the second host the kernel's device, with the second VM's addresses. Neighbours are told: ours answers no
/// broadcasts of strangers.
fn kernels_vxlan(site: &Site, checksum: &str) {
    let ip = |args: &str| {
        let output = site.hosts[1].command("ip").args(args.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let [remote, local] = [site.setup.pa(0), site.setup.pa(1)];
    ip(&format!(
        "link add vx type vxlan id {VSID} local {local} remote {remote} dstport {VXLAN_PORT} {checksum} udp6zerocsumrx"
    ));
    set_up_vm(&site.hosts[1], "vx", 1, site.setup.inner_mtu());
    let mac = MACS[0].map(|o| format!("{o:02x}")).join(":");
    for v6 in [false, true] {
        ip(&format!("neigh add {} lladdr {mac} dev vx", ca(0, v6)));
    }
}
