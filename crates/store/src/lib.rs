//! Where desired state is kept: key-value pairs with revisions, transactions and watches, as etcd has them.
//!
//! Three types to know: [`Store`] (the trait), [`Txn`] (what changes a store) and [`SiteStore`] (the site's objects
//! in one). Backends: [`MemoryStore`] for tests, [`RedbStore`] for a controller on its own; every backend passes
//! `conformance::run`. A backend must never acknowledge a transaction that a crash could take back.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod memory;
mod pages;
mod redb_store;
mod site;
mod txn;
mod watch;

pub use error::StoreError;
pub use memory::MemoryStore;
pub use redb_store::{RedbOptions, RedbStore};
pub use site::{RECEIPTS_KEPT, SiteError, SiteEvent, SiteStore, SiteWatch, keys};
pub use txn::{Compare, Condition, Op, Order, Txn, TxnResult};
pub use watch::{Batch, Event, Watch};

use futures::future::BoxFuture;

/// One key with its value and history in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the transaction that created the key.
    pub create_revision: u64,
    /// Revision of the transaction that last wrote it.
    pub mod_revision: u64,
    /// Number of writes since its creation, from 1 on.
    pub version: u64,
}

/// What a read saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The store's revision at the time of the read; a watch from the next one on misses nothing.
    pub revision: u64,
    /// The keys in order.
    pub items: Vec<KeyValue>,
}

/// The answer of a store.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Key-value pairs with etcd's semantics: one revision for each transaction that writes, all of it or nothing.
///
/// An empty store is at revision 1. A transaction that was answered is on stable storage.
pub trait Store: Send + Sync + 'static {
    /// The pair of a key.
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<KeyValue>>;

    /// All pairs whose keys begin with a prefix (the empty one: all), at one revision.
    fn range<'a>(&'a self, prefix: &'a str) -> Answer<'a, Range>;

    /// If all comparisons hold, does `then`, else `otherwise`; alone, and whole or not at all.
    fn txn(&self, txn: Txn) -> Answer<'_, TxnResult>;

    /// Every write below a prefix from a revision on, past and to come; without gaps and in order.
    ///
    /// Answers [`StoreError::Compacted`] if the past is no longer kept, at once or, if the reader is too slow, later.
    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> Answer<'a, Watch>;

    /// Forgets the writes before a revision; what is there now stays.
    fn compact(&self, revision: u64) -> Answer<'_, ()>;
}
