//! What is in the file.

use crate::{Batch, Event, KeyValue, StoreError};
use redb::{ReadTransaction, ReadableTable, TableDefinition};

/// What a key has: creation's revision, last write's revision, number of writes, value.
pub(super) type Pair = (u64, u64, u64, &'static [u8]);
/// One write: whether it was a put, the key, and then (if it was) as in [`Pair`] without the revision.
pub(super) type Write = (bool, &'static str, u64, u64, &'static [u8]);

/// Numbers by name.
pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
/// What is there now.
pub(super) const PAIRS: TableDefinition<'static, &'static str, Pair> = TableDefinition::new("pairs");
/// Past writes by revision and place in their transaction.
pub(super) const HISTORY: TableDefinition<'static, (u64, u32), Write> = TableDefinition::new("history");

/// In [`META`]: the file's format.
pub(super) const FORMAT: &str = "format";
/// In [`META`]: the store's revision.
pub(super) const REVISION: &str = "revision";
/// In [`META`]: the oldest revision whose writes are kept.
pub(super) const OLDEST: &str = "oldest";

/// How many writes a watcher reads at once.
const PAGE: usize = 1024;

/// A number of [`META`].
pub(super) fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    let missing = || redb::Error::Corrupted(format!("the number `{name}` is missing"));
    Ok(meta.get(name)?.ok_or_else(missing)?.value())
}

/// A pair as it is stored.
pub(super) fn pair(
    key: &str,
    (create_revision, mod_revision, version, value): (u64, u64, u64, &[u8]),
) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned(), create_revision, mod_revision, version }
}

/// As [`crate::pages::History::page`].
pub(super) fn page(
    read: &ReadTransaction,
    prefix: &str,
    from: u64,
    to: u64,
) -> Result<Result<(Vec<Batch>, u64), StoreError>, redb::Error> {
    let oldest = number(&read.open_table(META)?, OLDEST)?;
    if from < oldest {
        return Ok(Err(StoreError::Compacted { asked: from, oldest }));
    }
    let mut batches: Vec<Batch> = Vec::new();
    if to < from {
        return Ok(Ok((batches, from)));
    }
    let mut last = from;
    for (read, entry) in read.open_table(HISTORY)?.range((from, 0)..=(to, u32::MAX))?.enumerate() {
        let (place, write) = entry?;
        let (revision, _) = place.value();
        // A page ends between two revisions only.
        if read >= PAGE && revision != last {
            return Ok(Ok((batches, revision)));
        }
        last = revision;
        let (put, key, create_revision, version, value) = write.value();
        if !key.starts_with(prefix) {
            continue;
        }
        let event = if put {
            Event::Put(pair(key, (create_revision, revision, version, value)))
        } else {
            Event::Delete { key: key.to_owned() }
        };
        match batches.last_mut().filter(|b| b.revision == revision) {
            Some(batch) => batch.events.push(event),
            None => batches.push(Batch { revision, events: vec![event] }),
        }
    }
    Ok(Ok((batches, to + 1)))
}
