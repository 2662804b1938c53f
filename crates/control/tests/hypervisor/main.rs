//! What hypervisors say of a VM that moves, and what the controller makes of it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod back;
mod given_up;
mod post_copy;
mod site;
mod taken_over;

use site::{Site, name, vm};
use tenet_control::{AWAY, Hello, Measured, Order, PathReport, PathState, Progress, STALL, Word};
use tenet_model::{ActivatedBy, Phase, Through};

#[test]
fn a_driven_migration_has_all_figures_in_its_receipt() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    assert_eq!(site.phase(), Some(Phase::Prepared));
    assert_eq!(site.drives, [(Order::Move, "tcp:h2:1".to_owned())], "told once");
    site.status("h1", "active");
    assert_eq!(site.control.migration_progress(&vm()).unwrap().total, 100);
    site.now += 1000;
    site.say("h1", Word::Stopped);
    assert_eq!(site.phase(), Some(Phase::Prepared), "the stop alone is no switch");
    site.now += 70_000;
    site.say("h2", Word::Resumed);
    assert!(site.receipts.is_empty(), "the first frame is waited for");
    site.say("h2", Word::FirstFrame { after_us: 1200 });
    let progress = Progress { status: "completed".into(), ..Progress::default() };
    site.say("h1", Word::Migration { id: None, progress, downtime_us: Some(60_000), error: String::new() });
    site.pass(200_000);
    assert!(site.receipts.is_empty(), "late frames are still sent on");
    site.pass(300_000);
    let receipt = &site.receipts[0];
    assert!(receipt.moved && receipt.exact, "{receipt:?}");
    assert_eq!(
        (receipt.pause_us, receipt.downtime_us, receipt.first_frame_us),
        (Some(70_000), Some(60_000), Some(1200))
    );
    assert_eq!((receipt.activated_by, receipt.through), (Some(ActivatedBy::Resume), Through::Qmp));
    assert_eq!(receipt.ports, [name("eth0")].into());
    assert_eq!((site.phase(), site.home()), (None, "h2".to_owned()));
}

#[test]
fn a_receipt_does_not_wait_for_ever_for_words() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.pass(1_500_000);
    let receipt = &site.receipts[0];
    assert_eq!((receipt.moved, receipt.pause_us, receipt.first_frame_us), (true, None, None));
    assert!(site.drives.is_empty());
}

#[test]
fn a_move_that_gets_no_further_is_told_once() {
    let problems = |site: &Site| site.told.iter().filter(|t| t.contains("nothing more of t/sql")).count();
    let say = |site: &mut Site, transferred| {
        let progress = Progress { transferred, total: 100, status: "active".into() };
        site.say("h1", Word::Migration { id: None, progress, downtime_us: None, error: String::new() });
    };
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    for transferred in [10, 20, 30] {
        say(&mut site, transferred);
        site.pass(STALL - 1_000_000);
    }
    assert_eq!(problems(&site), 0, "{:?}", site.told);
    // Repeated, it is no progress.
    say(&mut site, 30);
    site.pass(3 * STALL);
    assert_eq!(problems(&site), 1, "{:?}", site.told);
    say(&mut site, 40);
    site.pass(2 * STALL);
    assert_eq!(problems(&site), 2, "it went on, and then no more");
    // Of a move by another tool only a beginning was told.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Other);
    site.pass(100_000);
    say(&mut site, 0);
    site.pass(3 * STALL);
    assert_eq!(problems(&site), 0, "{:?}", site.told);
}

#[test]
fn a_host_that_did_not_hear_of_a_move_is_named() {
    let told = |site: &Site| {
        let problem = site.told.iter().any(|t| t.starts_with("problem") && t.contains("without h3"));
        assert!(problem, "{:?}", site.told);
    };
    let switched_without_h3 = || {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.add_neighbour();
        site.migrate(Through::SwitchOnly);
        site.pass(100_000);
        site.disconnect("h3");
        site.say("h2", Word::Resumed);
        site
    };
    // Its agent dies when the VM may move, and does not come back.
    let mut site = switched_without_h3();
    site.pass(AWAY - 1_000_000);
    assert_eq!(site.phase(), Some(Phase::Switched), "the source sends on what comes from there");
    site.pass(3_000_000);
    let receipt = &site.receipts[0];
    assert_eq!((receipt.moved, &receipt.behind), (true, &[name("h3")].into()));
    told(&site);
    assert!(site.told.last().unwrap().ends_with("not heard of it have: h3"), "{:?}", site.told);

    // It is back in time.
    let mut site = switched_without_h3();
    site.pass(20_000_000);
    site.connect("h3");
    site.pass(2_000_000);
    assert!(site.receipts[0].behind.is_empty() && site.receipts[0].acks_us.contains_key(&name("h3")));

    // It has been away for long: nobody waits, and it is told before the VM moves.
    let mut site = Site::new(&["h1", "h2"]);
    site.add_neighbour();
    site.pass(2 * AWAY);
    site.migrate(Through::SwitchOnly);
    site.pass(200_000);
    assert_eq!(site.phase(), Some(Phase::Prepared));
    told(&site);
    site.say("h2", Word::Resumed);
    site.pass(2_000_000);
    assert_eq!(site.receipts[0].behind, [name("h3")].into());
}

