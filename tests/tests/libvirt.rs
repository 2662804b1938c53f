//! Real libvirt daemons on the hosts of a lab: domains start with their ports, are refused with the reason, move.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tenet_api::rest::ReceiptView;
use tenet_hostnet::Links;
use tenet_lab::Process;
use tenet_lab::guest::Image;
use tenet_lab::tool::{Probe, ProbeReport, Stream, ask};
use tenet_model::{Through, tap_name};
use tenet_tests::libvirt::Libvirt;
use tenet_tests::{Fixture, SITE, World, binary, block_on, libvirt, missing, skipped, until};

static LAB: Fixture = Fixture::new("lv", SITE);

const PATIENCE: Duration = Duration::from_secs(30);
/// The guest's boot, emulated, on a machine that has much to do.
const BOOT: Duration = Duration::from_secs(60);
const VM: &str = "contoso/lv";
const ADDRESS: &str = "10.1.1.77";
const MAC: &str = "52:54:00:00:00:77";

#[test]
fn domains_start_move_and_stop_with_their_ports() {
    if let Some(why) = missing().or_else(libvirt::missing).or_else(tenet_lab::guest::missing) {
        skipped(why);
        return;
    }
    let image = match Image::build() {
        Ok(image) => image,
        Err(e) => return skipped(format!("no guest can be built: {e}")),
    };
    let Some(mut world) = LAB.world() else { return };
    let site = Hosts::start(&world);
    strangers_start_unasked(&site);
    a_refusal_is_shown_by_virsh(&site);
    queues_that_differ_are_refused(&site, &world);
    start_makes_port_and_tap(&site, &world, &image);
    another_host_may_not_start_it(&site, &image);
    a_move_by_hand_is_followed(&site, &world);
    a_failed_move_is_rolled_back(&site, &world);
    agents_follow_libvirt(&site, &mut world);
    tenet_has_libvirt_move_it(&site, &world);
    a_move_by_hand_is_heard_of(&site, &world);
    a_move_is_heard_of_although_virsh_ends(&site, &world);
    a_stopped_domain_lets_go(&site, &world);
    attach_while_it_runs(&site, &world);
    attach_while_it_is_shut(&site, &world);
    import_proposes_what_apply_takes(&site, &world);
    without_an_agent_it_says_what_to_do(&site, &mut world);
    _ = std::fs::remove_file(console());
}

/// Both hosts' daemons.
struct Hosts {
    one: Libvirt,
    two: Libvirt,
    sockets: [String; 2],
}

impl Hosts {
    fn start(world: &World) -> Self {
        let socket =
            |host: &str| world.lab.host(host).unwrap().record().socket().to_str().unwrap().to_owned();
        let start = |host: &str, number| {
            Libvirt::start(&world.lab.host(host).unwrap(), number, |dir| {
                let dir = dir.to_str().unwrap();
                let said = tenet(&["libvirt", "install-hook", "--dir", dir, "--socket", &socket(host)]);
                assert!(said.contains("installed") && said.contains("restart libvirtd"), "{said}");
            })
        };
        let (one, two) = (start("h1", 1), start("h2", 2));
        one.knows(&two);
        two.knows(&one);
        Self { one, two, sockets: [socket("h1"), socket("h2")] }
    }
}

fn tenet(args: &[&str]) -> String {
    let output = Command::new(binary()).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "tenet {}: {said}", args.join(" "));
    print!("{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A domain without a system: the firmware finds nothing to start and waits. With ACPI, by which NICs are plugged in.
fn plain(name: &str, devices: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}<memballoon model='none'/></devices></domain>"
    )
}

