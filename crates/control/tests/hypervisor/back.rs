//! Moves straight after one another: what is still said of the first does nothing to the second.

use crate::site::{Site, vm};
use tenet_control::{Progress, Word};
use tenet_model::{ARRIVED, Phase, Through};

#[test]
fn late_words_of_the_move_before_neither_end_nor_switch_the_next() {
    for through in [Through::Other, Through::SwitchOnly, Through::Libvirt, Through::Qmp] {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate(Through::Other);
        site.pass(100_000);
        site.nameless("h1", "active");
        site.say("h2", Word::Resumed);
        site.pass(2_000_000);
        assert_eq!((site.receipts.len(), site.home().as_str()), (1, "h2"));

        // At once back to h1, whose QEMU has not quite ended.
        site.migrate_back(through);
        site.say("h1", Word::Stopped);
        for status in ["completed", "failed", "cancelled", "gone"] {
            site.nameless("h1", status);
        }
        site.pass(100_000);
        // libvirt knows only when all is over how long the VM stood still on its way to h2, and says so there.
        let progress = Progress { status: "completed".into(), ..Progress::default() };
        let downtime_us = Some(98_000);
        site.say("h2", Word::Migration { id: None, progress, downtime_us, error: String::new() });
        for status in ["failed", "cancelled"] {
            site.nameless("h2", status);
        }
        site.pass(5_000_000);
        assert_eq!((site.phase(), site.receipts.len()), (Some(Phase::Prepared), 1), "{:?}", site.told);

        // What is said of the move itself counts; how long the VM stood still on its way to h2 may come even now.
        site.status("h2", "active");
        let progress = Progress { status: ARRIVED.into(), ..Progress::default() };
        site.say("h2", Word::Migration { id: None, progress, downtime_us, error: String::new() });
        let progress = site.control.migration_progress(&vm()).unwrap();
        assert_eq!(progress.status, "active", "it has not ended");
        site.say("h2", Word::Stopped);
        site.say("h1", Word::Resumed);
        site.status("h2", "completed");
        site.pass(3_000_000);
        let receipt = &site.receipts[1];
        assert_eq!((receipt.moved, site.home().as_str()), (true, "h1"), "{receipt:?}");
        assert_eq!(receipt.downtime_us, None, "that was the other one's: {receipt:?}");
        assert!(site.control.migration_progress(&vm()).is_none());
    }
}
