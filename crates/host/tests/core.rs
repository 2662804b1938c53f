//! The state machine against an imagined kernel.
#![expect(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tenet_compile::{PortRow, PortState, Row, RowKey, Rows, digests};
use tenet_host::{Ack, Input, Message, Proof, Role, Uplink, plan};
use tenet_model::NetId;
use tenet_tables::image::{Image, Operation};
use tenet_tables::{
    Event, EventKind, PORT_ACTIVE, PORT_FLAG_DOWN, PORT_PREPARED, Peer, PeerKey, Port, RecordKey,
};

fn acks(said: &[Message]) -> Vec<&Ack> {
    said.iter().filter_map(|m| if let Message::Ack(a) = m { Some(a) } else { None }).collect()
}

fn proofs(said: &[Message]) -> Vec<&Proof> {
    said.iter().filter_map(|m| if let Message::Proof(p) = m { Some(p) } else { None }).collect()
}

fn activations(said: &[Message]) -> usize {
    said.iter().filter(|m| matches!(m, Message::PortActivated(_))).count()
}

/// Rows after one more row of a generation, and the change to them.
fn step(
    from: &Rows,
    base: u64,
    generation: u64,
    change: impl FnOnce(&mut Rows),
) -> (Rows, tenet_compile::Delta) {
    let mut next = from.clone();
    change(&mut next);
    let delta = from.delta_to(base, &next, generation);
    (next, delta)
}

fn put(rows: &mut Rows, row: tenet_compile::Row, generation: u64) {
    rows.0.insert(row.key(), (row, generation));
}

#[test]
fn full_state_is_written_read_back_and_acknowledged_with_its_digest() {
    let mut sim = Sim::started();
    assert_eq!(sim.attached, [(2, Role::Uplink)].into());
    assert!(sim.core.ready());
    sim.full(7, small(7));
    let said = sim.said();
    let ack = acks(&said)[0];
    assert_eq!((ack.generation, ack.error.as_str()), (7, ""));
    assert_eq!(ack.networks[0].digest, digests(&small(7))[&NetId(1)]);
    assert_eq!(ack.networks[0].rows, 4);
    assert_eq!(
        (ack.ports[0].present, ack.ports[0].state, ack.ports[0].detail.as_str()),
        (true, "active", "")
    );
    assert_eq!(sim.attached, [(2, Role::Uplink), (11, Role::Port)].into());
    assert_eq!(sim.core.stats().repairs, 0);
}

#[test]
fn same_state_again_writes_nothing_and_is_acknowledged_again() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.applied.clear();
    sim.full(7, small(7));
    assert_eq!(sim.applied, []);
    assert_eq!(acks(&sim.said()).len(), 2);
}

#[test]
fn restarted_agent_adopts_and_writes_only_differences() {
    let mut first = Sim::started();
    first.full(7, small(7));
    let mut again = Sim::new();
    (again.image, again.attached) = (first.image, first.attached);
    again.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11)])));
    again.look();
    assert_eq!(again.applied, [], "without rows nothing is touched");
    again.feed(Input::Connected);
    let (next, _) = step(&small(7), 7, 8, |r| put(r, record(1, 13, OTHER, None), 8));
    again.full(8, next);
    assert_eq!(again.applied.len(), 2, "a record and a MAC: {:?}", again.applied);
    assert_eq!(acks(&again.said())[0].error, "");
}

#[test]
fn agent_without_controller_repairs_towards_its_cache() {
    let mut first = Sim::started();
    first.full(7, small(7));
    let mut again = Sim::new();
    (again.image, again.attached) = (first.image.clone(), first.attached);
    again.image.records.pop_last();
    again.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11)])));
    again.feed(Input::Cached { generation: 7, rows: small(7) });
    again.look();
    assert_eq!(again.image, first.image);
    assert_eq!(again.core.generation(), 7);
    // It is told to the controller once there is one.
    assert_eq!(again.said(), []);
    again.feed(Input::Connected);
    again.look();
    let said = again.said();
    assert_eq!(
        proofs(&said)[0].repaired,
        ["the lookup record of 10.1.1.12 in t1/blue was missing: written again"]
    );
}

