//! A site with a VM that moves, and a controller for it.

use std::collections::BTreeMap;
use tenet_control::{Ack, Control, Frames, Hello, Order, Output, PortReport, Progress, SessionId, Word};
use tenet_model::{
    Change, Desired, Host, HostName, Method, Migration, Name, NetId, Network, Object, Operation, Phase, Port,
    Receipt, Subnet, SubnetPrefix, Tenant, Through, Vm, VmRef, Vsid,
};
use uuid::Uuid;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn vm() -> VmRef {
    "t/sql".parse().unwrap()
}

/// A controller whose store takes everything and whose hosts acknowledge at once.
pub struct Site {
    pub store: Desired,
    pub control: Control,
    pub now: u64,
    pub sessions: BTreeMap<HostName, SessionId>,
    pub receipts: Vec<Receipt>,
    pub drives: Vec<(Order, String)>,
    pub told: Vec<String>,
}

impl Site {
    pub fn new(connected: &[&str]) -> Self {
        let mut store = Desired::default();
        let mut objects = vec![
            Object::Tenant(Tenant { name: name("t") }),
            Object::Network(Network {
                name: "t/blue".parse().unwrap(),
                rdid: Uuid::from_u128(1),
                id: NetId(1),
                method: Method::Nvgre,
                switching: None,
            }),
            Object::Subnet(Subnet {
                name: "t/blue/web".parse().unwrap(),
                vsid: Vsid::new(5000).unwrap(),
                prefixes: vec![SubnetPrefix {
                    prefix: "10.0.0.0/24".parse().unwrap(),
                    gateway: "10.0.0.1".parse().unwrap(),
                }],
            }),
            Object::Vm(Vm { name: vm() }),
        ];
        for n in 1..=3 {
            let pa = format!("192.168.1.{n}").parse().unwrap();
            objects.push(Object::Host(Host { name: name(&format!("h{n}")), pa, rewrite_pool: vec![] }));
        }
        let checked = store.check(&objects.into_iter().map(Operation::Put).collect()).unwrap();
        store.apply(checked.operations(), 2);
        let port = Port {
            name: "t/sql/eth0".parse().unwrap(),
            subnet: "t/blue/web".parse().unwrap(),
            mac: "02:00:00:00:00:11".parse().unwrap(),
            addresses: vec!["10.0.0.11".parse().unwrap()],
            host: Some(name("h1")),
            device: Some("tap0".into()),
            tap: false,
            queues: 1,
            security: true,
            rewrite: BTreeMap::new(),
        };
        let checked = store.check(&Change::put(Object::Port(port))).unwrap();
        store.apply(checked.operations(), 3);
        let control = Control::new(store.clone(), 1);
        let mut site = Self {
            store,
            control,
            now: 1_000_000,
            sessions: BTreeMap::new(),
            receipts: vec![],
            drives: vec![],
            told: vec![],
        };
        for host in connected {
            site.connect(host);
        }
        site
    }

    /// A VM of the same network on the third host.
    pub fn add_neighbour(&mut self) {
        let port = Port {
            name: "t/web/eth0".parse().unwrap(),
            mac: "02:00:00:00:00:12".parse().unwrap(),
            addresses: vec!["10.0.0.12".parse().unwrap()],
            host: Some(name("h3")),
            ..self.store.ports.values().next().unwrap().value.clone()
        };
        let objects = [Object::Vm(Vm { name: "t/web".parse().unwrap() }), Object::Port(port)];
        let outputs = self.commit(&objects.into_iter().map(Operation::Put).collect());
        self.carry_out(outputs);
    }

    pub fn connect(&mut self, host: &str) {
        let hello = Hello { uplink_mtu: 1500, ..Hello::default() };
        let (session, outputs) = self.control.opened(self.now, &name(host), hello).unwrap();
        self.sessions.insert(name(host), session);
        self.carry_out(outputs);
    }

    /// The controller is started again: it has what is in the store, and no session.
    pub fn restart(&mut self) {
        self.control = Control::new(self.store.clone(), self.now);
        self.sessions.clear();
        self.drives.clear();
        self.told.clear();
    }

    pub fn activate(&mut self, host: &str) {
        let port = "t/sql/eth0".parse().unwrap();
        let outputs = self.control.activated(self.now, self.sessions[&name(host)], &port);
        self.carry_out(outputs);
    }

    pub fn disconnect(&mut self, host: &str) {
        let session = self.sessions.remove(&name(host)).unwrap();
        let outputs = self.control.closed(self.now, session);
        self.carry_out(outputs);
    }