/// A domain with a guest that answers.
fn ours(name: &str, network: &str, image: &Image) -> String {
    let tap = tap_name(&format!("{VM}/eth0").parse().unwrap());
    format!(
        "<domain type='qemu'><name>{name}</name>\
         <metadata><tenet:vm xmlns:tenet='urn:tenet:libvirt:1' name='{VM}'>\
         <tenet:port name='eth0' mac='{MAC}' network='{network}' subnet='data' address='{ADDRESS}'/>\
         </tenet:vm></metadata>\
         <memory unit='MiB'>96</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type>\
         <kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tenet.name={VM} \
         tenet.nic=eth0|{ADDRESS}/24|10.1.1.1</cmdline></os>\
         <features><acpi/><apic/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <interface type='ethernet'><mac address='{MAC}'/><target dev='{tap}' managed='no'/>\
         <model type='virtio'/><mtu size='1458'/><rom enabled='no'/></interface>\
         <serial type='file'><source path='{}' append='on'/></serial>\
         <memballoon model='none'/></devices></domain>",
        image.kernel().display(),
        image.initrd().display(),
        console().display()
    )
}

/// What the guest says, on whichever host. Without a console its kernel crashes in slow moves now and then, on plain
/// bridges as well (docs/migration.md).
fn console() -> PathBuf {
    std::env::temp_dir().join(format!("tenet-lv-console-{}.log", std::process::id()))
}

fn has_link(world: &World, host: &str, name: &str) -> bool {
    Links::in_netns(world.lab.host(host).unwrap().netns()).unwrap().find(name).unwrap().is_some()
}

/// Where the site has a port.
fn host_of(world: &World, port: &str) -> Option<String> {
    let vms = block_on(world.client.vms()).unwrap();
    let port = vms.into_iter().flat_map(|v| v.ports).find(|p| p.name.to_string() == port);
    port.and_then(|p| p.host).map(|h| h.to_string())
}

fn answers(world: &World, from: &str) {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let address: IpAddr = ADDRESS.parse().unwrap();
    until(&format!("{VM} answers {from}"), BOOT, || {
        let answer = ask(&netns, address, Duration::from_secs(1)).unwrap();
        answer.inspect(|who| assert_eq!(who, VM)).map(drop)
    });
}

fn strangers_start_unasked(site: &Hosts) {
    site.one.define(&plain("stranger", ""));
    _ = site.one.virsh(&["start", "stranger"]);
    _ = site.one.virsh(&["destroy", "stranger"]);
}

fn a_refusal_is_shown_by_virsh(site: &Hosts) {
    let image_less = plain(
        "nowhere",
        &format!(
            "<interface type='ethernet'><mac address='{MAC}'/><target dev='{}' managed='no'/></interface>",
            tap_name(&"contoso/nowhere/eth0".parse().unwrap())
        ),
    );
    let mark = "<metadata><tenet:vm xmlns:tenet='urn:tenet:libvirt:1' name='contoso/nowhere'>\
         <tenet:port name='eth0' mac='52:54:00:00:00:77' network='contoso/nope' subnet='data'/></tenet:vm></metadata>";
    site.one.define(&image_less.replace("<memory", &format!("{mark}<memory")));
    let said = site.one.refused(&["start", "nowhere"]);
    println!("{said}");
    assert!(said.contains("tenet: network contoso/nope does not exist"), "{said}");
    assert!(said.contains("tenet network list"), "what to do: {said}");
    _ = site.one.virsh(&["undefine", "nowhere"]);
}

