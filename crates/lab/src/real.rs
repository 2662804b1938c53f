//! A lab's VMs that are real guests: their taps, their start, and their moves.

use crate::guest::{Guest, GuestOptions, GuestRecord, Image, Nic, Qmp, missing};
use crate::migrate::{Moved, done, prepare};
use crate::record::{HostRecord, PortRecord, Record, VmRecord};
use crate::up::private_dir;
use crate::{Error, Lab, Result};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenet_api::rest::{Migrate, MigrationView};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_model::{Through, VmRef};

/// How long a guest may take to be up: seconds, but many may start at once on a small machine.
const UP: Duration = Duration::from_secs(120);
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

/// Makes the tap of a port on a host.
pub fn tap(host: &Links, port: &PortRecord) -> Result<()> {
    host.add_tap(&port.device, TapOptions::default())?;
    host.quiet(&port.device)?;
    host.set_mtu(&port.device, port.mtu)?;
    Ok(host.set_up(&port.device)?)
}

/// Starts all guests that are on a host.
pub fn boot_all(lab: &mut Lab) -> Result<()> {
    let Some(image) = lab.record.image.clone() else { return Ok(()) };
    for at in 0..lab.record.vms.len() {
        let Some(vm) = lab.record.vms.get(at).filter(|v| v.real) else { continue };
        let Some(host) = vm.host() else { continue };
        let host = lab.host_record(host.as_str())?;
        let options = options(&lab.record, vm, host, None)?;
        let mut guest = Guest::boot(&image, &Netns::open(&host.netns)?, options)?;
        guest.keep();
        if let Some(vm) = lab.record.vms.get_mut(at) {
            vm.guest = Some(guest.record().clone());
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

fn options(
    record: &Record,
    vm: &VmRecord,
    host: &HostRecord,
    incoming: Option<String>,
) -> Result<GuestOptions> {
    let file = format!("{}.{}", vm.name.tenant, vm.name.vm);
    let monitors = host.state_dir.join("qmp");
    private_dir(&monitors)?;
    let mut options =
        GuestOptions::new(&vm.name.to_string(), record.dir.join("vms").join(format!("{file}.{}", host.name)));
    private_dir(&options.dir)?;
    options.monitor = Some(monitors.join(format!("{file}.sock")));
    options.incoming = incoming;
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

/// Moves a guest to another host while it runs: a second QEMU waits there, the memory goes over the provider network,
/// the first QEMU is ended.
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

impl Moving {
    async fn run(&self, lab: &mut Lab, record: &VmRecord) -> Result<Moved> {
        let client = lab.client()?;
        let target = Netns::open(&self.target_host.netns)?;
        let links = Links::in_netns(&target)?;
        for port in &self.ports {
            tap(&links, port)?;
        }
        let uri = free_uri(&target, self.target_host.pa)?;
        let options = options(&lab.record, record, &self.target_host, Some(uri.clone()))?;
        let image = lab
            .record
            .image
            .clone()
            .ok_or_else(|| Error::Plan("the lab has no image on record".to_owned()))?;
        let mut arriving = Guest::boot(&image, &target, options)?;
        arriving.keep();
        let arrived = arriving.record().clone();
        self.note(lab, |vm| vm.arriving = Some(arrived.clone()))?;
        // Once its monitor answers it listens for the memory too; the agent begins as soon as all is prepared.
        let listening = arrived.clone();
        blocking(move || Guest::open(listening).qmp().map(drop)).await?;

        let begin = Instant::now();
        let devices = self.ports.iter().map(|p| (p.name.port.clone(), p.device.clone())).collect();
        // The source's agent has QEMU move the memory, as for the users of `tenet vm migrate --qmp`.
        let order =
            Migrate { to: self.target_host.name.clone(), devices, through: Through::Qmp, uri: Some(uri) };
        let migration: MigrationView = prepare(&client, &self.vm, &order).await?;
        let prepared = begin.elapsed();
        let (source, target) = (self.source.clone(), arrived.clone());
        let pause = blocking(move || carry(&source, &target)).await?;
        let switched = Instant::now();
        let receipt = done(&client, &self.vm, &migration).await?;
        if !receipt.moved {
            // The guest has left; that its network did not follow is for the reader to know.
            let reason = receipt.reason.clone().unwrap_or_else(|| "the controller gave no reason".to_owned());
            return Err(Error::Plan(format!(
                "VM {} was rolled back to host {}: {reason}",
                self.vm, receipt.from
            )));
        }
        let settle = switched.elapsed();
        self.source.end()?;
        let links = Links::in_netns(&Netns::open(&self.source_host.netns)?)?;
        for port in &self.ports {
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
            for port in &self.ports {
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

/// Where a QEMU can wait for a guest: a port that is free at this moment.
fn free_uri(netns: &Netns, pa: IpAddr) -> Result<String> {
    let bind = || TcpListener::bind((pa, 0)).and_then(|l| l.local_addr());
    let address = netns.run(bind)?.map_err(Error::io(format!("find a free port at {pa}")))?;
    Ok(format!("tcp:{address}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let broke = |_| Error::io("wait for a guest")(io::Error::other("the thread broke off"));
    tokio::task::spawn_blocking(work).await.map_err(broke)?
}