#[test]
fn a_source_that_comes_back_is_told_again_and_one_that_does_not_ends_it() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Libvirt);
    site.pass(100_000);
    site.disconnect("h1");
    site.pass(1_000_000);
    site.connect("h1");
    site.pass(100_000);
    assert_eq!(site.drives.len(), 2);

    let mut site = Site::new(&["h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(12_000_000);
    assert!(site.drives.is_empty());
    assert!(site.receipts[0].reason.as_ref().unwrap().contains("host h1"), "{:?}", site.receipts);
}

#[test]
fn a_paused_vm_that_was_moved_is_on_its_new_host() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    site.status("h1", "completed");
    site.pass(4_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
}

#[test]
fn a_host_that_cannot_take_the_vm_is_refused_with_the_reason() {
    let mut site = Site::new(&["h1", "h3"]);
    let why = site.control.ready_for(&vm(), &name("h2")).unwrap_err();
    assert!(why.text.contains("h2 is not connected"), "{why:?}");
    site.connect("h2");
    assert_eq!(site.control.ready_for(&vm(), &name("h2")), Ok(()));
    // A path that is too narrow counts if it leads to a host of the network.
    let path = |peer: &str, pa: &str, mtu| PathReport {
        peer: name(peer),
        pa: pa.parse().unwrap(),
        mtu: Some(mtu),
        state: PathState::Measured,
        rtt_us: 1,
        age_ms: 0,
        method: "nvgre".into(),
        limited_by: None,
        detail: String::new(),
    };
    let session = site.sessions[&name("h2")];
    let mut measured = |paths| {
        let outputs = site.control.measured(site.now, session, Measured { paths, uplinks: vec![] });
        drop(outputs);
        site.control.ready_for(&vm(), &name("h2"))
    };
    assert_eq!(measured(vec![path("h3", "192.168.1.3", 1300)]), Ok(()), "h3 has no port of the network");
    let why = measured(vec![path("h1", "192.168.1.1", 1400)]).unwrap_err();
    assert!(
        why.text.contains("1358") && why.text.contains("1458") && why.text.contains("path to host h1"),
        "{why:?}"
    );
    assert_eq!(measured(vec![path("h1", "192.168.1.1", 1500)]), Ok(()));
    let (_, outputs) =
        site.control.opened(site.now, &name("h2"), Hello { uplink_mtu: 1450, ..Hello::default() }).unwrap();
    drop(outputs);
    let why = site.control.ready_for(&vm(), &name("h2")).unwrap_err();
    assert!(why.text.contains("uplink's MTU is 1450"), "{why:?}");
}

#[test]
fn a_move_that_nobody_was_asked_to_prepare_is_told_with_what_it_cost_and_what_to_do() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.status("h1", "active");
    site.say("h1", Word::Stopped);
    site.now += 40_000;
    site.status("h1", "completed");
    site.status("h2", "completed");
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "it may have been saved: {:?}", site.told);
    site.now += 60_000;
    site.say("h2", Word::Resumed);
    let told = site.told.pop().unwrap();
    assert!(told.starts_with("problem: t/sql was moved from h1 to h2 by another tool"), "{told}");
    assert!(told.contains("for 100 ms") && told.contains("migrate t/sql --to h2 --switch-only"), "{told}");
    assert_eq!((site.home().as_str(), site.receipts.len()), ("h1", 0), "forwarding stays with the site");
    // Said once, and again once the site follows.
    site.status("h1", "completed");
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    site.now += 20_000_000;
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.activate("h2");
    site.pass(3_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
    let told: Vec<_> = site.told.iter().filter(|t| t.starts_with("problem")).collect();
    assert!(told.len() == 1 && told[0].contains("for 20 s they named h1"), "{told:?}");

    // The new host may be heard first.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.say("h2", Word::Resumed);
    assert!(site.told.pop().unwrap().contains("end the one that should not run"));
    site.say("h1", Word::Stopped);
    assert!(site.told.pop().unwrap().contains("by another tool"));

    // One that goes on where it was, or is moved as it should be, is none.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.say("h1", Word::Stopped);
    site.status("h1", "failed");
    site.say("h1", Word::Stopped);
    site.say("h1", Word::Resumed);
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.pass(3_000_000);
    assert!(site.receipts[0].moved && site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
}
