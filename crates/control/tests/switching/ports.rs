//! Changes of the site's UDP ports.

use crate::world::{World, name};
use std::collections::BTreeSet;
use tenet_compile::Row;
use tenet_control::{LEAVE, Switching};
use tenet_model::{Change, Method, Object, OtherPort, Site, UdpPorts};

const VXLAN: UdpPorts = UdpPorts { vxlan: 8472, geneve: 6081 };

fn set(world: &mut World, ports: UdpPorts) -> u64 {
    let site = world.store.with_udp_ports(ports);
    world.commit(&Change::put(Object::Site(site)))
}

fn stored(world: &World) -> (u16, u16, Option<u16>) {
    let site = world.store.site.value;
    (site.vxlan_port, site.geneve_port, site.other_port().map(|o| o.port))
}

/// The change that this revision asked for is over: these are sent to, and no other is taken.
fn is_over(world: &World, revision: u64, vxlan: u16, geneve: u16) {
    assert_eq!((stored(world), world.control.in_force(revision)), ((vxlan, geneve, None), true));
    world.at_rest();
}

/// What a host was last told: where it sends VXLAN and Geneve, and where it takes them as well.
fn told(world: &World, host: &str) -> (u16, u16, Option<OtherPort>) {
    let rows = world.agents[&name(host)].rows.0.values();
    let mut own = rows.filter_map(|(row, _)| match row {
        Row::Host(h) => Some((h.vxlan_port, h.geneve_port, h.other_port)),
        _ => None,
    });
    own.next().unwrap()
}

#[test]
fn a_port_changes_receivers_first() {
    let mut world = World::new();
    let revision = set(&mut world, VXLAN);
    world.pass(100_000);
    is_over(&world, revision, 8472, 6081);
    assert_eq!(told(&world, "h3"), (8472, 6081, None), "a host without networks, too");
    assert!(world.heard("vxlan begins to change from UDP port 4789 to 8472"), "{:?}", world.told);
    assert!(world.heard("all connected hosts send vxlan to UDP port 8472"), "{:?}", world.told);
    // Both at once go one after the other.
    world.told.clear();
    let revision = set(&mut world, UdpPorts { vxlan: 4789, geneve: 7000 });
    world.pass(100_000);
    is_over(&world, revision, 4789, 7000);
    assert!(world.heard("all connected hosts send geneve to UDP port 7000"), "{:?}", world.told);
}

#[test]
fn a_silent_host_holds_it_up_for_two_seconds_and_is_heard_until_it_has_switched() {
    let mut world = World::new();
    world.mute("h2");
    let revision = set(&mut world, VXLAN);
    world.pass(1_900_000);
    assert_eq!((stored(&world), told(&world, "h1").0), ((4789, 6081, Some(8472)), 4789));
    assert_eq!(world.control.switch_waits_for(&Switching::UdpPorts), BTreeSet::from([name("h2")]));
    assert_eq!(world.control.waiting_for(revision).len(), 3, "none of them sends to it yet");
    world.pass(300_000);
    assert!(world.heard("the change of the site's UDP ports goes on without host h2"), "{:?}", world.told);
    let old = Some(OtherPort { method: Method::Vxlan, port: 4789 });
    assert_eq!(told(&world, "h1"), (8472, 6081, old));
    world.pass(5_000_000);
    assert_eq!(told(&world, "h1"), (8472, 6081, old), "it still sends to the old one");
    assert!(!world.control.in_force(revision));
    assert_eq!(world.control.waiting_for(revision), BTreeSet::from([name("h2")]));
    world.unmute("h2");
    world.pass(100_000);
    assert_eq!(told(&world, "h1"), (8472, 6081, None));
    is_over(&world, revision, 8472, 6081);
}

