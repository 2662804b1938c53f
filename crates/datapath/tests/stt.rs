//! STT end to end: two hosts, one wire, a VM each.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::tap::{Relay, send_raw};
use common::{Pins, has, root};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};
use tenet_datapath::{Datapath, Hook, Image, Role, SLOW_IN, SlowPath};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_stt::{FrameId, Outer, Way, cut};
use tenet_tables::{
    Addr, Config, Counters, DEVICE_TAP, DEVICE_VETH, DropReason, FloodEntry, FloodKey, GATEWAY_MAC,
    GENEVE_PORT, LAYOUT_VERSION, METHOD_STT, MacEntry, MacKey, PORT_ACTIVE, PORT_FLAG_SECURITY, Peer,
    PeerKey, Port, Record, RecordKey, Subnet, VXLAN_PORT,
};
use tenet_wire::{Be16, Be32, EtherType, Ethernet, Ipv4, Mac, ProtocolNumber, SttHeader};
use zerocopy::IntoBytes as _;

const NET: u32 = 1;
const VSID: u32 = 5001;
const CA4: [[u8; 4]; 2] = [[10, 1, 1, 11], [10, 1, 1, 12]];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x12]];
const UPLINK_MTU: u32 = 1600;

fn ca6(i: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x11 + i as u16)
}

fn ca(v6: bool, i: usize) -> IpAddr {
    if v6 { ca6(i).into() } else { CA4[i].into() }
}

fn pa(v6: bool, i: usize) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1 + i as u16).into()
    } else {
        Ipv4Addr::new(10, 99, 0, 1 + i as u8).into()
    }
}

/// How the hosts are connected, and their VMs.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// IPv6 between the hosts.
    v6: bool,
    /// Whether the wire takes large frames, as one between two veths does, or segments, as a cable does.
    offloads: bool,
    /// Whether the second VM is on a tap.
    tap: bool,
    /// Whether there is a slow device with somebody who puts frames together.
    slow: bool,
}

struct Site {
    shape: Shape,
    slow: Vec<SlowPath>,
    hosts: [Netns; 2],
    vms: [Netns; 2],
    planes: [Datapath; 2],
    _relay: Option<Relay>,
    _pins: [Pins; 2],
}

