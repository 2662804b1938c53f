//! The state machine.

mod hold;
mod hypervisor;
mod migrate;
mod post_copy;
mod ready;
mod stray;
mod switching;

pub use hypervisor::Word;
pub use ready::NotReady;
pub use switching::{LEAVE, Switching};

use crate::{
    HUNG, Micros, RETRY,
    happening::Happening,
    measured::Measured,
    migration::{Run, Stage},
    plan::Plan,
    session::{Ack, Hello, Host, Message, Pending, Proof, Session, SessionId},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tenet_compile::Delta;
use tenet_model::{Desired, HostName, Operation, Phase, PortRef, Receipt, Through, VmRef};
use uuid::Uuid;

/// Lines on repairs kept for each host.
const REPAIRS_KEPT: usize = 20;
/// Revisions whose hosts are remembered, for those who wait for them.
const TOUCHED_KEPT: usize = 1024;

/// What the shell must do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// The session has a message to pull ([`Control::next_message`]).
    Wake(SessionId),
    /// End the session: another one of the same host began, the host was removed, or it hangs.
    Close {
        /// Which.
        session: SessionId,
        /// Why.
        reason: String,
        /// Whether the host is no longer part of the site.
        farewell: bool,
    },
    /// Commit these writes (with a receipt); if that fails, say so with [`Control::commit_failed`].
    Commit {
        /// The migration's VM.
        vm: VmRef,
        /// The writes.
        operations: Vec<Operation>,
        /// The receipt to store with them.
        receipt: Option<Box<Receipt>>,
    },
    /// Commit the next step of a change: what [`Control::next_step`] says at the moment of the commit; if that fails,
    /// say so with [`Control::step_failed`].
    Switch(Switching),
    /// Ask a host for the counters of a migrating VM's ports; answer with [`Control::counted`].
    Count {
        /// The migration.
        migration: Uuid,
        /// The VM.
        vm: VmRef,
        /// The host.
        host: HostName,
        /// Its session.
        session: SessionId,
        /// Which ones.
        stage: Stage,
    },
    /// Tell the source's agent to move a VM, to say how far that is, or to give it up; or the destination's to be ready.
    Drive {
        /// Its session.
        session: SessionId,
        /// The migration.
        migration: Uuid,
        /// The VM.
        vm: VmRef,
        /// By what.
        through: Through,
        /// Where to.
        uri: String,
        /// Whether it shall switch to post-copy after the first pass over the memory.
        post_copy: bool,
        /// What it shall do.
        order: Order,
    },
    /// Tell whoever watches.
    Happened(Happening),
}

/// What an agent shall do about a VM that moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Move it; what is under way already is only followed.
    Move,
    /// Say what has become of it, and begin nothing: an earlier run of the controller may have had it moved.
    Follow,
    /// Give it up.
    GiveUp,
    /// At the destination: make the QEMU that waits for the VM ready for post-copy.
    Receive,
}

/// Why the core does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The host is not part of the site.
    NoSuchHost,
    /// The VM is not being migrated.
    NoMigration,
    /// The migration is in the wrong phase for that.
    Phase(Phase),
    /// The VM's memory has all been moved: the source's copy runs no more.
    Left,
    /// It is in post-copy: it runs on that host, and neither host has all of its memory.
    PostCopy(HostName),
}

/// The controller's core.
#[derive(Debug)]
pub struct Control {
    plan: Plan,
    hosts: BTreeMap<HostName, Host>,
    sessions: BTreeMap<SessionId, HostName>,
    next_session: u64,
    holds: BTreeMap<PortRef, hold::Hold>,
    runs: BTreeMap<VmRef, Run>,
    switches: BTreeMap<Switching, switching::Switch>,
    /// VMs that were moved without a word.
    strays: BTreeMap<VmRef, stray::Stray>,
    touched: VecDeque<(u64, BTreeSet<HostName>)>,
}

impl Control {
    /// A core for the site as it stands in the store; running migrations go on at the next tick.
    #[must_use]
    pub fn new(desired: Desired, now: Micros) -> Self {
        let mut me = Self {
            plan: Plan::new(desired),
            hosts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            holds: BTreeMap::new(),
            runs: BTreeMap::new(),
            switches: BTreeMap::new(),
            strays: BTreeMap::new(),
            touched: VecDeque::new(),
        };
        let revision = me.plan.desired().revision;
        for name in me.plan.desired().hosts.keys() {
            me.hosts.insert(name.clone(), Host { gone_since: now, target: revision, ..Host::default() });
        }
        let migrations: Vec<_> = me.plan.desired().migrations.values().cloned().collect();
        for m in migrations {
            let mut run = Run::new(m.value, m.revision, now, false);
            run.waiting = me.hosts_of_vm(&run.migration.vm);
            me.runs.insert(run.migration.vm.clone(), run);
        }
        me.resume_switches(now);
        me
    }

