//! A process that is killed while it writes: what it acknowledged is there, and nothing is there by half.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tenet_model::testing::Dice;
use tenet_store::{RedbOptions, RedbStore, Store as _, Txn};

/// Tells the test binary that it is the process to be killed, and where to write.
const VICTIM: &str = "TENET_STORE_TEST_VICTIM";
/// Keys that one transaction writes.
const KEYS: u64 = 5;
const WRITERS: u64 = 4;

/// A process and its file, both gone at the end.
struct Victim {
    child: Child,
    path: PathBuf,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Victim {
    fn spawn(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_until_killed", "--nocapture", "--test-threads=1"])
            .env(VICTIM, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, path: path.to_owned() }
    }

    /// Reads acknowledgements, kills after some of them, and returns the last one of each writer.
    fn kill_after(&mut self, lines: u64) -> Vec<u64> {
        let mut acknowledged = vec![0; WRITERS as usize];
        let mut seen = 0;
        // After the kill, what was written to the pipe before is still read.
        for line in BufReader::new(self.child.stdout.take().unwrap()).lines() {
            let Ok(line) = line else { break };
            let Some((writer, n)) = line.strip_prefix("ack ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            // The last line may be cut.
            let (Ok(writer), Ok(n)) = (writer.parse::<usize>(), n.trim_end_matches('.').parse::<u64>())
            else {
                continue;
            };
            if line.ends_with('.') {
                acknowledged[writer] = acknowledged[writer].max(n);
            }
            seen += 1;
            if seen == lines {
                self.child.kill().unwrap();
            }
        }
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "{}: killed", self.path.display());
        acknowledged
    }
}

/// Not a test of its own: the process that [`survives_kill_at_any_moment`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_killed() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let options = RedbOptions { keep: 50, ..RedbOptions::default() };
    let store = Arc::new(RedbStore::open(Path::new(&path), options).unwrap());
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(Arc::clone(&store), writer))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn write(store: Arc<RedbStore>, writer: u64) {
    let first = store.get(&format!("{writer}/0")).await.unwrap().map_or(1, |p| value(&p.value) + 1);
    for n in first.. {
        let mut txn = Txn::default();
        for key in 0..KEYS {
            txn = txn.put(format!("{writer}/{key}"), format!("{n} {}", "x".repeat(500)));
        }
        store.txn(txn).await.unwrap();
        let line = format!("ack {writer} {n}.\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// Killed while it makes the file: afterwards there is a whole one or none.
#[test]
fn survives_kill_while_the_file_is_made() {
    let directory = std::env::temp_dir().join(format!("tenet-store-made-{}", std::process::id()));
    for round in 0..15 {
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("site.redb");
        let mut victim = Victim::spawn(&path);
        let deadline = Instant::now() + Duration::from_secs(30);
        // The draft, or in later rounds the file itself.
        let made = || match round % 3 {
            0 | 1 => std::fs::read_dir(&directory).unwrap().next().is_some(),
            _ => path.exists(),
        };
        while !made() {
            assert!(Instant::now() < deadline, "the process makes no file");
            std::thread::yield_now();
        }
        victim.child.kill().unwrap();
        victim.child.wait().unwrap();
        RedbStore::open(&path, RedbOptions::default()).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no draft is left over");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

fn value(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().split_once(' ').unwrap().0.parse().unwrap()
}

#[test]
fn survives_kill_at_any_moment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = std::env::temp_dir().join(format!("tenet-store-killed-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("site.redb");
    let mut dice = Dice::new(u64::from(std::process::id()));
    let mut total = 0;
    for round in 0..25 {
        // The first rounds also hit the making of the file and its first pages.
        let lines = 1 + dice.below(if round < 5 { 3 } else { 60 });
        let acknowledged = Victim::spawn(&path).kill_after(lines);
        total += lines;
        let store = RedbStore::open(&path, RedbOptions::default()).unwrap();
        for (writer, n) in acknowledged.iter().enumerate() {
            let range = runtime.block_on(store.range(&format!("{writer}/"))).unwrap();
            let values: Vec<u64> = range.items.iter().map(|p| value(&p.value)).collect();
            let least = values.first().copied().unwrap_or(0);
            assert!(least >= *n, "round {round}: writer {writer} has {least}, but {n} was acknowledged");
            assert!(values.iter().all(|v| *v == least), "round {round}: half a transaction: {values:?}");
            assert!(values.is_empty() || values.len() as u64 == KEYS, "round {round}: half a transaction");
            assert!(range.items.windows(2).all(|w| w[0].mod_revision == w[1].mod_revision), "round {round}");
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
    println!("{total} acknowledgements over 25 kills");
}
