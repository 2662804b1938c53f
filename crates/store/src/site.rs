//! The site's objects in a store: one key each, and one epoch that all their writers go through.

use crate::{Compare, Condition, Event, Op, Order, Store, StoreError, Txn, Watch};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tenet_model::{
    Change, Checked, DEFAULT_TENANT, Desired, Key, Name, Object, Operation, Problem, Receipt, Tenant,
};

/// Keys in the store.
pub mod keys {
    /// Objects: this and the object's key.
    pub const OBJECTS: &str = "/tenet/v1/object/";
    /// Written by every transaction on objects; its revision is the objects'.
    pub const EPOCH: &str = "/tenet/v1/epoch";
    /// Receipts of migrations: this, when the migration began, and its id.
    pub const RECEIPTS: &str = "/tenet/v1/receipt/";
}

/// What reading or changing a site fails with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SiteError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else changed the site since the change was checked.
    #[error(
        "the site changed since revision {seen}: look again and repeat the change if it still makes sense"
    )]
    Lost {
        /// The revision that the change was checked against.
        seen: u64,
    },
    /// A value that this version cannot read.
    #[error(
        "the store's value of {key} cannot be read ({reason}): was it written by a newer version? Use that version, restore a backup, or delete this key"
    )]
    Unreadable {
        /// The store's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A new site does not take its first object.
    #[error("the tenant {DEFAULT_TENANT} cannot be created: {0}")]
    First(Box<Problem>),
}

/// What one transaction changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteEvent {
    /// Its revision.
    pub revision: u64,
    /// Its writes; [`Desired::apply`] takes them.
    pub operations: Vec<Operation>,
}

/// Receipts that are kept; the oldest go first.
pub const RECEIPTS_KEPT: usize = 10_000;

/// Receipts that go at once, so that not each new one costs a look at all; no more, as a transaction has its bounds.
const RECEIPTS_GO: usize = 64;

/// Of a store whose receipts were not counted yet.
const UNCOUNTED: usize = usize::MAX;

/// The site's objects in a store.
#[derive(Clone)]
pub struct SiteStore {
    store: Arc<dyn Store>,
    /// How many receipts there are, at least by what was seen of them here.
    receipts: Arc<AtomicUsize>,
}