#[test]
fn first_fill_of_new_maps_is_no_repair() {
    let mut sim = Sim::new();
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11)])));
    sim.feed(Input::Cached { generation: 7, rows: small(7) });
    sim.look();
    assert_eq!(sim.core.stats().repairs, 0);
    assert_eq!(sim.image.ports.len(), 1);
}

#[test]
fn deltas_follow_their_base_or_ask_for_all() {
    let mut sim = Sim::new();
    sim.look();
    let (_, delta) = step(&small(7), 7, 8, |r| put(r, record(1, 13, OTHER, None), 8));
    sim.feed(Input::Delta(delta.clone()));
    assert!(matches!(&sim.said()[..], [Message::Resync { .. }]));
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.said();
    sim.feed(Input::Delta(delta.clone()));
    let said = sim.said();
    assert_eq!((acks(&said)[0].generation, acks(&said)[0].error.as_str()), (8, ""));
    assert!(sim.image.records.values().any(|r| r.generation == 8));
    // The same once more changes nothing and is acknowledged.
    sim.applied.clear();
    sim.feed(Input::Delta(delta.clone()));
    assert_eq!((acks(&sim.said()).len(), sim.applied.len()), (1, 0));
    let wrong = tenet_compile::Delta { base: 9, generation: 10, ..delta };
    sim.feed(Input::Delta(wrong));
    assert!(matches!(&sim.said()[..], [Message::Resync { .. }]));
    assert_eq!(sim.core.generation(), 8);
}

#[test]
fn refused_write_is_an_error_in_the_ack_and_retried_at_the_next_look() {
    let mut sim = Sim::started();
    sim.refuse = true;
    sim.full(7, small(7));
    assert!(acks(&sim.said())[0].error.contains("not what was written"));
    sim.refuse = false;
    sim.look();
    assert_eq!(sim.image.records.len(), 3);
    let said = sim.said();
    assert_eq!((acks(&said)[0].generation, acks(&said)[0].error.as_str()), (7, ""));
    sim.look();
    assert_eq!(acks(&sim.said()).len(), 0);
}

#[test]
fn tables_that_cannot_be_read_are_proven_no_longer() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.said();
    sim.feed(Input::Unreadable("no such map".to_owned()));
    let said = sim.said();
    let proof = proofs(&said)[0];
    assert_eq!((proof.generation, proof.networks.len()), (7, 0));
    assert_eq!(proof.problems, ["the kernel's tables cannot be read: no such map"]);
    sim.look();
    let said = sim.said();
    assert_eq!((proofs(&said)[0].networks.len(), proofs(&said)[0].problems.len()), (1, 0));
}

#[test]
fn device_that_appears_later_is_attached_and_reported() {
    let mut sim = Sim::new();
    sim.feed(Input::Devices(devices(&[("eth0", 2)])));
    sim.look();
    sim.feed(Input::Connected);
    sim.full(7, small(7));
    let said = sim.said();
    assert_eq!(acks(&said)[0].error, "");
    assert_eq!(acks(&said)[0].ports[0].detail, "device tap1-11 does not exist on this host yet");
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 30)])));
    assert_eq!(sim.attached.get(&30), Some(&Role::Port));
    assert!(sim.image.ports.contains_key(&30));
    assert_eq!(sim.image.records[&RecordKey { net: 1, ca: ca(11).into() }].ifindex, 30);
    let said = sim.said();
    assert!(proofs(&said)[0].ports[0].present);
    // Gone and back under another number.
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 31)])));
    assert_eq!(sim.attached.keys().copied().collect::<Vec<_>>(), [2, 31]);
    assert_eq!(sim.image.ports.keys().copied().collect::<Vec<_>>(), [31]);
}

