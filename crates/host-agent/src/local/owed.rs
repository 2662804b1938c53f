//! Releases that the controller has not answered yet. They are the agent's to deliver: whoever asked may be long gone,
//! as libvirt's hook is after 5 s. Kept over restarts of the agent.

use super::{ready::Stay, relay::Silent};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tenet_api::{
    agent::{Refusal, ReleaseReply},
    local::{Outcome, Prepare, Release},
};
use tenet_model::{Name, VmRef};
use tokio::{sync::oneshot, task::AbortHandle};

const FILE: &str = "owed.json";

/// A release that is owed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Debt {
    pub(super) vm: VmRef,
    pub(super) outcome: Outcome,
    /// The ports that it is about; none: all.
    #[serde(default)]
    pub(super) ports: Vec<Name>,
    /// Where the VM was when it was over: a migration may bring it back before this is heard.
    #[serde(default)]
    pub(super) stay: Stay,
}

impl Debt {
    pub(super) fn new(release: Release, stay: Stay) -> Self {
        let Release { vm, outcome, ports } = release;
        Self { vm, outcome, ports, stay }
    }
}

/// How one attempt ended.
pub(super) type Attempt = Result<ReleaseReply, Silent>;

/// By what a release is told to the controller.
pub(super) trait Tell: Clone + Send + Sync + 'static {
    /// Shortest and longest pause between two attempts.
    const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

    /// One attempt.
    fn tell(&self, debt: &Debt) -> impl Future<Output = Attempt> + Send;

    /// Waits until another attempt may succeed; false: there is none any more.
    fn way(&mut self) -> impl Future<Output = bool> + Send;
}

/// What became of a release at the first attempt.
#[derive(Debug)]
pub(super) enum First {
    /// It was answered.
    Answered(ReleaseReply),
    /// It is told again until it is.
    Later,
    /// It never will be.
    Never(Silent),
}

#[derive(Default)]
struct List {
    next: u64,
    owed: BTreeMap<u64, (Debt, AbortHandle)>,
}

/// The releases of this host that are owed; clones are the same list.
#[derive(Clone)]
pub(super) struct Owed<T> {
    path: PathBuf,
    list: Arc<Mutex<List>>,
    by: T,
}

impl<T: Tell> Owed<T> {
    /// With what an earlier run still owed; needs a runtime.
    pub(super) fn load(state_dir: &Path, by: T) -> Self {
        let owed = Self { path: state_dir.join(FILE), list: Arc::default(), by };
        let left: Vec<Debt> = match fs::read(&owed.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|cause| {
                tracing::warn!(path = %owed.path.display(), %cause, "the list of releases is not understood: begun anew");
                Vec::new()
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(cause) => {
                tracing::warn!(path = %owed.path.display(), %cause, "the list of releases cannot be read");
                Vec::new()
            }
        };
        for debt in left {
            owed.owe(debt);
        }
        owed
    }

    /// Takes a release over. How the first attempt ended comes back; nothing, if a later request took its place.
    pub(super) fn owe(&self, debt: Debt) -> oneshot::Receiver<First> {
        let (first, answer) = oneshot::channel();
        let mut list = self.lock();
        // The same said again: the newer word holds.
        let same = |d: &Debt| d.vm == debt.vm && d.ports == debt.ports;
        take(&mut list, same);
        list.next += 1;
        let id = list.next;
        let task = tokio::spawn(self.clone().deliver(id, debt.clone(), first)).abort_handle();
        list.owed.insert(id, (debt, task));
        self.keep(&list);
        answer
    }

    /// The VM starts or arrives here again: what was owed of its ports is over. It is given back for the case that the
    /// start comes to nothing.
    pub(super) fn cancel(&self, prepare: &Prepare) -> Vec<Debt> {
        let mut list = self.lock();
        let taken = take(&mut list, |debt| concerns(debt, prepare));
        if !taken.is_empty() {
            self.keep(&list);
        }
        taken
    }

    async fn deliver(mut self, id: u64, debt: Debt, first: oneshot::Sender<First>) {
        let mut first = Some(first);
        let mut tell = |word: First| {
            if let Some(first) = first.take() {
                // The asker may be gone.
                let _ = first.send(word);
            }
        };
        let mut pause = T::PAUSE.0;
        loop {
            match self.by.tell(&debt).await {
                Ok(reply) if reply.refusal.as_ref().is_none_or(is_final) => {
                    self.done(id);
                    return tell(First::Answered(reply));
                }
                Err(never @ (Silent::TooOld | Silent::Outcast(_))) => {
                    self.done(id);
                    return tell(First::Never(never));
                }
                Ok(_) | Err(Silent::Away | Silent::Broken) => tell(First::Later),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(T::PAUSE.1);
            if !self.by.way().await {
                return;
            }
        }
    }

    fn done(&self, id: u64) {
        let mut list = self.lock();
        if list.owed.remove(&id).is_some() {
            self.keep(&list);
        }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, list: &List) {
        let new = self.path.with_extension("new");
        let all: Vec<&Debt> = list.owed.values().map(|(debt, _)| debt).collect();
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(&all)?)?;
            fs::rename(&new, &self.path)
        };
        if let Err(cause) = write() {
            tracing::error!(path = %self.path.display(), %cause, "the list of releases cannot be kept on disk");
        }
    }
}

