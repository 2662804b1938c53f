//! The core's part in changes of the site's UDP ports: receivers first, then senders, as with methods.
//!
//! The steps are [`Site::next_ports`]'s. Each is written once all connected hosts have acknowledged the one before, or
//! [`HOLD`] has passed; the old port is given up last, [`LEAVE`] after a host was last heard that may still send to it.
//!
//! [`Site::next_ports`]: tenet_model::Site::next_ports

use super::{
    Control, Output,
    switching::{LEAVE, Stage, Switch},
};
use crate::{
    HOLD, Micros,
    happening::Happening,
    migration::{AGAIN, COMMIT, DISCONNECTED},
};
use std::collections::BTreeSet;
use tenet_model::{HostName, Method, Object, Operation, Site};

impl Control {
    /// The writes of the next step of a change of UDP ports ([`Output::Ports`]); none if it is no longer due.
    ///
    /// To be asked for and committed without another change in between.
    #[must_use]
    pub fn ports_step(&self) -> Vec<Operation> {
        let due = self.ports.as_ref().is_some_and(|s| s.committing.is_some());
        let next = self.desired().site.value.next_ports().filter(|_| due);
        next.map(|site| Operation::Put(Object::Site(site))).into_iter().collect()
    }

    /// The commit of such a step came to nothing; it is tried again after a pause if it still makes sense.
    pub fn ports_step_failed(&mut self, now: Micros, reason: &str) -> Vec<Output> {
        let Some(switch) = &mut self.ports else { return Vec::new() };
        switch.committing = Some((now + AGAIN).saturating_sub(COMMIT));
        let text = format!("the change of the site's UDP ports cannot go on yet: {reason}");
        vec![Output::Happened(Happening::new("ports", text))]
    }

    /// Hosts that a change of UDP ports waits for.
    #[must_use]
    pub fn ports_wait_for(&self) -> BTreeSet<HostName> {
        match &self.ports {
            Some(switch) if switch.stage != Stage::Leaving => self.behind(switch.need).collect(),
            Some(_) | None => BTreeSet::new(),
        }
    }

    /// Whether a change of UDP ports that a revision asked for is still under way.
    pub(super) fn ports_change(&self, revision: u64) -> bool {
        // The other port may still be to come.
        let over = |s: &Switch| s.stage == Stage::Leaving && self.desired().site.value.switching.is_none();
        self.ports.as_ref().is_some_and(|s| s.asked.contains(&revision) && !over(s))
    }

    /// Connected hosts that keep those waiting who wait for a revision that asked for a change of UDP ports.
    pub(super) fn ports_not_changed(&self, revision: u64) -> BTreeSet<HostName> {
        match &self.ports {
            Some(switch) if self.ports_change(revision) => match switch.stage {
                // Whatever they have acknowledged: none of them sends to the new port yet.
                Stage::Receivers => self.sessions.values().cloned().collect(),
                Stage::Senders | Stage::Leaving => self.behind(switch.need).collect(),
            },
            Some(_) | None => BTreeSet::new(),
        }
    }

    /// The change of UDP ports that the stored site is in the middle of, after a start.
    pub(super) fn resume_ports(&mut self, now: Micros) {
        let desired = self.plan.desired();
        let (site, revision) = (desired.site.value, desired.site.revision);
        let Some(stage) = stage(&site) else {
            self.ports = None;
            return;
        };
        let need = if stage == Stage::Receivers { desired.revision } else { revision };
        let mut switch = Switch::new(stage, revision, need, now, DISCONNECTED);
        if let Some(was) = &self.ports {
            switch.asked.extend(&was.asked);
        }
        self.ports = Some(switch);
    }