impl Site {
    fn new(shape: Shape) -> Self {
        let namespaces = || [Netns::anonymous().unwrap(), Netns::anonymous().unwrap()];
        let (hosts, vms) = (namespaces(), namespaces());
        let links = hosts.each_ref().map(|h| Links::in_netns(h).unwrap());
        let inside = vms.each_ref().map(|v| Links::in_netns(v).unwrap());
        links[0].add_veth("up", "up", &hosts[1]).unwrap();
        for (i, link) in links.iter().enumerate() {
            if shape.v6 {
                link.set_sysctl("ipv6/conf/up/disable_ipv6", "0").unwrap();
                link.set_sysctl("ipv6/conf/up/accept_dad", "0").unwrap();
            }
            link.set_mtu("up", UPLINK_MTU).unwrap();
            link.set_up("up").unwrap();
            link.add_addr("up", pa(shape.v6, i), if shape.v6 { 64 } else { 24 }).unwrap();
        }
        if !shape.offloads {
            links[0].set_offloads("up", false).unwrap();
            links[1].set_offloads("up", true).unwrap();
        }
        links[0].add_veth("port", "eth0", &vms[0]).unwrap();
        let relay = if shape.tap {
            links[1].add_tap("port", TapOptions::default()).unwrap();
            inside[1].add_tap("eth0", TapOptions::default()).unwrap();
            Some(Relay::start(
                links[1].open_tap("port", TapOptions::default()).unwrap(),
                inside[1].open_tap("eth0", TapOptions::default()).unwrap(),
            ))
        } else {
            links[1].add_veth("port", "eth0", &vms[1]).unwrap();
            None
        };
        let mtu = UPLINK_MTU - if shape.v6 { 92 } else { 72 };
        for i in 0..2 {
            links[i].quiet("port").unwrap();
            links[i].set_mtu("port", 65535).ok();
            links[i].set_up("port").unwrap();
            inside[i].set_sysctl("ipv6/conf/eth0/disable_ipv6", "0").unwrap();
            inside[i].set_sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
            inside[i].set_sysctl("ipv6/conf/eth0/addr_gen_mode", "1").unwrap();
            inside[i].set_mac("eth0", MACS[i]).unwrap();
            inside[i].set_mtu("eth0", mtu).unwrap();
            inside[i].set_up("eth0").unwrap();
            inside[i].add_addr("eth0", CA4[i].into(), 24).unwrap();
            inside[i].add_addr("eth0", ca6(i).into(), 64).unwrap();
        }
        let pins = hosts.each_ref().map(|h| Pins::new(h, Hook::Tcx));
        let planes = pins.each_ref().map(Pins::open);
        let mut slow = Vec::new();
        let images = [0, 1].map(|i| {
            let number = |name| links[i].index(name).unwrap();
            let mut near = 0;
            if shape.slow {
                let (n, far) = hosts[i].run(|| planes[i].ensure_slow()).unwrap().unwrap();
                slow.push(SlowPath::start(&hosts[i], far, &pins[i].options.bpffs).unwrap());
                near = n;
            }
            image(shape, i, number("port"), number("up"), near, mtu as u16)
        });
        for i in 0..2 {
            planes[i].apply(&Image::default().operations_to(&images[i])).unwrap();
            hosts[i].run(|| planes[i].attach_name("port", Role::Port)).unwrap().unwrap();
            hosts[i].run(|| planes[i].attach_name("up", Role::Uplink)).unwrap().unwrap();
        }
        // Routers' neighbours are looked for once, not while something is measured.
        let site = Self { shape, slow, hosts, vms, planes, _relay: relay, _pins: pins };
        site.wait_for_the_path();
        site
    }

    fn wait_for_the_path(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.echo(false, b"first") {
            assert!(Instant::now() < deadline, "{:?}: {:?}", self.shape, self.drops());
        }
    }

    fn drops(&self) -> [Vec<(u32, DropReason, u64)>; 2] {
        self.planes.each_ref().map(|p| p.drops().unwrap().into_iter().map(|((i, r), n)| (i, r, n)).collect())
    }

    /// Drops of frames that somebody will miss.
    fn losses(&self) -> u64 {
        let mut losses = 0;
        for (_, reason, n) in self.drops().iter().flatten() {
            use DropReason as D;
            if !matches!(
                reason,
                D::Replicated | D::ArpSuppressed | D::NdSuppressed | D::Consumed | D::FloodLimited
            ) {
                losses += n;
            }
        }
        losses
    }

    fn counters(&self, host: usize) -> Counters {
        let mut sum = Counters::default();
        for c in self.planes[host].counters().unwrap().values() {
            sum.slow += c.slow;
            sum.rx_frames += c.rx_frames;
            sum.redirected += c.redirected;
        }
        sum
    }

    fn slow_figure(&self, host: usize, name: &str) -> u64 {
        self.slow[host].counters().iter().find(|(n, ..)| *n == name).unwrap().2
    }

