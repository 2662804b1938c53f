//! QEMU's migration fails, or is given up: the guest goes on where it is, as if nothing had been.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tenet_api::rest::{MigrationView, ReceiptView};
use tenet_hostnet::Links;
use tenet_lab::guest::{Image, missing};
use tenet_lab::tool::Probe;
use tenet_tests::guest::{ADDRESS, VM, answers, begin, boot, ended, start, tap, under_way, vm};
use tenet_tests::{Fixture, THREE_HOSTS, World, block_on, skipped, until};

static LAB: Fixture = Fixture::new("fqe", THREE_HOSTS);

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn guest_whose_migration_fails_or_is_given_up_stays_without_a_blackout() {
    if let Some(why) = missing() {
        return skipped(why);
    }
    let Some(world) = LAB.world() else { return };
    let image = Image::build().unwrap();
    let guest = boot(&world, &image, None);
    let far = world.lab.vm("contoso/far").unwrap().netns().clone();
    let address = ADDRESS.parse().unwrap();
    answers(&world, "contoso/far");
    let folder = guest.record().dir.clone();
    let probe = Probe::start(&far, address, VM, 1000).unwrap();

    // Nobody waits there, and nobody comes.
    let begun = begin(&world, "h2", &uri(&folder.join("nowhere.sock")));
    nobody_listens(&world, &begun);
    block_on(world.client.migrate_cancel(&vm())).unwrap();
    let receipt = ended(&world, &begun);
    println!("{:?}", receipt.reason);
    rolled_back(&world, &receipt);

    // Somebody who goes in the middle of it.
    let torn = Listener::start(folder.join("torn.sock"), |mut stream| {
        let mut some = vec![0; 4 << 20];
        _ = stream.read_exact(&mut some);
    });
    let receipt = moved(&world, &torn.path);
    println!("{:?}", receipt.reason);
    rolled_back(&world, &receipt);

    // Somebody who takes nothing: it lasts until it is given up.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let stuck = Listener::start(folder.join("stuck.sock"), move |stream| {
        _ = held.recv_timeout(PATIENCE);
        drop(stream);
    });
    let begun = begin(&world, "h2", &uri(&stuck.path));
    under_way(&world, &begun);
    block_on(world.client.migrate_cancel(&vm())).unwrap();
    let receipt = ended(&world, &begun);
    drop(release);
    println!("{:?}", receipt.reason);
    rolled_back(&world, &receipt);

    let probe = probe.stop().unwrap();
    println!("{probe:?}");
    assert_eq!((probe.lost, probe.strangers), (0, 0), "{probe:?}");
    assert!(guest.runs());
    answers(&world, "contoso/far");

    // Somebody who comes late, as everybody does who opens the tap that h2's agent makes for the move.
    let late = uri(&folder.join("late.sock"));
    let begun = begin(&world, "h2", &late);
    nobody_listens(&world, &begun);
    let new = start(&world, &image, "h2", &tap(), Some(late));
    let receipt = ended(&world, &begun);
    assert!(receipt.moved, "{receipt:?}");
    println!("pause {:?} us, {} lost", receipt.pause_us, receipt.lost);
    guest.stop().unwrap();
    answers(&world, "contoso/far");
    new.stop().unwrap();
    block_on(world.client.delete_vm(&vm())).unwrap();
    world.in_sync();
}

/// Waits until the source's agent has found out that nobody listens at the destination, and waits itself.
fn nobody_listens(world: &World, begun: &MigrationView) {
    until("the source's agent waits", PATIENCE, || {
        let running = block_on(world.client.migrations()).unwrap();
        running.into_iter().find(|m| m.id == begun.id)?.progress.filter(|p| p.status == "waiting")
    });
}

fn moved(world: &World, socket: &Path) -> ReceiptView {
    let begun = begin(world, "h2", &uri(socket));
    ended(world, &begun)
}

fn uri(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// Nothing is left of the attempt: the port lives on h1, and h2 has none.
fn rolled_back(world: &World, receipt: &ReceiptView) {
    assert!(!receipt.moved && receipt.reason.as_ref().is_some_and(|r| !r.is_empty()), "{receipt:?}");
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    let vm = block_on(world.client.vm(&vm())).unwrap();
    assert!(vm.ports.iter().all(|p| p.host.as_ref().is_some_and(|h| h.as_str() == "h1")), "{vm:?}");
    let tap = tap();
    let links = Links::in_netns(world.lab.host("h2").unwrap().netns()).unwrap();
    until("the destination's tap is gone", PATIENCE, || links.find(&tap).unwrap().is_none().then_some(()));
    world.in_sync();
}

/// A socket where somebody takes QEMU's stream, once.
struct Listener {
    path: PathBuf,
}

impl Listener {
    fn start(path: PathBuf, take: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                take(stream);
            }
        });
        Self { path }
    }
}