    /// Brings what is waited for in line with the stored site.
    pub(super) fn follow_ports(
        &mut self,
        now: Micros,
        revision: u64,
        operations: &[Operation],
        outputs: &mut Vec<Output>,
    ) {
        let written = operations.iter().rev().find_map(|operation| match operation {
            Operation::Put(Object::Site(site)) => Some(*site),
            Operation::Put(_) | Operation::Delete(_) => None,
        });
        let Some(site) = written else { return };
        let (Some(stage), Some(other)) = (stage(&site), site.other_port()) else {
            self.ports = None;
            return;
        };
        let switch = self.ports.get_or_insert_with(|| Switch::new(stage, revision, revision, now, HOLD));
        switch.enter(stage, revision, now);
        switch.patience = HOLD;
        switch.asked.push(revision);
        let (method, sent) = (other.method, sent(&site, other.method));
        let text = match stage {
            Stage::Receivers => {
                switch.begun = now;
                format!("{method} begins to change from UDP port {sent} to {}: receivers first", other.port)
            }
            Stage::Senders | Stage::Leaving => format!("{method} is sent to UDP port {sent} from now on"),
        };
        outputs.push(Output::Happened(Happening::new("ports", text).field("method", method)));
    }

    /// Takes one step of a change of UDP ports if it is due.
    pub(super) fn step_ports(&mut self, now: Micros, outputs: &mut Vec<Output>) {
        let Some(switch) = self.ports.clone() else { return };
        let site = self.desired().site.value;
        let late: Vec<HostName> = self.behind(switch.need).collect();
        match switch.stage {
            Stage::Receivers => {
                let over = now.saturating_sub(switch.since) > switch.patience;
                let away = self.away(now, switch.patience);
                if !(over || late.is_empty() && away.is_empty()) || !self.commit_ports(now, outputs) {
                    return;
                }
                for host in late.iter().chain(&away) {
                    let text = format!(
                        "the site's UDP ports change without host {host}, which did not acknowledge in time"
                    );
                    outputs.push(Output::Happened(Happening::new("problem", text).host(host)));
                }
            }
            Stage::Senders => {
                if !late.is_empty() {
                    return;
                }
                if let Some(left) = site.leaving {
                    let ms = now.saturating_sub(switch.begun) / 1000;
                    let (method, port) = (left.method, sent(&site, left.method));
                    let text = format!(
                        "all connected hosts send {method} to UDP port {port}, {ms} ms after the request"
                    );
                    outputs.push(Output::Happened(Happening::new("ports", text).field("method", method)));
                }
                if let Some(switch) = &mut self.ports {
                    switch.enter(Stage::Leaving, switch.need, now);
                }
                self.step_ports(now, outputs);
            }
            Stage::Leaving => {
                // Where the next port waits for this one, nobody who is away is waited for any longer.
                let patience = if site.switching.is_some() { 0 } else { LEAVE };
                if late.is_empty() && self.away(now, patience).is_empty() {
                    self.commit_ports(now, outputs);
                }
            }
        }
    }

    /// Connected hosts that do not have a revision.
    fn behind(&self, need: u64) -> impl Iterator<Item = HostName> + '_ {
        let lacks = move |host: &crate::session::Host| host.session.as_ref().is_some_and(|s| !s.has(need));
        self.hosts.iter().filter(move |(_, host)| lacks(host)).map(|(name, _)| name.clone())
    }

    /// Hosts without a session that had one, or could have had one, not long ago.
    fn away(&self, now: Micros, patience: Micros) -> Vec<HostName> {
        let gone = self.hosts.iter().filter(|(_, h)| h.session.is_none());
        gone.filter(|(_, h)| now.saturating_sub(h.gone_since) < patience)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Asks for a commit unless one is under way.
    fn commit_ports(&mut self, now: Micros, outputs: &mut Vec<Output>) -> bool {
        let Some(switch) = &mut self.ports else { return false };
        if switch.committing.is_some_and(|at| now.saturating_sub(at) < COMMIT) {
            return false;
        }
        switch.committing = Some(now);
        outputs.push(Output::Ports);
        true
    }
}

/// How far a stored change is; none: there is none.
const fn stage(site: &Site) -> Option<Stage> {
    match (site.leaving, site.switching) {
        (Some(_), _) => Some(Stage::Senders),
        (None, Some(_)) => Some(Stage::Receivers),
        (None, None) => None,
    }
}

/// Where a method's frames are sent to.
const fn sent(site: &Site, method: Method) -> u16 {
    match method {
        Method::Geneve => site.geneve_port,
        Method::Vxlan | Method::Nvgre | Method::Stt | Method::Rewrite => site.vxlan_port,
    }
}