#[test]
fn carrier_loss_flags_the_port_at_once_and_its_return_clears_it() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    let mut all = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)]);
    all.get_mut("tap1-11").unwrap().carrier = false;
    sim.applied.clear();
    sim.feed(Input::Devices(all.clone()));
    assert_eq!(sim.image.ports[&11].flags & PORT_FLAG_DOWN, PORT_FLAG_DOWN);
    assert_eq!(sim.applied.len(), 1);
    all.get_mut("tap1-11").unwrap().carrier = true;
    sim.feed(Input::Devices(all));
    assert_eq!(sim.image.ports[&11].flags & PORT_FLAG_DOWN, 0);
}

#[test]
fn uplink_mtu_change_reaches_the_ports() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    let mut all = devices(&[("eth0", 2), ("tap1-11", 11)]);
    all.get_mut("eth0").unwrap().mtu = 9000;
    sim.feed(Input::Devices(all));
    assert_eq!(sim.image.ports[&11].mtu, 8958);
}

#[test]
fn drift_is_repaired_and_told() {
    type Damage = fn(&mut Sim);
    let cases: [(&str, Damage); 7] = [
        ("the lookup record of 10.1.1.12 in t1/blue was missing: written again", |s| {
            s.image.records.remove(&RecordKey { net: 1, ca: ca(12).into() });
        }),
        ("the lookup record of 10.1.1.12 in t1/blue differed: corrected", |s| {
            s.image.records.get_mut(&RecordKey { net: 1, ca: ca(12).into() }).unwrap().vsid = 9;
        }),
        ("the peer 9.9.9.9 is nobody's: removed", |s| {
            let pa = std::net::IpAddr::from([9, 9, 9, 9]).into();
            s.image.peers.insert(PeerKey { net: 0, pa }, Peer::default());
        }),
        ("the port at interface 11 was missing: written again", |s| {
            s.image.ports.clear();
        }),
        ("the program on tap1-11 was gone: attached again", |s| {
            s.attached.remove(&11);
        }),
        ("the program on eth0 was gone: attached again", |s| {
            s.attached.remove(&2);
        }),
        ("virtual subnet 5001 was missing: written again", |s| {
            s.image.subnets.clear();
        }),
    ];
    for (text, damage) in cases {
        let mut sim = Sim::started();
        sim.full(7, small(7));
        sim.look();
        let (image, attached) = (sim.image.clone(), sim.attached.clone());
        let said = sim.said();
        assert_eq!(proofs(&said)[0].repaired, Vec::<String>::new());
        damage(&mut sim);
        sim.look();
        let said = sim.said();
        assert_eq!(proofs(&said)[0].repaired, [text]);
        assert_eq!(proofs(&said)[0].networks[0].digest, digests(&small(7))[&NetId(1)]);
        assert_eq!((&sim.image, &sim.attached), (&image, &attached), "{text}");
        assert_eq!(sim.core.stats().repairs, 1, "{text}");
    }
}

fn prepared(generation: u64) -> Rows {
    let mut site = small(generation);
    put(&mut site, record(1, 12, OTHER, Some(OWN)), generation);
    put(&mut site, port(1, 12, PortState::Prepared, Some(OTHER)), generation);
    site
}

fn activate(sim: &mut Sim) {
    sim.image.ports.get_mut(&12).unwrap().state = PORT_ACTIVE;
}

fn event(kind: EventKind, ifindex: u32) -> Input {
    Input::Seen(Event { kind: kind as u32, ifindex, ..Event::default() })
}