    /// The site moved to another revision; revisions must come in order.
    pub fn changed(&mut self, now: Micros, revision: u64, operations: &[Operation]) -> Vec<Output> {
        let mut outputs = Vec::new();
        let candidates = self.newly_attached(operations);
        for (port, host) in &candidates {
            let hold = hold::Hold { host: host.clone(), revision, since: now, waiting: BTreeSet::new() };
            self.holds.insert(port.clone(), hold);
        }
        let moving: BTreeMap<VmRef, BTreeSet<HostName>> =
            self.runs.keys().map(|vm| (vm.clone(), self.hosts_of_vm(vm))).collect();
        let before = self.before_switches();
        let blocked = self.blocked();
        let changes = self.plan.apply(operations, revision, &blocked);
        self.keep_hosts(now, revision, &mut outputs);
        self.spread(revision, changes, &mut outputs);
        self.start_holds(&candidates);
        self.follow_strays(now, operations, &mut outputs);
        self.follow_migrations(now, revision, operations, &moving, &mut outputs);
        self.follow_switches(now, revision, operations, &before, &mut outputs);
        self.progress(now, &mut outputs);
        outputs
    }

    /// A host's agent began a session. An older session of the same host is closed.
    ///
    /// # Errors
    /// [`Refused::NoSuchHost`].
    pub fn opened(
        &mut self,
        now: Micros,
        host: &HostName,
        hello: Hello,
    ) -> Result<(SessionId, Vec<Output>), Refused> {
        let state = self.hosts.get_mut(host).ok_or(Refused::NoSuchHost)?;
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let mut outputs = Vec::new();
        if let Some(old) = state.session.take() {
            self.sessions.remove(&old.id);
            let reason = "another session of this host began".to_owned();
            outputs.push(Output::Close { session: old.id, reason, farewell: false });
            let text = "a second session of the host replaced the first: two agents with one certificate?";
            outputs.push(Output::Happened(Happening::new("session-replaced", text).host(host)));
        }
        let text = format!("agent {} began a session", hello.version);
        state.last_hello = Some(hello);
        state.session = Some(Session::new(id, now));
        self.sessions.insert(id, host.clone());
        outputs.push(Output::Happened(Happening::new("session-opened", text).host(host)));
        outputs.push(Output::Wake(id));
        Ok((id, outputs))
    }

    /// A session ended.
    pub fn closed(&mut self, now: Micros, session: SessionId) -> Vec<Output> {
        let mut outputs = Vec::new();
        if let Some(host) = self.end_session(now, session) {
            outputs.push(Output::Happened(
                Happening::new("session-closed", "the agent's session ended").host(&host),
            ));
            self.progress(now, &mut outputs);
        }
        outputs
    }

