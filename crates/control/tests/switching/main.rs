//! Changes of a network's method: who is told when, what is waited for, what comes in between.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::{Row, Rows, compile};
use tenet_control::{Ack, Control, Hello, LEAVE, Message, Micros, Output, SessionId};
use tenet_model::{
    Change, Desired, Host, HostName, Key, Method, Migration, Name, Network, NetworkRef, Object, Operation,
    Phase, Port, Subnet, SubnetPrefix, Tenant, Vm,
};
use uuid::Uuid;

#[derive(Default)]
struct Agent {
    session: Option<SessionId>,
    rows: Rows,
    generation: u64,
    /// It takes what it is sent, but does not answer.
    mute: bool,
}

/// Hosts h1, h2 and h3; VMs t/v1 and t/v2 of network t/red on h1 and h2, t/v3 on none.
struct World {
    now: Micros,
    store: Desired,
    control: Control,
    agents: BTreeMap<HostName, Agent>,
    told: Vec<String>,
    /// Commits of steps that are still to fail.
    failing: usize,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn red() -> NetworkRef {
    "t/red".parse().unwrap()
}

fn port(vm: u8, host: Option<&str>) -> Object {
    Object::Port(Port {
        name: format!("t/v{vm}/eth0").parse().unwrap(),
        subnet: "t/red/a".parse().unwrap(),
        mac: tenet_model::Mac::new([2, 0, 0, 0, 0, vm]).unwrap(),
        addresses: vec![[10, 0, 0, 10 + vm].into()],
        host: host.map(name),
        device: host.map(|_| format!("tap{vm}")),
        tap: false,
        queues: 1,
        security: true,
        rewrite: BTreeMap::new(),
    })
}

impl World {
    fn new() -> Self {
        let host = |n: u8| {
            let rewrite_pool = vec![format!("172.16.{n}.0/28").parse().unwrap()];
            Object::Host(Host { name: name(&format!("h{n}")), pa: [192, 168, n, 1].into(), rewrite_pool })
        };
        let prefixes =
            vec![SubnetPrefix { prefix: "10.0.0.0/24".parse().unwrap(), gateway: [10, 0, 0, 1].into() }];
        let network = Network {
            name: red(),
            rdid: Uuid::from_u128(1),
            id: tenet_model::NetId(1),
            method: Method::Nvgre,
            switching: None,
        };
        let vm = |n: u8| Object::Vm(Vm { name: format!("t/v{n}").parse().unwrap() });
        let objects = [
            Object::Tenant(Tenant { name: name("t") }),
            host(1),
            host(2),
            host(3),
            Object::Network(network),
            Object::Subnet(Subnet {
                name: "t/red/a".parse().unwrap(),
                vsid: tenet_model::Vsid::new(5000).unwrap(),
                prefixes,
            }),
            vm(1),
            vm(2),
            vm(3),
            port(1, Some("h1")),
            port(2, Some("h2")),
            port(3, None),
        ];
        let mut store = Desired::default();
        let change: Change = objects.into_iter().map(Operation::Put).collect();
        let checked = store.check(&change).unwrap();
        store.apply(checked.operations(), 1);
        let agents = store.hosts.keys().map(|h| (h.clone(), Agent::default())).collect();
        let now = 1_000_000_000;
        let control = Control::new(store.clone(), now);
        let mut world = Self { now, store, control, agents, told: Vec::new(), failing: 0 };
        for host in ["h1", "h2", "h3"] {
            world.connect(host);
        }
        world.pass(100_000);
        world
    }

    /// Writes a change and lets the core see it; its revision.
    fn commit(&mut self, change: &Change) -> u64 {
        let checked = self.store.check(change).unwrap();
        let revision = self.store.revision + 1;
        self.store.apply(checked.operations(), revision);
        let outputs = self.control.changed(self.now, revision, checked.operations());
        self.carry_out(outputs);
        revision
    }

    fn set(&mut self, method: Method) -> u64 {
        let network = self.store.with_method(&red(), method).unwrap();
        self.commit(&Change::put(Object::Network(network)))
    }