#[test]
fn only_ports_that_move_are_worth_a_glance() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    assert_eq!((sim.core.is_moving(), sim.core.about_to_switch().count()), (false, 0));
    sim.full(8, prepared(8));
    let glances = |sim: &Sim| sim.core.about_to_switch().map(|d| d.ifindex).collect::<Vec<_>>();
    assert_eq!((sim.core.is_moving(), glances(&sim)), (true, vec![12]));
    // Switched: nothing more is to be seen there.
    activate(&mut sim);
    sim.feed(event(EventKind::PortActivated, 12));
    assert_eq!((sim.core.is_moving(), glances(&sim)), (true, vec![]));
}

#[test]
fn activation_by_the_data_plane_is_reported_once_and_never_undone() {
    let mut sim = Sim::started();
    sim.full(7, prepared(7));
    assert_eq!(sim.image.ports[&12].state, PORT_PREPARED);
    sim.said();
    activate(&mut sim);
    sim.feed(event(EventKind::PortActivated, 12));
    assert_eq!(activations(&sim.said()), 1);
    for _ in 0..3 {
        sim.look();
        sim.full(7, prepared(7));
    }
    // Other changes of the row's own network, and of the row.
    let (next, delta) =
        step(&prepared(7), 7, 8, |r| put(r, port(1, 12, PortState::Prepared, Some(OTHER)), 8));
    sim.feed(Input::Delta(delta));
    assert_eq!(sim.image.ports[&12], Port { state: PORT_ACTIVE, generation: 8, ..sim.image.ports[&12] });
    let said = sim.said();
    assert_eq!(activations(&said), 0);
    assert!(proofs(&said).iter().all(|p| p.repaired.is_empty()));
    // A new session hears of it again until the controller has taken it over.
    sim.feed(Input::Disconnected);
    sim.feed(Input::Connected);
    assert_eq!(activations(&sim.said()), 1);
    let (_, delta) = step(&next, 8, 9, |r| put(r, port(1, 12, PortState::Active, Some(OTHER)), 9));
    sim.feed(Input::Delta(delta));
    sim.feed(Input::Connected);
    assert_eq!(activations(&sim.said()), 0);
}

#[test]
fn activation_is_found_by_a_look_and_by_a_restarted_agent() {
    let mut sim = Sim::started();
    sim.full(7, prepared(7));
    sim.said();
    activate(&mut sim);
    sim.look();
    assert_eq!((activations(&sim.said()), sim.image.ports[&12].state), (1, PORT_ACTIVE));
    let mut again = Sim::new();
    (again.image, again.attached) = (sim.image.clone(), sim.attached.clone());
    again.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)])));
    again.look();
    again.feed(Input::Connected);
    again.full(7, prepared(7));
    assert_eq!((activations(&again.said()), again.image.ports[&12].state), (1, PORT_ACTIVE));
}

#[test]
fn activation_between_look_and_write_survives() {
    let mut sim = Sim::started();
    sim.full(7, prepared(7));
    sim.said();
    activate(&mut sim);
    // The event comes before the carrier change is handled.
    sim.feed(event(EventKind::PortActivated, 12));
    let mut all = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)]);
    all.get_mut("tap1-12").unwrap().carrier = false;
    sim.feed(Input::Devices(all));
    assert_eq!(sim.image.ports[&12].state, PORT_ACTIVE);
}

#[test]
fn active_source_told_to_prepare_obeys() {
    // The agent was away while its VM left and is about to come back.
    let mut sim = Sim::started();
    let mut site = small(7);
    put(&mut site, record(1, 12, OWN, None), 7);
    put(&mut site, port(1, 12, PortState::Active, None), 7);
    sim.full(7, site);
    sim.said();
    sim.full(20, prepared(20));
    assert_eq!((activations(&sim.said()), sim.image.ports[&12].state), (0, PORT_PREPARED));
}