    /// A host acknowledged a message.
    pub fn acked(&mut self, now: Micros, session: SessionId, ack: Ack) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some((name, host)) = host_of(&self.sessions, &mut self.hosts, session) else { return outputs };
        let Some(open) = &mut host.session else { return outputs };
        let answered = open.in_flight.as_ref().is_some_and(|m| m.generation == ack.generation);
        if let Some(error) = ack.error {
            if answered {
                open.start_over(now + RETRY);
            }
            if host.error.as_ref() != Some(&error) {
                let text = format!("generation {} was refused: {error}", ack.generation);
                outputs.push(Output::Happened(Happening::new("problem", text).host(name)));
            }
            host.error = Some(error);
        } else if answered {
            open.in_flight = None;
            host.error = None;
            host.applied = Some(ack.generation);
            host.read_back(now, ack.generation, &ack.networks, ack.ports, false);
            let session = open_id(host);
            outputs.extend(session.map(Output::Wake));
        }
        self.progress(now, &mut outputs);
        outputs
    }

    /// A host has read all of its kernel's maps.
    pub fn proved(&mut self, now: Micros, session: SessionId, proof: Proof) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some((name, host)) = host_of(&self.sessions, &mut self.hosts, session) else { return outputs };
        for text in &proof.repaired {
            outputs.push(Output::Happened(Happening::new("repaired", text.clone()).host(name)));
            host.repaired.push_back(text.clone());
        }
        while host.repaired.len() > REPAIRS_KEPT {
            host.repaired.pop_front();
        }
        for text in proof.problems.iter().filter(|t| !host.problems.contains(t)) {
            outputs.push(Output::Happened(Happening::new("problem", text.clone()).host(name)));
        }
        host.problems = proof.problems;
        host.read_back(now, proof.generation, &proof.networks, proof.ports, true);
        outputs
    }

    /// A host measured its paths and uplinks.
    pub fn measured(&mut self, now: Micros, session: SessionId, measured: Measured) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some((name, host)) = host_of(&self.sessions, &mut self.hosts, session) else { return outputs };
        let before = host.measured.take().map(|(m, _)| m).unwrap_or_default();
        for path in &measured.paths {
            let old = before.paths.iter().find(|p| p.pa == path.pa).and_then(|p| p.mtu);
            if let (Some(old), Some(new)) = (old, path.mtu)
                && old != new
            {
                let text = format!("the path to host {} carries {new} bytes now, {old} before", path.peer);
                outputs.push(Output::Happened(Happening::new("path", text).host(name)));
            }
        }
        host.measured = Some((measured, now));
        outputs
    }

    /// A host does not know what it has, or has another state than was thought.
    pub fn resync(&mut self, _now: Micros, session: SessionId, reason: &str) -> Vec<Output> {
        let Some((name, host)) = host_of(&self.sessions, &mut self.hosts, session) else { return Vec::new() };
        let Some(open) = &mut host.session else { return Vec::new() };
        open.start_over(0);
        let text = format!("the full state is sent again: {reason}");
        vec![Output::Happened(Happening::new("resync", text).host(name)), Output::Wake(session)]
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Micros) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut hung = Vec::new();
        for host in self.hosts.values() {
            let Some(s) = &host.session else { continue };
            if s.in_flight.as_ref().is_some_and(|m| now.saturating_sub(m.sent_at) > HUNG) {
                hung.push(s.id);
            } else if s.in_flight.is_none() && s.oldest.is_some() && s.not_before <= now {
                outputs.push(Output::Wake(s.id));
            }
        }
        for session in hung {
            let reason = "the agent did not acknowledge in time".to_owned();
            if let Some(host) = self.end_session(now, session) {
                outputs.push(Output::Happened(Happening::new("session-closed", reason.clone()).host(&host)));
            }
            outputs.push(Output::Close { session, reason, farewell: false });
        }
        self.progress(now, &mut outputs);
        outputs
    }

    /// What the session's host is to be sent now, if anything.
    pub fn next_message(&mut self, now: Micros, session: SessionId) -> Option<Message> {
        let name = self.sessions.get(&session)?;
        let open = self.hosts.get_mut(name)?.session.as_mut()?;
        let revision = self.plan.desired().revision;
        let plan = &self.plan;
        open.next(now, revision, || plan.rows(name))
    }

    /// The site.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        self.plan.desired()
    }

    /// The compiled rows of all hosts.
    pub(crate) const fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) const fn hosts(&mut self) -> &mut BTreeMap<HostName, Host> {
        &mut self.hosts
    }

    pub(crate) fn host(&self, name: &HostName) -> Option<&Host> {
        self.hosts.get(name)
    }

    pub(crate) fn all_hosts(&self) -> impl Iterator<Item = (&HostName, &Host)> {
        self.hosts.iter()
    }

    /// Number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The session of a host.
    #[must_use]
    pub fn session_of(&self, host: &HostName) -> Option<SessionId> {
        self.hosts.get(host).and_then(open_id)
    }

    /// Connected hosts that a revision concerns and that do not have all of it in their kernels yet.
    #[must_use]
    pub fn waiting_for(&self, revision: u64) -> BTreeSet<HostName> {
        let concerned = self.touched.iter().find(|(r, _)| *r == revision).map(|(_, hosts)| hosts);
        let held: BTreeSet<&HostName> =
            self.holds.values().filter(|h| h.revision <= revision).map(|h| &h.host).collect();
        let mut waiting = self.not_yet_switched(revision);
        let lacking = self
            .hosts
            .iter()
            .filter(|(name, _)| concerned.is_none_or(|c| c.contains(*name)))
            .filter(|(name, h)| h.session.as_ref().is_some_and(|s| !s.has(revision) || held.contains(name)))
            .map(|(name, _)| name.clone());
        waiting.extend(lacking);
        waiting
    }

    /// Whether a revision stands on all connected hosts that it concerns, with all that it leads to.
    #[must_use]
    pub fn in_force(&self, revision: u64) -> bool {
        !self.switching(revision) && self.waiting_for(revision).is_empty()
    }

    fn lives_on(&self, port: &PortRef, host: &HostName) -> bool {
        self.desired().ports.get(port).is_some_and(|p| p.value.host.as_ref() == Some(host))
    }

    /// Hosts come and go with the site.
    fn keep_hosts(&mut self, now: Micros, revision: u64, outputs: &mut Vec<Output>) {
        let gone: Vec<HostName> =
            self.hosts.keys().filter(|h| !self.plan.desired().hosts.contains_key(*h)).cloned().collect();
        for name in gone {
            if let Some(session) = self.hosts.remove(&name).as_ref().and_then(open_id) {
                self.sessions.remove(&session);
                let reason = "the host was removed from the site".to_owned();
                outputs.push(Output::Close { session, reason, farewell: true });
            }
        }
        for name in self.plan.desired().hosts.keys() {
            if !self.hosts.contains_key(name) {
                self.hosts
                    .insert(name.clone(), Host { gone_since: now, target: revision, ..Host::default() });
            }
        }
    }

    /// Hands changed rows to the sessions.
    fn spread(&mut self, revision: u64, changes: Vec<(HostName, Delta)>, outputs: &mut Vec<Output>) {
        let mut concerned = BTreeSet::new();
        for (name, change) in changes {
            let Some(host) = self.hosts.get_mut(&name) else { continue };
            host.target = host.target.max(revision);
            host.digests = None;
            if let Some(session) = &mut host.session {
                session.gather(&change, revision);
                outputs.push(Output::Wake(session.id));
            }
            concerned.insert(name);
        }
        match self.touched.back_mut() {
            Some((last, hosts)) if *last == revision => hosts.extend(concerned),
            Some(_) | None => self.touched.push_back((revision, concerned)),
        }
        while self.touched.len() > TOUCHED_KEPT {
            self.touched.pop_front();
        }
    }

    /// Goes on wherever what was waited for has come, or took too long.
    fn progress(&mut self, now: Micros, outputs: &mut Vec<Output>) {
        self.end_holds(now, outputs);
        let vms: Vec<VmRef> = self.runs.keys().cloned().collect();
        for vm in vms {
            self.step(now, &vm, outputs);
        }
        let switches: Vec<Switching> = self.switches.keys().cloned().collect();
        for what in switches {
            self.step_switch(now, &what, outputs);
        }
    }

    fn end_session(&mut self, now: Micros, session: SessionId) -> Option<HostName> {
        let name = self.sessions.remove(&session)?;
        let host = self.hosts.get_mut(&name)?;
        if open_id(host) == Some(session) {
            host.session = None;
            host.gone_since = now;
        }
        Some(name)
    }
}

