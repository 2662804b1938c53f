//! Moves in post-copy: when they begin, what ends them, and that nothing takes the VM back.

use crate::site::{Site, name, orders, told_by, vm};
use tenet_control::{AWAY, Order, Progress, RECEIVE, Refused, STALL, Word};
use tenet_model::{Phase, Through};

/// A move by QMP that is in post-copy; the VM runs on h2.
fn in_post_copy() -> Site {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Qmp, true);
    site.pass(100_000);
    told_by(&mut site, "h2", "ready", "");
    site.status("h1", "active");
    site.status("h1", "postcopy-active");
    site.say("h1", Word::Stopped);
    site.now += 20_000;
    site.say("h2", Word::Resumed);
    site.say("h2", Word::FirstFrame { after_us: 5 });
    site
}

#[test]
fn a_move_in_post_copy_begins_when_both_sides_are_ready_and_lasts_until_all_memory_has_come() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Qmp, true);
    site.pass(1_000_000);
    assert_eq!(orders(&site), [Order::Receive], "the destination's agent is told first");
    told_by(&mut site, "h2", "waiting", "");
    assert_eq!(site.control.migration_progress(&vm()).unwrap().status, "waiting");
    // The source's word is not the destination's.
    told_by(&mut site, "h1", "ready", "");
    site.pass(1_000_000);
    assert_eq!(orders(&site), [Order::Receive]);
    told_by(&mut site, "h2", "ready", "");
    assert_eq!(orders(&site), [Order::Receive, Order::Move]);
    site.status("h1", "active");
    assert!(!site.control.is_in_post_copy(&vm()));
    site.status("h1", "postcopy-active");
    assert_eq!(site.control.cancel(site.now, &vm(), "no"), Err(Refused::PostCopy(name("h2"))));
    site.say("h2", Word::Resumed);
    assert_eq!(site.phase(), Some(Phase::Switched));
    for transferred in 1..40 {
        site.pass(1_000_000);
        let progress = Progress { transferred, total: 100, status: "postcopy-active".into() };
        site.say("h1", Word::Migration { id: None, progress, downtime_us: None, error: String::new() });
    }
    assert!(site.receipts.is_empty(), "{:?}", site.receipts);
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    assert_eq!(site.control.cancel(site.now, &vm(), "no"), Err(Refused::PostCopy(name("h2"))));
    site.status("h1", "completed");
    assert!(!site.control.is_in_post_copy(&vm()));
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy, "{:?}", site.receipts);

    // libvirt makes both sides ready by itself; a move that came to its end before is none in post-copy.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Move]);
    site.status("h1", "active");
    site.say("h2", Word::Resumed);
    site.status("h1", "completed");
    site.pass(3_000_000);
    assert!(site.receipts[0].moved && !site.receipts[0].post_copy, "{:?}", site.receipts);
}

#[test]
fn a_destination_that_is_not_made_ready_for_post_copy_ends_the_move_before_it_begins() {
    let reason = |site: &Site| site.receipts[0].reason.clone().unwrap();
    let begin = || {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate_as(Through::Qmp, true);
        site.pass(100_000);
        site
    };
    let mut site = begin();
    told_by(&mut site, "h2", "failed", "its QEMU takes none");
    assert_eq!(reason(&site), "host h2 is not ready for post-copy: its QEMU takes none");
    assert_eq!((orders(&site), site.home()), (vec![Order::Receive], "h1".to_owned()));

    let mut site = begin();
    told_by(&mut site, "h2", "waiting", "its monitor does not answer");
    site.pass(RECEIVE - 1_000_000);
    assert!(site.receipts.is_empty());
    site.pass(2_000_000);
    assert!(reason(&site).contains("its monitor does not answer; next: start it"), "{}", reason(&site));

    // An agent that comes back is told again; one that does not ends it.
    let mut site = begin();
    site.disconnect("h2");
    site.connect("h2");
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Receive, Order::Receive]);
    site.disconnect("h2");
    site.pass(6_000_000);
    assert!(reason(&site).contains("the agent of host h2, which"), "{}", reason(&site));
}

