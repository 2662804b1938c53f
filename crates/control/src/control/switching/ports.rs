//! The site's UDP ports. The steps are [`Site::next_ports`]'s: one port at a time, and the old one is given up last,
//! [`LEAVE`](super::LEAVE) after a host was last heard that may still send to it.

use super::{Stage, Switch, Switching};
use crate::{HOLD, Micros, control::Control, happening::Happening};
use tenet_model::{Method, Object, Operation, Site};

impl Control {
    /// The writes of the next step.
    pub(super) fn ports_step(&self) -> Vec<Operation> {
        let next = self.desired().site.value.next_ports();
        next.map(|site| Operation::Put(Object::Site(site))).into_iter().collect()
    }

    /// The change that the stored site is in the middle of, and the revision that brought it so far.
    pub(super) fn ports_under_way(&self) -> Option<(Switching, Stage, u64)> {
        let site = &self.desired().site;
        Some((Switching::UdpPorts, stage(&site.value)?, site.revision))
    }

    /// What holds for the site was written; what is to be told of its UDP ports.
    pub(super) fn follow_ports(
        &mut self,
        now: Micros,
        revision: u64,
        before: &Site,
        site: &Site,
    ) -> Option<Happening> {
        let what = Switching::UdpPorts;
        if *before == (Site { hosts_begin_migrations: before.hosts_begin_migrations, ..*site }) {
            return None;
        }
        let (Some(stage), Some(other)) = (stage(site), site.other_port()) else {
            self.switches.remove(&what);
            return None;
        };
        let new = Switch::new(stage, revision, revision, now, HOLD);
        let switch = self.switches.entry(what.clone()).or_insert(new);
        let (method, sent) = (other.method, sent(site, other.method));
        let text = match stage {
            Stage::Receivers => {
                switch.begin_anew(revision, now);
                format!("{method} begins to change from UDP port {sent} to {}: receivers first", other.port)
            }
            Stage::Senders | Stage::Leaving => {
                switch.enter(stage, revision, now);
                switch.asked.push(revision);
                format!("{method} is sent to UDP port {sent} from now on")
            }
        };
        Some(what.happened(text).field("method", method))
    }

    /// Where frames are sent whose port has just changed.
    pub(super) fn sends_to(&self) -> String {
        let site = &self.desired().site.value;
        let method = site.leaving.map_or(Method::Vxlan, |left| left.method);
        format!("{method} to UDP port {}", sent(site, method))
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
