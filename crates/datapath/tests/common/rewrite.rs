//! Two hosts and a router between them, whose VMs cross by IP Rewrite.

use super::Pins;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use tenet_datapath::{Datapath, Hook, Image, Role};
use tenet_hostnet::{Links, Netns};
use tenet_tables::image::Prefix;
use tenet_tables::{
    Addr, CONFIG_FLAG_REWRITE, Config, DEVICE_VETH, DropReason, GATEWAY_MAC, GENEVE_PORT, LAYOUT_VERSION,
    METHOD_GATEWAY, METHOD_REWRITE, MacEntry, MacKey, PORT_ACTIVE, PORT_FLAG_SECURITY, Peer, PeerKey, Pool,
    PoolKey, Port, Record, RecordKey, Rewrite, RewriteKey, Route, RouteKey, Subnet, VXLAN_PORT,
};
use tenet_wire::Mac;

pub const NET: u32 = 1;
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A VM: its host, its virtual subnet.
#[derive(Clone, Copy)]
pub struct Vm {
    pub n: u8,
    pub host: usize,
    pub subnet: u8,
}

/// One on the first host, and on the second one of the same subnet and one of another.
pub const VMS: [Vm; 3] =
    [Vm { n: 11, host: 0, subnet: 1 }, Vm { n: 12, host: 1, subnet: 1 }, Vm { n: 13, host: 1, subnet: 2 }];

/// A VM of which there are rows only: a machine of the provider network has its address.
pub const ELSEWHERE: Vm = Vm { n: 14, host: 2, subnet: 1 };

impl Vm {
    pub const fn vsid(self) -> u32 {
        5000 + self.subnet as u32
    }
    pub const fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.n]
    }
    pub fn ca(self, v6: bool) -> IpAddr {
        customer(self.subnet, v6, self.n)
    }
    pub fn pa(self, host: usize, v6: bool) -> IpAddr {
        provider(host, v6, 128 + self.n)
    }
    pub const fn index(self) -> usize {
        self.n as usize - 11
    }
}

pub fn customer(subnet: u8, v6: bool, n: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, subnet.into(), 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(10, 1, subnet, n).into()
    }
}

/// Addresses of a host's part of the provider network: 1 is its own, 254 the router's, those from 128 on its pool.
pub fn provider(host: usize, v6: bool, n: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd99, 0, 0, host as u16, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(10, 99, host as u8, n).into()
    }
}

pub struct Site {
    pub router: Netns,
    pub elsewhere: Netns,
    pub hosts: [Netns; 2],
    pub vms: Vec<Netns>,
    pub planes: [Datapath; 2],
    pub images: [Image; 2],
    _pins: [Pins; 2],
}

impl Site {
    /// `offloads`: whether the wires take large frames without checksums, as one between two veths does.
    pub fn new(offloads: bool) -> Self {
        let router = Netns::anonymous().unwrap();
        let hosts = [Netns::anonymous().unwrap(), Netns::anonymous().unwrap()];
        let links = hosts.each_ref().map(|h| Links::in_netns(h).unwrap());
        let between = Links::in_netns(&router).unwrap();
        between.set_sysctl("ipv4/ip_forward", "1").unwrap();
        between.set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        for (i, link) in links.iter().enumerate() {
            let far = format!("r{i}");
            link.add_veth("up", &far, &router).unwrap();
            for (side, name, n) in [(link, "up", 1), (&between, far.as_str(), 254)] {
                if !offloads {
                    side.set_offloads(name, false).unwrap();
                }
                side.set_up(name).unwrap();
                side.add_addr(name, provider(i, false, n), 24).unwrap();
                side.add_addr(name, provider(i, true, n), 64).unwrap();
            }
            // A host that forwards is the one whose stack could do harm.
            link.set_sysctl("ipv4/ip_forward", "1").unwrap();
            link.set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
            for (v6, any) in [(false, Ipv4Addr::UNSPECIFIED.into()), (true, Ipv6Addr::UNSPECIFIED.into())] {
                link.add_route(any, 0, Some(provider(i, v6, 254)), None).unwrap();
            }
        }
        let vms: Vec<Netns> = VMS.iter().map(|_| Netns::anonymous().unwrap()).collect();
        for vm in VMS {
            add_vm(&links[vm.host], &port_name(vm), vm, &vms[vm.index()]);
        }
        let elsewhere = Netns::anonymous().unwrap();
        let third = Links::in_netns(&elsewhere).unwrap();
        third.add_veth("up", "r2", &router).unwrap();
        for (side, name, n) in [(&third, "up", 128 + ELSEWHERE.n), (&between, "r2", 254)] {
            side.set_up(name).unwrap();
            side.add_addr(name, provider(2, false, n), 24).unwrap();
            side.add_addr(name, provider(2, true, n), 64).unwrap();
        }
        for (v6, any) in [(false, Ipv4Addr::UNSPECIFIED.into()), (true, Ipv6Addr::UNSPECIFIED.into())] {
            third.add_route(any, 0, Some(provider(2, v6, 254)), None).unwrap();
        }
        let pins = hosts.each_ref().map(|h| Pins::new(h, Hook::Tcx));
        let planes = pins.each_ref().map(Pins::open);
        let images = [0, 1].map(|i| image(i, &links[i]));
        for i in 0..2 {
            planes[i].apply(&Image::default().operations_to(&images[i])).unwrap();
            let attach =
                |name: &str, role| hosts[i].run(|| planes[i].attach_name(name, role)).unwrap().unwrap();
            attach("up", Role::Uplink);
            for vm in VMS.iter().filter(|vm| vm.host == i) {
                attach(&port_name(*vm), Role::Port);
            }
        }
        Self { router, elsewhere, hosts, vms, planes, images, _pins: pins }
    }

