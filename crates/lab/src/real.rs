//! A lab's VMs that are real guests: their taps, their start, and their moves.

use crate::guest::{Guest, GuestOptions, GuestRecord, Image, Nic, Qmp, crash_in, missing};
use crate::migrate::{Moved, done, prepare};
use crate::record::{HostRecord, PortRecord, Record, VmRecord};
use crate::up::{because, private_dir, refused, wait};
use crate::{Error, Lab, Result};
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenet_api::client::Client;
use tenet_api::rest::{Migrate, MigrationView, ReceiptView};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_model::{Through, VmRef};

/// How long a guest may take to be up: seconds, but many may start at once on a small machine.
const UP: Duration = Duration::from_secs(120);
/// How long an agent may take to make a tap.
const TAP: Duration = Duration::from_secs(20);
/// How long QEMU may take to begin once all is prepared.
const BEGIN: Duration = Duration::from_secs(20);
/// How long its memory may take to move.
const MOVE: Duration = Duration::from_secs(60);
/// How long the destination may take to run the guest once all of it is there.
const RESUME: Duration = Duration::from_secs(10);

/// The guests' image, if the lab has guests.
pub async fn image(record: &Record, progress: &Arc<dyn Fn(&str) + Send + Sync>) -> Result<Option<Image>> {
    if !record.vms.iter().any(|v| v.real) {
        return Ok(None);
    }
    if let Some(why) = missing() {
        return Err(Error::Plan(format!("real guests cannot run here: {why}")));
    }
    progress("the guests' image (the first time it is fetched and built)");
    blocking(Image::build).await.map(Some)
}

/// Makes the tap of a port whose device the site names, on a host: whoever names one brings it.
pub fn tap(host: &Links, port: &PortRecord) -> Result<()> {
    host.add_tap(&port.device, TapOptions::default())?;
    host.quiet(&port.device)?;
    host.set_mtu(&port.device, port.mtu)?;
    Ok(host.set_up(&port.device)?)
}

/// Waits until a host's agent has the port's tap ready, as everybody must before a hypervisor opens it. The largest
/// packet that fits it.
async fn tap_ready(client: &Client, host: &HostRecord, port: &PortRecord) -> Result<u32> {
    let mut last = String::new();
    let check = async || -> Result<Option<u32>> {
        let status = client.status().await.map_err(|e| refused("say its status", e))?;
        let mut ports = status.hosts.into_iter().filter(|h| h.name == host.name).flat_map(|h| h.ports);
        let Some(view) = ports.find(|p| p.port == port.name) else { return Ok(None) };
        last = view.detail;
        Ok((view.present && view.mtu > 0).then_some(view.mtu))
    };
    let what = format!("the agent of host {} had no tap for port {}", host.name, port.name);
    wait(&what, TAP, &host.log, host.process, check).await.map_err(|e| because(e, &last))
}

/// Starts all guests that are on a host.
pub async fn boot_all(lab: &mut Lab) -> Result<()> {
    let Some(image) = lab.record.image.clone() else { return Ok(()) };
    let client = lab.client()?;
    for at in 0..lab.record.vms.len() {
        let Some(mut vm) = lab.record.vms.get(at).filter(|v| v.real).cloned() else { continue };
        let Some(host) = vm.host() else { continue };
        let host = lab.host_record(host.as_str())?;
        for port in vm.ports.iter_mut().filter(|p| p.tap && p.host.is_some()) {
            port.mtu = port.mtu.min(tap_ready(&client, host, port).await?);
        }
        let options = options(&lab.record, &vm, host)?;
        let mut guest = Guest::boot(&image, &Netns::open(&host.netns)?, options)?;
        guest.keep();
        vm.guest = Some(guest.record().clone());
        if let Some(recorded) = lab.record.vms.get_mut(at) {
            *recorded = vm;
        }
        lab.record.save()?;
    }
    Ok(())
}

/// Waits until all guests are up.
pub async fn all_up(lab: &Lab) -> Result<()> {
    let guests: Vec<GuestRecord> = lab.record.vms.iter().filter_map(|v| v.guest.clone()).collect();
    if !guests.is_empty() {
        (lab.progress)("guests to be up");
    }
    for guest in guests {
        blocking(move || Guest::open(guest).wait_up(UP)).await?;
    }
    Ok(())
}

