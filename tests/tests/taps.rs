//! Ports whose tap the agent makes: there before anybody opens it, the same after a restart, gone with the port.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tenet_api::rest::{Attach, CreateVm, CreateVmPort, Detach, Migrate};
use tenet_hostnet::{Kind, Links, TapOptions};
use tenet_lab::tool::{Probe, ask};
use tenet_model::Through;
use tenet_tests::{Fixture, SITE, World, binary, block_on, bpf, frame, ipv4, until};
use tenet_wire::{Icmp, Mac, ProtocolNumber};

static LAB: Fixture = Fixture::new("taps", SITE);

const PATIENCE: Duration = Duration::from_secs(10);
/// How soon a question is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// An agent that starts loads its programs first, which a busy machine makes it wait for.
const RESTART: Duration = Duration::from_secs(40);
/// A virtio header that says nothing (struct virtio_net_hdr, as a tap has it unless told otherwise).
const HEADER: [u8; 10] = [0; 10];

/// A VM that is this test: it holds the tap as a hypervisor does.
struct Guest {
    tap: File,
    mac: Mac,
    ip: Ipv4Addr,
}

impl Guest {
    fn open(links: &Links, name: &str, mac: Mac, ip: Ipv4Addr) -> Self {
        let options = TapOptions { vnet_hdr: true, multi_queue: false };
        Self { tap: links.open_tap(name, options).unwrap().into(), mac, ip }
    }

    fn send(&mut self, frame: &[u8]) {
        self.tap.write_all(&[&HEADER[..], frame].concat()).unwrap();
    }

    /// Sends a frame, again and again, until a frame comes in of which `find` makes something.
    fn ask<T>(&mut self, question: &[u8], mut find: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            self.send(question);
            let sent = Instant::now();
            let mut poll = libc::pollfd { fd: self.tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // Where much else comes in, the answer may have found the queue full.
            // SAFETY: one live `pollfd`.
            while sent.elapsed() < AGAIN && unsafe { libc::poll(&raw mut poll, 1, 200) } > 0 {
                let mut bytes = vec![0; 70_000];
                let length = self.tap.read(&mut bytes).unwrap();
                if let Some(found) = bytes.get(HEADER.len()..length).and_then(&mut find) {
                    return Some(found);
                }
            }
        }
        None
    }

    fn who_has(&mut self, target: Ipv4Addr) -> Option<Mac> {
        let request =
            frame::arp(Mac::BROADCAST, self.mac, true, (self.mac, self.ip), (Mac::default(), target));
        self.ask(&request, |f| {
            let arp = f.get(12..14) == Some(&frame::ARP.to_be_bytes()) && f.get(21) == Some(&2);
            let of = arp && f.get(28..32) == Some(&target.octets());
            of.then(|| Mac::new(f[22..28].try_into().unwrap()))
        })
    }

