//! What runs on a host asks its agent for ports: namespaces, VMs on taps, and VMs that come by a live migration.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;
use tenet_api::local::{
    LocalClient, LocalError, LocalPort, LocalVm, Outcome, Prepare, PreparePort, Prepared, Purpose, Release,
};
use tenet_hostnet::{Links, Netns};
use tenet_lab::tool::ask;
use tenet_model::Mac;
use tenet_tests::{Fixture, SITE, World, binary, block_on, until};

static LAB: Fixture = Fixture::new("loc", SITE);

const PATIENCE: Duration = Duration::from_secs(15);

/// A namespace that goes with the test.
struct Space(String);

impl Space {
    fn new(tag: &str) -> Self {
        let name = format!("t{}{tag}", std::process::id());
        Netns::create(&name).unwrap();
        Self(name)
    }

    fn netns(&self) -> Netns {
        Netns::open(&self.0).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // It is the kernel's to say if it is not there.
        let _ = Netns::delete(&self.0);
    }
}

fn agent(world: &World, host: &str) -> LocalClient {
    LocalClient::new(&world.lab.host(host).unwrap().record().socket()).unwrap()
}

/// Runs `tenet` on a host.
fn tenet(world: &World, host: &str, args: &[&str]) -> Output {
    let handle = world.lab.host(host).unwrap();
    let mut command = handle.command(binary());
    command.args(args).arg("--socket").arg(handle.record().socket());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn prepare(world: &World, host: &str, vm: &str, purpose: Purpose) -> Result<Prepared, LocalError> {
    block_on(agent(world, host).prepare(&Prepare::new(vm.parse().unwrap(), purpose)))
}

fn prepare_new(world: &World, host: &str, vm: &str, subnet: &str) -> Result<Prepared, LocalError> {
    let port = PreparePort {
        network: Some("contoso/prod".parse().unwrap()),
        subnet: Some(subnet.parse().unwrap()),
        ..PreparePort::default()
    };
    let prepare = Prepare {
        ports: vec![port],
        domain: Some(format!("domain-{}", vm.replace('/', "-"))),
        ..Prepare::new(vm.parse().unwrap(), Purpose::Start)
    };
    block_on(agent(world, host).prepare(&prepare))
}

fn release(world: &World, host: &str, vm: &str, outcome: Outcome) -> String {
    let release = Release { vm: vm.parse().unwrap(), outcome, ports: Vec::new() };
    block_on(agent(world, host).release(&release)).unwrap().done
}

fn here(world: &World, host: &str, vm: &str) -> Option<LocalVm> {
    block_on(agent(world, host).vms()).unwrap().into_iter().find(|v| v.vm.to_string() == vm)
}

/// The host that the controller says has the VM.
fn on(world: &World, vm: &str) -> Option<String> {
    let view = block_on(world.client.vm(&vm.parse().unwrap())).unwrap();
    view.ports.first().and_then(|p| p.host.as_ref()).map(ToString::to_string)
}

/// What does not change of itself.
fn same(prepared: &Prepared) -> Vec<(String, String, Mac, Vec<IpAddr>)> {
    let port = |p: &LocalPort| (p.port.to_string(), p.device.clone(), p.mac, p.addresses.clone());
    prepared.ports.iter().map(port).collect()
}

fn refusal(error: LocalError) -> (u16, String, String) {
    match error {
        LocalError::Refused { status, error } => (status, error.message, error.hint),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_namespace_is_attached_talks_and_is_detached() {
    let Some(world) = LAB.world() else { return };
    let space = Space::new("box");
    let name = space.0.as_str();
    let args = ["attach", "--netns", name, "--vm", "contoso/box", "--network", "prod", "--subnet", "data"];
    // As it was refused, nothing is left.
    let unknown = ["attach", "--netns", name, "--vm", "contoso/box", "--network", "nope"];
    let refused = tenet(&world, "h1", &unknown);
    assert!(!refused.status.success() && text(&refused).contains("network contoso/nope does not exist"));
    assert!(Links::in_netns(&space.netns()).unwrap().find("eth0").unwrap().is_none());

    let done = tenet(&world, "h1", &args);
    assert!(done.status.success(), "{}", text(&done));
    let host = world.ip("contoso/web");
    // In the same subnet on another host, and in another subnet by the gateway.
    for vm in ["contoso/web", "contoso/app"] {
        let answer = ask(&space.netns(), world.ip(vm).into(), PATIENCE).unwrap();
        assert_eq!(answer.as_deref(), Some(vm), "asked at {host}");
    }
    let links = Links::in_netns(&space.netns()).unwrap();
    let before = links.get("eth0").unwrap();
    let view = block_on(world.client.vm(&"contoso/box".parse().unwrap())).unwrap();
    assert_eq!(before.mac, Some(view.ports[0].mac.octets()));
    assert_eq!(before.mtu, here(&world, "h1", "contoso/box").unwrap().ports[0].mtu);

    // Once more is nothing new; another host is refused with the first one's name.
    let again = tenet(&world, "h1", &args);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(links.get("eth0").unwrap(), before);
    let other = Space::new("bx2");
    let args = ["attach", "--netns", &other.0, "--vm", "contoso/box"];
    let refused = tenet(&world, "h2", &args);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    let said = text(&refused);
    assert!(said.contains("VM contoso/box is on host h1") && said.contains("tenet vm migrate"), "{said}");
    // And on the same host another namespace cannot have it.
    let refused = tenet(&world, "h1", &args);
    assert!(!refused.status.success() && text(&refused).contains("attached already"), "{}", text(&refused));

    let gone = tenet(&world, "h1", &["detach", "--netns", name]);
    assert!(gone.status.success(), "{}", text(&gone));
    assert!(links.find("eth0").unwrap().is_none());
    assert_eq!(on(&world, "contoso/box"), None);
    let again = tenet(&world, "h1", &["detach", "--vm", "contoso/box"]);
    assert!(again.status.success(), "{}", text(&again));
    // Now the other host may have it, with the same address and MAC.
    let done = tenet(&world, "h2", &["attach", "--netns", &other.0, "--vm", "contoso/box"]);
    assert!(done.status.success(), "{}", text(&done));
    let answer = ask(&other.netns(), world.ip("contoso/web").into(), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some("contoso/web"));
    let now = Links::in_netns(&other.netns()).unwrap().get("eth0").unwrap();
    assert_eq!(now.mac, before.mac);
    let gone = tenet(&world, "h2", &["detach", "--netns", &other.0]);
    assert!(gone.status.success(), "{}", text(&gone));
    world.in_sync();
}

#[test]
fn a_claim_makes_a_tap_and_a_migration_brings_the_vm_here() {
    const VM: &str = "contoso/roam";
    let Some(world) = LAB.world() else { return };
    let prepared = prepare_new(&world, "h1", VM, "data").unwrap();
    let [port] = prepared.ports.as_slice() else { panic!("{prepared:?}") };
    assert!(port.tap && port.state == "active" && port.mtu > 1000 && !prepared.fail_static, "{port:?}");
    let h1 = Links::in_netns(world.lab.host("h1").unwrap().netns()).unwrap();
    assert!(h1.find(&port.device).unwrap().is_some_and(|l| l.up));
    assert_eq!(here(&world, "h1", VM).unwrap().domain.as_deref(), Some("domain-contoso-roam"));
    // Asked again, the same is said.
    assert_eq!(same(&prepare(&world, "h1", VM, Purpose::Start).unwrap()), same(&prepared));

    // Another host may not start it.
    let (status, message, hint) = refusal(prepare(&world, "h2", VM, Purpose::Start).unwrap_err());
    assert_eq!((status, message.as_str()), (409, "VM contoso/roam is on host h1"));
    assert!(hint.contains("tenet vm migrate contoso/roam --to h2"), "{hint}");

    // But it may come there.
    let coming = prepare(&world, "h2", VM, Purpose::Incoming).unwrap();
    assert_eq!((coming.ports[0].state.as_str(), &coming.ports[0].device), ("prepared", &port.device));
    let running = block_on(world.client.migrations()).unwrap();
    assert!(running.iter().any(|m| m.vm.to_string() == VM && m.to.as_str() == "h2"), "{running:?}");
    // Who comes second, as libvirt's next hook does, joins.
    assert_eq!(prepare(&world, "h2", VM, Purpose::Start).unwrap().ports[0].state, "prepared");
    // It did not come after all.
    assert_eq!(release(&world, "h2", VM, Outcome::Failed), "the move was given up");
    assert_eq!(on(&world, VM).as_deref(), Some("h1"));
    let h2 = Links::in_netns(world.lab.host("h2").unwrap().netns()).unwrap();
    until("the tap is gone from h2", PATIENCE, || h2.find(&port.device).unwrap().is_none().then_some(()));
    until("the port is active again", PATIENCE, || {
        (here(&world, "h1", VM)?.ports[0].state == "active").then_some(())
    });

    // Next time it does.
    assert_eq!(prepare(&world, "h2", VM, Purpose::Incoming).unwrap().ports[0].state, "prepared");
    // The source's guest stops before anybody knows that it has moved: nothing is taken away.
    release(&world, "h1", VM, Outcome::Stopped);
    block_on(world.client.migrate_switch(&VM.parse().unwrap())).unwrap();
    until("it is on h2", PATIENCE, || (on(&world, VM).as_deref() == Some("h2")).then_some(()));
    world.in_sync();
    release(&world, "h1", VM, Outcome::Moved);
    assert_eq!(here(&world, "h2", VM).unwrap().ports[0].state, "active");
    until("nothing is left on h1", PATIENCE, || here(&world, "h1", VM).is_none().then_some(()));

    // Stopped, it is anybody's; twice is no error.
    for _ in 0..2 {
        release(&world, "h2", VM, Outcome::Stopped);
        assert_eq!(on(&world, VM), None);
    }
    until("the tap is gone", PATIENCE, || h2.find(&port.device).unwrap().is_none().then_some(()));
    world.in_sync();
}

#[test]
fn claims_alter_nothing_that_is_there() {
    let Some(world) = LAB.world() else { return };
    let port = PreparePort { mac: Some("52:54:00:12:34:56".parse().unwrap()), ..PreparePort::default() };
    let other_mac =
        Prepare { ports: vec![port], ..Prepare::new("contoso/sql".parse().unwrap(), Purpose::Start) };
    let (status, message, _) = refusal(block_on(agent(&world, "h1").prepare(&other_mac)).unwrap_err());
    assert_eq!(status, 409);
    assert!(message.contains("contoso/sql/eth0 has MAC"), "{message}");
    // A tenant's VM in another tenant's network: the model's own words.
    let port = PreparePort {
        network: Some("fabrikam/prod".parse().unwrap()),
        subnet: Some("data".parse().unwrap()),
        ..PreparePort::default()
    };
    let foreign =
        Prepare { ports: vec![port], ..Prepare::new("contoso/spy".parse().unwrap(), Purpose::Start) };
    let (status, message, hint) = refusal(block_on(agent(&world, "h1").prepare(&foreign)).unwrap_err());
    assert!(status == 422 && !hint.is_empty(), "{status} {message} {hint}");
    assert!(block_on(world.client.vm(&"contoso/spy".parse().unwrap())).is_err());
    // A device that is not there in time.
    let port = PreparePort { device: Some("nosuch0".into()), ..PreparePort::default() };
    let late = Prepare {
        ports: vec![PreparePort {
            network: Some("contoso/prod".parse().unwrap()),
            subnet: Some("data".parse().unwrap()),
            ..port
        }],
        timeout_ms: Some(500),
        ..Prepare::new("contoso/late".parse().unwrap(), Purpose::Start)
    };
    let (status, message, hint) = refusal(block_on(agent(&world, "h1").prepare(&late)).unwrap_err());
    assert_eq!(status, 504);
    assert!(message.contains("nosuch0") && hint.contains("nosuch0"), "{message}: {hint}");
    release(&world, "h1", "contoso/late", Outcome::Failed);
    assert_eq!(on(&world, "contoso/late"), None);
    world.in_sync();
}

#[test]
fn without_a_controller_what_was_here_starts() {
    let Some(mut world) = LAB.world() else { return };
    let vm = "contoso/again";
    let first = prepare_new(&world, "h1", vm, "data").unwrap();
    world.lab.kill_controller().unwrap();
    let again = until("the host notices", PATIENCE, || {
        prepare(&world, "h1", vm, Purpose::Start).ok().filter(|p| p.fail_static)
    });
    assert_eq!(same(&again), same(&first));
    let prompt =
        Prepare { timeout_ms: Some(300), ..Prepare::new("contoso/web".parse().unwrap(), Purpose::Start) };
    let (status, message, _) = refusal(block_on(agent(&world, "h1").prepare(&prompt)).unwrap_err());
    assert_eq!(status, 503);
    assert!(message.contains("no session with the controller"), "{message}");
    block_on(world.lab.start_controller()).unwrap();
    world.in_sync();
    release(&world, "h1", vm, Outcome::Stopped);
    assert_eq!(on(&world, vm), None);
}
