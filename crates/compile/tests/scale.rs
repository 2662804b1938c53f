//! A site of 100 hosts and 5,000 ports: prints what things take (`cargo test --release -- --nocapture`).
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tenet_compile::{Compiler, Rows, compile};
use tenet_model::{
    Change, Checked, Desired, Host, HostName, Migration, Name, NetId, Network, Object, Operation, Port,
    Subnet, SubnetPrefix, Tenant, Vm, Vsid,
};
use uuid::Uuid;

const HOSTS: u32 = 100;
const PORTS: u32 = 5_000;

fn name(text: String) -> Name {
    Name::new(text).unwrap()
}

/// All ports spread evenly over a number of networks, each network over as many hosts as it has ports for.
fn site(networks: u32) -> Change {
    let tenant = name("big".to_owned());
    let mut objects = vec![Object::Tenant(Tenant { name: tenant.clone() })];
    for h in 0..HOSTS {
        let pa = [192, 168, (h / 200) as u8, 1 + (h % 200) as u8].into();
        objects.push(Object::Host(Host { name: name(format!("h{h}")), pa, rewrite_pool: vec![] }));
    }
    for n in 0..networks {
        let network = format!("big/n{n}").parse().unwrap();
        let rdid = Uuid::from_u128(u128::from(n));
        objects.push(Object::Network(Network {
            name: network,
            rdid,
            id: NetId(n + 1),
            method: Default::default(),
            switching: None,
        }));
        let (name, vsid) = (format!("big/n{n}/s").parse().unwrap(), Vsid::new(4096 + n).unwrap());
        let (prefix, gateway) = ("10.0.0.0/16".parse().unwrap(), "10.0.0.1".parse().unwrap());
        objects.push(Object::Subnet(Subnet { name, vsid, prefixes: vec![SubnetPrefix { prefix, gateway }] }));
    }
    for p in 0..PORTS {
        objects.push(Object::Vm(Vm { name: format!("big/v{p}").parse().unwrap() }));
        objects.push(Object::Port(port(p, networks, p % HOSTS)));
    }
    objects.into_iter().map(Operation::Put).collect()
}

fn port(p: u32, networks: u32, host: u32) -> Port {
    let [_, _, c, d] = (p + 16).to_be_bytes();
    Port {
        name: format!("big/v{p}/eth0").parse().unwrap(),
        subnet: format!("big/n{}/s", p % networks).parse().unwrap(),
        mac: tenet_model::Mac::new([2, 0, 0, 0, c, d]).unwrap(),
        addresses: vec![[10, 0, c, d].into()],
        host: Some(name(format!("h{host}"))),
        device: Some(format!("tap{p}")),
        tap: false,
        queues: 1,
        security: true,
        rewrite: BTreeMap::new(),
    }
}

struct Run {
    desired: Desired,
    compiler: Compiler,
    agents: BTreeMap<HostName, Rows>,
    revision: u64,
}

impl Run {
    fn step(&mut self, what: &str, change: &Change) {
        let start = Instant::now();
        let checked: Checked = self.desired.check(change).unwrap();
        let check = start.elapsed();
        self.revision += 1;
        self.desired.apply(checked.operations(), self.revision);
        let start = Instant::now();
        let deltas =
            self.compiler.update(&self.desired, checked.operations(), &BTreeSet::new(), self.revision);
        let update: Duration = start.elapsed();
        let rows: usize = deltas.values().map(|d| d.upserts.len() + d.deletes.len()).sum();
        println!("  {what}: check {check:?}, compile {update:?}; {rows} rows to {} hosts", deltas.len());
        for (host, delta) in &deltas {
            self.agents.entry(host.clone()).or_default().apply(delta);
        }
    }
}

fn measure(networks: u32) {
    println!("{HOSTS} hosts, {PORTS} ports in {networks} networks");
    let mut run = Run {
        desired: Desired::default(),
        compiler: Compiler::default(),
        agents: BTreeMap::new(),
        revision: 1,
    };
    run.step("everything in one change", &site(networks));
    let start = Instant::now();
    let anew = Compiler::new(&run.desired, &BTreeSet::new(), run.revision);
    println!("  a new compiler: {:?}", start.elapsed());
    assert!(anew.hosts().count() == HOSTS as usize);
    let mut changed = port(7, networks, 7);
    changed.mac = "02:00:00:01:00:00".parse().unwrap();
    run.step("one port's MAC", &Change::put(Object::Port(changed)));
    run.step("one port to another host", &Change::put(Object::Port(port(8, networks, 9))));
    let vm = Object::Vm(Vm { name: format!("big/v{PORTS}").parse().unwrap() });
    let fresh = Object::Port(port(PORTS, networks, 3));
    run.step("a new VM and port", &[vm, fresh].into_iter().map(Operation::Put).collect());
    let migration = Migration::new(
        "big/v20".parse().unwrap(),
        Uuid::from_u128(1),
        name("h20".to_owned()),
        name("h21".to_owned()),
        [(name("eth0".to_owned()), "tapm".to_owned())].into(),
    );
    run.step("a migration", &Change::put(Object::Migration(migration)));
    let host = Host { name: name("h5".to_owned()), pa: [192, 168, 9, 9].into(), rewrite_pool: vec![] };
    run.step("a host's address", &Change::put(Object::Host(host)));
    for host in ["h0", "h5", "h9", "h21", "h77"] {
        let host = name(host.to_owned());
        assert_eq!(run.agents[&host], compile(&run.desired, &host, &BTreeSet::new()), "{host}");
    }
}

#[test]
fn a_large_site() {
    measure(50);
    measure(500);
    measure(1);
}
