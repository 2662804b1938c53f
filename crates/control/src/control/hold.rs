//! Newly attached ports: their own host lets them through once the others know of them.

use super::{Control, Output};
use crate::{HOLD, Micros};
use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::Delta;
use tenet_model::{HostName, NetworkRef, Object, Operation, PortRef};

/// A newly attached port that its own host does not yet let through.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) host: HostName,
    pub(super) revision: u64,
    pub(super) since: Micros,
    pub(super) waiting: BTreeSet<HostName>,
}

impl Control {
    pub(super) fn blocked(&self) -> BTreeSet<PortRef> {
        self.holds.keys().cloned().collect()
    }

    /// Ports that operations bring to a host they do not live on, other than by a migration.
    pub(super) fn newly_attached(&self, operations: &[Operation]) -> Vec<(PortRef, HostName)> {
        let mut found = Vec::new();
        for operation in operations {
            let Operation::Put(Object::Port(port)) = operation else { continue };
            let Some(host) = &port.host else { continue };
            let migrates_there =
                self.desired().migrations.get(&port.name.vm_ref()).is_some_and(|m| m.value.to == *host);
            if !self.lives_on(&port.name, host) && !migrates_there {
                found.push((port.name.clone(), host.clone()));
            }
        }
        found
    }

    /// Finds out which hosts each new hold waits for.
    pub(super) fn start_holds(&mut self, candidates: &[(PortRef, HostName)]) {
        let connected: BTreeSet<&HostName> = self.sessions.values().collect();
        let mut by_network: BTreeMap<NetworkRef, BTreeSet<HostName>> = BTreeMap::new();
        for (port, own) in candidates {
            let Some(network) = self.plan.network_of(port) else { continue };
            let hosts = by_network.entry(network).or_insert_with_key(|network| {
                self.plan.hosts_of(network).into_iter().filter(|h| connected.contains(h)).collect()
            });
            if let Some(hold) = self.holds.get_mut(port) {
                hold.waiting = hosts.iter().filter(|h| *h != own).cloned().collect();
            }
        }
    }

    pub(super) fn end_holds(&mut self, now: Micros, outputs: &mut Vec<Output>) {
        let hosts = &self.hosts;
        let has = |name: &HostName, revision| {
            hosts.get(name).and_then(|h| h.session.as_ref()).is_none_or(|s| s.has(revision))
        };
        let mut revisions: BTreeSet<u64> = BTreeSet::new();
        let plan = &self.plan;
        self.holds.retain(|port, hold| {
            hold.waiting.retain(|h| !has(h, hold.revision));
            let over = hold.waiting.is_empty() || now.saturating_sub(hold.since) > HOLD;
            if over {
                revisions.insert(hold.revision);
            }
            !over && plan.desired().ports.get(port).is_some_and(|p| p.value.host.as_ref() == Some(&hold.host))
        });
        if let Some(revision) = revisions.into_iter().next() {
            let blocked = self.blocked();
            let changes = self.plan.reblock(&blocked);
            self.release(revision, changes, outputs);
        }
    }

    /// Hands rows of released ports to their sessions; the site's revision stays.
    fn release(&mut self, revision: u64, changes: Vec<(HostName, Delta)>, outputs: &mut Vec<Output>) {
        for (name, change) in changes {
            let Some(host) = self.hosts.get_mut(&name) else { continue };
            host.digests = None;
            if let Some(session) = &mut host.session {
                session.gather(&change, revision);
                outputs.push(Output::Wake(session.id));
            }
        }
    }
}
