//! Moves that a controller finds in the store when it starts.

use crate::site::{Site, vm};
use tenet_control::{DOUBT, Order, Word};
use tenet_model::{Phase, Through};

/// A controller that was started again in the middle of a move that it has driven.
fn taken_over(through: Through) -> Site {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(through);
    site.pass(100_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 1));
    site.restart();
    site
}

#[test]
fn a_move_found_in_the_store_is_not_driven_again_nor_given_up_while_its_destination_is_awaited() {
    for through in [Through::Qmp, Through::Libvirt] {
        // The source is back first, and its QEMU has ended: the VM runs on h2.
        let mut site = taken_over(through);
        site.connect("h3");
        site.connect("h1");
        site.pass(100_000);
        assert_eq!(site.drives, [(Order::Follow, "tcp:h2:1".to_owned())], "asked, once");
        site.status("h1", "gone");
        site.pass(DOUBT + 10_000_000);
        assert_eq!((site.phase(), site.receipts.len()), (Some(Phase::Prepared), 0));
        let doubts: Vec<_> = site.told.iter().filter(|t| t.starts_with("problem: since")).collect();
        assert_eq!(doubts.len(), 1, "{:?}", site.told);
        assert!(doubts[0].contains("tenet vm switch t/sql") && doubts[0].contains("no room"), "{doubts:?}");
        site.connect("h2");
        site.activate("h2");
        site.pass(3_000_000);
        assert_eq!((site.receipts[0].moved, site.home().as_str(), site.drives.len()), (true, "h2", 1));

        // The destination is back first.
        let mut site = taken_over(through);
        site.connect("h2");
        site.activate("h2");
        site.connect("h1");
        site.connect("h3");
        site.pass(3_000_000);
        assert_eq!((site.receipts[0].moved, site.receipts[0].exact), (true, false));
        assert_eq!((site.home().as_str(), &site.drives[..]), ("h2", &[][..]));

        // The source does not come back for long: that is no reason to call off what it may have done.
        let mut site = taken_over(through);
        site.connect("h2");
        site.pass(DOUBT + 10_000_000);
        assert_eq!(site.phase(), Some(Phase::Prepared));
        assert!(site.told.iter().any(|t| t.contains("the agent of host h1 is not connected")));
    }
}

#[test]
fn a_move_found_in_the_store_goes_on_by_what_its_hypervisor_says() {
    // All of it was moved meanwhile, and nobody is there to say so on the destination.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "completed");
    site.pass(20_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
    assert!(site.drives.iter().all(|(order, _)| *order == Order::Follow), "{:?}", site.drives);

    // It goes on, and ends as any other does.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "active");
    site.connect("h2");
    site.pass(DOUBT + 10_000_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 1));
    assert!(site.told.iter().all(|t| !t.contains("it is not known")), "{:?}", site.told);
    site.say("h2", Word::Resumed);
    site.pass(3_000_000);
    assert!(site.receipts[0].moved);

    // It failed meanwhile.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "failed");
    assert!(!site.receipts[0].moved);

    // It had not been told to anybody: it is now, once the destination knows of it.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "idle");
    site.pass(1_000_000);
    assert_eq!(site.drives.len(), 1);
    site.connect("h2");
    site.pass(1_000_000);
    let orders: Vec<_> = site.drives.iter().map(|(order, _)| *order).collect();
    assert_eq!(orders, [Order::Follow, Order::Move]);
    // Such an answer that comes late, or unasked, says nothing.
    site.status("h1", "gone");
    site.pass(DOUBT + 10_000_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 2));

    // An operator knows better.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "gone");
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    assert_eq!(site.drives[1].0, Order::GiveUp);
    site.status("h1", "failed");
    assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));
}
