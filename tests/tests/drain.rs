//! Frames that a hypervisor leaves unread in a VM's tap when it stops the VM to be moved follow the VM.
//!
//! The test is the hypervisor: it holds both queues of the taps and says what QEMU would, so that what waits in them,
//! and when, is in its hands.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tenet_api::rest::{ChangeItem, ChangesRequest, Migrate, ReceiptView, Spec};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_model::{Method, Through, VmRef, tap_name};
use tenet_tests::{THREE_HOSTS, World, block_on, frame, ipv4, missing, skipped, until};
use tenet_wire::{Mac, ProtocolNumber, checksum};

const PATIENCE: Duration = Duration::from_secs(20);
const VM: &str = "contoso/real";
const PORT: &str = "contoso/real/eth0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 50);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x50];
/// Datagrams of a burst, by sockets that take turns, so that both queues get some.
const DATAGRAMS: usize = 200;
const FLOWS: usize = 16;
/// A bundle of TCP segments.
const SEGMENT: u16 = 1000;
const SEGMENTS: usize = 4;
/// Header of a frame at a tap.
const VNET: usize = 10;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;

/// A tap as QEMU has it open.
struct Tap {
    queues: Vec<File>,
}

impl Tap {
    fn open(world: &World, host: &str) -> Self {
        let links = Links::in_netns(world.lab.host(host).unwrap().netns()).unwrap();
        let name = tap_name(&PORT.parse().unwrap());
        until("the agent's tap", PATIENCE, || links.find(&name).unwrap());
        let options = TapOptions { vnet_hdr: true, multi_queue: true };
        let open = || {
            let fd = links.open_tap(&name, options).unwrap();
            // SAFETY: these requests take numbers only, and the descriptor is live.
            unsafe {
                // Checksums and segments of TCP may be left undone.
                assert_eq!(libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, 1 | 2 | 4), 0);
                assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK), 0);
            }
            fd.into()
        };
        Self { queues: vec![open(), open()] }
    }

    /// Whether something waits in every queue.
    fn all_wait(&self) -> bool {
        self.queues.iter().all(|queue| {
            let mut poll = libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one live `pollfd`.
            unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
        })
    }

    /// Takes all that waits.
    fn take(&mut self, got: &mut Got) {
        let mut bytes = vec![0; 70_000];
        for queue in &mut self.queues {
            loop {
                match queue.read(&mut bytes) {
                    Ok(length) => got.take(&bytes[..VNET], &bytes[VNET..length]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
}

/// What came out of a tap.
#[derive(Debug, Default)]
struct Got {
    /// Numbers of datagrams, by their sender's port.
    datagrams: BTreeMap<u16, Vec<usize>>,
    /// Bytes of the bundle, and whether they came as a bundle.
    segments: BTreeSet<usize>,
    whole: bool,
    groups: usize,
    /// Frames for a waiting QEMU to lose.
    placeholders: usize,
}

impl Got {
    fn take(&mut self, header: &[u8], bytes: &[u8]) {
        if bytes[12..14] == [0x88, 0xb5] {
            self.placeholders += 1;
            return;
        }
        if bytes[0] & 1 != 0 {
            self.groups += 1;
            return;
        }
        let Some((ip, rest)) = ipv4(bytes) else { return };
        if frame::ip(ip.dst) != ADDRESS {
            return;
        }
        assert_eq!(bytes[..6], MAC);
        if ip.protocol == ProtocolNumber::UDP {
            let port = u16::from_be_bytes([rest[0], rest[1]]);
            let number = u64::from_be_bytes(rest[8..16].try_into().unwrap());
            self.datagrams.entry(port).or_default().push(number as usize);
        } else if ip.protocol == ProtocolNumber::TCP {
            self.whole |= header[1] == 1 && header[4..6] == SEGMENT.to_ne_bytes();
            for piece in rest[20..].chunks(SEGMENT.into()) {
                assert!(piece.iter().all(|b| *b == piece[0]), "bytes of two segments");
                self.segments.insert(piece[0].into());
            }
        }
    }

    fn count(&self) -> usize {
        self.datagrams.values().map(Vec::len).sum()
    }

    /// All of a burst, once, each flow in its order.
    fn check(&self, whole: bool) {
        let mut all: Vec<usize> = self.datagrams.values().flatten().copied().collect();
        assert!(self.datagrams.values().all(|flow| flow.is_sorted()), "{self:?}");
        all.sort_unstable();
        assert_eq!(all, (0..DATAGRAMS).collect::<Vec<_>>());
        assert_eq!(self.segments.len(), SEGMENTS, "{self:?}");
        assert_eq!(self.whole, whole, "the bundle: {self:?}");
    }
}

/// A QEMU's monitor that says what it is told to.
struct Monitor {
    says: mpsc::Sender<String>,
    /// Whether the VM's memory is on its way.
    moving: Arc<AtomicBool>,
}

impl Monitor {
    /// In the agent's folder; there is a guest that runs.
    fn listen(world: &World, host: &str) -> Self {
        let dir = world.lab.host(host).unwrap().record().state_dir.join("qmp");
        let listener = UnixListener::bind(dir.join(format!("{}.sock", VM.replace('/', ".")))).unwrap();
        let (says, said) = mpsc::channel();
        let (connected, is) = mpsc::channel();
        let moving = Arc::new(AtomicBool::new(false));
        let asked = moving.clone();
        std::thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            let mut out = stream.try_clone().unwrap();
            std::thread::spawn(move || answer(&stream, &connected, &asked));
            for line in said {
                writeln!(out, "{line}").unwrap();
            }
        });
        says.send(json!({ "QMP": {} }).to_string()).unwrap();
        is.recv_timeout(PATIENCE).unwrap();
        Self { says, moving }
    }

    /// QEMU begins to move the VM's memory.
    fn begin(&self) {
        self.moving.store(true, Ordering::Relaxed);
        self.event("MIGRATION", json!({ "status": "active" }));
    }

    fn event(&self, name: &str, data: Value) {
        let line = json!({ "event": name, "data": data, "timestamp": { "seconds": 0, "microseconds": 0 } });
        self.says.send(line.to_string()).unwrap();
    }
}

/// Answers what an agent asks, and says once that it has.
fn answer(stream: &UnixStream, connected: &mpsc::Sender<()>, moving: &AtomicBool) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let asked: Value = serde_json::from_str(&line).unwrap();
        let result = match asked["execute"].as_str() {
            Some("query-status") => json!({ "status": "running" }),
            Some("query-migrate") if moving.load(Ordering::Relaxed) => json!({ "status": "active" }),
            _ => json!({}),
        };
        writeln!(out, "{}", json!({ "return": result, "id": asked["id"] })).unwrap();
        if asked["execute"] == "query-status" {
            let _ = connected.send(());
        }
    }
}

