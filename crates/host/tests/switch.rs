//! What a hypervisor says of a VM that moves, in every order with the controller's rows.

mod common;

use common::{OTHER, OWN, Sim, devices, port, port_ref, record, small};
use tenet_compile::{Delta, PortState, Rows};
use tenet_host::{DeviceKind, Input, Message, Role, drain};
use tenet_tables::{Event, EventKind, PORT_ACTIVE, PORT_MOVED, PORT_PREPARED};

/// This host's VM `sql` (11) as the rows have it.
fn source(generation: u64, state: PortState, peer: Option<[u8; 4]>) -> Rows {
    let mut rows = small(generation);
    for row in [record(1, 11, OWN, peer), port(1, 11, state, peer)] {
        rows.0.insert(row.key(), (row, generation));
    }
    rows
}

/// The other host's VM `web` (12) comes here.
fn destination(generation: u64, state: PortState, peer: Option<[u8; 4]>) -> Rows {
    let mut rows = small(generation);
    for row in [record(1, 12, OTHER, Some(OWN)), port(1, 12, state, peer)] {
        rows.0.insert(row.key(), (row, generation));
    }
    rows
}

fn state(sim: &Sim, ifindex: u32) -> u8 {
    sim.image.ports[&ifindex].state
}

fn activations(sim: &mut Sim) -> usize {
    sim.said().iter().filter(|m| matches!(m, Message::PortActivated(_))).count()
}

fn restarted(sim: &Sim, rows: Rows, generation: u64) -> Sim {
    let mut again = Sim::new();
    (again.image, again.attached) = (sim.image.clone(), sim.attached.clone());
    again.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)])));
    again.feed(Input::Cached { generation, rows });
    again.look();
    again.feed(Input::Connected);
    again
}

#[test]
fn a_source_redirects_from_the_stop_on_and_takes_it_back_when_the_vm_goes_on() {
    let sql = port_ref(1, 11).vm_ref();
    let mut sim = Sim::started();
    sim.full(7, small(7));
    // Nothing moves: a word on the VM changes nothing.
    sim.applied.clear();
    sim.feed(Input::VmStopped(sql.clone()));
    sim.feed(Input::VmResumed(sql.clone()));
    assert!(sim.applied.is_empty());
    sim.full(8, source(8, PortState::Active, Some(OTHER)));
    assert_eq!(state(&sim, 11), PORT_ACTIVE);
    sim.feed(Input::VmStopped(sql.clone()));
    assert_eq!(state(&sim, 11), PORT_MOVED);
    sim.said();
    // Looks, the same rows again and newer ones of the same migration leave it so, and none of it is a repair.
    sim.look();
    sim.full(8, source(8, PortState::Active, Some(OTHER)));
    sim.full(9, source(9, PortState::Active, Some(OTHER)));
    sim.feed(Input::VmForgotten(sql.clone()));
    sim.look();
    assert_eq!(state(&sim, 11), PORT_MOVED);
    assert_eq!(sim.core.stats().repairs, 0);
    sim.feed(Input::VmResumed(sql.clone()));
    assert_eq!(state(&sim, 11), PORT_ACTIVE);
    sim.feed(Input::VmStopped(sql.clone()));
    sim.full(10, source(10, PortState::Moved, Some(OTHER)));
    assert_eq!(state(&sim, 11), PORT_MOVED);
    // What the controller says stays.
    sim.feed(Input::VmResumed(sql));
    assert_eq!(state(&sim, 11), PORT_MOVED);
}

#[test]
fn a_rollback_ends_the_redirect_even_if_nobody_says_that_the_vm_goes_on() {
    let sql = port_ref(1, 11).vm_ref();
    let mut sim = Sim::started();
    sim.full(8, source(8, PortState::Active, Some(OTHER)));
    sim.feed(Input::VmStopped(sql.clone()));
    sim.full(9, small(9));
    assert_eq!(state(&sim, 11), PORT_ACTIVE);
    sim.feed(Input::VmForgotten(sql));
    // A new migration begins with a VM that runs.
    sim.full(10, source(10, PortState::Active, Some(OTHER)));
    assert_eq!(state(&sim, 11), PORT_ACTIVE);
}

