//! VMs that speak IPv6, with the kernel's own stack in them: neighbours, routers, sizes.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{Pins, has, root};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};
use tenet_datapath::{Datapath, Hook, Image, Role};
use tenet_hostnet::{Links, Netns};
use tenet_tables::image::Prefix;
use tenet_tables::{
    Addr, Config, Counters, DEVICE_VETH, DropReason, FloodEntry, FloodKey, GATEWAY_LINK_LOCAL, GATEWAY_MAC,
    GENEVE_PORT, LAYOUT_VERSION, METHOD_GATEWAY, METHOD_GENEVE, METHOD_NVGRE, METHOD_VXLAN, MacEntry, MacKey,
    PORT_ACTIVE, PORT_FLAG_AUTOCONF, PORT_FLAG_SECURITY, Peer, PeerKey, Port, Record, RecordKey, Route,
    Subnet, VXLAN_PORT,
};
use tenet_wire::Mac;

const NET: u32 = 1;
/// Two VMs in one subnet, and one in another.
const VSIDS: [u32; 3] = [5001, 5001, 5002];
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x12], [2, 0, 0, 0, 0, 0x13]];
const MTU: u16 = 1400;
/// Flags of an address, as the kernel writes them.
const TENTATIVE: u8 = 0x40;
const FAILED: u8 = 0x08;
const PATIENCE: Duration = Duration::from_secs(15);

fn ca(i: usize) -> Ipv6Addr {
    // The second forms its address itself, of its MAC.
    let last: [u16; 4] = if i == 1 { [0, 0xff, 0xfe00, 0x12] } else { [0, 0, 0, 0x10 + i as u16] };
    let [a, b, c, d] = last;
    Ipv6Addr::new(0xfd00, 1, 0, (VSIDS[i] - 5000) as u16, a, b, c, d)
}

fn ca4(i: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, (VSIDS[i] - 5000) as u8, 0x10 + i as u8)
}

fn gateway(vsid: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, (vsid - 5000) as u16, 0, 0, 0, 1)
}

/// How the provider network carries what goes from host to host.
#[derive(Clone, Copy, Debug)]
struct Outside {
    method: u8,
    v6: bool,
}

impl Outside {
    fn pa(self, host: usize) -> IpAddr {
        let last = host as u8 + 1;
        if self.v6 {
            Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(192, 0, 2, last).into()
        }
    }
}

/// One host with all VMs, or two: the first VM on the first, the others on the second.
struct Site {
    vms: [Netns; 3],
    /// The data plane under each VM.
    planes: Vec<Datapath>,
    under: [usize; 3],
    ports: [u32; 3],
    _hosts: Vec<Netns>,
    _pins: Vec<Pins>,
}

fn sysctl(netns: &Netns, key: &str, value: &str) {
    netns.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value)).unwrap().unwrap();
}

impl Site {
    fn new(outside: Option<Outside>) -> Self {
        let count = if outside.is_some() { 2 } else { 1 };
        let under = if outside.is_some() { [0, 1, 1] } else { [0; 3] };
        let hosts: Vec<Netns> = (0..count).map(|_| Netns::anonymous().unwrap()).collect();
        let links: Vec<Links> = hosts.iter().map(|h| Links::in_netns(h).unwrap()).collect();
        let vms = [(); 3].map(|()| Netns::anonymous().unwrap());
        if let Some(outside) = outside {
            links[0].add_veth("up", "up", &hosts[1]).unwrap();
            for (i, links) in links.iter().enumerate() {
                sysctl(&hosts[i], "ipv6/conf/up/accept_dad", "0");
                links.set_up("up").unwrap();
                links.add_addr("up", outside.pa(i), if outside.v6 { 64 } else { 24 }).unwrap();
            }
        }
        let pins: Vec<Pins> = hosts.iter().map(|h| Pins::new(h, Hook::Tcx)).collect();
        let planes: Vec<Datapath> = pins.iter().map(Pins::open).collect();
        let mut ports = [0; 3];
        for (i, vm) in vms.iter().enumerate() {
            let name = format!("port{i}");
            let links = &links[under[i]];
            links.add_veth(&name, "eth0", vm).unwrap();
            links.quiet(&name).unwrap();
            links.set_up(&name).unwrap();
            ports[i] = links.index(&name).unwrap();
        }
        for (h, plane) in planes.iter().enumerate() {
            let uplink = if outside.is_some() { links[h].index("up").unwrap() } else { 0 };
            let outside = outside.unwrap_or(Outside { method: METHOD_NVGRE, v6: false });
            plane.apply(&Image::default().operations_to(&image(h, ports, under, uplink, outside))).unwrap();
            if uplink != 0 {
                hosts[h].run(|| plane.attach(uplink, Role::Uplink)).unwrap().unwrap();
            }
        }
        for (i, vm) in vms.iter().enumerate() {
            let h = under[i];
            hosts[h].run(|| planes[h].attach(ports[i], Role::Port)).unwrap().unwrap();
            let inside = Links::in_netns(vm).unwrap();
            inside.set_mac("eth0", MACS[i]).unwrap();
            sysctl(vm, "ipv6/conf/eth0/disable_ipv6", "0");
            sysctl(vm, "ipv6/conf/eth0/accept_ra", "1");
            sysctl(vm, "ipv6/conf/eth0/router_solicitation_delay", "0");
            if i == 0 {
                // This one has to learn the size of packets the hard way.
                sysctl(vm, "ipv6/conf/eth0/accept_ra_mtu", "0");
            }
            inside.set_up("eth0").unwrap();
            if i != 1 {
                inside.add_addr("eth0", ca(i).into(), 64).unwrap();
            }
            inside.add_addr("eth0", ca4(i).into(), 24).unwrap();
        }
        let site = Self { vms, planes, under, ports, _hosts: hosts, _pins: pins };
        for i in 0..3 {
            site.wait(|| site.usable(i, &ca(i)), &format!("VM {i} has no address {}", ca(i)));
        }
        site
    }

