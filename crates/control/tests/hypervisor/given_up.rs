//! Moves that fail or are given up, and what is not believed of a failure.

use crate::site::{Site, vm};
use tenet_control::{Order, Progress, Refused, Word};
use tenet_model::Through;
use uuid::Uuid;

#[test]
fn a_failed_or_cancelled_move_is_rolled_back_at_once() {
    for status in ["failed", "cancelled"] {
        for through in [Through::Qmp, Through::SwitchOnly, Through::Other] {
            let mut site = Site::new(&["h1", "h2", "h3"]);
            site.migrate(through);
            site.pass(100_000);
            site.say("h1", Word::Stopped);
            site.say("h1", Word::Resumed);
            // The destination has no say in it.
            site.status("h2", status);
            assert!(site.receipts.is_empty());
            site.status("h1", status);
            let receipt = &site.receipts[0];
            assert!(!receipt.moved && receipt.pause_us.is_none(), "{receipt:?}");
            assert!(receipt.reason.as_ref().unwrap().contains("no room"), "{receipt:?}");
            assert_eq!((site.phase(), site.home()), (None, "h1".to_owned()));
        }
    }
}

#[test]
fn a_failure_after_the_switch_is_none() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.status("h1", "failed");
    site.say("h1", Word::Resumed);
    assert!(site.told.iter().any(|t| t.contains("end one of the two")), "{:?}", site.told);
    site.pass(2_000_000);
    assert!(site.receipts[0].moved);
    // Later, each claim of the host that has it no more is told, and changes nothing.
    site.told.clear();
    site.say("h1", Word::Resumed);
    assert!(site.told[0].starts_with("problem: t/sql runs on h1"), "{:?}", site.told);
    assert_eq!(site.home(), "h2");
}

#[test]
fn what_another_tool_moves_is_given_up_by_its_hypervisor_first() {
    for through in [Through::SwitchOnly, Through::Other] {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate(through);
        site.pass(100_000);
        site.status("h1", "active");
        let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
        site.carry_out(outputs);
        assert!(site.drives[0].0 == Order::GiveUp && site.receipts.is_empty(), "{:?}", site.drives);
        site.status("h1", "cancelled");
        assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));

        // Nobody has begun to move it: there is nothing to stop.
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate(through);
        site.pass(100_000);
        let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
        site.carry_out(outputs);
        assert!(site.drives.is_empty());
        assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));
    }
}

#[test]
fn giving_up_stops_the_hypervisor_before_the_network_lets_go() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    assert!(site.drives[1].0 == Order::GiveUp && site.receipts.is_empty());
    site.status("h1", "cancelled");
    assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));

    // The move was quicker.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.say("h2", Word::Resumed);
    site.pass(8_000_000);
    assert!(site.receipts[0].moved);

    // Nobody confirms it.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.pass(6_000_000);
    assert!(site.receipts[0].reason.as_ref().unwrap().contains("did not confirm"));
}

#[test]
fn a_vm_that_has_left_is_not_rolled_back() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    // The move was quicker, and nobody hears the destination.
    site.status("h1", "completed");
    assert_eq!(site.control.cancel(site.now, &vm(), "again"), Err(Refused::Left));
    site.status("h1", "cancelled");
    site.status("h1", "failed");
    site.pass(8_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"), "{:?}", site.receipts);

    // libvirt takes it back, and says so: then it is where it was.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Libvirt);
    site.pass(100_000);
    site.say("h1", Word::Stopped);
    site.status("h1", "completed");
    site.say("h1", Word::Resumed);
    site.status("h1", "failed");
    site.pass(8_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (false, "h1"), "{:?}", site.receipts);
}

#[test]
fn a_word_of_another_migration_ends_nothing() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let mut say = |id, status: &str| {
        let progress = Progress { status: status.into(), ..Progress::default() };
        let id = Some(Uuid::from_u128(id));
        site.say("h1", Word::Migration { id, progress, downtime_us: None, error: String::new() });
        site.receipts.len()
    };
    assert_eq!((say(8, "failed"), say(8, "cancelled"), say(8, "completed")), (0, 0, 0));
    assert_eq!(say(9, "failed"), 1);
    assert!(!site.receipts[0].moved);
}
