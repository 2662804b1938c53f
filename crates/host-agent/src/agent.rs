//! The agent's loop: one task that owns core and kernel; the session and metrics are tasks that talk to it.

use crate::cache::Cache;
use crate::convert;
use crate::drain::Drains;
use crate::identity::IdentityError;
use crate::kernel::{Kernel, KernelError, MemoryKernel};
use crate::local::{self, Ask, Controller, Domains, Local};
use crate::measure::Measuring;
use crate::metrics;
use crate::options::{KernelPart, Options};
use crate::placeholder::Given;
use crate::probe::Prober;
use crate::real::RealKernel;
use crate::session::{Heard, OUTGOING, Session};
use crate::taps::TapWish;
use crate::vms::{Budget, First, Vms, prepared};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tenet_api::agent::{self, AgentMessage, agent_message, controller_message::Message, question::What};
use tenet_compile::{Delta, Row};
use tenet_host::paths::Settings;
use tenet_host::{HostCore, Input, Output};
use tenet_model::PortRef;
use tenet_tables::LAYOUT_VERSION;
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Between two looks at the carrier of ports that are about to move.
const GLANCE: Duration = Duration::from_millis(5);
/// The tables are read back whole at least so often, also while VMs move.
const LONGEST_UNCOMPARED: Duration = Duration::from_secs(20);
/// Messages of the controller that wait for the loop.
const INCOMING: usize = 64;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used")]
    StateDir {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent uses the state directory.
    #[error("another agent runs on the state directory {0}")]
    Busy(String),
    /// No uplink is named.
    #[error("no uplink is named: say with --uplink which NIC carries the provider network")]
    NoUplink,
    /// The kernel's part cannot be opened.
    #[error("the data plane cannot be opened")]
    Kernel(#[from] KernelError),
    /// The host has no identity and cannot get one.
    #[error("this host is no member of a site")]
    Identity(#[from] IdentityError),
    /// The runtime refuses.
    #[error("the loop cannot wait for {what}")]
    Watch {
        /// What it would wait for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs an agent until `shutdown` resolves. Forwarding goes on after that.
///
/// # Errors
/// [`AgentError`] if it cannot start, or the controller refuses the host for good.
pub async fn run(options: Options, shutdown: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
    if options.uplinks.is_empty() {
        return Err(AgentError::NoUplink);
    }
    let _lock = state_dir(&options.state_dir)?;
    let kernel: Box<dyn Kernel> = match options.kernel {
        KernelPart::Real { bpffs, hook, receive } => Box::new(RealKernel::open(bpffs, hook, receive)?),
        KernelPart::None { uplink_mtu } => Box::new(MemoryKernel::new(&options.uplinks, uplink_mtu)),
        KernelPart::Other(kernel) => kernel,
    };
    let domains = Domains::load(&options.state_dir);
    let absolute = |dir: &PathBuf| std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let qmp_dir = options.qmp_dir.as_ref().map(|dir| absolute(dir).display().to_string());
    let (vms, mut said) = Vms::start(options.qmp_dir, options.libvirt, domains.clone());
    let (drains, mut emptied) = Drains::new();
    let mut agent = Agent {
        core: HostCore::new(options.uplinks.clone()),
        cache: Cache::new(&options.state_dir),
        uplinks: options.uplinks,
        keep_offloads: options.keep_offloads,
        qmp_dir: qmp_dir.clone().unwrap_or_default(),
        kernel,
        session: None,
        since: Instant::now(),
        failures: BTreeMap::new(),
        taps: BTreeMap::new(),
        tap_notes: BTreeMap::new(),
        notes: BTreeMap::new(),
        applied: 0,
        ready: options.ready,
        prober: Prober::new(Settings::default()),
        measured: Measuring::load(&options.state_dir),
        changed: watch::Sender::new(0),
        vms,
        first: First::default(),
        budget: Budget::default(),
        drains,
        placeholders: Given::new(),
        compared: Instant::now(),
    };
    agent.start()?;

    let (heard_tx, mut heard) = mpsc::channel(INCOMING);
    let connection = watch::Sender::new(None);
    let (asks, mut asked_here) = mpsc::channel(4);
    let local = Local {
        asks,
        changed: agent.changed.subscribe(),
        controller: Controller::new(connection.subscribe()),
        domains,
        qmp_dir,
    };
    let _local = options.socket.map(|path| Task(tokio::spawn(local::serve(path, local))));
    let session = Session {
        state_dir: options.state_dir,
        connection,
        controllers: options.controllers,
        token: options.token,
        heard: heard_tx,
    };
    let _session = Task(tokio::spawn(session.run()));
    let (ask, mut asked) = mpsc::channel(4);
    let _metrics = options.metrics.map(|address| Task(tokio::spawn(metrics::serve(address, ask.clone()))));
    let links = readable("links", agent.kernel.link_fd())?;
    let events = readable("events", agent.kernel.event_fd())?;
    let mut tick = tokio::time::interval(options.compare_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut glance = tokio::time::interval(GLANCE);
    glance.set_missed_tick_behavior(MissedTickBehavior::Delay);

    tokio::pin!(shutdown);
    loop {
        let (probe, first) = (agent.measure_at(), agent.first.due());
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = ready(agent.prober.tap_ready()) => agent.probed(),
            () = ready(agent.prober.wire_ready()) => agent.overheard(),
            () = ready(agent.prober.hints_ready()) => agent.hinted(),
            () = until(probe) => agent.measure(),
            Some(what) = heard.recv() => agent.heard(what)?,
            () = ready(links.as_ref()) => {
                if agent.kernel.links_changed() {
                    agent.keep_taps();
                    agent.look_at_devices();
                }
            }
            () = ready(events.as_ref()) => agent.take_events(),
            Some(Ask { vm, reply }) = asked_here.recv() => {
                // The client may have gone.
                let _ = reply.send(agent.core.here(vm.as_ref()));
            }
            _ = tick.tick() => agent.compare_unless_moving(),
            Some(word) = said.recv() => agent.said(&word),
            Some(found) = emptied.recv() => agent.drained(found),
            () = until(first) => agent.look_for_first_frames(),
            _ = glance.tick(), if agent.core.about_to_switch().next().is_some() => agent.glance(),
            Some(request) = asked.recv() => {
                // The client may have gone.
                let _ = request.send(agent.metrics());
            }
        }
    }
}

pub(crate) struct Agent {
    pub(crate) core: HostCore,
    pub(crate) kernel: Box<dyn Kernel>,
    cache: Cache,
    pub(crate) uplinks: Vec<String>,
    pub(crate) keep_offloads: bool,
    /// Where QEMU's monitors are looked for; empty: nowhere.
    qmp_dir: String,
    pub(crate) session: Option<mpsc::Sender<AgentMessage>>,
    pub(crate) since: Instant,
    /// Last failure of each device, so that a repeated one is told once.
    failures: BTreeMap<u32, String>,
    /// Taps that cannot be had, and why.
    taps: BTreeMap<String, String>,
    /// What is to be known of taps that are there, by the port's name.
    tap_notes: BTreeMap<String, String>,
    /// What the ports' operator should know, as last told.
    notes: BTreeMap<PortRef, String>,
    /// Writes to the kernel since the start.
    pub(crate) applied: u64,
    ready: Option<Box<dyn FnOnce() + Send>>,
    pub(crate) prober: Prober,
    pub(crate) measured: Measuring,
    /// Counts the core's inputs, for those who wait for what they bring.
    changed: watch::Sender<u64>,
    pub(crate) vms: Vms,
    pub(crate) first: First,
    pub(crate) budget: Budget,
    pub(crate) drains: Drains,
    pub(crate) placeholders: Given,
    /// When the tables were last read back whole.
    compared: Instant,
}

impl Agent {
    fn start(&mut self) -> Result<(), AgentError> {
        let cached = self.cache.load();
        if let Some((_, rows)) = &cached {
            self.kernel.foresee(&mut device_names(rows.0.values().map(|(row, _)| row)));
            self.make_taps(&wishes(rows.0.values().map(|(row, _)| row)));
        }
        self.open_tap();
        self.resume_offloads();
        let devices = self.kernel.devices()?;
        for name in self.uplinks.iter().filter(|u| !devices.contains_key(*u)) {
            tracing::warn!(uplink = name, "the uplink does not exist yet; waiting for it");
        }
        self.feed(Input::Devices(devices));
        if let Some((generation, rows)) = cached {
            tracing::info!(generation, rows = rows.0.len(), "last state taken from disk");
            self.feed(Input::Cached { generation, rows });
        }
        let (image, attached) = self.kernel.read()?;
        tracing::info!(
            hook = self.kernel.hook(),
            programs = attached.len(),
            ports = image.ports.len(),
            records = image.records.len(),
            "data plane opened"
        );
        self.feed(Input::Kernel { image, attached });
        self.expect_drains();
        Ok(())
    }

    /// Makes taps before anybody is told of their ports.
    fn make_taps(&mut self, wishes: &[TapWish]) {
        if wishes.is_empty() {
            return;
        }
        let made = self.kernel.make_taps(wishes);
        let mut either = self.taps.clone();
        for wish in wishes {
            let trouble = made.troubles.get(&wish.device);
            if let Some(trouble) = trouble.filter(|t| self.taps.get(&wish.device) != Some(t)) {
                tracing::error!(port = wish.port, trouble, "the port has no tap");
            }
            match made.notes.get(&wish.port) {
                Some(note) => self.tap_notes.insert(wish.port.clone(), note.clone()),
                None => self.tap_notes.remove(&wish.port),
            };
            match trouble {
                Some(trouble) => self.taps.insert(wish.device.clone(), trouble.clone()),
                None => self.taps.remove(&wish.device),
            };
        }
        // A strange device is never taken for a port: it is told of before it is seen, and forgotten once it is gone.
        either.extend(self.taps.clone());
        self.feed(Input::Taps(either));
        if made.changed {
            self.look_at_devices();
        }
        self.feed(Input::Taps(self.taps.clone()));
        if !made.again.is_empty() {
            self.feed(Input::Restored(made.again));
        }
    }

    /// Taps that were removed are made again; those of ports that left this host go.
    fn keep_taps(&mut self) {
        let wishes: Vec<TapWish> = self.core.taps().map(TapWish::from).collect();
        self.make_taps(&wishes);
        self.drop_taps();
    }

    fn drop_taps(&mut self) {
        // Without rows nothing is known of what is wanted.
        if self.core.rows().is_none() {
            return;
        }
        let wanted: BTreeSet<&str> = self.core.taps().map(|p| p.device.as_str()).collect();
        self.taps.retain(|name, _| wanted.contains(name.as_str()));
        if let Err(cause) = self.kernel.drop_taps(&wanted) {
            tracing::warn!(%cause, "a tap that no port has any more stays");
        }
    }

    pub(crate) fn look_at_devices(&mut self) {
        match self.kernel.devices() {
            Ok(devices) => self.feed(Input::Devices(devices)),
            Err(cause) => tracing::warn!(%cause, "devices cannot be listed"),
        }
        self.give_placeholders();
    }

    /// Reading all tables back takes some milliseconds, in which nobody hears a hypervisor: that waits while a VM moves,
    /// but not for ever.
    fn compare_unless_moving(&mut self) {
        if !self.core.is_moving() || self.compared.elapsed() > LONGEST_UNCOMPARED {
            self.compare();
        }
    }

    fn compare(&mut self) {
        self.compared = Instant::now();
        self.open_tap();
        self.keep_taps();
        self.look_at_devices();
        self.expect_hosts();
        self.expect_drains();
        self.take_notes();
        self.take_events();
        match self.kernel.restore() {
            Ok(lines) if lines.is_empty() => {}
            Ok(lines) => self.feed(Input::Restored(lines)),
            Err(cause) => tracing::warn!(%cause, "pins cannot be put back"),
        }
        match self.kernel.read() {
            Ok((image, attached)) => self.feed(Input::Kernel { image, attached }),
            Err(cause) => {
                tracing::warn!(%cause, "the tables cannot be read");
                self.feed(Input::Unreadable(cause.to_string()));
            }
        }
        self.look_at_uplinks();
    }

    /// What the operator should know of ports that work: told with them, and once in the log.
    fn take_notes(&mut self) {
        let deaf = self.vms.unheard();
        let mut notes = BTreeMap::new();
        for port in self.core.ports().map(|p| &p.name) {
            let tap = self.tap_notes.get(&port.to_string()).cloned();
            if let Some(note) = tap.or_else(|| deaf.get(&port.vm_ref()).cloned()) {
                notes.insert(port.clone(), note);
            }
        }
        self.tap_notes.retain(|port, _| notes.keys().any(|p| p.to_string() == *port));
        if notes == self.notes {
            return;
        }
        for (port, note) in notes.iter().filter(|(port, note)| self.notes.get(*port) != Some(*note)) {
            tracing::warn!(%port, note, "to be known of a port");
        }
        self.notes.clone_from(&notes);
        self.feed(Input::Notes(notes));
    }

    /// The kernel holds back news of lost carrier for up to a second; a VM that moves must not wait for it.
    fn glance(&mut self) {
        let kernel = &mut self.kernel;
        if self.core.about_to_switch().any(|d| kernel.carrier(d.ifindex).is_some_and(|now| now != d.carrier))
        {
            self.look_at_devices();
        }
    }

    fn take_events(&mut self) {
        for event in self.kernel.events() {
            self.feed(Input::Seen(event));
        }
    }

    fn heard(&mut self, heard: Heard) -> Result<(), AgentError> {
        match heard {
            Heard::Open(session) => {
                self.session = Some(session);
                self.send(convert::wrap(agent_message::Message::Hello(self.hello())));
                self.feed(Input::Connected);
                self.measured.report_soon();
            }
            Heard::Closed => {
                self.session = None;
                self.feed(Input::Disconnected);
            }
            Heard::Farewell => {
                tracing::warn!(
                    "this host was removed from the site; forwarding stays as it is until `--detach`"
                );
                self.session = None;
                self.feed(Input::Disconnected);
            }
            Heard::Fatal(error) => return Err(error.into()),
            Heard::Message(Message::Full(full)) => self.full(full),
            Heard::Message(Message::Delta(delta)) => self.delta(delta),
            Heard::Message(Message::Question(question)) => self.answer(&question),
            Heard::Message(Message::Drive(drive)) => self.vms.drive(drive),
            // The session task ends with it and says so.
            Heard::Message(Message::Farewell(_)) => {}
        }
        Ok(())
    }

    fn hello(&self) -> agent::Hello {
        agent::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT_VERSION,
            generation: self.core.generation(),
            hook: self.kernel.hook().to_owned(),
            uplinks: self.uplinks.clone(),
            uplink_mtu: self.core.uplink().map_or(0, |u| u.mtu),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            qmp_dir: self.qmp_dir.clone(),
        }
    }

    fn full(&mut self, full: agent::Full) {
        let generation = full.generation;
        match full.into_rows() {
            Ok(rows) => {
                self.foresee(&mut rows.0.values().map(|(row, _)| row));
                self.save(|cache| cache.write_full(generation, &rows));
                let (from, before, count) = (self.core.generation(), self.applied, rows.0.len());
                let prepared = prepared(rows.0.values().map(|(row, _)| row));
                self.feed(Input::Full { generation, rows });
                self.drop_taps();
                self.prepared(prepared);
                self.give_placeholders();
                self.expect_drains();
                tracing::info!(
                    generation,
                    from,
                    rows = count,
                    writes = self.applied - before,
                    "full state applied"
                );
            }
            Err(cause) => {
                tracing::error!(generation, %cause, "the full state is not understood");
                self.refuse(generation, &cause);
            }
        }
    }

    fn delta(&mut self, delta: agent::Delta) {
        let generation = delta.generation;
        match Delta::try_from(delta) {
            Ok(delta) => {
                self.foresee(&mut delta.upserts.iter().map(|(row, _)| row));
                let fits = delta.base == self.core.generation();
                let mut afresh = false;
                if fits {
                    self.save(|cache| cache.append(&delta).map(|a| afresh = a));
                }
                let (base, rows, before) =
                    (delta.base, delta.upserts.len() + delta.deletes.len(), self.applied);
                let prepared = prepared(delta.upserts.iter().map(|(row, _)| row));
                self.feed(Input::Delta(delta));
                self.drop_taps();
                self.prepared(prepared);
                self.give_placeholders();
                self.expect_drains();
                if afresh {
                    let (generation, rows) =
                        (self.core.generation(), self.core.rows().cloned().unwrap_or_default());
                    self.save(|cache| cache.write_full(generation, &rows));
                }
                tracing::info!(generation, base, rows, writes = self.applied - before, "change applied");
            }
            Err(cause) => {
                tracing::error!(generation, %cause, "the change is not understood");
                self.refuse(generation, &cause);
            }
        }
    }

    fn refuse(&mut self, generation: u64, cause: &dyn std::fmt::Display) {
        let error = format!("the state is not understood by this version of the agent: {cause}");
        self.send(convert::wrap(agent_message::Message::Ack(agent::Ack {
            generation,
            error,
            ..Default::default()
        })));
    }

    fn foresee(&mut self, rows: &mut dyn Iterator<Item = &Row>) {
        let rows: Vec<&Row> = rows.collect();
        let foreseen = self.kernel.foresee(&mut device_names(rows.iter().copied()));
        // Those that are there, as far as is known, need not be looked for each time.
        let there: BTreeSet<TapWish> = self.core.taps().map(TapWish::from).collect();
        let mut new = wishes(rows.into_iter());
        new.retain(|wish| !there.contains(wish) || self.taps.contains_key(&wish.device));
        self.make_taps(&new);
        if foreseen {
            self.look_at_devices();
        }
    }

    fn save(&mut self, write: impl FnOnce(&mut Cache) -> io::Result<()>) {
        if let Err(cause) = write(&mut self.cache) {
            tracing::error!(%cause, "the state cannot be kept on disk; a restart will need the controller");
        }
    }

    /// Gives the core an input and carries out what it says, until it has no more to say.
    pub(crate) fn feed(&mut self, input: Input) {
        let (hosts_change, underlay) = (self.bears_on_hosts(&input), self.underlay());
        let mut todo: VecDeque<Output> = self.core.handle(self.since.elapsed(), input).into();
        while let Some(output) = todo.pop_front() {
            let result = match output {
                Output::Attach { device, ifindex, role } => {
                    let result = self.kernel.attach(&device, ifindex, role).map_err(|e| e.to_string());
                    self.tell(ifindex, &device, result.as_ref().err());
                    Input::Attached { ifindex, result }
                }
                Output::Detach { ifindex } => {
                    self.failures.remove(&ifindex);
                    if let Err(cause) = self.kernel.detach(ifindex) {
                        tracing::warn!(ifindex, %cause, "the program cannot be taken off");
                    }
                    continue;
                }
                Output::Apply(operations) => {
                    self.applied += operations.len() as u64;
                    let mut errors = self.kernel.apply(&operations);
                    let read_back = self.kernel.read_back(&operations).unwrap_or_else(|e| {
                        errors.push(e.0);
                        Vec::new()
                    });
                    for cause in errors.iter().take(5) {
                        tracing::error!(cause, "the kernel refused a write");
                    }
                    Input::Applied { read_back, errors }
                }
                Output::Send(mut message) => {
                    if let tenet_host::Message::Proof(proof) = &mut message {
                        proof.problems.extend(self.unreachable());
                    }
                    self.say(&message);
                    self.send(convert::message(message));
                    continue;
                }
            };
            todo.extend(self.core.handle(self.since.elapsed(), result));
        }
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        if hosts_change || underlay != self.underlay() {
            self.expect_hosts();
        }
        if self.core.ready()
            && let Some(ready) = self.ready.take()
        {
            ready();
        }
    }

    fn tell(&mut self, ifindex: u32, device: &str, failure: Option<&String>) {
        match failure {
            None => {
                self.failures.remove(&ifindex);
                tracing::info!(device, ifindex, "program attached");
            }
            Some(cause) if self.failures.get(&ifindex) != Some(cause) => {
                tracing::error!(device, ifindex, cause, "the program cannot be attached");
                self.failures.insert(ifindex, cause.clone());
            }
            Some(_) => {}
        }
    }

    /// Hosts that the kernel has no route to: it drops frames for them without a word, so we say it.
    fn unreachable(&mut self) -> Vec<String> {
        let Some(rows) = self.core.rows() else { return Vec::new() };
        let peers: Vec<_> = rows
            .0
            .values()
            .filter_map(|(row, _)| if let Row::Peer(p) = row { Some((p.name.clone(), p.pa)) } else { None })
            .collect();
        peers
            .into_iter()
            .filter(|(_, pa)| self.kernel.leads_to(*pa) == Some(false))
            .map(|(name, pa)| format!("no route to host {name} ({pa}): add one on the provider network"))
            .collect()
    }

    /// What an operator would want in the log.
    fn say(&self, message: &tenet_host::Message) {
        use tenet_host::Message as M;
        match message {
            M::Proof(proof) => {
                for what in &proof.repaired {
                    tracing::warn!(what, "repaired");
                }
            }
            M::PortActivated(port) => tracing::info!(%port, "the VM runs here now"),
            M::Event(event) => {
                tracing::info!(kind = event.kind, port = event.port, text = event.text, "event")
            }
            M::Resync { reason } => tracing::warn!(reason, "asking for the full state"),
            M::Ack(_) => {}
        }
    }

    pub(crate) fn send(&mut self, message: AgentMessage) {
        let Some(session) = &self.session else { return };
        // Events give way where the controller is slow; what it must not miss ends the session instead.
        let event = match &message.message {
            Some(agent_message::Message::Event(_)) => true,
            Some(agent_message::Message::VmEvent(e)) => tenet_model::under_way(&e.status),
            _ => false,
        };
        if event && session.capacity() < OUTGOING / 2 {
            return;
        }
        if session.try_send(message).is_err() {
            tracing::warn!("the controller takes no messages; ending the session");
            self.session = None;
        }
    }

    fn answer(&mut self, question: &agent::Question) {
        let mut answer = agent::Answer { id: question.id, ..Default::default() };
        let result = match question.what() {
            What::Table => self.kernel.read().map(|(image, _)| {
                answer.rows = self.core.table(&image).0.values().map(Into::into).collect();
            }),
            What::Counters => self.counters().map(|counters| answer.counters = counters),
        };
        if let Err(cause) = result {
            answer.error = cause.to_string();
        }
        self.send(convert::wrap(agent_message::Message::Answer(answer)));
    }
}

fn wishes<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<TapWish> {
    let ports = rows.filter_map(|row| if let Row::Port(p) = row { Some(p) } else { None });
    ports.filter(|p| p.tap).map(TapWish::from).collect()
}

fn device_names<'a>(rows: impl Iterator<Item = &'a Row>) -> impl Iterator<Item = &'a str> {
    rows.filter_map(|row| match row {
        Row::Port(p) => Some(p.device.as_str()),
        Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) => {
            None
        }
    })
}

/// Makes the directory, root's alone, and holds it.
fn state_dir(path: &Path) -> Result<File, AgentError> {
    let failed = |source| AgentError::StateDir { path: path.display().to_string(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let lock = File::create(path.join("agent.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(AgentError::Busy(path.display().to_string())),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A task that ends with its owner.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn readable(what: &'static str, fd: Option<OwnedFd>) -> Result<Option<AsyncFd<OwnedFd>>, AgentError> {
    fd.map(register).transpose().map_err(|source| AgentError::Watch { what, source })
}

pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one descriptor, always the same, open until it is dropped, which `AsyncFd` does last.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Waits until that moment; forever, if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until the descriptor is readable; forever, if there is none.
async fn ready(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        // What made it readable is taken right after; edge by edge, so that it need not be empty then.
        Some(fd) => match fd.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
