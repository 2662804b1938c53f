//! libvirt, by way of virsh: its domains' events, and migrations that the agent drives.
//!
//! Of virsh's two streams of events, `qemu-monitor-event` tells STOP some milliseconds before `event --all` tells
//! `Suspended`, and RESUME before `Resumed`: it passes on what QEMU says without waiting for libvirt's own part.

mod find;
mod follow;
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
use tenet_model::{NEXT, Through, VmRef, check_migration_uri};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
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
        let mut child = self
            .command(&["qemu-monitor-event", "--loop", "--timestamp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let Some(out) = child.stdout.take() else { return Ok(()) };
        let mut lines = BufReader::new(out).lines();
        let mut follow = Follow::default();
        // What happened while nobody listened. Its task ends when its answers are not taken any more.
        let (answers, mut answered) = mpsc::channel(16);
        let me = self.clone();
        tokio::spawn(async move { me.look(answers).await });
        loop {
            tokio::select! {
                biased;
                line = lines.next_line() => match line? {
                    Some(line) => {
                        if let Some(event) = text::event(&line) {
                            self.happened(&event, &mut follow).await;
                        }
                    }
                    None => break,
                },
                Some(answer) = answered.recv() => {
                    if let Some(what) = follow.answer(answer.asked, &answer.domain, &answer.state) {
                        self.say(&answer.vm, what).await;
                    }
                }
            }
        }
        let output = child.wait_with_output().await?;
        Err(std::io::Error::other(words(&output)))
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
                let migrate = Migrate { downtime_ms: Some(ms), ..Migrate::word("", "completed") };
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
        let mut work = std::pin::pin!(self.command(&arguments).output());
        let output = loop {
            tokio::select! {
                output = &mut work => break output.map_err(|e| unrun(&e))?,
                () = tokio::time::sleep(ASK) => {
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
        if self.moves().get(vm).is_some_and(|known| known.busy && known.driven.id() != migration) {
            return;
        }
        let Ok(domain) = self.domain(vm) else {
            return self.say(vm, What::Migration(Migrate::word(migration, "cancelled"))).await;
        };
        let Err(error) = self.ask(&["domjobabort", &domain]).await else { return };
        let idle = self.ask(&["domjobinfo", &domain]).await.is_ok_and(|job| text::idle(&job));
        let state = self.state(&domain).await;
        tracing::info!(%vm, error, idle, ?state, "libvirt has no job to give up");
        // A VM that has left, or is about to, is not given up: its end is told by who moves it.
        if idle && matches!(state, Some(State::Is(Some(true), false))) {
            self.say(vm, What::Migration(Migrate::word(migration, "cancelled"))).await;
        }
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
        command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
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

/// What virsh says went wrong.
fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split("error:").map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
    if said.is_empty() { format!("virsh ended with {}", output.status) } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Libvirt;
    use crate::qmp::Want;

    #[tokio::test]
    async fn what_would_run_a_program_is_not_asked_of_libvirt() {
        let (said, mut heard) = mpsc::channel(4);
        let finder = Finder::new(Libvirt::At("qemu:///system".into()));
        let virsh = Virsh::new(finder, Domains::load(std::path::Path::new("/nowhere")), said);
        let vm: VmRef = "contoso/sql".parse().unwrap();
        let to = |uri: &str| Drive {
            migration: String::new(),
            uri: uri.into(),
            want: Want::Move,
            post_copy: false,
        };
        let wrong = ["qemu+ext:///system?command=/tmp/x", "qemu+ssh://h2/system?netcat=/tmp/x", "-c"];
        for (number, uri) in wrong.into_iter().enumerate() {
            virsh.clone().migrate(&vm, &number.to_string(), Some(&to(uri))).await;
            let word = heard.try_recv().unwrap();
            let What::Migration(m) = word.what else { panic!("{:?}", word.what) };
            assert!(m.status == "failed" && m.error.contains("does not move a VM to"), "{}", m.error);
        }
        // A legal one comes as far as the question which domain it is.
        virsh.clone().migrate(&vm, "legal", Some(&to("qemu+ssh://h2/system"))).await;
        let word = heard.try_recv().unwrap();
        assert!(
            matches!(&word.what, What::Migration(m) if m.error.contains("no libvirt domain")),
            "{word:?}"
        );
    }
}