#[test]
fn who_is_quicker_in_post_copy_than_the_cancelling_is_not_rolled_back() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "active");
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.status("h1", "postcopy-active");
    site.pass(20_000_000);
    assert!(site.receipts.is_empty(), "{:?}", site.receipts);
    site.say("h2", Word::Resumed);
    site.status("h1", "completed");
    site.pass(2_000_000);
    assert!(site.receipts[0].moved, "{:?}", site.receipts);
}

#[test]
fn a_post_copy_that_is_interrupted_is_told_and_not_rolled_back() {
    let problems = |site: &Site| -> Vec<String> {
        site.told.iter().filter(|t| t.starts_with("problem")).cloned().collect()
    };
    let mut site = in_post_copy();
    site.status("h1", "postcopy-paused");
    site.pass(60_000_000);
    let told = problems(&site);
    assert!(told.len() == 1 && told[0].contains("is interrupted in post-copy: it lives on h2"), "{told:?}");
    assert!(told[0].contains("do not end its QEMU") && told[0].contains("migrate-recover"), "{told:?}");
    assert_eq!((site.phase(), site.receipts.len()), (Some(Phase::Switched), 0));
    site.status("h1", "postcopy-recover");
    site.status("h1", "postcopy-active");
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);

    // QEMU itself may not notice for long, nor virsh, which goes on saying the same.
    let mut site = in_post_copy();
    for _ in 0..12 {
        site.pass(1_000_000);
        site.status("h1", "active");
    }
    assert_eq!(site.control.migration_progress(&vm()).unwrap().status, "postcopy-active");
    site.pass(2 * STALL);
    let told = problems(&site);
    assert!(told.len() == 1 && told[0].contains("gets no further in post-copy"), "{told:?}");
}

#[test]
fn a_post_copy_that_fails_leaves_the_vm_where_it_is() {
    // The old QEMU ends.
    let mut site = in_post_copy();
    site.status("h1", "failed");
    site.pass(4_000_000);
    assert!(site.told.iter().any(|t| t.contains("failed in post-copy (no room)")), "{:?}", site.told);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy, "{:?}", site.receipts);
    assert_eq!(site.home(), "h2");

    // QEMU had not let go of it: it runs on at the source, says its hypervisor.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "postcopy-active");
    site.status("h1", "failed");
    assert!(site.receipts.is_empty(), "nobody knows yet where it is");
    site.say("h1", Word::Resumed);
    site.pass(100_000);
    assert!(!site.receipts[0].moved && site.home() == "h1", "{:?}", site.receipts);

    // Nobody says that it runs.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "postcopy-active");
    site.status("h1", "failed");
    site.pass(10_000_000);
    assert!(site.told.iter().any(|t| t.contains("runs on neither host")), "{:?}", site.told);
    assert_eq!((site.phase(), orders(&site)), (Some(Phase::Prepared), vec![Order::Move]));
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.pass(6_000_000);
    assert!(!site.receipts[0].moved);
}

#[test]
fn whoever_is_started_again_in_post_copy_hears_of_its_end() {
    // The source's agent: what its hypervisor said meanwhile is asked for.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.pass(30_000_000);
    site.connect("h1");
    site.pass(100_000);
    assert_eq!(orders(&site).last(), Some(&Order::Follow));
    assert!(site.receipts.is_empty());
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);

    // It does not come back.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.pass(AWAY + 10_000_000);
    let told: Vec<_> = site.told.iter().filter(|t| t.starts_with("problem")).collect();
    assert!(told.len() == 2 && told[0].contains("gets no further in post-copy"), "{told:?}");
    assert!(told[1].contains("all memory of t/sql has come to h2 is not heard"), "{told:?}");
    assert!(
        told[1].contains("agent of host h1") && told[1].contains("do not end the QEMU on h1"),
        "{told:?}"
    );
    assert!(site.receipts[0].moved);

    // Its old QEMU is gone, but the destination's has all of it.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.connect("h1");
    site.pass(100_000);
    told_by(&mut site, "h1", "gone", "no such QEMU");
    site.status("h2", "completed");
    site.pass(5_000_000);
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    assert!(site.receipts[0].moved);

    // The controller.
    let mut site = in_post_copy();
    site.restart();
    for host in ["h1", "h2", "h3"] {
        site.connect(host);
    }
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Follow]);
    site.status("h1", "postcopy-active");
    site.pass(8_000_000);
    assert!(site.receipts.is_empty());
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);
}