fn options(record: &Record, vm: &VmRecord, host: &HostRecord) -> Result<GuestOptions> {
    let file = format!("{}.{}", vm.name.tenant, vm.name.vm);
    let monitors = host.state_dir.join("qmp");
    private_dir(&monitors)?;
    let mut options =
        GuestOptions::new(&vm.name.to_string(), record.dir.join("vms").join(format!("{file}.{}", host.name)));
    private_dir(&options.dir)?;
    options.monitor = Some(monitors.join(format!("{file}.sock")));
    for port in vm.ports.iter().filter(|p| p.host.is_some()) {
        let mac = port.mac.ok_or_else(|| Error::Plan(format!("port {} has no MAC on record", port.name)))?;
        let mut nic = Nic::new(&port.device, mac, port.mtu);
        nic.link.clone_from(&port.link);
        nic.addresses = port.addresses.iter().map(|ip| (*ip, port.prefix_len(*ip))).collect();
        nic.gateways = port.prefixes.iter().filter_map(|p| p.gateway).collect();
        options.nics.push(nic);
    }
    Ok(options)
}

/// A move under way.
struct Moving {
    vm: VmRef,
    ports: Vec<PortRecord>,
    source: GuestRecord,
    source_host: HostRecord,
    target_host: HostRecord,
}

/// Moves a guest to another host while it runs: a second QEMU takes it in there, the memory goes over the provider
/// network, the first QEMU is ended.
pub async fn migrate(lab: &mut Lab, vm: &str, to: &str) -> Result<Moved> {
    let _lock = Record::lock(&lab.record.dir)?;
    lab.record = Record::load(&lab.record.dir, lab.record.name.as_str())?;
    let record = lab.vm_record(vm)?.clone();
    let target_host = lab.host_record(to)?.clone();
    let (Some(from), Some(source)) = (record.host(), record.guest.clone()) else {
        return Err(Error::Plan(format!("VM {} is on no host: attach it first", record.name)));
    };
    if *from == target_host.name {
        return Err(Error::Plan(format!("VM {} is on host {to} already", record.name)));
    }
    let source_host = lab.host_record(from.as_str())?.clone();
    let ports = record.ports.iter().filter(|p| p.host.is_some()).cloned().collect();
    let moving = Moving { vm: record.name.clone(), ports, source, source_host, target_host };
    match moving.run(lab, &record).await {
        Ok(moved) => Ok(moved),
        Err(e) => {
            moving.undo(lab).await;
            Err(e)
        }
    }
}

