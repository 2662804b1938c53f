//! What hypervisors say of a VM that moves, and what the source's agent is told to do.

use super::{Control, Order, Output, open_id, post_copy};
use crate::{
    DISCONNECTED, Micros, SessionId,
    happening::Happening,
    migration::{CANCEL, DOUBT, Progress, QUIET, Run, STALL, Taken},
    session::Host,
};
use std::collections::BTreeMap;
use tenet_model::{ARRIVED, ActivatedBy, HostName, Phase, VmRef};
use uuid::Uuid;

/// What a hypervisor says of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// It stands still, to be switched to another host.
    Stopped,
    /// It runs.
    Resumed,
    /// It sent its first frame on this host.
    FirstFrame {
        /// Microseconds after it began to run.
        after_us: u64,
    },
    /// Its memory is being moved.
    Migration {
        /// The migration that it is said of; none: one that the source's agent was not told to drive.
        id: Option<Uuid>,
        /// How far.
        progress: Progress,
        /// How long it stood still by the hypervisor's clock, once that is known.
        downtime_us: Option<u64>,
        /// Why it failed, if it did; may be empty even then.
        error: String,
    },
}

impl Control {
    /// A host's hypervisor says something of a VM.
    pub fn hypervisor(&mut self, now: Micros, session: SessionId, vm: &VmRef, word: Word) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some(host) = self.sessions.get(&session).cloned() else { return outputs };
        let Some(run) = self.runs.get_mut(vm) else {
            outputs.extend(self.without_migration(now, vm, &host, &word));
            return outputs;
        };
        let (from, to) = (run.migration.from == host, run.migration.to == host);
        match word {
            Word::Stopped if from => {
                run.heard = true;
                run.stopped = Some(now);
                run.resumed_at_source = false;
                run.progress.get_or_insert_default().status = "stopped".to_owned();
                run.grew = (now, run.grew.1.saturating_add(1));
            }
            Word::Resumed if to => {
                run.resumed.get_or_insert(now);
                run.stays_moved();
                if run.switched.is_none() && run.cancelled.is_none() {
                    run.switched = Some(now);
                    run.activated_by = Some(ActivatedBy::Resume);
                    let text = format!("{vm} runs on {host}, says its hypervisor");
                    outputs.push(told(text, vm, &host));
                }
            }
            Word::Resumed if from => {
                run.resumed_at_source = true;
                if run.switched.is_none() {
                    run.stopped = None;
                    // libvirt takes a VM back that the destination could not start.
                    run.completed = None;
                    outputs.push(told(format!("{vm} goes on running on {host}"), vm, &host));
                } else {
                    let text = format!(
                        "{vm} runs on {host} again, says its hypervisor, but has moved to {}: end one of the two",
                        run.migration.to
                    );
                    outputs
                        .push(Output::Happened(Happening::new("problem", text).host(&host).field("vm", vm)));
                }
            }
            Word::FirstFrame { after_us } if to => {
                run.first_frame_us.get_or_insert(after_us);
            }
            // An earlier migration's word, come late.
            Word::Migration { id: Some(id), .. } if id != run.migration.id => {}
            // The source of this one was the destination of the one before.
            Word::Migration { progress, .. } if from && progress.status == ARRIVED => {}
            Word::Migration { id, progress, downtime_us, error } if from => {
                run.moves(now, progress, id.is_some(), downtime_us, &error);
            }
            Word::Migration { id: Some(_), progress, error, .. } if to && run.is_made_ready() => {
                run.receiver_says(&progress.status, error);
            }
            Word::Migration { progress, downtime_us, .. } if to && run.post_copy => {
                run.downtime_us = downtime_us.or(run.downtime_us);
                if matches!(progress.status.as_str(), "completed" | ARRIVED) {
                    run.completed.get_or_insert(now);
                }
            }
            // libvirt tells it on the destination only.
            Word::Migration { downtime_us: Some(us), .. } if to => run.downtime_us = Some(us),
            Word::Stopped | Word::Resumed | Word::FirstFrame { .. } | Word::Migration { .. } => {}
        }
        self.progress(now, &mut outputs);
        outputs
    }

    /// Something is said of a VM of which no migration is known.
    fn without_migration(&mut self, now: Micros, vm: &VmRef, host: &HostName, word: &Word) -> Option<Output> {
        match word {
            Word::Resumed => self.runs_on(now, vm, host),
            Word::Stopped => self.leaves(now, vm, host),
            // With an id it is the late word of one that was known.
            Word::Migration { id: None, progress, .. } => match progress.status.as_str() {
                "completed" => self.leaves(now, vm, host),
                "failed" | "cancelled" => {
                    self.stays(vm, host);
                    None
                }
                _ => None,
            },
            Word::Migration { .. } | Word::FirstFrame { .. } => None,
        }
    }

    /// How far a migration's hypervisor is, as it says.
    #[must_use]
    pub fn migration_progress(&self, vm: &VmRef) -> Option<&Progress> {
        self.runs.get(vm)?.progress.as_ref()
    }

    /// Gives a migration up: first the hypervisor, if one is moving the VM, whoever told it to; then the network.
    pub(super) fn cancel_drive(&mut self, now: Micros, vm: &VmRef, reason: &str, outputs: &mut Vec<Output>) {
        let Some(run) = self.runs.get_mut(vm) else { return };
        let session = self.hosts.get(&run.migration.from).and_then(open_id);
        match session.filter(|_| run.driven.is_some() || run.taken.is_some() || run.under_way()) {
            Some(session) => {
                if run.cancelling.is_none() {
                    run.cancelling = Some((now, reason.to_owned()));
                    outputs.push(drive(run, session, Order::GiveUp));
                }
            }
            None => {
                run.cancelled.get_or_insert_with(|| reason.to_owned());
            }
        }
    }
}

