//! Whatever happens to a site: rows and deltas equal a compile from scratch.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::{Compiler, Rows, compile, digests};
use tenet_model::{
    Desired, GATEWAY_MAC, HostName, Name, Object, PortRef, Tenant,
    testing::{Dice, change},
};

/// A host as its agent has it.
#[derive(Default)]
struct Agent {
    rows: Rows,
    generation: u64,
}

fn run(seed: u64, steps: u64) -> (Desired, u64) {
    let mut dice = Dice::new(seed);
    let mut desired = Desired::default();
    desired.put(Object::Tenant(Tenant { name: Name::new("default").unwrap() }), 1);
    let mut blocked: BTreeSet<PortRef> = BTreeSet::new();
    let mut compiler = Compiler::new(&desired, &blocked, 1);
    let mut agents: BTreeMap<HostName, Agent> = BTreeMap::new();
    let mut applied = 0;
    for revision in 2..2 + steps {
        let Ok(checked) = desired.check(&change(&desired, &mut dice)) else { continue };
        applied += 1;
        desired.apply(checked.operations(), revision);
        for port in desired.ports.keys() {
            if dice.below(20) == 0 && !blocked.remove(port) {
                blocked.insert(port.clone());
            }
        }
        let before: BTreeMap<HostName, Rows> =
            agents.iter().map(|(host, agent)| (host.clone(), agent.rows.clone())).collect();
        let deltas = compiler.update(&desired, checked.operations(), &blocked, revision);
        agents.retain(|host, _| desired.hosts.contains_key(host));
        for (host, delta) in &deltas {
            let agent = agents.entry(host.clone()).or_default();
            assert_eq!(delta.base, agent.generation, "seed {seed}, revision {revision}: base of {host}");
            agent.rows.apply(delta);
            agent.generation = delta.generation;
        }
        for host in desired.hosts.keys() {
            let scratch = compile(&desired, host, &blocked);
            let agent = agents.entry(host.clone()).or_default();
            assert_eq!(agent.rows, scratch, "seed {seed}, revision {revision}: rows of {host} by deltas");
            assert_eq!(
                compiler.rows(host).unwrap(),
                scratch,
                "seed {seed}, revision {revision}: rows of {host}"
            );
            assert_eq!(digests(&agent.rows), digests(&scratch));
            assert_eq!(compiler.generation(host), Some(agent.generation));
            // A delta says no more than what differs, and only hosts concerned get one.
            let was = before.get(host).cloned().unwrap_or_default();
            let least = was.delta_to(0, &scratch, revision);
            let empty = Default::default();
            let delta = deltas.get(host).unwrap_or(&empty);
            assert_eq!(delta.upserts, least.upserts, "seed {seed}, revision {revision}: upserts for {host}");
            assert_eq!(delta.deletes, least.deletes, "seed {seed}, revision {revision}: deletes for {host}");
        }
        let anew = Compiler::new(&desired, &blocked, revision);
        for host in desired.hosts.keys() {
            assert_eq!(anew.rows(host), compiler.rows(host), "seed {seed}, revision {revision}: anew {host}");
        }
    }
    (desired, applied)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn deltas_equal_a_compile_from_scratch(seed: u64) {
        run(seed, 150);
    }
}

#[test]
fn random_sites_are_worth_testing() {
    let (mut applied, mut migrations, mut ports) = (0, 0, 0);
    for seed in 0..10 {
        let (desired, n) = run(seed, 300);
        applied += n;
        migrations += desired.migrations.len();
        ports += desired.ports.values().filter(|p| p.value.host.is_some()).count();
    }
    println!(
        "{applied} of 3000 changes applied; {ports} attached ports and {migrations} migrations at the ends"
    );
    assert!(applied > 1000 && ports > 30 && migrations > 3);
}

#[test]
fn model_and_tables_have_one_gateway_mac() {
    assert_eq!(tenet_tables::GATEWAY_MAC.octets(), GATEWAY_MAC);
}
