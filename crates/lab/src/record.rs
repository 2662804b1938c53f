//! The record of a lab: everything that it makes, written before it is made, so that another process can use the
//! lab or remove what a crashed one left.

use crate::guest::{GuestRecord, Image};
use crate::process::Process;
use crate::{Error, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use tenet_model::{Family, HostName, Mac, Name, PortRef, VmRef};

/// Where labs are recorded; in memory, as labs do not survive a restart of the machine.
pub const LABS: &str = "/run/tenet-lab";
const FILE: &str = "lab.json";

/// All of a lab.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The lab's name.
    pub name: Name,
    /// Keeps the namespaces of two labs apart.
    pub id: String,
    /// Its folder: this record, the processes' state and logs.
    pub dir: PathBuf,
    /// Its folder in the BPF file system.
    pub bpffs: PathBuf,
    /// The `tenet` binary that it runs.
    pub binary: PathBuf,
    /// Whether the agents are told to use clsact, as on kernels before 6.6.
    pub clsact: bool,
    /// Whether everything came up.
    pub complete: bool,
    /// The namespace that routes between the provider subnets.
    pub router: String,
    /// The provider subnets.
    pub segments: Vec<Segment>,
    /// The controller.
    pub controller: ControllerRecord,
    /// The hosts.
    pub hosts: Vec<HostRecord>,
    /// The VMs.
    pub vms: Vec<VmRecord>,
    /// What its guests run, if it has any.
    #[serde(default)]
    pub image: Option<Image>,
    /// The process that answers for all VMs that are namespaces.
    pub responder: Option<Process>,
}

/// One provider subnet and the router's device in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// The router's address.
    pub gateway: IpAddr,
    /// The router's address of the other family, where the provider network has both.
    pub other_gateway: Option<IpAddr>,
    /// Length of the prefix.
    pub prefix_len: u8,
    /// The router's device: a veth for one host, a bridge for several.
    pub device: String,
    /// Whether it is a bridge.
    pub bridge: bool,
}

/// The controller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ControllerRecord {
    /// Its namespace.
    pub netns: String,
    /// Its address on the provider network.
    pub address: IpAddr,
    /// The router's address on its side.
    pub gateway: IpAddr,
    /// Its state folder.
    pub state_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its process, if it was started.
    pub process: Option<Process>,
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its name.
    pub name: HostName,
    /// Its namespace.
    pub netns: String,
    /// Its provider address.
    pub pa: IpAddr,
    /// Its address of the other family, where the provider network has both.
    pub other: Option<IpAddr>,
    /// Its provider subnet, by its place in [`Record::segments`].
    pub segment: usize,
    /// Its uplink.
    pub uplink: String,
    /// The router's end of its uplink.
    pub router_device: String,
    /// Its agent's state folder.
    pub state_dir: PathBuf,
    /// Its agent's folder in the BPF file system.
    pub bpffs: PathBuf,
    /// Its agent's log.
    pub log: PathBuf,
    /// Its agent's process, if it was started.
    pub process: Option<Process>,
    /// What its agent is told to follow of libvirt (`--libvirt`); at first nothing, so that it finds the host's own.
    #[serde(default)]
    pub libvirt: Option<String>,
}

impl HostRecord {
    /// Where its agent takes requests of what runs on the host.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("agent.sock")
    }

    /// Where a libvirt daemon of this host would have its sockets; the lab starts none.
    #[must_use]
    pub fn libvirt_dir(&self) -> PathBuf {
        self.state_dir.join("libvirt")
    }

    /// The URI of a libvirt daemon of this host.
    #[must_use]
    pub fn libvirt_uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.libvirt_dir().join("libvirt-sock").display())
    }

    /// The namespace that its agent makes for the way of large frames to taps; it is there if a port is on one.
    pub(crate) fn hub(&self) -> String {
        let path = self.bpffs.strip_prefix(crate::bpffs::BPFFS).unwrap_or(&self.bpffs);
        format!("{}-hub", path.to_string_lossy().trim_matches('/').replace('/', "-"))
    }
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its name.
    pub name: VmRef,
    /// Its namespace; a guest has none.
    pub netns: String,
    /// Whether it is a real guest instead of a namespace.
    #[serde(default)]
    pub real: bool,
    /// The guest, once it was started.
    #[serde(default)]
    pub guest: Option<GuestRecord>,
    /// The guest on the destination while it moves.
    #[serde(default)]
    pub arriving: Option<GuestRecord>,
    /// Its ports.
    pub ports: Vec<PortRecord>,
}

