//! A VM on a tap: what comes from another host stays whole, in order and in the right hands.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::tap::{Relay, Seen};
use common::{Pins, has, root};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use tenet_datapath::{Datapath, HUB, Hook, Image, Operation, Role};
use tenet_forward::HubFrame;
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_tables::{
    Addr, Config, DEVICE_TAP, DEVICE_VETH, GATEWAY_MAC, GENEVE_PORT, LAYOUT_VERSION, METHOD_NVGRE, MacEntry,
    MacKey, PORT_ACTIVE, PORT_FLAG_SECURITY, Peer, PeerKey, Port, Record, RecordKey, Subnet, VXLAN_PORT,
};
use tenet_wire::Mac;

const NET: u32 = 1;
const VSID: u32 = 5001;
const PAS: [[u8; 4]; 2] = [[10, 99, 0, 1], [10, 99, 0, 2]];
const CAS: [[u8; 4]; 2] = [[10, 1, 1, 11], [10, 1, 1, 12]];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x12]];
const INNER_MTU: u16 = 1458;

/// Two hosts and a wire: on the first a VM behind a veth, on the second one behind a tap.
struct Site {
    hosts: [Netns; 2],
    vms: [Netns; 2],
    planes: [Datapath; 2],
    images: [Image; 2],
    relay: Relay,
    _pins: [Pins; 2],
}

impl Site {
    /// `offloads`: whether the wire takes large frames, as one between two veths does, or segments, as a cable does.
    fn new(offloads: bool) -> Self {
        let namespaces = || [Netns::anonymous().unwrap(), Netns::anonymous().unwrap()];
        let (hosts, vms) = (namespaces(), namespaces());
        let links = hosts.each_ref().map(|h| Links::in_netns(h).unwrap());
        let inside = vms.each_ref().map(|v| Links::in_netns(v).unwrap());
        links[0].add_veth("up", "up", &hosts[1]).unwrap();
        for (link, pa) in links.iter().zip(PAS) {
            link.set_up("up").unwrap();
            link.add_addr("up", pa.into(), 24).unwrap();
        }
        if !offloads {
            links[0].set_offloads("up", false).unwrap();
            links[1].set_offloads("up", true).unwrap();
        }
        links[0].add_veth("port", "eth0", &vms[0]).unwrap();
        links[1].add_tap("port", TapOptions::default()).unwrap();
        inside[1].add_tap("eth0", TapOptions::default()).unwrap();
        let relay = Relay::start(
            links[1].open_tap("port", TapOptions::default()).unwrap(),
            inside[1].open_tap("eth0", TapOptions::default()).unwrap(),
        );
        for i in 0..2 {
            links[i].quiet("port").unwrap();
            links[i].set_up("port").unwrap();
            inside[i].quiet("eth0").unwrap();
            inside[i].set_mac("eth0", MACS[i]).unwrap();
            inside[i].set_mtu("eth0", INNER_MTU.into()).unwrap();
            inside[i].set_up("eth0").unwrap();
            inside[i].add_addr("eth0", CAS[i].into(), 24).unwrap();
        }
        let pins = hosts.each_ref().map(|h| Pins::new(h, Hook::Tcx));
        let planes = pins.each_ref().map(Pins::open);
        let hub = hosts[1].run(|| planes[1].ensure_hub()).unwrap().unwrap();
        let images = [0, 1].map(|i| {
            let number = |name| links[i].index(name).unwrap();
            image(i, number("port"), number("up"), if i == 1 { hub } else { 0 })
        });
        for i in 0..2 {
            planes[i].apply(&Image::default().operations_to(&images[i])).unwrap();
            hosts[i].run(|| planes[i].attach_name("port", Role::Port)).unwrap().unwrap();
            hosts[i].run(|| planes[i].attach_name("up", Role::Uplink)).unwrap().unwrap();
        }
        Self { hosts, vms, planes, images, relay, _pins: pins }
    }

