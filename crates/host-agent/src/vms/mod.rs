//! What hypervisors say of the VMs on this host, whichever way they say it, and what they are told.

mod budget;
mod driven;
mod first;
mod heard;

pub(crate) use budget::{Budget, Verdict};
pub(crate) use driven::Driven;
pub(crate) use first::First;
pub(crate) use heard::prepared;

use crate::{local::Domains, options::Libvirt, qmp, virsh};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{collections::BTreeMap, path::PathBuf};
use tenet_api::agent::{self, vm_event::Kind};
use tenet_model::{NEXT, VmRef, under_way};
use tokio::sync::mpsc;

/// Words on their way to the loop.
const QUEUE: usize = 256;

/// A hypervisor's word on a VM.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Said {
    /// The VM.
    pub(crate) vm: VmRef,
    /// `qmp` or `libvirt`.
    pub(crate) source: &'static str,
    /// By this host's clock, in microseconds since 1970.
    pub(crate) time_us: u64,
    /// What it says.
    pub(crate) what: What,
}

/// What a hypervisor says.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum What {
    /// The VM stands still, to be switched.
    Stopped,
    /// It runs.
    Resumed,
    /// How far its migration is.
    Migration(qmp::Migrate),
    /// Nothing more will be heard.
    Silent,
}

impl Said {
    pub(crate) fn new(vm: &VmRef, source: &'static str, what: What) -> Self {
        Self { vm: vm.clone(), source, time_us: now_us(), what }
    }

    /// Whether the next word makes up for this one.
    pub(crate) fn is_progress(&self) -> bool {
        matches!(&self.what, What::Migration(m) if under_way(&m.status))
    }

    /// As the controller is told; none if that is no business of it.
    pub(crate) fn message(&self) -> Option<agent::VmEvent> {
        let event = |kind: Kind| agent::VmEvent {
            vm: self.vm.to_string(),
            kind: kind.into(),
            source: self.source.to_owned(),
            time_us: self.time_us,
            ..agent::VmEvent::default()
        };
        Some(match &self.what {
            What::Stopped => event(Kind::Stopped),
            What::Resumed => event(Kind::Resumed),
            What::Silent => return None,
            What::Migration(m) => agent::VmEvent {
                migration: m.migration.clone(),
                status: m.status.clone(),
                transferred: m.transferred,
                total: m.total,
                downtime_ms: m.downtime_ms,
                error: m.error.clone(),
                ..event(Kind::Migration)
            },
        })
    }
}

/// The message of a VM's first frame on this host.
pub(crate) fn first_frame(vm: &VmRef, after_us: u64) -> agent::VmEvent {
    agent::VmEvent {
        vm: vm.to_string(),
        kind: Kind::FirstFrame.into(),
        source: "agent".to_owned(),
        time_us: now_us(),
        after_us,
        ..agent::VmEvent::default()
    }
}

/// This host's clock.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Why nobody listens to the libvirt of a domain that is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deaf {
    /// The agent was told not to.
    Off,
    /// There is no virsh.
    NoVirsh,
}

impl Deaf {
    fn why(self) -> &'static str {
        match self {
            Self::Off => "the agent was started with --libvirt off",
            Self::NoVirsh => "there is no program virsh on this host",
        }
    }

    fn next(self) -> &'static str {
        match self {
            Self::Off => {
                "take --libvirt off out of the agent's arguments (TENET_AGENT_OPTIONS in /etc/default/tenet-agent) and \
                 start it again"
            }
            Self::NoVirsh => "install libvirt-clients, which the agent then finds by itself",
        }
    }

    /// What follows from it for a domain, and what to do.
    fn note(self, domain: &str) -> String {
        format!(
            "libvirt's domain {domain} is not listened to, for {}: when it moves, what comes during its pause is lost, \
             and `tenet vm migrate --libvirt` cannot move it; {}",
            self.why(),
            self.next()
        )
    }
}

