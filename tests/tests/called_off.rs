//! QEMU's migration fails, or is given up: the guest goes on where it is, as if nothing had been.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tenet_api::rest::{ChangeItem, ChangesRequest, Migrate, MigrationView, ReceiptView, Spec};
use tenet_hostnet::Links;
use tenet_lab::guest::{self, Guest, GuestOptions, Image, Nic};
use tenet_lab::tool::{Probe, ask};
use tenet_model::{PortRef, Through, VmRef, tap_name};
use tenet_tests::{Fixture, THREE_HOSTS, World, block_on, skipped, until};

static LAB: Fixture = Fixture::new("fqe", THREE_HOSTS);

const PATIENCE: Duration = Duration::from_secs(60);
const VM: &str = "contoso/real";
const ADDRESS: &str = "10.1.1.50";

#[test]
fn guest_whose_migration_fails_or_is_given_up_stays_without_a_blackout() {
    if let Some(why) = guest::missing() {
        return skipped(why);
    }
    let Some(world) = LAB.world() else { return };
    let image = Image::build().unwrap();
    let guest = boot(&world, &image);
    let far = world.lab.vm("contoso/far").unwrap().netns().clone();
    let address = ADDRESS.parse().unwrap();
    assert_eq!(ask(&far, address, PATIENCE).unwrap().as_deref(), Some(VM));
    let folder = guest.record().dir.clone();
    let probe = Probe::start(&far, address, VM, 1000).unwrap();

    // Nobody waits there, and nobody comes.
    let begun = begin(&world, &folder.join("nowhere.sock"));
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
    let begun = begin(&world, &stuck.path);
    until("QEMU is at it", PATIENCE, || {
        let running = block_on(world.client.migrations()).unwrap();
        running.into_iter().find(|m| m.id == begun.id)?.progress.filter(|p| p.status == "active")
    });
    block_on(world.client.migrate_cancel(&vm())).unwrap();
    let receipt = ended(&world, &begun);
    drop(release);
    println!("{:?}", receipt.reason);
    rolled_back(&world, &receipt);

    let probe = probe.stop().unwrap();
    println!("{probe:?}");
    assert_eq!((probe.lost, probe.strangers), (0, 0), "{probe:?}");
    assert!(guest.runs());
    assert_eq!(ask(&far, address, PATIENCE).unwrap().as_deref(), Some(VM));

    // Somebody who comes late, as everybody does who opens the tap that h2's agent makes for the move.
    let late = folder.join("late.sock");
    let begun = begin(&world, &late);
    nobody_listens(&world, &begun);
    let moved = start(&world, &image, "h2", Some(format!("unix:{}", late.display())));
    let receipt = ended(&world, &begun);
    assert!(receipt.moved, "{receipt:?}");
    println!("pause {:?} us, {} lost", receipt.pause_us, receipt.lost);
    guest.stop().unwrap();
    assert_eq!(ask(&far, address, PATIENCE).unwrap().as_deref(), Some(VM));
    moved.stop().unwrap();
    block_on(world.client.delete_vm(&vm())).unwrap();
    world.in_sync();
}

fn vm() -> VmRef {
    VM.parse().unwrap()
}

/// The guest on h1, on the tap that the agent makes.
fn boot(world: &World, image: &Image) -> Guest {
    let name: PortRef = format!("{VM}/eth0").parse().unwrap();
    let specs: Vec<Spec> = serde_json::from_value(serde_json::json!([
        {"kind": "vm", "name": VM},
        {"kind": "port", "name": name, "subnet": "contoso/prod/data", "addresses": [ADDRESS],
         "mac": "52:54:00:00:00:50", "host": "h1"},
    ]))
    .unwrap();
    let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
    block_on(world.client.changes(&ChangesRequest { changes, ..Default::default() })).unwrap();
    let guest = start(world, image, "h1", None);
    guest.wait_up(PATIENCE).unwrap();
    guest
}

/// A QEMU on a host, on the tap that the agent makes there.
fn start(world: &World, image: &Image, host: &str, incoming: Option<String>) -> Guest {
    let name: PortRef = format!("{VM}/eth0").parse().unwrap();
    let host = world.lab.host(host).unwrap();
    let links = Links::in_netns(host.netns()).unwrap();
    let tap = tap_name(&name);
    let link = until("the agent makes the tap", PATIENCE, || links.get(&tap).ok());
    let dir = host.record().state_dir.join("guest");
    let mut nic = Nic::new(&tap, "52:54:00:00:00:50".parse().unwrap(), link.mtu);
    nic.link = "eth0".to_owned();
    nic.addresses = vec![(ADDRESS.parse().unwrap(), 24)];
    nic.gateways = vec!["10.1.1.1".parse().unwrap()];
    let mut options = GuestOptions::new(VM, dir);
    options.nics.push(nic);
    options.monitor = Some(host.record().state_dir.join("qmp/contoso.real.sock"));
    options.incoming = incoming;
    Guest::boot(image, host.netns(), options).unwrap()
}

/// Waits until the source's agent has found out that nobody listens at the destination, and waits itself.
fn nobody_listens(world: &World, begun: &MigrationView) {
    until("the source's agent waits", PATIENCE, || {
        let running = block_on(world.client.migrations()).unwrap();
        running.into_iter().find(|m| m.id == begun.id)?.progress.filter(|p| p.status == "waiting")
    });
}

fn begin(world: &World, socket: &Path) -> MigrationView {
    let migrate = Migrate {
        to: "h2".parse().unwrap(),
        devices: Default::default(),
        through: Through::Qmp,
        uri: Some(format!("unix:{}", socket.display())),
    };
    block_on(world.client.migrate(&vm(), &migrate)).unwrap()
}

fn ended(world: &World, begun: &MigrationView) -> ReceiptView {
    until("a receipt", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().into_iter().find(|r| r.id == begun.id)
    })
}

fn moved(world: &World, socket: &Path) -> ReceiptView {
    let begun = begin(world, socket);
    ended(world, &begun)
}

/// Nothing is left of the attempt: the port lives on h1, and h2 has none.
fn rolled_back(world: &World, receipt: &ReceiptView) {
    assert!(!receipt.moved && receipt.reason.as_ref().is_some_and(|r| !r.is_empty()), "{receipt:?}");
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    let vm = block_on(world.client.vm(&vm())).unwrap();
    assert!(vm.ports.iter().all(|p| p.host.as_ref().is_some_and(|h| h.as_str() == "h1")), "{vm:?}");
    let tap = tap_name(&format!("{VM}/eth0").parse().unwrap());
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
