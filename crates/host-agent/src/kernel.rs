//! What the agent asks of a kernel, and one that lives in memory.

use crate::taps::{Made, TapWish};
use ipnet::Ipv6Net;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};
use tenet_host::{Device, DeviceKind, Needs, Role};
use tenet_hostnet::{Netns, Waiting};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{Counters, DropKey, Event, Port};

/// Why the kernel did not do what was asked, in plain words with the cause.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(pub String);

/// Result of a kernel's part.
pub type Result<T> = std::result::Result<T, KernelError>;

/// The maps, programs and devices of a host.
///
/// All calls return at once (a few system calls each), so that the agent's loop makes them itself.
pub trait Kernel: Send {
    /// The hook in use: `tcx`, `clsact` or `none`.
    fn hook(&self) -> &'static str;

    /// All devices of the host, by name.
    fn devices(&mut self) -> Result<BTreeMap<String, Device>>;

    /// Takes notice of devices that will be asked for; whether the list of devices changed by it.
    fn foresee(&mut self, _devices: &mut dyn Iterator<Item = &str>) -> bool {
        false
    }

    /// Makes the taps of ports that are missing, takes over those of its own that are there.
    fn make_taps(&mut self, _wishes: &[TapWish]) -> Made {
        Made::default()
    }

    /// Removes the taps of its own that no port of this list has any more, once nobody has them open.
    fn drop_taps(&mut self, _wanted: &BTreeSet<&str>) -> Result<()> {
        Ok(())
    }

    /// Counters of STT's slow path: name, explanation, figure; none without one.
    fn slow_path(&self) -> Vec<(&'static str, &'static str, u64)> {
        Vec::new()
    }

    /// A descriptor of its own that becomes readable when devices change.
    fn link_fd(&self) -> Option<OwnedFd> {
        None
    }

    /// Takes note of what happened to devices; whether they must be listed again.
    fn links_changed(&mut self) -> bool {
        false
    }

    /// Whether a device is up and has carrier at this moment, if that can be told cheaply.
    fn carrier(&mut self, _ifindex: u32) -> Option<bool> {
        None
    }

    /// Whether the host's own routes lead to a provider address, if that can be told.
    fn leads_to(&mut self, _pa: std::net::IpAddr) -> Option<bool> {
        None
    }

    /// Puts back what else belongs there (pins of maps); what it had to put back, in plain words.
    fn restore(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The maps' content and the programs in place.
    fn read(&mut self) -> Result<(Image, BTreeMap<u32, Role>)>;

    /// Writes in this order, goes on after a refusal; the refusals.
    fn apply(&mut self, operations: &[Operation]) -> Vec<String>;

    /// What the maps hold at the operations' keys.
    fn read_back(&mut self, operations: &[Operation]) -> Result<Vec<Operation>>;

    /// Makes a device ready and puts the program on it.
    fn attach(&mut self, device: &str, ifindex: u32, role: Role) -> Result<()>;

    /// Takes the program off, or forgets it where the device is gone.
    fn detach(&mut self, ifindex: u32) -> Result<()>;

    /// Counters by interface.
    fn counters(&mut self) -> Result<BTreeMap<u32, Counters>>;

    /// Frames that an interface's VM has sent so far, if that can be told cheaply.
    fn sent(&mut self, _ifindex: u32) -> Option<u64> {
        None
    }

    /// Hands an Ethernet frame to whoever has a tap open: it waits in the tap's queue until it is read.
    fn give(&mut self, _ifindex: u32, _frame: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Drops by interface and reason.
    fn drops(&mut self) -> Result<BTreeMap<DropKey, u64>>;

    /// Frames that taps did not take, by interface: because nobody had them open, or their queues were full.
    fn unread(&mut self) -> Result<BTreeMap<u32, u64>> {
        Ok(BTreeMap::new())
    }

    /// Makes what the host's networks need beside maps and programs, puts right what is there, removes what is not
    /// needed any more. Called at each change and at each compare.
    fn provide(&mut self, _needs: &Needs) -> Vec<tenet_api::agent::UdpTunnel> {
        Vec::new()
    }

    /// Whether an offload of a device is on; `None`: it cannot be changed here, or cannot be read.
    fn feature(&mut self, _device: &str, _feature: &str) -> Option<bool> {
        None
    }

    /// Turns an offload of a device on or off, by its name in `ethtool -k`; whether that changed anything.
    fn set_feature(&mut self, _device: &str, _feature: &str, _on: bool) -> Result<bool> {
        Ok(false)
    }

    /// Whether a device was told to take all multicast frames; `None`: there is no such device, or it cannot be read.
    fn all_multicast(&mut self, _device: &str) -> Option<bool> {
        None
    }

    /// Lets a device take all multicast frames, or only those of groups that were joined.
    fn set_all_multicast(&mut self, _device: &str, _on: bool) -> Result<()> {
        Ok(())
    }

    /// Whether the host's own addresses and routes say that neighbours on a device reach a range without a router; none if
    /// they cannot be read.
    fn is_on_link(&mut self, _device: &str, _range: Ipv6Net) -> Option<bool> {
        Some(false)
    }

    /// How frames get from the uplinks into taps.
    fn receive(&mut self) -> ReceiveReport {
        ReceiveReport::default()
    }

    /// Opens the tap for probes, made as [`DeviceKind::Probe`] if it is not there: frames with virtio headers, never
    /// blocking. `None`: this kernel has none.
    fn probe_tap(&mut self) -> Option<Result<OwnedFd>> {
        None
    }

    /// The namespace whose devices these are; `None`: nobody can have a tap of it open.
    fn netns(&self) -> Option<Netns> {
        None
    }

    /// Makes the tap by which frames that waited for a VM are sent on ([`DeviceKind::Drain`]), or lets go of it; whether
    /// the list of devices changed by it.
    fn hold_drain(&mut self, _wanted: bool) -> Result<bool> {
        Ok(false)
    }

    /// Has the data plane decide once more about frames that a port's VM has not read, as the port stands now; those that
    /// were lost, by reason.
    fn send_on(&mut self, _port: &Port, _frames: &[Waiting]) -> Result<BTreeMap<&'static str, u64>> {
        Err(KernelError("this kernel has no taps".to_owned()))
    }

    /// A descriptor of its own that becomes readable when the data plane raised events, and not again before all of them
    /// are taken.
    fn event_fd(&self) -> Option<OwnedFd> {
        None
    }

    /// Takes events, oldest first: a part, if there are many; none once all are taken.
    fn events(&mut self) -> Vec<Event> {
        Vec::new()
    }
}

/// How frames get from the uplinks into taps.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReceiveReport {
    /// The way's name, or empty.
    pub way: String,
    /// Why it is this one.
    pub reason: String,
    /// All ways.
    pub ways: Vec<tenet_api::agent::ReceiveWay>,
}

