//! A migration, step by step.

use crate::{Micros, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{
    ActivatedBy, HostName, Key, Migration, Object, Operation, Phase, Port, Receipt, in_post_copy, under_way,
};

/// A destination that has not acknowledged after this time makes the migration roll back.
pub const PREPARE: Micros = 10_000_000;
/// Connected hosts besides the destination are waited for this long in each phase.
pub const SETTLE: Micros = 10_000_000;
/// A host is waited for this long after its session ended.
pub const DISCONNECTED: Micros = 5_000_000;
/// A host with neither end of the VM is waited for this long after its session ended, once the VM has moved: until it
/// follows, its VMs reach the VM only by way of the source, which sends on as long as the migration lasts. An agent that
/// its host starts again is back by then.
pub const AWAY: Micros = 60_000_000;
/// A hypervisor that has moved nothing more for this long is told as a problem.
pub const STALL: Micros = 10_000_000;
/// Longest wait for counters.
pub(crate) const ASK: Micros = 1_000_000;
/// A commit that is not seen in the store after this time is tried again.
pub(crate) const COMMIT: Micros = 5_000_000;
/// Pause after a commit that failed.
pub(crate) const AGAIN: Micros = 500_000;

/// Longest wait for a hypervisor to confirm that it gave a migration up.
pub(crate) const CANCEL: Micros = 5_000_000;
/// A VM that was moved, says the source's hypervisor, and is not heard of on the destination for this long is taken to
/// be there all the same.
pub(crate) const QUIET: Micros = 2_000_000;
/// The source sends on for this long after the last host has acknowledged: frames that left before are still on the
/// way, in queues too. Nor must the work of the end take the processors from a guest that is just getting going.
pub(crate) const LINGER: Micros = 250_000;
/// Where a VM is that an earlier run of the controller had moved is told as a problem if it is not known by then.
pub const DOUBT: Micros = 30_000_000;
/// Longest wait for a QEMU at the destination that can be made ready for post-copy: whoever starts it by hand can do so
/// only once its tap is there, which is when all is prepared.
pub const RECEIVE: Micros = 120_000_000;
/// Longest wait, from the VM's first moment on the destination, for words that only the receipt needs.
pub(crate) const WORDS: Micros = 1_000_000;

/// How far a hypervisor is with moving a VM's memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes moved so far.
    pub transferred: u64,
    /// Bytes in all; 0: not known.
    pub total: u64,
    /// QEMU's word (`setup`, `active`, `completed` …), or `stopped` once the VM stands still.
    pub status: String,
}

/// What is known of a migration that an earlier run of the controller may have had driven: until it is known, it is
/// neither driven again nor given up, for the VM may run on the destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// Nothing yet.
    Unknown,
    /// The VM runs on the source, says its hypervisor, and nothing moves it.
    Idle,
    /// The source's agent knows nothing of it, and why.
    Gone(String),
}

/// How far the destination's QEMU is with being made ready for post-copy.
#[derive(Clone, Default, Debug)]
pub(crate) struct Receiver {
    /// Its agent's session that was told to, and when the first one was.
    pub(crate) told: Option<SessionId>,
    pub(crate) since: Option<Micros>,
    /// It is.
    pub(crate) ready: bool,
    /// What its agent lacked last.
    pub(crate) lacks: String,
}

/// Why the memory that a VM in post-copy left behind is not waited for any longer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// It does not come, because of this.
    Failed(String),
    /// Nobody says whether it has come: the agent of the source is not connected.
    Unheard,
}

/// Frames of a VM's ports on one host, as its kernel counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// Sent on to the other host.
    pub redirected: u64,
    /// Dropped because the port was down or blocked or the frame would have gone in a circle, or not taken by its tap.
    pub lost: u64,
    /// Of those sent on: what the VM had left unread in its tap.
    pub drained: u64,
}

/// Which counters are asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Those before the move.
    Before,
    /// Those after it.
    After,
}

