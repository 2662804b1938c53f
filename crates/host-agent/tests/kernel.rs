//! The agent on a real kernel: a namespace of its own, veths, pinned maps. Needs root, else skipped aloud.
#![expect(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use common::*;
use std::path::PathBuf;
use std::time::Duration;
use tenet_api::agent::{self, agent_message::Message as M, controller_message::Message as C};
use tenet_datapath::{Datapath, HUB, Role};
use tenet_host_agent::{Hook, KernelPart, Options, Receive};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{DEVICE_TAP, PORT_FLAG_DOWN, Port};

fn ack(m: M) -> Option<agent::Ack> {
    if let M::Ack(a) = m { Some(a) } else { None }
}
fn proof(m: M) -> Option<agent::Proof> {
    if let M::Proof(p) = m { Some(p) } else { None }
}

/// A host in namespaces: `up0` leads to a router, `tap1` will lead to a VM.
struct Host {
    dir: Dir,
    links: Links,
    vm: Netns,
    _router: Netns,
    bpffs: PathBuf,
    hook: Hook,
}

impl Host {
    /// Called inside the host's namespace.
    fn new(hook: Hook) -> Self {
        let (vm, router) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
        let links = Links::here().unwrap();
        links.set_up("lo").unwrap();
        links.add_veth("up0", "up1", &router).unwrap();
        links.set_up("up0").unwrap();
        let dir = Dir::new();
        let name = dir.0.file_name().unwrap().to_owned();
        Self { dir, links, vm, _router: router, bpffs: PathBuf::from("/sys/fs/bpf").join(name), hook }
    }

    fn agent(&self, controller: &Controller) -> Running {
        Running::start(Options {
            uplinks: vec!["up0".into()],
            kernel: KernelPart::Real { bpffs: self.bpffs.clone(), hook: self.hook, receive: Receive::Auto },
            ..options(&self.dir.0, controller)
        })
    }

    fn plug_vm(&self) {
        self.links.add_veth("tap1", "eth0", &self.vm).unwrap();
        Links::in_netns(&self.vm).unwrap().set_up("eth0").unwrap();
    }

    /// Another hand on the same maps: somebody who tampers, and our look at them.
    fn other_hand(&self) -> Datapath {
        let hook = match self.hook {
            Hook::Clsact => tenet_datapath::Hook::Clsact,
            Hook::Auto | Hook::Tcx => tenet_datapath::Hook::Auto,
        };
        let lock = Some(self.dir.0.join("other.lock"));
        Datapath::open(&tenet_datapath::Options {
            bpffs: self.bpffs.clone(),
            hook,
            lock,
            ..tenet_datapath::Options::default()
        })
        .unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let options = tenet_datapath::Options {
            bpffs: self.bpffs.clone(),
            lock: Some(self.dir.0.join("end.lock")),
            ..tenet_datapath::Options::default()
        };
        drop(tenet_datapath::detach_all(&options));
    }
}

/// Runs a test in a namespace of its own; the runtime has this one thread, so that all stays inside.
fn in_namespace(test: impl AsyncFnOnce() + Send) {
    // SAFETY: no arguments, no effects.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: needs root to make namespaces and load BPF programs");
        return;
    }
    let netns = Netns::anonymous().unwrap();
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        })
        .unwrap();
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn only_port(image: &Image) -> Option<(u32, Port)> {
    // Beside that of the agent's own probes.
    image.ports.iter().find(|(_, p)| p.net != tenet_tables::PROBE_NET).map(|(k, v)| (*k, *v))
}