/// A domain that opens several queues, on a port that is made by its start, and so for one.
fn queues_that_differ_are_refused(site: &Hosts, world: &World) {
    let tap = tap_name(&"contoso/many/eth0".parse().unwrap());
    let mark = "<metadata><tenet:vm xmlns:tenet='urn:tenet:libvirt:1' name='contoso/many'>\
         <tenet:port name='eth0' mac='52:54:00:00:00:79' network='contoso/prod' subnet='data'/></tenet:vm></metadata>";
    let nic = format!(
        "<interface type='ethernet'><mac address='52:54:00:00:00:79'/><target dev='{tap}' managed='no'/>\
         <model type='virtio'/><driver queues='2'/></interface>"
    );
    site.one.define(&plain("many", &nic).replace("<memory", &format!("{mark}<memory")));
    let said = site.one.refused(&["start", "many"]);
    println!("{said}");
    assert!(said.contains("tenet vm attach contoso/many --port eth0 --host h1 --queues 2"), "{said}");
    // What it says helps.
    let lab = world.lab.record().name.clone();
    let attach = ["vm", "attach", "contoso/many", "--port", "eth0", "--host", "h1", "--queues", "2"];
    tenet(&[&["--lab", lab.as_str()], &attach[..]].concat());
    _ = site.one.virsh(&["start", "many"]);
    _ = site.one.virsh(&["destroy", "many"]);
    _ = site.one.virsh(&["undefine", "many"]);
    until("its port has left", PATIENCE, || host_of(world, "contoso/many/eth0").is_none().then_some(()));
    block_on(world.client.delete_vm(&"contoso/many".parse().unwrap())).unwrap();
}

/// What `tenet status` says of the VM's port on its host.
fn detail(world: &World, host: &str) -> Option<String> {
    let status = world.host_status(host);
    status.ports.into_iter().find(|p| p.port.to_string() == format!("{VM}/eth0")).map(|p| p.detail)
}

fn start_makes_port_and_tap(site: &Hosts, world: &World, image: &Image) {
    let tap = tap_name(&format!("{VM}/eth0").parse().unwrap());
    site.one.define(&ours("lv-1", "contoso/prod", image));
    assert!(host_of(world, &format!("{VM}/eth0")).is_none() && !has_link(world, "h1", &tap));
    _ = site.one.virsh(&["start", "lv-1"]);
    assert!(has_link(world, "h1", &tap));
    assert_eq!(host_of(world, &format!("{VM}/eth0")).as_deref(), Some("h1"));
    answers(world, "contoso/web");
    answers(world, "contoso/log");
}

fn another_host_may_not_start_it(site: &Hosts, image: &Image) {
    site.two.define(&ours("lv-1", "contoso/prod", image));
    let said = site.two.refused(&["start", "lv-1"]);
    println!("{said}");
    assert!(said.contains("tenet: VM contoso/lv is on host h1"), "{said}");
    assert!(said.contains("tenet vm migrate contoso/lv --to h2"), "what to do: {said}");
    _ = site.two.virsh(&["undefine", "lv-1"]);
}

fn a_move_by_hand_is_followed(site: &Hosts, world: &World) {
    let (vm, port) = (VM.parse().unwrap(), format!("{VM}/eth0"));
    let tap = tap_name(&port.parse().unwrap());
    let far = world.lab.vm("contoso/web").unwrap().netns().clone();
    let address: IpAddr = ADDRESS.parse().unwrap();
    let stream = Stream::start(&far, address, Duration::from_millis(5)).unwrap();
    let probe = Probe::start(&far, address, VM, 1000).unwrap();
    let to = format!("tcp://{}:49152", world.lab.host("h2").unwrap().record().pa);
    let uri = site.two.uri.as_str();
    _ = site.one.virsh(&["migrate", "--live", "--persistent", "--undefinesource", "lv-1", uri, &to]);
    let receipt = until("the receipt", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().into_iter().find(|r| r.vm == vm)
    });
    println!("{receipt:?}");
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str()), ("h1", "h2"));
    assert!(receipt.prepare_us > 0, "prepared before memory moved: {receipt:?}");
    assert_eq!(host_of(world, &port).as_deref(), Some("h2"));
    answers(world, "contoso/web");
    answers(world, "contoso/log");
    until("the source's tap is gone", PATIENCE, || (!has_link(world, "h1", &tap)).then_some(()));
    let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
    println!("{probe:?}, {stream:?}");
    assert!(stream.received.in_order && stream.received.bytes == stream.sent, "{stream:?}");
    assert_eq!((probe.strangers, probe.duplicates), (0, 0), "{probe:?}");
    world.in_sync();
}