    fn wait(&self, done: impl Fn() -> bool, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            if Instant::now() > end {
                for i in 0..3 {
                    eprintln!("VM {i}: {}\n{}", self.read(i, "if_inet6"), self.read(i, "ipv6_route"));
                }
                panic!("{what}; {}", self.drops());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn drops(&self) -> String {
        self.planes.iter().map(|p| format!("drops {:?}\n", p.drops().unwrap())).collect()
    }

    /// The counters of a VM's port.
    fn counters(&self, vm: usize) -> Counters {
        self.planes[self.under[vm]].counters().unwrap()[&self.ports[vm]]
    }

    fn read(&self, vm: usize, file: &str) -> String {
        self.vms[vm]
            .run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))
            .unwrap()
            .unwrap()
    }

    /// Whether the VM has the address and has found it to be its own alone.
    fn usable(&self, vm: usize, address: &Ipv6Addr) -> bool {
        self.flags(vm, address).is_some_and(|f| f & (TENTATIVE | FAILED) == 0)
    }

    /// Whether the VM has found somebody else to have the address.
    fn is_duplicate(&self, vm: usize, address: &Ipv6Addr) -> bool {
        self.flags(vm, address).is_some_and(|f| f & FAILED != 0)
    }

    fn flags(&self, vm: usize, address: &Ipv6Addr) -> Option<u8> {
        let hex: String = address.octets().iter().map(|o| format!("{o:02x}")).collect();
        self.read(vm, "if_inet6").lines().find_map(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            (words[0] == hex).then(|| u8::from_str_radix(words[4], 16).unwrap())
        })
    }

    /// A datagram there and back.
    fn echo(&self, from: (usize, IpAddr), to: (usize, IpAddr), len: usize) -> bool {
        let socket = |(vm, address): (usize, IpAddr)| {
            let scope = self.vms[vm].run(|| Links::here().unwrap().index("eth0").unwrap()).unwrap();
            let socket = self.vms[vm]
                .run(|| {
                    UdpSocket::bind(match address {
                        IpAddr::V6(a) => SocketAddr::V6(std::net::SocketAddrV6::new(a, 0, 0, scope)),
                        IpAddr::V4(_) => SocketAddr::new(address, 0),
                    })
                })
                .unwrap()
                .unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            (socket, scope)
        };
        let ((a, scope), (b, _)) = (socket(from), socket(to));
        let mut target = b.local_addr().unwrap();
        if let SocketAddr::V6(t) = &mut target {
            t.set_scope_id(scope);
        }
        let payload = vec![7; len];
        let mut buffer = vec![0; 65536];
        if a.send_to(&payload, target).is_err() {
            return false;
        }
        let Ok((n, back)) = b.recv_from(&mut buffer) else { return false };
        b.send_to(&buffer[..n], back).is_ok()
            && a.recv_from(&mut buffer).is_ok_and(|(n, _)| buffer[..n] == payload)
    }

    /// Whether a ping of this address is answered.
    fn ping(&self, vm: usize, target: Ipv6Addr) -> bool {
        self.vms[vm].run(|| ping(target, Links::here().unwrap().index("eth0").unwrap())).unwrap()
    }

    /// Opens a connection and sends something large; the segment size that the sender came to.
    fn connect(&self, from: usize, to: SocketAddr, server: usize) -> u32 {
        const BYTES: usize = 1_000_000;
        let listener = self.vms[server].run(|| TcpListener::bind(to)).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut stream = self.vms[from].run(|| TcpStream::connect(target)).unwrap().unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&vec![5; BYTES]).unwrap();
                segment(&stream)
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut all = Vec::new();
            (&mut stream).take(BYTES as u64).read_to_end(&mut all).unwrap();
            assert!(all.len() == BYTES && all.iter().all(|b| *b == 5));
            sender.join().unwrap()
        })
    }
}