#[test]
fn events_get_names_and_floods_of_them_are_held_back() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.said();
    for _ in 0..100 {
        sim.feed(event(EventKind::Spoof, 11));
    }
    let said = sim.said();
    assert_eq!(said.len(), 10);
    let Message::Event(e) = &said[0] else { panic!("{said:?}") };
    assert_eq!((e.kind, e.port.as_str()), ("spoof", "t1/vm11/eth0"));
    sim.now = Duration::from_secs(2);
    sim.feed(event(EventKind::Spoof, 11));
    let said = sim.said();
    let Message::Event(e) = &said[0] else { panic!("{said:?}") };
    assert!(e.text.ends_with("(90 more like it were not shown)"), "{}", e.text);
    assert_eq!(sim.core.stats().events["spoof"], 101);
}

#[test]
fn removed_port_loses_its_entry_but_keeps_the_program() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    let (_, delta) = step(&small(7), 7, 8, |r| {
        r.0.remove(&RowKey::Port(NetId(1), port_ref(1, 11)));
        r.0.remove(&RowKey::Record(NetId(1), ca(11)));
    });
    sim.feed(Input::Delta(delta));
    assert!(sim.image.ports.is_empty());
    // A VM that still runs must not reach the host's own stack.
    assert_eq!(sim.attached.get(&11), Some(&Role::Port));
}

#[test]
fn uplink_no_longer_ticked_loses_the_program() {
    let mut sim = Sim::new();
    sim.attached.insert(3, Role::Uplink);
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("eth1", 3)])));
    sim.look();
    assert_eq!(sim.attached, [(2, Role::Uplink)].into());
}

#[test]
fn uplink_is_never_a_port() {
    let mut sim = Sim::started();
    let mut site = small(7);
    let tenet_compile::Row::Port(mut row) = port(1, 11, PortState::Active, None) else { unreachable!() };
    row.device = "eth0".into();
    put(&mut site, tenet_compile::Row::Port(row), 7);
    sim.full(7, site);
    assert_eq!(sim.attached.get(&2), Some(&Role::Uplink));
    assert!(sim.image.ports.is_empty());
    assert_eq!(acks(&sim.said())[0].ports[0].detail, "device eth0 is an uplink of this host");
}

