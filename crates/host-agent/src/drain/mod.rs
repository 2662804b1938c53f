//! Frames that QEMU leaves unread in a VM's tap when it stops the VM to be switched: taken out of the tap and sent on
//! to where the VM goes.
//!
//! At STOP, not once the hypervisor says that all has been moved. What comes later in the same flows is redirected from
//! STOP on: frames that waited for the end of the move would come behind all of that, which TCP takes for losses. And
//! after the end of the move QEMU may be gone before its tap is read. If the VM goes on here after all, what was sent on
//! is lost with the destination, as all that was redirected is; so a copy is kept until then, and given back to it.
//!
//! What is decided is in [`tenet_host::drain`].

mod empty;
mod tap;

pub(crate) use empty::Found;
pub(crate) use tap::DrainTap;

use crate::agent::Agent;
use empty::{Job, Known, What};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tenet_host::drain::{Leaving, TAP, may_go_on};
use tenet_hostnet::Waiting;
use tenet_model::{PortRef, VmRef};
use tenet_tables::{DropReason, PORT_MOVED, Port};
use tokio::sync::mpsc;

/// After STOP a frame may still be on its way into the tap, by the hub and another processor's queue.
const LINGER: Duration = Duration::from_millis(20);
/// Batches on their way to the loop: the rest stays in the tap, where it waits as well.
const QUEUE: usize = 4;
/// Bytes of a port's frames that are kept in case that the VM goes on here.
const KEPT: usize = 4 << 20;

/// What was sent on of one port, and what could not be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Drained {
    /// Sent on to where the VM went.
    pub(crate) sent: u64,
    /// Lost, by reason.
    pub(crate) lost: Lost,
}

/// Frames that could not be sent on, by reason.
pub(crate) type Lost = BTreeMap<&'static str, u64>;

/// An emptying that goes on.
#[derive(Debug)]
struct Running {
    run: u64,
    stop: Arc<AtomicBool>,
    of: Leaving,
    frames: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Drains {
    known: Known,
    /// Taps whose users were looked for.
    looked: BTreeSet<String>,
    /// Ports whose taps were, since their VMs stand still.
    emptied: BTreeSet<PortRef>,
    running: BTreeMap<PortRef, Running>,
    runs: u64,
    kept: BTreeMap<PortRef, (Port, Vec<Waiting>)>,
    figures: BTreeMap<PortRef, Drained>,
    found: mpsc::Sender<Found>,
    /// Why it cannot be done, as last told.
    told: Option<String>,
}

impl Drains {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Found>) {
        let (found, taken) = mpsc::channel(QUEUE);
        let drains = Self {
            known: Known::default(),
            looked: BTreeSet::new(),
            emptied: BTreeSet::new(),
            running: BTreeMap::new(),
            runs: 0,
            kept: BTreeMap::new(),
            figures: BTreeMap::new(),
            found,
            told: None,
        };
        (drains, taken)
    }

    /// What a port's VMs left behind since the agent started.
    pub(crate) fn figures(&self) -> &BTreeMap<PortRef, Drained> {
        &self.figures
    }

    fn keep(&mut self, port: &PortRef, entry: &Port, frames: Vec<Waiting>) {
        let (_, kept) = self.kept.entry(port.clone()).or_insert_with(|| (*entry, Vec::new()));
        let mut bytes: usize = kept.iter().map(|w| w.frame.len()).sum();
        for waiting in frames {
            bytes += waiting.frame.len();
            if bytes > KEPT {
                return;
            }
            kept.push(waiting);
        }
    }

    fn tell(&mut self, why: String) {
        if self.told.as_ref() != Some(&why) {
            tracing::warn!(why, "what a VM that moves leaves unread in its tap is lost");
            self.told = Some(why);
        }
    }
}