impl Lab {
    /// What the kernel of one of the lab's guests said when it crashed, with the guest's name
    /// ([`crate::guest::crash_in`]). Looks for a while: a kernel that dies takes its time to say so.
    #[must_use]
    pub fn crashed(&self, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            let guests = self.record.vms.iter().flat_map(|vm| [&vm.guest, &vm.arriving]).flatten();
            let mut said = guests.filter_map(|record| {
                let log = Guest::open(record.clone()).console_log();
                crash_in(&log).map(|line| format!("{}: {line}", record.name))
            });
            if let Some(said) = said.next() {
                return Some(said);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Moving {
    async fn run(&self, lab: &mut Lab, record: &VmRecord) -> Result<Moved> {
        let client = lab.client()?;
        let target = Netns::open(&self.target_host.netns)?;
        let links = Links::in_netns(&target)?;
        let named = || self.ports.iter().filter(|p| !p.tap);
        for port in named() {
            tap(&links, port)?;
        }
        let image = lab
            .record
            .image
            .clone()
            .ok_or_else(|| Error::Plan("the lab has no image on record".to_owned()))?;
        // The destination's agent makes the tap when it hears of the move, QEMU needs it to start, and the source's
        // agent begins as soon as all is prepared: so it is us who listen, and QEMU gets the connection.
        let listener = listen(&target, self.target_host.pa)?;
        let address = listener.local_addr().map_err(Error::io("listen for the guest"))?;
        let uri = Some(format!("tcp:{address}"));

        let begin = Instant::now();
        let devices = named().map(|p| (p.name.port.clone(), p.device.clone())).collect();
        // The source's agent has QEMU move the memory, as for the users of `tenet vm migrate --qmp`.
        let to = self.target_host.name.clone();
        let order = Migrate { to, devices, through: Through::Qmp, uri, post_copy: false };
        let migration: MigrationView = prepare(&client, &self.vm, &order).await?;
        let prepared = begin.elapsed();
        for port in self.ports.iter().filter(|p| p.tap) {
            tap_ready(&client, &self.target_host, port).await?;
        }
        let stream = self.begun(&client, &migration, &listener).await?;
        let options = options(&lab.record, record, &self.target_host)?;
        let mut arriving = Guest::receive(&image, &target, options, stream)?;
        arriving.keep();
        let arrived = arriving.record().clone();
        self.note(lab, |vm| vm.arriving = Some(arrived.clone()))?;
        let (source, target) = (self.source.clone(), arrived.clone());
        let pause = blocking(move || carry(&source, &target)).await?;
        let switched = Instant::now();
        let receipt = done(&client, &self.vm, &migration).await?;
        if !receipt.moved {
            // The guest has left; that its network did not follow is for the reader to know.
            return Err(self.rolled_back(&receipt));
        }
        let settle = switched.elapsed();
        self.source.end()?;
        let links = Links::in_netns(&Netns::open(&self.source_host.netns)?)?;
        for port in named() {
            links.delete_link(&port.device)?;
        }
        self.note(lab, |vm| {
            vm.guest = vm.arriving.take();
            for port in vm.ports.iter_mut().filter(|p| p.host.is_some()) {
                port.host = Some(self.target_host.name.clone());
            }
        })?;
        Ok(Moved { receipt, prepare: prepared, pause, settle })
    }

    /// The connection by which the source's QEMU sends the guest.
    async fn begun(
        &self,
        client: &Client,
        migration: &MigrationView,
        listener: &TcpListener,
    ) -> Result<TcpStream> {
        let begin = Instant::now();
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(Error::io("take the guest in")(e)),
            }
            let receipts = client.receipts().await.unwrap_or_default();
            if let Some(receipt) = receipts.iter().find(|r| r.id == migration.id) {
                return Err(self.rolled_back(receipt));
            }
            if begin.elapsed() > crate::patience(BEGIN) {
                return Err(Error::Plan(format!(
                    "QEMU of VM {} did not begin to move it within {} s; look at the log of the agent of host {}: {}",
                    self.vm,
                    crate::patience(BEGIN).as_secs(),
                    self.source_host.name,
                    self.source_host.log.display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn rolled_back(&self, receipt: &ReceiptView) -> Error {
        let reason = receipt.reason.as_deref().unwrap_or("the controller gave no reason");
        Error::Plan(format!("VM {} was rolled back to host {}: {reason}", self.vm, receipt.from))
    }

    /// Puts back what can be: the guest runs on at the source unless it was ended there.
    async fn undo(&self, lab: &mut Lab) {
        if !self.source.process.runs() {
            // The guest is at the destination, whatever its network thinks: ending it there would lose it.
            _ = self.note(lab, |vm| vm.guest = vm.arriving.take());
            return;
        }
        if let Ok(client) = lab.client() {
            // It may not have begun, or be rolled back already.
            _ = client.migrate_cancel(&self.vm).await;
        }
        if let Ok(vm) = lab.vm_record(&self.vm.to_string())
            && let Some(arriving) = vm.arriving.clone()
        {
            _ = arriving.end();
        }
        if let Ok(links) = Netns::open(&self.target_host.netns).and_then(|n| Links::in_netns(&n)) {
            for port in self.ports.iter().filter(|p| !p.tap) {
                _ = links.delete_link(&port.device);
            }
        }
        _ = self.note(lab, |vm| vm.arriving = None);
    }

    fn note(&self, lab: &mut Lab, change: impl FnOnce(&mut VmRecord)) -> Result<()> {
        if let Some(vm) = lab.record.vms.iter_mut().find(|v| v.name == self.vm) {
            change(vm);
        }
        lab.record.save()
    }
}

/// Waits until the guest has been carried over, and ends the emptied QEMU at once: its tap then has no carrier, which
/// tells the source's agent too. How long the guest stood still.
fn carry(source: &GuestRecord, target: &GuestRecord) -> Result<Duration> {
    let (source, target) = (Guest::open(source.clone()), Guest::open(target.clone()));
    let (mut leaving, mut arriving) = (source.qmp()?, target.qmp()?);
    arriving.migration_events()?;
    leaving.wait_migrated(MOVE)?;
    let stopped = leaving.wait_event("STOP", Duration::ZERO)?;
    source.record().process.kill()?;
    let resumed = arriving.wait_event("RESUME", RESUME)?;
    let (Some(stopped), Some(resumed)) = (stopped, resumed) else {
        let name = target.name();
        return Err(Error::Plan(format!(
            "guest {name} does not run on its new host within {} s",
            RESUME.as_secs()
        )));
    };
    Ok(Qmp::time_of(&resumed).saturating_sub(Qmp::time_of(&stopped)))
}

/// Listens on a free port of a host's provider address.
fn listen(netns: &Netns, pa: IpAddr) -> Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind((pa, 0))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    netns.run(bind)?.map_err(Error::io(format!("listen at {pa}")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let broke = |_| Error::io("wait for a guest")(io::Error::other("the thread broke off"));
    tokio::task::spawn_blocking(work).await.map_err(broke)?
}