    fn connect(&mut self, host: &str) {
        let host = name(host);
        let (id, outputs) = self.control.opened(self.now, &host, Hello::default()).unwrap();
        self.agents.get_mut(&host).unwrap().session = Some(id);
        self.carry_out(outputs);
    }

    fn disconnect(&mut self, host: &str) {
        let id = self.agents.get_mut(&name(host)).unwrap().session.take().unwrap();
        let outputs = self.control.closed(self.now, id);
        self.carry_out(outputs);
    }

    fn mute(&mut self, host: &str) {
        self.agents.get_mut(&name(host)).unwrap().mute = true;
    }

    fn unmute(&mut self, host: &str) {
        let host = name(host);
        let agent = self.agents.get_mut(&host).unwrap();
        agent.mute = false;
        if let Some(session) = agent.session {
            self.answer(&host, session);
            self.pull(session);
        }
    }

    /// The controller starts again; nobody is connected.
    fn restart(&mut self) {
        self.control = Control::new(self.store.clone(), self.now);
        for agent in self.agents.values_mut() {
            agent.session = None;
        }
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Wake(session) => self.pull(session),
                Output::Commit { operations, .. } => {
                    self.commit(&operations.into_iter().collect());
                }
                Output::Switch { network } => {
                    let change: Change = self.control.method_step(&network).into_iter().collect();
                    if self.failing > 0 {
                        self.failing -= 1;
                        let more = self.control.method_step_failed(self.now, &network, "lost race");
                        self.carry_out(more);
                    } else if !change.operations.is_empty() {
                        self.commit(&change);
                    }
                }
                Output::Happened(h) => self.told.push(format!("{}: {}", h.kind, h.text)),
                Output::Close { .. } => panic!("no session is to end"),
                Output::Drive { .. } => panic!("no VM is to move"),
                Output::Count { migration, vm, host, stage, .. } => {
                    let more = self.control.counted(self.now, migration, &vm, &host, stage, None);
                    self.carry_out(more);
                }
            }
        }
    }

    fn pull(&mut self, session: SessionId) {
        let Some(host) = self.agents.iter().find(|(_, a)| a.session == Some(session)).map(|(h, _)| h.clone())
        else {
            return;
        };
        while let Some(message) = self.control.next_message(self.now, session) {
            let agent = self.agents.get_mut(&host).unwrap();
            match message {
                Message::Full { generation, rows } => (agent.generation, agent.rows) = (generation, rows),
                Message::Delta(delta) => {
                    assert_eq!(delta.base, agent.generation);
                    agent.rows.apply(&delta);
                    agent.generation = delta.generation;
                }
            }
            if agent.mute {
                return;
            }
            self.answer(&host, session);
        }
    }

    fn answer(&mut self, host: &HostName, session: SessionId) {
        self.in_order();
        let ack = Ack { generation: self.agents[host].generation, ..Ack::default() };
        let outputs = self.control.acked(self.now, session, ack);
        self.carry_out(outputs);
    }

    /// Nobody sends by a method that another host, which answers, is not ready for.
    fn in_order(&self) {
        let network = |a: &Agent| {
            a.rows.0.values().find_map(|(row, _)| match row {
                Row::Network(n) => Some((n.method, n.switching)),
                _ => None,
            })
        };
        for (sender, a) in &self.agents {
            let Some((method, _)) = network(a) else { continue };
            for (receiver, b) in self.agents.iter().filter(|(_, b)| b.session.is_some() && !b.mute) {
                let Some((now, soon)) = network(b) else { continue };
                // Or it has left it already, as the sender soon will.
                let ready = now == method || soon == Some(method) || b.generation > a.generation;
                assert!(ready, "{sender} sends by {method}, {receiver} has {now} and {soon:?}");
            }
        }
    }

    fn pass(&mut self, time: Micros) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + 50_000).min(end);
            let outputs = self.control.tick(self.now);
            self.carry_out(outputs);
        }
    }

    fn stored(&self) -> (Method, Option<Method>) {
        let n = &self.store.networks[&red()].value;
        (n.method, n.switching)
    }

    /// What a host sends by.
    fn sends(&self, host: &str) -> Method {
        let records = self.agents[&name(host)].rows.0.values().filter_map(|(row, _)| match row {
            Row::Record(r) => Some(r.method),
            _ => None,
        });
        let methods: BTreeSet<Method> = records.collect();
        assert_eq!(methods.len(), 1, "{methods:?}");
        methods.into_iter().next().unwrap()
    }

    fn rewritten(&self) -> usize {
        self.store.ports.values().map(|p| p.value.rewrite.len()).sum()
    }

    fn heard(&self, text: &str) -> bool {
        self.told.iter().any(|t| t.contains(text))
    }

    /// Everybody has what compiling from scratch gives.
    fn at_rest(&self) {
        assert_eq!(self.stored().1, None);
        for (host, agent) in self.agents.iter().filter(|(_, a)| a.session.is_some() && !a.mute) {
            assert_eq!(agent.rows, compile(&self.store, host, &BTreeSet::new()), "{host}");
        }
    }
}