#[test]
fn a_host_that_is_away_is_heard_at_the_old_port_for_a_minute() {
    let mut world = World::new();
    world.disconnect("h3");
    world.pass(5_000_000);
    let revision = set(&mut world, VXLAN);
    world.pass(100_000);
    assert!(world.control.in_force(revision), "nobody waits for the old port's end");
    assert_eq!(stored(&world), (8472, 6081, Some(4789)));
    world.pass(LEAVE);
    assert_eq!(stored(&world), (8472, 6081, None));
    world.connect("h3");
    assert_eq!(told(&world, "h3"), (8472, 6081, None));
    world.at_rest();
}

#[test]
fn it_goes_on_after_a_restart_and_a_lost_race() {
    let mut world = World::new();
    world.mute("h1");
    let revision = set(&mut world, VXLAN);
    world.restart();
    world.agents.get_mut(&name("h1")).unwrap().mute = false;
    world.pass(1_000_000);
    assert_eq!(stored(&world), (4789, 6081, Some(8472)), "nobody can have acknowledged");
    assert!(!world.control.in_force(revision));
    for host in ["h1", "h2", "h3"] {
        world.connect(host);
    }
    world.pass(100_000);
    is_over(&world, revision, 8472, 6081);
    // Between the senders' switch and the end of the old port.
    world.disconnect("h2");
    set(&mut world, UdpPorts { vxlan: 9000, geneve: 6081 });
    world.pass(3_000_000);
    assert_eq!(stored(&world), (9000, 6081, Some(8472)));
    world.restart();
    for host in ["h1", "h3"] {
        world.connect(host);
    }
    world.pass(1_000_000);
    assert_eq!(stored(&world), (9000, 6081, Some(8472)), "h2 may still send to it");
    world.failing = 2;
    world.connect("h2");
    world.pass(3_000_000);
    assert_eq!((stored(&world), world.failing), ((9000, 6081, None), 0));
    assert!(world.heard("UDP ports cannot go on yet: lost race"), "{:?}", world.told);
    world.at_rest();
}

#[test]
fn another_change_replaces_one_under_way() {
    let mut world = World::new();
    world.mute("h1");
    let first = set(&mut world, VXLAN);
    let second = set(&mut world, UdpPorts { vxlan: 9000, geneve: 6081 });
    assert_eq!(stored(&world), (4789, 6081, Some(9000)));
    world.unmute("h1");
    world.pass(100_000);
    assert_eq!(stored(&world), (9000, 6081, None));
    assert!(world.control.in_force(first) && world.control.in_force(second));
    // And given up: nobody sent to it.
    world.mute("h1");
    set(&mut world, VXLAN);
    let back = set(&mut world, UdpPorts { vxlan: 9000, geneve: 6081 });
    assert_eq!(stored(&world), (9000, 6081, None));
    world.unmute("h1");
    assert!(world.control.in_force(back));
    world.at_rest();
}

#[test]
fn what_has_nothing_to_do_with_ports_neither_holds_a_change_up_nor_waits_for_it() {
    let mut world = World::new();
    world.mute("h1");
    let revision = set(&mut world, VXLAN);
    world.pass(1_500_000);
    world.told.clear();
    let site = Site { hosts_begin_migrations: false, ..world.store.site.value };
    let other = world.commit(&Change::put(Object::Site(site)));
    assert!(!world.heard("begins to change") && !world.control.switching(other), "{:?}", world.told);
    world.pass(600_000);
    assert_eq!(stored(&world), (8472, 6081, Some(4789)), "two seconds after the request");
    world.unmute("h1");
    world.pass(100_000);
    is_over(&world, revision, 8472, 6081);
    // Nor once the old port is left.
    world.disconnect("h3");
    let revision = set(&mut world, UdpPorts { vxlan: 4789, geneve: 6081 });
    world.pass(3_000_000);
    world.told.clear();
    let site = Site { hosts_begin_migrations: true, ..world.store.site.value };
    world.commit(&Change::put(Object::Site(site)));
    world.pass(LEAVE);
    assert!(world.told.is_empty(), "{:?}", world.told);
    is_over(&world, revision, 4789, 6081);
}