#[test]
fn a_restarted_agent_finds_the_redirect_and_the_end_of_it() {
    let sql = port_ref(1, 11).vm_ref();
    let mut sim = Sim::started();
    let rows = || source(8, PortState::Active, Some(OTHER));
    sim.full(8, rows());
    sim.feed(Input::VmStopped(sql.clone()));
    let mut again = restarted(&sim, rows(), 8);
    assert_eq!((state(&again, 11), again.core.stats().repairs), (PORT_MOVED, 0));
    again.feed(Input::VmResumed(sql));
    assert_eq!(state(&again, 11), PORT_ACTIVE);
    // What an earlier migration to the same host left is none of this one's.
    let late = restarted(&sim, source(20, PortState::Active, Some(OTHER)), 20);
    assert_eq!(state(&late, 11), PORT_ACTIVE);
}

#[test]
fn a_destination_is_active_from_the_resume_on_whichever_comes_first() {
    let web = port_ref(1, 12).vm_ref();
    for resumed_first in [false, true] {
        let mut sim = Sim::started();
        sim.full(7, small(7));
        if resumed_first {
            sim.feed(Input::VmResumed(web.clone()));
        }
        sim.full(8, destination(8, PortState::Prepared, Some(OTHER)));
        if !resumed_first {
            assert_eq!(state(&sim, 12), PORT_PREPARED);
            sim.said();
            sim.feed(Input::VmResumed(web.clone()));
        }
        assert_eq!(state(&sim, 12), PORT_ACTIVE);
        assert_eq!(activations(&mut sim), 1);
        // Told once; looks and the controller's slower rows do not undo it.
        sim.look();
        sim.full(9, destination(9, PortState::Prepared, Some(OTHER)));
        sim.feed(Input::VmResumed(web.clone()));
        assert_eq!((state(&sim, 12), activations(&mut sim)), (PORT_ACTIVE, 0));
        sim.full(10, destination(10, PortState::Active, Some(OTHER)));
        // Its rows look like a source's now: a pause is no reason to send its frames back.
        sim.feed(Input::VmStopped(web.clone()));
        assert_eq!(state(&sim, 12), PORT_ACTIVE);
        assert_eq!(sim.core.stats().repairs, 0);
    }
}

#[test]
fn a_vm_that_went_and_comes_back_waits_for_its_resume() {
    let sql = port_ref(1, 11).vm_ref();
    let mut sim = Sim::started();
    sim.full(7, small(7));
    sim.feed(Input::VmResumed(sql.clone()));
    sim.full(8, source(8, PortState::Active, Some(OTHER)));
    sim.feed(Input::VmStopped(sql.clone()));
    sim.full(9, source(9, PortState::Moved, Some(OTHER)));
    let mut gone = small(10);
    assert!(gone.0.remove(&port(1, 11, PortState::Active, None).key()).is_some());
    sim.full(10, gone);
    sim.full(11, source(11, PortState::Prepared, Some(OTHER)));
    assert_eq!(state(&sim, 11), PORT_PREPARED, "the old QEMU, stopped, is no reason to activate");
    sim.feed(Input::VmForgotten(sql.clone()));
    assert_eq!(state(&sim, 11), PORT_PREPARED);
    sim.feed(Input::VmResumed(sql));
    assert_eq!(state(&sim, 11), PORT_ACTIVE);
}

/// The rows without this host's VM `sql`.
fn without(generation: u64) -> Rows {
    let mut gone = small(generation);
    assert!(gone.0.remove(&port(1, 11, PortState::Active, None).key()).is_some());
    gone
}

#[test]
fn a_word_of_an_earlier_life_switches_nothing() {
    let sql = port_ref(1, 11).vm_ref();
    for by_delta in [false, true] {
        for runs in [true, false] {
            let said = |vm| if runs { Input::VmResumed(vm) } else { Input::VmStopped(vm) };
            let mut sim = Sim::started();
            sim.full(7, small(7));
            sim.feed(said(sql.clone()));
            // It is shut down here and started elsewhere; its hypervisor says nothing of that.
            if by_delta {
                let gone = vec![port(1, 11, PortState::Active, None).key()];
                sim.feed(Input::Delta(Delta { base: 7, generation: 8, upserts: vec![], deletes: gone }));
            } else {
                sim.full(8, without(8));
            }
            // Then it is moved back: it runs elsewhere still.
            sim.said();
            sim.full(9, source(9, PortState::Prepared, Some(OTHER)));
            assert_eq!((state(&sim, 11), activations(&mut sim)), (PORT_PREPARED, 0));
            // Or started here again, and about to be moved away: it runs here still.
            sim.full(10, without(10));
            sim.full(11, small(11));
            sim.full(12, source(12, PortState::Active, Some(OTHER)));
            assert_eq!(state(&sim, 11), PORT_ACTIVE);
        }
    }
}