fn planned(rows: &Rows) -> Image {
    let mac = tenet_tables::Mac::default();
    let uplink = Uplink { ifindex: 2, mtu: 1500, hub: 0, slow: 0, mac };
    plan(rows, &all_devices(), Some(uplink), &std::collections::BTreeMap::new()).image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Deltas, drift and looks in any order end where a plan from scratch does.
    #[test]
    fn any_history_ends_in_the_plan(
        states in prop::collection::vec(any_rows(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..8),
    ) {
        let mut sim = Sim::new();
        sim.feed(Input::Devices(all_devices()));
        sim.look();
        sim.feed(Input::Connected);
        let mut known: Option<(u64, Rows)> = None;
        for (generation, next) in (1u64..).zip(states) {
            match &known {
                None => sim.full(generation, next.clone()),
                Some((base, rows)) => sim.feed(Input::Delta(rows.delta_to(*base, &next, generation))),
            }
            let said = sim.said();
            prop_assert_eq!(acks(&said).len(), 1);
            prop_assert_eq!(acks(&said)[0].error.as_str(), "");
            let want = digests(&next);
            for proof in &acks(&said)[0].networks {
                prop_assert_eq!(proof.digest, want.get(&proof.net).copied().unwrap_or(0));
            }
            prop_assert_eq!(&sim.image, &planned(&next));
            known = Some((generation, next));
        }
        let (_, rows) = known.unwrap();
        for (at, remove) in damage {
            let all = Image::default().operations_to(&sim.image);
            let operation = match *at.get(&all) {
                Operation::Record(k, Some(mut v)) => { v.generation += 1; Operation::Record(k, (!remove).then_some(v)) }
                Operation::Port(k, Some(mut v)) => { v.vsid += 1; Operation::Port(k, (!remove).then_some(v)) }
                Operation::Mac(k, _) => Operation::Mac(k, None),
                Operation::Flood(k, _) => Operation::Flood(k, None),
                Operation::Route(k, _) => Operation::Route(k, None),
                Operation::Peer(k, _) => Operation::Peer(k, None),
                Operation::Subnet(k, _) => Operation::Subnet(k, None),
                Operation::Configure(mut c) => { c.uplink += 1; Operation::Configure(c) }
                Operation::Pool(k, _) => Operation::Pool(k, None),
                Operation::Rewrite(k, Some(mut v)) => { v.other_pa.words[3] += 1; Operation::Rewrite(k, (!remove).then_some(v)) }
                other => other,
            };
            sim.image.apply(operation);
            sim.look();
            prop_assert_eq!(&sim.image, &planned(&rows));
            let said = sim.said();
            prop_assert!(!proofs(&said)[0].repaired.is_empty(), "{:?}", operation);
        }
    }
}

/// The texts of the reports that a port went elsewhere.
fn superseded(said: &[Message]) -> Vec<&str> {
    let reports = said.iter().filter_map(|m| if let Message::Event(e) = m { Some(e) } else { None });
    reports.filter(|e| e.kind == "superseded").map(|e| e.text.as_str()).collect()
}

#[test]
fn a_port_that_moved_while_nobody_said_so_goes_quiet_aloud() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.feed(Input::Disconnected);
    sim.said();
    // The VM moved to the other host meanwhile.
    let mut next = small(7);
    next.0.remove(&RowKey::Port(NetId(1), port_ref(1, 11)));
    put(&mut next, record(1, 11, OTHER, None), 9);
    sim.feed(Input::Connected);
    sim.full(9, next.clone());
    let said = sim.said();
    assert_eq!(
        superseded(&said),
        [
            "t1/vm11/eth0: it lives on host h20 (192.168.2.20) since generation 9, and what is on tap1-11 here \
          (generation 7) goes quiet: end it if it is a second copy"
        ]
    );
    assert!(!sim.image.ports.contains_key(&11), "no frame of it passes any more");
    // Told once.
    sim.full(9, next);
    assert!(superseded(&sim.said()).is_empty());
}

#[test]
fn a_port_that_nothing_is_plugged_into_goes_without_a_word() {
    let mut sim = Sim::started();
    sim.full(7, small(7));
    let mut unplugged = devices(&[("eth0", 2), ("tap1-11", 11)]);
    unplugged.get_mut("tap1-11").unwrap().carrier = false;
    sim.feed(Input::Devices(unplugged));
    let mut next = small(7);
    next.0.remove(&RowKey::Port(NetId(1), port_ref(1, 11)));
    sim.full(9, next);
    assert!(superseded(&sim.said()).is_empty());
}

#[test]
fn a_destination_that_was_called_off_while_its_vm_spoke_says_so() {
    let prepared = |r: &mut Rows| {
        put(r, port(1, 11, PortState::Prepared, Some(OTHER)), 7);
        put(r, record(1, 11, OTHER, Some(OWN)), 7);
    };
    for speaks in [true, false] {
        let (before, _) = step(&small(7), 6, 7, prepared);
        let mut sim = Sim::started();
        sim.full(7, before.clone());
        if speaks {
            sim.image.ports.get_mut(&11).unwrap().state = PORT_ACTIVE;
            sim.look();
        }
        sim.said();
        let (_, delta) = step(&before, 7, 8, |r| {
            r.0.remove(&RowKey::Port(NetId(1), port_ref(1, 11)));
            put(r, record(1, 11, OTHER, None), 8);
        });
        sim.feed(Input::Delta(delta));
        assert_eq!(superseded(&sim.said()).len(), usize::from(speaks));
        assert!(!sim.image.ports.contains_key(&11));
    }
}

/// The site with port 11 on a tap that the agent makes.
fn on_tap(generation: u64, state: PortState, peer: Option<[u8; 4]>) -> Rows {
    let mut rows = small(generation);
    let Row::Port(row) = port(1, 11, state, peer) else { unreachable!() };
    let row = Row::Port(PortRow { tap: true, ..row });
    rows.0.insert(row.key(), (row, generation));
    rows
}

