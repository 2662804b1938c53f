//! What every backend must do; its tests call [`run`].
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test suite stops at the first surprise")]
#![allow(clippy::missing_panics_doc, reason = "a test suite stops at the first surprise")]

use crate::{Batch, Condition, Event, KeyValue, Op, Order, Store, StoreError, Txn, Watch};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tenet_model::testing::Dice;

/// Longer than any answer takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// A backend under test.
pub trait Backend: Sync {
    /// An empty store.
    fn fresh(&self) -> Arc<dyn Store>;

    /// Closes a store of this backend and opens it again; none if the backend keeps nothing.
    fn reopen(&self, store: Arc<dyn Store>) -> Option<Arc<dyn Store>>;
}

/// Runs the whole suite; panics with what differs. Needs a runtime with more than one thread.
pub async fn run(backend: &dyn Backend) {
    counts_revisions_and_versions(&*backend.fresh()).await;
    compares(&*backend.fresh()).await;
    refuses_a_key_twice(&*backend.fresh()).await;
    ranges_by_prefix(&*backend.fresh()).await;
    watches_the_past_and_the_future(&*backend.fresh()).await;
    compacts(&*backend.fresh()).await;
    for seed in 0..12 {
        equals_a_reference(backend, seed).await;
    }
    lets_one_of_many_win(backend.fresh()).await;
    watches_without_gaps_under_load(backend.fresh()).await;
}

async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    store.txn(Txn::default().put(key, value)).await.unwrap().revision
}

async fn next(watch: &mut Watch) -> Result<Batch, StoreError> {
    tokio::time::timeout(DEADLINE, watch.next()).await.unwrap_or_else(|_| panic!("the watch says nothing"))
}

fn pair(key: &str, value: &str, create_revision: u64, mod_revision: u64, version: u64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.into(), create_revision, mod_revision, version }
}

async fn counts_revisions_and_versions(store: &dyn Store) {
    let empty = store.range("").await.unwrap();
    assert_eq!((empty.revision, empty.items.len()), (1, 0), "an empty store is at revision 1");
    assert_eq!(put(store, "a", "1").await, 2);
    assert_eq!(put(store, "a", "2").await, 3);
    assert_eq!(store.get("a").await.unwrap(), Some(pair("a", "2", 2, 3, 2)));
    assert_eq!(store.get("b").await.unwrap(), None);
    let both = store.txn(Txn::default().put("b", "1").put("c", "1")).await.unwrap();
    assert_eq!(both.revision, 4, "one revision for one transaction");
    assert_eq!(store.get("c").await.unwrap(), Some(pair("c", "1", 4, 4, 1)));
    let nothing = store.txn(Txn::default().delete("x")).await.unwrap();
    assert_eq!((nothing.succeeded, nothing.revision), (true, 4), "what changes nothing has no revision");
    assert_eq!(store.txn(Txn::default().delete("a")).await.unwrap().revision, 5);
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(put(store, "a", "3").await, 6);
    assert_eq!(store.get("a").await.unwrap(), Some(pair("a", "3", 6, 6, 1)), "a new life counts anew");
    assert_eq!(put(store, "empty", "").await, 7);
    assert_eq!(store.get("empty").await.unwrap(), Some(pair("empty", "", 7, 7, 1)));
}