#[test]
fn all_twenty_changes_go_receivers_first() {
    let mut world = World::new();
    for from in Method::ALL {
        for to in Method::ALL.into_iter().filter(|to| *to != from) {
            world.set(from);
            world.pass(200_000);
            world.told.clear();
            let revision = world.set(to);
            world.pass(100_000);
            assert_eq!(world.stored(), (to, None));
            assert!(world.control.in_force(revision));
            for host in ["h1", "h2"] {
                assert_eq!(world.sends(host), to);
            }
            assert!(world.heard(&format!("begins to change from {from} to {to}")), "{:?}", world.told);
            assert!(
                world.heard(&format!("all connected hosts send network t/red by {to}")),
                "{:?}",
                world.told
            );
            assert_eq!(world.rewritten(), if to == Method::Rewrite { 2 } else { 0 });
            world.at_rest();
        }
    }
}

#[test]
fn a_silent_receiver_holds_it_up_for_two_seconds() {
    let mut world = World::new();
    world.mute("h2");
    let revision = world.set(Method::Rewrite);
    world.pass(1_900_000);
    assert_eq!(world.stored(), (Method::Nvgre, Some(Method::Rewrite)));
    assert_eq!(world.sends("h1"), Method::Nvgre);
    assert!(!world.control.in_force(revision));
    let both = BTreeSet::from([name("h1"), name("h2")]);
    assert_eq!(world.control.waiting_for(revision), both, "none of them sends by it yet");
    assert_eq!(world.control.method_waits_for(&red()), BTreeSet::from([name("h2")]));
    world.pass(300_000);
    assert_eq!(world.stored(), (Method::Rewrite, None));
    assert_eq!(world.sends("h1"), Method::Rewrite);
    assert!(world.heard("changes its method without host h2"), "{:?}", world.told);
    assert!(!world.control.in_force(revision), "a sender has not switched");
    assert_eq!(world.control.waiting_for(revision), BTreeSet::from([name("h2")]));
    world.unmute("h2");
    assert!(world.control.in_force(revision));
    world.at_rest();
}

#[test]
fn a_host_that_is_away_is_waited_for_only_if_it_has_just_gone() {
    let mut world = World::new();
    world.disconnect("h2");
    world.set(Method::Vxlan);
    world.pass(1_000_000);
    assert_eq!(world.stored().1, Some(Method::Vxlan), "it may be back in a moment");
    world.pass(1_200_000);
    assert_eq!(world.stored(), (Method::Vxlan, None));
    let revision = world.set(Method::Geneve);
    assert_eq!(world.stored(), (Method::Geneve, None), "it has been away for long");
    assert!(world.control.in_force(revision));
    world.connect("h2");
    world.at_rest();
}

