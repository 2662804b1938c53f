//! A real guest whose migration something is done to, and the QEMUs that wait for it.

use crate::{Setup, World, block_on, missing, skipped, until};
use std::cell::RefCell;
use std::io::Write as _;
use std::net::{IpAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tenet_api::rest::{ChangeItem, ChangesRequest, Migrate, MigrationView, ReceiptView, Spec};
use tenet_hostnet::{Links, TapOptions};
use tenet_lab::guest::{self, Guest, GuestOptions, Image, Nic, crash_in};
use tenet_lab::tool::ask;
use tenet_model::{PortRef, Through, VmRef, tap_name};

/// The guest's name.
pub const VM: &str = "contoso/real";
/// Its address, in the subnet `contoso/prod/data` of [`crate::THREE_HOSTS`].
pub const ADDRESS: &str = "10.1.1.50";
/// A guest's command: it writes 16 MB over and over, as `/tmp/x`.
pub const RESTLESS: &str = "(while :; do dd if=/dev/urandom of=/tmp/x bs=64k count=256 conv=notrunc; done) \
                            >/dev/null 2>&1 </dev/null &";

/// Each has a folder of its own.
static STARTED: AtomicUsize = AtomicUsize::new(0);
const MAC: &str = "52:54:00:00:00:50";
/// What an emulated guest may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A guest's memory is damaged by an emulated move now and then on a busy machine, on any network: its kernel says so on
/// the console, and the test begins anew. Nothing else is forgiven.
const ATTEMPTS: usize = 4;
/// How long a kernel that dies may take to say so.
const LISTEN: Duration = Duration::from_secs(5);

/// Runs a test with real guests in a lab of its own, and takes the lab down. Only where a guest's kernel says on a console
/// that it crashed does a test that fails begin anew, which is told past the capture of its output.
///
/// # Panics
/// If the test fails, or if kernels crash in every attempt.
pub fn with_guests(tag: &str, site: &str, setup: Setup, mut test: impl FnMut(&mut World, &Image, &Consoles)) {
    if let Some(why) = missing().or_else(guest::missing) {
        return skipped(why);
    }
    // Not a matter of the test, and the first time it takes as long as the network does.
    let image = match Image::build() {
        Ok(image) => image,
        Err(e) => return skipped(format!("no guest can be built: {e}")),
    };
    for attempt in 1..=ATTEMPTS {
        let mut world = World::up_as(tag, site, setup);
        let consoles = Consoles::default();
        let run = || test(&mut world, &image, &consoles);
        let Err(broken) = catch_unwind(AssertUnwindSafe(run)) else {
            return world.lab.down().unwrap();
        };
        let Some(said) = consoles.crash(&world) else { resume_unwind(broken) };
        again(attempt, &said);
    }
    panic!("the guest's kernel crashed {ATTEMPTS} times");
}

/// Said past the capture of the test's output.
fn again(attempt: usize, said: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    _ = writeln!(std::io::stderr(), "AGAIN: {name}: attempt {attempt}: the guest's kernel crashed: {said}");
}

/// Consoles of a test's guests besides those of its lab, and what a kernel said there that crashed.
#[derive(Clone, Debug, Default)]
pub struct Consoles(Rc<RefCell<Vec<PathBuf>>>, Rc<RefCell<Option<String>>>);

impl Consoles {
    /// Listens to this guest's.
    pub fn hear(&self, guest: &Guest) {
        self.hear_log(guest.record().dir.join("console.log"));
    }

    /// Listens to what a console writes to a file.
    pub fn hear_log(&self, log: PathBuf) {
        self.0.borrow_mut().push(log);
    }

    /// Whoever ends guests when dropped has one to be dropped before.
    #[must_use]
    pub fn ear(&self) -> Ear {
        Ear(self.clone())
    }

    /// What a kernel has said, or says within a while: one that dies takes its time to say so.
    fn crash(&self, world: &World) -> Option<String> {
        let heard = self.1.borrow_mut().take();
        heard.or_else(|| self.crash_heard(Duration::ZERO)).or_else(|| world.lab.crashed(LISTEN))
    }

    fn crash_heard(&self, time: Duration) -> Option<String> {
        let end = Instant::now() + time;
        loop {
            let logs = self.0.borrow();
            let found = logs.iter().find_map(|log| {
                let said = std::fs::read(log).unwrap_or_default();
                crash_in(&String::from_utf8_lossy(&said)).map(ToOwned::to_owned)
            });
            if found.is_some() || Instant::now() > end {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Listens to the consoles when a test fails, as long as its guests run.
#[derive(Debug)]
pub struct Ear(Consoles);

impl Drop for Ear {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.1.borrow_mut() = self.0.crash_heard(LISTEN);
        }
    }
}

/// The VM.
#[must_use]
pub fn vm() -> VmRef {
    VM.parse().unwrap()
}

/// Its tap, if the agents make it.
#[must_use]
pub fn tap() -> String {
    tap_name(&port())
}

fn port() -> PortRef {
    format!("{VM}/eth0").parse().unwrap()
}

/// The guest on h1, up: on this device, or if none is named on the tap that the agent makes.
///
/// # Panics
/// If it does not come up.
#[must_use]
pub fn boot(world: &World, image: &Image, device: Option<&str>) -> Guest {
    let mut object = serde_json::json!({"kind": "port", "name": port(), "subnet": "contoso/prod/data",
        "addresses": [ADDRESS], "mac": MAC, "host": "h1"});
    if let Some(device) = device {
        own_tap(world, "h1", device);
        object["device"] = device.into();
    }
    let specs: Vec<Spec> =
        serde_json::from_value(serde_json::json!([{"kind": "vm", "name": VM}, object])).unwrap();
    let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
    block_on(world.client.changes(&ChangesRequest { changes, ..Default::default() })).unwrap();
    let guest = start(world, image, "h1", device.unwrap_or(&tap()), None);
    guest.wait_up(PATIENCE).unwrap();
    guest
}

/// A QEMU on a host that waits for the guest, on a device of that name, and where.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn incoming(world: &World, image: &Image, host: &str, device: &str) -> (Guest, String) {
    own_tap(world, host, device);
    let lab = world.lab.host(host).unwrap();
    let pa = lab.record().pa;
    let free = || TcpListener::bind((pa, 0)).unwrap().local_addr().unwrap();
    let uri = format!("tcp:{}", lab.netns().run(free).unwrap());
    let guest = start(world, image, host, device, Some(uri.clone()));
    drop(guest.qmp().unwrap());
    (guest, uri)
}

fn own_tap(world: &World, host: &str, device: &str) {
    let links = Links::in_netns(world.lab.host(host).unwrap().netns()).unwrap();
    if links.find(device).unwrap().is_none() {
        links.add_tap(device, TapOptions::default()).unwrap();
        links.set_mtu(device, 1458).unwrap();
        links.set_up(device).unwrap();
    }
}

/// A QEMU on a host, on that device, with the guest booting or waited for at a URI.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn start(world: &World, image: &Image, host: &str, device: &str, incoming: Option<String>) -> Guest {
    let host = world.lab.host(host).unwrap();
    let links = Links::in_netns(host.netns()).unwrap();
    let link = until("the tap is there", PATIENCE, || links.get(device).ok());
    let state = &host.record().state_dir;
    let mut nic = Nic::new(device, MAC.parse().unwrap(), link.mtu);
    nic.addresses = vec![(ADDRESS.parse().unwrap(), 24)];
    nic.gateways = vec!["10.1.1.1".parse().unwrap()];
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    let mut options = GuestOptions::new(VM, state.join(format!("guest{number}")));
    options.nics.push(nic);
    options.monitor = Some(state.join("qmp/contoso.real.sock"));
    options.incoming = incoming;
    Guest::boot(image, host.netns(), options).unwrap()
}

/// Has the agent of the guest's host move it.
///
/// # Panics
/// If that is refused.
#[must_use]
pub fn begin(world: &World, to: &str, uri: &str) -> MigrationView {
    let (to, devices) = (to.parse().unwrap(), Default::default());
    let migrate = Migrate { to, devices, through: Through::Qmp, uri: Some(uri.to_owned()), post_copy: false };
    block_on(world.client.migrate(&vm(), &migrate)).unwrap()
}

/// Waits until its memory is being moved.
///
/// # Panics
/// If it is not.
pub fn under_way(world: &World, begun: &MigrationView) {
    until("QEMU is at it", PATIENCE, || {
        let running = block_on(world.client.migrations()).unwrap();
        running.into_iter().find(|m| m.id == begun.id)?.progress.filter(|p| p.status == "active")
    });
}

/// Waits for a migration's receipt.
///
/// # Panics
/// If it does not come.
#[must_use]
pub fn ended(world: &World, begun: &MigrationView) -> ReceiptView {
    until("a receipt", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().into_iter().find(|r| r.id == begun.id)
    })
}

/// The guest answers a VM.
///
/// # Panics
/// If it does not.
pub fn answers(world: &World, from: &str) {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let address: IpAddr = ADDRESS.parse().unwrap();
    assert_eq!(ask(&netns, address, PATIENCE).unwrap().as_deref(), Some(VM), "asked from {from}");
}