/// The tasks that listen to hypervisors; they end with it.
pub(crate) struct Vms {
    qmp: Option<mpsc::Sender<qmp::Order>>,
    virsh: virsh::Virsh,
    libvirt: virsh::Finder,
    domains: Domains,
    said: mpsc::Sender<Said>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Vms {
    /// Begins to listen.
    pub(crate) fn start(
        qmp_dir: Option<PathBuf>,
        libvirt: Libvirt,
        domains: Domains,
    ) -> (Self, mpsc::Receiver<Said>) {
        let (said, heard) = mpsc::channel(QUEUE);
        let mut tasks = Vec::new();
        let qmp = qmp_dir.map(|dir| {
            let (orders, taken) = mpsc::channel(16);
            tasks.push(tokio::spawn(qmp::watch(dir, said.clone(), taken)));
            orders
        });
        let off = libvirt == Libvirt::Off;
        let libvirt = virsh::Finder::new(libvirt);
        let virsh = virsh::Virsh::new(libvirt.clone(), domains.clone(), said.clone());
        if !off {
            tasks.push(tokio::spawn(virsh.clone().listen()));
        }
        (Self { qmp, virsh, libvirt, domains, said, tasks }, heard)
    }

    /// Something may have changed: looks at once instead of in a moment.
    pub(crate) fn look(&self) {
        if let Some(qmp) = &self.qmp {
            // A full queue has a look in it already.
            let _ = qmp.try_send(qmp::Order::Look);
        }
    }

    /// VMs that are libvirt's domains although nobody listens to libvirt, with what is to be known of them.
    pub(crate) fn unheard(&self) -> BTreeMap<VmRef, String> {
        let domains = self.domains.all();
        // Where libvirt has brought none, nothing is looked for and nothing is said.
        let deaf = if domains.is_empty() { None } else { self.deaf() };
        let Some(deaf) = deaf else { return BTreeMap::new() };
        domains.into_iter().map(|(vm, domain)| (vm, deaf.note(&domain))).collect()
    }

    /// Why libvirt's domains are not heard; none if they are, as soon as there is a libvirt.
    fn deaf(&self) -> Option<Deaf> {
        match self.libvirt.look(true) {
            virsh::Found::Off => Some(Deaf::Off),
            virsh::Found::NoVirsh => Some(Deaf::NoVirsh),
            virsh::Found::Here | virsh::Found::None => None,
        }
    }

    /// Moves a VM, or gives that up, as the controller says.
    pub(crate) fn drive(&mut self, drive: agent::Drive) {
        let vm: VmRef = match drive.vm.parse() {
            Ok(vm) => vm,
            Err(cause) => {
                tracing::error!(vm = drive.vm, %cause, "a VM that shall be moved has no legal name");
                return;
            }
        };
        let (through, want) = match (drive.through.as_str(), drive.cancel, drive.follow) {
            ("qmp-incoming", ..) => ("qmp", qmp::Want::Receive),
            (through, true, _) => (through, qmp::Want::Cancel),
            (through, false, true) => (through, qmp::Want::Follow),
            (through, false, false) => (through, qmp::Want::Move),
        };
        tracing::info!(%vm, through = drive.through, uri = drive.uri, ?want, "told to move a VM");
        // What another tool is moving is followed, or given up, where this agent hears of it.
        let deaf = self.deaf();
        let is_domain = deaf.is_none() && self.domains.of(&vm).is_some();
        let through = match through {
            "switch-only" | "other" if want != qmp::Want::Move && is_domain => "libvirt",
            "switch-only" | "other" if want != qmp::Want::Move => "qmp",
            told => told,
        };
        let (migration, uri, post_copy) = (drive.migration.clone(), drive.uri.clone(), drive.post_copy);
        let drive = qmp::Drive { migration, uri, want, post_copy };
        let refused = match (through, &self.qmp, deaf) {
            ("qmp", Some(qmp), _) => {
                let order = qmp::Order::Drive(vm.clone(), drive.clone());
                qmp.try_send(order)
                    .err()
                    .map(|_| format!("the agent is busy with other VMs{NEXT}wait a moment"))
            }
            ("qmp", None, _) => {
                Some(format!("the agent has no --qmp-dir{NEXT}start the agent with --qmp-dir /run/tenet/qmp"))
            }
            ("libvirt", _, None) => {
                self.tasks.retain(|t| !t.is_finished());
                let (virsh, vm, drive) = (self.virsh.clone(), vm.clone(), drive.clone());
                let work = async move {
                    match want {
                        qmp::Want::Cancel => virsh.cancel(&vm, &drive.migration).await,
                        qmp::Want::Follow => virsh.look_after(&vm, &drive).await,
                        qmp::Want::Move => virsh.migrate(&vm, &drive.migration, Some(&drive)).await,
                        // libvirt sees to that by itself.
                        qmp::Want::Receive => {}
                    }
                };
                self.tasks.push(tokio::spawn(work));
                None
            }
            ("libvirt", _, Some(deaf)) => Some(format!("{}{NEXT}{}", deaf.why(), deaf.next())),
            (other, ..) => Some(format!(
                "this version of the agent knows no way named {other}{NEXT}bring the agent to the controller's version"
            )),
        };
        if let Some(error) = refused {
            let said = Said::new(&vm, "agent", What::Migration(drive.hopeless(error)));
            let to = self.said.clone();
            self.tasks.push(tokio::spawn(async move {
                // The loop may be gone.
                let _ = to.send(said).await;
            }));
        }
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