impl VmRecord {
    /// Its first address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.ports.iter().flat_map(|p| &p.addresses).next().copied()
    }

    /// Its first address of a family.
    #[must_use]
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        self.ports.iter().find_map(|p| p.address(family))
    }

    /// The host that its first port lives on.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        self.ports.first().and_then(|p| p.host.as_ref())
    }
}

/// A port of a VM; what the site leaves open is filled in once the controller has decided.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRecord {
    /// Its name.
    pub name: PortRef,
    /// Its device in the VM.
    pub link: String,
    /// Its device on the host.
    pub device: String,
    /// Whether that is the tap which the host's agent makes, owns and removes.
    #[serde(default)]
    pub tap: bool,
    /// The host it lives on, if it is attached.
    pub host: Option<HostName>,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its subnet's prefixes.
    pub prefixes: Vec<PrefixRecord>,
    /// Largest packet that it may send.
    pub mtu: u32,
}

/// A prefix of a port's subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrefixRecord {
    /// The prefix.
    pub prefix: IpNet,
    /// The gateway in it.
    pub gateway: Option<IpAddr>,
}

impl PortRecord {
    /// Length of the prefix that one of its addresses is in; the whole address, if it is in none.
    #[must_use]
    pub fn prefix_len(&self, address: IpAddr) -> u8 {
        let found = self.prefixes.iter().find(|p| p.prefix.contains(&address));
        found.map_or(if address.is_ipv4() { 32 } else { 128 }, |p| p.prefix.prefix_len())
    }

    /// Its gateway of a family.
    #[must_use]
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        self.prefixes.iter().filter_map(|p| p.gateway).find(|g| Family::of(g) == family)
    }

    /// Its first address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(a) == family)
    }
}

impl Record {
    /// The record of a lab that is there.
    ///
    /// # Errors
    /// [`Error::NotThere`] if there is none.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Record { path, source }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(Error::NotThere { name: name.to_owned() })
            }
            Err(e) => Err(Error::io(format!("read {}", path.display()))(e)),
        }
    }

    /// Makes the lab's folder and writes the first record.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a lab already.
    pub fn create(&self) -> Result<()> {
        let action = format!("make {}", self.dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(Error::io(action))?;
        if self.dir.join(FILE).exists() {
            return Err(Error::Exists { name: self.name.to_string() });
        }
        self.save()
    }

    /// Writes the record; a reader sees the old or the new one, never a part.
    pub fn save(&self) -> Result<()> {
        let path = self.dir.join(FILE);
        let new = self.dir.join(format!("{FILE}.new"));
        let bytes =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Record { path: path.clone(), source })?;
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            fs::rename(&new, &path)
        };
        write().map_err(Error::io(format!("write {}", path.display())))
    }

    /// Keeps other processes from changing the lab until the handle is dropped.
    pub fn lock(dir: &Path) -> Result<File> {
        let action = format!("lock {}", dir.display());
        let lock = || {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join("lock"))?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(Error::io(action))
    }

    /// Removes the lab's folder.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.dir.display()))(e))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Names of all labs that are there.
    #[must_use]
    pub fn names() -> Vec<String> {
        let Ok(entries) = fs::read_dir(LABS) else { return Vec::new() };
        let mut names: Vec<_> = entries
            .filter_map(std::result::Result::ok)
            .filter(|e| e.path().join(FILE).exists())
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// All namespaces of the lab.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let hosts = self.hosts.iter().map(|h| h.netns.as_str());
        let vms = self.vms.iter().filter(|v| !v.real).map(|v| v.netns.as_str());
        vms.chain(hosts).chain([self.controller.netns.as_str(), self.router.as_str()])
    }

    /// All processes of the lab, those first that must end first.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        let agents = self.hosts.iter().filter_map(|h| h.process);
        let guests = self.vms.iter().flat_map(|v| [&v.guest, &v.arriving]).flatten().map(|g| g.process);
        guests.chain(self.responder).chain(agents).chain(self.controller.process)
    }
}