    /// Sends so many bytes from one VM to the other, which compares them; how long it took.
    fn transfer(&self, v6: bool, from: usize, bytes: usize) -> Duration {
        let to = 1 - from;
        let listener = self.vms[to].run(|| TcpListener::bind((ca(v6, to), 0))).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = self.vms[from].run(|| TcpStream::connect(target)).unwrap().unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let block = block();
                for _ in 0..bytes / block.len() {
                    stream.write_all(&block).unwrap();
                }
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let begin = Instant::now();
            let (block, mut got) = (block(), vec![0; BLOCK]);
            for n in 0..bytes / BLOCK {
                stream.read_exact(&mut got).unwrap();
                assert!(got == block, "block {n} is not what was sent");
            }
            begin.elapsed()
        })
    }

    fn sockets(&self, v6: bool) -> [UdpSocket; 2] {
        let sockets = [0, 1].map(|i| self.vms[i].run(|| UdpSocket::bind((ca(v6, i), 0))).unwrap().unwrap());
        for s in &sockets {
            s.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        }
        sockets
    }

    /// A datagram there and back.
    fn echo(&self, v6: bool, payload: &[u8]) -> bool {
        let sockets = self.sockets(v6);
        let mut buffer = vec![0; 65536];
        sockets[0].send_to(payload, sockets[1].local_addr().unwrap()).unwrap();
        let Ok((len, from)) = sockets[1].recv_from(&mut buffer) else { return false };
        sockets[1].send_to(&buffer[..len], from).unwrap();
        let Ok((len, _)) = sockets[0].recv_from(&mut buffer) else { return false };
        buffer[..len] == *payload
    }

    fn ping(&self, v6: bool, size: usize) -> bool {
        let mut command = self.vms[0].command("ping");
        command.args(["-c", "3", "-i", "0.2", "-W", "2", "-s", &size.to_string(), &ca(v6, 1).to_string()]);
        let output = command.output().unwrap();
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss")
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Not a multiple of a segment, so that a swapped one does not look like the right one.
const BLOCK: usize = 99_991;

fn block() -> Vec<u8> {
    (0..BLOCK).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn image(shape: Shape, own: usize, port: u32, uplink: u32, slow: u32, mtu: u16) -> Image {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: pa(shape.v6, own).into(),
            gateway_mac: GATEWAY_MAC,
            uplink_mac: Mac::default(),
            hub: 0,
            slow,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            flags: 0,
            other_port: 0,
        }),
        ..Image::default()
    };
    let subnet = Subnet {
        net: NET,
        prefix_len: 96 + 24,
        prefix6_len: 64,
        method: METHOD_STT.into(),
        gateway: Addr::v4([10, 1, 1, 1]),
        gateway6: Addr::from(IpAddr::from(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1))),
        generation: 1,
    };
    image.subnets.insert(VSID, subnet);
    for (i, mac) in MACS.into_iter().enumerate() {
        let (pa, mac) = (Addr::from(pa(shape.v6, i)), Mac::new(mac));
        let ifindex = if i == own { port } else { 0 };
        for v6 in [false, true] {
            let key = RecordKey { net: NET, ca: ca(v6, i).into() };
            let record = Record {
                pa,
                mac,
                method: METHOD_STT,
                vsid: VSID,
                ifindex,
                generation: 1,
                ..Record::default()
            };
            image.records.insert(key, record);
        }
        let entry = MacEntry { pa, ifindex, method: METHOD_STT.into() };
        image.macs.insert(MacKey { vsid: VSID, mac, reserved: 0 }, entry);
        for net in [0, NET] {
            image.peers.insert(PeerKey { net, pa }, Peer::default());
        }
        let flood = if i == own {
            FloodEntry { ifindex: port, pa: Addr::UNSET }
        } else {
            FloodEntry { ifindex: 0, pa }
        };
        image.flood.insert(FloodKey { vsid: VSID, index: i as u32 }, flood);
    }
    let port_row = Port {
        net: NET,
        vsid: VSID,
        mac: Mac::new(MACS[own]),
        mtu,
        state: PORT_ACTIVE,
        device: if own == 1 && shape.tap { DEVICE_TAP } else { DEVICE_VETH },
        flags: PORT_FLAG_SECURITY,
        flood_rate: 1000,
        flood_burst: 1000,
        generation: 1,
        ..Port::default()
    };
    image.ports.insert(port, port_row);
    image
}

fn can() -> bool {
    root() && has(Hook::Tcx)
}

