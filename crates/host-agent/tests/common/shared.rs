//! A kernel in memory that outlives its agent and can be tampered with.

use std::collections::{BTreeMap, VecDeque};
use std::io::{PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tenet_host::{Device, DeviceKind, Role};
use tenet_host_agent::{Kernel, KernelError, MemoryKernel};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{Counters, DropKey, DropReason, Event};

/// Events that the agent gets in one go.
const AT_ONCE: usize = 2;

type Result<T> = std::result::Result<T, KernelError>;

/// The kernel; clones are the same.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    memory: Mutex<MemoryKernel>,
    drops: Mutex<BTreeMap<DropKey, u64>>,
    /// Whether the devices of ports are taps that somebody has open.
    taps: AtomicBool,
    given: Mutex<Vec<u32>>,
    events: Mutex<VecDeque<Event>>,
    bell: (PipeReader, PipeWriter),
}

impl Shared {
    pub fn new() -> Self {
        let memory = MemoryKernel::new(&["eth0".to_owned()], 1500);
        let drops = [(DropKey { ifindex: 3, reason: DropReason::SpoofedCa as u32 }, 5)];
        Self(Arc::new(Inner {
            memory: Mutex::new(memory),
            drops: Mutex::new(drops.into()),
            taps: AtomicBool::new(false),
            given: Mutex::default(),
            events: Mutex::default(),
            bell: std::io::pipe().unwrap(),
        }))
    }

    /// The maps.
    pub fn memory(&self) -> MutexGuard<'_, MemoryKernel> {
        self.0.memory.lock().unwrap()
    }

    pub fn image(&self) -> Image {
        self.memory().read().unwrap().0
    }

    /// The uplink has dropped so many frames for a reason.
    pub fn drop_at_uplink(&self, reason: DropReason, frames: u64) {
        let ifindex = self.memory().devices().unwrap()["eth0"].ifindex;
        self.0.drops.lock().unwrap().insert(DropKey { ifindex, reason: reason as u32 }, frames);
    }

    /// The devices of ports are taps, and hypervisors have them open.
    pub fn open_taps(&self) {
        self.0.taps.store(true, Ordering::SeqCst);
    }

    /// Taps whose readers the agent has given frames.
    pub fn given(&self) -> Vec<u32> {
        self.0.given.lock().unwrap().clone()
    }

    /// The data plane raises events. As the kernel's ring does, it says so once, and not again before all are taken.
    pub fn raise(&self, events: impl IntoIterator<Item = Event>) {
        let mut waiting = self.0.events.lock().unwrap();
        if waiting.is_empty() {
            (&self.0.bell.1).write_all(b"!").unwrap();
        }
        waiting.extend(events);
    }
}

impl Kernel for Shared {
    fn hook(&self) -> &'static str {
        "none"
    }

    fn devices(&mut self) -> Result<BTreeMap<String, Device>> {
        let mut devices = self.memory().devices()?;
        if self.0.taps.load(Ordering::SeqCst) {
            devices
                .iter_mut()
                .filter(|(name, _)| *name != "eth0")
                .for_each(|(_, d)| d.kind = DeviceKind::Tap);
        }
        Ok(devices)
    }

    fn foresee(&mut self, devices: &mut dyn Iterator<Item = &str>) -> bool {
        self.memory().foresee(devices)
    }

    fn read(&mut self) -> Result<(Image, BTreeMap<u32, Role>)> {
        self.memory().read()
    }

    fn apply(&mut self, operations: &[Operation]) -> Vec<String> {
        self.memory().apply(operations)
    }

    fn read_back(&mut self, operations: &[Operation]) -> Result<Vec<Operation>> {
        self.memory().read_back(operations)
    }

    fn attach(&mut self, device: &str, ifindex: u32, role: Role) -> Result<()> {
        self.memory().attach(device, ifindex, role)
    }

    fn detach(&mut self, ifindex: u32) -> Result<()> {
        self.memory().detach(ifindex)
    }

    fn counters(&mut self) -> Result<BTreeMap<u32, Counters>> {
        self.memory().counters()
    }

    fn drops(&mut self) -> Result<BTreeMap<DropKey, u64>> {
        Ok(self.0.drops.lock().unwrap().clone())
    }

    fn give(&mut self, ifindex: u32, _frame: &[u8]) -> Result<()> {
        self.0.given.lock().unwrap().push(ifindex);
        Ok(())
    }

    fn event_fd(&self) -> Option<OwnedFd> {
        self.0.bell.0.as_fd().try_clone_to_owned().ok()
    }

    fn events(&mut self) -> Vec<Event> {
        let mut waiting = self.0.events.lock().unwrap();
        let now = waiting.len().min(AT_ONCE);
        waiting.drain(..now).collect()
    }
}
