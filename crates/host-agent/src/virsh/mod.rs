//! libvirt, by way of virsh: its domains' events, and migrations that the agent drives.
//!
//! Of virsh's two streams of events, `qemu-monitor-event` tells STOP some milliseconds before `event --all` tells
//! `Suspended`, and RESUME before `Resumed`: it passes on what QEMU says without waiting for libvirt's own part.

mod text;

use crate::local::Domains;
use crate::qmp::{Migrate, under_way};
use crate::vms::{Said, What};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tenet_model::{Through, VmRef, check_migration_uri};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::mpsc,
};

/// Longest pause before virsh is started again, and the first one.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(200));
/// Between two questions how far a migration is.
const ASK: Duration = Duration::from_millis(500);
/// Longest wait for an answer of virsh.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the destination is asked how long the domain stood still, and how often that is.
const DOWNTIME: (u32, Duration) = (6, Duration::from_millis(150));
/// Name in messages.
const SOURCE: &str = "libvirt";

/// A libvirt; clones are the same.
#[derive(Clone)]
pub(crate) struct Virsh {
    uri: String,
    domains: Domains,
    said: mpsc::Sender<Said>,
    /// VMs that are being moved by this agent.
    driving: Arc<Mutex<BTreeSet<VmRef>>>,
}

impl Virsh {
    pub(crate) fn new(uri: String, domains: Domains, said: mpsc::Sender<Said>) -> Self {
        Self { uri, domains, said, driving: Arc::default() }
    }

