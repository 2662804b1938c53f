//! What the controller is told about networks and ports: read back from the kernel.

use super::{HostCore, is_own};
use crate::input::AttachState;
use crate::message::{NetworkProof, PortStatus};
use crate::{part, plan, rows_back};
use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::{PortRow, PortState, RowKey, digests};
use tenet_model::NetId;
use tenet_tables::PROBE_NET;

impl HostCore {
    pub(super) fn proofs(&self, nets: Option<&BTreeSet<NetId>>) -> Vec<NetworkProof> {
        let (Some(actual), Some((_, rows))) = (&self.actual, &self.state) else { return Vec::new() };
        let known = || rows.0.keys().filter_map(|k| if let RowKey::Network(n) = k { Some(*n) } else { None });
        let (back, mut nets) = match nets {
            Some(nets) => {
                let numbers: BTreeSet<u32> = nets.iter().map(|n| n.0).collect();
                let vsids = part::vsids(actual, &numbers);
                (rows_back(&part::part(actual, &numbers, &vsids), rows), nets.clone())
            }
            None => (rows_back(actual, rows), known().collect()),
        };
        let digests = digests(&back);
        let mut counts: BTreeMap<NetId, u64> = BTreeMap::new();
        for net in back.0.keys().filter_map(RowKey::network) {
            *counts.entry(net).or_default() += 1;
        }
        nets.extend(digests.keys());
        nets.remove(&NetId(PROBE_NET));
        let number = |map: &BTreeMap<NetId, u64>, net| map.get(net).copied().unwrap_or(0);
        nets.iter()
            .map(|n| NetworkProof { net: *n, digest: number(&digests, n), rows: number(&counts, n) })
            .collect()
    }

    pub(super) fn statuses(&self, nets: Option<&BTreeSet<NetId>>) -> Vec<PortStatus> {
        let Some((_, rows)) = &self.state else { return Vec::new() };
        let mut all: Vec<PortStatus> = plan::ports(rows)
            .filter(|(p, _)| nets.is_none_or(|n| n.contains(&p.net)))
            .map(|(p, _)| self.status(p))
            .collect();
        all.reverse();
        all
    }

    pub(super) fn status(&self, row: &PortRow) -> PortStatus {
        let device = self.devices.get(&row.device).filter(|_| !self.is_strange(row));
        let name = &row.device;
        let attach = device.and_then(|d| self.attached.get(&d.ifindex));
        let entry = device.and_then(|d| self.actual.as_ref().and_then(|a| a.ports.get(&d.ifindex)));
        let trouble = self.taps.get(name).filter(|_| row.tap);
        let detail = match (device, attach) {
            (None, _) if trouble.is_some() => trouble.cloned().unwrap_or_default(),
            (None, _) => format!("device {name} does not exist on this host yet"),
            (Some(_), _) if self.uplinks.contains(name) => format!("device {name} is an uplink of this host"),
            (Some(d), _) if is_own(d) => format!("device {name} is the agent's own"),
            (Some(_), None | Some(AttachState::Pending)) => {
                format!("the program on {name} is not attached yet")
            }
            (Some(_), Some(AttachState::Failed(why))) => {
                format!("the program cannot be attached to {name}: {why}")
            }
            (Some(_), Some(AttachState::Attached)) if entry.is_none() => {
                format!("port table has no entry for {name}")
            }
            // Nobody has to be there before the VM comes.
            (Some(d), Some(AttachState::Attached)) if !d.carrier && row.state == PortState::Prepared => {
                String::new()
            }
            (Some(d), Some(AttachState::Attached)) if !d.carrier && row.tap => {
                format!("no VM has tap {name} open")
            }
            (Some(d), Some(AttachState::Attached)) if !d.carrier => format!("device {name} has no carrier"),
            (Some(_), Some(AttachState::Attached)) => self.notes.get(&row.name).cloned().unwrap_or_default(),
        };
        PortStatus {
            port: row.name.clone(),
            present: attach == Some(&AttachState::Attached) && entry.is_some(),
            carrier: device.is_some_and(|d| d.carrier),
            ifindex: device.map_or(0, |d| d.ifindex),
            mtu: entry.map_or(0, |e| e.mtu),
            state: entry.map_or("", |e| plan::state_name(e.state)),
            detail,
        }
    }
}
