//! VMs that another tool moves without a word to anybody: their records go stale until somebody has the site follow.

use super::{Control, Output};
use crate::{Micros, happening::Happening};
use tenet_model::{HostName, Object, Operation, Phase, VmRef};

/// A VM that is not where the site has it, or is about not to be.
#[derive(Clone, Debug)]
pub(super) struct Stray {
    /// Where the site has it.
    from: HostName,
    /// Since when its records are stale, as far as that is known.
    since: Micros,
    /// It stands still there to be moved, or all of it has been, says the hypervisor there.
    left: bool,
    /// Where it runs, says the hypervisor there.
    at: Option<HostName>,
}

impl Control {
    /// A VM that no migration is known of stands still on a host, to be moved (or saved), or has left it.
    pub(super) fn leaves(&mut self, now: Micros, vm: &VmRef, host: &HostName) -> Option<Output> {
        if self.home(vm)? != *host {
            return None;
        }
        let stray = self.strays.entry(vm.clone()).or_insert_with(|| Stray {
            from: host.clone(),
            since: now,
            left: false,
            at: None,
        });
        // Its new host may have been heard first.
        (!std::mem::replace(&mut stray.left, true)).then(|| moved_unprepared(now, vm, stray)).flatten()
    }

    /// It does not leave after all.
    pub(super) fn stays(&mut self, vm: &VmRef, host: &HostName) {
        if self.strays.get(vm).is_some_and(|s| s.from == *host && s.at.is_none()) {
            self.strays.remove(vm);
        }
    }

    /// A VM that no migration is known of runs on a host. Where the site has it elsewhere, forwarding stays with the
    /// site.
    pub(super) fn runs_on(&mut self, now: Micros, vm: &VmRef, host: &HostName) -> Option<Output> {
        let home = self.home(vm)?;
        if home == *host {
            self.strays.remove(vm);
            return None;
        }
        let stray = self.strays.entry(vm.clone()).or_insert_with(|| Stray {
            from: home.clone(),
            since: now,
            left: false,
            at: None,
        });
        stray.at = Some(host.clone());
        if stray.left {
            return moved_unprepared(now, vm, stray);
        }
        let text = format!(
            "{vm} runs on {host}, says its hypervisor, but belongs to {home}, where its frames go: end the one that \
             should not run, or move it with `tenet vm migrate {vm} --to {host}`"
        );
        Some(problem(text, vm, host))
    }

    /// The site follows strays, or has forgotten them.
    pub(super) fn follow_strays(&mut self, now: Micros, operations: &[Operation], outputs: &mut Vec<Output>) {
        if self.strays.is_empty() {
            return;
        }
        for operation in operations {
            let (vm, to) = match operation {
                Operation::Put(Object::Migration(m)) if m.phase == Phase::Switched => (m.vm.clone(), &m.to),
                Operation::Put(Object::Port(port)) => match &port.host {
                    Some(host) => (port.name.vm_ref(), host),
                    None => continue,
                },
                Operation::Put(_) | Operation::Delete(_) => continue,
            };
            let Some(stray) = self.strays.remove(&vm) else { continue };
            if stray.at.as_ref() != Some(to) {
                if stray.from == *to {
                    self.strays.insert(vm, stray);
                }
                continue;
            }
            let text = format!(
                "the records of {vm} name {to} now; for {} they named {}, where it was no more: next time say \
                 `tenet vm migrate {vm} --to HOST --switch-only` before another tool moves it",
                time(now.saturating_sub(stray.since)),
                stray.from
            );
            outputs.push(problem(text, &vm, to));
        }
        let desired = self.plan.desired();
        self.strays.retain(|vm, s| desired.ports_of(vm).any(|(_, p)| p.value.host.as_ref() == Some(&s.from)));
    }

    /// Where the site has a VM.
    fn home(&self, vm: &VmRef) -> Option<HostName> {
        self.desired().ports_of(vm).find_map(|(_, p)| p.value.host.clone())
    }
}

/// Both hosts have said it: it was moved, and nobody was asked to prepare that.
fn moved_unprepared(now: Micros, vm: &VmRef, stray: &Stray) -> Option<Output> {
    let (from, to) = (&stray.from, stray.at.as_ref()?);
    let text = format!(
        "{vm} was moved from {from} to {to} by another tool, and its network was not prepared: for {} its frames have \
         gone to {from}, where it is no more. `tenet vm migrate {vm} --to {to}` lets them follow; next time say \
         `tenet vm migrate {vm} --to {to} --switch-only` before it is moved",
        time(now.saturating_sub(stray.since))
    );
    Some(problem(text, vm, to))
}

fn problem(text: String, vm: &VmRef, host: &HostName) -> Output {
    Output::Happened(Happening::new("problem", text).host(host).field("vm", vm))
}

fn time(us: Micros) -> String {
    if us < 10_000_000 { format!("{} ms", us / 1000) } else { format!("{} s", us / 1_000_000) }
}