    fn ping(&mut self, to: Ipv4Addr) -> bool {
        let Some(mac) = self.who_has(to) else { return false };
        let echo = frame::Packet::echo(self.ip, to, 77, b"through the tap").frame(mac, self.mac);
        let answered = self.ask(&echo, |f| {
            let (ip, rest) = ipv4(f)?;
            (frame::ip(ip.src) == to
                && ip.protocol == ProtocolNumber::ICMP
                && rest.first() == Some(&Icmp::ECHO_REPLY))
            .then_some(())
        });
        answered.is_some()
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Makes a VM with a port; its MAC.
fn create(world: &World, vm: &str, address: Ipv4Addr) -> Mac {
    let port = CreateVmPort {
        name: None,
        subnet: "contoso/prod/data".parse().unwrap(),
        mac: None,
        address: Some(address.into()),
        addresses: Vec::new(),
        security: true,
    };
    block_on(world.client.create_vm(&CreateVm { name: vm.parse().unwrap(), port: Some(port) })).unwrap();
    let view = block_on(world.client.vm(&vm.parse().unwrap())).unwrap();
    Mac::new(view.ports[0].mac.octets())
}

/// Attaches it without naming a device; the tap.
fn attach(world: &World, vm: &str, host: &str, queues: Option<u16>) -> String {
    let attach =
        Attach { port: None, host: host.parse().unwrap(), device: None, queues, subnet: None, force: false };
    let reply = block_on(world.client.attach(&vm.parse().unwrap(), &attach)).unwrap();
    assert!(reply.applied.is_some_and(|a| a.complete));
    let port = block_on(world.client.vm(&vm.parse().unwrap())).unwrap().ports.remove(0);
    assert!(port.tap);
    assert_eq!(port.device, Some(tenet_model::tap_name(&port.name)));
    port.device.unwrap()
}

fn links(world: &World, host: &str) -> Links {
    Links::in_netns(world.lab.host(host).unwrap().netns()).unwrap()
}

fn detail(world: &World, host: &str, port: &str) -> (bool, String) {
    let ports = world.host_status(host).ports;
    let port = ports.into_iter().find(|p| p.port.to_string() == port);
    port.map_or((false, "no such port".into()), |p| (p.present, p.detail))
}

#[test]
fn the_agent_makes_a_tap_keeps_it_and_removes_it() {
    let Some(mut world) = LAB.world() else { return };
    let (vm, ip) = ("contoso/tapped", Ipv4Addr::new(10, 1, 1, 60));
    let mac = create(&world, vm, ip);
    let tap = attach(&world, vm, "h1", None);
    let host = links(&world, "h1");
    let made = host.get(&tap).unwrap();
    assert_eq!(
        (&made.kind, made.up, made.carrier),
        (&Kind::Tap, true, false),
        "ready before anybody opens it"
    );
    assert_eq!((made.alias.as_deref(), made.queue_len), (Some("tenet:contoso/tapped/eth0"), 10_000));
    assert_eq!(made.mtu, 1458, "as much as fits the provider network");
    let programs = |i| world.lab.host("h1").unwrap().netns().run(|| bpf::tcx_programs(i)).unwrap();
    assert!(programs(made.index) > 0 || host.has_clsact(made.index).unwrap(), "it carries the program");
    let (present, said) = detail(&world, "h1", "contoso/tapped/eth0");
    assert!(present && said.contains("no VM has tap"), "{said}");

    let mut guest = Guest::open(&host, &tap, mac, ip);
    for to in ["contoso/web", "contoso/sql", "contoso/app"] {
        // The gateway is asked for what is in another subnet; here it is enough that the neighbours answer.
        if to != "contoso/app" {
            assert!(guest.ping(world.ip(to)), "{to} answers");
        }
    }
    until("the agent says that all is well", PATIENCE, || {
        (detail(&world, "h1", "contoso/tapped/eth0") == (true, String::new())).then_some(())
    });

    // Forwarding goes on without the agent, and the next one takes the tap over as it is.
    world.lab.kill_agent("h1").unwrap();
    assert!(guest.ping(world.ip("contoso/web")), "without an agent");
    world.lab.start_agent("h1").unwrap();
    until("the agent is back", RESTART, || world.host_status("h1").connected.then_some(()));
    world.in_sync();
    let host = links(&world, "h1");
    assert_eq!(host.get(&tap).unwrap().index, made.index, "adopted");
    assert!(guest.ping(world.ip("contoso/web")), "with the new agent");

    // Removed by somebody it comes back; the VM has to open it anew.
    drop(guest);
    host.delete_link(&tap).unwrap();
    let again = until("the tap is made again", PATIENCE, || host.find(&tap).unwrap().filter(|l| l.up));
    assert_ne!(again.index, made.index);
    world.in_sync();
    assert!(Guest::open(&host, &tap, mac, ip).ping(world.ip("contoso/web")), "by the new tap");

    // While a VM has it open it stays, mute; then it goes.
    let mut guest = Guest::open(&host, &tap, mac, ip);
    block_on(world.client.detach(&vm.parse().unwrap(), &Detach { port: None })).unwrap();
    world.in_sync();
    assert!(host.find(&tap).unwrap().is_some(), "a VM has it open");
    guest.send(&frame::arp(Mac::BROADCAST, mac, true, (mac, ip), (Mac::default(), world.ip("contoso/web"))));
    drop(guest);
    until("the tap is gone", PATIENCE, || host.find(&tap).unwrap().is_none().then_some(()));
    block_on(world.client.delete_vm(&vm.parse().unwrap())).unwrap();
    world.in_sync();
}

#[test]
fn a_strange_device_of_the_taps_name_is_reported_and_left() {
    let Some(world) = LAB.world() else { return };
    let (vm, ip) = ("contoso/strange", Ipv4Addr::new(10, 1, 1, 61));
    let mac = create(&world, vm, ip);
    let host = links(&world, "h2");
    let name = tenet_model::tap_name(&"contoso/strange/eth0".parse().unwrap());
    host.add_tap(&name, TapOptions::default()).unwrap();
    let index = host.index(&name).unwrap();
    attach(&world, vm, "h2", None);
    until("it is told", PATIENCE, || {
        let (present, said) = detail(&world, "h2", "contoso/strange/eth0");
        (!present && said.contains("is not the tap that the agent makes")).then_some(())
    });
    let link = host.get(&name).unwrap();
    assert_eq!((link.index, link.up, link.alias), (index, false, None), "untouched");
    host.delete_link(&name).unwrap();
    until("the agent's own takes its place", PATIENCE, || {
        detail(&world, "h2", "contoso/strange/eth0").0.then_some(())
    });
    world.in_sync();
    assert!(Guest::open(&host, &name, mac, ip).ping(world.ip("contoso/sql")));
    block_on(world.client.delete_vm(&vm.parse().unwrap())).unwrap();
    until("the tap is gone", PATIENCE, || host.find(&name).unwrap().is_none().then_some(()));
    world.in_sync();
}

/// A VM leaves its old host before anybody has its tap on the new one: what is sent on to it there is lost, and told.
#[test]
fn frames_for_a_tap_that_nobody_has_open_are_counted() {
    let Some(world) = LAB.world() else { return };
    let (vm, ip) = ("contoso/late", Ipv4Addr::new(10, 1, 1, 65));
    let (name, port) = (vm.parse().unwrap(), format!("{vm}/eth0"));
    let mac = create(&world, vm, ip);
    let tap = attach(&world, vm, "h1", None);
    let web = world.ip("contoso/web");
    let mut guest = Guest::open(&links(&world, "h1"), &tap, mac, ip);
    assert!(guest.ping(web));
    let migrate = Migrate {
        to: "h2".parse().unwrap(),
        devices: Default::default(),
        through: Through::SwitchOnly,
        uri: None,
        post_copy: false,
    };
    let begun = block_on(world.client.migrate(&name, &migrate)).unwrap();
    assert_eq!(world.counters("h2", &port).tap_unread, 0);
    let probe = Probe::start(world.lab.vm("contoso/web").unwrap().netns(), ip.into(), vm, 1000).unwrap();
    drop(guest);
    let unread = until("the new tap is given frames", PATIENCE, || {
        Some(world.counters("h2", &port).tap_unread).filter(|n| *n > 200)
    });
    assert!(world.metric("h2", "tenet_port_tap_unread_total", &port) >= unread);
    let mut guest = Guest::open(&links(&world, "h2"), &tap, mac, ip);
    assert!(guest.ping(web), "on the new host");
    let receipt = until("the receipt", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().into_iter().find(|r| r.id == begun.id)
    });
    _ = probe.stop().unwrap();
    println!("{:?}, {receipt:?}", world.counters("h2", &port));
    assert!(receipt.moved && receipt.exact && receipt.lost >= unread, "{receipt:?}");
    assert!(receipt.redirected >= unread, "{receipt:?}");
    block_on(world.client.delete_vm(&name)).unwrap();
    drop(guest);
    world.in_sync();
}

#[test]
fn detaching_the_host_removes_its_taps_only() {
    let Some(mut world) = LAB.world() else { return };
    let vm = "contoso/left";
    create(&world, vm, Ipv4Addr::new(10, 1, 1, 62));
    let tap = attach(&world, vm, "h2", None);
    let (host, bpffs) = (links(&world, "h2"), world.lab.host("h2").unwrap().record().bpffs.clone());
    host.add_tap("other", TapOptions::default()).unwrap();
    let netns = world.lab.host("h2").unwrap().netns().clone();
    world.lab.kill_agent("h2").unwrap();
    assert!(host.find(&tap).unwrap().is_some(), "forwarding goes on");
    let done = netns.command(binary()).args(["agent", "--detach", "--bpffs"]).arg(&bpffs).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success() && said.contains("1 taps"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(host.find(&tap).unwrap().is_none() && host.find("other").unwrap().is_some());
    host.delete_link("other").unwrap();
    world.lab.start_agent("h2").unwrap();
    until("the agent is back", RESTART, || world.host_status("h2").connected.then_some(()));
    world.in_sync();
    assert!(host.find(&tap).unwrap().is_some(), "with the agent comes the tap");
    block_on(world.client.delete_vm(&vm.parse().unwrap())).unwrap();
    world.in_sync();
}

#[test]
fn qemu_opens_the_tap_by_the_arguments_that_are_printed() {
    let Some(world) = LAB.world() else { return };
    let qemu =
        std::process::Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
    if qemu.is_err() {
        return tenet_tests::skipped("needs qemu-system-x86_64");
    }
    let dir = std::env::temp_dir().join(format!("tenet-t-qmp-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (vm, last, queues) in [("contoso/one", 63, None), ("contoso/many", 64, Some(2))] {
        create(&world, vm, Ipv4Addr::new(10, 1, 1, last));
        let tap = attach(&world, vm, "h1", queues);
        let mut command = std::process::Command::new(binary());
        command.args(["--lab", world.lab.record().name.as_str(), "vm", "run-args", vm, "--host", "h1"]);
        let printed = command.output().unwrap();
        let line = String::from_utf8(printed.stdout).unwrap();
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        assert!(line.contains("host_mtu=1458") && line.contains(&tap), "{line}");
        let script = format!(
            "exec qemu-system-x86_64 -M pc -accel tcg -m 32 -nodefaults -display none {}",
            line.trim_end()
        );
        let netns = world.lab.host("h1").unwrap().netns().clone();
        let host = links(&world, "h1");
        {
            let errors = File::create(dir.join("stderr")).unwrap();
            let mut child = Ended(netns.command("sh").args(["-c", &script]).stderr(errors).spawn().unwrap());
            until("QEMU has the tap open", Duration::from_secs(30), || {
                let ended = child.0.try_wait().unwrap();
                let said = || std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
                assert!(ended.is_none(), "{script}\n{}", said());
                host.get(&tap).unwrap().carrier.then_some(())
            });
            let monitors = world.lab.host("h1").unwrap().record().state_dir.join("qmp");
            assert!(
                monitors.join(format!("{}.sock", vm.replace('/', "."))).exists(),
                "its monitor is where that host's agent looks for it: {line}"
            );
            until("the agent sees it", PATIENCE, || {
                (detail(&world, "h1", &format!("{vm}/eth0")) == (true, String::new())).then_some(())
            });
        }
        until("the agent misses it", PATIENCE, || {
            detail(&world, "h1", &format!("{vm}/eth0")).1.contains("no VM has tap").then_some(())
        });
        block_on(world.client.delete_vm(&vm.parse().unwrap())).unwrap();
        until("the tap is gone", PATIENCE, || host.find(&tap).unwrap().is_none().then_some(()));
    }
    std::fs::remove_dir_all(&dir).unwrap();
    let netns = world.lab.vm("contoso/web").unwrap().netns().clone();
    let answer = ask(&netns, world.ip("contoso/sql").into(), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some("contoso/sql"));
}
