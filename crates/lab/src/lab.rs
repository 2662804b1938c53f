//! A running lab as others use it.

use crate::forward::{Forwarder, rest};
use crate::guest::Guest;
use crate::record::{HostRecord, LABS, Record, VmRecord};
use crate::{Error, Result, bpffs, up};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tenet_api::client::Client;
use tenet_hostnet::{Links, Netns};
use tenet_model::{Family, HostName, Method, Name, VmRef};

/// How long an agent or controller may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// A site file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteFile {
    /// Its name in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Which VMs are real guests ([`crate::guest`]) instead of namespaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Guests {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These.
    These(Vec<VmRef>),
}

impl Guests {
    /// Whether a VM is one.
    #[must_use]
    pub fn has(&self, vm: &VmRef) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(these) => these.contains(vm),
        }
    }
}

/// How a lab shall be.
#[derive(Clone)]
pub struct LabOptions {
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: SiteFile,
    /// The `tenet` binary.
    pub binary: PathBuf,
    /// Its folder; made with access for root alone.
    pub dir: PathBuf,
    /// Whether agents use clsact, as on kernels before 6.6.
    pub clsact: bool,
    /// The provider network's family: [`Family::V6`] gives every host an IPv6 address made of its IPv4 one.
    pub underlay: Option<Family>,
    /// The method of all networks that name none.
    pub method: Option<Method>,
    /// Whether hosts without ranges of rewrite addresses get some.
    pub rewrite_pools: bool,
    /// Largest packet of all VMs, instead of what their network's method leaves of the provider network's.
    pub vm_mtu: Option<u32>,
    /// Which VMs are real guests.
    pub guests: Guests,
    /// Whether each VM answers with its own name ([`crate::tool`]); guests always do.
    pub responder: bool,
    /// Told each step in plain words.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

impl LabOptions {
    /// The default site under a name.
    ///
    /// # Errors
    /// [`Error::Plan`] if the text is no name.
    pub fn new(name: &str, binary: impl Into<PathBuf>) -> Result<Self> {
        let name = Name::new(name).map_err(|e| Error::Plan(e.to_string()))?;
        Ok(Self {
            dir: Path::new(LABS).join(name.as_str()),
            name,
            site: SiteFile { name: "the default site".to_owned(), text: crate::DEFAULT_SITE.to_owned() },
            binary: binary.into(),
            clsact: false,
            underlay: None,
            method: None,
            rewrite_pools: false,
            vm_mtu: None,
            guests: Guests::None,
            responder: true,
            progress: Arc::new(|_| ()),
        })
    }
}

impl fmt::Debug for LabOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LabOptions").field("name", &self.name).field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A running lab. A lab that was brought up by this handle goes down with it, unless [`Lab::keep`] was called.
pub struct Lab {
    pub(crate) record: Record,
    pub(crate) owned: bool,
    pub(crate) progress: Arc<dyn Fn(&str) + Send + Sync>,
    forwarder: OnceLock<Forwarder>,
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("record", &self.record)
            .field("owned", &self.owned)
            .finish_non_exhaustive()
    }
}

/// A host of a lab.
#[derive(Debug)]
pub struct Host<'a> {
    record: &'a HostRecord,
    netns: Netns,
}

/// A VM of a lab.
#[derive(Debug)]
pub struct VmHandle<'a> {
    record: &'a VmRecord,
    netns: Netns,
}

impl Lab {
    pub(crate) fn new(record: Record, owned: bool, progress: Arc<dyn Fn(&str) + Send + Sync>) -> Self {
        Self { record, owned, progress, forwarder: OnceLock::new() }
    }

    /// Brings a lab up and waits until every host is proven to hold what is desired.
    ///
    /// # Errors
    /// [`Error::Exists`] if it is there already; whatever else stands in the way, after removing what was made.
    pub async fn up(options: LabOptions) -> Result<Self> {
        up::up(options).await
    }

    /// A lab that is there.
    ///
    /// # Errors
    /// [`Error::NotThere`] if it is not.
    pub fn open(name: &str) -> Result<Self> {
        let known = Name::new(name).map_err(|_| Error::NotThere { name: name.to_owned() })?;
        Self::open_in(&Path::new(LABS).join(known.as_str()), name)
    }