/// Maps in memory, on a host where every device that is foreseen exists.
#[derive(Debug, Default)]
pub struct MemoryKernel {
    image: Image,
    attached: BTreeMap<u32, Role>,
    devices: BTreeMap<String, Device>,
    next: u32,
}

impl MemoryKernel {
    /// A host with uplinks of these names.
    #[must_use]
    pub fn new(uplinks: &[String], mtu: u32) -> Self {
        let mut kernel = Self { next: 1, ..Self::default() };
        for name in uplinks {
            kernel.add(name, mtu);
        }
        kernel
    }

    fn add(&mut self, name: &str, mtu: u32) {
        self.next += 1;
        let kind = DeviceKind::Plain;
        let device =
            Device { ifindex: self.next, carrier: true, mtu, kind, mac: tenet_tables::Mac::default() };
        self.devices.insert(name.to_owned(), device);
    }
}

impl Kernel for MemoryKernel {
    fn hook(&self) -> &'static str {
        "none"
    }

    fn devices(&mut self) -> Result<BTreeMap<String, Device>> {
        Ok(self.devices.clone())
    }

    fn foresee(&mut self, devices: &mut dyn Iterator<Item = &str>) -> bool {
        let before = self.devices.len();
        for name in devices {
            if !self.devices.contains_key(name) {
                self.add(name, 65535);
            }
        }
        before != self.devices.len()
    }

    fn read(&mut self) -> Result<(Image, BTreeMap<u32, Role>)> {
        Ok((self.image.clone(), self.attached.clone()))
    }

    fn apply(&mut self, operations: &[Operation]) -> Vec<String> {
        for operation in operations {
            self.image.apply(*operation);
        }
        Vec::new()
    }

    fn read_back(&mut self, operations: &[Operation]) -> Result<Vec<Operation>> {
        Ok(operations.iter().map(|o| at_key(&self.image, o)).collect())
    }

    fn attach(&mut self, _device: &str, ifindex: u32, role: Role) -> Result<()> {
        self.attached.insert(ifindex, role);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<()> {
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn counters(&mut self) -> Result<BTreeMap<u32, Counters>> {
        Ok(self.image.ports.keys().map(|i| (*i, Counters::default())).collect())
    }

    fn drops(&mut self) -> Result<BTreeMap<DropKey, u64>> {
        Ok(BTreeMap::new())
    }
}

/// What an image holds at an operation's key, as an operation.
#[must_use]
pub fn at_key(image: &Image, operation: &Operation) -> Operation {
    match *operation {
        Operation::Configure(_) => Operation::Configure(image.config.unwrap_or_default()),
        Operation::Peer(k, _) => Operation::Peer(k, image.peers.get(&k).copied()),
        Operation::Subnet(k, _) => Operation::Subnet(k, image.subnets.get(&k).copied()),
        Operation::Record(k, _) => Operation::Record(k, image.records.get(&k).copied()),
        Operation::Mac(k, _) => Operation::Mac(k, image.macs.get(&k).copied()),
        Operation::Pool(k, _) => Operation::Pool(k, image.pools.get(&k).copied()),
        Operation::Rewrite(k, _) => Operation::Rewrite(k, image.rewrites.get(&k).copied()),
        Operation::Flood(k, _) => Operation::Flood(k, image.flood.get(&k).copied()),
        Operation::Route(k, _) => Operation::Route(k, image.routes.get(&k).copied()),
        Operation::Port(k, _) => Operation::Port(k, image.ports.get(&k).copied()),
    }
}