impl SiteStore {
    /// Takes a store and makes sure that the tenant `default` exists.
    ///
    /// # Errors
    /// Those of [`SiteStore::load`] and [`SiteStore::commit`].
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, SiteError> {
        let site = Self { store, receipts: Arc::new(AtomicUsize::new(UNCOUNTED)) };
        loop {
            let desired = site.load().await?;
            let Ok(name) = Name::new(DEFAULT_TENANT) else { return Ok(site) };
            let change = Change::put(Object::Tenant(Tenant { name }));
            let checked = desired.check(&change).map_err(first)?;
            match site.commit(&checked).await {
                Ok(_) => return Ok(site),
                // Another controller was first: look again.
                Err(SiteError::Lost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The store, for keys of others.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// All objects; their revision is the one that [`SiteStore::commit`] compares and that a watch goes on from.
    ///
    /// # Errors
    /// [`SiteError::Unreadable`] names the first key that cannot be read.
    pub async fn load(&self) -> Result<Desired, SiteError> {
        loop {
            let range = self.store.range(keys::OBJECTS).await?;
            let epoch = self.store.get(keys::EPOCH).await?.map_or(0, |pair| pair.mod_revision);
            if epoch > range.revision {
                // Objects were written between the two reads.
                continue;
            }
            let mut desired = Desired::default();
            for pair in &range.items {
                desired.put(decode(&pair.key, &pair.value)?, pair.mod_revision);
            }
            desired.revision = desired.revision.max(epoch);
            return Ok(desired);
        }
    }

    /// Writes a change over the state that it was checked against; its revision, or that state's if it is empty.
    ///
    /// # Errors
    /// [`SiteError::Lost`] if the state is no longer that one.
    pub async fn commit(&self, checked: &Checked) -> Result<u64, SiteError> {
        self.commit_with(checked, Vec::new()).await
    }

    /// Like [`SiteStore::commit`], with a receipt in the same transaction. Of receipts, [`RECEIPTS_KEPT`] are kept.
    ///
    /// # Errors
    /// Those of [`SiteStore::commit`].
    pub async fn commit_with_receipt(&self, checked: &Checked, receipt: &Receipt) -> Result<u64, SiteError> {
        let key = receipt_key(receipt);
        let value = encode(&key, receipt)?;
        let mut writes = self.outdated().await?;
        let gone = writes.len();
        // One that is written again is the same migration's.
        writes.retain(|op| op.key() != key);
        writes.push(Op::Put { key, value });
        let revision = self.commit_with(checked, writes).await?;
        let counted = |n: usize| (n != UNCOUNTED).then(|| (n + 1).saturating_sub(gone));
        // Another task may have counted them anew.
        let _ = self.receipts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
        Ok(revision)
    }

    /// The deletions that make room for one more receipt.
    async fn outdated(&self) -> Result<Vec<Op>, SiteError> {
        if self.receipts.load(Ordering::Relaxed) < RECEIPTS_KEPT {
            return Ok(Vec::new());
        }
        // Their keys are in the order of time.
        let range = self.store.range(keys::RECEIPTS).await?;
        self.receipts.store(range.items.len(), Ordering::Relaxed);
        let many = if range.items.len() < RECEIPTS_KEPT { 0 } else { RECEIPTS_GO };
        Ok(range.items.into_iter().take(many).map(|pair| Op::Delete { key: pair.key }).collect())
    }

    /// Objects' changes from a revision on (after a load: its revision + 1).
    ///
    /// # Errors
    /// [`StoreError::Compacted`] inside [`SiteError::Store`]: load again.
    pub async fn watch(&self, from: u64) -> Result<SiteWatch, SiteError> {
        Ok(SiteWatch(self.store.watch(keys::OBJECTS, from).await?))
    }

    /// All receipts, oldest first.
    ///
    /// # Errors
    /// [`SiteError::Unreadable`] names the first key that cannot be read.
    pub async fn receipts(&self) -> Result<Vec<Receipt>, SiteError> {
        let range = self.store.range(keys::RECEIPTS).await?;
        let read = |value: &[u8]| serde_json::from_slice(value).map_err(|e| e.to_string());
        range.items.into_iter().map(|p| read(&p.value).map_err(|reason| unreadable(&p.key, reason))).collect()
    }

    async fn commit_with(&self, checked: &Checked, extra: Vec<Op>) -> Result<u64, SiteError> {
        let seen = checked.revision();
        if checked.is_empty() && extra.is_empty() {
            return Ok(seen);
        }
        let epoch =
            Compare { key: keys::EPOCH.to_owned(), condition: Condition::ModRevision(Order::Equal, seen) };
        let mut then = extra;
        // Receipts alone leave the objects' revision as it is.
        if !checked.is_empty() {
            then.push(Op::Put { key: keys::EPOCH.to_owned(), value: Vec::new() });
        }
        for operation in checked.operations() {
            then.push(match operation {
                Operation::Put(object) => {
                    let key = object_key(&object.key());
                    let value = encode(&key, object)?;
                    Op::Put { key, value }
                }
                Operation::Delete(key) => Op::Delete { key: object_key(key) },
            });
        }
        let result = self.store.txn(Txn { compare: vec![epoch], then, otherwise: Vec::new() }).await?;
        if !result.succeeded {
            return Err(SiteError::Lost { seen });
        }
        Ok(if checked.is_empty() { seen } else { result.revision })
    }
}

/// A running watch of a site's objects.
#[derive(Debug)]
pub struct SiteWatch(Watch);

impl SiteWatch {
    /// The next change; waits for it. May be dropped and called again (nothing is lost).
    ///
    /// # Errors
    /// As [`Watch::next`], and [`SiteError::Unreadable`].
    pub async fn next(&mut self) -> Result<SiteEvent, SiteError> {
        let batch = self.0.next().await?;
        let operations = batch.events.iter().map(operation).collect::<Result<_, _>>()?;
        Ok(SiteEvent { revision: batch.revision, operations })
    }
}

fn operation(event: &Event) -> Result<Operation, SiteError> {
    match event {
        Event::Put(pair) => decode(&pair.key, &pair.value).map(Operation::Put),
        Event::Delete { key } => decode_key(key).map(Operation::Delete),
    }
}

fn object_key(key: &Key) -> String {
    format!("{}{key}", keys::OBJECTS)
}

/// Ordered by the time when the migration began.
fn receipt_key(receipt: &Receipt) -> String {
    format!("{}{:016}-{}", keys::RECEIPTS, receipt.started_ms, receipt.id)
}

fn encode(key: &str, value: &impl serde::Serialize) -> Result<Vec<u8>, SiteError> {
    serde_json::to_vec(value).map_err(|e| unreadable(key, e.to_string()))
}

fn decode_key(key: &str) -> Result<Key, SiteError> {
    let name = key.strip_prefix(keys::OBJECTS).unwrap_or(key);
    name.parse().map_err(|e: tenet_model::KeyError| unreadable(key, e.to_string()))
}

fn decode(key: &str, value: &[u8]) -> Result<Object, SiteError> {
    let object: Object = serde_json::from_slice(value).map_err(|e| unreadable(key, e.to_string()))?;
    let name = object.key();
    if object_key(&name) == key {
        Ok(object)
    } else {
        Err(unreadable(key, format!("it describes {}", name.title())))
    }
}

fn unreadable(key: &str, reason: String) -> SiteError {
    SiteError::Unreadable { key: key.to_owned(), reason }
}

fn first(problems: Vec<Problem>) -> SiteError {
    let fallback = || SiteError::Store(StoreError::Closed);
    problems.into_iter().next().map_or_else(fallback, |p| SiteError::First(Box::new(p)))
}
