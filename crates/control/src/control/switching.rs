//! Changes that must not lose frames, in steps: receivers first, then senders.
//!
//! A network's method ([`method`]) and the site's UDP ports ([`ports`]) change so. The first write tells the hosts
//! concerned what is to come, so that they receive it. Once the connected ones have acknowledged that, or [`HOLD`] has
//! passed, the second one makes it what is sent. What nobody sends by any more is taken back by a third one, once the
//! last sender that may still use it has acknowledged the second.
//!
//! How far a change is stands in the store, so that a controller that starts again goes on with it. A further change
//! while one is under way replaces it, which is safe at any point: nobody sends by what is not yet in force. Going back
//! to what is in force gives the change up.

mod method;
mod ports;

use super::{Control, Output};
use crate::{
    HOLD, Micros,
    happening::Happening,
    migration::{AGAIN, COMMIT, DISCONNECTED},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use tenet_model::{HostName, NetworkRef, Object, Operation, Site};

/// A host that is not connected may still send as before: for this long (microseconds) what it sends by stays.
pub const LEAVE: Micros = 60_000_000;

/// What changes in steps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Switching {
    /// The method of this network.
    Method(NetworkRef),
    /// The site's UDP ports.
    UdpPorts,
}

impl fmt::Display for Switching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(network) => write!(f, "network {network}'s method"),
            Self::UdpPorts => f.write_str("the site's UDP ports"),
        }
    }
}

impl Switching {
    fn happened(&self, text: String) -> Happening {
        match self {
            Self::Method(network) => Happening::new("method", text).field("network", network),
            Self::UdpPorts => Happening::new("ports", text),
        }
    }
}

/// How far a change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The hosts get what they need to receive by the new one.
    Receivers,
    /// The senders switch.
    Senders,
    /// Nobody sends by the old one any more: what it took goes.
    Leaving,
}

/// What is waited for while something changes.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    stage: Stage,
    /// Revisions that asked for a change; whoever waits for one of them waits for its end.
    asked: Vec<u64>,
    /// Revision that the hosts must have before the next stage.
    need: u64,
    /// When the change began for this controller.
    begun: Micros,
    since: Micros,
    /// Longest wait for receivers.
    patience: Micros,
    /// A commit is under way since.
    committing: Option<Micros>,
}

impl Switch {
    fn new(stage: Stage, asked: u64, need: u64, now: Micros, patience: Micros) -> Self {
        Self { stage, asked: vec![asked], need, begun: now, since: now, patience, committing: None }
    }

    fn enter(&mut self, stage: Stage, need: u64, now: Micros) {
        (self.stage, self.need, self.since, self.committing) = (stage, need, now, None);
    }

    /// A further change takes the place of the one under way.
    fn begin_anew(&mut self, revision: u64, now: Micros) {
        self.enter(Stage::Receivers, revision, now);
        (self.patience, self.begun) = (HOLD, now);
        self.asked.push(revision);
    }
}

/// What a change of the store is held against.
pub(super) struct Before {
    /// Members of the networks whose receivers are being prepared.
    members: BTreeMap<NetworkRef, BTreeSet<HostName>>,
    site: Site,
}

impl Control {
    /// The writes of the next step of a change ([`Output::Switch`]); none if it is no longer due.
    ///
    /// To be asked for and committed without another change in between.
    #[must_use]
    pub fn next_step(&self, what: &Switching) -> Vec<Operation> {
        let Some(switch) = self.switches.get(what).filter(|s| s.committing.is_some()) else {
            return Vec::new();
        };
        match what {
            Switching::Method(network) => self.method_step(network, switch.stage),
            Switching::UdpPorts => self.ports_step(),
        }
    }

    /// The commit of such a step came to nothing; it is tried again after a pause if it still makes sense.
    pub fn step_failed(&mut self, now: Micros, what: &Switching, reason: &str) -> Vec<Output> {
        let Some(switch) = self.switches.get_mut(what) else { return Vec::new() };
        switch.committing = Some((now + AGAIN).saturating_sub(COMMIT));
        let text = format!("the change of {what} cannot go on yet: {reason}");
        vec![Output::Happened(what.happened(text))]
    }