fn open_id(host: &Host) -> Option<SessionId> {
    host.session.as_ref().map(|s| s.id)
}

fn host_of<'a>(
    sessions: &'a BTreeMap<SessionId, HostName>,
    hosts: &'a mut BTreeMap<HostName, Host>,
    session: SessionId,
) -> Option<(&'a HostName, &'a mut Host)> {
    let name = sessions.get(&session)?;
    hosts.get_mut(name).map(|h| (name, h))
}

impl Control {
    /// The store's history was lost to us; the whole site is taken anew and every host gets its full state.
    pub fn reloaded(&mut self, now: Micros, desired: Desired) -> Vec<Output> {
        let mut outputs = Vec::new();
        let revision = desired.revision;
        self.holds.clear();
        self.plan = Plan::new(desired);
        self.keep_hosts(now, revision, &mut outputs);
        for host in self.hosts.values_mut() {
            host.target = revision;
            host.digests = None;
            if let Some(session) = &mut host.session {
                session.pending = Pending::Full;
                session.oldest = Some(0);
                outputs.push(Output::Wake(session.id));
            }
        }
        let migrations: Vec<_> = self.plan.desired().migrations.values().cloned().collect();
        self.runs.retain(|vm, _| migrations.iter().any(|m| m.value.vm == *vm));
        for m in migrations {
            let waiting = self.hosts_of_vm(&m.value.vm);
            let run = self.runs.entry(m.value.vm.clone());
            let run = run.or_insert_with(|| Run::new(m.value.clone(), m.revision, now, false));
            run.advance(m.value, m.revision, now);
            run.waiting = waiting;
        }
        self.resume_switches(now);
        outputs
    }
}