async fn lives(hook: Hook) {
    let host = Host::new(hook);
    let mut controller = Controller::start().await;
    let running = host.agent(&controller);
    let mut session = controller.session().await;
    let first = site(7);
    session.say(C::Full(agent::Full::new(7, &first))).await;
    let a = session.hear(ack).await;
    assert_eq!(
        (a.error.as_str(), a.ports[0].detail.as_str()),
        ("", "device tap1 does not exist on this host yet")
    );

    // The VM's device comes.
    host.plug_vm();
    let p = session.hear(|m| proof(m).filter(|p| p.ports[0].present && p.ports[0].carrier)).await;
    assert_eq!((p.ports[0].state.as_str(), p.ports[0].mtu), ("active", 1458), "{p:?}");

    // The kernel would drop frames for the other host without a word.
    assert_eq!(p.problems, ["no route to host h2 (192.168.2.20): add one on the provider network"]);
    host.links.add_addr("up0", [192, 168, 1, 10].into(), 24).unwrap();
    host.links.add_route([192, 168, 2, 0].into(), 24, Some([192, 168, 1, 1].into()), None).unwrap();
    session.hear(|m| proof(m).filter(|p| p.problems.is_empty())).await;
    let tap = host.links.get("tap1").unwrap();
    assert_eq!((tap.mtu, tap.up, tap.index), (65535, true, p.ports[0].ifindex));
    let up = host.links.index("up0").unwrap();
    let hand = host.other_hand();
    let good = hand.read().unwrap();
    let wanted = [(tap.index, Role::Port), (up, Role::Uplink)];
    assert_eq!(hand.verify_attached(&wanted).unwrap().len(), 2);

    // Somebody tampers with entries.
    let record = good.records.keys().next().copied().unwrap();
    for damage in [
        Operation::Record(record, None),
        Operation::Port(tap.index, None),
        Operation::Subnet(9999, good.subnets.values().next().copied()),
    ] {
        hand.apply(&[damage]).unwrap();
        let p = session.hear(|m| proof(m).filter(|p| !p.repaired.is_empty())).await;
        assert_eq!(p.repaired.len(), 1, "{p:?}");
        assert_eq!(hand.read().unwrap(), good);
    }
    // And with programs.
    for (ifindex, role) in wanted {
        hand.detach(ifindex).unwrap();
        let p = session.hear(|m| proof(m).filter(|p| !p.repaired.is_empty())).await;
        assert!(p.repaired[0].contains("was gone: attached again"), "{p:?}");
        assert_eq!(hand.verify_attached(&[(ifindex, role)]).unwrap().len(), 1);
    }

    // And with pins.
    std::fs::remove_file(host.bpffs.join("maps/RECORDS")).unwrap();
    std::fs::remove_file(host.bpffs.join("maps/EVENTS")).unwrap();
    let p = session.hear(|m| proof(m).filter(|p| !p.repaired.is_empty())).await;
    assert_eq!(p.repaired.len(), 2, "{p:?}");
    assert!(host.bpffs.join("maps/RECORDS").exists() && host.bpffs.join("maps/EVENTS").exists());

    // The VM's side goes down and up again: the port says so without the controller.
    let vm = Links::in_netns(&host.vm).unwrap();
    vm.set_down("eth0").unwrap();
    until("down flag", || only_port(&hand.read().unwrap()).filter(|(_, p)| p.flags & PORT_FLAG_DOWN != 0))
        .await;
    vm.set_up("eth0").unwrap();
    until("up again", || only_port(&hand.read().unwrap()).filter(|(_, p)| p.flags & PORT_FLAG_DOWN == 0))
        .await;

    // The uplink's MTU changes.
    host.links.set_mtu("up0", 1400).unwrap();
    until("new MTU", || only_port(&hand.read().unwrap()).filter(|(_, p)| p.mtu == 1358)).await;
    host.links.set_mtu("up0", 1500).unwrap();
    until("old MTU", || only_port(&hand.read().unwrap()).filter(|(_, p)| p.mtu == 1458)).await;

    // The agent dies; programs and tables stay; the next one adopts them.
    let before = hand.attached().unwrap();
    running.task.abort();
    drop(running);
    drop(session);
    assert_eq!(hand.verify_attached(&wanted).unwrap().len(), 2);
    let image = hand.read().unwrap();
    drop(hand);
    let running = until_started(&host, &controller).await;
    let mut session = controller.session().await;
    session.say(C::Full(agent::Full::new(7, &first))).await;
    assert_eq!(session.hear(ack).await.error, "");
    let p = session.hear(proof).await;
    assert_eq!(p.repaired, Vec::<String>::new());
    let hand = host.other_hand();
    assert_eq!(hand.read().unwrap(), image);
    assert_eq!(hand.attached().unwrap(), before, "the very programs that were there");
    running.stop().await;
}

/// The lock of an aborted agent is free once its task is dropped.
async fn until_started(host: &Host, controller: &Controller) -> Running {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let running = host.agent(controller);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !running.task.is_finished() {
            return running;
        }
        assert!(std::time::Instant::now() < end, "the agent does not start again");
    }
}

#[test]
fn agent_programs_repairs_and_adopts_with_tcx() {
    in_namespace(async || lives(Hook::Auto).await);
}

#[test]
fn agent_programs_repairs_and_adopts_with_clsact() {
    in_namespace(async || lives(Hook::Clsact).await);
}

/// A VM on a tap brings the hub with it; the next agent adopts it, and without TCX there is none.
async fn taps(hook: Hook) {
    let host = Host::new(hook);
    let mut controller = Controller::start().await;
    let running = host.agent(&controller);
    let mut session = controller.session().await;
    session.say(C::Full(agent::Full::new(7, &site(7)))).await;
    host.links.add_tap("tap1", TapOptions::default()).unwrap();
    let _vm = host.links.open_tap("tap1", TapOptions::default()).unwrap();
    session.hear(|m| proof(m).filter(|p| p.ports[0].present && p.ports[0].carrier)).await;
    let hand = host.other_hand();
    let config = || hand.read().unwrap().config;
    assert_eq!(only_port(&hand.read().unwrap()).unwrap().1.device, DEVICE_TAP);
    if hook == Hook::Clsact {
        assert_eq!((config().unwrap().hub, host.links.find(HUB).unwrap()), (0, None));
        return running.stop().await;
    }
    let hub = until("the hub", || config().map(|c| c.hub).filter(|h| *h != 0)).await;
    assert_eq!(host.links.index(HUB).unwrap(), hub);
    running.stop().await;
    drop(session);
    let running = until_started(&host, &controller).await;
    let mut session = controller.session().await;
    session.say(C::Full(agent::Full::new(7, &site(7)))).await;
    let p = session.hear(proof).await;
    assert_eq!((p.repaired, config().unwrap().hub), (Vec::<String>::new(), hub), "adopted");
    // Somebody takes it away.
    host.links.delete_link(HUB).unwrap();
    let new = until("a new hub", || config().map(|c| c.hub).filter(|h| *h != 0 && *h != hub)).await;
    assert_eq!(host.links.index(HUB).unwrap(), new);
    running.stop().await;
}

