//! The core in its shell: the store's changes go in, its outputs are carried out, requests wait for it.

use crate::{budget::Budgets, clock, events::Events, fault::Fault, in_use, pki::Pki, resolve};
use axum::http::StatusCode;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tenet_api::{
    agent,
    rest::{Applied, ChangeItem, ChangeReply, Changed, Wait, WaitQuery},
};
use tenet_control::{
    Control, Frames, Happening, Hello, Message, Order, Output, Refused, SessionId, Switching,
};
use tenet_model::{Change, Desired, HostName, Operation, Receipt, Through, VmRef};
use tenet_store::{SiteError, SiteStore};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinSet,
};

/// Longest wait of a request that does not say.
pub(crate) const WAIT: Duration = Duration::from_secs(10);
/// Longest wait that a request may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Longest wait for a host's answer to a question.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);
/// Attempts of an unconditional change that loses races.
const ATTEMPTS: usize = 16;

/// Why a session ends, told to its task.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    pub(crate) reason: String,
    pub(crate) farewell: bool,
}

/// A session's task, seen from outside.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) wake: Notify,
    closed: Mutex<Option<Closed>>,
    questions: Mutex<Vec<agent::Question>>,
    drives: Mutex<Vec<agent::Drive>>,
    answers: Mutex<BTreeMap<u64, oneshot::Sender<agent::Answer>>>,
}

impl Link {
    pub(crate) fn take_questions(&self) -> Vec<agent::Question> {
        std::mem::take(&mut *lock(&self.questions))
    }

    pub(crate) fn take_drives(&self) -> Vec<agent::Drive> {
        std::mem::take(&mut *lock(&self.drives))
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        lock(&self.closed).clone()
    }

    pub(crate) fn answered(&self, answer: agent::Answer) {
        if let Some(asker) = lock(&self.answers).remove(&answer.id) {
            // The asker may have stopped waiting.
            let _ = asker.send(answer);
        }
    }
}

/// Figures for the metrics.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) requests: Mutex<BTreeMap<(String, u16), u64>>,
    pub(crate) changes: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) migrations_moved: AtomicU64,
    pub(crate) migrations_back: AtomicU64,
    /// When a refused join was last told, in milliseconds.
    refused_join: AtomicU64,
}

impl Figures {
    /// Whether a refused join is worth a line now. Anybody can ask to join: one line a second must do, lest the
    /// events that matter be pushed out and the log fill up.
    pub(crate) fn tell_refused_join(&self, now_ms: u64) -> bool {
        let told = |last: u64| (now_ms.saturating_sub(last) >= 1000).then_some(now_ms);
        self.refused_join.fetch_update(Ordering::Relaxed, Ordering::Relaxed, told).is_ok()
    }
}

/// Everything that the listeners share.
pub(crate) struct Engine {
    core: Mutex<Control>,
    site: SiteStore,
    links: Mutex<BTreeMap<SessionId, Arc<Link>>>,
    /// One change at a time: races are then only those with other controllers.
    writer: tokio::sync::Mutex<()>,
    progress: watch::Sender<u64>,
    questions: AtomicU64,
    pub(crate) events: Events,
    pub(crate) pki: Pki,
    pub(crate) figures: Figures,
    pub(crate) budgets: Budgets,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a change is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Only at this revision of the site.
    pub(crate) if_revision: Option<u64>,
    /// It is only checked.
    pub(crate) dry_run: bool,
    /// Also if it takes ports to other hosts that VMs use where they are.
    pub(crate) force: bool,
}

impl How {
    /// At once, at this revision of the site if one is given.
    pub(crate) const fn at(if_revision: Option<u64>) -> Self {
        Self { if_revision, dry_run: false, force: false }
    }
}

/// What a change came to.
pub(crate) struct Committed {
    pub(crate) revision: u64,
    pub(crate) changed: Vec<Changed>,
}

/// What an order is called on the wire. One that an agent of an earlier version does not know is refused by it as a way
/// that it does not know, and not taken for another.
const fn way(through: Through, order: Order) -> &'static str {
    match order {
        Order::Receive => "qmp-incoming",
        Order::Move | Order::Follow | Order::GiveUp => through.name(),
    }
}