/// What the core remembers of a running migration besides the stored object. After a restart of the controller it is
/// made anew from that object: then only what was measured before is lost.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) migration: Migration,
    /// Revision that brought it into its present phase.
    pub(crate) revision: u64,
    /// Hosts whose acknowledgement of the phase is awaited.
    pub(crate) waiting: BTreeSet<HostName>,
    /// When the phase began for this controller.
    pub(crate) since: Micros,
    pub(crate) begun: Micros,
    pub(crate) prepare_us: Option<u64>,
    /// When the switch was seen.
    pub(crate) switched: Option<Micros>,
    pub(crate) acks_us: BTreeMap<HostName, u64>,
    /// Hosts that were not waited for any longer: they may still have the old records.
    pub(crate) behind: BTreeSet<HostName>,
    /// When nobody's acknowledgement of the switch was awaited any more.
    pub(crate) all_follow: Option<Micros>,
    pub(crate) before: BTreeMap<HostName, Frames>,
    pub(crate) after: BTreeMap<HostName, Frames>,
    /// When the last counters were asked for, and of whom an answer is awaited.
    pub(crate) asked: Option<Micros>,
    pub(crate) answers: BTreeSet<HostName>,
    /// A commit is under way since.
    pub(crate) committing: Option<Micros>,
    /// What is to be told once its end is stored.
    pub(crate) ending: Option<String>,
    /// Why it shall be rolled back.
    pub(crate) cancelled: Option<String>,
    /// The session that was told to move the VM, or to follow that.
    pub(crate) driven: Option<SessionId>,
    /// It was found in the store, and the source's hypervisor has not said yet how it stands.
    pub(crate) taken: Option<Taken>,
    /// That this lasts was told.
    pub(crate) doubted: bool,
    /// Of a move that shall be in post-copy by QMP.
    pub(crate) receiver: Receiver,
    /// It is in post-copy, or was until it ended.
    pub(crate) post_copy: bool,
    /// The rest of the memory is not waited for any longer, since then.
    pub(crate) broken: Option<(Micros, Broken)>,
    /// That was told.
    pub(crate) broken_told: bool,
    /// That its way is interrupted in post-copy was told.
    pub(crate) interrupted: bool,
    /// The source's hypervisor has said something of it; before this controller was started, it may have.
    pub(crate) heard: bool,
    /// The hypervisor was told to give it up then, because of this.
    pub(crate) cancelling: Option<(Micros, String)>,
    /// What the hypervisor said last.
    pub(crate) progress: Option<Progress>,
    /// When it had moved more than before, and how often it said so.
    pub(crate) grew: (Micros, u32),
    /// How much that was.
    figure: u64,
    /// That it moves nothing more was told.
    pub(crate) stalled: bool,
    /// When it said that all of the VM has been moved.
    pub(crate) completed: Option<Micros>,
    /// When the VM stood still on the source.
    pub(crate) stopped: Option<Micros>,
    /// It went on there.
    pub(crate) resumed_at_source: bool,
    /// When it ran on the destination.
    pub(crate) resumed: Option<Micros>,
    pub(crate) downtime_us: Option<u64>,
    pub(crate) first_frame_us: Option<u64>,
    pub(crate) activated_by: Option<ActivatedBy>,
}