    /// Whether a change that a revision asked for is still under way.
    #[must_use]
    pub fn switching(&self, revision: u64) -> bool {
        self.asked_by(revision).next().is_some()
    }

    /// Hosts that a change waits for; none if it is over, but for what the old way took.
    #[must_use]
    pub fn switch_waits_for(&self, what: &Switching) -> BTreeSet<HostName> {
        match self.switches.get(what) {
            Some(switch) if switch.stage != Stage::Leaving => self.behind(what, switch.need).collect(),
            Some(_) | None => BTreeSet::new(),
        }
    }

    /// Connected hosts that keep those waiting who wait for a revision that asked for a change.
    pub(super) fn not_yet_switched(&self, revision: u64) -> BTreeSet<HostName> {
        let mut hosts = BTreeSet::new();
        for (what, switch) in self.asked_by(revision) {
            match switch.stage {
                // Whatever they have acknowledged: none of them sends by the new one yet.
                Stage::Receivers => hosts.extend(self.connected(what)),
                Stage::Senders | Stage::Leaving => hosts.extend(self.behind(what, switch.need)),
            }
        }
        hosts
    }

    /// Changes that a revision asked for and that are not in force everywhere.
    fn asked_by(&self, revision: u64) -> impl Iterator<Item = (&Switching, &Switch)> {
        let over = |what: &Switching, switch: &Switch| {
            switch.stage == Stage::Leaving
                && match what {
                    Switching::Method(_) => true,
                    // The other port may still be to come.
                    Switching::UdpPorts => self.desired().site.value.switching.is_none(),
                }
        };
        self.switches.iter().filter(move |(what, s)| s.asked.contains(&revision) && !over(what, s))
    }

    /// Hosts that a change concerns.
    fn concerned(&self, what: &Switching) -> BTreeSet<HostName> {
        match what {
            Switching::Method(network) => self.plan.hosts_of(network),
            Switching::UdpPorts => self.hosts.keys().cloned().collect(),
        }
    }

