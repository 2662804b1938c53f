//! What a store can fail with.

use std::{path::PathBuf, sync::Arc};

/// Why a store did not do what it was asked for. Cheap to clone: one failure may answer many callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("{} is in use by another process: stop the other controller or give this one its own directory", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is no store, or is damaged.
    #[error("{} is not a store of Tenet or is damaged ({reason}): restore it from a backup or move it away to begin anew", .path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by another version.
    #[error("{} has format {found}, but this version reads format {known}: use the version of Tenet that wrote it", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// What this version reads.
        known: u64,
    },
    /// The file cannot be opened or made.
    #[error("cannot open {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// Reading or writing failed.
    #[error("reading or writing the store failed: check the disk and its free space")]
    Io {
        /// Why.
        source: Arc<redb::Error>,
    },
    /// The writes of the wanted revision are no longer kept.
    #[error("revision {asked} is no longer kept, the oldest is {oldest}: read everything again")]
    Compacted {
        /// The wanted revision.
        asked: u64,
        /// The oldest one that can be watched from.
        oldest: u64,
    },
    /// Compaction up to a revision that does not exist yet.
    #[error("revision {asked} is in the future, the store is at {current}")]
    Future {
        /// The wanted revision.
        asked: u64,
        /// The store's.
        current: u64,
    },
    /// A transaction writes a key twice.
    #[error("key {key} is written twice in one transaction")]
    Twice {
        /// The key.
        key: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}
