//! The one thread that writes.

use super::tables;
use crate::{Op, StoreError, Txn, TxnResult};
use redb::{Database, ReadableTable as _, Table};
use tokio::sync::{mpsc, oneshot, watch};

/// How many transactions may share one commit.
const GROUP: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
pub(super) enum Job {
    /// A transaction, already checked by itself.
    Txn(Txn, Reply<TxnResult>),
    /// Forgetting what was before a revision.
    Compact(u64, Reply<()>),
}

/// What the writer found, to be told once it is on stable storage.
enum Outcome {
    Txn(TxnResult, Reply<TxnResult>),
    Compact(Result<(), StoreError>, Reply<()>),
}

/// Works until nobody can ask any more.
pub(super) fn run(
    db: &Database,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    latest: &watch::Sender<u64>,
    keep: u64,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        let mut outcomes = Vec::with_capacity(group.len());
        let mut group = group.into_iter();
        match commit(db, &mut group, &mut outcomes, keep) {
            Ok(revision) => {
                latest.send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
                outcomes.into_iter().for_each(Outcome::tell);
            }
            Err(error) => {
                let error = StoreError::from(error);
                outcomes.into_iter().for_each(|o| o.fail(&error));
                group.for_each(|job| job.fail(&error));
            }
        }
    }
}

/// Runs a group of jobs in one durable transaction; the revision after it.
fn commit(
    db: &Database,
    group: &mut impl Iterator<Item = Job>,
    outcomes: &mut Vec<Outcome>,
    keep: u64,
) -> Result<u64, redb::Error> {
    // Durability is `Immediate` unless set otherwise: commit returns after fsync.
    let write = db.begin_write()?;
    let mut state;
    {
        let mut meta = write.open_table(tables::META)?;
        state = State {
            pairs: write.open_table(tables::PAIRS)?,
            history: write.open_table(tables::HISTORY)?,
            revision: tables::number(&meta, tables::REVISION)?,
            oldest: tables::number(&meta, tables::OLDEST)?,
        };
        let was = (state.revision, state.oldest);
        let mut failure = None;
        for job in group {
            // The job's reply must reach `outcomes` also if the disk fails.
            let outcome = match job {
                Job::Txn(txn, reply) => {
                    let none = TxnResult { succeeded: false, revision: 0 };
                    let result = state.txn(&txn).unwrap_or_else(|e| {
                        failure = Some(e);
                        none
                    });
                    Outcome::Txn(result, reply)
                }
                Job::Compact(revision, reply) => Outcome::Compact(state.compact(revision), reply),
            };
            outcomes.push(outcome);
            if let Some(error) = failure {
                return Err(error);
            }
        }
        state.oldest = state.oldest.max(state.revision.saturating_sub(keep));
        if state.oldest != was.1 {
            state.history.retain_in(..(state.oldest, 0), |_, _| false)?;
        }
        if (state.revision, state.oldest) == was {
            let revision = state.revision;
            drop(state);
            drop(meta);
            write.abort()?;
            return Ok(revision);
        }
        meta.insert(tables::REVISION, state.revision)?;
        meta.insert(tables::OLDEST, state.oldest)?;
    }
    let revision = state.revision;
    drop(state);
    write.commit()?;
    Ok(revision)
}

/// The tables while a group runs.
struct State<'t> {
    pairs: Table<'t, &'static str, tables::Pair>,
    history: Table<'t, (u64, u32), tables::Write>,
    revision: u64,
    oldest: u64,
}

impl State<'_> {
    fn txn(&mut self, txn: &Txn) -> Result<TxnResult, redb::Error> {
        let mut succeeded = true;
        for compare in &txn.compare {
            let pair = self.pairs.get(compare.key.as_str())?;
            let pair = pair.map(|value| tables::pair(&compare.key, value.value()));
            succeeded &= compare.condition.holds(pair.as_ref());
        }
        let revision = self.revision + 1;
        let mut place = 0;
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            if self.write(op, revision, place)? {
                place += 1;
            }
        }
        if place > 0 {
            self.revision = revision;
        }
        Ok(TxnResult { succeeded, revision: self.revision })
    }

    /// Does one write; whether it changed anything.
    fn write(&mut self, op: &Op, revision: u64, place: u32) -> Result<bool, redb::Error> {
        match op {
            Op::Put { key, value } => {
                let was = self.pairs.get(key.as_str())?.map(|pair| {
                    let (created, _, version, _) = pair.value();
                    (created, version + 1)
                });
                let (created, version) = was.unwrap_or((revision, 1));
                self.pairs.insert(key.as_str(), (created, revision, version, value.as_slice()))?;
                self.history
                    .insert((revision, place), (true, key.as_str(), created, version, value.as_slice()))?;
                Ok(true)
            }
            Op::Delete { key } => {
                if self.pairs.remove(key.as_str())?.is_none() {
                    return Ok(false);
                }
                self.history.insert((revision, place), (false, key.as_str(), 0, 0, &[][..]))?;
                Ok(true)
            }
        }
    }

    fn compact(&mut self, revision: u64) -> Result<(), StoreError> {
        if revision < self.oldest {
            return Err(StoreError::Compacted { asked: revision, oldest: self.oldest });
        }
        if revision > self.revision {
            return Err(StoreError::Future { asked: revision, current: self.revision });
        }
        self.oldest = revision;
        Ok(())
    }
}

/// Whoever asked may have gone meanwhile; then nobody is told.
impl Outcome {
    fn tell(self) {
        match self {
            Self::Txn(result, reply) => drop(reply.send(Ok(result))),
            Self::Compact(result, reply) => drop(reply.send(result)),
        }
    }

    fn fail(self, error: &StoreError) {
        match self {
            Self::Txn(_, reply) => drop(reply.send(Err(error.clone()))),
            Self::Compact(_, reply) => drop(reply.send(Err(error.clone()))),
        }
    }
}

impl Job {
    fn fail(self, error: &StoreError) {
        match self {
            Self::Txn(_, reply) => drop(reply.send(Err(error.clone()))),
            Self::Compact(_, reply) => drop(reply.send(Err(error.clone()))),
        }
    }
}
