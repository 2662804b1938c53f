//! A store in memory, for tests and for what need not outlive the process.

use crate::{
    Answer, Batch, Event, KeyValue, Op, Range, Store, StoreError, Txn, TxnResult, Watch,
    pages::{self, History},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// How many revisions a watcher reads at once.
const PAGE: usize = 256;

/// A store in memory.
pub struct MemoryStore {
    inner: Arc<Inner>,
    latest: watch::Sender<u64>,
}

struct Inner(Mutex<State>);

struct State {
    revision: u64,
    oldest: u64,
    pairs: BTreeMap<String, KeyValue>,
    history: BTreeMap<u64, Vec<Event>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        let state = State { revision: 1, oldest: 1, pairs: BTreeMap::new(), history: BTreeMap::new() };
        Self { inner: Arc::new(Inner(Mutex::new(state))), latest: watch::Sender::new(1) }
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<KeyValue>> {
        Box::pin(async move { Ok(self.inner.lock().pairs.get(key).cloned()) })
    }

    fn range<'a>(&'a self, prefix: &'a str) -> Answer<'a, Range> {
        Box::pin(async move {
            let state = self.inner.lock();
            let below = state.pairs.range(prefix.to_owned()..).take_while(|(k, _)| k.starts_with(prefix));
            Ok(Range { revision: state.revision, items: below.map(|(_, pair)| pair.clone()).collect() })
        })
    }

    fn txn(&self, txn: Txn) -> Answer<'_, TxnResult> {
        Box::pin(async move {
            txn.check()?;
            // Watchers must hear of revisions in order: tell them under the lock.
            let mut state = self.inner.lock();
            let result = state.txn(txn);
            self.latest.send_replace(state.revision);
            Ok(result)
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> Answer<'a, Watch> {
        Box::pin(async move {
            self.inner.lock().kept(from.max(1))?;
            Ok(pages::watch(self.inner.clone(), self.latest.subscribe(), prefix, from))
        })
    }

    fn compact(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut state = self.inner.lock();
            state.kept(revision)?;
            if revision > state.revision {
                return Err(StoreError::Future { asked: revision, current: state.revision });
            }
            state.history = state.history.split_off(&revision);
            state.oldest = revision;
            Ok(())
        })
    }
}

impl Inner {
    /// No code panics while it holds the lock, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for Inner {
    fn page<'a>(&'a self, prefix: &'a str, from: u64, to: u64) -> Answer<'a, (Vec<Batch>, u64)> {
        Box::pin(async move {
            let state = self.lock();
            state.kept(from)?;
            let mut batches = Vec::new();
            let mut next = to + 1;
            for (n, (revision, events)) in state.history.range(from..=to).enumerate() {
                if n == PAGE {
                    next = *revision;
                    break;
                }
                let events: Vec<Event> =
                    events.iter().filter(|e| e.key().starts_with(prefix)).cloned().collect();
                if !events.is_empty() {
                    batches.push(Batch { revision: *revision, events });
                }
            }
            Ok((batches, next))
        })
    }
}

impl State {
    fn kept(&self, from: u64) -> Result<(), StoreError> {
        let oldest = self.oldest;
        if from < oldest { Err(StoreError::Compacted { asked: from, oldest }) } else { Ok(()) }
    }

    fn txn(&mut self, txn: Txn) -> TxnResult {
        let succeeded = txn.compare.iter().all(|c| c.condition.holds(self.pairs.get(&c.key)));
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for op in if succeeded { txn.then } else { txn.otherwise } {
            match op {
                Op::Put { key, value } => {
                    let was = self.pairs.get(&key);
                    let (create_revision, version) =
                        was.map_or((revision, 1), |w| (w.create_revision, w.version + 1));
                    let pair = KeyValue { key, value, create_revision, mod_revision: revision, version };
                    self.pairs.insert(pair.key.clone(), pair.clone());
                    events.push(Event::Put(pair));
                }
                Op::Delete { key } => {
                    if self.pairs.remove(&key).is_some() {
                        events.push(Event::Delete { key });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.history.insert(revision, events);
            self.revision = revision;
        }
        TxnResult { succeeded, revision: self.revision }
    }
}