/// All that VMs say to each other, in all combinations of families, with offloads and without; nothing is lost.
#[test]
fn everything_crosses() {
    if !can() {
        return;
    }
    for v6 in [false, true] {
        for offloads in [true, false] {
            for tap in [false, true] {
                let shape = Shape { v6, offloads, tap, slow: false };
                let site = Site::new(shape);
                for inner in [false, true] {
                    let what = format!("{shape:?}, inner IPv6 {inner}: {:?}", site.drops());
                    assert!(site.echo(inner, b"small"), "{what}");
                    assert!(site.echo(inner, &[7; 1400]), "{what}");
                    assert!(site.echo(inner, &[7; 9000]), "fragments, {what}");
                    assert!(site.ping(inner, 56), "{what}");
                    assert!(site.ping(inner, 4000), "{what}");
                    for from in [0, 1] {
                        let took = site.transfer(inner, from, 100 * BLOCK);
                        println!("{shape:?} inner IPv6 {inner} from {from}: {took:?}");
                    }
                }
                assert_eq!(site.losses(), 0, "{shape:?}: {:?}", site.drops());
            }
        }
    }
}

/// A bundle of datagrams that a VM gives in one piece, as QUIC does: it comes out as the datagrams it stands for.
#[test]
fn bundles_of_datagrams_are_cut_by_the_kernel() {
    if !can() {
        return;
    }
    const SOL_UDP: i32 = 17;
    const UDP_SEGMENT: i32 = 103;
    for v6 in [false, true] {
        let site = Site::new(Shape { v6, offloads: true, tap: false, slow: true });
        for inner in [false, true] {
            let sockets = site.sockets(inner);
            let size: libc::c_int = 1200;
            // SAFETY: the value is live and as long as said.
            let set = unsafe {
                let value = (&raw const size).cast();
                libc::setsockopt(
                    sockets[0].as_raw_fd(),
                    SOL_UDP,
                    UDP_SEGMENT,
                    value,
                    size_of_val(&size) as u32,
                )
            };
            assert_eq!(set, 0);
            let before = site.counters(0).slow;
            let bundle: Vec<u8> = (0..1200 * 20 + 7).map(|i| (i / 1200) as u8).collect();
            for _ in 0..10 {
                sockets[0].send_to(&bundle, sockets[1].local_addr().unwrap()).unwrap();
                for n in 0..=20u8 {
                    let mut got = [0xff; 2000];
                    let (len, _) = sockets[1].recv_from(&mut got).unwrap();
                    assert_eq!(len, if n == 20 { 7 } else { 1200 }, "inner IPv6 {inner}: {:?}", site.drops());
                    assert!(got[..len].iter().all(|b| *b == n));
                }
            }
            assert!(site.counters(0).slow >= before + 10);
        }
        assert_eq!(site.losses(), 0, "{:?}", site.drops());
    }
}

/// A datagram of the first VM's, as a frame.
fn datagram(to: u16, payload: &[u8]) -> Vec<u8> {
    let eth = Ethernet { dst: Mac::new(MACS[1]), src: Mac::new(MACS[0]), ty: EtherType::IPV4 };
    let len = payload.len() as u16 + 8;
    let ip = Ipv4 {
        version_ihl: Ipv4::PLAIN,
        total_len: Be16::new(len + 20),
        ttl: 64,
        protocol: ProtocolNumber::UDP,
        src: Be32::from_octets(CA4[0]),
        dst: Be32::from_octets(CA4[1]),
        ..Ipv4::default()
    };
    let udp = [Be16::new(4000), Be16::new(to), Be16::new(len), Be16::new(0)];
    [eth.as_bytes(), ip.with_checksum().as_bytes(), udp.as_bytes(), payload].concat()
}

