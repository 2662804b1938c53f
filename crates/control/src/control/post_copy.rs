//! Post-copy: the VM runs on the destination before all of its memory is there. From that moment on neither host has all
//! of it, so that nothing is given up or rolled back, and the migration lasts until the rest has come.

use super::hypervisor::drive;
use super::{Control, Order, Output, open_id};
use crate::{
    AWAY, DISCONNECTED, Micros,
    happening::Happening,
    migration::{Broken, QUIET, RECEIVE, Run, STALL},
    session::Host,
};
use std::collections::BTreeMap;
use tenet_model::{HostName, Phase, Through, VmRef};

impl Control {
    /// Whether a VM's memory follows it, so that there is no way back.
    #[must_use]
    pub fn is_in_post_copy(&self, vm: &VmRef) -> bool {
        self.runs.get(vm).is_some_and(Run::memory_follows)
    }
}

impl Run {
    /// Whether it runs on the destination, or is about to, and part of its memory is still to come.
    pub(crate) fn memory_follows(&self) -> bool {
        self.post_copy && self.completed.is_none() && self.broken.is_none()
    }

    /// Whether the end of a move that is or may be in post-copy is still to be heard.
    pub(crate) fn awaits_memory(&self, now: Micros) -> bool {
        if self.completed.is_some() {
            return false;
        }
        match &self.broken {
            Some((at, _)) => now.saturating_sub(*at) <= QUIET,
            // A controller that was started again does not know, but asks.
            None => {
                let asked_for = self.migration.post_copy && now.saturating_sub(self.since) <= DISCONNECTED;
                self.post_copy || asked_for
            }
        }
    }

    /// Whether the destination's QEMU is to be made ready, and is not yet.
    pub(super) fn is_made_ready(&self) -> bool {
        self.receiver.told.is_some() && !self.receiver.ready && self.driven.is_none()
    }

    /// The destination's agent says how far its QEMU is.
    pub(super) fn receiver_says(&mut self, status: &str, error: String) {
        match status {
            "ready" => self.receiver.ready = true,
            "failed" => {
                let to = &self.migration.to;
                self.cancelled
                    .get_or_insert_with(|| format!("host {to} is not ready for post-copy: {error}"));
            }
            status => {
                self.progress.get_or_insert_default().status = status.to_owned();
                self.receiver.lacks = error;
            }
        }
    }
}

/// Whether the destination's QEMU is ready for what comes; if not, has it made so. QEMU needs to know of post-copy on both
/// sides before the memory moves, and the one which waits ends at the first word of it otherwise.
pub(super) fn is_received(
    now: Micros,
    run: &mut Run,
    hosts: &BTreeMap<HostName, Host>,
    outputs: &mut Vec<Output>,
) -> bool {
    let by_agents = run.migration.post_copy && run.migration.through == Through::Qmp;
    // libvirt sees to it by itself; what moves already needs no more.
    if !by_agents || run.receiver.ready || run.driven.is_some() {
        return true;
    }
    let since = *run.receiver.since.get_or_insert(now);
    let to = run.migration.to.clone();
    let host = hosts.get(&to);
    match host.and_then(open_id) {
        Some(session) if run.receiver.told != Some(session) => {
            run.receiver.told = Some(session);
            outputs.push(drive(run, session, Order::Receive));
        }
        Some(_) if now.saturating_sub(since) > RECEIVE => {
            let lacks = &run.receiver.lacks;
            let why = if lacks.is_empty() { String::new() } else { format!(": {lacks}") };
            let next = tenet_model::NEXT;
            run.cancelled = Some(format!(
                "host {to} has had no QEMU for {} s that waits for the VM and whose monitor its agent has{why}{next}start \
                 it with what `tenet vm run-args {} --host {to}` prints, and -incoming",
                RECEIVE / 1_000_000,
                run.migration.vm,
            ));
        }
        None if host.is_none_or(|h| now.saturating_sub(h.gone_since) > DISCONNECTED) => {
            run.cancelled = Some(format!(
                "the agent of host {to}, which is to make the VM's QEMU there ready for post-copy, is not connected"
            ));
        }
        Some(_) | None => {}
    }
    false
}