#[test]
fn a_tap_may_be_emptied_only_while_its_vm_stands_still_and_its_port_redirects() {
    let sql = port_ref(1, 11).vm_ref();
    let mut sim = Sim::started();
    let mut taps = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)]);
    for tap in ["tap1-11", "tap1-12"] {
        taps.get_mut(tap).unwrap().kind = DeviceKind::Tap;
    }
    sim.feed(Input::Devices(taps));
    let leaving = |sim: &Sim| sim.core.leaving().map(|l| (l.ifindex, l.stands)).collect::<Vec<_>>();
    sim.full(7, small(7));
    sim.feed(Input::VmStopped(sql.clone()));
    assert_eq!(leaving(&sim), [], "a pause");
    sim.feed(Input::VmResumed(sql.clone()));
    sim.full(8, source(8, PortState::Active, Some(OTHER)));
    assert_eq!(leaving(&sim), [(11, false)]);
    sim.feed(Input::VmStopped(sql.clone()));
    assert_eq!(leaving(&sim), [(11, true)]);
    sim.feed(Input::VmResumed(sql.clone()));
    assert_eq!(leaving(&sim), [(11, false)]);
    // The controller's word alone says nothing of who reads the tap.
    sim.full(9, source(9, PortState::Moved, Some(OTHER)));
    assert_eq!(leaving(&sim), [(11, false)]);
    sim.feed(Input::VmForgotten(sql));
    assert_eq!(leaving(&sim), [(11, false)]);
    // Where a VM arrives nothing is left unread.
    sim.full(10, destination(10, PortState::Prepared, Some(OTHER)));
    assert_eq!(leaving(&sim), []);
}

#[test]
fn a_hypervisor_that_waits_for_its_vm_is_known_by_the_prepared_port_s_open_tap() {
    let mut sim = Sim::started();
    let taps = |carrier| {
        let mut taps = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)]);
        for tap in ["tap1-11", "tap1-12"] {
            let tap = taps.get_mut(tap).unwrap();
            (tap.kind, tap.carrier) = (DeviceKind::Tap, carrier);
        }
        taps
    };
    let awaited = |sim: &Sim| sim.core.awaited().map(|(_, ifindex)| ifindex).collect::<Vec<_>>();
    sim.feed(Input::Devices(taps(true)));
    sim.full(7, small(7));
    assert_eq!(awaited(&sim), [], "they run");
    sim.full(8, destination(8, PortState::Prepared, Some(OTHER)));
    assert_eq!(awaited(&sim), [12]);
    for runs in [
        Input::VmResumed(port_ref(1, 12).vm_ref()),
        Input::Seen(Event { kind: EventKind::PortActivated as u32, ifindex: 12, ..Event::default() }),
    ] {
        sim.feed(runs);
        assert_eq!(awaited(&sim), [], "it runs, though the row says that it is prepared");
        sim = Sim::started();
        sim.feed(Input::Devices(taps(true)));
        sim.full(8, destination(8, PortState::Prepared, Some(OTHER)));
        assert_eq!(awaited(&sim), [12]);
    }
    sim.feed(Input::Devices(taps(false)));
    assert_eq!(awaited(&sim), [], "nobody has it open");
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)])));
    assert_eq!(awaited(&sim), [], "not a tap");
}

#[test]
fn the_tap_that_frames_are_sent_on_by_carries_the_program_and_is_nobodys_port() {
    let mut sim = Sim::started();
    let mut with = devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12), (drain::TAP, 40)]);
    with.get_mut(drain::TAP).unwrap().kind = DeviceKind::Drain;
    sim.full(7, small(7));
    let before = sim.image.clone();
    sim.feed(Input::Devices(with));
    assert_eq!(sim.attached.get(&40), Some(&Role::Port));
    assert_eq!(sim.image, before, "no table knows it");
    assert_eq!(sim.core.name_of(40), "");
    sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)])));
    sim.look();
    assert_eq!((sim.attached.get(&40), sim.core.stats().repairs), (None, 0));
}