/// Parts of frames that are no TCP: whatever the order they come in, and however the kernel has joined some of them.
#[test]
fn parts_of_other_frames_are_put_together() {
    if !can() {
        return;
    }
    for v6 in [false, true] {
        let site = Site::new(Shape { v6, offloads: false, tap: false, slow: true });
        let sockets = site.sockets(false);
        let port = sockets[1].local_addr().unwrap().port();
        let parts = Parts::new(&site, port);
        let frame_of = |id, src: IpAddr, payload: &[u8]| parts.of(id, src, payload);
        let send = |segment: &[u8]| parts.send(segment);
        let orders: [&[usize]; 5] =
            [&[0, 1, 2, 3], &[3, 2, 1, 0], &[1, 0, 3, 2], &[2, 3, 0, 1], &[0, 0, 1, 2, 2, 3]];
        let mut id = 1;
        for order in orders {
            for n in 0..20u8 {
                id += 1;
                let payload = vec![n; 1400];
                let segments = frame_of(id, pa(v6, 0), &payload);
                assert_eq!(segments.len(), 4);
                order.iter().for_each(|i| send(&segments[*i]));
                let mut got = [0; 2000];
                let received = sockets[1].recv_from(&mut got);
                let context = || {
                    format!(
                        "order {order:?}, {n}: {received:?}, {:?}, {:?}",
                        site.drops(),
                        site.slow[1].counters()
                    )
                };
                assert!(matches!(received, Ok((1400, _))), "{}", context());
                assert_eq!(got[..1400], payload, "{}", context());
            }
        }
        // The thread tells its figures after it has sent a frame back.
        let deadline = Instant::now() + PATIENCE;
        while site.slow_figure(1, "frames") < 100 {
            assert!(Instant::now() < deadline, "{:?}", site.slow[1].counters());
        }
        assert_eq!(site.slow_figure(1, "frames"), 100, "{:?}", site.slow[1].counters());
        assert!(site.slow_figure(1, "overlaps") > 0, "{:?}", site.slow[1].counters());
        assert_eq!(site.losses(), 0, "{:?}", site.drops());

        // A stranger's parts are nobody's business but the counter's.
        let before = site.slow_figure(1, "received");
        let stranger: IpAddr = if v6 { "fd99::77".parse().unwrap() } else { [10, 99, 0, 77].into() };
        let segments = frame_of(5, stranger, &[1; 1400]);
        segments.iter().for_each(|s| send(s));
        let deadline = Instant::now() + PATIENCE;
        while !site.drops()[1].iter().any(|(_, r, n)| *r == DropReason::UnknownPa && *n >= 1) {
            assert!(Instant::now() < deadline, "{:?}", site.drops());
        }
        assert_eq!(site.slow_figure(1, "received"), before);
    }
}

/// Parts without anybody who puts them together are dropped by name: at once where the agent ended, and soon where it
/// was killed.
#[test]
fn parts_that_nobody_puts_together_are_counted() {
    if !can() {
        return;
    }
    let mut site = Site::new(Shape { v6: false, offloads: false, tap: false, slow: true });
    let sockets = site.sockets(false);
    let ours = sockets[1].local_addr().unwrap().port();
    let far = Links::in_netns(&site.hosts[1]).unwrap().index(SLOW_IN).unwrap();
    let uplink = Links::in_netns(&site.hosts[1]).unwrap().index("up").unwrap();
    let (mut id, mut got) = (0, [0; 2000]);
    let mut crosses = |site: &Site| {
        id += 1;
        let parts = Parts::new(site, ours);
        let segments = parts.of(id, pa(false, 0), &[7; 1400]);
        assert_eq!(segments.len(), 4);
        let before = incomplete(site, uplink);
        segments.iter().for_each(|s| parts.send(s));
        let whole = matches!(sockets[1].recv_from(&mut got), Ok((1400, _)));
        (whole, incomplete(site, uplink) - before)
    };
    assert_eq!(crosses(&site), (true, 0));

    // Ended: it says so itself.
    site.slow.clear();
    assert_eq!(crosses(&site), (false, 4), "{:?}", site.drops());

    // Another process, which is killed.
    let mut child = site.hosts[1].command(std::env::current_exe().unwrap());
    child.args(["--exact", "puts_frames_together_until_it_is_killed", "--ignored"]);
    child.env("TENET_TEST_FAR", far.to_string()).env("TENET_TEST_BPFFS", site.planes[1].bpffs());
    let mut child = child.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while crosses(&site) != (true, 0) {
        assert!(Instant::now() < deadline, "{:?}", site.drops());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    while crosses(&site) != (false, 4) {
        assert!(killed.elapsed() < PATIENCE, "{:?}", site.drops());
    }
    println!("counted again {:?} after the kill", killed.elapsed());
    // Nothing of that holds up what nobody has to put together.
    assert!(site.echo(false, &[7; 1400]));
    site.transfer(false, 0, 3 * BLOCK);
}

/// Not a test: what [`parts_that_nobody_puts_together_are_counted`] kills.
#[test]
#[ignore = "a part of another test"]
fn puts_frames_together_until_it_is_killed() {
    let (Ok(far), Some(bpffs)) = (std::env::var("TENET_TEST_FAR"), std::env::var_os("TENET_TEST_BPFFS"))
    else {
        return;
    };
    let netns = Netns::current().unwrap();
    let _path = SlowPath::start(&netns, far.parse().unwrap(), bpffs.as_ref()).unwrap();
    loop {
        std::thread::park();
    }
}

fn incomplete(site: &Site, ifindex: u32) -> u64 {
    site.planes[1].drops().unwrap().get(&(ifindex, DropReason::SttIncomplete)).copied().unwrap_or(0)
}

/// STT frames of the first host's in segments, as another maker of STT may send them.
struct Parts<'a> {
    site: &'a Site,
    macs: [Mac; 2],
    up: u32,
    port: u16,
}