async fn compares(store: &dyn Store) {
    put(store, "k", "m").await;
    put(store, "k", "m").await;
    for (key, condition, holds) in [
        ("k", Condition::Exists, true),
        ("k", Condition::Absent, false),
        ("x", Condition::Exists, false),
        ("x", Condition::Absent, true),
        ("k", Condition::CreateRevision(Order::Equal, 2), true),
        ("k", Condition::CreateRevision(Order::NotEqual, 2), false),
        ("k", Condition::ModRevision(Order::Equal, 3), true),
        ("k", Condition::ModRevision(Order::Equal, 2), false),
        ("k", Condition::ModRevision(Order::Greater, 2), true),
        ("k", Condition::ModRevision(Order::Greater, 3), false),
        ("k", Condition::ModRevision(Order::Less, 4), true),
        ("k", Condition::ModRevision(Order::Less, 3), false),
        ("k", Condition::Version(Order::Equal, 2), true),
        ("x", Condition::Version(Order::Equal, 0), true),
        ("x", Condition::ModRevision(Order::Equal, 0), true),
        ("x", Condition::CreateRevision(Order::Less, 1), true),
        ("k", Condition::Value(Order::Equal, b"m".to_vec()), true),
        ("k", Condition::Value(Order::NotEqual, b"m".to_vec()), false),
        ("k", Condition::Value(Order::Greater, b"l".to_vec()), true),
        ("k", Condition::Value(Order::Less, b"n".to_vec()), true),
        ("x", Condition::Value(Order::NotEqual, b"m".to_vec()), false),
    ] {
        let mut txn = Txn::default().when(key, condition.clone()).put("then", "");
        txn.otherwise.push(Op::Put { key: "otherwise".to_owned(), value: Vec::new() });
        let result = store.txn(txn).await.unwrap();
        assert_eq!(result.succeeded, holds, "{key} {condition:?}");
        let written = if holds { "then" } else { "otherwise" };
        let pair = store.get(written).await.unwrap().unwrap();
        assert_eq!(pair.mod_revision, result.revision, "{key} {condition:?}");
    }
    let all = Txn::default().when("k", Condition::Exists).when("x", Condition::Exists).put("both", "");
    let result = store.txn(all).await.unwrap();
    assert!(!result.succeeded && store.get("both").await.unwrap().is_none(), "all comparisons must hold");
}

async fn refuses_a_key_twice(store: &dyn Store) {
    let twice = Txn::default().put("a", "1").delete("a");
    assert!(matches!(store.txn(twice).await, Err(StoreError::Twice { key }) if key == "a"));
    assert_eq!(store.range("").await.unwrap().revision, 1, "and writes nothing");
}

async fn ranges_by_prefix(store: &dyn Store) {
    for key in ["a", "a/", "a/1", "a/2", "a0", "b", "a/\u{10ffff}", "A/1"] {
        put(store, key, key).await;
    }
    for (prefix, keys) in [
        ("a/", vec!["a/", "a/1", "a/2", "a/\u{10ffff}"]),
        ("a", vec!["a", "a/", "a/1", "a/2", "a/\u{10ffff}", "a0"]),
        ("c", vec![]),
        ("a/1", vec!["a/1"]),
        ("", vec!["A/1", "a", "a/", "a/1", "a/2", "a/\u{10ffff}", "a0", "b"]),
    ] {
        let range = store.range(prefix).await.unwrap();
        let found: Vec<&str> = range.items.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(found, keys, "prefix {prefix:?}");
        assert_eq!(range.revision, 9);
    }
}

async fn watches_the_past_and_the_future(store: &dyn Store) {
    put(store, "a/1", "x").await; // 2
    put(store, "b/1", "x").await; // 3
    let mixed = Txn::default().put("b/2", "y").delete("a/1").put("a/2", "y");
    store.txn(mixed).await.unwrap(); // 4
    let mut past = store.watch("a/", 2).await.unwrap();
    assert_eq!(
        next(&mut past).await.unwrap(),
        Batch { revision: 2, events: vec![Event::Put(pair("a/1", "x", 2, 2, 1))] }
    );
    let gone = Event::Delete { key: "a/1".to_owned() };
    let four = Batch { revision: 4, events: vec![gone, Event::Put(pair("a/2", "y", 4, 4, 1))] };
    assert_eq!(next(&mut past).await.unwrap(), four, "one batch for one transaction, in its order");
    let mut now = store.watch("a/", 4).await.unwrap();
    assert_eq!(next(&mut now).await.unwrap(), four);
    let mut future = store.watch("a/", 7).await.unwrap();
    {
        // A reader that gives up waiting loses nothing.
        let waiting = next(&mut past);
        assert!(futures::FutureExt::now_or_never(waiting).is_none(), "nothing happened yet");
    }
    put(store, "a/3", "5").await;
    put(store, "b/3", "6").await;
    put(store, "a/3", "7").await;
    assert_eq!(next(&mut past).await.unwrap().revision, 5);
    assert_eq!(next(&mut past).await.unwrap().revision, 7);
    assert_eq!(next(&mut now).await.unwrap().revision, 5);
    assert_eq!(next(&mut future).await.unwrap().revision, 7, "a watch from the future begins there");
}