fn a_failed_move_is_rolled_back(site: &Hosts, world: &World) {
    let vm = VM.parse().unwrap();
    let before = block_on(world.client.receipts()).unwrap().len();
    // The source's emulator finds nobody there.
    let said =
        site.two.refused(&["migrate", "--live", "lv-1", site.one.uri.as_str(), "tcp://127.0.0.1:49152"]);
    println!("{said}");
    let receipt = until("the receipt", PATIENCE, || {
        let receipts = block_on(world.client.receipts()).unwrap();
        (receipts.len() > before).then(|| receipts.into_iter().find(|r| r.vm == vm && !r.moved)).flatten()
    });
    println!("{receipt:?}");
    assert!(receipt.reason.is_some(), "{receipt:?}");
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    assert_eq!(host_of(world, &format!("{VM}/eth0")).as_deref(), Some("h2"));
    let tap = tap_name(&format!("{VM}/eth0").parse().unwrap());
    until("the destination's tap is gone", PATIENCE, || (!has_link(world, "h1", &tap)).then_some(()));
    answers(world, "contoso/web");
    answers(world, "contoso/log");
}

fn agents_follow_libvirt(site: &Hosts, world: &mut World) {
    let host = host_of(world, &format!("{VM}/eth0")).unwrap();
    until("the agent says that it hears nothing", PATIENCE, || {
        detail(world, &host).filter(|d| d.contains("start the agent with --libvirt"))
    });
    for (host, libvirt) in [("h1", &site.one), ("h2", &site.two)] {
        world.lab.follow_libvirt(host, &libvirt.uri).unwrap();
        world.lab.kill_agent(host).unwrap();
        world.lab.start_agent(host).unwrap();
    }
    for host in ["h1", "h2"] {
        until("the agent is back", PATIENCE, || world.host_status(host).connected.then_some(()));
    }
    world.in_sync();
    until("and nothing more of it now", PATIENCE, || detail(world, &host).filter(String::is_empty));
}

/// `tenet vm migrate --libvirt`: the source's agent has its libvirt move the domain.
fn tenet_has_libvirt_move_it(site: &Hosts, world: &World) {
    let far = world.lab.vm("contoso/web").unwrap().netns().clone();
    let stream = Stream::start(&far, ADDRESS.parse().unwrap(), Duration::from_millis(5)).unwrap();
    let probe = Probe::start(&far, ADDRESS.parse().unwrap(), VM, 1000).unwrap();
    let lab = world.lab.record().name.clone();
    let said = tenet(&["--lab", lab.as_str(), "vm", "migrate", VM, "--to", "h1", "--libvirt", &site.one.uri]);
    println!("{said}");
    let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
    assert!(stream.received.in_order && stream.received.bytes == stream.sent, "{stream:?}");
    let receipt = newest(world);
    println!("{receipt:?}, {probe:?}");
    waited_for(&receipt, &probe);
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str(), receipt.through), ("h2", "h1", Through::Libvirt));
    assert!(site.one.virsh(&["list", "--name"]).contains("lv-1"));
    // libvirt tidies up after the guest runs.
    until("the source's libvirt knows it no more", PATIENCE, || {
        (!site.two.virsh(&["list", "--all", "--name"]).contains("lv-1")).then_some(())
    });
    assert_eq!(host_of(world, &format!("{VM}/eth0")).as_deref(), Some("h1"));
    answers(world, "contoso/web");
    answers(world, "contoso/log");
}