#[test]
fn it_goes_on_after_a_restart_at_any_point() {
    // Before the receivers acknowledged.
    let mut world = World::new();
    world.mute("h1");
    let revision = world.set(Method::Rewrite);
    world.restart();
    world.agents.get_mut(&name("h1")).unwrap().mute = false;
    world.pass(1_000_000);
    assert_eq!(world.stored().1, Some(Method::Rewrite), "nobody can have acknowledged");
    assert!(!world.control.in_force(revision));
    world.connect("h1");
    world.pass(100_000);
    assert_eq!(world.stored().1, Some(Method::Rewrite), "h2 is not back yet");
    world.connect("h2");
    world.pass(100_000);
    assert_eq!(world.stored(), (Method::Rewrite, None));
    assert!(world.control.in_force(revision));
    // Nobody comes back.
    world.set(Method::Stt);
    world.pass(100_000);
    world.mute("h1");
    world.set(Method::Nvgre);
    world.restart();
    world.pass(4_500_000);
    assert_eq!(world.stored(), (Method::Stt, Some(Method::Nvgre)));
    world.pass(1_000_000);
    assert_eq!(world.stored(), (Method::Nvgre, None));
    // Between the senders' switch and the end of the addresses.
    let mut world = World::new();
    world.set(Method::Rewrite);
    world.pass(100_000);
    world.mute("h2");
    world.set(Method::Vxlan);
    world.pass(2_200_000);
    assert_eq!((world.stored(), world.rewritten()), ((Method::Vxlan, None), 2));
    world.restart();
    world.agents.get_mut(&name("h2")).unwrap().mute = false;
    world.connect("h1");
    world.pass(1_000_000);
    assert_eq!(world.rewritten(), 2, "h2 may still send to them");
    world.connect("h2");
    world.pass(100_000);
    assert_eq!(world.rewritten(), 0);
    world.at_rest();
}

#[test]
fn addresses_stay_while_a_host_that_is_away_may_send_to_them() {
    let mut world = World::new();
    world.set(Method::Rewrite);
    world.pass(100_000);
    world.disconnect("h2");
    world.pass(5_000_000);
    let revision = world.set(Method::Vxlan);
    world.pass(3_000_000);
    assert!(world.control.in_force(revision), "nobody waits for the addresses' end");
    assert_eq!((world.stored(), world.rewritten()), ((Method::Vxlan, None), 2));
    world.pass(LEAVE);
    assert_eq!(world.rewritten(), 0);
    // Back to it while its addresses are still there: they stay the same.
    world.connect("h2");
    world.set(Method::Rewrite);
    world.pass(100_000);
    let before: Vec<_> = world.store.ports.values().map(|p| p.value.rewrite.clone()).collect();
    world.disconnect("h2");
    world.pass(5_000_000);
    world.set(Method::Stt);
    world.pass(3_000_000);
    world.set(Method::Rewrite);
    world.pass(LEAVE + 5_000_000);
    let after: Vec<_> = world.store.ports.values().map(|p| p.value.rewrite.clone()).collect();
    assert_eq!((world.stored().0, before), (Method::Rewrite, after));
}

#[test]
fn a_host_that_joins_meanwhile_is_waited_for() {
    let mut world = World::new();
    world.mute("h2");
    world.set(Method::Rewrite);
    world.pass(500_000);
    world.mute("h3");
    world.commit(&Change::put(port(3, Some("h3"))));
    world.unmute("h2");
    world.pass(500_000);
    assert_eq!(world.stored().1, Some(Method::Rewrite), "h3 is not ready");
    assert_eq!(world.control.method_waits_for(&red()), BTreeSet::from([name("h3")]));
    world.unmute("h3");
    world.pass(100_000);
    assert_eq!(world.stored(), (Method::Rewrite, None));
    assert_eq!(world.rewritten(), 3);
    world.at_rest();
}