impl<'a> Parts<'a> {
    fn new(site: &'a Site, port: u16) -> Self {
        let links = site.hosts.each_ref().map(|h| Links::in_netns(h).unwrap());
        let macs = links.each_ref().map(|l| Mac::new(l.get("up").unwrap().mac.unwrap()));
        Self { site, macs, up: links[0].index("up").unwrap(), port }
    }

    fn of(&self, id: u32, src: IpAddr, payload: &[u8]) -> Vec<Vec<u8>> {
        let eth = Ethernet { dst: self.macs[1], src: self.macs[0], ty: Be16::new(0) };
        let outer = Outer { eth, class: 0, hop_limit: 64, flow: 50_000 };
        let way = Way { frame: FrameId { src, dst: pa(self.site.shape.v6, 1), id }, outer };
        let header =
            SttHeader { flags: SttHeader::IPV4, context_low: Be32::new(VSID), ..SttHeader::default() };
        let stt = [header.as_bytes(), &datagram(self.port, payload)].concat();
        let mut whole = Vec::new();
        way.whole(&stt, 0, &mut whole).unwrap();
        cut(&whole, 400)
    }

    fn send(&self, segment: &[u8]) {
        self.site.hosts[0].run(|| send_raw(self.up, segment, 1)).unwrap();
    }
}

