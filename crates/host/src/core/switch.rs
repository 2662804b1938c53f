//! What a hypervisor says of a VM that moves: acted upon here at once, before the controller has its say.

use super::HostCore;
use crate::input::Output;
use crate::plan::{self, Device};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tenet_compile::{PortState, Rows};
use tenet_model::{NetId, PortRef, VmRef};
use tenet_tables::PORT_MOVED;
use tenet_tables::image::Image;

impl HostCore {
    /// What a hypervisor says of a VM; the ports that move are put into the state that follows.
    pub(super) fn vm_is(&mut self, vm: VmRef, runs: Option<bool>) -> Vec<Output> {
        let rows = self.state.iter().flat_map(|(_, rows)| plan::ports(rows));
        let moving = rows.filter(|(p, _)| p.peer_pa.is_some() && p.name.vm_ref() == vm);
        let nets: BTreeSet<NetId> = moving.map(|(p, _)| p.net).collect();
        match runs {
            Some(runs) => self.vms.insert(vm, runs),
            None => self.vms.remove(&vm),
        };
        if nets.is_empty() { Vec::new() } else { self.reconcile(Some(nets)) }
    }

    /// VMs of which a hypervisor has said something and that have a port here.
    pub(super) fn vms_here(&self) -> BTreeSet<VmRef> {
        if self.vms.is_empty() {
            return BTreeSet::new();
        }
        let ports = self.state.iter().flat_map(|(_, rows)| plan::ports(rows));
        ports.map(|(p, _)| p.name.vm_ref()).filter(|vm| self.vms.contains_key(vm)).collect()
    }

    /// Forgets what was said of VMs that had a port here and have none now: it is of a life that is over, and would
    /// switch the VM when it comes back, before it has moved. What is said of a VM before its port comes is kept.
    pub(super) fn forget_left(&mut self, had: BTreeSet<VmRef>) {
        if had.is_empty() {
            return;
        }
        let have = self.vms_here();
        for vm in had.difference(&have) {
            self.vms.remove(vm);
        }
    }

    /// Ports that came here by a migration that is not over, as the new rows have it.
    pub(super) fn arriving(&self, rows: &Rows) -> BTreeSet<PortRef> {
        let arriving = plan::ports(rows).filter(|(p, _)| match p.state {
            PortState::Prepared => true,
            PortState::Active => p.peer_pa.is_some() && self.arrived.contains(&p.name),
            PortState::Blocked | PortState::Moved => false,
        });
        arriving.map(|(p, _)| p.name.clone()).collect()
    }

    /// Puts ports of VMs that stand still to be switched away from here into the state in which they redirect, before
    /// the controller says so. Those ports and the ones of networks not looked at, with where to.
    pub(super) fn redirections(
        &self,
        rows: &Rows,
        devices: &BTreeMap<String, Device>,
        actual: &Image,
        planned: &BTreeSet<NetId>,
        new: &mut Image,
    ) -> BTreeMap<PortRef, IpAddr> {
        let mut redirected = BTreeMap::new();
        for (row, _) in plan::ports(rows).filter(|(p, _)| p.state == PortState::Active) {
            let Some(peer) = row.peer_pa.filter(|_| !self.arrived.contains(&row.name)) else { continue };
            let before = self.redirected.get(&row.name) == Some(&peer);
            if !planned.contains(&row.net) {
                redirected.extend(before.then(|| (row.name.clone(), peer)));
                continue;
            }
            let ifindex = devices.get(&row.device).map(|d| d.ifindex);
            let Some(want) = ifindex.and_then(|i| new.ports.get_mut(&i)) else { continue };
            // An agent that was started again finds what the last one did; the generation tells it from the end of an
            // earlier move.
            let found = ifindex.and_then(|i| actual.ports.get(&i)).is_some_and(|have| {
                have.state == PORT_MOVED
                    && (have.net, have.vsid, have.mac, have.peer_pa, have.generation)
                        == (want.net, want.vsid, want.mac, want.peer_pa, want.generation)
            });
            // A hypervisor that is not heard any more has most likely ended after the switch.
            let stopped = self.vms.get(&row.name.vm_ref()).map_or(before || found, |runs| !runs);
            if stopped {
                want.state = PORT_MOVED;
                redirected.insert(row.name.clone(), peer);
            }
        }
        redirected
    }
}