    /// A lab that is there, by its folder.
    pub fn open_in(dir: &Path, name: &str) -> Result<Self> {
        Ok(Self::new(Record::load(dir, name)?, false, Arc::new(|_| ())))
    }

    /// Leaves the lab running when the handle is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    /// Ends the lab's processes and removes all that it made.
    ///
    /// # Errors
    /// [`Error::Leftovers`] with everything that could not be removed; the rest is gone.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.remove()
    }

    /// What the lab is made of.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Result<Host<'_>> {
        let record = self.host_record(name)?;
        Ok(Host { record, netns: Netns::open(&record.netns)? })
    }

    /// A VM that is a namespace, by name; one without tenant is tenant `default`'s.
    ///
    /// # Errors
    /// [`Error::Plan`] if it is a real guest: that has no namespace ([`Lab::guest`], [`Lab::vm_record`]).
    pub fn vm(&self, name: &str) -> Result<VmHandle<'_>> {
        let record = self.vm_record(name)?;
        if record.real {
            return Err(Error::Plan(format!(
                "VM {} is a real guest, not a namespace: use `tenet lab exec` or `tenet lab console`",
                record.name
            )));
        }
        Ok(VmHandle { record, netns: Netns::open(&record.netns)? })
    }

    /// The running guest that a VM is; dropping the handle does it no harm.
    ///
    /// # Errors
    /// [`Error::Plan`] if the VM is a namespace, or a guest that is not started.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let record = self.vm_record(name)?;
        let guest = record.guest.clone().ok_or_else(|| {
            let why = if record.real { "was not started" } else { "is a namespace, not a guest" };
            Error::Plan(format!("VM {} {why}", record.name))
        })?;
        Ok(Guest::open(guest))
    }

    /// The namespace of the physical network's router.
    pub fn router(&self) -> Result<Netns> {
        Ok(Netns::open(&self.record.router)?)
    }

    /// The namespace of the controller.
    pub fn controller(&self) -> Result<Netns> {
        Ok(Netns::open(&self.record.controller.netns)?)
    }

    /// A client of the lab's controller that works from here.
    pub fn client(&self) -> Result<Client> {
        let refused = |source| Error::Api { action: "let us in".to_owned(), source };
        let (ca, token) = self.credentials()?;
        let port = match self.forwarder.get() {
            Some(forwarder) => forwarder.port(),
            None => {
                let new = Forwarder::start(self.controller()?, rest(self.record.controller.address))?;
                self.forwarder.get_or_init(|| new).port()
            }
        };
        Client::new(&format!("https://127.0.0.1:{port}"), &ca, &token).map_err(|e| refused(e.into()))
    }

    /// Cuts the controller off the physical network, or lets it back.
    pub fn connect_controller(&self, connected: bool) -> Result<()> {
        let links = Links::in_netns(&self.router()?)?;
        let device = "to.controller";
        if connected {
            links.set_up(device)?
        } else {
            links.set_down(device)?
        }
        Ok(())
    }

    /// Turns the provider network's large frames, checksum and segmentation offloads on or off, at both ends of every
    /// host's wire: off, the wire carries what a real one does.
    ///
    /// # Errors
    /// [`Error::Net`] if a device refuses.
    pub fn set_uplink_offloads(&self, on: bool) -> Result<()> {
        let router = Links::in_netns(&self.router()?)?;
        for host in &self.record.hosts {
            router.set_offloads(&host.router_device, on)?;
            Links::in_netns(&Netns::open(&host.netns)?)?.set_offloads(&host.uplink, on)?;
        }
        Ok(())
    }

    /// Sets the MTU of both ends of a host's wire.
    ///
    /// # Errors
    /// [`Error::Net`] if a device refuses.
    pub fn set_uplink_mtu(&self, host: &str, mtu: u32) -> Result<()> {
        let host = self.host_record(host)?;
        Links::in_netns(&self.router()?)?.set_mtu(&host.router_device, mtu)?;
        Ok(Links::in_netns(&Netns::open(&host.netns)?)?.set_mtu(&host.uplink, mtu)?)
    }

    /// Ends a host's agent by SIGKILL.
    pub fn kill_agent(&mut self, host: &str) -> Result<()> {
        match self.host_record(host)?.process {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts a host's agent again; it has its certificate since it joined.
    pub fn start_agent(&mut self, host: &str) -> Result<()> {
        let name = self.host_record(host)?.name.clone();
        up::start_agent(&mut self.record, &name, None)?;
        self.record.save()
    }

    /// Has a host's agent follow this of libvirt from its next start on, as `--libvirt` takes it; none: it is not told,
    /// and finds the host's own.
    pub fn follow_libvirt(&mut self, host: &str, wish: Option<&str>) -> Result<()> {
        let name = self.host_record(host)?.name.clone();
        if let Some(host) = self.record.hosts.iter_mut().find(|h| h.name == name) {
            host.libvirt = wish.map(str::to_owned);
        }
        self.record.save()
    }

    /// Ends the controller by SIGKILL.
    pub fn kill_controller(&mut self) -> Result<()> {
        match self.record.controller.process {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts the controller again and waits until it answers.
    pub async fn start_controller(&mut self) -> Result<()> {
        up::start_controller(&mut self.record)?;
        self.record.save()?;
        up::controller_answers(self).await
    }

    /// Waits until every host is connected and proven to hold what is desired.
    pub async fn in_sync(&self, patience: Duration) -> Result<()> {
        up::in_sync(self, patience).await
    }

    pub(crate) fn host_record(&self, name: &str) -> Result<&HostRecord> {
        let found = self.record.hosts.iter().find(|h| h.name.as_str() == name);
        found.ok_or_else(|| {
            self.unknown(format!("host {name}"), self.record.hosts.iter().map(|h| h.name.to_string()))
        })
    }

    /// What a VM is made of; one without tenant is tenant `default`'s.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none of this name.
    pub fn vm_record(&self, name: &str) -> Result<&VmRecord> {
        let full = if name.contains('/') {
            name.to_owned()
        } else {
            format!("{}/{name}", tenet_model::DEFAULT_TENANT)
        };
        let found = self.record.vms.iter().find(|v| v.name.to_string() == full);
        found.ok_or_else(|| {
            self.unknown(format!("VM {full}"), self.record.vms.iter().map(|v| v.name.to_string()))
        })
    }

    fn unknown(&self, what: String, known: impl Iterator<Item = String>) -> Error {
        let known: Vec<_> = known.collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::Unknown { lab: self.record.name.to_string(), what, known }
    }

    /// CA and admin token, from the controller's own file.
    pub(crate) fn credentials(&self) -> Result<(String, String)> {
        let dir = &self.record.controller.state_dir;
        let path = dir.join("admin.json");
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))
        };
        let admin: tenet_api::client::AdminFile = serde_json::from_str(&read(&path)?)
            .map_err(|source| Error::Record { path: path.clone(), source })?;
        Ok((read(&dir.join(&admin.ca))?, admin.token))
    }

    fn remove(&mut self) -> Result<()> {
        let mut left = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(e) = result {
                left.push(chain(&e));
            }
        };
        for process in self.record.processes() {
            note(process.end(PATIENCE));
        }
        let there: BTreeSet<String> = Netns::list().unwrap_or_default().into_iter().collect();
        // Agents that had ports on taps leave their hubs for the next agent, as the programs stay at work.
        let hubs: Vec<String> = self.record.hosts.iter().map(HostRecord::hub).collect();
        let all = self.record.namespaces().chain(hubs.iter().map(String::as_str));
        for name in all.filter(|n| there.contains(*n)) {
            note(Netns::delete(name).map_err(Error::from));
        }
        note(bpffs::remove(&self.record.bpffs));
        if left.is_empty() { self.record.remove() } else { Err(Error::Leftovers(left)) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(e) = self.remove()
        {
            (self.progress)(&chain(&e));
        }
    }
}

impl Host<'_> {
    /// What it is made of.
    #[must_use]
    pub fn record(&self) -> &HostRecord {
        self.record
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A command that will run on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.netns.command(program)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &HostName {
        &self.record.name
    }
}

impl VmHandle<'_> {
    /// What it is made of.
    #[must_use]
    pub fn record(&self) -> &VmRecord {
        self.record
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.netns.command(program)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &VmRef {
        &self.record.name
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.record.address()
    }

    /// Its first address of a family.
    #[must_use]
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        self.record.address_of(family)
    }

    /// The host that its first port lives on.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        self.record.host()
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