/// Every frame that leaves, without any offload, judged by tshark: a sound TCP checksum outside, sound packets inside.
#[test]
fn tshark_takes_all_frames_apart() {
    if !can() {
        return;
    }
    if std::process::Command::new("tshark").arg("-v").output().is_err() {
        eprintln!("SKIPPED: no tshark");
        return;
    }
    let file = std::env::temp_dir().join(format!("tenet-stt-{}.pcap", std::process::id()));
    for v6 in [false, true] {
        let site = Site::new(Shape { v6, offloads: false, tap: false, slow: true });
        let capture = Capture::start(&site.hosts[0], &file);
        // It says that it captures a moment before it does: frames in the file prove it.
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(&file).map_or(0, |m| m.len()) <= PCAP_HEADER {
            assert!(Instant::now() < deadline, "tshark captures nothing");
            site.ping(false, 56);
        }
        for inner in [false, true] {
            assert!(site.echo(inner, &[7; 1400]));
            assert!(site.echo(inner, &[7; 4000]));
            assert!(site.ping(inner, 56));
            site.transfer(inner, 0, 3 * BLOCK);
        }
        // Frames are written in their order, some time after they crossed.
        assert!(site.echo(false, LAST));
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read(&file).unwrap().windows(LAST.len()).any(|w| w == LAST) {
            assert!(Instant::now() < deadline, "the last frame is not in the capture");
        }
        capture.stop();
        let read = |arguments: &[&str]| {
            let mut command = std::process::Command::new("tshark");
            command.arg("-r").arg(&file).args(arguments);
            let output = command.output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        // As TCP: every checksum is right.
        // The other host's frames come by a device with offloads, unfinished.
        let ours = if v6 {
            "tcp.dstport==7471 && ipv6.src==fd99::1"
        } else {
            "tcp.dstport==7471 && ip.src==10.99.0.1"
        };
        let sums =
            read(&["-o", "tcp.check_checksum:TRUE", "-Y", ours, "-T", "fields", "-e", "tcp.checksum.status"]);
        let (good, all) = (sums.lines().filter(|l| *l == "1").count(), sums.lines().count());
        assert!(good == all && all > 100, "{v6}: {good} of {all} checksums are good");
        // As STT: the inner packets come out, and nothing is malformed.
        let stt = [
            "-o",
            "ip.try_heuristic_first:TRUE",
            "--enable-heuristic",
            "stt_ip",
            "-o",
            "stt.reassemble:TRUE",
        ];
        let count = |filter| read(&[&stt[..], &["-Y", filter]].concat()).lines().count();
        println!("IPv6 {v6}: {all} segments, {} of STT, {} bad", count("stt"), count("_ws.malformed"));
        assert_eq!(count("_ws.malformed && stt"), 0);
        // The dissector looks for STT in IPv4 only.
        if !v6 {
            for (filter, least) in [
                ("stt && ip.src==10.1.1.11 && tcp", 2),
                ("stt && ipv6 && tcp", 2),
                ("stt && icmp", 6),
                ("stt && icmpv6", 6),
                ("stt && udp", 4),
            ] {
                let seen = count(filter);
                assert!(seen >= least, "{filter}: {seen} frames");
            }
        }
        std::fs::remove_file(&file).unwrap();
    }
}

/// Bytes of a pcap file before its first frame.
const PCAP_HEADER: u64 = 24;
/// Ends a capture.
const LAST: &[u8] = b"after this frame there is none that counts";

struct Capture(std::process::Child);

impl Capture {
    fn start(host: &Netns, file: &std::path::Path) -> Self {
        use std::io::BufRead as _;
        let mut command = host.command("tshark");
        command.args(["-q", "-i", "up", "-F", "pcap", "-B", "64", "-w"]).arg(file);
        command.args(["-f", "tcp port 7471 or (ip6 and tcp)"]);
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let said = std::io::BufReader::new(child.stderr.take().unwrap());
        for line in said.lines() {
            if line.unwrap().contains("Capturing on") {
                break;
            }
        }
        Self(child)
    }

    fn stop(mut self) {
        // SAFETY: our own child, not waited for yet.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        self.0.wait().unwrap();
    }
}

/// Figures: `cargo test --release -p tenet-datapath --test stt -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    if !can() {
        return;
    }
    for (offloads, tap) in [(true, false), (false, false), (false, true)] {
        let site = Site::new(Shape { v6: false, offloads, tap, slow: true });
        let mut figures = Vec::new();
        for _ in 0..5 {
            site.transfer(false, 0, 100 * BLOCK);
            let bytes = 6000 * BLOCK;
            let took = site.transfer(false, 0, bytes);
            figures.push(bytes as f64 * 8.0 / took.as_secs_f64() / 1e9);
        }
        figures.sort_by(f64::total_cmp);
        println!(
            "offloads {offloads}, tap {tap}: median {:.2} Gb/s of {figures:.2?}, slow {:?}, losses {}",
            figures[2],
            site.slow[1].counters().iter().take(2).map(|c| c.2).collect::<Vec<_>>(),
            site.losses(),
        );
    }
}