    /// Those that are connected.
    fn connected(&self, what: &Switching) -> impl Iterator<Item = HostName> + '_ {
        let concerned = self.concerned(what).into_iter();
        concerned.filter(|name| self.hosts.get(name).is_some_and(|h| h.session.is_some()))
    }

    /// Those that are connected and do not have a revision.
    fn behind(&self, what: &Switching, need: u64) -> impl Iterator<Item = HostName> + '_ {
        let session = |name: &HostName| self.hosts.get(name).and_then(|h| h.session.as_ref());
        self.connected(what).filter(move |name| session(name).is_some_and(|s| !s.has(need)))
    }

    /// Those without a session that had one, or could have had one, not long ago.
    fn absent(&self, what: &Switching, now: Micros, patience: Micros) -> Vec<HostName> {
        let gone = |name: &HostName| {
            let host = self.hosts.get(name);
            host.is_some_and(|h| h.session.is_none() && now.saturating_sub(h.gone_since) < patience)
        };
        self.concerned(what).into_iter().filter(gone).collect()
    }

    /// The changes that the stored site is in the middle of, after a start.
    pub(super) fn resume_switches(&mut self, now: Micros) {
        let mut switches = BTreeMap::new();
        for (what, stage, revision) in self.methods_under_way().into_iter().chain(self.ports_under_way()) {
            // Agents need a moment to come back; until then nobody could acknowledge anything.
            let need = if stage == Stage::Receivers { self.desired().revision } else { revision };
            let mut switch = Switch::new(stage, revision, need, now, DISCONNECTED);
            if let Some(was) = self.switches.get(&what) {
                switch.asked.extend(&was.asked);
            }
            switches.insert(what, switch);
        }
        self.switches = switches;
    }

    /// What a change of the store that is about to be taken will be held against.
    pub(super) fn before_switches(&self) -> Before {
        let receivers = self.switches.iter().filter(|(_, s)| s.stage == Stage::Receivers);
        let networks = receivers.filter_map(|(what, _)| match what {
            Switching::Method(network) => Some(network),
            // A host that comes to the site has no session yet, and gets all of its state by its first one.
            Switching::UdpPorts => None,
        });
        let members = networks.map(|name| (name.clone(), self.plan.hosts_of(name))).collect();
        Before { members, site: self.desired().site.value }
    }

    /// Brings what is waited for in line with the stored site.
    pub(super) fn follow_switches(
        &mut self,
        now: Micros,
        revision: u64,
        operations: &[Operation],
        before: &Before,
        outputs: &mut Vec<Output>,
    ) {
        for operation in operations {
            let happening = match operation {
                Operation::Put(Object::Network(network)) => self.follow_method(now, revision, network),
                Operation::Put(Object::Site(site)) => self.follow_ports(now, revision, &before.site, site),
                Operation::Put(Object::Port(port)) if !port.rewrite.is_empty() => {
                    self.late_addresses(now, revision, &port.subnet.network_ref());
                    None
                }
                Operation::Put(_) | Operation::Delete(_) => None,
            };
            outputs.extend(happening.map(Output::Happened));
        }
        let desired = self.plan.desired();
        self.switches.retain(|what, _| match what {
            Switching::Method(network) => desired.networks.contains_key(network),
            Switching::UdpPorts => true,
        });
        for (network, was) in &before.members {
            // A host that has just come to the network needs all of it.
            let grown = self.plan.hosts_of(network).iter().any(|h| !was.contains(h));
            let switch = self.switches.get_mut(&Switching::Method(network.clone()));
            if let Some(switch) = switch.filter(|_| grown) {
                switch.need = switch.need.max(revision);
            }
        }
    }

    /// Takes one step of a change if it is due.
    pub(super) fn step_switch(&mut self, now: Micros, what: &Switching, outputs: &mut Vec<Output>) {
        let Some(switch) = self.switches.get(what).cloned() else { return };
        let late: Vec<HostName> = self.behind(what, switch.need).collect();
        match switch.stage {
            Stage::Receivers => {
                let over = now.saturating_sub(switch.since) > switch.patience;
                let absent = self.absent(what, now, switch.patience);
                let due = over || (late.is_empty() && absent.is_empty());
                if !due || !self.commit_step(now, what, outputs) {
                    return;
                }
                for host in late.iter().chain(&absent) {
                    let text = format!(
                        "the change of {what} goes on without host {host}, which did not acknowledge in time"
                    );
                    outputs.push(Output::Happened(Happening::new("problem", text).host(host)));
                }
            }
            Stage::Senders => {
                if !late.is_empty() {
                    return;
                }
                let ms = now.saturating_sub(switch.begun) / 1000;
                let sends = match what {
                    Switching::Method(network) => self.sends_by(network),
                    Switching::UdpPorts => self.sends_to(),
                };
                let text = format!("all connected hosts send {sends}, {ms} ms after the request");
                outputs.push(Output::Happened(what.happened(text)));
                if let Some(switch) = self.switches.get_mut(what) {
                    switch.enter(Stage::Leaving, switch.need, now);
                }
                self.step_switch(now, what, outputs);
            }
            Stage::Leaving => {
                if !self.is_to_leave(what) {
                    self.switches.remove(what);
                } else if late.is_empty() && self.absent(what, now, self.leave_after(what)).is_empty() {
                    self.commit_step(now, what, outputs);
                }
            }
        }
    }

    /// Whether there is something that the old way took.
    fn is_to_leave(&self, what: &Switching) -> bool {
        match what {
            Switching::Method(network) => !self.desired().release(network).operations.is_empty(),
            Switching::UdpPorts => self.desired().site.value.leaving.is_some(),
        }
    }

    /// How long what the old way took is kept for a host that is away.
    fn leave_after(&self, what: &Switching) -> Micros {
        match what {
            // Where the next port waits for this one, nobody who is away is waited for any longer.
            Switching::UdpPorts if self.desired().site.value.switching.is_some() => 0,
            Switching::UdpPorts | Switching::Method(_) => LEAVE,
        }
    }

    /// Asks for a commit unless one is under way.
    fn commit_step(&mut self, now: Micros, what: &Switching, outputs: &mut Vec<Output>) -> bool {
        let Some(switch) = self.switches.get_mut(what) else { return false };
        if switch.committing.is_some_and(|at| now.saturating_sub(at) < COMMIT) {
            return false;
        }
        switch.committing = Some(now);
        outputs.push(Output::Switch(what.clone()));
        true
    }
}