/// Sends a burst to the VM: datagrams of several flows, a bundle of TCP segments, and a broadcast.
fn burst(world: &World) {
    let far = world.nic("contoso/far");
    let netns = world.lab.vm("contoso/far").unwrap().netns().clone();
    let sockets: Vec<UdpSocket> =
        (netns.run(|| (0..FLOWS).map(|_| UdpSocket::bind((far.ip, 0)).unwrap()).collect())).unwrap();
    for number in 0..DATAGRAMS {
        sockets[number % FLOWS].send_to(&(number as u64).to_be_bytes(), (ADDRESS, 9)).unwrap();
    }
    bundle(&netns, &tcp(&far));
    let packet = frame::Packet::udp((far.ip, 9), (Ipv4Addr::BROADCAST, 9), b"to everybody");
    far.send(&packet.frame(Mac::BROADCAST, far.mac));
}

/// A TCP segment that is to be cut into several, each of one letter.
fn tcp(far: &tenet_tests::Nic) -> Vec<u8> {
    let payload: Vec<u8> = (0..SEGMENTS).flat_map(|n| [n as u8; SEGMENT as usize]).collect();
    let mut segment = vec![0x12, 0x34, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    segment.extend(payload);
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [&far.ip.octets()[..], &ADDRESS.octets(), &[0, ProtocolNumber::TCP], &length].concat();
    // The rest is the device's.
    let sum = !checksum::finish(checksum::sum_bytes(&pseudo));
    segment[16..18].copy_from_slice(&sum.to_ne_bytes());
    frame::Packet::new(far.ip, ADDRESS, ProtocolNumber::TCP, segment).frame(Mac::new(MAC), far.mac)
}

/// Sends a frame whose checksum and segments are left to the device.
fn bundle(netns: &Netns, bytes: &[u8]) {
    let index = Links::in_netns(netns).unwrap().index("eth0").unwrap();
    let mut header = [0; VNET];
    (header[0], header[1]) = (1, 1);
    for (at, value) in [(2, 54), (4, SEGMENT), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&u16::to_ne_bytes(value));
    }
    let bytes = [&header[..], bytes].concat();
    let sent = netns.run(|| {
        // SAFETY: the address and the options are live and as long as said; the descriptor is nobody else's.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0);
            let fd = OwnedFd::from_raw_fd(fd);
            let on: libc::c_int = 1;
            let set = libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
            assert_eq!(set, 0);
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = index.cast_signed();
            to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::sendto(
                fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                length,
            )
        }
    });
    assert_eq!(sent.unwrap(), bytes.len() as isize, "{}", std::io::Error::last_os_error());
}