/// Sees to it that the end of a move in post-copy is heard, and tells of one that stands still or has failed.
pub(super) fn follow(
    now: Micros,
    run: &mut Run,
    hosts: &BTreeMap<HostName, Host>,
    outputs: &mut Vec<Output>,
) {
    let is_switched = run.migration.phase == Phase::Switched;
    let may_be = run.post_copy || (is_switched && run.migration.post_copy);
    if !may_be || run.completed.is_some() || run.ending.is_some() {
        return;
    }
    if let Some((at, why)) = run.broken.clone() {
        broken(now, run, at, &why, outputs);
        return;
    }
    let source = hosts.get(&run.migration.from);
    match source.and_then(open_id) {
        Some(session) if run.taken.is_none() && run.driven != Some(session) => {
            run.driven = Some(session);
            outputs.push(drive(run, session, Order::Follow));
        }
        Some(_) => {}
        None if run.post_copy && source.is_none_or(|h| now.saturating_sub(h.gone_since) > AWAY) => {
            run.broken = Some((now, Broken::Unheard));
        }
        None => {}
    }
    let paused = run.progress.as_ref().is_some_and(|p| p.status == "postcopy-paused");
    let stalled = !run.stalled && run.under_way() && now.saturating_sub(run.grew.0) > STALL;
    if !run.post_copy || !(stalled || (paused && !run.interrupted)) {
        return;
    }
    run.stalled = true;
    run.interrupted |= paused;
    let (vm, from, to) = (&run.migration.vm, &run.migration.from, &run.migration.to);
    let what = if paused { "is interrupted" } else { "gets no further" };
    let resume = match (paused, run.migration.through) {
        (false, _) => String::new(),
        (true, Through::Libvirt) => {
            format!("; then on {from}: `virsh migrate --live --p2p --postcopy-resume DOMAIN URI`")
        }
        (true, Through::Qmp | Through::SwitchOnly | Through::Other) => format!(
            "; then let the two QEMUs take it up again: by QMP `migrate-recover` with a URI to listen at on {to}, and \
             `migrate` with that URI and \"resume\": true on {from} (docs/migration.md)"
        ),
    };
    let text = format!(
        "the move of {vm} {what} in post-copy: it lives on {to} and stands still as soon as it needs what is still on \
         {from}, so do not end its QEMU there; make the way between the two whole{resume}"
    );
    outputs.push(problem(text, vm, to));
}

/// The rest of the memory is not waited for any longer.
fn broken(now: Micros, run: &mut Run, at: Micros, why: &Broken, outputs: &mut Vec<Output>) {
    let m = &run.migration;
    let (vm, from, to) = (&m.vm, &m.from, &m.to);
    let away = format!("the agent of host {from} has not been connected for {} s", AWAY / 1_000_000);
    let (failed, why) = match why {
        Broken::Failed(why) => (true, why),
        Broken::Unheard => (false, &away),
    };
    if run.switched.is_none() && run.resumed_at_source {
        // It had not let go of the VM yet.
        run.cancelled.get_or_insert_with(|| format!("the hypervisor's migration failed: {why}"));
        return;
    }
    if now.saturating_sub(at) <= QUIET || run.broken_told {
        return;
    }
    let text = if run.switched.is_some() && !failed {
        format!(
            "whether all memory of {vm} has come to {to} is not heard: {why}; start it, and do not end the QEMU on {from} \
             while {vm} stands still"
        )
    } else if run.switched.is_some() {
        format!(
            "the move of {vm} failed in post-copy ({why}): it was on {to} by then, and the memory that was still on {from} \
             does not come; if it stands still, end it and start it anew on {to}"
        )
    } else {
        format!(
            "where {vm} is after its move in post-copy is not known ({why}): it runs on neither host, as far as is heard; \
             say `tenet vm switch {vm}` if it runs on {to}, `tenet vm cancel {vm}` if it does not"
        )
    };
    outputs.push(problem(text, vm, to));
    run.broken_told = true;
}

fn problem(text: String, vm: &VmRef, host: &HostName) -> Output {
    Output::Happened(Happening::new("problem", text).host(host).field("vm", vm))
}
