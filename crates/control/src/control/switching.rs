//! The core's part in changes of a network's method: receivers first, then senders.
//!
//! Two writes make one change. The first ([`Network::switching`] is the new method) gives every host of the network all
//! that it needs to receive the new method; hosts receive every method at all times, but IP Rewrite needs addresses.
//! Once the connected hosts have acknowledged it, or [`HOLD`] has passed, the second one makes it the method: now the
//! senders switch. Rewrite addresses that are no longer needed are taken back by a third write, after the last sender
//! that may still use them has acknowledged.
//!
//! How far a change is stands in the stored network, so that a controller that starts again goes on with it. A further
//! change while one is under way replaces it, which is safe at any point: nobody sends with a method that is not yet
//! the network's. Going back to the present method gives the change up.
//!
//! [`Network::switching`]: tenet_model::Network::switching

use super::{Control, Output};
use crate::{
    HOLD, Micros,
    happening::Happening,
    migration::{AGAIN, COMMIT, DISCONNECTED},
};
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{HostName, NetworkRef, Object, Operation};

/// A host that is not connected may still send by the old method: for this long its rewrite addresses stay.
pub const LEAVE: Micros = 60_000_000;

/// How far a change of a network's method, or of a UDP port, is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The hosts get what they need to receive by the new one.
    Receivers,
    /// The senders switch.
    Senders,
    /// Nobody sends by IP Rewrite, or to the old port, any more: its addresses, or the port, go.
    Leaving,
}

/// What is waited for while a network's method, or the site's UDP ports, change.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    pub(super) stage: Stage,
    /// Revisions that asked for a change; whoever waits for one of them waits for its end.
    pub(super) asked: Vec<u64>,
    /// Revision that the hosts must have before the next stage.
    pub(super) need: u64,
    /// When the change began for this controller.
    pub(super) begun: Micros,
    pub(super) since: Micros,
    /// Longest wait for receivers.
    pub(super) patience: Micros,
    /// A commit is under way since.
    pub(super) committing: Option<Micros>,
}

impl Switch {
    pub(super) fn new(stage: Stage, asked: u64, need: u64, now: Micros, patience: Micros) -> Self {
        Self { stage, asked: vec![asked], need, begun: now, since: now, patience, committing: None }
    }

    pub(super) fn enter(&mut self, stage: Stage, need: u64, now: Micros) {
        (self.stage, self.need, self.since, self.committing) = (stage, need, now, None);
    }
}

impl Control {
    /// The writes of the next step of a network's change of method ([`Output::Switch`]); none if it is no longer due.
    ///
    /// To be asked for and committed without another change in between.
    #[must_use]
    pub fn method_step(&self, network: &NetworkRef) -> Vec<Operation> {
        let due = self.switches.get(network).filter(|s| s.committing.is_some());
        let (Some(switch), Some(stored)) = (due, self.desired().networks.get(network)) else {
            return Vec::new();
        };
        match (switch.stage, stored.value.switching) {
            (Stage::Receivers, Some(to)) => {
                let mut network = stored.value.clone();
                (network.method, network.switching) = (to, None);
                vec![Operation::Put(Object::Network(network))]
            }
            (Stage::Leaving, None) => self.desired().release(network).operations,
            (Stage::Receivers, None) | (Stage::Senders, _) | (Stage::Leaving, Some(_)) => Vec::new(),
        }
    }

    /// The commit of such a step came to nothing; it is tried again after a pause if it still makes sense.
    pub fn method_step_failed(&mut self, now: Micros, network: &NetworkRef, reason: &str) -> Vec<Output> {
        let Some(switch) = self.switches.get_mut(network) else { return Vec::new() };
        switch.committing = Some((now + AGAIN).saturating_sub(COMMIT));
        let text = format!("the change of network {network}'s method cannot go on yet: {reason}");
        vec![Output::Happened(Happening::new("method", text).field("network", network))]
    }

    /// Whether a change of method, or of UDP ports, that a revision asked for is still under way.
    #[must_use]
    pub fn switching(&self, revision: u64) -> bool {
        self.ports_change(revision)
            || self.switches.values().any(|s| s.stage != Stage::Leaving && s.asked.contains(&revision))
    }

