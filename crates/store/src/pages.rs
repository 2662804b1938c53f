//! Watches over a kept history: read it page by page, then wait for more.
//!
//! A watcher keeps nothing but the next revision that it wants, so that a slow one costs no memory.

use crate::{Answer, Batch, StoreError, Watch};
use std::sync::Arc;
use tokio::sync::watch;

/// A backend that keeps its past writes by revision.
pub(crate) trait History: Send + Sync + 'static {
    /// The writes below a prefix at revisions from `from` up to `to`, a limited number of them, and the first revision
    /// that was not looked at. [`StoreError::Compacted`] if some of them are no longer kept.
    fn page<'a>(&'a self, prefix: &'a str, from: u64, to: u64) -> Answer<'a, (Vec<Batch>, u64)>;
}

/// A watch over a history; `latest` tells the store's revision and closes with the store.
pub(crate) fn watch(
    history: Arc<dyn History>,
    latest: watch::Receiver<u64>,
    prefix: &str,
    from: u64,
) -> Watch {
    struct Cursor {
        history: Arc<dyn History>,
        latest: watch::Receiver<u64>,
        prefix: String,
        next: u64,
        ready: std::vec::IntoIter<Batch>,
        ended: bool,
    }
    impl Cursor {
        async fn step(&mut self) -> Result<Batch, StoreError> {
            loop {
                if let Some(batch) = self.ready.next() {
                    return Ok(batch);
                }
                let next = self.next;
                let latest =
                    *self.latest.wait_for(|latest| *latest >= next).await.map_err(|_| StoreError::Closed)?;
                let (batches, next) = self.history.page(&self.prefix, self.next, latest).await?;
                self.ready = batches.into_iter();
                self.next = next;
            }
        }
    }
    let (prefix, ready) = (prefix.to_owned(), Vec::new().into_iter());
    let cursor = Cursor { history, latest, prefix, next: from.max(1), ready, ended: false };
    Watch::new(futures::stream::unfold(cursor, |mut cursor| async move {
        if cursor.ended {
            return None;
        }
        let step = cursor.step().await;
        cursor.ended = step.is_err();
        Some((step, cursor))
    }))
}