    fn set_hub(&self, on: bool) {
        let config = self.images[1].config.unwrap();
        let config = Config { hub: if on { config.hub } else { 0 }, ..config };
        self.planes[1].apply(&[Operation::Configure(config)]).unwrap();
    }

    /// Sends so many bytes from one VM to the other, which compares them; how long it took.
    fn transfer(&self, from: usize, bytes: usize) -> Duration {
        let to = 1 - from;
        let listener = self.vms[to].run(|| TcpListener::bind((Ipv4Addr::from(CAS[to]), 0))).unwrap().unwrap();
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

    /// A datagram there and back.
    fn echo(&self, payload: &[u8]) -> bool {
        let sockets = [0, 1]
            .map(|i| self.vms[i].run(|| UdpSocket::bind((Ipv4Addr::from(CAS[i]), 0))).unwrap().unwrap());
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
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Not a multiple of a segment, so that a swapped one does not look like the right one.
const BLOCK: usize = 99_991;

fn block() -> Vec<u8> {
    (0..BLOCK).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn image(own: usize, port: u32, uplink: u32, hub: u32) -> Image {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: Addr::v4(PAS[own]),
            gateway_mac: GATEWAY_MAC,
            uplink_mac: Mac::default(),
            hub,
            slow: 0,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            flags: 0,
            other_port: 0,
        }),
        ..Image::default()
    };
    let gateway = Addr::v4([10, 1, 1, 1]);
    let subnet = Subnet {
        net: NET,
        prefix_len: 96 + 24,
        method: METHOD_NVGRE.into(),
        gateway,
        generation: 1,
        ..Subnet::default()
    };
    image.subnets.insert(VSID, subnet);
    for i in 0..2 {
        let (pa, mac) = (Addr::v4(PAS[i]), Mac::new(MACS[i]));
        let ifindex = if i == own { port } else { 0 };
        let key = RecordKey { net: NET, ca: Addr::v4(CAS[i]) };
        let record =
            Record { pa, mac, method: METHOD_NVGRE, vsid: VSID, ifindex, generation: 1, ..Record::default() };
        image.records.insert(key, record);
        let entry = MacEntry { pa, ifindex, method: METHOD_NVGRE.into() };
        image.macs.insert(MacKey { vsid: VSID, mac, reserved: 0 }, entry);
        for net in [0, NET] {
            image.peers.insert(PeerKey { net, pa }, Peer::default());
        }
    }
    let port_row = Port {
        net: NET,
        vsid: VSID,
        mac: Mac::new(MACS[own]),
        mtu: INNER_MTU,
        state: PORT_ACTIVE,
        device: if own == 1 { DEVICE_TAP } else { DEVICE_VETH },
        flags: PORT_FLAG_SECURITY,
        generation: 1,
        ..Port::default()
    };
    image.ports.insert(port, port_row);
    image
}

fn can() -> bool {
    root() && has(Hook::Tcx)
}

#[test]
fn large_frames_stay_whole_into_and_out_of_a_tap() {
    if !can() {
        return;
    }
    for offloads in [true, false] {
        let site = Site::new(offloads);
        assert!(site.echo(b"small"), "offloads {offloads}");
        assert!(site.echo(&[7; 4000]), "fragments, offloads {offloads}");
        let before = site.relay.seen();
        site.transfer(0, 100 * BLOCK);
        let into = site.relay.seen().since(&before);
        println!("offloads {offloads}: into the tap {into:?}");
        assert!(into.mean_in() > 10_000, "offloads {offloads}: {into:?}");
        let before = site.relay.seen();
        site.transfer(1, 100 * BLOCK);
        let out = site.relay.seen().since(&before);
        println!("offloads {offloads}: out of the tap {out:?}");
        assert!(out.mean_out() > 10_000, "offloads {offloads}: {out:?}");
        let drops = site.planes.each_ref().map(|p| p.drops().unwrap());
        println!("drops {drops:?}");
        let port = *site.images[1].ports.keys().next().unwrap();
        let counters = site.planes[1].counters().unwrap()[&port];
        let mean = counters.rx_bytes / counters.rx_frames;
        assert!((1000..1600).contains(&mean), "counters count segments: {counters:?}");
        assert!(counters.rx_bytes > 100 * BLOCK as u64, "{counters:?}");
    }
}

/// The hub's address is reachable from nowhere: neither from the wire nor through the hub's own outer end.
#[test]
fn foreign_frames_for_the_hubs_address_reach_nobody() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    const MARKER: &[u8] = b"from a stranger";
    let inner = [&MACS[1][..], &MACS[0], &[0x88, 0xb5], MARKER, &[0; 40]].concat();
    let uplink_mac = Links::in_netns(&site.hosts[1]).unwrap().get("up").unwrap().mac.unwrap();
    let mut frame = [&uplink_mac[..], &[2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend((inner.len() as u16).to_be_bytes());
    frame.extend([143, 64]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    frame.extend(HubFrame::SID.octets());
    frame.extend(&inner);
    for (host, link) in [(0, "up"), (1, HUB)] {
        let index = Links::in_netns(&site.hosts[host]).unwrap().index(link).unwrap();
        site.hosts[host].run(|| common::tap::send_raw(index, &frame, 20)).unwrap();
    }
    // What was sent before is through when this is back.
    assert!(site.echo(b"still alive"));
    assert!(site.relay.saw(b"still alive"), "the relay sees what is delivered");
    assert!(!site.relay.saw(MARKER), "a stranger's frame reached the VM");
}

#[test]
fn hub_is_adopted_mended_and_removed() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    let links = Links::in_netns(&site.hosts[1]).unwrap();
    let again = || site.hosts[1].run(|| site.planes[1].ensure_hub()).unwrap().unwrap();
    let first = links.index(HUB).unwrap();
    assert_eq!(again(), first, "adopted");
    site.transfer(0, BLOCK);
    links.delete_link(HUB).unwrap();
    let second = again();
    assert_ne!(second, first);
    let config = Config { hub: second, ..site.images[1].config.unwrap() };
    site.planes[1].apply(&[Operation::Configure(config)]).unwrap();
    let before = site.relay.seen();
    site.transfer(0, 50 * BLOCK);
    assert!(site.relay.seen().since(&before).mean_in() > 10_000);
    // The same host without hub: slower, but whole.
    site.set_hub(false);
    site.transfer(0, 10 * BLOCK);
    let Site { hosts, planes, _pins, .. } = site;
    let name = planes[1].bpffs().file_name().unwrap().to_str().unwrap().to_owned() + "-hub";
    assert!(Netns::list().unwrap().contains(&name));
    drop((planes, _pins));
    assert!(!Netns::list().unwrap().contains(&name));
    assert!(Links::in_netns(&hosts[1]).unwrap().find(HUB).unwrap().is_none());
}

/// Figures: `cargo test --release -p tenet-datapath --test taps -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn throughput_with_and_without_the_hub() {
    if !can() {
        return;
    }
    for offloads in [true, false] {
        let site = Site::new(offloads);
        let mut figures: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        let mut means: [Seen; 2] = [Seen::default(); 2];
        for _ in 0..7 {
            for hub in [false, true] {
                site.set_hub(hub);
                site.transfer(0, 100 * BLOCK);
                let before = site.relay.seen();
                let bytes = 4000 * BLOCK;
                let took = site.transfer(0, bytes);
                means[usize::from(hub)] = site.relay.seen().since(&before);
                figures[usize::from(hub)].push(bytes as f64 * 8.0 / took.as_secs_f64() / 1e9);
            }
        }
        for (hub, all) in figures.iter_mut().enumerate() {
            all.sort_by(f64::total_cmp);
            let mean = means[hub].mean_in();
            println!(
                "offloads {offloads}, hub {hub}: median {:.2} Gb/s of {all:.2?}, {mean} bytes a frame",
                all[3]
            );
        }
    }
}