#[test]
fn a_vm_may_move_while_its_network_changes_its_method() {
    for (from, to) in [(Method::Nvgre, Method::Rewrite), (Method::Rewrite, Method::Geneve)] {
        let mut world = World::new();
        world.set(from);
        world.pass(100_000);
        let migration = Migration {
            vm: "t/v1".parse().unwrap(),
            id: Uuid::from_u128(7),
            from: name("h1"),
            to: name("h3"),
            devices: [(name("eth0"), "tap1".to_owned())].into(),
            rewrite: BTreeMap::new(),
            phase: Phase::Preparing,
            started_ms: 1,
            switched_ms: None,
            through: Default::default(),
            uri: None,
            post_copy: false,
        };
        world.mute("h2");
        world.commit(&Change::put(Object::Migration(migration)));
        let revision = world.set(to);
        world.pass(1_000_000);
        assert_eq!(world.stored(), (from, Some(to)));
        world.unmute("h2");
        world.pass(100_000);
        assert!(world.control.in_force(revision), "{:?}", world.control.waiting_for(revision));
        assert_eq!(world.stored(), (to, None));
        let outputs = world.control.switch(world.now, &"t/v1".parse().unwrap()).unwrap();
        world.carry_out(outputs);
        world.pass(2_000_000);
        assert!(world.store.migrations.is_empty());
        let port = &world.store.ports[&"t/v1/eth0".parse().unwrap()].value;
        assert_eq!(port.host, Some(name("h3")));
        let pas: Vec<String> = port.rewrite.values().map(ToString::to_string).collect();
        assert!(world.store.unreleased().is_empty());
        if to == Method::Rewrite {
            assert!(pas[0].starts_with("172.16.3."), "{pas:?}");
        } else {
            assert!(pas.is_empty());
        }
        world.at_rest();
    }
}

#[test]
fn a_network_may_go_while_it_changes_its_method() {
    let mut world = World::new();
    world.mute("h2");
    let revision = world.set(Method::Rewrite);
    world.pass(500_000);
    let gone = ["vm/t/v1", "vm/t/v2", "vm/t/v3", "subnet/t/red/a", "network/t/red"];
    let gone = gone.into_iter().map(|key| Operation::Delete(key.parse::<Key>().unwrap()));
    world.commit(&gone.collect());
    assert!(world.control.method_waits_for(&red()).is_empty());
    world.unmute("h2");
    world.pass(5_000_000);
    assert!(world.control.in_force(revision));
    assert!(world.store.networks.is_empty());
}

#[test]
fn a_further_change_replaces_one_under_way_and_the_present_method_gives_it_up() {
    let mut world = World::new();
    world.mute("h2");
    let first = world.set(Method::Rewrite);
    world.pass(1_500_000);
    let second = world.set(Method::Geneve);
    world.pass(1_500_000);
    assert_eq!(world.stored(), (Method::Nvgre, Some(Method::Geneve)), "its own two seconds");
    world.unmute("h2");
    assert_eq!(world.stored(), (Method::Geneve, None));
    world.pass(100_000);
    assert!(world.control.in_force(first) && world.control.in_force(second));
    assert_eq!(world.rewritten(), 0);
    world.mute("h2");
    let asked = world.set(Method::Stt);
    let back = world.set(Method::Geneve);
    assert_eq!(world.stored(), (Method::Geneve, None));
    world.pass(3_000_000);
    assert_eq!(world.sends("h1"), Method::Geneve);
    assert!(!world.heard("by stt from now on"), "{:?}", world.told);
    world.unmute("h2");
    assert!(world.control.in_force(asked) && world.control.in_force(back));
    world.at_rest();
}

#[test]
fn a_step_that_cannot_be_stored_is_tried_again() {
    let mut world = World::new();
    world.failing = 3;
    let revision = world.set(Method::Vxlan);
    assert_eq!(world.stored().1, Some(Method::Vxlan));
    assert!(world.heard("cannot go on yet: lost race"), "{:?}", world.told);
    assert!(!world.control.in_force(revision));
    world.pass(3_000_000);
    assert_eq!(world.stored(), (Method::Vxlan, None));
    assert!(world.control.in_force(revision));
}

#[test]
fn a_network_without_hosts_changes_at_once() {
    let mut world = World::new();
    world.commit(&[port(1, None), port(2, None)].into_iter().map(Operation::Put).collect());
    let revision = world.set(Method::Rewrite);
    assert_eq!(world.stored(), (Method::Rewrite, None));
    assert!(world.control.in_force(revision));
}