/// virsh moves it, and Tenet, which was not asked, hears STOP and RESUME.
fn a_move_by_hand_is_heard_of(site: &Hosts, world: &World) {
    let (before, port) = (newest(world).id, format!("{VM}/eth0"));
    let far = world.lab.vm("contoso/web").unwrap().netns().clone();
    let probe = Probe::start(&far, ADDRESS.parse().unwrap(), VM, 1000).unwrap();
    let uri = site.two.uri.as_str();
    _ = site.one.virsh(&["migrate", "--live", "--p2p", "--persistent", "--undefinesource", "lv-1", uri]);
    let receipt = until("the receipt", PATIENCE, || Some(newest(world)).filter(|r| r.id != before));
    let probe = probe.stop().unwrap();
    println!("{receipt:?}, {probe:?}");
    waited_for(&receipt, &probe);
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str(), receipt.through), ("h1", "h2", Through::Other));
    assert_eq!(host_of(world, &port).as_deref(), Some("h2"));
    answers(world, "contoso/web");
    world.in_sync();
}

/// The agents' virsh processes end while the memory is on its way: the next ones ask what happens, and hear the rest.
fn a_move_is_heard_of_although_virsh_ends(site: &Hosts, world: &World) {
    let before = newest(world).id;
    let far = world.lab.vm("contoso/web").unwrap().netns().clone();
    let probe = Probe::start(&far, ADDRESS.parse().unwrap(), VM, 1000).unwrap();
    // So slow that there is time for it.
    let slowly =
        ["migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--bandwidth", "16", "lv-1"];
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| site.two.virsh(&[&slowly[..], &[site.one.uri.as_str()]].concat()));
        until("libvirt is at it", PATIENCE, || {
            let running = block_on(world.client.migrations()).unwrap();
            running.into_iter().find_map(|m| m.progress).filter(|p| p.status == "active")
        });
        for host in ["h1", "h2"] {
            let old = listening(world, host);
            assert_eq!(old.len(), 1, "{host}'s agent listens by one virsh");
            for virsh in &old {
                virsh.kill().unwrap();
            }
            until("the agent listens again", PATIENCE, || {
                listening(world, host).into_iter().find(|p| !old.contains(p))
            });
        }
        assert_eq!(newest(world).id, before, "it is on its way still");
        _ = moving.join().unwrap();
    });
    let receipt = until("the receipt", PATIENCE, || Some(newest(world)).filter(|r| r.id != before));
    let probe = probe.stop().unwrap();
    println!("{receipt:?}, {probe:?}");
    waited_for(&receipt, &probe);
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str(), receipt.through), ("h2", "h1", Through::Other));
    answers(world, "contoso/web");
    world.in_sync();
}

/// The virsh processes by which a host's agent hears events.
fn listening(world: &World, host: &str) -> Vec<Process> {
    let agent = world.lab.host(host).unwrap().record().process.unwrap();
    let file =
        |pid: u32, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let events = all.filter(|pid: &u32| {
        let stat = file(*pid, "stat");
        // The parent stands behind the name, which may hold anything, and the state.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(agent.pid) && file(*pid, "cmdline").contains("qemu-monitor-event")
    });
    events.filter_map(|pid| Process::of(pid).ok()).collect()
}

/// What came while the guest stood still waited for it on its new host. Without, at least as many probes would be lost
/// as the pause has milliseconds; QEMU leaves a few unread before it stops.
fn waited_for(receipt: &ReceiptView, probe: &ProbeReport) {
    let pause = receipt.pause_us.unwrap_or_else(|| panic!("both libvirts were heard: {receipt:?}")) / 1000;
    assert!(receipt.redirected > 0, "{receipt:?}");
    let said = std::fs::read_to_string(console()).unwrap_or_default();
    let said = said.get(said.len().saturating_sub(2000)..).unwrap_or(&said);
    assert!(
        probe.lost <= pause / 2 + 10,
        "{} lost in a pause of {pause} ms: {receipt:?}\n{said}",
        probe.lost
    );
}

/// The VM's last receipt.
fn newest(world: &World) -> ReceiptView {
    let vm = VM.parse().unwrap();
    let receipts = block_on(world.client.receipts()).unwrap();
    receipts.into_iter().filter(|r| r.vm == vm).max_by_key(|r| r.started_ms).unwrap()
}

