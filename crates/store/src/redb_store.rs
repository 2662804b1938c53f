//! A store in one file: redb, with every acknowledged transaction on stable storage.
//!
//! One thread writes. It takes all transactions that wait, runs them in order in one redb transaction and answers them
//! after that one's fsync, so that many writers share the price of the disk. Readers and watches see only what is
//! committed.

mod file;
mod tables;
mod writer;

use crate::{
    Answer, Batch, KeyValue, Range, Store, StoreError, Txn, TxnResult, Watch,
    pages::{self, History},
};
use redb::{Database, ReadableDatabase as _};
use std::{
    path::Path,
    sync::{Arc, Weak},
    thread::JoinHandle,
};
use tokio::sync::{mpsc, oneshot, watch};
use writer::Job;

/// How a file is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedbOptions {
    /// How many past revisions are kept for watches; older ones are forgotten while new ones are written.
    pub keep: u64,
    /// Bytes of memory for cached pages.
    pub cache: usize,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self { keep: 10_000, cache: 32 << 20 }
    }
}

/// A store in one file.
pub struct RedbStore {
    db: Arc<Database>,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    latest: watch::Receiver<u64>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the file or makes it; its directory must exist. Reads the whole file to see that it is undamaged.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NotAStore`], [`StoreError::Format`] and [`StoreError::Open`].
    pub fn open(path: &Path, options: RedbOptions) -> Result<Self, StoreError> {
        let (db, revision) = file::open(path, options.cache)?;
        let db = Arc::new(db);
        let (jobs, queue) = mpsc::unbounded_channel();
        let (sender, latest) = watch::channel(revision);
        let theirs = Arc::clone(&db);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(&theirs, queue, &sender, options.keep))
            .map_err(|source| StoreError::Open { path: path.to_owned(), source: Arc::new(source) })?;
        Ok(Self { db, jobs: Some(jobs), latest, writer: Some(writer) })
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for RedbStore {
    /// Waits for the writer, so that the file is free afterwards.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to tell.
            let _ = writer.join();
        }
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<KeyValue>> {
        let (db, key) = (Arc::clone(&self.db), key.to_owned());
        Box::pin(blocking(move || {
            let pairs = db.begin_read()?.open_table(tables::PAIRS)?;
            let pair = pairs.get(key.as_str())?;
            Ok(pair.map(|value| tables::pair(&key, value.value())))
        }))
    }

    fn range<'a>(&'a self, prefix: &'a str) -> Answer<'a, Range> {
        let (db, prefix) = (Arc::clone(&self.db), prefix.to_owned());
        Box::pin(blocking(move || {
            let read = db.begin_read()?;
            let revision = tables::number(&read.open_table(tables::META)?, tables::REVISION)?;
            let mut items = Vec::new();
            for entry in read.open_table(tables::PAIRS)?.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                items.push(tables::pair(key.value(), value.value()));
            }
            Ok(Range { revision, items })
        }))
    }

    fn txn(&self, txn: Txn) -> Answer<'_, TxnResult> {
        Box::pin(async move {
            txn.check()?;
            self.ask(|reply| Job::Txn(txn, reply)).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> Answer<'a, Watch> {
        Box::pin(async move {
            let history = Arc::new(Past(Arc::downgrade(&self.db)));
            let start = from.max(1);
            // An empty page, read for the error if the past is no longer kept.
            history.page(prefix, start, start - 1).await?;
            Ok(pages::watch(history, self.latest.clone(), prefix, from))
        })
    }

    fn compact(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(self.ask(move |reply| Job::Compact(revision, reply)))
    }
}

/// The history of a file that a forgotten watch does not keep open.
struct Past(Weak<Database>);

impl History for Past {
    fn page<'a>(&'a self, prefix: &'a str, from: u64, to: u64) -> Answer<'a, (Vec<Batch>, u64)> {
        let (db, prefix) = (self.0.upgrade(), prefix.to_owned());
        Box::pin(async move {
            let db = db.ok_or(StoreError::Closed)?;
            blocking(move || tables::page(&db.begin_read()?, &prefix, from, to)).await?
        })
    }
}

/// Runs what may wait for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(StoreError::from),
        Err(_) => Err(StoreError::Closed),
    }
}

impl From<redb::Error> for StoreError {
    fn from(source: redb::Error) -> Self {
        Self::Io { source: Arc::new(source) }
    }
}
