//! libvirt, by way of virsh: its domains' events, and migrations that the agent drives.
//!
//! Of virsh's two streams of events, `qemu-monitor-event` tells STOP some milliseconds before `event --all` tells
//! `Suspended`, and RESUME before `Resumed`: it passes on what QEMU says without waiting for libvirt's own part.

mod find;
mod follow;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use find::{Finder, Found};

use crate::local::Domains;
use crate::qmp::{Drive, IDLE, Migrate};
use crate::vms::{Driven, Said, What};
use follow::{Follow, Heard, State};
use std::{
    collections::BTreeMap,
    process::{Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tenet_model::{ARRIVED, NEXT, Through, VmRef, check_migration_uri};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::Command,
    sync::mpsc,
};

/// Longest pause before a libvirt is looked for again or virsh is started again, and the first one.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(200));
/// Between two questions how far a migration is.
const ASK: Duration = Duration::from_millis(500);
/// Longest wait for an answer of virsh.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the destination is asked how long the domain stood still, and how often that is.
const DOWNTIME: (u32, Duration) = (6, Duration::from_millis(150));
/// When the domains are asked what they do, after virsh was started: it says not when it begins to listen, and what
/// happens before is heard by nobody.
const LOOKS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(2)];
/// Bytes of virsh's errors that are kept, the last ones.
const LAST_WORDS: usize = 4096;
/// Name in messages.
const SOURCE: &str = "libvirt";

/// A libvirt; clones are the same.
#[derive(Clone)]
pub(crate) struct Virsh {
    finder: Finder,
    domains: Domains,
    said: mpsc::Sender<Said>,
    /// VMs that this agent moves or has moved.
    driving: Arc<Mutex<BTreeMap<VmRef, Move>>>,
}

/// A VM's move by this agent.
#[derive(Debug, Default)]
struct Move {
    driven: Driven,
    /// virsh is at it.
    busy: bool,
    /// It is to end.
    given_up: bool,
    /// What came of it, to be said again to who asks again.
    end: Option<Migrate>,
}

/// What a domain was asked, when, and what it answered.
struct Answer {
    vm: VmRef,
    domain: String,
    asked: Instant,
    state: State,
}

impl Virsh {
    pub(crate) fn new(finder: Finder, domains: Domains, said: mpsc::Sender<Said>) -> Self {
        Self { finder, domains, said, driving: Arc::default() }
    }