fn a_stopped_domain_lets_go(site: &Hosts, world: &World) {
    let port = format!("{VM}/eth0");
    _ = site.one.virsh(&["destroy", "lv-1"]);
    until("the port is on no host", PATIENCE, || host_of(world, &port).is_none().then_some(()));
    let tap = tap_name(&port.parse().unwrap());
    until("the tap is gone", PATIENCE, || (!has_link(world, "h1", &tap)).then_some(()));
    let vm = block_on(world.client.vm(&VM.parse().unwrap())).unwrap();
    assert_eq!(vm.ports.len(), 1, "the port is still in the site: {vm:?}");
}

fn attach_while_it_runs(site: &Hosts, world: &World) {
    _ = site.one.virsh(&["start", "stranger"]);
    let (uri, socket) = (site.one.uri.as_str(), site.sockets[0].as_str());
    let said = tenet(&[
        "libvirt",
        "attach",
        "stranger",
        "--network",
        "contoso/prod",
        "--subnet",
        "apps",
        "--connect",
        uri,
        "--socket",
        socket,
    ]);
    println!("{said}");
    assert!(said.contains("port contoso/stranger/eth0 in contoso/prod/apps"), "{said}");
    let tap = tap_name(&"contoso/stranger/eth0".parse().unwrap());
    for list in [vec!["domiflist", "stranger"], vec!["domiflist", "stranger", "--inactive"]] {
        assert!(site.one.virsh(&list).contains(&tap), "{list:?}");
    }
    assert_eq!(host_of(world, "contoso/stranger/eth0").as_deref(), Some("h1"));
    assert!(has_link(world, "h1", &tap));
    // A second one gets the next name, and what it starts with the next time has both.
    let said = tenet(&[
        "libvirt",
        "attach",
        "stranger",
        "--network",
        "contoso/prod",
        "--subnet",
        "data",
        "--connect",
        uri,
        "--socket",
        socket,
    ]);
    assert!(said.contains("port contoso/stranger/eth1 in contoso/prod/data"), "{said}");
    _ = site.one.virsh(&["destroy", "stranger"]);
    until("the ports are on no host", PATIENCE, || {
        let on = |port| host_of(world, port).is_some();
        (!on("contoso/stranger/eth0") && !on("contoso/stranger/eth1")).then_some(())
    });
    _ = site.one.virsh(&["start", "stranger"]);
    assert_eq!(host_of(world, "contoso/stranger/eth1").as_deref(), Some("h1"));
    _ = site.one.virsh(&["destroy", "stranger"]);
}

fn attach_while_it_is_shut(site: &Hosts, world: &World) {
    let bridged = "<interface type='bridge'><mac address='52:54:00:00:01:01'/><source bridge='br7'/>\
                   <model type='e1000'/></interface>";
    site.two.define(&plain("shut", bridged));
    let (uri, socket) = (site.two.uri.as_str(), site.sockets[1].as_str());
    let said = tenet(&[
        "libvirt",
        "attach",
        "shut",
        "--network",
        "contoso/prod",
        "--subnet",
        "data",
        "--vm",
        "contoso/closed",
        "--mac",
        "52:54:00:00:01:01",
        "--address",
        "10.1.1.88",
        "--connect",
        uri,
        "--socket",
        socket,
    ]);
    println!("{said}");
    assert!(said.contains("port contoso/closed/eth0") && said.contains("when the domain starts"), "{said}");
    assert!(host_of(world, "contoso/closed/eth0").is_none(), "made, and on no host yet");
    let xml = site.two.virsh(&["dumpxml", "shut"]);
    assert!(xml.contains("type='ethernet'") && xml.contains("e1000") && !xml.contains("br7"), "{xml}");
    _ = site.two.virsh(&["start", "shut"]);
    assert_eq!(host_of(world, "contoso/closed/eth0").as_deref(), Some("h2"));
    _ = site.two.virsh(&["destroy", "shut"]);
    several_queues_come_with_the_interface(site, world);
}

