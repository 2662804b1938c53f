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
use crate::taps::wishes;
use crate::vms::{Budget, First, Vms};
use crate::wait::{Task, readable, ready, until};
use crate::wanted::device_names;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tenet_api::agent::{self, AgentMessage, agent_message, controller_message::Message, question::What};
use tenet_compile::Row;
use tenet_host::paths::Settings;
use tenet_host::{HostCore, Input, Output};
use tenet_model::PortRef;
use tenet_tables::LAYOUT_VERSION;
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
        more_events: false,
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
            () = std::future::ready(()), if agent.more_events => agent.take_events(),
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
    pub(crate) cache: Cache,
    pub(crate) uplinks: Vec<String>,
    pub(crate) keep_offloads: bool,
    /// Where QEMU's monitors are looked for; empty: nowhere.
    qmp_dir: String,
    pub(crate) session: Option<mpsc::Sender<AgentMessage>>,
    pub(crate) since: Instant,
    /// Last failure of each device, so that a repeated one is told once.
    failures: BTreeMap<u32, String>,
    /// Taps that cannot be had, and why.
    pub(crate) taps: BTreeMap<String, String>,
    /// What is to be known of taps that are there, by the port's name.
    pub(crate) tap_notes: BTreeMap<String, String>,
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
    /// Whether the data plane may have raised more events than were taken.
    more_events: bool,
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
        self.resume_placeholders();
        self.expect_drains();
        Ok(())
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

    /// Takes some of the events. Their descriptor does not tell again of what is left, so the loop comes back for it.
    pub(crate) fn take_events(&mut self) {
        let events = self.kernel.events();
        self.more_events = !events.is_empty();
        for event in events {
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