impl Run {
    pub(crate) fn new(migration: Migration, revision: u64, now: Micros, fresh: bool) -> Self {
        let started = migration.started_ms.saturating_mul(1000);
        let taken = !fresh && migration.phase == Phase::Prepared && migration.through.driven();
        Self {
            revision,
            waiting: BTreeSet::new(),
            since: now,
            begun: if fresh { now } else { started },
            prepare_us: None,
            switched: migration.switched_ms.map(|ms| ms.saturating_mul(1000)),
            acks_us: BTreeMap::new(),
            behind: BTreeSet::new(),
            all_follow: None,
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            asked: None,
            answers: BTreeSet::new(),
            committing: None,
            ending: None,
            cancelled: None,
            driven: None,
            taken: taken.then_some(Taken::Unknown),
            doubted: false,
            receiver: Receiver::default(),
            post_copy: false,
            broken: None,
            broken_told: false,
            interrupted: false,
            heard: !fresh,
            cancelling: None,
            progress: None,
            grew: (now, 0),
            figure: 0,
            stalled: false,
            completed: None,
            stopped: None,
            resumed_at_source: false,
            resumed: None,
            downtime_us: None,
            first_frame_us: None,
            activated_by: None,
            migration,
        }
    }

    /// The same migration in a later phase.
    pub(crate) fn advance(&mut self, migration: Migration, revision: u64, now: Micros) {
        self.migration = migration;
        self.revision = revision;
        self.since = now;
        self.committing = None;
        self.asked = None;
        self.answers.clear();
    }

    /// The hypervisor of the source says how far it is; `named`: it says this migration's id with it.
    pub(crate) fn moves(
        &mut self,
        now: Micros,
        mut progress: Progress,
        named: bool,
        downtime_us: Option<u64>,
        error: &str,
    ) {
        // The move that brought the VM here, or one that failed, may have its last word when this one has begun already.
        if !named && !self.heard && !under_way(&progress.status) {
            return;
        }
        self.heard = true;
        let answer = match progress.status.as_str() {
            "idle" => Some(Taken::Idle),
            "gone" => Some(Taken::Gone(error.to_owned())),
            _ => None,
        };
        if answer.is_some() {
            // To who did not ask they say nothing.
            if self.taken.is_some() {
                self.taken = answer;
            } else if let (Some(Taken::Gone(why)), true) = (answer, self.memory_follows()) {
                self.broken = Some((now, Broken::Failed(why)));
            }
            return;
        }
        self.taken = None;
        if self.post_copy && progress.status == "active" {
            // virsh has one word for both.
            let known = self.progress.as_ref().map(|p| &p.status).filter(|s| in_post_copy(s));
            progress.status = known.cloned().unwrap_or_else(|| "postcopy-active".to_owned());
        }
        if in_post_copy(&progress.status) && !self.post_copy {
            self.post_copy = true;
            // What was dirtied since is to be moved once more.
            self.progress.get_or_insert_default().transferred = 0;
            self.stays_moved();
        }
        self.downtime_us = downtime_us.or(self.downtime_us);
        match progress.status.as_str() {
            "completed" => {
                self.completed.get_or_insert(now);
                self.stays_moved();
            }
            // Whoever says so once all of it has been moved says it of something else.
            "failed" | "cancelled" if self.completed.is_some() => return,
            // It lives on the destination as a rule: only its own word on the source is believed against that.
            "failed" | "cancelled" if self.post_copy => {
                let why = if error.is_empty() { "its hypervisor does not say why" } else { error };
                self.broken.get_or_insert_with(|| (now, Broken::Failed(why.to_owned())));
            }
            "failed" | "cancelled" if self.switched.is_none() => {
                let word = if progress.status == "failed" { "failed" } else { "was cancelled" };
                let reason = match self.cancelling.take() {
                    Some((_, reason)) => reason,
                    None if error.is_empty() => format!("the hypervisor's migration {word}"),
                    None => format!("the hypervisor's migration {word}: {error}"),
                };
                self.cancelled.get_or_insert(reason);
            }
            _ => {}
        }
        let known = self.progress.get_or_insert_default();
        // Some words come without figures. A guest that writes its memory makes them less now and then.
        let moves = progress.total > 0 && progress.transferred != self.figure;
        if moves || progress.status != known.status {
            self.grew = (now, self.grew.1.saturating_add(1));
            self.stalled = false;
        }
        if progress.total > 0 {
            self.figure = progress.transferred;
        }
        known.transferred = known.transferred.max(progress.transferred);
        known.total = known.total.max(progress.total);
        known.status = progress.status;
    }