fn segment(stream: &TcpStream) -> u32 {
    let mut value = 0u32;
    let mut len = size_of::<u32>() as u32;
    // SAFETY: the value is live and as long as said.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

fn ping(target: Ipv6Addr, scope: u32) -> bool {
    // SAFETY: no pointers; the descriptor is owned at once.
    let socket = unsafe {
        OwnedFd::from_raw_fd(libc::socket(
            libc::AF_INET6,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ICMPV6,
        ))
    };
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let to = std::net::SocketAddrV6::new(target, 0, 0, scope);
    let mut ping = vec![128, 0, 0, 0, 0x54, 0x65, 0, 1];
    ping.resize(200, 9);
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if socket.send_to(&ping, to).is_err() {
            continue;
        }
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if buffer[0] == 129 && buffer[4..n] == ping[4..] && from.ip() == IpAddr::V6(target) {
                return true;
            }
        }
    }
    false
}

fn image(own: usize, ports: [u32; 3], under: [usize; 3], uplink: u32, outside: Outside) -> Image {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: outside.pa(own).into(),
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            gateway_mac: GATEWAY_MAC,
            ..Config::default()
        }),
        ..Image::default()
    };
    for vsid in [5001, 5002] {
        let third = (vsid - 5000) as u8;
        let subnet = Subnet {
            net: NET,
            prefix_len: 96 + 24,
            prefix6_len: 64,
            method: outside.method.into(),
            gateway: Addr::v4([10, 1, third, 1]),
            gateway6: IpAddr::from(gateway(vsid)).into(),
            generation: 1,
        };
        for gateway in [subnet.gateway, subnet.gateway6] {
            let record = Record { mac: GATEWAY_MAC, method: METHOD_GATEWAY, vsid, ..Record::default() };
            image.records.insert(RecordKey { net: NET, ca: gateway }, record);
        }
        let prefixes =
            [(Addr::v4([10, 1, third, 0]), 120), (tenet_forward::model::truncate(subnet.gateway6, 64), 64)];
        for (ca, len) in prefixes {
            image.routes.insert(Prefix { net: NET, ca, len }, Route::default());
        }
        image.subnets.insert(vsid, subnet);
    }
    for host in 0..2 {
        for net in [0, NET] {
            image.peers.insert(PeerKey { net, pa: outside.pa(host).into() }, Peer::default());
        }
    }
    let mut positions = [0; 2];
    for (i, port) in ports.into_iter().enumerate() {
        let pa: Addr = outside.pa(under[i]).into();
        let ifindex = if under[i] == own { port } else { 0 };
        let (vsid, mac, method) = (VSIDS[i], Mac::new(MACS[i]), outside.method);
        let record = Record { pa, mac, method, vsid, ifindex, generation: 1, ..Record::default() };
        for address in [IpAddr::from(ca(i)), IpAddr::from(ca4(i))] {
            image.records.insert(RecordKey { net: NET, ca: address.into() }, record);
        }
        let entry = MacEntry { pa, ifindex, method: method.into() };
        image.macs.insert(MacKey { vsid, mac, reserved: 0 }, entry);
        let index = &mut positions[(vsid - 5001) as usize];
        let to = FloodEntry { pa: if ifindex == 0 { pa } else { Addr::UNSET }, ifindex };
        image.flood.insert(FloodKey { vsid, index: *index }, to);
        *index += 1;
        if ifindex == 0 {
            continue;
        }
        let port = Port {
            net: NET,
            vsid,
            mac,
            mtu: MTU,
            state: PORT_ACTIVE,
            device: DEVICE_VETH,
            flags: PORT_FLAG_SECURITY | if i == 1 { PORT_FLAG_AUTOCONF } else { 0 },
            flood_rate: 1000,
            flood_burst: 1000,
            generation: 1,
            ..Port::default()
        };
        image.ports.insert(ifindex, port);
    }
    image
}

