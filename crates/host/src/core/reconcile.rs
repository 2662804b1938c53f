//! From what is wanted and what is there to what is to be written; the states that the data plane changed by itself stay.

use super::{HostCore, REPAIRS_KEPT};
use crate::explain::explain;
use crate::input::{AttachState, Output, Role};
use crate::message::Message;
use crate::plan::{self, Plan};
use crate::{drain, part, probe};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tenet_compile::PortState;
use tenet_model::{NetId, PortRef};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{PORT_ACTIVE, PORT_PREPARED, PROBE_NET};

impl HostCore {
    /// Plans afresh (all, or some networks) and brings programs and maps to it.
    pub(super) fn reconcile(&mut self, nets: Option<BTreeSet<NetId>>) -> Vec<Output> {
        let (mut outputs, operations) = self.difference(nets);
        if self.actual.is_some() {
            outputs.push(Output::Apply(operations));
        }
        outputs
    }

    /// As `reconcile` of all; each write is a repair.
    pub(super) fn reconcile_explained(&mut self) -> Vec<Output> {
        let (mut outputs, operations) = self.difference(None);
        let (Some(actual), Some((_, rows))) = (&self.actual, &self.state) else { return outputs };
        // Maps that nobody has configured are new: filling them is no repair.
        if actual.config.is_some_and(|c| c.layout != 0) {
            let explained = operations.iter().take(REPAIRS_KEPT).map(|o| explain(o, actual, rows));
            let lines: Vec<String> = explained.collect();
            for line in lines {
                self.repair_line(line);
            }
            if operations.len() > REPAIRS_KEPT {
                self.repair_line(format!("and {} more entries", operations.len() - REPAIRS_KEPT));
            }
            self.stats.repairs += operations.len() as u64;
        }
        outputs.push(Output::Apply(operations));
        outputs
    }

    pub(super) fn difference(&mut self, nets: Option<BTreeSet<NetId>>) -> (Vec<Output>, Vec<Operation>) {
        let mut outputs = self.attachments();
        let Some((_, rows)) = &self.state else { return (outputs, Vec::new()) };
        let uplink = self.uplink();
        let devices = self.port_devices(rows);
        let empty = Image::default();
        let actual = self.actual.as_ref().unwrap_or(&empty);
        let mut host = Plan::default();
        plan::plan_host(rows, uplink, &mut host);
        let all = || plan::networks(rows).into_iter().chain([NetId(PROBE_NET)]).collect();
        let planned = nets.clone().unwrap_or_else(all);
        let mut new = host.image;
        if nets.is_none() {
            self.problems.clear();
        }
        self.problems.insert(None, host.problems);
        for net in &planned {
            let mut plan = Plan { image: new, problems: Vec::new() };
            if net.0 == PROBE_NET {
                probe::plan_probe(rows, &self.devices, &mut plan);
            } else {
                plan::plan_network(rows, *net, &devices, uplink, &self.paths, &mut plan);
            }
            new = plan.image;
            self.problems.insert(Some(*net), plan.problems);
        }
        self.problems.retain(|_, p| !p.is_empty());

        // The states of ports that the data plane changed by itself stay.
        let still = |port: &PortRef, peer: &Option<IpAddr>| match self.port_row(port) {
            Some(row) => row.state == PortState::Prepared && row.peer_pa == *peer,
            None => false,
        };
        let stale: Vec<PortRef> =
            self.activated.iter().filter(|(p, peer)| !still(p, peer)).map(|(p, _)| p.clone()).collect();
        let mut found = Vec::new();
        for (row, _) in
            plan::ports(rows).filter(|(p, _)| p.state == PortState::Prepared && planned.contains(&p.net))
        {
            let Some(ifindex) = devices.get(&row.device).map(|d| d.ifindex) else { continue };
            let Some(want) = new.ports.get_mut(&ifindex) else { continue };
            let known = self.activated.get(&row.name) == Some(&row.peer_pa);
            let turned = actual.ports.get(&ifindex).is_some_and(|have| {
                let same = (want.net, want.vsid, want.mac, want.peer_pa)
                    == (have.net, have.vsid, have.mac, have.peer_pa);
                // The generation tells an activation from an active port that was told to prepare.
                let ours = have.generation == want.generation || self.prepared.contains(&row.name);
                same && have.state == PORT_ACTIVE && ours
            });
            // A hypervisor's word may come before the port is in the kernel.
            let runs = self.vms.get(&row.name.vm_ref()) == Some(&true);
            if runs || (known && actual.ports.contains_key(&ifindex)) || turned {
                want.state = PORT_ACTIVE;
                if !known {
                    found.push((row.name.clone(), row.peer_pa));
                }
            }
        }
        self.prepared = plan::ports(rows)
            .filter(|(p, _)| p.state == PortState::Prepared)
            .map(|(p, _)| p.name.clone())
            .collect();
        self.arrived = self.arriving(rows);
        let redirected = self.redirections(rows, &devices, actual, &planned, &mut new);

        let operations = if let Some(nets) = &nets {
            let nets: BTreeSet<u32> = nets.iter().map(|n| n.0).collect();
            let mut vsids = part::vsids(&new, &nets);
            vsids.extend(part::vsids(&self.wanted, &nets));
            vsids.extend(part::vsids(actual, &nets));
            let old = Image {
                peers: self.wanted.peers.clone(),
                config: self.wanted.config,
                pools: self.wanted.pools.clone(),
                ..part::part(&self.wanted, &nets, &vsids)
            };
            let have = Image {
                peers: actual.peers.clone(),
                config: actual.config,
                pools: actual.pools.clone(),
                ..part::part(actual, &nets, &vsids)
            };
            let operations = have.operations_to(&new);
            part::replace(&mut self.wanted, &old, &new);
            operations
        } else {
            let operations = actual.operations_to(&new);
            self.wanted = new;
            operations
        };
        self.redirected = redirected;
        for port in stale {
            self.activated.remove(&port);
        }
        for (port, peer) in found {
            outputs.push(Output::Send(Message::PortActivated(port.clone())));
            self.activated.insert(port, peer);
        }
        (outputs, operations)
    }