pub(super) fn told(text: String, vm: &VmRef, host: &HostName) -> Output {
    Output::Happened(Happening::new("migration", text).host(host).field("vm", vm))
}

pub(super) fn drive(run: &Run, session: SessionId, order: Order) -> Output {
    Output::Drive {
        session,
        migration: run.migration.id,
        vm: run.migration.vm.clone(),
        through: run.migration.through,
        uri: run.migration.uri.clone().unwrap_or_default(),
        post_copy: run.migration.post_copy,
        order,
    }
}

/// Tells the source's agent to move the VM once it may, and again after each break of its session.
pub(super) fn steer(now: Micros, run: &mut Run, hosts: &BTreeMap<HostName, Host>, outputs: &mut Vec<Output>) {
    post_copy::follow(now, run, hosts, outputs);
    if run.migration.phase == Phase::Switched || run.switched.is_some() || run.cancelled.is_some() {
        return;
    }
    if let Some((_, reason)) = run.cancelling.take_if(|(at, _)| now.saturating_sub(*at) > CANCEL) {
        run.cancelled = Some(format!("{reason} (the hypervisor did not confirm it)"));
        return;
    }
    if run.completed.is_some_and(|at| now.saturating_sub(at) > QUIET) {
        // Nobody watches it on the destination, and it says nothing: a VM that was paused before.
        run.switched = Some(now);
        let text =
            format!("{} has been moved, says the hypervisor of {}", run.migration.vm, run.migration.from);
        outputs.push(told(text, &run.migration.vm, &run.migration.from));
        return;
    }
    if run.post_copy {
        return;
    }
    stall(now, run, outputs);
    if run.migration.phase != Phase::Prepared || !run.migration.through.driven() || run.cancelling.is_some() {
        return;
    }
    if take_up(now, run, hosts, outputs) {
        return;
    }
    if !post_copy::is_received(now, run, hosts, outputs) {
        return;
    }
    let from = &run.migration.from;
    let source = hosts.get(from);
    match source.and_then(open_id) {
        Some(session) if run.driven != Some(session) => {
            run.driven = Some(session);
            outputs.push(drive(run, session, Order::Move));
        }
        Some(_) => {}
        None if run.driven.is_none()
            && source.is_none_or(|h| now.saturating_sub(h.gone_since) > DISCONNECTED) =>
        {
            run.cancelled =
                Some(format!("the agent of host {from}, which is to move the VM, is not connected"));
        }
        None => {}
    }
}