async fn compacts(store: &dyn Store) {
    for n in 0..10 {
        put(store, "k", &n.to_string()).await;
    }
    let mut slow = store.watch("", 2).await.unwrap();
    assert!(matches!(store.compact(12).await, Err(StoreError::Future { asked: 12, current: 11 })));
    store.compact(8).await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), Some(pair("k", "9", 2, 11, 10)), "what is there stays");
    let error = next(&mut slow).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { asked: 2, oldest: 8 }), "{error}");
    assert!(matches!(next(&mut slow).await, Err(StoreError::Closed)), "a watch ends after its first error");
    assert!(matches!(store.watch("", 7).await, Err(StoreError::Compacted { asked: 7, oldest: 8 })));
    assert!(matches!(store.compact(7).await, Err(StoreError::Compacted { asked: 7, oldest: 8 })));
    let mut rest = store.watch("", 8).await.unwrap();
    for revision in 8..=11 {
        assert_eq!(next(&mut rest).await.unwrap().revision, revision);
    }
}

/// A store as plainly as can be.
#[derive(Default)]
struct Reference {
    pairs: BTreeMap<String, KeyValue>,
    log: Vec<Batch>,
    revision: u64,
}

impl Reference {
    fn txn(&mut self, txn: &Txn) -> bool {
        let succeeded = txn.compare.iter().all(|c| c.condition.holds(self.pairs.get(&c.key)));
        let next = self.revision + 1;
        let mut events = Vec::new();
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            match op {
                Op::Put { key, value } => {
                    let mut new =
                        self.pairs.get(key).cloned().unwrap_or_else(|| pair(key, "", next, next, 0));
                    new.value.clone_from(value);
                    new.mod_revision = next;
                    new.version += 1;
                    self.pairs.insert(key.clone(), new.clone());
                    events.push(Event::Put(new));
                }
                Op::Delete { key } if self.pairs.remove(key).is_some() => {
                    events.push(Event::Delete { key: key.clone() });
                }
                Op::Delete { .. } => {}
            }
        }
        if !events.is_empty() {
            self.revision = next;
            self.log.push(Batch { revision: next, events });
        }
        succeeded
    }

    fn below(&self, prefix: &str, from: u64) -> Vec<Batch> {
        let mut batches = self.log.clone();
        batches.iter_mut().for_each(|b| b.events.retain(|e| e.key().starts_with(prefix)));
        batches.retain(|b| b.revision >= from && !b.events.is_empty());
        batches
    }
}

fn random_txn(dice: &mut Dice) -> Txn {
    let key = |dice: &mut Dice| format!("{}/{}", ["a", "b"][dice.below(2) as usize], dice.below(4));
    let mut txn = Txn::default();
    for _ in 0..dice.below(3) {
        let order = [Order::Equal, Order::NotEqual, Order::Greater, Order::Less][dice.below(4) as usize];
        let n = dice.below(30);
        let condition = match dice.below(6) {
            0 => Condition::CreateRevision(order, n),
            1 => Condition::ModRevision(order, n),
            2 => Condition::Version(order, dice.below(4)),
            3 => Condition::Value(order, vec![dice.below(4) as u8]),
            4 => Condition::Exists,
            _ => Condition::Absent,
        };
        txn = txn.when(key(dice), condition);
    }
    for branch in 0..2 {
        for _ in 0..dice.below(4) {
            let key = key(dice);
            let op = match dice.below(3) {
                0 => Op::Delete { key },
                _ => Op::Put { key, value: vec![dice.below(4) as u8; dice.below(3) as usize] },
            };
            let ops = if branch == 0 { &mut txn.then } else { &mut txn.otherwise };
            if !ops.iter().any(|o| o.key() == op.key()) {
                ops.push(op);
            }
        }
    }
    txn
}