impl Engine {
    /// Loads the site and follows it from now on, by the tasks returned: without any of them nothing goes on.
    pub(crate) async fn start(site: SiteStore, pki: Pki) -> Result<(Arc<Self>, JoinSet<()>), SiteError> {
        let desired = site.load().await?;
        let revision = desired.revision;
        let engine = Arc::new(Self {
            core: Mutex::new(Control::new(desired, clock::micros())),
            site,
            links: Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            progress: watch::Sender::new(0),
            questions: AtomicU64::new(1),
            events: Events::new(),
            pki,
            figures: Figures::default(),
            budgets: Budgets::default(),
        });
        let watch = engine.site.watch(revision + 1).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&engine).follow(watch));
        tasks.spawn(Arc::clone(&engine).tick());
        Ok((engine, tasks))
    }

    /// Ends the sessions.
    pub(crate) fn stop(&self) {
        for link in lock(&self.links).values() {
            *lock(&link.closed) = Some(Closed { reason: "the controller ends".into(), farewell: false });
            link.wake.notify_one();
        }
    }

    /// The store's changes.
    async fn follow(self: Arc<Self>, mut watch: tenet_store::SiteWatch) {
        loop {
            let error = match watch.next().await {
                Ok(event) => {
                    self.drive(|core, now| core.changed(now, event.revision, &event.operations));
                    self.log_change(event.revision, &event.operations);
                    continue;
                }
                Err(error) => error,
            };
            tracing::warn!(%error, "the store's changes cannot be followed: reading all of it again");
            watch = loop {
                match self.reload().await {
                    Ok(watch) => break watch,
                    Err(error) => tracing::error!(%error, "the store cannot be read"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
        }
    }

    async fn reload(self: &Arc<Self>) -> Result<tenet_store::SiteWatch, SiteError> {
        let desired = self.site.load().await?;
        let watch = self.site.watch(desired.revision + 1).await?;
        self.drive(|core, now| core.reloaded(now, desired));
        Ok(watch)
    }

    async fn tick(self: Arc<Self>) {
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.drive(Control::tick);
        }
    }

    fn log_change(&self, revision: u64, operations: &[Operation]) {
        self.figures.changes.fetch_add(1, Ordering::Relaxed);
        let line = |o: &Operation| match o {
            Operation::Put(object) => format!("+{}", object.key()),
            Operation::Delete(key) => format!("-{key}"),
        };
        let mut text = operations.iter().take(8).map(line).collect::<Vec<_>>().join(" ");
        if operations.len() > 8 {
            text.push_str(&format!(" and {} more", operations.len() - 8));
        }
        tracing::info!(revision, "changed {text}");
        self.events.happened(Happening::new("change", text).field("revision", revision));
    }

    /// Runs the core and carries its outputs out.
    pub(crate) fn drive(self: &Arc<Self>, run: impl FnOnce(&mut Control, u64) -> Vec<Output>) {
        let outputs = run(&mut lock(&self.core), clock::micros());
        self.carry_out(outputs);
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The same for what a host says: of its claims to what is not its own, no more is told than its budget allows.
    pub(crate) fn drive_for(
        self: &Arc<Self>,
        host: &HostName,
        run: impl FnOnce(&mut Control, u64) -> Vec<Output>,
    ) {
        self.drive(|core, now| {
            let mut outputs = run(core, now);
            outputs.retain(|output| match output {
                Output::Happened(told) if matches!(told.kind.as_str(), "problem" | "refused") => {
                    self.budgets.spend(host)
                }
                _ => true,
            });
            outputs
        });
    }

    fn carry_out(self: &Arc<Self>, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Wake(session) => {
                    if let Some(link) = lock(&self.links).get(&session) {
                        link.wake.notify_one();
                    }
                }
                Output::Close { session, reason, farewell } => {
                    if let Some(link) = lock(&self.links).get(&session) {
                        *lock(&link.closed) = Some(Closed { reason, farewell });
                        link.wake.notify_one();
                    }
                }
                Output::Commit { vm, operations, receipt } => {
                    tokio::spawn(Arc::clone(self).commit(vm, operations, receipt));
                }
                Output::Switch(what) => {
                    tokio::spawn(Arc::clone(self).step(what));
                }
                Output::Count { migration, vm, host, session, stage } => {
                    let me = Arc::clone(self);
                    tokio::spawn(async move {
                        let answer = me.ask(session, agent::question::What::Counters, ANSWER).await.ok();
                        let frames = answer.map(|a| frames(&a, &vm));
                        me.drive(|core, now| core.counted(now, migration, &vm, &host, stage, frames));
                    });
                }
                Output::Drive { session, migration, vm, through, uri, post_copy, order } => {
                    if let Some(link) = lock(&self.links).get(&session) {
                        lock(&link.drives).push(agent::Drive {
                            migration: migration.to_string(),
                            vm: vm.to_string(),
                            through: way(through, order).to_owned(),
                            uri,
                            cancel: order == Order::GiveUp,
                            follow: order == Order::Follow,
                            post_copy,
                        });
                        link.wake.notify_one();
                    }
                }
                Output::Happened(happening) => self.events.happened(happening),
            }
        }
    }

    /// Commits what the core wants for a migration.
    async fn commit(self: Arc<Self>, vm: VmRef, operations: Vec<Operation>, receipt: Option<Box<Receipt>>) {
        let change: Change = operations.into_iter().collect();
        let moved = receipt.as_ref().map(|r| r.moved);
        let committed = async {
            let _writer = self.writer.lock().await;
            let checked = self.core().desired().check(&change).map_err(|p| Fault::problems(&p))?;
            let revision = match &receipt {
                Some(receipt) => self.site.commit_with_receipt(&checked, receipt).await?,
                None => self.site.commit(&checked).await?,
            };
            self.seen(revision).await;
            Ok::<_, Fault>(())
        };
        match committed.await {
            Ok(()) => {
                let counter = match moved {
                    Some(true) => &self.figures.migrations_moved,
                    Some(false) => &self.figures.migrations_back,
                    None => return,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Err(fault) => self.drive(|core, now| core.commit_failed(now, &vm, &fault.error.message)),
        }
    }

    /// Commits the next step of a change that goes in steps, as the core says it at that moment.
    async fn step(self: Arc<Self>, what: Switching) {
        let committed = async {
            let _writer = self.writer.lock().await;
            let checked = {
                let core = self.core();
                let change: Change = core.next_step(&what).into_iter().collect();
                core.desired().check(&change).map_err(|p| Fault::problems(&p))?
            };
            if !checked.is_empty() {
                let revision = self.site.commit(&checked).await?;
                self.seen(revision).await;
            }
            Ok::<_, Fault>(())
        };
        if let Err(fault) = committed.await {
            self.drive(|core, now| core.step_failed(now, &what, &fault.error.message));
        }
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Control> {
        lock(&self.core)
    }

    pub(crate) const fn site(&self) -> &SiteStore {
        &self.site
    }

    /// Plans, checks and commits a change; tries again where a race is lost, unless it is for one revision only.
    pub(crate) async fn change(
        &self,
        How { if_revision, dry_run, force }: How,
        plan: impl Fn(&Desired) -> Result<Change, Fault> + Send,
    ) -> Result<Committed, Fault> {
        let _writer = self.writer.lock().await;
        for _ in 0..ATTEMPTS {
            let (checked, changed) = {
                let core = self.core();
                let desired = core.desired();
                if let Some(asked) = if_revision.filter(|r| *r != desired.revision) {
                    return Err(Fault::lost_race(asked, desired.revision));
                }
                let change = plan(desired)?;
                let checked = desired.check(&change).map_err(|p| Fault::problems(&p))?;
                let changed = resolve::effects(desired, &change, &checked);
                if !force {
                    in_use::check(&core, &change)?;
                }
                (checked, changed)
            };
            if dry_run || checked.is_empty() {
                return Ok(Committed { revision: checked.revision(), changed });
            }
            match self.site.commit(&checked).await {
                Ok(revision) => {
                    self.seen(revision).await;
                    return Ok(Committed { revision, changed });
                }
                Err(SiteError::Lost { seen }) => {
                    if if_revision.is_some() {
                        return Err(Fault::lost_race(seen, self.core().desired().revision));
                    }
                    // Another controller wrote: its change is on its way to us.
                    self.seen(seen + 1).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let message = "lost race: other changes came first each time";
        Err(Fault::new(StatusCode::CONFLICT, "lost-race", message, "try again in a moment"))
    }

    /// A change in user's terms, and the wait that goes with it.
    pub(crate) async fn change_items(
        &self,
        if_revision: Option<u64>,
        items: &[ChangeItem],
        wait: WaitQuery,
    ) -> Result<ChangeReply, Fault> {
        self.change_and_wait(How::at(if_revision), wait, |desired| resolve::change(desired, items)).await
    }

    /// A change, and the wait that goes with it.
    pub(crate) async fn change_and_wait(
        &self,
        how: How,
        wait: WaitQuery,
        plan: impl Fn(&Desired) -> Result<Change, Fault> + Send,
    ) -> Result<ChangeReply, Fault> {
        let dry_run = how.dry_run;
        let Committed { revision, changed } = self.change(how, plan).await?;
        let applied = match wait.wait {
            Wait::Applied if !dry_run => Some(self.wait_applied(revision, longest(wait)).await),
            Wait::Applied | Wait::Stored => None,
        };
        Ok(ChangeReply { revision, dry_run, changed, applied })
    }

    /// Waits until the core has come to a revision.
    async fn seen(&self, revision: u64) {
        // The watch delivers it, if the store lives; it is not worth failing a stored change.
        let _ = self
            .until(Duration::from_secs(5), |core| (core.desired().revision >= revision).then_some(()))
            .await;
    }

    /// Waits until all connected hosts concerned have a revision in their kernels.
    async fn wait_applied(&self, revision: u64, longest: Duration) -> Applied {
        let begun = Instant::now();
        let done = self.until(longest, |core| core.in_force(revision).then_some(())).await;
        let waiting_for = match done {
            Some(()) => Vec::new(),
            None => self.core().waiting_for(revision).iter().map(ToString::to_string).collect(),
        };
        let waited_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Applied { complete: done.is_some(), waiting_for, waited_us }
    }

    /// Waits until the core says something.
    pub(crate) async fn until<T>(
        &self,
        longest: Duration,
        look: impl Fn(&Control) -> Option<T>,
    ) -> Option<T> {
        let mut progress = self.progress.subscribe();
        let waited = async {
            loop {
                if let Some(found) = look(&self.core()) {
                    return Some(found);
                }
                if progress.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(longest, waited).await.ok().flatten()
    }

    /// Begins a session.
    pub(crate) fn open(
        self: &Arc<Self>,
        host: &HostName,
        hello: Hello,
    ) -> Result<(SessionId, Arc<Link>), Refused> {
        let link = Arc::new(Link::default());
        let (session, outputs) = {
            let mut core = self.core();
            let (session, outputs) = core.opened(clock::micros(), host, hello)?;
            lock(&self.links).insert(session, Arc::clone(&link));
            (session, outputs)
        };
        self.carry_out(outputs);
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
        Ok((session, link))
    }

    /// Ends a session.
    pub(crate) fn close(self: &Arc<Self>, session: SessionId) {
        lock(&self.links).remove(&session);
        self.drive(|core, now| core.closed(now, session));
    }

    /// The next message of a session.
    pub(crate) fn next_message(&self, session: SessionId) -> Option<Message> {
        let message = self.core().next_message(clock::micros(), session);
        if message.is_some() {
            self.figures.messages.fetch_add(1, Ordering::Relaxed);
        }
        message
    }

    /// Asks a session's host about its kernel.
    pub(crate) async fn ask(
        &self,
        session: SessionId,
        what: agent::question::What,
        longest: Duration,
    ) -> Result<agent::Answer, String> {
        let Some(link) = lock(&self.links).get(&session).cloned() else {
            return Err("its agent has no session".into());
        };
        let id = self.questions.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        lock(&link.answers).insert(id, to);
        lock(&link.questions).push(agent::Question { id, what: what.into() });
        link.wake.notify_one();
        let answer = tokio::time::timeout(longest, answer).await;
        lock(&link.answers).remove(&id);
        match answer {
            Ok(Ok(answer)) if answer.error.is_empty() => Ok(answer),
            Ok(Ok(answer)) => Err(answer.error),
            Ok(Err(_)) => Err("its session ended".into()),
            Err(_) => Err(format!("it did not answer within {} s", longest.as_secs())),
        }
    }
}

/// The wait that a request asks for.
pub(crate) fn longest(wait: WaitQuery) -> Duration {
    wait.timeout_ms.map_or(WAIT, Duration::from_millis).min(LONGEST_WAIT)
}

/// What a migration counts of a host's counters.
fn frames(answer: &agent::Answer, vm: &VmRef) -> Frames {
    let mut sum = Frames::default();
    for port in &answer.counters {
        let Ok(name) = port.port.parse::<tenet_model::PortRef>() else { continue };
        if name.vm_ref() != *vm {
            continue;
        }
        sum.redirected += port.redirected;
        sum.drained += port.drained;
        let lost = ["port_down", "port_blocked", "loop"];
        sum.lost += lost.iter().filter_map(|reason| port.drops.get(*reason)).sum::<u64>();
        sum.lost += port.tap_unread + port.undrained.values().sum::<u64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_lost_what_was_dropped_for_it_and_what_its_taps_did_not_take() {
        let port = |name: &str, tap_unread, drops: &[(&str, u64)]| agent::PortCounters {
            port: name.into(),
            redirected: 100,
            tap_unread,
            drops: drops.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            ..agent::PortCounters::default()
        };
        let counters = vec![
            port(
                "contoso/sql/eth0",
                7,
                &[("port_down", 1), ("port_blocked", 2), ("loop", 4), ("spoofed_ca", 9)],
            ),
            agent::PortCounters {
                drained: 60,
                undrained: [("broadcast".to_owned(), 500)].into(),
                ..port("contoso/sql/eth1", 30, &[])
            },
            port("contoso/web/eth0", 1000, &[("port_down", 1000)]),
            port("uplink:eth0", 0, &[("loop", 1000)]),
        ];
        let answer = agent::Answer { counters, ..agent::Answer::default() };
        let found = frames(&answer, &"contoso/sql".parse().unwrap());
        assert_eq!(found, Frames { redirected: 200, lost: 544, drained: 60 });
    }

    #[test]
    fn refused_joins_are_told_once_a_second() {
        let figures = Figures::default();
        let told = [5000, 5001, 5999, 6000, 6500, 9000].map(|now| figures.tell_refused_join(now));
        assert_eq!(told, [true, false, false, true, false, true]);
    }
}