/// The VM on h1, on the tap that the agent makes.
fn attach(world: &World) {
    let specs: Vec<Spec> = serde_json::from_value(json!([{ "kind": "vm", "name": VM },
        { "kind": "port", "name": PORT, "subnet": "contoso/prod/data", "addresses": [ADDRESS],
          "mac": "52:54:00:00:00:50", "host": "h1", "queues": 2 }]))
    .unwrap();
    let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
    block_on(world.client.changes(&ChangesRequest { changes, ..Default::default() })).unwrap();
}

/// Asks for a move to h2 by a tool that is this test, and waits until the VM may move.
fn prepare(world: &World) -> tenet_api::rest::MigrationView {
    let migrate = Migrate {
        to: "h2".parse().unwrap(),
        devices: Default::default(),
        through: Through::SwitchOnly,
        uri: None,
        post_copy: false,
    };
    let begun = block_on(world.client.migrate(&vm(), &migrate)).unwrap();
    until("all hosts are prepared", PATIENCE, || {
        let running = block_on(world.client.migrations()).unwrap();
        running.into_iter().find(|m| m.id == begun.id && m.phase == "prepared")
    })
}

fn vm() -> VmRef {
    VM.parse().unwrap()
}

/// Waits until a burst waits in the VM's tap, which nobody reads.
fn waits(world: &World, tap: &Tap, before: u64) {
    until("the burst waits in the tap", PATIENCE, || {
        let there = world.counters("h1", PORT).rx_frames - before;
        (there > (DATAGRAMS + SEGMENTS) as u64 && tap.all_wait()).then_some(())
    });
}

/// Takes what comes out of a tap until it is a burst.
fn arrives(what: &str, tap: &mut Tap, mut got: Got) -> Got {
    let begin = Instant::now();
    while got.count() < DATAGRAMS || got.segments.len() < SEGMENTS {
        assert!(begin.elapsed() < PATIENCE, "{what}: {} datagrams, {got:?}", got.count());
        tap.take(&mut got);
        std::thread::yield_now();
    }
    got
}

fn ended(world: &World, id: impl ToString) -> ReceiptView {
    let id = id.to_string();
    until("a receipt", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().into_iter().find(|r| r.id.to_string() == id)
    })
}

/// The VM speaks on its new host.
fn speaks(tap: &mut Tap) {
    let question = frame::arp(
        Mac::BROADCAST,
        Mac::new(MAC),
        true,
        (Mac::new(MAC), ADDRESS),
        (Mac::default(), Ipv4Addr::new(10, 1, 1, 14)),
    );
    tap.queues[0].write_all(&[&[0; VNET][..], &question].concat()).unwrap();
}