    /// Takes over ports that the kernel shows active where we wanted them prepared.
    pub(super) fn adopt_activations(&mut self, only: Option<u32>) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some(actual) = &self.actual else { return outputs };
        let turned: Vec<u32> = (self.wanted.ports.iter())
            .filter(|(i, _)| only.is_none_or(|o| o == **i))
            .filter(|(i, p)| {
                p.state == PORT_PREPARED && actual.ports.get(i).is_some_and(|a| a.state == PORT_ACTIVE)
            })
            .map(|(i, _)| *i)
            .collect();
        for ifindex in turned {
            if let Some(port) = self.wanted.ports.get_mut(&ifindex) {
                port.state = PORT_ACTIVE;
            }
            let Some(row) = self.device_name(ifindex).and_then(|d| self.port_at(d)) else { continue };
            let (name, peer) = (row.name.clone(), row.peer_pa);
            outputs.push(Output::Send(Message::PortActivated(name.clone())));
            self.activated.insert(name, peer);
        }
        outputs
    }

    /// Programs to attach: the uplinks' first.
    pub(super) fn attachments(&mut self) -> Vec<Output> {
        let mut needed: Vec<(String, u32, Role)> =
            self.uplink_devices().map(|(name, d)| (name.clone(), d.ifindex, Role::Uplink)).collect();
        if let Some((_, rows)) = &self.state {
            let devices = self.port_devices(rows);
            needed.extend(devices.into_iter().map(|(name, d)| (name, d.ifindex, Role::Port)));
            let own = [probe::tap(&self.devices), drain::tap(&self.devices)].into_iter().flatten();
            needed.extend(own.map(|(name, d)| (name.clone(), d.ifindex, Role::Port)));
        }
        // What is attached is known only after the first look at the kernel.
        needed.retain(|(_, ifindex, _)| self.actual.is_some() && !self.attached.contains_key(ifindex));
        for (_, ifindex, role) in &needed {
            self.attached.insert(*ifindex, AttachState::Pending);
            self.roles.insert(*ifindex, *role);
        }
        needed.into_iter().map(|(device, ifindex, role)| Output::Attach { device, ifindex, role }).collect()
    }
}