    pub fn vm(&self, n: usize) -> &Netns {
        &self.vms[n]
    }

    /// Sends so many bytes from the first VM to another, which compares them.
    pub fn transfer(&self, to: usize, v6: bool, blocks: usize) -> Duration {
        let listener = self.vm(to).run(|| TcpListener::bind((VMS[to].ca(v6), 0))).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let connect = || TcpStream::connect_timeout(&target, PATIENCE);
                let mut stream = self.vm(0).run(connect).unwrap().unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let block = block();
                (0..blocks).for_each(|_| stream.write_all(&block).unwrap());
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let begin = Instant::now();
            let (block, mut got) = (block(), vec![0; BLOCK]);
            for n in 0..blocks {
                stream.read_exact(&mut got).unwrap();
                assert!(got == block, "block {n} is not what was sent");
            }
            begin.elapsed()
        })
    }

    pub fn udp(&self, vm: usize, v6: bool) -> UdpSocket {
        let socket = self.vm(vm).run(|| UdpSocket::bind((VMS[vm].ca(v6), 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket
    }

    /// A datagram there and back.
    pub fn echo(&self, to: usize, v6: bool, len: usize, unsummed: bool) {
        let sockets = [self.udp(0, v6), self.udp(to, v6)];
        if unsummed {
            sockets.iter().for_each(|s| set(s, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1));
        }
        let payload: Vec<u8> = block().into_iter().take(len).collect();
        let mut buffer = vec![0; 65536];
        let [near, far] = &sockets;
        near.send_to(&payload, far.local_addr().unwrap()).unwrap();
        let (got, from) = far.recv_from(&mut buffer).unwrap();
        assert!(buffer[..got] == payload, "{len} bytes there, IPv6 {v6}, to {to}");
        assert_eq!(from, near.local_addr().unwrap());
        far.send_to(&payload, from).unwrap();
        let (got, from) = near.recv_from(&mut buffer).unwrap();
        assert!(buffer[..got] == payload, "{len} bytes back, IPv6 {v6}, from {to}");
        assert_eq!(from, far.local_addr().unwrap());
    }

    pub fn ping(&self, to: usize, v6: bool, len: usize) {
        let ping = self
            .vm(0)
            .command("ping")
            .args(["-c", "1", "-W", "3", "-s", &len.to_string()])
            .arg(VMS[to].ca(v6).to_string())
            .output()
            .unwrap();
        assert!(
            ping.status.success(),
            "{} bytes to {to}, IPv6 {v6}: {}",
            len,
            String::from_utf8_lossy(&ping.stdout)
        );
    }

    /// Packets that the hosts' stacks were given, of both families.
    pub fn seen_by_stacks(&self) -> u64 {
        self.hosts
            .iter()
            .map(|h| snmp(h).iter().filter(|(k, _)| k.ends_with("InReceives")).map(|(_, v)| v).sum::<u64>())
            .sum()
    }

    pub fn check_sums(&self) {
        for (vm, netns) in VMS.iter().zip(&self.vms) {
            let counters = snmp(netns);
            // A SYN that was sent twice, as on a busy machine, is an error for the kernel (tcp_validate_incoming).
            let repeated = counters["TcpExt.TCPSYNChallenge"];
            for (name, value) in &counters {
                let allowed = if name == "Tcp.InErrs" { repeated } else { 0 };
                let bad =
                    name.ends_with("InCsumErrors") || name == "Tcp.InErrs" || name.ends_with("InHdrErrors");
                assert!(!bad || *value <= allowed, "VM {}: {name} {value}", vm.n);
            }
        }
    }

    pub fn drops(&self, host: usize, reason: DropReason) -> u64 {
        let drops = self.planes[host].drops().unwrap();
        drops.iter().filter(|((_, why), _)| *why == reason).map(|(_, n)| n).sum()
    }
}

/// Gives a VM a port of this name.
pub fn add_vm(host: &Links, name: &str, vm: Vm, netns: &Netns) {
    host.add_veth(name, "eth0", netns).unwrap();
    host.quiet(name).unwrap();
    host.set_up(name).unwrap();
    let inside = Links::in_netns(netns).unwrap();
    inside.set_mac("eth0", vm.mac()).unwrap();
    inside.set_sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
    inside.set_up("eth0").unwrap();
    for (v6, any) in [(false, Ipv4Addr::UNSPECIFIED.into()), (true, Ipv6Addr::UNSPECIFIED.into())] {
        inside.add_addr("eth0", vm.ca(v6), if v6 { 64 } else { 24 }).unwrap();
        inside.add_route(any, 0, Some(customer(vm.subnet, v6, 1)), None).unwrap();
    }
}

pub fn port_name(vm: Vm) -> String {
    format!("port{}", vm.n)
}

pub fn set(socket: &impl std::os::fd::AsRawFd, level: i32, option: i32, value: i32) {
    // SAFETY: one live number as long as said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

pub fn get(socket: &impl std::os::fd::AsRawFd, level: i32, option: i32) -> i32 {
    let (mut value, mut len) = (0i32, size_of::<i32>() as u32);
    // SAFETY: one live number as long as said.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// Counters of a namespace's stack.
pub fn snmp(netns: &Netns) -> BTreeMap<String, u64> {
    let read = |file: &str| {
        netns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap().unwrap()
    };
    let mut counters = BTreeMap::new();
    // In pairs of lines, both.
    let old = read("snmp") + &read("netstat");
    let lines: Vec<&str> = old.lines().collect();
    for pair in lines.chunks(2) {
        let group = pair[0].split(':').next().unwrap();
        for (name, value) in pair[0].split_whitespace().zip(pair[1].split_whitespace()).skip(1) {
            counters.insert(format!("{group}.{name}"), value.parse().unwrap_or(0));
        }
    }
    for line in read("snmp6").lines() {
        let mut words = line.split_whitespace();
        counters.insert(words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
    }
    counters
}

/// Not a multiple of a segment, so that a swapped one does not look like the right one.
pub const BLOCK: usize = 99_991;

pub fn block() -> Vec<u8> {
    (0..BLOCK).map(|i| (i * 31 + i / 251) as u8).collect()
}

pub fn image(own: usize, links: &Links) -> Image {
    let uplink = links.get("up").unwrap();
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink: uplink.index,
            pa: provider(own, false, 1).into(),
            gateway_mac: GATEWAY_MAC,
            uplink_mac: Mac::new(uplink.mac.unwrap()),
            hub: 0,
            slow: 0,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            flags: CONFIG_FLAG_REWRITE,
            other_port: 0,
        }),
        ..Image::default()
    };
    for host in 0..2 {
        for net in [0, NET] {
            image.peers.insert(PeerKey { net, pa: provider(host, false, 1).into() }, Peer::default());
        }
    }
    // The upper half of a part's first 256 addresses.
    for (v6, len) in [(false, 96 + 25), (true, 121)] {
        image.pools.insert((PoolKey { pa: provider(own, v6, 128).into() }, len), Pool::default());
    }
    for subnet in [1, 2] {
        let vsid = 5000 + u32::from(subnet);
        let [gateway, gateway6] = [false, true].map(|v6| Addr::from(customer(subnet, v6, 1)));
        let row = Subnet {
            net: NET,
            prefix_len: 96 + 24,
            prefix6_len: 64,
            method: METHOD_REWRITE.into(),
            gateway,
            gateway6,
            generation: 1,
        };
        image.subnets.insert(vsid, row);
        for (v6, len) in [(false, 96 + 24), (true, 64)] {
            let record = Record { mac: GATEWAY_MAC, method: METHOD_GATEWAY, vsid, ..Record::default() };
            image.records.insert(RecordKey { net: NET, ca: customer(subnet, v6, 1).into() }, record);
            let (_, key) = Prefix { net: NET, ca: customer(subnet, v6, 0).into(), len }.to_trie();
            let RouteKey { ca, .. } = key;
            image.routes.insert(Prefix { net: NET, ca, len }, Route::default());
        }
    }
    for vm in VMS.into_iter().chain([ELSEWHERE]) {
        let ifindex = if vm.host == own { links.index(&port_name(vm)).unwrap() } else { 0 };
        let (pa, mac) = (provider(vm.host, false, 1).into(), Mac::new(vm.mac()));
        for v6 in [false, true] {
            let rewrite_pa = vm.pa(vm.host, v6).into();
            let record = Record {
                pa,
                rewrite_pa,
                mac,
                method: METHOD_REWRITE,
                vsid: vm.vsid(),
                ifindex,
                ..Record::default()
            };
            let ca = vm.ca(v6).into();
            image.records.insert(RecordKey { net: NET, ca }, record);
            let row = Rewrite { net: NET, vsid: vm.vsid(), ca, mac, ifindex, ..Rewrite::default() };
            image.rewrites.insert(RewriteKey { pa: rewrite_pa }, row);
        }
        let entry = MacEntry { pa, ifindex, method: METHOD_REWRITE.into() };
        image.macs.insert(MacKey { vsid: vm.vsid(), mac, reserved: 0 }, entry);
        if ifindex != 0 {
            let port = Port {
                net: NET,
                vsid: vm.vsid(),
                mac,
                mtu: 1500,
                state: PORT_ACTIVE,
                device: DEVICE_VETH,
                flags: PORT_FLAG_SECURITY,
                flood_rate: 1000,
                flood_burst: 1000,
                ..Port::default()
            };
            image.ports.insert(ifindex, port);
        }
    }
    image
}
