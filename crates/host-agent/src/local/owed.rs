//! Releases that the controller has not answered yet. They are the agent's to deliver: whoever asked may be long gone,
//! as libvirt's hook is after 5 s. Kept over restarts of the agent.

use super::relay::Silent;
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
    local::{Prepare, Release},
};
use tokio::{sync::oneshot, task::AbortHandle};

const FILE: &str = "owed.json";

/// How one attempt ended.
pub(super) type Attempt = Result<ReleaseReply, Silent>;

/// By what a release is told to the controller.
pub(super) trait Tell: Clone + Send + Sync + 'static {
    /// Shortest and longest pause between two attempts.
    const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

    /// One attempt.
    fn tell(&self, release: &Release) -> impl Future<Output = Attempt> + Send;

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
    owed: BTreeMap<u64, (Release, AbortHandle)>,
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
        let left: Vec<Release> = match fs::read(&owed.path) {
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
        for release in left {
            owed.owe(release);
        }
        owed
    }

    /// Takes a release over. How the first attempt ended comes back; nothing, if a later request took its place.
    pub(super) fn owe(&self, release: Release) -> oneshot::Receiver<First> {
        let (first, answer) = oneshot::channel();
        let mut list = self.lock();
        // The same said again: the newer word holds.
        let same = |r: &Release| r.vm == release.vm && r.ports == release.ports;
        take(&mut list, same);
        list.next += 1;
        let id = list.next;
        let task = tokio::spawn(self.clone().deliver(id, release.clone(), first)).abort_handle();
        list.owed.insert(id, (release, task));
        self.keep(&list);
        answer
    }

    /// The VM starts or arrives here again: what was owed of its ports is over. It is given back for the case that the
    /// start comes to nothing.
    pub(super) fn cancel(&self, prepare: &Prepare) -> Vec<Release> {
        let mut list = self.lock();
        let taken = take(&mut list, |release| concerns(release, prepare));
        if !taken.is_empty() {
            self.keep(&list);
        }
        taken
    }

    async fn deliver(mut self, id: u64, release: Release, first: oneshot::Sender<First>) {
        let mut first = Some(first);
        let mut tell = |word: First| {
            if let Some(first) = first.take() {
                // The asker may be gone.
                let _ = first.send(word);
            }
        };
        let mut pause = T::PAUSE.0;
        loop {
            match self.by.tell(&release).await {
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
        let all: Vec<&Release> = list.owed.values().map(|(release, _)| release).collect();
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
fn take(list: &mut List, which: impl Fn(&Release) -> bool) -> Vec<Release> {
    let ids: Vec<u64> = list.owed.iter().filter(|(_, (r, _))| which(r)).map(|(id, _)| *id).collect();
    let taken = ids.iter().filter_map(|id| list.owed.remove(id));
    taken
        .map(|(release, task)| {
            task.abort();
            release
        })
        .collect()
}

/// Whether a refusal stays the same however often it is asked: not one for what is under way, nor for a fault there.
fn is_final(refusal: &Refusal) -> bool {
    refusal.status < 500 && refusal.status != 409 && refusal.status != 429
}

/// Whether a release is about ports that a request wants; where one of them does not name its ports, it is.
fn concerns(release: &Release, prepare: &Prepare) -> bool {
    let named = |p: &tenet_api::local::PreparePort| p.port.as_ref().is_none_or(|p| release.ports.contains(p));
    release.vm == prepare.vm
        && (release.ports.is_empty() || prepare.ports.is_empty() || prepare.ports.iter().any(named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tenet_api::local::{Outcome, PreparePort, Purpose};

    /// A controller that is away, then busy with a move for some attempts.
    #[derive(Clone, Default)]
    struct Slow {
        attempts: Arc<AtomicUsize>,
        until: usize,
    }

    impl Tell for Slow {
        const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));

        async fn tell(&self, _: &Release) -> Attempt {
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

    fn stopped(ports: &[&str]) -> Release {
        let ports = ports.iter().map(|p| p.parse().unwrap()).collect();
        Release { vm: "a/sql".parse().unwrap(), outcome: Outcome::Stopped, ports }
    }

    fn kept(dir: &Path) -> Vec<Release> {
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
        fs::write(dir.join(FILE), serde_json::to_vec(&[stopped(&[])]).unwrap()).unwrap();
        let by = slow(2);
        let _owed = Owed::load(&dir, by.clone());
        answered(&dir).await;
        assert_eq!(by.attempts.load(Ordering::SeqCst), 3);
        fs::remove_dir_all(&dir).unwrap();
    }
}