/// Takes releases off the list; what is on its way to the controller is called back.
fn take(list: &mut List, which: impl Fn(&Debt) -> bool) -> Vec<Debt> {
    let ids: Vec<u64> = list.owed.iter().filter(|(_, (debt, _))| which(debt)).map(|(id, _)| *id).collect();
    let taken = ids.iter().filter_map(|id| list.owed.remove(id));
    taken
        .map(|(debt, task)| {
            task.abort();
            debt
        })
        .collect()
}

/// Whether a refusal stays the same however often it is asked: not one for what is under way, nor for a fault there.
fn is_final(refusal: &Refusal) -> bool {
    refusal.status < 500 && refusal.status != 409 && refusal.status != 429
}

/// Whether a release is about ports that a request wants; where one of them does not name its ports, it is.
fn concerns(debt: &Debt, prepare: &Prepare) -> bool {
    let named = |p: &tenet_api::local::PreparePort| p.port.as_ref().is_none_or(|p| debt.ports.contains(p));
    debt.vm == prepare.vm
        && (debt.ports.is_empty() || prepare.ports.is_empty() || prepare.ports.iter().any(named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tenet_api::local::{PreparePort, Purpose};

    /// A controller that is away, then busy with a move for some attempts.
    #[derive(Clone, Default)]
    struct Slow {
        attempts: Arc<AtomicUsize>,
        until: usize,
    }

    impl Tell for Slow {
        const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));

        async fn tell(&self, _: &Debt) -> Attempt {
            let n = self.attempts.fetch_add(1, Ordering::SeqCst);
            let busy = Refusal { status: 409, ..Refusal::default() };
            match n {
                n if n >= self.until => Ok(ReleaseReply { done: "left".into(), ..Default::default() }),
                0 => Err(Silent::Away),
                _ => Ok(ReleaseReply { refusal: Some(busy), ..Default::default() }),
            }
        }

        async fn way(&mut self) -> bool {
            true
        }
    }

    fn slow(until: usize) -> Slow {
        Slow { until, ..Slow::default() }
    }

    fn dir(tag: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tenet-owed-{tag}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn stopped(ports: &[&str]) -> Debt {
        let ports = ports.iter().map(|p| p.parse().unwrap()).collect();
        let release = Release { vm: "a/sql".parse().unwrap(), outcome: Outcome::Stopped, ports };
        Debt::new(release, Stay::Here)
    }

    fn kept(dir: &Path) -> Vec<Debt> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).unwrap()).unwrap()
    }

    /// Waits until nothing is owed any more.
    async fn answered(dir: &Path) {
        let wait = async {
            while !kept(dir).is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_release_is_told_until_it_is_answered_though_nobody_waits() {
        let dir = dir("told");
        let by = slow(4);
        let owed = Owed::load(&dir, by.clone());
        let first = owed.owe(stopped(&[]));
        assert!(matches!(first.await, Ok(First::Later)));
        assert_eq!(kept(&dir), [stopped(&[])]);
        answered(&dir).await;
        assert_eq!(by.attempts.load(Ordering::SeqCst), 5);
        // What is answered at once is said at once.
        assert!(matches!(owed.owe(stopped(&["eth0"])).await, Ok(First::Answered(r)) if r.done == "left"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_start_calls_back_what_is_owed() {
        let dir = dir("start");
        let by = slow(usize::MAX);
        let owed = Owed::load(&dir, by.clone());
        let mut prepare = Prepare::new("a/sql".parse().unwrap(), Purpose::Start);
        drop(owed.owe(stopped(&["eth0"])));
        drop(owed.owe(stopped(&["eth0"])));
        assert_eq!(kept(&dir), [stopped(&["eth0"])], "once");
        prepare.ports = vec![PreparePort { port: Some("eth1".parse().unwrap()), ..PreparePort::default() }];
        assert!(owed.cancel(&prepare).is_empty(), "of another port");
        prepare.ports.clear();
        assert_eq!(owed.cancel(&prepare), [stopped(&["eth0"])]);
        assert!(kept(&dir).is_empty());
        let told = by.attempts.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(by.attempts.load(Ordering::SeqCst), told);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn what_is_owed_outlives_the_agent() {
        let dir = dir("again");
        // As an agent of an earlier version has kept it: where the VM was is not said.
        let earlier = Release { vm: "a/sql".parse().unwrap(), outcome: Outcome::Stopped, ports: vec![] };
        fs::write(dir.join(FILE), serde_json::to_vec(std::slice::from_ref(&earlier)).unwrap()).unwrap();
        let by = slow(2);
        let owed = Owed::load(&dir, by.clone());
        assert_eq!(kept(&dir), [Debt::new(earlier, Stay::Unsaid)]);
        answered(&dir).await;
        assert_eq!(by.attempts.load(Ordering::SeqCst), 3);
        drop(owed);
        fs::remove_dir_all(&dir).unwrap();
    }
}
