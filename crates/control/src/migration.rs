//! A migration, step by step.

use crate::Micros;
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{HostName, Key, Migration, Object, Operation, Phase, Port, Receipt};

/// A destination that has not acknowledged after this time makes the migration roll back.
pub const PREPARE: Micros = 10_000_000;
/// Connected hosts besides the destination are waited for this long in each phase.
pub const SETTLE: Micros = 10_000_000;
/// A host is waited for this long after its session ended.
pub const DISCONNECTED: Micros = 5_000_000;
/// Longest wait for counters.
pub(crate) const ASK: Micros = 1_000_000;
/// A commit that is not seen in the store after this time is tried again.
pub(crate) const COMMIT: Micros = 5_000_000;
/// Pause after a commit that failed.
pub(crate) const AGAIN: Micros = 500_000;

/// Frames of a VM's ports on one host, as its kernel counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// Sent on to the other host.
    pub redirected: u64,
    /// Dropped because the port was down or blocked or the frame would have gone in a circle.
    pub lost: u64,
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
}

impl Run {
    pub(crate) fn new(migration: Migration, revision: u64, now: Micros, fresh: bool) -> Self {
        let started = migration.started_ms.saturating_mul(1000);
        Self {
            revision,
            waiting: BTreeSet::new(),
            since: now,
            begun: if fresh { now } else { started },
            prepare_us: None,
            switched: migration.switched_ms.map(|ms| ms.saturating_mul(1000)),
            acks_us: BTreeMap::new(),
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            asked: None,
            answers: BTreeSet::new(),
            committing: None,
            ending: None,
            cancelled: None,
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
        let grown = |value: fn(&Frames) -> u64| -> u64 {
            self.after
                .iter()
                .map(|(host, after)| value(after).saturating_sub(self.before.get(host).map_or(0, value)))
                .sum()
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
            exact: [&m.from, &m.to]
                .into_iter()
                .all(|host| self.before.contains_key(host) && self.after.contains_key(host)),
            started_ms: m.started_ms,
            prepare_us: self.prepare_us.unwrap_or(0),
            last_ack_us: self.acks_us.values().copied().max().unwrap_or(0),
            acks_us: self.acks_us.clone(),
        }
    }
}
