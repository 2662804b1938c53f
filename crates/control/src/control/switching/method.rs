//! A network's method. Hosts receive every method at all times, but IP Rewrite needs addresses: the first write
//! ([`Network::switching`] is the new method) gives every host of the network those, the second one makes it the method,
//! and the third one takes back addresses that are no longer needed.

use super::{Stage, Switch, Switching};
use crate::{HOLD, Micros, control::Control, happening::Happening};
use tenet_model::{Network, NetworkRef, Object, Operation};

impl Control {
    /// The writes of a network's next step.
    pub(super) fn method_step(&self, network: &NetworkRef, stage: Stage) -> Vec<Operation> {
        let Some(stored) = self.desired().networks.get(network) else { return Vec::new() };
        match (stage, stored.value.switching) {
            (Stage::Receivers, Some(to)) => {
                let mut network = stored.value.clone();
                (network.method, network.switching) = (to, None);
                vec![Operation::Put(Object::Network(network))]
            }
            (Stage::Leaving, None) => self.desired().release(network).operations,
            (Stage::Receivers, None) | (Stage::Senders, _) | (Stage::Leaving, Some(_)) => Vec::new(),
        }
    }

    /// Changes of method that the stored site is in the middle of, and the revision that brought each so far.
    pub(super) fn methods_under_way(&self) -> Vec<(Switching, Stage, u64)> {
        let desired = self.desired();
        let unreleased = desired.unreleased();
        let found = desired.networks.iter().filter_map(|(name, network)| {
            let stage = match network.value.switching {
                Some(_) => Stage::Receivers,
                None if unreleased.contains(name) => Stage::Senders,
                None => return None,
            };
            Some((Switching::Method(name.clone()), stage, network.revision))
        });
        found.collect()
    }

    /// A network was written; what is to be told of its method.
    pub(super) fn follow_method(
        &mut self,
        now: Micros,
        revision: u64,
        network: &Network,
    ) -> Option<Happening> {
        let (name, method) = (&network.name, network.method);
        let what = Switching::Method(name.clone());
        let text = match (network.switching, self.switches.get_mut(&what)) {
            (Some(to), Some(switch)) => {
                switch.begin_anew(revision, now);
                format!("network {name} is to be sent by {to} now, not {method}: receivers first")
            }
            (Some(to), None) => {
                let switch = Switch::new(Stage::Receivers, revision, revision, now, HOLD);
                self.switches.insert(what.clone(), switch);
                format!("network {name} begins to change from {method} to {to}: receivers first")
            }
            (None, Some(switch)) if switch.stage == Stage::Receivers => {
                switch.enter(Stage::Senders, revision, now);
                switch.asked.push(revision);
                format!("network {name} is sent by {method} from now on")
            }
            (None, _) => return None,
        };
        Some(what.happened(text).field("method", method))
    }

    /// A write that was under way when a network's addresses went (the end of a migration) may bring some back.
    pub(super) fn late_addresses(&mut self, now: Micros, revision: u64, network: &NetworkRef) {
        let stored = self.desired().networks.get(network);
        let what = Switching::Method(network.clone());
        if stored.is_some_and(|n| !n.value.rewrites()) && !self.switches.contains_key(&what) {
            self.switches.insert(what, Switch::new(Stage::Leaving, revision, revision, now, HOLD));
        }
    }

    /// How a network is sent.
    pub(super) fn sends_by(&self, network: &NetworkRef) -> String {
        let method = self.desired().networks.get(network).map(|n| n.value.method).unwrap_or_default();
        format!("network {network} by {method}")
    }
}