/// An interface of two queues becomes a port: its tap is made for as many, and the domain starts.
fn several_queues_come_with_the_interface(site: &Hosts, world: &World) {
    let bridged = "<interface type='bridge'><mac address='52:54:00:00:01:02'/><source bridge='br7'/>\
                   <model type='virtio'/><driver name='vhost' queues='2'/></interface>";
    site.two.define(&plain("wide", bridged));
    let (uri, socket) = (site.two.uri.as_str(), site.sockets[1].as_str());
    let at = ["--connect", uri, "--socket", socket];
    let new = ["--network", "contoso/prod", "--subnet", "data", "--mac", "52:54:00:00:01:02"];
    let said = tenet(&[&["libvirt", "attach", "wide"][..], &new[..], &at[..]].concat());
    println!("{said}");
    assert!(said.contains("with 2 queues"), "{said}");
    let queues = || block_on(world.client.vm(&"contoso/wide".parse().unwrap())).unwrap().ports[0].queues;
    assert_eq!(queues(), 2);
    _ = site.two.virsh(&["start", "wide"]);
    assert_eq!(host_of(world, "contoso/wide/eth0").as_deref(), Some("h2"));
    _ = site.two.virsh(&["destroy", "wide"]);
    // And another number, for both.
    let said =
        tenet(&[&["libvirt", "attach", "wide", "--port", "eth0", "--queues", "4"][..], &at[..]].concat());
    assert!(said.contains("with 4 queues") && queues() == 4, "{said}");
    assert!(site.two.virsh(&["dumpxml", "wide"]).contains("queues='4'"));
    _ = site.two.virsh(&["start", "wide"]);
    _ = site.two.virsh(&["destroy", "wide"]);
}

fn import_proposes_what_apply_takes(site: &Hosts, world: &World) {
    let bridged = "<interface type='bridge'><mac address='52:54:00:00:02:01'/><source bridge='br0'/><model type='virtio'/>\
         <driver queues='2'/></interface>";
    site.one.define(&plain("Old_Server", bridged));
    let proposed = tenet(&["libvirt", "import", "--connect", &site.one.uri, "--tenant", "old"]);
    println!("{proposed}");
    assert!(proposed.contains("domain stranger is Tenet's already"), "{proposed}");
    assert!(proposed.contains("tenet libvirt attach Old_Server --vm old/old-server"), "{proposed}");
    let file = std::env::temp_dir().join(format!("tenet-import-{}.yaml", std::process::id()));
    std::fs::write(&file, &proposed).unwrap();
    let lab = world.lab.record().name.clone();
    let said = tenet(&["--lab", lab.as_str(), "apply", "--yes", "-f", file.to_str().unwrap()]);
    println!("{said}");
    std::fs::remove_file(&file).unwrap();
    let vm = block_on(world.client.vm(&"old/old-server".parse().unwrap())).unwrap();
    assert_eq!((vm.ports[0].mac.to_string().as_str(), vm.ports[0].queues), ("52:54:00:00:02:01", 2));
    _ = site.one.virsh(&["undefine", "Old_Server"]);
}

fn without_an_agent_it_says_what_to_do(site: &Hosts, world: &mut World) {
    world.lab.kill_agent("h1").unwrap();
    let begin = Instant::now();
    let said = site.one.refused(&["start", "stranger"]);
    println!("after {:?}: {said}", begin.elapsed());
    assert!(
        said.contains("tenet: the agent does not answer") && said.contains("check that `tenet agent` runs"),
        "{said}"
    );
    assert!(begin.elapsed() < Duration::from_secs(15));
    world.lab.start_agent("h1").unwrap();
    until("the agent is back", PATIENCE, || world.host_status("h1").connected.then_some(()));
    _ = site.one.virsh(&["start", "stranger"]);
    _ = site.one.virsh(&["destroy", "stranger"]);
}
