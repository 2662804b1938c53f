//! Real libvirt daemons on the hosts of a lab: domains start with their ports, are refused with the reason, move.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::{Duration, Instant};
use tenet_lab::guest::Image;
use tenet_lab::tool::{Probe, Stream};
use tenet_model::{Through, tap_name};
use tenet_tests::domains::{
    ADDRESS, ETH0, Hosts, VM, answers, has_link, host_of, listening, newest, plain, tenet,
};
use tenet_tests::guest::with_guests;
use tenet_tests::{SITE, Setup, World, block_on, libvirt, skipped, until};

const PATIENCE: Duration = Duration::from_secs(30);
/// Most milliseconds that are lost beyond a pause that no agent heard of: until every host sends to the guest's
/// new place, found out by its first frame alone, and an emulated guest has got going again. Without the switch at that
/// frame it would be the second or two that libvirt takes to close the old tap, or no end.
const SWITCH: u64 = 500;
const HOSTS: [&str; 2] = ["h1", "h2"];

#[test]
fn domains_start_move_and_stop_with_their_ports() {
    if let Some(why) = libvirt::missing() {
        return skipped(why);
    }
    with_guests("lv", SITE, Setup::PLAIN, |world, image, consoles| {
        without_a_libvirt_nothing_is_looked_at_or_said(world);
        let site = Hosts::start(world, consoles);
        one_that_comes_is_found(world);
        strangers_start_unasked(&site);
        a_refusal_is_shown_by_virsh(&site);
        queues_that_differ_are_refused(&site, world);
        start_makes_port_and_tap(&site, world, image);
        another_host_may_not_start_it(&site, image);
        agents_that_shall_not_listen_say_so(world);
        a_move_by_hand_is_followed(&site, world);
        a_failed_move_is_rolled_back(&site, world);
        agents_listen_by_themselves(world);
        tenet_has_libvirt_move_it(&site, world);
        a_move_by_hand_is_heard_of(&site, world);
        a_move_is_heard_of_although_virsh_ends(&site, world);
        a_stopped_domain_lets_go(&site, world);
        attach_while_it_runs(&site, world);
        attach_while_it_is_shut(&site, world);
        import_proposes_what_apply_takes(&site, world);
        without_an_agent_it_says_what_to_do(&site, world);
    });
}

/// Agents are told nothing of libvirt, as by default, and their hosts have none: no process, no word.
fn without_a_libvirt_nothing_is_looked_at_or_said(world: &World) {
    for host in HOSTS {
        let log = std::fs::read_to_string(&world.lab.host(host).unwrap().record().log).unwrap();
        assert!(log.contains("local socket open") && !log.contains("libvirt"), "{log}");
        assert!(listening(world, host).is_empty() && world.host_status(host).problems.is_empty());
    }
}

/// A daemon that was started after the agent is listened to.
fn one_that_comes_is_found(world: &World) {
    for host in HOSTS {
        until("the agent listens", PATIENCE, || (listening(world, host).len() == 1).then_some(()));
    }
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
            "<interface type='ethernet'><mac address='52:54:00:00:00:77'/><target dev='{}' managed='no'/></interface>",
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
    _ = tenet(&[&["--lab", lab.as_str()], &attach[..]].concat());
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
    site.one.define(&site.domain("lv-1", &[ETH0], image));
    assert!(host_of(world, &format!("{VM}/eth0")).is_none() && !has_link(world, "h1", &tap));
    _ = site.one.virsh(&["start", "lv-1"]);
    assert!(has_link(world, "h1", &tap));
    assert_eq!(host_of(world, &format!("{VM}/eth0")).as_deref(), Some("h1"));
    answers(world, "contoso/web");
    answers(world, "contoso/log");
}

