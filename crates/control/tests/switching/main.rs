//! Changes of a network's method and of UDP ports: who is told when, what is waited for, what comes in between.

#![expect(clippy::unwrap_used, reason = "a test")]

mod ports;
mod world;

use std::collections::BTreeSet;
use tenet_control::{LEAVE, Switching};
use tenet_model::{Change, Key, Method, Migration, Object, Operation};
use uuid::Uuid;
use world::{World, name, port, red};

fn method() -> Switching {
    Switching::Method(red())
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
    assert_eq!(world.control.switch_waits_for(&method()), BTreeSet::from([name("h2")]));
    world.pass(300_000);
    assert_eq!(world.stored(), (Method::Rewrite, None));
    assert_eq!(world.sends("h1"), Method::Rewrite);
    assert!(world.heard("the change of network t/red's method goes on without host h2"), "{:?}", world.told);
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
    assert_eq!(world.control.switch_waits_for(&method()), BTreeSet::from([name("h3")]));
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
        let (vm, devices) = ("t/v1".parse().unwrap(), [(name("eth0"), "tap1".to_owned())].into());
        let migration = Migration::new(vm, Uuid::from_u128(7), name("h1"), name("h3"), devices);
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
    assert!(world.control.switch_waits_for(&method()).is_empty());
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