    pub fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let more = match output {
                Output::Wake(session) => match self.control.next_message(self.now, session) {
                    Some(message) => {
                        let generation = match message {
                            tenet_control::Message::Full { generation, .. } => generation,
                            tenet_control::Message::Delta(d) => d.generation,
                        };
                        let port = PortReport {
                            port: "t/sql/eth0".parse().unwrap(),
                            present: true,
                            carrier: true,
                            ifindex: 1,
                            mtu: 1458,
                            state: "active".into(),
                            detail: String::new(),
                        };
                        let ack = Ack { generation, ports: vec![port], ..Ack::default() };
                        self.control.acked(self.now, session, ack)
                    }
                    None => vec![],
                },
                Output::Commit { operations, receipt, .. } => {
                    self.receipts.extend(receipt.map(|r| *r));
                    self.commit(&operations.into_iter().collect())
                }
                Output::Count { migration, vm, host, stage, .. } => {
                    self.control.counted(self.now, migration, &vm, &host, stage, Some(Frames::default()))
                }
                Output::Drive { uri, order, .. } => {
                    self.drives.push((order, uri));
                    vec![]
                }
                Output::Happened(h) => {
                    self.told.push(format!("{}: {}", h.kind, h.text));
                    vec![]
                }
                Output::Switch(_) | Output::Close { .. } => vec![],
            };
            self.carry_out(more);
        }
    }

    pub fn commit(&mut self, change: &Change) -> Vec<Output> {
        let checked = self.store.check(change).expect("a legal change");
        let revision = self.store.revision + 1;
        self.store.apply(checked.operations(), revision);
        self.control.changed(self.now, revision, checked.operations())
    }

    pub fn migrate(&mut self, through: Through) {
        self.migrate_as(through, false);
    }

    pub fn migrate_as(&mut self, through: Through, post_copy: bool) {
        self.begin(9, "h1", "h2", through, post_copy);
    }

    /// From h2, where an earlier migration has brought it.
    pub fn migrate_back(&mut self, through: Through) {
        self.begin(10, "h2", "h1", through, false);
    }

    fn begin(&mut self, id: u128, from: &str, to: &str, through: Through, post_copy: bool) {
        let devices = [(name("eth0"), "tap0".to_owned())].into();
        let migration = Migration {
            started_ms: self.now / 1000,
            through,
            uri: through.driven().then(|| format!("tcp:{to}:1")),
            post_copy,
            ..Migration::new(vm(), Uuid::from_u128(id), name(from), name(to), devices)
        };
        let outputs = self.commit(&Change::put(Object::Migration(migration)));
        self.carry_out(outputs);
    }

    pub fn say(&mut self, host: &str, word: Word) {
        let outputs = self.control.hypervisor(self.now, self.sessions[&name(host)], &vm(), word);
        self.carry_out(outputs);
    }

    /// A source that was told to move the VM names the migration.
    pub fn status(&mut self, host: &str, status: &str) {
        let migration = self.store.migrations.get(&vm()).map(|m| &m.value);
        let driven = migration.filter(|m| m.through.driven() && m.from.as_str() == host);
        self.word(host, driven.map(|m| m.id), status);
    }

    /// An end of which the host does not know which migration's it is.
    pub fn nameless(&mut self, host: &str, status: &str) {
        self.word(host, None, status);
    }

    fn word(&mut self, host: &str, id: Option<Uuid>, status: &str) {
        let progress = Progress { transferred: 10, total: 100, status: status.into() };
        self.say(host, Word::Migration { id, progress, downtime_us: None, error: "no room".into() });
    }

    pub fn pass(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.now += 100_000.min(end - self.now);
            let outputs = self.control.tick(self.now);
            self.carry_out(outputs);
        }
    }

    pub fn phase(&self) -> Option<Phase> {
        self.store.migrations.get(&vm()).map(|m| m.value.phase)
    }

    pub fn home(&self) -> String {
        self.store.ports.values().next().unwrap().value.host.as_ref().unwrap().to_string()
    }
}

/// Of the one migration that there is.
pub fn told_by(site: &mut Site, host: &str, status: &str, error: &str) {
    let progress = Progress { transferred: 0, total: 0, status: status.into() };
    let id = Some(Uuid::from_u128(9));
    site.say(host, Word::Migration { id, progress, downtime_us: None, error: error.into() });
}

pub fn orders(site: &Site) -> Vec<Order> {
    site.drives.iter().map(|(order, _)| *order).collect()
}
