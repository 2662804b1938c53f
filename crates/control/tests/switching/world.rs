//! Hosts that answer or do not, and a controller.

use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::{Row, Rows, compile};
use tenet_control::{Ack, Control, Hello, Message, Micros, Output, SessionId};
use tenet_model::{
    Change, Desired, Host, HostName, Method, Name, Network, NetworkRef, Object, Operation, Port, Subnet,
    SubnetPrefix, Tenant, Vm,
};
use uuid::Uuid;

#[derive(Default)]
pub struct Agent {
    pub session: Option<SessionId>,
    pub rows: Rows,
    pub generation: u64,
    /// It takes what it is sent, but does not answer.
    pub mute: bool,
}

/// Hosts h1, h2 and h3; VMs t/v1 and t/v2 of network t/red on h1 and h2, t/v3 on none.
pub struct World {
    pub now: Micros,
    pub store: Desired,
    pub control: Control,
    pub agents: BTreeMap<HostName, Agent>,
    pub told: Vec<String>,
    /// Commits of steps that are still to fail.
    pub failing: usize,
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn red() -> NetworkRef {
    "t/red".parse().unwrap()
}

pub fn port(vm: u8, host: Option<&str>) -> Object {
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
    pub fn new() -> Self {
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
    pub fn commit(&mut self, change: &Change) -> u64 {
        let checked = self.store.check(change).unwrap();
        let revision = self.store.revision + 1;
        self.store.apply(checked.operations(), revision);
        let outputs = self.control.changed(self.now, revision, checked.operations());
        self.carry_out(outputs);
        revision
    }

    pub fn set(&mut self, method: Method) -> u64 {
        let network = self.store.with_method(&red(), method).unwrap();
        self.commit(&Change::put(Object::Network(network)))
    }

    pub fn connect(&mut self, host: &str) {
        let host = name(host);
        let (id, outputs) = self.control.opened(self.now, &host, Hello::default()).unwrap();
        self.agents.get_mut(&host).unwrap().session = Some(id);
        self.carry_out(outputs);
    }

    pub fn disconnect(&mut self, host: &str) {
        let id = self.agents.get_mut(&name(host)).unwrap().session.take().unwrap();
        let outputs = self.control.closed(self.now, id);
        self.carry_out(outputs);
    }

    pub fn mute(&mut self, host: &str) {
        self.agents.get_mut(&name(host)).unwrap().mute = true;
    }

    pub fn unmute(&mut self, host: &str) {
        let host = name(host);
        let agent = self.agents.get_mut(&host).unwrap();
        agent.mute = false;
        if let Some(session) = agent.session {
            self.answer(&host, session);
            self.pull(session);
        }
    }

    /// The controller starts again; nobody is connected.
    pub fn restart(&mut self) {
        self.control = Control::new(self.store.clone(), self.now);
        for agent in self.agents.values_mut() {
            agent.session = None;
        }
    }

    pub fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Wake(session) => self.pull(session),
                Output::Commit { operations, .. } => {
                    self.commit(&operations.into_iter().collect());
                }
                Output::Switch(what) => {
                    let change: Change = self.control.next_step(&what).into_iter().collect();
                    if self.failing > 0 {
                        self.failing -= 1;
                        let more = self.control.step_failed(self.now, &what, "lost race");
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

    pub fn pull(&mut self, session: SessionId) {
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

    pub fn answer(&mut self, host: &HostName, session: SessionId) {
        self.in_order();
        let ack = Ack { generation: self.agents[host].generation, ..Ack::default() };
        let outputs = self.control.acked(self.now, session, ack);
        self.carry_out(outputs);
    }

    /// Nobody sends by a method that another host, which answers, is not ready for.
    pub fn in_order(&self) {
        let network = |a: &Agent| {
            a.rows.0.values().find_map(|(row, _)| match row {
                Row::Network(n) => Some((n.method, n.switching)),
                _ => None,
            })
        };
        self.ports_in_order();
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

    /// Nobody sends to a port at which another host, which answers, takes nothing.
    fn ports_in_order(&self) {
        let own = |a: &Agent| {
            a.rows.0.values().find_map(|(row, _)| if let Row::Host(h) = row { Some(h.clone()) } else { None })
        };
        let answers = |a: &&Agent| a.session.is_some() && !a.mute;
        let rows = |all: Vec<&Agent>| all.into_iter().filter_map(own).collect::<Vec<_>>();
        let senders = rows(self.agents.values().filter(answers).collect());
        for receiver in &senders {
            for sender in &senders {
                for (method, sent, taken) in [
                    (Method::Vxlan, sender.vxlan_port, receiver.vxlan_port),
                    (Method::Geneve, sender.geneve_port, receiver.geneve_port),
                ] {
                    let other = receiver.other_port.filter(|o| o.method == method).map(|o| o.port);
                    let ready = sent == taken || other == Some(sent);
                    assert!(
                        ready,
                        "{} sends {method} to {sent}, {} takes {taken} and {other:?}",
                        sender.name, receiver.name
                    );
                }
            }
        }
    }

    pub fn pass(&mut self, time: Micros) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + 50_000).min(end);
            let outputs = self.control.tick(self.now);
            self.carry_out(outputs);
        }
    }

    pub fn stored(&self) -> (Method, Option<Method>) {
        let n = &self.store.networks[&red()].value;
        (n.method, n.switching)
    }

    /// What a host sends by.
    pub fn sends(&self, host: &str) -> Method {
        let records = self.agents[&name(host)].rows.0.values().filter_map(|(row, _)| match row {
            Row::Record(r) => Some(r.method),
            _ => None,
        });
        let methods: BTreeSet<Method> = records.collect();
        assert_eq!(methods.len(), 1, "{methods:?}");
        methods.into_iter().next().unwrap()
    }

    pub fn rewritten(&self) -> usize {
        self.store.ports.values().map(|p| p.value.rewrite.len()).sum()
    }

    pub fn heard(&self, text: &str) -> bool {
        self.told.iter().any(|t| t.contains(text))
    }

    /// Everybody has what compiling from scratch gives.
    pub fn at_rest(&self) {
        assert_eq!(self.stored().1, None);
        for (host, agent) in self.agents.iter().filter(|(_, a)| a.session.is_some() && !a.mute) {
            assert_eq!(agent.rows, compile(&self.store, host, &BTreeSet::new()), "{host}");
        }
    }
}