    /// The VM is on the destination: what was not yet written of a rollback would only cut it off.
    pub(crate) fn stays_moved(&mut self) {
        if self.ending.is_none() {
            self.cancelled = None;
            self.cancelling = None;
        }
    }

    /// Whether the source's hypervisor is moving it, as far as it said.
    pub(crate) fn under_way(&self) -> bool {
        let status = self.progress.as_ref().map(|p| p.status.as_str());
        self.completed.is_none() && status.is_some_and(|s| under_way(s) || s == "stopped")
    }

    /// Whether something that only the receipt needs is still to be heard.
    pub(crate) fn awaits_words(&self, now: Micros) -> bool {
        let lacking = self.first_frame_us.is_none()
            || self.stopped.is_none()
            || (self.progress.is_some() && self.downtime_us.is_none());
        self.resumed.is_some_and(|at| now.saturating_sub(at) < WORDS) && lacking
    }

    fn pause_us(&self) -> Option<u64> {
        Some(self.resumed?.saturating_sub(self.stopped.filter(|_| !self.resumed_at_source)?))
    }

    /// The write that brings it into a phase.
    pub(crate) fn to_phase(&self, phase: Phase, now: Micros) -> Operation {
        let mut migration = self.migration.clone();
        migration.phase = phase;
        match phase {
            Phase::Switched => migration.switched_ms = Some(self.switched.unwrap_or(now) / 1000),
            Phase::Preparing | Phase::Prepared => {}
        }
        Operation::Put(Object::Migration(migration))
    }

    /// The writes that end it with the VM on the destination.
    pub(crate) fn finish(&self, ports: impl Iterator<Item = Port>) -> Vec<Operation> {
        let moved = ports.filter_map(|mut port| {
            let device = self.migration.devices.get(&port.name.port)?;
            port.host.as_ref()?;
            port.host = Some(self.migration.to.clone());
            port.tap = port.tap_at(device);
            port.device = Some(device.clone());
            port.rewrite = self.migration.rewrite.get(&port.name.port).cloned().unwrap_or_default();
            Some(Operation::Put(Object::Port(port)))
        });
        let end = Operation::Delete(Key::Migration(self.migration.vm.clone()));
        moved.chain([end]).collect()
    }

    /// What it cost.
    pub(crate) fn receipt(&self, moved: bool, reason: Option<String>) -> Receipt {
        let m = &self.migration;
        // A host's counters are as old as its port; without those from before they say nothing of this move.
        let grown = |value: fn(&Frames) -> u64| -> u64 {
            let pairs = self.after.iter().filter_map(|(host, after)| Some((self.before.get(host)?, after)));
            pairs.map(|(before, after)| value(after).saturating_sub(value(before))).sum()
        };
        Receipt {
            vm: m.vm.clone(),
            id: m.id,
            from: m.from.clone(),
            to: m.to.clone(),
            moved,
            reason,
            redirected: grown(|f| f.redirected),
            lost: grown(|f| f.lost),
            drained: grown(|f| f.drained),
            exact: [&m.from, &m.to]
                .into_iter()
                .all(|host| self.before.contains_key(host) && self.after.contains_key(host)),
            started_ms: m.started_ms,
            prepare_us: self.prepare_us.unwrap_or(0),
            last_ack_us: self.acks_us.values().copied().max().unwrap_or(0),
            acks_us: self.acks_us.clone(),
            behind: if moved { self.behind.clone() } else { BTreeSet::new() },
            pause_us: self.pause_us(),
            // QEMU says 0 as long as it has not worked it out.
            downtime_us: self.downtime_us.filter(|us| moved && *us > 0),
            first_frame_us: self.first_frame_us,
            activated_by: self.activated_by,
            through: m.through,
            post_copy: self.post_copy,
            ports: m.devices.keys().cloned().collect(),
        }
    }
}