impl Agent {
    /// Rows or devices may have changed: makes ready for the taps of VMs that are about to leave, lets go of the rest.
    pub(crate) fn expect_drains(&mut self) {
        if self.kernel.netns().is_none() {
            return;
        }
        let leaving: BTreeMap<PortRef, String> = self.core.leaving().map(|l| (l.name, l.tap)).collect();
        let drains = &mut self.drains;
        drains.kept.retain(|port, _| leaving.contains_key(port));
        drains.emptied.retain(|port| leaving.contains_key(port));
        let taps: BTreeSet<String> = leaving.into_values().collect();
        drains.looked.retain(|tap| taps.contains(tap));
        drains.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|tap, _| taps.contains(tap));
        let new: BTreeSet<String> = taps.difference(&drains.looked).cloned().collect();
        if !new.is_empty() {
            drains.looked.extend(new.clone());
            let known = drains.known.clone();
            std::thread::spawn(move || empty::look_early(&new, &known));
        }
        if self.core.rows().is_some() {
            drains.figures.retain(|port, _| self.core.ports().any(|p| p.name == *port));
        }
        match self.kernel.hold_drain(!taps.is_empty() || !self.drains.running.is_empty()) {
            Ok(true) => self.look_at_devices(),
            Ok(false) => {}
            Err(cause) => self.drains.tell(format!("the agent's tap {TAP} cannot be made: {cause}")),
        }
        self.drain();
    }

    /// A VM stands still: what waits in the taps of those of its ports that are redirected follows.
    pub(crate) fn drain_anew(&mut self, vm: &VmRef) {
        self.drains.emptied.retain(|port| port.vm_ref() != *vm);
        self.drain();
    }

    fn drain(&mut self) {
        let ports: Vec<Leaving> =
            self.core.leaving().filter(|p| p.stands && !self.drains.emptied.contains(&p.name)).collect();
        if ports.is_empty() {
            return;
        }
        let Some(netns) = self.kernel.netns() else { return };
        for of in ports {
            let drains = &mut self.drains;
            drains.runs += 1;
            let stop = Arc::new(AtomicBool::new(false));
            let job = Job {
                port: of.name.clone(),
                run: drains.runs,
                tap: of.tap.clone(),
                netns: netns.clone(),
                known: drains.known.clone(),
                stop: stop.clone(),
                found: drains.found.clone(),
            };
            drains.emptied.insert(of.name.clone());
            let running = Running { run: drains.runs, stop, of: of.clone(), frames: 0 };
            if let Some(earlier) = drains.running.insert(of.name, running) {
                // Two that read one queue would mix up its frames.
                earlier.stop.store(true, Ordering::Release);
            }
            std::thread::spawn(move || job.run());
        }
    }

    /// A VM runs here: its taps are its own, and what was taken from them is given back.
    pub(crate) fn undrain(&mut self, vm: &VmRef) {
        self.drains.emptied.retain(|port| port.vm_ref() != *vm);
        for (_, running) in self.drains.running.iter().filter(|(port, _)| port.vm_ref() == *vm) {
            running.stop.store(true, Ordering::Release);
        }
        let kept: Vec<PortRef> = self.drains.kept.keys().filter(|p| p.vm_ref() == *vm).cloned().collect();
        for port in kept {
            let Some((entry, frames)) = self.drains.kept.remove(&port) else { continue };
            match self.kernel.send_on(&entry, &frames) {
                Ok(lost) => tracing::info!(%port, frames = frames.len(), ?lost, "given back to the VM"),
                Err(cause) => {
                    tracing::warn!(%port, frames = frames.len(), %cause, "not given back to the VM")
                }
            }
        }
    }

    /// Takes what an emptied tap gave.
    pub(crate) fn drained(&mut self, found: Found) {
        let Some(running) = self.drains.running.get_mut(&found.port) else { return };
        let of = running.of.clone();
        match found.what {
            What::Frames(frames) => {
                running.frames += count(&frames);
                return self.send_on(&of, frames);
            }
            // An earlier run, which a later one has taken the place of.
            _ if running.run != found.run => return,
            What::End => {
                tracing::info!(port = %of.name, tap = of.tap, frames = running.frames, "tap emptied")
            }
            What::Nobody => tracing::info!(port = %of.name, tap = of.tap, "nobody has the tap open any more"),
            What::Denied(cause) => self.drains.tell(format!(
                "who has tap {} open cannot be looked into ({cause}): the agent needs CAP_SYS_PTRACE and \
                 CAP_DAC_READ_SEARCH, which packaging/tenet-agent.service gives it, and kernel 5.10",
                of.tap
            )),
        }
        self.drains.running.remove(&found.port);
        self.expect_drains();
    }

    /// Frames from a port's tap go to where the VM is, by what the kernel's tables say now.
    fn send_on(&mut self, of: &Leaving, mut frames: Vec<Waiting>) {
        let now = self.core.actual().and_then(|image| image.ports.get(&of.ifindex)).copied();
        let entry = now.filter(|p| (p.net, p.vsid, p.mac) == (of.port.net, of.port.vsid, of.port.mac));
        let entry = entry.unwrap_or(of.port);
        let mut lost = Lost::new();
        frames.retain(|waiting| match may_go_on(&waiting.frame, &entry) {
            Ok(()) => true,
            Err(reason) => {
                *lost.entry(reason).or_default() += 1;
                false
            }
        });
        let refused = self.kernel.send_on(&entry, &frames).unwrap_or_else(|cause| {
            self.drains.tell(cause.to_string());
            Lost::from([(DropReason::KernelRefused.name(), count(&frames))])
        });
        let sent = count(&frames).saturating_sub(refused.values().sum());
        // What the VM gets back because it has gone on here is no part of a move.
        if entry.state == PORT_MOVED {
            self.drains.keep(&of.name, &entry, frames);
            let figures = self.drains.figures.entry(of.name.clone()).or_default();
            figures.sent += sent;
            for (reason, frames) in lost.into_iter().chain(refused) {
                *figures.lost.entry(reason).or_default() += frames;
            }
        }
    }
}

fn count(frames: &[Waiting]) -> u64 {
    u64::try_from(frames.len()).unwrap_or(u64::MAX)
}