    /// Hosts that a change of a network's method waits for.
    #[must_use]
    pub fn method_waits_for(&self, network: &NetworkRef) -> BTreeSet<HostName> {
        let Some(switch) = self.switches.get(network) else { return BTreeSet::new() };
        match switch.stage {
            Stage::Receivers | Stage::Senders => self.lacking(network, switch.need).collect(),
            Stage::Leaving => BTreeSet::new(),
        }
    }

    /// Connected hosts that keep those waiting who wait for a revision that asked for a change of method.
    pub(super) fn not_yet_switched(&self, revision: u64) -> BTreeSet<HostName> {
        let asked = self.switches.iter().filter(|(_, s)| s.asked.contains(&revision));
        let mut hosts = BTreeSet::new();
        for (network, switch) in asked {
            match switch.stage {
                // Whatever they have acknowledged: none of them sends by the new method yet.
                Stage::Receivers => hosts.extend(self.connected(network)),
                Stage::Senders => hosts.extend(self.lacking(network, switch.need)),
                Stage::Leaving => {}
            }
        }
        hosts
    }

    /// A network's connected hosts.
    fn connected(&self, network: &NetworkRef) -> impl Iterator<Item = HostName> + '_ {
        let members = self.plan.hosts_of(network).into_iter();
        members.filter(|name| self.hosts.get(name).is_some_and(|h| h.session.is_some()))
    }

    /// A network's connected hosts that do not have a revision.
    fn lacking(&self, network: &NetworkRef, need: u64) -> impl Iterator<Item = HostName> + '_ {
        let session = |name: &HostName| self.hosts.get(name).and_then(|h| h.session.as_ref());
        self.connected(network).filter(move |name| session(name).is_some_and(|s| !s.has(need)))
    }

    /// The changes of method that the stored site is in the middle of, after a start.
    pub(super) fn resume_switches(&mut self, now: Micros) {
        let desired = self.plan.desired();
        let mut switches = BTreeMap::new();
        let unreleased = desired.unreleased();
        for (name, network) in &desired.networks {
            let stage = match network.value.switching {
                Some(_) => Stage::Receivers,
                None if !unreleased.contains(name) => continue,
                None => Stage::Senders,
            };
            // Agents need a moment to come back; until then nobody could acknowledge anything.
            let need = if stage == Stage::Receivers { desired.revision } else { network.revision };
            let mut switch = Switch::new(stage, network.revision, need, now, DISCONNECTED);
            if let Some(was) = self.switches.get(name) {
                switch.asked.extend(&was.asked);
            }
            switches.insert(name.clone(), switch);
        }
        self.switches = switches;
    }

    /// Members of the networks whose receivers are being prepared.
    pub(super) fn switching_members(&self) -> BTreeMap<NetworkRef, BTreeSet<HostName>> {
        let receivers = self.switches.iter().filter(|(_, s)| s.stage == Stage::Receivers);
        receivers.map(|(name, _)| (name.clone(), self.plan.hosts_of(name))).collect()
    }

    /// Brings what is waited for in line with the stored networks.
    pub(super) fn follow_switches(
        &mut self,
        now: Micros,
        revision: u64,
        operations: &[Operation],
        before: &BTreeMap<NetworkRef, BTreeSet<HostName>>,
        outputs: &mut Vec<Output>,
    ) {
        for operation in operations {
            let network = match operation {
                Operation::Put(Object::Network(network)) => network,
                Operation::Put(Object::Port(port)) if !port.rewrite.is_empty() => {
                    self.late_addresses(now, revision, &port.subnet.network_ref());
                    continue;
                }
                Operation::Put(_) | Operation::Delete(_) => continue,
            };
            let name = &network.name;
            let text = match (network.switching, self.switches.get_mut(name)) {
                (Some(to), Some(switch)) => {
                    switch.enter(Stage::Receivers, revision, now);
                    (switch.patience, switch.begun) = (HOLD, now);
                    switch.asked.push(revision);
                    format!(
                        "network {name} is to be sent by {to} now, not {}: receivers first",
                        network.method
                    )
                }
                (Some(to), None) => {
                    let switch = Switch::new(Stage::Receivers, revision, revision, now, HOLD);
                    self.switches.insert(name.clone(), switch);
                    format!(
                        "network {name} begins to change from {} to {to}: receivers first",
                        network.method
                    )
                }
                (None, Some(switch)) if switch.stage == Stage::Receivers => {
                    switch.enter(Stage::Senders, revision, now);
                    switch.asked.push(revision);
                    format!("network {name} is sent by {} from now on", network.method)
                }
                (None, _) => continue,
            };
            let happening = Happening::new("method", text).field("network", name);
            outputs.push(Output::Happened(happening.field("method", network.method)));
        }
        let desired = self.plan.desired();
        self.switches.retain(|name, _| desired.networks.contains_key(name));
        for (name, was) in before {
            // A host that has just come to the network needs all of it.
            let grown = self.plan.hosts_of(name).iter().any(|h| !was.contains(h));
            if let Some(switch) = self.switches.get_mut(name).filter(|_| grown) {
                switch.need = switch.need.max(revision);
            }
        }
    }

    /// A write that was under way when a network's addresses went (the end of a migration) may bring some back.
    fn late_addresses(&mut self, now: Micros, revision: u64, network: &NetworkRef) {
        let stored = self.plan.desired().networks.get(network);
        if stored.is_some_and(|n| !n.value.rewrites()) && !self.switches.contains_key(network) {
            let switch = Switch::new(Stage::Leaving, revision, revision, now, HOLD);
            self.switches.insert(network.clone(), switch);
        }
    }

    /// Takes one step of a network's change of method if it is due.
    pub(super) fn step_switch(&mut self, now: Micros, network: &NetworkRef, outputs: &mut Vec<Output>) {
        let Some(switch) = self.switches.get(network).cloned() else { return };
        let tell = |text: String| Happening::new("method", text).field("network", network);
        match switch.stage {
            Stage::Receivers => {
                let late: Vec<HostName> = self.lacking(network, switch.need).collect();
                let over = now.saturating_sub(switch.since) > switch.patience;
                let absent = self.absent(network, now, switch.patience);
                if !(over || late.is_empty() && absent.is_empty()) {
                    return;
                }
                if !self.commit_step(now, network, outputs) {
                    return;
                }
                for host in late.iter().chain(&absent) {
                    let text = format!(
                        "network {network} changes its method without host {host}, which did not acknowledge in time"
                    );
                    outputs.push(Output::Happened(Happening::new("problem", text).host(host)));
                }
            }
            Stage::Senders => {
                if self.lacking(network, switch.need).next().is_some() {
                    return;
                }
                let ms = now.saturating_sub(switch.begun) / 1000;
                let method = self.desired().networks.get(network).map(|n| n.value.method);
                let method = method.unwrap_or_default();
                let text = format!(
                    "all connected hosts send network {network} by {method}, {ms} ms after the request"
                );
                outputs.push(Output::Happened(tell(text)));
                if !self.to_release(network) {
                    self.switches.remove(network);
                } else if let Some(switch) = self.switches.get_mut(network) {
                    switch.enter(Stage::Leaving, switch.need, now);
                    self.step_switch(now, network, outputs);
                }
            }
            Stage::Leaving => {
                let held = self.lacking(network, switch.need).next().is_some();
                if held || !self.absent(network, now, LEAVE).is_empty() {
                    return;
                }
                if self.to_release(network) {
                    self.commit_step(now, network, outputs);
                } else {
                    self.switches.remove(network);
                }
            }
        }
    }

    /// A network's hosts without a session that had one, or could have had one, not long ago.
    fn absent(&self, network: &NetworkRef, now: Micros, patience: Micros) -> Vec<HostName> {
        let members = self.plan.hosts_of(network).into_iter();
        let gone = |name: &HostName| {
            let host = self.hosts.get(name);
            host.is_some_and(|h| h.session.is_none() && now.saturating_sub(h.gone_since) <= patience)
        };
        members.filter(gone).collect()
    }

    /// Asks for a commit unless one is under way.
    fn commit_step(&mut self, now: Micros, network: &NetworkRef, outputs: &mut Vec<Output>) -> bool {
        let Some(switch) = self.switches.get_mut(network) else { return false };
        if switch.committing.is_some_and(|at| now.saturating_sub(at) < COMMIT) {
            return false;
        }
        switch.committing = Some(now);
        outputs.push(Output::Switch { network: network.clone() });
        true
    }

    /// Whether a network still has rewrite addresses though it is sent by another method.
    fn to_release(&self, network: &NetworkRef) -> bool {
        !self.plan.desired().release(network).operations.is_empty()
    }
}