    /// Listens for as long as the agent runs.
    pub(crate) async fn listen(self) {
        let mut pause = BACKOFF.1;
        loop {
            let begun = Instant::now();
            let cause = match self.follow().await {
                Ok(()) => "it ended".to_owned(),
                Err(cause) => cause.to_string(),
            };
            if self.said.is_closed() {
                return;
            }
            if begun.elapsed() > BACKOFF.0 {
                pause = BACKOFF.1;
            }
            tracing::warn!(
                uri = self.uri,
                cause,
                ?pause,
                "libvirt's events are not heard; virsh is started again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.0);
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
        let mut migrating: BTreeMap<String, bool> = BTreeMap::new();
        // What happened while nobody listened.
        let states = self.clone();
        let states = tokio::spawn(async move { states.look().await });
        while let Some(line) = lines.next_line().await? {
            if let Some(event) = text::event(&line) {
                self.happened(&event, &mut migrating).await;
            }
        }
        states.abort();
        let output = child.wait_with_output().await?;
        Err(std::io::Error::other(words(&output)))
    }

    /// Tells the state of each domain that is known.
    async fn look(&self) {
        for (vm, domain) in self.domains.all() {
            let Ok(state) = self.ask(&["domstate", "--reason", &domain]).await else { continue };
            match text::runs(&state) {
                Some(true) => self.say(&vm, What::Resumed).await,
                Some(false) => self.say(&vm, What::Stopped).await,
                None => {}
            }
        }
    }

    async fn happened(&self, event: &text::Event<'_>, migrating: &mut BTreeMap<String, bool>) {
        let Some(vm) = self.domains.vm(event.domain) else { return };
        let moves = migrating.get(event.domain).copied().unwrap_or(false);
        match event.name {
            "STOP" if moves => self.say(&vm, What::Stopped).await,
            "RESUME" => {
                self.say(&vm, What::Resumed).await;
                if migrating.remove(event.domain).is_some() {
                    let (me, domain) = (self.clone(), event.domain.to_owned());
                    tokio::spawn(async move { me.downtime(&vm, &domain).await });
                }
            }
            "MIGRATION" => {
                let status = event.data.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
                // Once completed it is still one that came or went by a migration.
                migrating.insert(event.domain.to_owned(), under_way(&status));
                self.say(&vm, What::Migration(Migrate { status, ..Migrate::default() })).await;
            }
            "SHUTDOWN" => {
                migrating.remove(event.domain);
            }
            _ => {}
        }
    }

    /// On the destination: how long the domain stood still by QEMU's own clock.
    async fn downtime(&self, vm: &VmRef, domain: &str) {
        for _ in 0..DOWNTIME.0 {
            tokio::time::sleep(DOWNTIME.1).await;
            let Ok(answer) = self.ask(&["domjobinfo", "--completed", domain]).await else { continue };
            if let Some(ms) = text::downtime_ms(&answer) {
                let status = "completed".to_owned();
                let migrate = Migrate { status, downtime_ms: Some(ms), ..Migrate::default() };
                return self.say(vm, What::Migration(migrate)).await;
            }
        }
    }

    /// Moves a VM to another libvirt.
    pub(crate) async fn migrate(self, vm: &VmRef, to: &str) {
        if !self.driving.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.clone()) {
            return;
        }
        if let Err(error) = self.drive(vm, to).await {
            let _ = self.said.send(Said::failed(vm, SOURCE, error)).await;
        }
        self.driving.lock().unwrap_or_else(PoisonError::into_inner).remove(vm);
    }

    async fn drive(&self, vm: &VmRef, to: &str) -> Result<(), String> {
        // A URI can have libvirt run programs as root: that is this host's to forbid, whatever the controller allows.
        check_migration_uri(Through::Libvirt, to)
            .map_err(|why| format!("this agent does not move a VM to {to:?}: {why}"))?;
        let domain = self.domain(vm)?;
        let job = self.ask(&["domjobinfo", &domain]).await?;
        if text::outgoing(&job).is_some() {
            tracing::info!(%vm, "libvirt moves it already");
            return Ok(());
        }
        let info = self.ask(&["dominfo", &domain]).await?;
        let persistent =
            info.lines().any(|l| l.strip_prefix("Persistent:").is_some_and(|v| v.trim() == "yes"));
        let mut arguments = vec!["migrate", "--live", "--p2p"];
        if persistent {
            arguments.extend(["--persistent", "--undefinesource"]);
        }
        arguments.extend(["--", domain.as_str(), to]);
        let mut work = std::pin::pin!(self.command(&arguments).output());
        let output = loop {
            tokio::select! {
                output = &mut work => break output.map_err(|e| format!("virsh cannot be run: {e}"))?,
                () = tokio::time::sleep(ASK) => {
                    let Ok(job) = self.ask(&["domjobinfo", &domain]).await else { continue };
                    if let Some((transferred, total)) = text::outgoing(&job) {
                        let status = "active".to_owned();
                        self.say(vm, What::Migration(Migrate { status, transferred, total, ..Migrate::default() })).await;
                    }
                }
            }
        };
        if output.status.success() { Ok(()) } else { Err(words(&output)) }
    }

    /// Gives up a VM's migration.
    pub(crate) async fn cancel(self, vm: &VmRef) {
        let aborted = match self.domain(vm) {
            Ok(domain) => self.ask(&["domjobabort", &domain]).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = aborted {
            tracing::info!(%vm, error, "libvirt has no job to give up");
            self.say(vm, What::Migration(Migrate { status: "cancelled".to_owned(), ..Migrate::default() }))
                .await;
        }
    }

    fn domain(&self, vm: &VmRef) -> Result<String, String> {
        self.domains.of(vm).ok_or_else(|| {
            format!("no libvirt domain is known for VM {vm}: was it started with Tenet's hook in place?")
        })
    }

    async fn say(&self, vm: &VmRef, what: What) {
        // The loop may be gone.
        let _ = self.said.send(Said::new(vm, SOURCE, what)).await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.arg("-q").arg("-c").arg(&self.uri).args(arguments);
        command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = tokio::time::timeout(ANSWER, self.command(arguments).output()).await;
        let output = output.map_err(|_| format!("virsh did not answer within {} s", ANSWER.as_secs()))?;
        let output = output.map_err(|e| format!("virsh cannot be run: {e}; install libvirt-clients"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(words(&output))
    }
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

    #[tokio::test]
    async fn what_would_run_a_program_is_not_asked_of_libvirt() {
        let (said, mut heard) = mpsc::channel(4);
        let virsh =
            Virsh::new("qemu:///system".into(), Domains::load(std::path::Path::new("/nowhere")), said);
        let vm: VmRef = "contoso/sql".parse().unwrap();
        for uri in ["qemu+ext:///system?command=/tmp/x", "qemu+ssh://h2/system?netcat=/tmp/x", "-c"] {
            virsh.clone().migrate(&vm, uri).await;
            let word = heard.try_recv().unwrap();
            let What::Migration(m) = word.what else { panic!("{:?}", word.what) };
            assert!(m.status == "failed" && m.error.contains("does not move a VM to"), "{}", m.error);
        }
        // A legal one comes as far as the question which domain it is.
        virsh.clone().migrate(&vm, "qemu+ssh://h2/system").await;
        let word = heard.try_recv().unwrap();
        assert!(
            matches!(&word.what, What::Migration(m) if m.error.contains("no libvirt domain")),
            "{word:?}"
        );
    }
}