#[test]
fn hub_comes_with_the_first_tap() {
    in_namespace(async || taps(Hook::Auto).await);
}

#[test]
fn no_hub_without_tcx() {
    in_namespace(async || taps(Hook::Clsact).await);
}

const RANGE: &str = "2001:db8:1::80/121";

/// The site with a range of rewrite addresses of this host's, and maybe one of them in use.
fn rewritten(generation: u64, range: &str, own: Option<&str>) -> C {
    use tenet_compile::Row;
    let mut rows = site(generation);
    for (row, _) in rows.0.values_mut() {
        match row {
            Row::Host(h) => h.pool = vec![range.parse().unwrap()],
            Row::Record(r) if r.port.vm == name("sql") => r.rewrite_pa = own.map(|a| a.parse().unwrap()),
            _ => {}
        }
    }
    C::Full(agent::Full::new(generation, &rows))
}

/// The agent has compared all since it took the state.
async fn compared(session: &mut Session) {
    session.hear(ack).await;
    for _ in 0..2 {
        session.hear(proof).await;
    }
}

async fn multicast() {
    let host = Host::new(Hook::Auto);
    host.links.add_addr("up0", "2001:db8:1::10".parse().unwrap(), 64).unwrap();
    let takes_all = || host.links.get("up0").unwrap().all_multicast;
    let on = || takes_all().then_some(());
    let off = || (!takes_all()).then_some(());
    let mut controller = Controller::start().await;
    let running = host.agent(&controller);
    let mut session = controller.session().await;
    session.say(rewritten(7, RANGE, None)).await;
    compared(&mut session).await;
    assert!(!takes_all(), "a range of which nothing is in use");
    session.say(rewritten(8, RANGE, Some("2001:db8:1::81"))).await;
    until("the questions for rewrite addresses are heard", on).await;

    // Somebody turns it off.
    host.links.set_all_multicast("up0", false).unwrap();
    let p = session.hear(|m| proof(m).filter(|p| !p.repaired.is_empty())).await;
    assert!(p.repaired[0].contains("takes all again"), "{p:?}");
    assert!(takes_all());

    // The agent dies, and another one starts: not for a moment does it stop.
    let watch = host.links.watch().unwrap();
    running.task.abort();
    drop((running, session));
    let running = until_started(&host, &controller).await;
    let mut session = controller.session().await;
    session.say(rewritten(8, RANGE, Some("2001:db8:1::81"))).await;
    compared(&mut session).await;
    while let Ok(events) = watch.try_next() {
        let off = events.iter().find(
            |e| matches!(e, tenet_hostnet::LinkEvent::Changed(l) if l.name == "up0" && !l.all_multicast),
        );
        assert_eq!(off, None);
    }
    assert!(takes_all());

    // The last address goes, and the agent that did not turn it on turns it off.
    session.say(rewritten(9, RANGE, None)).await;
    until("nobody asks any more", off).await;

    // What an administrator sets stays his.
    host.links.set_all_multicast("up0", true).unwrap();
    for (generation, own) in [(10, Some("2001:db8:1::81")), (11, None)] {
        session.say(rewritten(generation, RANGE, own)).await;
        compared(&mut session).await;
        assert!(takes_all());
    }

    // A range that is routed to this host is asked for by nobody, until it is on link.
    host.links.set_all_multicast("up0", false).unwrap();
    session.say(rewritten(12, "2001:db8:9::/64", Some("2001:db8:9::1"))).await;
    compared(&mut session).await;
    assert!(!takes_all());
    host.links.add_route("2001:db8:9::".parse().unwrap(), 64, None, Some("up0")).unwrap();
    until("it is on link now", on).await;

    running.stop().await;
    assert!(takes_all(), "forwarding goes on, and so do the questions");
    let done = tenet_host_agent::detach(&host.bpffs, &host.dir.0).unwrap();
    assert_eq!((done.multicast, takes_all()), (vec!["up0".to_owned()], false), "{:?}", done.errors);
}

#[test]
fn uplink_takes_all_multicast_while_ipv6_rewrite_addresses_are_asked_for() {
    in_namespace(async || multicast().await);
}
