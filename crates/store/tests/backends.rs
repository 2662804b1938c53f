//! The conformance suite on every backend, and what only files can do wrong.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tenet_model::testing::Dice;
use tenet_store::{
    MemoryStore, RedbOptions, RedbStore, Store, StoreError, Txn,
    conformance::{self, Backend},
};

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tenet-store-{name}-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Memory;

impl Backend for Memory {
    fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(MemoryStore::new())
    }

    fn reopen(&self, _: Arc<dyn Store>) -> Option<Arc<dyn Store>> {
        None
    }
}

struct Redb {
    scratch: Scratch,
    opened: Mutex<u64>,
}

impl Redb {
    fn open(&self, n: u64) -> Arc<dyn Store> {
        Arc::new(open(&self.scratch.file(&n.to_string())).unwrap())
    }
}

impl Backend for Redb {
    fn fresh(&self) -> Arc<dyn Store> {
        let mut n = self.opened.lock().unwrap();
        *n += 1;
        self.open(*n)
    }

    fn reopen(&self, store: Arc<dyn Store>) -> Option<Arc<dyn Store>> {
        drop(store);
        Some(self.open(*self.opened.lock().unwrap()))
    }
}

fn open(path: &Path) -> Result<RedbStore, StoreError> {
    RedbStore::open(path, RedbOptions::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conformance::run(&Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_conforms() {
    conformance::run(&Redb { scratch: Scratch::new("conform"), opened: Mutex::new(0) }).await;
}

#[tokio::test]
async fn a_second_opener_is_told_so() {
    let scratch = Scratch::new("second");
    let path = scratch.file("site.redb");
    let first = open(&path).unwrap();
    let error = open(&path).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("stop the other controller"), "{error}");
    drop(first);
    assert!(open(&path).is_ok());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "no draft is left over");
}

#[tokio::test]
async fn foreign_files_are_refused_and_kept() {
    let scratch = Scratch::new("foreign");
    for (name, content) in [("empty", vec![]), ("text", b"hello".to_vec()), ("long", vec![7; 1 << 20])] {
        let path = scratch.file(name);
        fs::write(&path, &content).unwrap();
        let error = open(&path).err().unwrap();
        assert!(matches!(error, StoreError::NotAStore { .. }), "{name}: {error:?}");
        assert_eq!(fs::read(&path).unwrap(), content, "{name} is as it was");
    }
    let error = open(&scratch.file("no/such/directory")).err().unwrap();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    let error = open(&scratch.0).err().unwrap();
    assert!(matches!(error, StoreError::Open { .. } | StoreError::NotAStore { .. }), "{error:?}");
}

/// Wherever the file is damaged: either nothing that matters was there, or the opener is told; never a panic.
#[tokio::test]
async fn damaged_files_are_refused_or_read_whole() {
    let scratch = Scratch::new("damaged");
    let path = scratch.file("site.redb");
    let store = open(&path).unwrap();
    for n in 0..200 {
        store.txn(Txn::default().put(format!("key/{n}"), vec![n as u8; 300])).await.unwrap();
    }
    let whole = store.range("").await.unwrap();
    drop(store);
    let good = fs::read(&path).unwrap();
    let mut dice = Dice::new(7);
    let (mut refused, mut read) = (0, 0);
    for round in 0..60 {
        let mut bad = good.clone();
        match dice.below(3) {
            0 => bad.truncate(dice.below(good.len() as u64) as usize),
            1 => {
                let at = dice.below(good.len() as u64) as usize;
                bad[at] ^= 1 << dice.below(8);
            }
            _ => {
                let page = dice.below(good.len() as u64 / 4096) as usize * 4096;
                bad[page..page + 4096].fill(0xa5);
            }
        }
        let path = scratch.file("damaged.redb");
        fs::File::create(&path).unwrap().write_all(&bad).unwrap();
        match open(&path) {
            Ok(store) => {
                assert_eq!(store.range("").await.unwrap(), whole, "round {round}");
                read += 1;
            }
            Err(StoreError::NotAStore { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {other:?}"),
        }
    }
    println!("{refused} refused, {read} read whole");
    assert!(refused > 0);
}

#[tokio::test]
async fn old_revisions_are_forgotten_by_themselves() {
    let scratch = Scratch::new("keep");
    let options = RedbOptions { keep: 10, ..RedbOptions::default() };
    let store = RedbStore::open(&scratch.file("site.redb"), options).unwrap();
    for n in 0..50_u64 {
        store.txn(Txn::default().put("k", n.to_string())).await.unwrap();
    }
    let error = store.watch("", 5).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { asked: 5, oldest: 41 }), "{error:?}");
    let mut watch = store.watch("", 41).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, 41);
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let scratch = Scratch::new("ends");
    for store in [Arc::new(MemoryStore::new()) as Arc<dyn Store>, Arc::new(open(&scratch.file("x")).unwrap())]
    {
        let mut watch = store.watch("", 1).await.unwrap();
        drop(store);
        assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    }
}