/// All that VMs of IPv6 do beside sending: also through their gateway, and from host to host.
fn machines_find_each_other(outside: Option<Outside>) {
    let site = Site::new(outside);
    let what = |what: &str| format!("{what}, {outside:?}");
    let v6 = |i: usize| (i, IpAddr::from(ca(i)));
    // The first forms no address of its own though it hears the prefix, the second has nothing else.
    assert!(!site.usable(0, &Ipv6Addr::new(0xfd00, 1, 0, 1, 0, 0xff, 0xfe00, 0x11)));
    site.wait(|| site.echo(v6(0), v6(1), 100), &what("same subnet"));
    site.wait(|| site.echo(v6(0), v6(2), 100), &what("other subnet: no default route by advertisement?"));
    let local =
        |i: usize| (i, IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x11 + i as u16)));
    site.wait(|| site.echo(local(0), local(1), 100), &what("link-local"));
    // One that was formed of no MAC, which nobody but its owner knows.
    let opaque = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);
    Links::in_netns(&site.vms[1]).unwrap().add_addr("eth0", opaque.into(), 64).unwrap();
    site.wait(|| site.usable(1, &opaque), "no second link-local address");
    site.wait(|| site.echo(local(0), (1, opaque.into()), 100), &what("link-local by a flood"));
    let IpAddr::V6(router) = IpAddr::from(GATEWAY_LINK_LOCAL) else { panic!() };
    for (vm, target) in
        [(0, gateway(5001)), (0, router), (2, gateway(5002)), (2, gateway(5001)), (0, ca(2)), (0, ca(1))]
    {
        assert!(site.ping(vm, target), "VM {vm} to {target}, {outside:?}; {}", site.drops());
    }
    let mtu =
        site.vms[1].run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu")).unwrap().unwrap();
    assert_eq!(mtu.trim(), MTU.to_string(), "the advertised one");
    for vm in 0..3 {
        assert!(site.counters(vm).answered > 0, "{:?}", site.counters(vm));
    }
    // Another VM that wants an address in use is told so, by the table or by its owner.
    for address in [ca(1), opaque] {
        let add = format!("-6 address add {address}/64 dev eth0");
        match site.vms[0].command("ip").args(add.split(' ')).status() {
            Ok(status) if status.success() => {}
            other => {
                eprintln!("SKIPPED: duplicates need iproute2: {other:?}");
                return;
            }
        }
        site.wait(|| site.is_duplicate(0, &address), &what("a duplicate goes unnoticed"));
    }
}

/// VMs hear of the network's MTU, whatever they believe theirs is.
fn senders_hear_of_sizes(outside: Option<Outside>) {
    let site = Site::new(outside);
    let v6 = |i: usize| (i, IpAddr::from(ca(i)));
    // 1440 bytes fit the VM's device, not the network: the first is lost, and then the VM fragments.
    site.wait(|| site.echo(v6(0), v6(1), 1440), "packet too big, same subnet");
    site.wait(|| site.echo(v6(0), v6(2), 1440), "packet too big, other subnet");
    let drops = site.planes[0].drops().unwrap();
    let too_big = drops.get(&(site.ports[0], DropReason::TooBig)).copied().unwrap_or_default();
    assert!((1..10).contains(&too_big), "{drops:?}");
    assert!(site.counters(0).icmp_errors >= 1);
    // A fresh VM's connections are clamped from their first frame on, in both families.
    let site = Site::new(outside);
    let segment = site.connect(0, SocketAddr::new(ca(1).into(), 5001), 1);
    assert!(segment <= u32::from(MTU) - 60 && segment > 1200, "{segment}");
    let segment = site.connect(0, SocketAddr::new(ca4(1).into(), 5001), 1);
    assert!(segment <= u32::from(MTU) - 40 && segment > 1200, "{segment}");
    // Once more with checksums that the sender has finished itself, and that the receiver therefore checks.
    Links::in_netns(&site.vms[0]).unwrap().set_offloads("eth0", false).unwrap();
    site.connect(0, SocketAddr::new(ca(1).into(), 5002), 1);
    site.connect(0, SocketAddr::new(ca4(1).into(), 5002), 1);
    let counters = site.counters(0);
    assert_eq!((counters.clamped, counters.icmp_errors), (4, 0), "{counters:?}");
}

fn can() -> bool {
    root() && has(Hook::Tcx)
}

fn everywhere(check: fn(Option<Outside>)) {
    for method in [METHOD_NVGRE, METHOD_VXLAN, METHOD_GENEVE] {
        for v6 in [false, true] {
            check(Some(Outside { method, v6 }));
        }
    }
}

#[test]
fn machines_of_ipv6_find_each_other_on_one_host() {
    if can() {
        machines_find_each_other(None);
    }
}

#[test]
fn machines_of_ipv6_find_each_other_on_two_hosts() {
    if can() {
        everywhere(machines_find_each_other);
    }
}

#[test]
fn senders_of_ipv6_hear_of_sizes_on_one_host() {
    if can() {
        senders_hear_of_sizes(None);
    }
}

#[test]
fn senders_of_ipv6_hear_of_sizes_on_two_hosts() {
    if can() {
        everywhere(senders_hear_of_sizes);
    }
}