#[test]
fn what_a_vm_leaves_unread_follows_it_and_comes_back_if_it_stays() {
    if let Some(why) = missing() {
        return skipped(why);
    }
    let world = World::up("drain", THREE_HOSTS, false);
    attach(&world);
    let mut old = Tap::open(&world, "h1");
    let monitor = Monitor::listen(&world, "h1");
    let others = [world.nic("contoso/log").watch(), world.nic("fabrikam/log").watch()];
    let begun = prepare(&world);
    let mut new = Tap::open(&world, "h2");
    let rx = || world.counters("h1", PORT).rx_frames;

    // Nobody but the VM reads its tap, however long it runs and whatever QEMU's monitor says of its memory.
    monitor.begin();
    let before = rx();
    burst(&world);
    waits(&world, &old, before);
    std::thread::sleep(Duration::from_secs(3));
    let mut got = Got::default();
    new.take(&mut got);
    assert_eq!((got.count(), got.segments.len()), (0, 0), "{got:?}");
    // A QEMU that waits loses the first frame that it reads: it was given one for that.
    assert_eq!(got.placeholders, 1, "{got:?}");

    // It stands still: all of it waits on the new host.
    monitor.event("STOP", json!({}));
    let got = arrives("on the new host", &mut new, got);
    got.check(true);
    assert_eq!(got.groups, 0, "a broadcast is repeated by nobody");
    let mut left = Got::default();
    old.take(&mut left);
    assert_eq!((left.count(), left.segments.len(), left.placeholders), (0, 0, 0), "{left:?}");

    // The move fails: the VM gets back what was taken from it.
    monitor.event("RESUME", json!({}));
    arrives("back on the old host", &mut old, left).check(true);

    // And now for good. The old QEMU ends at once.
    let before = rx();
    burst(&world);
    waits(&world, &old, before);
    monitor.event("STOP", json!({}));
    let got = arrives("on the new host, again", &mut new, Got::default());
    got.check(true);
    assert_eq!(got.placeholders, 0, "one is enough");
    drop(old);
    let links = Links::in_netns(world.lab.host("h1").unwrap().netns()).unwrap();
    let name = tap_name(&PORT.parse().unwrap());
    until("no copy keeps the tap's carrier up", PATIENCE, || {
        links.find(&name).unwrap().is_none_or(|link| !link.carrier).then_some(())
    });
    speaks(&mut new);
    let receipt = ended(&world, begun.id);
    println!("{receipt:?}");
    assert!(receipt.moved && receipt.exact, "{receipt:?}");
    // Both times; a bundle is one frame.
    assert_eq!(receipt.drained, 2 * (DATAGRAMS as u64 + 1), "{receipt:?}");
    assert_eq!(receipt.lost, 2, "the broadcasts: {receipt:?}");
    assert!(receipt.redirected >= receipt.drained, "{receipt:?}");

    // Neither the neighbours nor anybody else has seen more than the two broadcasts as they were sent.
    for (other, groups) in others.into_iter().zip([2, 0]) {
        let mut seen = Got::default();
        for bytes in other.stop() {
            let is_ours = |(_, rest): (_, &[u8])| rest.get(8..) == Some(b"to everybody");
            seen.groups += usize::from(ipv4(&bytes).is_some_and(is_ours));
            assert!(ipv4(&bytes).is_none_or(|(ip, _)| frame::ip(ip.dst) != ADDRESS));
        }
        assert_eq!(seen.groups, groups);
    }
    // The agent's tap is gone with the last VM that was to leave.
    until("no tap of the agent's", PATIENCE, || links.find("tenet-drain").unwrap().is_none().then_some(()));
    assert_eq!(world.metric("h1", "tenet_agent_repairs_total", ""), 0, "nothing of it looked like damage");
}

#[test]
fn what_a_vm_leaves_unread_follows_it_by_every_tunnel() {
    if let Some(why) = missing() {
        return skipped(why);
    }
    let world = World::up_as("drainm", THREE_HOSTS, tenet_tests::Setup::ANY_METHOD);
    for method in [Method::Vxlan, Method::Geneve, Method::Stt] {
        world.set_method("contoso/prod", method);
        attach(&world);
        let old = Tap::open(&world, "h1");
        let monitor = Monitor::listen(&world, "h1");
        let begun = prepare(&world);
        let mut new = Tap::open(&world, "h2");
        monitor.begin();
        let before = world.counters("h1", PORT).rx_frames;
        burst(&world);
        waits(&world, &old, before);
        monitor.event("STOP", json!({}));
        arrives(method.name(), &mut new, Got::default()).check(true);
        speaks(&mut new);
        let receipt = ended(&world, begun.id);
        println!("{method:?}: {receipt:?}");
        assert!(receipt.moved && receipt.drained == DATAGRAMS as u64 + 1, "{receipt:?}");
        drop((old, new, monitor));
        block_on(world.client.delete_vm(&vm())).unwrap();
        let state = world.lab.host("h1").unwrap().record().state_dir.clone();
        std::fs::remove_file(state.join("qmp/contoso.real.sock")).unwrap();
    }
}