    /// Listens for as long as the agent runs, whenever there is a libvirt.
    pub(crate) async fn listen(self) {
        let mut pause = BACKOFF.1;
        let mut told = None;
        loop {
            let called = self.domains.called();
            if self.finder.look(called) == Found::Here {
                let begun = Instant::now();
                if told.is_none() {
                    tracing::info!(uri = self.finder.uri(), "listening to libvirt");
                }
                let cause = match self.follow().await {
                    Ok(()) => "it ended".to_owned(),
                    Err(cause) => cause.to_string(),
                };
                if begun.elapsed() > BACKOFF.0 {
                    (pause, told) = (BACKOFF.1, None);
                }
                // One that stays away is told once.
                if told.as_ref() != Some(&cause) {
                    tracing::warn!(
                        uri = self.finder.uri(),
                        cause,
                        "libvirt's events are not heard; virsh is started again until they are"
                    );
                    told = Some(cause);
                }
            }
            if self.said.is_closed() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.0),
                () = self.domains.call() => pause = BACKOFF.1,
            }
        }
    }

    /// One run of virsh.
    async fn follow(&self) -> std::io::Result<()> {
        // One that hangs before it listens says nothing of that; once it listens, it notices by its keepalive.
        self.ask(&["uri"]).await.map_err(std::io::Error::other)?;
        let mut child = self
            .command(&["qemu-monitor-event", "--loop", "--timestamp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Ok(()) };
        let (mut out, mut line) = (BufReader::new(out), Vec::new());
        // Nobody reading them would bring virsh to a stop once they fill a pipe.
        let last_words = tokio::spawn(last_words(err));
        let mut follow = Follow::default();
        // What happened while nobody listened. Its task ends when its answers are not taken any more.
        let (answers, mut answered) = mpsc::channel(16);
        let me = self.clone();
        tokio::spawn(async move { me.look(answers).await });
        loop {
            tokio::select! {
                biased;
                // Cancelled, it keeps in `line` what it has read.
                read = out.read_until(b'\n', &mut line) => {
                    if read? == 0 {
                        break;
                    }
                    if let Some(event) = text::event(String::from_utf8_lossy(&line).trim_end_matches('\n')) {
                        self.happened(&event, &mut follow).await;
                    }
                    line.clear();
                }
                Some(answer) = answered.recv() => {
                    if let Some(what) = follow.answer(answer.asked, &answer.domain, &answer.state) {
                        self.say(&answer.vm, what).await;
                    }
                }
            }
        }
        let status = child.wait().await?;
        // Whoever has inherited its pipe may keep it open.
        let stderr =
            tokio::time::timeout(ANSWER, last_words).await.ok().and_then(Result::ok).unwrap_or_default();
        Err(std::io::Error::other(words(&Output { status, stdout: Vec::new(), stderr })))
    }

    /// Asks each domain that is known what it does.
    async fn look(&self, answers: mpsc::Sender<Answer>) {
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            for (vm, domain) in self.domains.all() {
                let asked = Instant::now();
                let Some(state) = self.state(&domain).await else { continue };
                if answers.send(Answer { vm, domain, asked, state }).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What a domain does; none if virsh does not say.
    async fn state(&self, domain: &str) -> Option<State> {
        // The job first: a migration that ends between the two questions is then none that is believed to go on.
        let job = self.ask(&["domjobinfo", domain]).await.unwrap_or_default();
        match self.ask(&["domstate", "--reason", domain]).await {
            Ok(state) if text::gone(&state) => Some(State::Gone),
            Ok(state) => Some(State::Is(text::runs(&state, &job), text::migrates(&job))),
            Err(error) => text::gone(&error).then_some(State::Gone),
        }
    }

    async fn happened(&self, event: &text::Event<'_>, follow: &mut Follow) {
        let Some(vm) = self.domains.vm(event.domain) else { return };
        match follow.event(Instant::now(), event) {
            Some(Heard::Say(what)) => self.say(&vm, what).await,
            Some(Heard::Migration(status)) => {
                let migration = match self.moves().get_mut(&vm) {
                    Some(known) => known.driven.of(&status),
                    None => String::new(),
                };
                self.say(&vm, What::Migration(Migrate::word(&migration, &status))).await;
            }
            Some(Heard::Arrived) => {
                self.say(&vm, What::Resumed).await;
                let (me, domain) = (self.clone(), event.domain.to_owned());
                tokio::spawn(async move { me.downtime(&vm, &domain).await });
            }
            None => {}
        }
    }

    /// On the destination: how long the domain stood still by QEMU's own clock.
    async fn downtime(&self, vm: &VmRef, domain: &str) {
        for _ in 0..DOWNTIME.0 {
            tokio::time::sleep(DOWNTIME.1).await;
            let Ok(answer) = self.ask(&["domjobinfo", "--completed", domain]).await else { continue };
            if let Some(ms) = text::downtime_ms(&answer) {
                let migrate = Migrate { downtime_ms: Some(ms), ..Migrate::word("", ARRIVED) };
                return self.say(vm, What::Migration(migrate)).await;
            }
        }
    }

    /// Moves a VM to another libvirt; to none: waits for the end of what an earlier run of the agent began.
    pub(crate) async fn migrate(self, vm: &VmRef, migration: &str, to: Option<&Drive>) {
        let again = {
            let mut moves = self.moves();
            let known = moves.entry(vm.clone()).or_default();
            if known.busy || (known.end.is_some() && known.driven.id() == migration) {
                Some((known.driven.id() == migration, known.end.clone()))
            } else {
                *known = Move { busy: true, ..Move::default() };
                known.driven.begin(migration);
                None
            }
        };
        match again {
            // Told again, as after a break: it is at it, or says again what came of it.
            Some((true, None)) => return,
            Some((true, Some(end))) => return self.say(vm, What::Migration(end)).await,
            Some((false, _)) => {
                let why = "libvirt has not ended an earlier migration of the VM yet: try again in a moment";
                return self.say(vm, What::Migration(Migrate::failed(migration, why))).await;
            }
            None => {}
        }
        let end = match self.drive(vm, migration, to).await {
            Ok(()) => Migrate::word(migration, "completed"),
            Err(error) => {
                // It may have taken the VM back after all of it was moved; a failure is believed only of one that runs.
                if let Ok(domain) = self.domain(vm)
                    && let Some(State::Is(Some(true), _)) = self.state(&domain).await
                {
                    self.say(vm, What::Resumed).await;
                }
                Migrate::failed(migration, error)
            }
        };
        if let Some(known) = self.moves().get_mut(vm) {
            known.busy = false;
            known.end = Some(end.clone());
        }
        self.say(vm, What::Migration(end)).await;
    }

    async fn drive(&self, vm: &VmRef, migration: &str, to: Option<&Drive>) -> Result<(), String> {
        let Some(Drive { uri: to, post_copy, .. }) = to else {
            return self.attend(vm, migration, &self.domain(vm)?).await;
        };
        // A URI can have libvirt run programs as root: that is this host's to forbid, whatever the controller allows.
        check_migration_uri(Through::Libvirt, to)
            .map_err(|why| format!("this agent does not move a VM to {to:?}: {why}{NEXT}give a plain URI"))?;
        let domain = self.domain(vm)?;
        if text::outgoing(&self.ask(&["domjobinfo", &domain]).await?).is_some() {
            tracing::info!(%vm, "libvirt moves it already");
            return self.attend(vm, migration, &domain).await;
        }
        let info = self.ask(&["dominfo", &domain]).await?;
        let persistent =
            info.lines().any(|l| l.strip_prefix("Persistent:").is_some_and(|v| v.trim() == "yes"));
        let mut arguments = vec!["migrate", "--live", "--p2p"];
        if *post_copy {
            arguments.extend(["--postcopy", "--postcopy-after-precopy"]);
        }
        if persistent {
            arguments.extend(["--persistent", "--undefinesource"]);
        }
        arguments.extend(["--", domain.as_str(), to]);
        if self.is_given_up(vm) {
            return Err("given up before it began".to_owned());
        }
        let mut work = std::pin::pin!(self.command(&arguments).output());
        let output = loop {
            tokio::select! {
                output = &mut work => break output.map_err(|e| unrun(&e))?,
                () = tokio::time::sleep(ASK) => {
                    if self.is_given_up(vm) {
                        // There was no job yet when it was given up, maybe.
                        let _ = self.ask(&["domjobabort", &domain]).await;
                    }
                    let Ok(job) = self.ask(&["domjobinfo", &domain]).await else { continue };
                    self.progress(vm, migration, &job).await;
                }
            }
        };
        if output.status.success() { Ok(()) } else { Err(words(&output)) }
    }

    /// Waits for the end of a migration that an earlier run of the agent began.
    async fn attend(&self, vm: &VmRef, migration: &str, domain: &str) -> Result<(), String> {
        loop {
            tokio::time::sleep(ASK).await;
            match self.ask(&["domjobinfo", domain]).await {
                Ok(job) if self.progress(vm, migration, &job).await => {}
                Ok(_) | Err(_) => match self.state(domain).await {
                    Some(State::Gone) => return Ok(()),
                    Some(State::Is(Some(true) | None, false)) => {
                        return Err("libvirt's migration has ended, and the VM is here still".to_owned());
                    }
                    Some(State::Is(..)) | None => {}
                },
            }
        }
    }

    /// Tells how far a job is; whether it is a migration away from here.
    async fn progress(&self, vm: &VmRef, migration: &str, job: &str) -> bool {
        let Some((transferred, total)) = text::outgoing(job) else { return false };
        self.say(vm, What::Migration(Migrate { transferred, total, ..Migrate::word(migration, "active") }))
            .await;
        true
    }

    /// Says how a migration stands that may have been begun before, and begins none.
    pub(crate) async fn look_after(self, vm: &VmRef, drive: &Drive) {
        let known = self.moves().get(vm).filter(|m| m.driven.id() == drive.migration).map(|m| m.end.clone());
        match known {
            Some(Some(end)) => return self.say(vm, What::Migration(end)).await,
            // It is at it, and says how far every moment.
            Some(None) => return,
            None => {}
        }
        let job = match self.domain(vm) {
            Ok(domain) => match self.state(&domain).await {
                Some(State::Is(Some(true) | None, false)) => {
                    return self.say(vm, What::Migration(Migrate::word(&drive.migration, IDLE))).await;
                }
                // Its agent began it in an earlier life: only its end is waited for, which `migrate` does.
                Some(State::Is(..)) => true,
                Some(State::Gone) | None => false,
            },
            Err(_) => false,
        };
        if job {
            return self.migrate(vm, &drive.migration, None).await;
        }
        let why = "libvirt here has no such domain, or does not answer";
        self.say(vm, What::Migration(drive.hopeless(why))).await;
    }

    /// Gives up a VM's migration.
    pub(crate) async fn cancel(self, vm: &VmRef, migration: &str) {
        let driven = match self.moves().get_mut(vm).filter(|known| known.busy) {
            Some(known) if known.driven.id() != migration => return,
            Some(known) => {
                known.given_up = true;
                true
            }
            None => false,
        };
        let Ok(domain) = self.domain(vm) else {
            return self.say(vm, What::Migration(Migrate::word(migration, "cancelled"))).await;
        };
        let Err(error) = self.ask(&["domjobabort", &domain]).await else { return };
        // virsh may be about to begin: who runs it tells the end.
        if driven {
            return;
        }
        let idle = self.ask(&["domjobinfo", &domain]).await.is_ok_and(|job| text::idle(&job));
        let state = self.state(&domain).await;
        tracing::info!(%vm, error, idle, ?state, "libvirt has no job to give up");
        // A VM that has left, or is about to, is not given up: its end is told by who moves it.
        if idle && matches!(state, Some(State::Is(Some(true), false))) {
            self.say(vm, What::Migration(Migrate::word(migration, "cancelled"))).await;
        }
    }

    fn is_given_up(&self, vm: &VmRef) -> bool {
        self.moves().get(vm).is_some_and(|known| known.given_up)
    }

    fn moves(&self) -> MutexGuard<'_, BTreeMap<VmRef, Move>> {
        self.driving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn domain(&self, vm: &VmRef) -> Result<String, String> {
        self.domains.of(vm).ok_or_else(|| {
            format!(
                "no libvirt domain is known for VM {vm}{NEXT}if it is one, put Tenet's hook in place (`tenet libvirt \
                 install-hook`) and start libvirtd again; a VM that QEMU runs alone is moved by --qmp"
            )
        })
    }

    async fn say(&self, vm: &VmRef, what: What) {
        // The loop may be gone.
        let _ = self.said.send(Said::new(vm, SOURCE, what)).await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.arg("-q").arg("-c").arg(self.finder.uri()).args(arguments);
        command.env("PATH", self.finder.path()).env("LC_ALL", "C");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = tokio::time::timeout(ANSWER, self.command(arguments).output()).await;
        let output = output.map_err(|_| format!("virsh did not answer within {} s", ANSWER.as_secs()))?;
        let output = output.map_err(|e| unrun(&e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(words(&output))
    }
}

fn unrun(cause: &std::io::Error) -> String {
    format!("virsh cannot be run: {cause}{NEXT}install libvirt-clients")
}

/// Reads to the end; the last part of it.
async fn last_words(mut err: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut last, mut piece) = (Vec::new(), [0; LAST_WORDS]);
    while let Ok(read @ 1..) = err.read(&mut piece).await {
        last.extend_from_slice(&piece[..read]);
        last.drain(..last.len().saturating_sub(LAST_WORDS));
    }
    last
}

/// What virsh says went wrong.
fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split("error:").map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
    if said.is_empty() { format!("virsh ended with {}", output.status) } else { said }
}