fn another_host_may_not_start_it(site: &Hosts, image: &Image) {
    site.two.define(&site.domain("lv-1", &[ETH0], image));
    let said = site.two.refused(&["start", "lv-1"]);
    println!("{said}");
    assert!(said.contains("tenet: VM contoso/lv is on host h1"), "{said}");
    assert!(said.contains("tenet vm migrate contoso/lv --to h2"), "what to do: {said}");
    _ = site.two.virsh(&["undefine", "lv-1"]);
}

fn agents_that_shall_not_listen_say_so(world: &mut World) {
    restart(world, Some("off"));
    let host = host_of(world, &format!("{VM}/eth0")).unwrap();
    let said = until("the agent says that it hears nothing", PATIENCE, || {
        detail(world, &host).filter(|d| d.contains("libvirt's domain lv-1 is not listened to"))
    });
    println!("{said}");
    assert!(said.contains("started with --libvirt off") && said.contains("TENET_AGENT_OPTIONS"), "{said}");
    assert!(HOSTS.iter().all(|host| listening(world, host).is_empty()));
}

/// Starts both agents again, told this of libvirt.
fn restart(world: &mut World, libvirt: Option<&str>) {
    for host in HOSTS {
        world.lab.follow_libvirt(host, libvirt).unwrap();
        world.lab.kill_agent(host).unwrap();
        world.lab.start_agent(host).unwrap();
    }
    for host in HOSTS {
        until("the agent is back", PATIENCE, || world.host_status(host).connected.then_some(()));
    }
    world.in_sync();
}

fn a_move_by_hand_is_followed(site: &Hosts, world: &World) {
    let (vm, port) = (VM.parse().unwrap(), format!("{VM}/eth0"));
    let tap = tap_name(&port.parse().unwrap());
    let far = world.lab.vm("contoso/web").unwrap().netns().clone();
    let address: IpAddr = ADDRESS.parse().unwrap();
    let stream = Stream::start(&far, address, Duration::from_millis(5)).unwrap();
    let probe = Probe::start(&far, address, VM, 200).unwrap();
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
    let stream = stream.stop().unwrap();
    // Who asks has an answer again, or there would be no end of the silence to measure.
    answers(world, "contoso/web");
    let probe = probe.stop().unwrap();
    // Nobody heard the guest stop: what came while it stood still is lost, and what came until the hosts knew of it.
    let stopped = site.one.event_ms("lv-1", "STOP").unwrap();
    let resumed = site.two.event_ms("lv-1", "RESUME").unwrap();
    let pause = u64::try_from((resumed - stopped).rem_euclid(24 * 3_600_000)).unwrap();
    println!("pause {pause} ms, {probe:?}, {stream:?}");
    assert!(stream.received.in_order && stream.received.bytes == stream.sent, "{stream:?}");
    assert_eq!((probe.strangers, probe.duplicates), (0, 0), "{probe:?}");
    let silence = probe.longest_gap_us / 1000;
    assert!(silence <= pause + SWITCH, "{silence} ms of silence in a pause of {pause} ms: {probe:?}");
    // One question each 5 ms.
    let lost = probe.lost * 5;
    assert!(lost <= pause + SWITCH, "{lost} ms of questions lost in a pause of {pause} ms: {probe:?}");
    answers(world, "contoso/log");
    until("the source's tap is gone", PATIENCE, || (!has_link(world, "h1", &tap)).then_some(()));
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

fn agents_listen_by_themselves(world: &mut World) {
    restart(world, None);
    let host = host_of(world, &format!("{VM}/eth0")).unwrap();
    until("and nothing more of it now", PATIENCE, || detail(world, &host).filter(String::is_empty));
    one_that_comes_is_found(world);
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
    site.waited_for(&receipt, &probe);
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
    site.waited_for(&receipt, &probe);
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
    let (source, target) = (&site.two, site.one.uri.as_str());
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| source.virsh(&[&slowly[..], &[target]].concat()));
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
    site.waited_for(&receipt, &probe);
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str(), receipt.through), ("h2", "h1", Through::Other));
    answers(world, "contoso/web");
    world.in_sync();
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
