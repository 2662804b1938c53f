//! What the agent's loop does when a hypervisor says something.

use super::{Said, Verdict, What, first_frame};
use crate::agent::Agent;
use crate::convert;
use std::collections::BTreeSet;
use std::time::Instant;
use tenet_api::agent::agent_message;
use tenet_compile::{PortState, Row};
use tenet_host::Input;
use tenet_model::PortRef;

impl Agent {
    /// What a hypervisor says: done here first, then told.
    pub(crate) fn said(&mut self, word: &Said) {
        let vm = word.vm.clone();
        // That nothing more will be heard is the agent's own word.
        if word.what != What::Silent {
            match self.budget.spend(Instant::now(), &vm, word.is_progress()) {
                Verdict::Take => {}
                Verdict::Drop => return,
                Verdict::DropAndTell => {
                    tracing::warn!(%vm, source = word.source, "too many words of one hypervisor: the rest is passed over");
                    return;
                }
            }
        }
        if let Some(event) = word.message() {
            if !matches!(word.what, What::Migration(_)) {
                tracing::info!(%vm, source = word.source, what = ?word.what, "said by a hypervisor");
            }
            self.send(convert::wrap(agent_message::Message::VmEvent(event)));
        }
        match word.what {
            What::Stopped => {
                self.feed(Input::VmStopped(vm.clone()));
                self.drain_anew(&vm);
            }
            What::Resumed => {
                self.first.resumed(&vm, word.time_us);
                self.feed(Input::VmResumed(vm.clone()));
                self.undrain(&vm);
            }
            What::Silent => self.feed(Input::VmForgotten(vm)),
            What::Migration(_) => {}
        }
    }

    /// Rows have come: from what the devices of ports that are prepared now have sent so far, a first frame is told.
    pub(crate) fn prepared(&mut self, ports: Vec<(PortRef, String)>) {
        if ports.is_empty() && !self.first.expects() {
            return;
        }
        let known = self.core.ports().filter(|p| p.state == PortState::Prepared);
        let known: BTreeSet<PortRef> = known.map(|p| p.name.clone()).collect();
        self.first.keep(|port| known.contains(port));
        let new = !ports.is_empty();
        for (port, device) in ports {
            if let Some(ifindex) = self.core.device_index(&device).filter(|_| known.contains(&port)) {
                let sent = self.kernel.sent(ifindex);
                self.first.prepared(&port, ifindex, sent.unwrap_or(0));
            }
        }
        if new {
            self.vms.look();
        }
    }

    pub(crate) fn look_for_first_frames(&mut self) {
        let kernel = &mut self.kernel;
        for (vm, after_us) in self.first.look(|ifindex| kernel.sent(ifindex)) {
            self.send(convert::wrap(agent_message::Message::VmEvent(first_frame(&vm, after_us))));
        }
    }
}

/// Prepared ports among these rows, with their devices.
pub(crate) fn prepared<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(PortRef, String)> {
    let ports = rows.filter_map(|row| if let Row::Port(p) = row { Some(p) } else { None });
    ports.filter(|p| p.state == PortState::Prepared).map(|p| (p.name.clone(), p.device.clone())).collect()
}