/// Tells of a hypervisor that moves nothing more. It gives up by itself, but only after many minutes: TCP does not see a
/// cut wire sooner.
fn stall(now: Micros, run: &mut Run, outputs: &mut Vec<Output>) {
    // Of a move that another tool began nobody may be asking how far it is.
    let watched = run.migration.through.driven() || run.grew.1 > 2;
    if run.stalled || !watched || !run.under_way() || now.saturating_sub(run.grew.0) <= STALL {
        return;
    }
    run.stalled = true;
    let (vm, from, to) = (&run.migration.vm, &run.migration.from, &run.migration.to);
    let stands = if run.stopped.is_some() { ", which stands still" } else { "" };
    let text = format!(
        "for {} s nothing more of {vm}{stands} has been moved from {from} to {to}: look whether the way between them is \
         whole; `tenet vm cancel {vm}` gives the move up and leaves the VM on {from}",
        STALL / 1_000_000
    );
    outputs.push(Output::Happened(Happening::new("problem", text).host(from).field("vm", vm)));
}

/// Finds out how a migration stands that an earlier run of the controller may have had driven; whether that is still
/// open. Then nothing is begun or given up: the source's QEMU may have ended because the VM runs on the destination,
/// which says so when its agent's session is there.
fn take_up(now: Micros, run: &mut Run, hosts: &BTreeMap<HostName, Host>, outputs: &mut Vec<Output>) -> bool {
    let Some(taken) = &run.taken else { return false };
    let m = &run.migration;
    let source = hosts.get(&m.from).and_then(open_id);
    let target = hosts.get(&m.to).and_then(|h| h.session.as_ref());
    // An agent says which ports are active before it acknowledges anything.
    let heard = target.is_some_and(|s| s.has(run.revision));
    match source {
        Some(session) if run.driven != Some(session) => {
            outputs.push(drive(run, session, Order::Follow));
            run.driven = Some(session);
            run.taken = Some(Taken::Unknown);
            return true;
        }
        Some(_) if *taken == Taken::Idle && heard => {
            run.driven = None;
            run.taken = None;
            return false;
        }
        Some(_) | None => {}
    }
    if now.saturating_sub(run.since) > DOUBT && !run.doubted {
        let (vm, from, to) = (&m.vm, &m.from, &m.to);
        let at_source = match (source, taken) {
            (None, _) => format!("the agent of host {from} is not connected"),
            (Some(_), Taken::Unknown) => format!("host {from} does not say how far its move is"),
            (Some(_), Taken::Idle) => format!("it runs on host {from}, says its hypervisor there"),
            (Some(_), Taken::Gone(why)) => format!("host {from} knows nothing of it ({why})"),
        };
        let at_target = match (target, heard) {
            (None, _) => format!("the agent of host {to} is not connected"),
            (Some(_), false) => format!("host {to} does not acknowledge its state"),
            (Some(_), true) => format!("it has not been heard of on host {to}"),
        };
        let text = format!(
            "since the controller was started again it is not known how the move of {vm} ended: {at_source}, and \
             {at_target}; start the agents, or say `tenet vm switch {vm}` if it runs on {to}, `tenet vm cancel {vm}` \
             if it does not"
        );
        outputs.push(Output::Happened(Happening::new("problem", text).host(to).field("vm", vm)));
        run.doubted = true;
    }
    true
}
