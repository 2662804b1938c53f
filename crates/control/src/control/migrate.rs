//! The core's part in migrations: what is said of them, and each next step.

use super::{Control, Output, Refused, hypervisor::steer, open_id};
use crate::{
    AWAY, DISCONNECTED, Micros, PREPARE, SETTLE, SessionId,
    happening::Happening,
    migration::{AGAIN, ASK, COMMIT, Frames, LINGER, Run, Stage},
};
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{ActivatedBy, HostName, Key, Object, Operation, Phase, PortRef, VmRef};
use uuid::Uuid;

impl Control {
    /// A prepared port sent its first frame. Only the destination of its VM's migration can say so.
    pub fn activated(&mut self, now: Micros, session: SessionId, port: &PortRef) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some(host) = self.sessions.get(&session).cloned() else { return outputs };
        let lives_here = self.lives_on(port, &host);
        match self.runs.get_mut(&port.vm_ref()) {
            Some(run) if run.migration.to == host && run.migration.devices.contains_key(&port.port) => {
                if run.switched.is_none() && run.cancelled.is_none() {
                    run.switched = Some(now);
                    run.activated_by = Some(ActivatedBy::Frame);
                    let text = format!("port {port} sent its first frame on {host}");
                    outputs.push(Output::Happened(Happening::new("migration", text).host(&host).port(port)));
                }
                self.progress(now, &mut outputs);
            }
            // The end of a migration and a repeated report may cross.
            None if lives_here => {}
            Some(_) | None => {
                let text = format!("host {host} claims port {port}, which does not move there");
                outputs.push(Output::Happened(Happening::new("refused", text).host(&host).port(port)));
            }
        }
        outputs
    }

    /// The VM runs on the destination, says its operator.
    ///
    /// # Errors
    /// [`Refused::NoMigration`]; [`Refused::Phase`] unless it is prepared or already switched.
    pub fn switch(&mut self, now: Micros, vm: &VmRef) -> Result<Vec<Output>, Refused> {
        let run = self.runs.get_mut(vm).ok_or(Refused::NoMigration)?;
        match run.migration.phase {
            Phase::Preparing if run.switched.is_none() => return Err(Refused::Phase(Phase::Preparing)),
            Phase::Preparing | Phase::Prepared | Phase::Switched => {}
        }
        if run.switched.is_none() {
            run.switched = Some(now);
            run.activated_by = Some(ActivatedBy::Operator);
        }
        let mut outputs = Vec::new();
        self.progress(now, &mut outputs);
        Ok(outputs)
    }

    /// The migration shall be given up.
    ///
    /// # Errors
    /// [`Refused::NoMigration`]; [`Refused::PostCopy`] while its memory follows it, [`Refused::Phase`] once it is
    /// switched, [`Refused::Left`] once the hypervisor has moved all of it.
    pub fn cancel(&mut self, now: Micros, vm: &VmRef, reason: &str) -> Result<Vec<Output>, Refused> {
        let run = self.runs.get(vm).ok_or(Refused::NoMigration)?;
        if run.memory_follows() {
            return Err(Refused::PostCopy(run.migration.to.clone()));
        }
        if run.switched.is_some() || run.migration.phase == Phase::Switched {
            return Err(Refused::Phase(Phase::Switched));
        }
        if run.completed.is_some() {
            return Err(Refused::Left);
        }
        let mut outputs = Vec::new();
        self.cancel_drive(now, vm, reason, &mut outputs);
        self.progress(now, &mut outputs);
        Ok(outputs)
    }

    /// A host's counters (none: it gave no answer).
    pub fn counted(
        &mut self,
        now: Micros,
        migration: Uuid,
        vm: &VmRef,
        host: &HostName,
        stage: Stage,
        frames: Option<Frames>,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some(run) = self.runs.get_mut(vm).filter(|r| r.migration.id == migration) else { return outputs };
        let kept = match stage {
            Stage::Before => &mut run.before,
            Stage::After => {
                run.answers.remove(host);
                &mut run.after
            }
        };
        if let Some(frames) = frames {
            kept.insert(host.clone(), frames);
        }
        self.progress(now, &mut outputs);
        outputs
    }

    /// A commit came to nothing; it is tried again after a pause ([`AGAIN`]) if it still makes sense.
    pub fn commit_failed(&mut self, now: Micros, vm: &VmRef, reason: &str) -> Vec<Output> {
        let Some(run) = self.runs.get_mut(vm) else { return Vec::new() };
        run.committing = Some((now + AGAIN).saturating_sub(COMMIT));
        let text = format!("the migration of {vm} cannot go on yet: {reason}");
        vec![Output::Happened(Happening::new("migration", text).field("vm", vm))]
    }

    /// Hosts that a migration waits for.
    #[must_use]
    pub fn migration_waits_for(&self, vm: &VmRef) -> BTreeSet<HostName> {
        self.runs.get(vm).map(|r| r.waiting.clone()).unwrap_or_default()
    }

    pub(super) fn hosts_of_vm(&self, vm: &VmRef) -> BTreeSet<HostName> {
        let mut hosts = BTreeSet::new();
        for network in self.plan.networks_of(vm) {
            hosts.extend(self.plan.hosts_of(&network));
        }
        if let Some(m) = self.desired().migrations.get(vm) {
            hosts.extend([m.value.from.clone(), m.value.to.clone()]);
        }
        hosts
    }

    /// Brings the runs in line with the stored migrations.
    pub(super) fn follow_migrations(
        &mut self,
        now: Micros,
        revision: u64,
        operations: &[Operation],
        before: &BTreeMap<VmRef, BTreeSet<HostName>>,
        outputs: &mut Vec<Output>,
    ) {
        for operation in operations {
            match operation {
                Operation::Put(Object::Migration(m)) => {
                    let mut waiting = self.hosts_of_vm(&m.vm);
                    waiting.extend(before.get(&m.vm).into_iter().flatten().cloned());
                    let text = match m.phase {
                        Phase::Preparing => format!("{} begins to move from {} to {}", m.vm, m.from, m.to),
                        Phase::Prepared => format!("{} may move from {} to {}", m.vm, m.from, m.to),
                        Phase::Switched => format!("{} runs on {}", m.vm, m.to),
                    };
                    let known = self.runs.get(&m.vm).map(|run| run.migration.phase);
                    let run = self
                        .runs
                        .entry(m.vm.clone())
                        .or_insert_with(|| Run::new(m.clone(), revision, now, true));
                    run.advance(m.clone(), revision, now);
                    run.waiting = waiting;
                    // The destination knows the port, and what it counted in former stays, once it is prepared.
                    if known.is_none() {
                        self.count(now, &m.vm, Stage::Before, &[&m.from], outputs);
                    }
                    if m.phase == Phase::Prepared && known != Some(Phase::Prepared) {
                        self.count(now, &m.vm, Stage::Before, &[&m.to], outputs);
                    }
                    let happening =
                        Happening::new("migration", text).field("vm", &m.vm).field("migration", m.id);
                    outputs.push(Output::Happened(happening));
                }
                Operation::Delete(Key::Migration(vm)) => {
                    // Told only now that it is stored: before, it is an intention.
                    if let Some(text) = self.runs.remove(vm).and_then(|run| run.ending) {
                        outputs.push(Output::Happened(Happening::new("migration", text).field("vm", vm)));
                    }
                }
                Operation::Put(_) | Operation::Delete(_) => {}
            }
        }
    }

    /// Asks hosts of a migration for their counters.
    fn count(
        &mut self,
        now: Micros,
        vm: &VmRef,
        stage: Stage,
        hosts: &[&HostName],
        outputs: &mut Vec<Output>,
    ) {
        let Some(run) = self.runs.get_mut(vm) else { return };
        for &host in hosts {
            let Some(session) = self.hosts.get(host).and_then(open_id) else { continue };
            if stage == Stage::After {
                run.answers.insert(host.clone());
            }
            let (migration, host) = (run.migration.id, host.clone());
            outputs.push(Output::Count { migration, vm: vm.clone(), host, session, stage });
        }
        if stage == Stage::After {
            run.asked = Some(now);
        }
    }

    /// Takes one step of a migration if it is due.
    pub(super) fn step(&mut self, now: Micros, vm: &VmRef, outputs: &mut Vec<Output>) {
        let hosts = &self.hosts;
        let Some(run) = self.runs.get_mut(vm) else { return };
        let (from, to) = (run.migration.from.clone(), run.migration.to.clone());
        let (revision, since) = (run.revision, run.since);
        let is_switched = run.migration.phase == Phase::Switched;
        let mut done = Vec::new();
        let mut late = Vec::new();
        run.waiting.retain(|name| {
            let Some(host) = hosts.get(name) else { return false };
            match &host.session {
                Some(s) if s.has(revision) => {
                    done.push(name.clone());
                    false
                }
                Some(_) if *name != to && now.saturating_sub(since) > SETTLE => {
                    late.push((name.clone(), "which did not acknowledge in time"));
                    false
                }
                None if *name != to || is_switched => {
                    let patience =
                        if is_switched && *name != to && *name != from { AWAY } else { DISCONNECTED };
                    let wait = now.saturating_sub(host.gone_since) <= patience;
                    if !wait {
                        late.push((name.clone(), "whose agent is not connected"));
                    }
                    wait
                }
                Some(_) | None => true,
            }
        });
        for (host, why) in late {
            let mut text = format!("the migration of {vm} goes on without {host}, {why}");
            if host != from && host != to {
                text += ": until it is, VMs there that are on the same network do not reach it";
            }
            outputs.push(Output::Happened(Happening::new("problem", text).host(&host).field("vm", vm)));
            if is_switched {
                run.behind.insert(host);
            }
        }
        if is_switched {
            let switched = run.switched.unwrap_or(since);
            for name in done {
                run.acks_us.entry(name).or_insert_with(|| now.saturating_sub(switched));
            }
        }
        steer(now, run, hosts, outputs);
        if run.committing.is_some_and(|at| now.saturating_sub(at) < COMMIT) {
            return;
        }
        let put = |run: &mut Run, phase, outputs: &mut Vec<Output>| {
            run.committing = Some(now);
            let operations = vec![run.to_phase(phase, now)];
            outputs.push(Output::Commit { vm: vm.clone(), operations, receipt: None });
        };
        let phase = run.migration.phase;
        if phase != Phase::Switched && run.switched.is_some() {
            run.prepare_us.get_or_insert(now.saturating_sub(run.begun));
            put(run, Phase::Switched, outputs);
            return;
        }
        if phase == Phase::Preparing && run.waiting.contains(&to) && now.saturating_sub(since) > PREPARE {
            run.cancelled.get_or_insert_with(|| {
                format!(
                    "host {to} did not answer within {} s: check that its agent runs",
                    PREPARE / 1_000_000
                )
            });
        }
        if let (Some(reason), false) = (&run.cancelled, phase == Phase::Switched) {
            let receipt = run.receipt(false, Some(reason.clone()));
            let text = format!("the move of {vm} to {to} was rolled back: {reason}");
            run.committing = Some(now);
            run.ending = Some(text);
            let operations = vec![Operation::Delete(Key::Migration(vm.clone()))];
            outputs.push(Output::Commit { vm: vm.clone(), operations, receipt: Some(Box::new(receipt)) });
            return;
        }
        if !run.waiting.is_empty() {
            if phase == Phase::Switched && now.saturating_sub(since) > SETTLE + AWAY {
                run.behind.append(&mut run.waiting);
            } else {
                return;
            }
        }
        match phase {
            Phase::Preparing => {
                run.prepare_us = Some(now.saturating_sub(run.begun));
                put(run, Phase::Prepared, outputs);
            }
            Phase::Prepared => {}
            Phase::Switched => match run.asked {
                None if now.saturating_sub(*run.all_follow.get_or_insert(now)) < LINGER => {}
                None if run.awaits_words(now) || run.awaits_memory(now) => {}
                None => {
                    let (from, to) = (run.migration.from.clone(), run.migration.to.clone());
                    self.count(now, vm, Stage::After, &[&from, &to], outputs);
                    self.finish_if_counted(now, vm, outputs);
                }
                Some(_) => self.finish_if_counted(now, vm, outputs),
            },
        }
    }

    fn finish_if_counted(&mut self, now: Micros, vm: &VmRef, outputs: &mut Vec<Output>) {
        let desired = self.plan.desired();
        let Some(run) = self.runs.get_mut(vm) else { return };
        let waited = run.asked.is_some_and(|at| now.saturating_sub(at) > ASK);
        if !run.answers.is_empty() && !waited {
            return;
        }
        run.committing = Some(now);
        // Who has caught up meanwhile is not behind.
        let hosts = &self.hosts;
        let revision = run.revision;
        run.behind.retain(|host| {
            hosts.get(host).is_some_and(|h| !h.session.as_ref().is_some_and(|s| s.has(revision)))
        });
        let ports = desired.ports.values().filter(|p| p.value.name.vm_ref() == *vm).map(|p| p.value.clone());
        let operations = run.finish(ports);
        let receipt = run.receipt(true, None);
        let mut text = format!(
            "{vm} moved to {}: {}{} frames redirected, {} lost, last host after {} ms",
            run.migration.to,
            if receipt.exact { "" } else { "about " },
            receipt.redirected,
            receipt.lost,
            receipt.last_ack_us / 1000
        );
        if !receipt.behind.is_empty() {
            let hosts: Vec<&str> = receipt.behind.iter().map(HostName::as_str).collect();
            text += &format!("; not heard of it have: {}", hosts.join(", "));
        }
        run.ending = Some(text);
        outputs.push(Output::Commit { vm: vm.clone(), operations, receipt: Some(Box::new(receipt)) });
    }
}