fn details(sim: &mut Sim) -> Vec<(bool, bool, String)> {
    let ports = sim.said().into_iter().rev().find_map(|m| match m {
        Message::Ack(a) => Some(a.ports),
        Message::Proof(p) => Some(p.ports),
        _ => None,
    });
    ports.unwrap().into_iter().map(|p| (p.present, p.carrier, p.detail)).collect()
}

#[test]
fn a_tap_that_is_somebody_elses_is_not_touched_and_said() {
    let mut sim = Sim::new();
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11)])));
    sim.look();
    sim.feed(Input::Connected);
    let why = "device tap1-11 of this host is not the tap that the agent makes";
    sim.feed(Input::Taps([("tap1-11".to_owned(), why.to_owned())].into()));
    sim.full(5, on_tap(5, PortState::Active, None));
    assert_eq!(sim.core.taps().map(|p| p.device.as_str()).collect::<Vec<_>>(), ["tap1-11"]);
    assert!(!sim.attached.contains_key(&11), "no program on it");
    assert!(!sim.image.ports.contains_key(&11) && sim.image.records.values().all(|r| r.ifindex != 11));
    assert_eq!(details(&mut sim), [(false, false, why.to_owned())]);

    // Once it is out of the way, the port comes to life without being told again.
    sim.feed(Input::Taps(BTreeMap::new()));
    assert_eq!(sim.attached.get(&11), Some(&Role::Port));
    assert!(sim.image.ports.contains_key(&11));
    assert_eq!(details(&mut sim), [(true, true, String::new())]);
}

#[test]
fn what_an_operator_should_know_of_a_port_that_works_is_told_with_it() {
    let mut sim = Sim::started();
    sim.full(5, on_tap(5, PortState::Active, None));
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11)])));
    let port = sim.core.taps().next().unwrap().name.clone();
    sim.feed(Input::Notes([(port, "nobody listens".to_owned())].into()));
    sim.look();
    assert_eq!(details(&mut sim), [(true, true, "nobody listens".to_owned())]);
    sim.feed(Input::Notes(BTreeMap::new()));
    sim.look();
    assert_eq!(details(&mut sim), [(true, true, String::new())]);
}

#[test]
fn a_prepared_tap_that_nobody_has_open_yet_is_no_lost_vm() {
    let mut sim = Sim::started();
    sim.full(5, on_tap(5, PortState::Prepared, Some(OTHER)));
    let mut all = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)]);
    all.get_mut("tap1-11").unwrap().carrier = false;
    sim.said();
    sim.feed(Input::Devices(all.clone()));
    assert_eq!(sim.image.ports[&11].state, PORT_PREPARED, "nothing has begun");
    assert!(!sim.said().iter().any(|m| matches!(m, Message::PortActivated(_))));
    sim.full(6, on_tap(6, PortState::Prepared, Some(OTHER)));
    assert_eq!(details(&mut sim), [(true, false, String::new())], "and nothing is wrong");

    // The hypervisor opens it long before the VM runs here.
    all.get_mut("tap1-11").unwrap().carrier = true;
    sim.feed(Input::Devices(all.clone()));
    assert_eq!(sim.image.ports[&11].state, PORT_PREPARED);
    assert!(!sim.said().iter().any(|m| matches!(m, Message::PortActivated(_))));

    // Live, it is missed.
    all.get_mut("tap1-11").unwrap().carrier = false;
    sim.full(7, on_tap(7, PortState::Active, None));
    sim.said();
    sim.feed(Input::Devices(all));
    assert_eq!(details(&mut sim), [(true, false, "no VM has tap tap1-11 open".to_owned())]);
    assert_ne!(sim.image.ports[&11].flags & PORT_FLAG_DOWN, 0);
}
