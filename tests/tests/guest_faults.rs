//! What fails while a real guest's memory is on its way: `faults.rs` with QEMU instead of namespaces.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use serde_json::json;
use std::time::Duration;
use tenet_api::rest::{MigrationView, ReceiptView};
use tenet_lab::guest::{Guest, Image};
use tenet_tests::guest::{ADDRESS, VM, answers, begin, boot, ended, incoming, under_way, vm, with_guests};
use tenet_tests::{Cut, Paused, Setup, THREE_HOSTS, World, block_on, until};

const PATIENCE: Duration = Duration::from_secs(60);
const DEVICE: &str = "real0";
/// Bytes a second: slow enough to do something meanwhile.
const SLOW: u64 = 1 << 20;
const FAST: u64 = 1 << 30;

#[test]
fn guest_arrives_whoever_dies_while_its_memory_is_on_its_way() {
    with_guests("gfa", THREE_HOSTS, Setup::PLAIN, |world, image, consoles| {
        let guest = boot(world, image, Some(DEVICE));
        consoles.hear(&guest);
        answers(world, "contoso/far");
        let move_to = |world: &World, guest: &Guest, to: &str| {
            let moving = Moving::begin(world, image, guest, to);
            consoles.hear(&moving.new);
            moving
        };

        // The controller dies, and is back before the guest has moved.
        let moving = move_to(world, &guest, "h2");
        world.lab.kill_controller().unwrap();
        block_on(world.lab.start_controller()).unwrap();
        back(world);
        under_way(world, &moving.begun);
        let (guest, receipt) = moving.finish(world, guest);
        assert!(!receipt.exact, "the counts from before went with it: {receipt:?}");

        // It is back after the guest has moved and its old QEMU has ended; the old host is heard first.
        let moving = move_to(world, &guest, "h1");
        world.lab.kill_controller().unwrap();
        speed(&guest, FAST);
        let mut monitor = guest.qmp().unwrap();
        monitor.wait_migrated(PATIENCE).unwrap();
        drop(monitor);
        guest.stop().unwrap();
        let deaf = Paused::new(world, "h1");
        block_on(world.lab.start_controller()).unwrap();
        connected(world, "h2");
        std::thread::sleep(Duration::from_secs(1));
        let running = block_on(world.client.migrations()).unwrap();
        assert!(running.iter().any(|m| m.id == moving.begun.id), "it is not given up: {running:?}");
        drop(deaf);
        let guest = moving.arrived(world).0;

        // The destination's agent dies.
        let moving = move_to(world, &guest, "h2");
        world.lab.kill_agent("h2").unwrap();
        let (guest, _) = moving.finish(world, guest);
        world.lab.start_agent("h2").unwrap();
        settled(world, "h2");

        // The source's does.
        let moving = move_to(world, &guest, "h1");
        world.lab.kill_agent("h2").unwrap();
        let (guest, _) = moving.finish(world, guest);
        world.lab.start_agent("h2").unwrap();
        settled(world, "h1");

        // The wire between the two is cut for a while, and then until it is given up.
        let moving = move_to(world, &guest, "h2");
        let cut = Cut::new(world, "h1", "h2");
        answers(world, "contoso/far");
        drop(cut);
        let (guest, _) = moving.finish(world, guest);
        let moving = move_to(world, &guest, "h1");
        let cut = Cut::new(world, "h1", "h2");
        let receipt = block_on(world.client.migrate_cancel(&vm())).unwrap();
        assert!(!receipt.moved && receipt.id == moving.begun.id, "{receipt:?}");
        answers(world, "contoso/far");
        drop(cut);
        moving.new.stop().unwrap();
        settled(world, "h2");
        guest.stop().unwrap();
    });
}

/// A move under way, slowly.
struct Moving {
    begun: MigrationView,
    new: Guest,
    to: String,
}

impl Moving {
    fn begin(world: &World, image: &Image, guest: &Guest, to: &str) -> Self {
        speed(guest, SLOW);
        let (new, uri) = incoming(world, image, to, DEVICE);
        let begun = begin(world, to, &uri);
        under_way(world, &begun);
        Self { begun, new, to: to.to_owned() }
    }

    /// Lets it come to its end, which it must, with the guest on the other host. Its old QEMU is ended as soon as all of
    /// it has been moved.
    fn finish(self, world: &World, old: Guest) -> (Guest, ReceiptView) {
        speed(&old, FAST);
        let mut monitor = old.qmp().unwrap();
        monitor.wait_migrated(PATIENCE).unwrap();
        drop(monitor);
        let arrived = self.arrived(world);
        old.stop().unwrap();
        arrived
    }

    fn arrived(self, world: &World) -> (Guest, ReceiptView) {
        let receipt = ended(world, &self.begun);
        println!("to {}: {receipt:?}", self.to);
        assert!(receipt.moved && receipt.to.as_str() == self.to, "{receipt:?}");
        answers(world, "contoso/far");
        (self.new, receipt)
    }
}

/// How fast the guest's memory may go.
fn speed(guest: &Guest, bytes: u64) {
    let mut monitor = guest.qmp().unwrap();
    monitor.execute("migrate-set-parameters", json!({ "max-bandwidth": bytes })).unwrap();
}

fn connected(world: &World, host: &str) {
    until("its agent is back", PATIENCE, || world.host_status(host).connected.then_some(()));
}

fn back(world: &World) {
    for host in ["h1", "h2", "h3"] {
        connected(world, host);
    }
}

/// All is quiet, and everybody has the guest there.
fn settled(world: &World, host: &str) {
    back(world);
    world.in_sync();
    world.address_lives_on(VM, ADDRESS.parse().unwrap(), host);
    for from in ["contoso/far", "contoso/web", "contoso/log"] {
        answers(world, from);
    }
}