async fn equals_a_reference(backend: &dyn Backend, seed: u64) {
    let mut store = backend.fresh();
    let mut dice = Dice::new(seed);
    let mut reference = Reference { revision: 1, ..Reference::default() };
    for step in 0..120 {
        let txn = random_txn(&mut dice);
        let succeeded = reference.txn(&txn);
        let result = store.txn(txn.clone()).await.unwrap();
        let at = format!("seed {seed}, step {step}, {txn:?}");
        assert_eq!((result.succeeded, result.revision), (succeeded, reference.revision), "{at}");
        if dice.below(40) == 0 {
            match backend.reopen(store) {
                Some(again) => store = again,
                None => return,
            }
        }
    }
    let range = store.range("").await.unwrap();
    assert_eq!(range.revision, reference.revision, "seed {seed}");
    assert_eq!(range.items, reference.pairs.values().cloned().collect::<Vec<_>>(), "seed {seed}");
    for prefix in ["", "a/", "b/1"] {
        let from = dice.below(reference.revision);
        let mut watch = store.watch(prefix, from).await.unwrap();
        for batch in reference.below(prefix, from) {
            assert_eq!(next(&mut watch).await.unwrap(), batch, "seed {seed}, {prefix:?} from {from}");
        }
    }
}

/// Many tasks count up one key by compare and swap: every step is done once.
async fn lets_one_of_many_win(store: Arc<dyn Store>) {
    const TASKS: u64 = 16;
    const STEPS: u64 = 20;
    let mut watch = store.watch("n", 1).await.unwrap();
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(count_up(Arc::clone(&store), STEPS))).collect();
    for n in 1..=TASKS * STEPS {
        let batch = next(&mut watch).await.unwrap();
        let [Event::Put(pair)] = batch.events.as_slice() else { panic!("{batch:?}") };
        assert_eq!((pair.value.as_slice(), pair.version), (n.to_string().as_bytes(), n));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.get("n").await.unwrap().unwrap().version, TASKS * STEPS);
}

async fn count_up(store: Arc<dyn Store>, steps: u64) {
    for _ in 0..steps {
        loop {
            let was = store.get("n").await.unwrap();
            let (n, seen) = was.map_or((0, 0), |p| {
                (String::from_utf8(p.value).unwrap().parse::<u64>().unwrap(), p.mod_revision)
            });
            let same = Condition::ModRevision(Order::Equal, seen);
            if store
                .txn(Txn::default().when("n", same).put("n", (n + 1).to_string()))
                .await
                .unwrap()
                .succeeded
            {
                break;
            }
        }
    }
}

/// Watches that begin anywhere while many write see every revision once and in order.
async fn watches_without_gaps_under_load(store: Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const WRITES: u64 = 150;
    let last = 1 + TASKS * WRITES;
    let writers: Vec<_> =
        (0..TASKS).map(|task| tokio::spawn(write(Arc::clone(&store), task, WRITES))).collect();
    let readers: Vec<_> =
        (0..20).map(|n| tokio::spawn(follow(Arc::clone(&store), 1 + n * 50, last))).collect();
    for task in writers.into_iter().chain(readers) {
        task.await.unwrap();
    }
}

async fn write(store: Arc<dyn Store>, task: u64, writes: u64) {
    for n in 0..writes {
        let txn = Txn::default().put(format!("w/{task}"), n.to_string()).put(format!("other/{task}"), "");
        store.txn(txn).await.unwrap();
    }
}

async fn follow(store: Arc<dyn Store>, from: u64, last: u64) {
    let mut watch = store.watch("w/", from).await.unwrap();
    for revision in from.max(2)..=last {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!((batch.revision, batch.events.len()), (revision, 1));
    }
}
