//! Whole sites in one thread: random changes, sessions that come and go, slow hosts, moves, restarts.
//!
//! After quiescence every host has what compiling from scratch gives, no port is held, and no migration runs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::{PortState, Row, Rows, compile, digests};
use tenet_control::{
    Ack, Control, Frames, Hello, Message, Micros, NetworkProof, Output, PortReport, Progress, Proof, STALE,
    SessionId, Stage, Word, state_name,
};
use tenet_model::{
    Allocator, Change, Desired, Host, HostName, Key, Method, Migration, Name, Network, Object, Operation,
    Port, PortRef, Receipt, Subnet, Tenant, Through, UdpPorts, Vm, VmRef,
};
use uuid::Uuid;

/// An agent without a kernel.
#[derive(Default)]
struct Agent {
    session: Option<SessionId>,
    state: Option<(u64, Rows)>,
    inbox: Vec<Message>,
}

struct World {
    rng: StdRng,
    now: Micros,
    store: Desired,
    control: Control,
    agents: BTreeMap<HostName, Agent>,
    queue: Vec<Output>,
    receipts: Vec<Receipt>,
    /// Written but not yet seen by the core.
    unseen: Vec<(u64, Vec<Operation>)>,
    next_id: u128,
}

/// What a host says of the ports that it shall have.
fn ports(rows: &Rows) -> Vec<PortReport> {
    let port = |(row, _): &(Row, u64)| match row {
        Row::Port(p) => Some(PortReport {
            port: p.name.clone(),
            present: true,
            carrier: true,
            ifindex: 1,
            mtu: 1458,
            state: state_name(p.state).into(),
            detail: String::new(),
        }),
        _ => None,
    };
    rows.0.values().filter_map(port).collect()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    fn new(seed: u64, hosts: usize) -> Self {
        let mut store = Desired::default();
        let mut revision = 1;
        let mut put = |object: Object| {
            revision += 1;
            let checked = store.check(&Change::put(object)).unwrap();
            store.apply(checked.operations(), revision);
        };
        put(Object::Tenant(Tenant { name: name("t") }));
        for n in 0..hosts {
            let pa = format!("192.168.1.{}", n + 1).parse().unwrap();
            let rewrite_pool = vec![format!("172.16.{n}.0/24").parse().unwrap()];
            put(Object::Host(Host { name: name(&format!("h{n}")), pa, rewrite_pool }));
        }
        for (n, network) in ["red", "blue"].into_iter().enumerate() {
            put(Object::Network(Network {
                name: format!("t/{network}").parse().unwrap(),
                rdid: Uuid::from_u128(n as u128 + 1),
                id: tenet_model::NetId(n as u32 + 1),
                method: tenet_model::Method::Nvgre,
                switching: None,
            }));
            put(Object::Subnet(Subnet {
                name: format!("t/{network}/a").parse().unwrap(),
                vsid: tenet_model::Vsid::new(5000 + n as u32).unwrap(),
                prefixes: vec![tenet_model::SubnetPrefix {
                    prefix: "10.0.0.0/24".parse().unwrap(),
                    gateway: "10.0.0.1".parse().unwrap(),
                }],
            }));
        }
        let control = Control::new(store.clone(), 1);
        let agents = store.hosts.keys().map(|h| (h.clone(), Agent::default())).collect();
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: 1_000_000,
            store,
            control,
            agents,
            queue: Vec::new(),
            receipts: Vec::new(),
            unseen: Vec::new(),
            next_id: 100,
        }
    }

    fn commit(&mut self, change: &Change) -> bool {
        let Ok(checked) = self.store.check(change) else { return false };
        if !checked.is_empty() {
            let revision = self.store.revision + 1;
            self.store.apply(checked.operations(), revision);
            self.unseen.push((revision, checked.operations().to_vec()));
        }
        true
    }

    fn see(&mut self) {
        for (revision, operations) in std::mem::take(&mut self.unseen) {
            let outputs = self.control.changed(self.now, revision, &operations);
            self.queue.extend(outputs);
        }
    }

    fn outputs(&mut self) {
        while !self.queue.is_empty() {
            for output in std::mem::take(&mut self.queue) {
                match output {
                    Output::Wake(session) => self.pull(session),
                    Output::Close { session, .. } => {
                        for agent in self.agents.values_mut().filter(|a| a.session == Some(session)) {
                            agent.session = None;
                            agent.inbox.clear();
                        }
                    }
                    Output::Commit { vm, operations, receipt } => {
                        let change: Change = operations.into_iter().collect();
                        if self.rng.random_bool(0.2) || !self.commit(&change) {
                            let more = self.control.commit_failed(self.now, &vm, "lost race");
                            self.queue.extend(more);
                        } else {
                            self.receipts.extend(receipt.map(|r| *r));
                        }
                    }
                    Output::Switch(what) => {
                        let change: Change = self.control.next_step(&what).into_iter().collect();
                        if self.rng.random_bool(0.2) || !self.commit(&change) {
                            let more = self.control.step_failed(self.now, &what, "lost race");
                            self.queue.extend(more);
                        }
                    }
                    Output::Count { migration, vm, host, stage, .. } => {
                        let redirected = match stage {
                            Stage::Before => 5,
                            Stage::After => 8,
                        };
                        let frames =
                            self.rng.random_bool(0.7).then_some(Frames { redirected, lost: 0, drained: 0 });
                        let more = self.control.counted(self.now, migration, &vm, &host, stage, frames);
                        self.queue.extend(more);
                    }
                    Output::Drive { .. } => {}
                    Output::Happened(h) => assert!(!h.kind.is_empty() && !h.text.is_empty()),
                }
            }
            self.see();
        }
    }

    fn pull(&mut self, session: SessionId) {
        while let Some(message) = self.control.next_message(self.now, session) {
            if let Some(agent) = self.agents.values_mut().find(|a| a.session == Some(session)) {
                agent.inbox.push(message);
            }
        }
    }

    fn connect(&mut self, host: &HostName) {
        let hello = Hello { version: "sim".into(), ..Hello::default() };
        if let Ok((id, outputs)) = self.control.opened(self.now, host, hello) {
            let agent = self.agents.get_mut(host).unwrap();
            agent.session = Some(id);
            agent.inbox.clear();
            self.queue.extend(outputs);
        }
    }

    fn disconnect(&mut self, host: &HostName) {
        let agent = self.agents.get_mut(host).unwrap();
        agent.inbox.clear();
        if let Some(id) = agent.session.take() {
            let outputs = self.control.closed(self.now, id);
            self.queue.extend(outputs);
        }
    }

    /// The host takes its next message.
    fn deliver(&mut self, host: &HostName) {
        let refuse = self.rng.random_bool(0.03);
        let agent = self.agents.get_mut(host).unwrap();
        let Some(session) = agent.session else { return };
        if agent.inbox.is_empty() {
            return;
        }
        let message = agent.inbox.remove(0);
        let generation = match message {
            Message::Full { generation, rows } => {
                agent.state = Some((generation, rows));
                generation
            }
            Message::Delta(delta) => {
                let (have, rows) = agent.state.as_mut().expect("a full state comes first");
                if delta.base != *have {
                    let outputs = self.control.resync(self.now, session, "another base");
                    self.queue.extend(outputs);
                    return;
                }
                rows.apply(&delta);
                *have = delta.generation;
                delta.generation
            }
        };
        let rows = &agent.state.as_ref().unwrap().1;
        let networks =
            digests(rows).into_iter().map(|(net, digest)| NetworkProof { net, digest, rows: 1 }).collect();
        let error = refuse.then(|| "the kernel is full".to_owned());
        let ack = Ack { generation, error, networks, ports: ports(rows) };
        let outputs = self.control.acked(self.now, session, ack);
        self.queue.extend(outputs);
    }

    fn restart(&mut self) {
        self.queue.clear();
        self.unseen.clear();
        self.control = Control::new(self.store.clone(), self.now);
        for agent in self.agents.values_mut() {
            agent.session = None;
            agent.inbox.clear();
        }
    }

    fn random_host(&mut self) -> HostName {
        let hosts: Vec<_> = self.agents.keys().cloned().collect();
        hosts.choose(&mut self.rng).unwrap().clone()
    }

    /// Makes, attaches, detaches, deletes or moves a VM.
    fn change(&mut self) {
        let vm: VmRef = format!("t/v{}", self.rng.random_range(0..6)).parse().unwrap();
        let port = PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port: name("eth0") };
        let host = self.random_host();
        match self.rng.random_range(0..10) {
            8 => self.change_method(),
            9 => {
                // Both networks at once, sometimes back to what they are.
                self.change_method();
                self.change_method();
            }
            0..=2 => {
                let subnet: tenet_model::SubnetRef =
                    if self.rng.random() { "t/red/a" } else { "t/blue/a" }.parse().unwrap();
                let mut allocator = Allocator::new(&self.store);
                let address = allocator.address(&self.store.subnets[&subnet].value).unwrap();
                let new = Port {
                    name: port.clone(),
                    subnet,
                    mac: allocator.mac(&port).unwrap(),
                    addresses: vec![address],
                    device: Some(format!("d-{}", vm.vm)),
                    tap: false,
                    queues: 1,
                    host: Some(host),
                    security: true,
                    rewrite: Default::default(),
                };
                let kept = self.store.ports.get(&port).map(|p| Port {
                    host: new.host.clone(),
                    device: new.device.clone(),
                    ..p.value.clone()
                });
                let operations =
                    [Object::Vm(Vm { name: vm }), Object::Port(kept.unwrap_or(new))].map(Operation::Put);
                self.commit(&operations.into_iter().collect());
            }
            3 => drop(self.commit(&Change::delete(Key::Vm(vm)))),
            4 => {
                if let Some(p) = self.store.ports.get(&port) {
                    let detached = Port { host: None, device: None, ..p.value.clone() };
                    self.commit(&Change::put(Object::Port(detached)));
                }
            }
            _ => {
                let Some(from) = self.store.ports.get(&port).and_then(|p| p.value.host.clone()) else {
                    return;
                };
                self.next_id += 1;
                let devices = [(port.port.clone(), format!("d-{}", vm.vm))].into();
                let id = Uuid::from_u128(self.next_id);
                let through = [Through::SwitchOnly, Through::Qmp, Through::Libvirt, Through::Other];
                let migration = Migration {
                    started_ms: self.now / 1000,
                    through: *through.choose(&mut self.rng).unwrap(),
                    ..Migration::new(vm.clone(), id, from, host, devices)
                };
                self.commit(&Change::put(Object::Migration(migration)));
            }
        }
        self.see();
    }

    /// Asks for another method of a network, or for the one that it has.
    fn change_method(&mut self) {
        let networks: Vec<_> = self.store.networks.values().map(|n| n.value.clone()).collect();
        let network = networks.choose(&mut self.rng).unwrap().clone();
        let method = *Method::ALL.choose(&mut self.rng).unwrap();
        let network = self.store.with_method(&network.name, method).unwrap();
        self.commit(&Change::put(Object::Network(network)));
    }

    /// Asks for other UDP ports, or for those that are.
    fn change_ports(&mut self) {
        let ports =
            UdpPorts { vxlan: self.rng.random_range(4789..4792), geneve: self.rng.random_range(6081..6083) };
        let site = self.store.with_udp_ports(ports);
        self.commit(&Change::put(Object::Site(site)));
    }

    /// Whatever a hypervisor may say, true or not, from any host.
    fn hypervisor(&mut self) {
        let vms: Vec<_> = self.store.vms.keys().cloned().collect();
        let open: Vec<_> = self.agents.values().filter_map(|a| a.session).collect();
        let (Some(vm), Some(session)) =
            (vms.choose(&mut self.rng).cloned(), open.choose(&mut self.rng).copied())
        else {
            return;
        };
        let statuses = ["setup", "active", "completed", "failed", "cancelled", "nonsense"];
        let word = match self.rng.random_range(0..5) {
            0 => Word::Stopped,
            1 => Word::Resumed,
            2 => Word::FirstFrame { after_us: 7 },
            _ => Word::Migration {
                id: None,
                progress: Progress {
                    transferred: 1,
                    total: 2,
                    status: (*statuses.choose(&mut self.rng).unwrap()).into(),
                },
                downtime_us: self.rng.random_bool(0.5).then_some(5),
                error: String::new(),
            },
        };
        let outputs = self.control.hypervisor(self.now, session, &vm, word);
        self.queue.extend(outputs);
        self.outputs();
    }

    /// First frames of prepared ports; sometimes claims of foreign ones.
    fn activate(&mut self) {
        let migrations: Vec<_> = self.store.migrations.values().map(|m| m.value.clone()).collect();
        let Some(m) = migrations.choose(&mut self.rng).cloned() else { return };
        let liar = self.rng.random_bool(0.2);
        let host = if liar { m.from.clone() } else { m.to.clone() };
        let port = PortRef { tenant: m.vm.tenant.clone(), vm: m.vm.vm.clone(), port: name("eth0") };
        let agent = &self.agents[&host];
        let Some(session) = agent.session else { return };
        let prepared =
            agent.state.iter().flat_map(|(_, r)| r.0.values()).any(
                |(row, _)| matches!(row, Row::Port(p) if p.name == port && p.state == PortState::Prepared),
            );
        if prepared || liar {
            let before = self.store.migrations[&m.vm].clone();
            let outputs = self.control.activated(self.now, session, &port);
            self.queue.extend(outputs);
            if liar {
                assert_eq!(self.store.migrations[&m.vm], before, "a claim of the source changes nothing");
            }
        }
    }

    fn step(&mut self) {
        self.now += self.rng.random_range(100..400_000);
        let host = self.random_host();
        match self.rng.random_range(0..100) {
            0..15 => self.change(),
            15..60 => self.deliver(&host),
            60..70 => self.connect(&host),
            70..74 => self.disconnect(&host),
            74..80 => self.activate(),
            80..84 => self.hypervisor(),
            84..85 => self.restart(),
            88..89 => self.change_ports(),
            85..88 => {
                let vms: Vec<_> = self.store.migrations.keys().cloned().collect();
                if let Some(vm) = vms.choose(&mut self.rng) {
                    let asked = if self.rng.random() {
                        self.control.switch(self.now, vm)
                    } else {
                        self.control.cancel(self.now, vm, "somebody says so")
                    };
                    self.queue.extend(asked.unwrap_or_default());
                }
            }
            _ => {
                let outputs = self.control.tick(self.now);
                self.queue.extend(outputs);
            }
        }
        self.outputs();
        self.see();
        self.outputs();
    }

    /// Lets everything come to rest.
    fn settle(&mut self) {
        let hosts: Vec<_> = self.agents.keys().cloned().collect();
        for host in &hosts {
            if self.agents[host].session.is_none() {
                self.connect(host);
            }
        }
        for _ in 0..2000 {
            self.now += 100_000;
            let outputs = self.control.tick(self.now);
            self.queue.extend(outputs);
            self.outputs();
            for host in &hosts {
                if self.agents[host].session.is_none() {
                    self.connect(host);
                }
                self.deliver(host);
                self.outputs();
            }
            let vms: Vec<_> = self.store.migrations.keys().cloned().collect();
            for vm in vms {
                // Refused while it is not yet prepared.
                let outputs = self.control.switch(self.now, &vm).unwrap_or_default();
                self.queue.extend(outputs);
                self.outputs();
            }
            let quiet = self.agents.values().all(|a| a.inbox.is_empty())
                && self.store.migrations.is_empty()
                && self.store.networks.values().all(|n| n.value.switching.is_none())
                && self.store.unreleased().is_empty()
                && self.store.site.value.next_ports().is_none()
                && self.control.waiting_for(u64::MAX).is_empty();
            if quiet {
                return;
            }
        }
        let switching: Vec<_> =
            self.store.networks.values().map(|n| (&n.value.method, &n.value.switching)).collect();
        panic!(
            "no rest: {:?} {:?} {switching:?} {:?}",
            self.store.migrations,
            self.control.waiting_for(u64::MAX),
            self.store.unreleased()
        );
    }

    fn check(&mut self) {
        assert_eq!(self.control.desired(), &self.store);
        let hosts: Vec<_> = self.agents.keys().cloned().collect();
        for host in hosts {
            let want = compile(&self.store, &host, &BTreeSet::new());
            let (generation, have) = self.agents[&host].state.clone().expect("every host got its state");
            assert_eq!(have, want, "{host}");
            for (row, _) in have.0.values() {
                assert!(!matches!(row, Row::Port(p) if p.state != PortState::Active), "{host}: {row:?}");
            }
            let networks: Vec<_> = digests(&have)
                .into_iter()
                .map(|(net, digest)| NetworkProof { net, digest, rows: 1 })
                .collect();
            let session = self.agents[&host].session.unwrap();
            let proof = Proof { generation, networks, ports: ports(&have), ..Proof::default() };
            self.control.proved(self.now, session, proof.clone());
            let report = self.control.host_report(&host, self.now).unwrap();
            assert!(report.in_sync && report.connected, "{report:?}");
            let later = self.control.host_report(&host, self.now + STALE + 1).unwrap();
            assert!(!later.in_sync && later.problems[0].contains("not read"), "{later:?}");
            // A port whose device is not there.
            let mut lame = proof;
            if let Some(port) = lame.ports.first_mut() {
                port.present = false;
                self.control.proved(self.now, session, lame);
                assert!(!self.control.host_report(&host, self.now).unwrap().in_sync);
            }
        }
    }
}

#[test]
fn every_history_ends_as_compiled_from_scratch() {
    let (mut ended, mut exact, mut vague) = (0, 0, 0);
    for seed in 0..150 {
        let mut world = World::new(seed, 2 + seed as usize % 4);
        let hosts: Vec<_> = world.agents.keys().cloned().collect();
        for host in &hosts {
            world.connect(host);
        }
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..300 {
                world.step();
            }
            world.settle();
            world.check();
        }));
        assert!(run.is_ok(), "seed {seed}");
        ended += world.receipts.len();
        for receipt in world.receipts {
            // Each of the two hosts counts three frames.
            assert!(!receipt.exact || (receipt.moved && receipt.redirected == 6), "seed {seed}: {receipt:?}");
            exact += usize::from(receipt.exact);
            vague += usize::from(receipt.moved && !receipt.exact);
        }
    }
    assert!(ended > 100, "the seeds move too few VMs: {ended}");
    assert!(exact > 0 && vague > 0, "{exact} receipts exact, {vague} not: the seeds should give both");
}
