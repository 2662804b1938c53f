//! A real guest whose migration something is done to, and the QEMUs that wait for it.

use crate::{World, block_on, until};
use std::cell::RefCell;
use std::net::{IpAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tenet_api::rest::{ChangeItem, ChangesRequest, Migrate, MigrationView, ReceiptView, Spec};
use tenet_hostnet::{Links, TapOptions};
use tenet_lab::guest::{Guest, GuestOptions, Image, Nic, crash_in};
use tenet_lab::tool::ask;
use tenet_model::{PortRef, Through, VmRef, tap_name};

/// The guest's name.
pub const VM: &str = "contoso/real";
/// Its address, in the subnet `contoso/prod/data` of [`crate::THREE_HOSTS`].
pub const ADDRESS: &str = "10.1.1.50";

/// Each has a folder of its own.
static STARTED: AtomicUsize = AtomicUsize::new(0);
const MAC: &str = "52:54:00:00:00:50";
/// What an emulated guest may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A guest's memory is damaged by an emulated move now and then on a busy machine, on any network: its kernel says so on
/// the console, and the test begins anew. Nothing else is forgiven.
const ATTEMPTS: usize = 4;

/// Looks a while: a kernel that dies takes its time to say so.
fn crash_within(time: Duration, mut console: impl FnMut() -> String) -> Option<String> {
    let end = Instant::now() + time;
    loop {
        let found = crash_in(&console()).map(ToOwned::to_owned);
        if found.is_some() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a test until its guests' kernels survive it; an error is what one said when it crashed.
///
/// # Panics
/// If they never do.
pub fn surviving(mut test: impl FnMut() -> Result<(), String>) {
    for attempt in 1..=ATTEMPTS {
        match test() {
            Ok(()) => return,
            Err(said) => println!("attempt {attempt}: the guest's kernel crashed: {said}"),
        }
    }
    panic!("the guest's kernel crashed {ATTEMPTS} times");
}

/// Listens to the consoles of guests for [`surviving`].
#[derive(Clone, Debug, Default)]
pub struct Consoles(Rc<RefCell<Vec<PathBuf>>>, Rc<RefCell<Option<String>>>);

impl Consoles {
    /// Runs a test that stops at the first surprise, which is forgiven where a guest's kernel has crashed.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attempt(test: impl FnOnce(&Self)) -> Result<(), String> {
        let consoles = Self::default();
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&consoles))) else { return Ok(()) };
        match consoles.1.take() {
            Some(said) => Err(said),
            None => resume_unwind(panic),
        }
    }

    /// Listens to this one, too.
    pub fn hear(&self, guest: &Guest) {
        self.0.borrow_mut().push(guest.record().dir.join("console.log"));
    }

    /// To be dropped before the lab is, which takes the logs with it.
    #[must_use]
    pub fn ear(&self) -> Ear {
        Ear(self.clone())
    }
}

/// Reads the consoles when a test fails.
#[derive(Debug)]
pub struct Ear(Consoles);

impl Drop for Ear {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Consoles(logs, found) = &self.0;
            let said = || {
                let logs = logs.borrow();
                logs.iter()
                    .map(|l| String::from_utf8_lossy(&std::fs::read(l).unwrap_or_default()).into_owned())
                    .collect()
            };
            *found.borrow_mut() = crash_within(Duration::from_secs(5), said);
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
