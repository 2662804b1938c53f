//! Watches: what was written, revision by revision.

use crate::{KeyValue, StoreError};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// One write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A key was created or replaced.
    Put(KeyValue),
    /// A key was deleted.
    Delete {
        /// The key.
        key: String,
    },
}

impl Event {
    /// The key that was written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(pair) => &pair.key,
            Self::Delete { key } => key,
        }
    }
}

/// All that one transaction wrote below the watched prefix; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Its revision.
    pub revision: u64,
    /// Its writes, in the order of the transaction.
    pub events: Vec<Event>,
}

/// A running watch; ends after its first error.
pub struct Watch(BoxStream<'static, Result<Batch, StoreError>>);

impl Watch {
    /// Wraps what a backend streams.
    #[must_use]
    pub fn new(stream: impl Stream<Item = Result<Batch, StoreError>> + Send + 'static) -> Self {
        Self(stream.boxed())
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the reader was too slow, [`StoreError::Closed`] at the end, and what reading fails
    /// with.
    pub async fn next(&mut self) -> Result<Batch, StoreError> {
        self.0.next().await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Stream for Watch {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
