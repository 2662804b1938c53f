//! Empties a tap that a VM has left, on a thread of its own: looking through processes takes time, and frames that are
//! on their way into the tap come a little later.

use super::LINGER;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tenet_hostnet::{Holders, Netns, Queue, Waiting, wait};
use tenet_model::PortRef;
use tokio::sync::mpsc;

/// Frames, and bytes of them, that are handed on in one go.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// How soon it is noticed that the VM goes on.
const SLICE: Duration = Duration::from_millis(1);

/// What an emptied tap gave.
#[derive(Debug)]
pub(crate) struct Found {
    /// The port.
    pub(crate) port: PortRef,
    /// Which of the port's emptyings this is of.
    pub(crate) run: u64,
    /// What.
    pub(crate) what: What,
}

/// A part of it, or its end.
#[derive(Debug)]
pub(crate) enum What {
    /// These waited.
    Frames(Vec<Waiting>),
    /// Nothing waits any more.
    End,
    /// Nobody has the tap open.
    Nobody,
    /// Who has it open must not be looked into.
    Denied(String),
}

/// Processes that had taps open when they were last looked for.
pub(crate) type Known = Arc<Mutex<BTreeMap<String, BTreeSet<u32>>>>;

/// Looks through all processes; with many of them it takes a while.
pub(crate) fn look_early(taps: &BTreeSet<String>, known: &Known) {
    let holders = Holders::find(taps, None);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    for (tap, holders) in holders.by_tap {
        known.insert(tap, holders.iter().map(|h| h.pid).collect());
    }
}

/// One emptying.
pub(crate) struct Job {
    pub(crate) port: PortRef,
    pub(crate) run: u64,
    pub(crate) tap: String,
    pub(crate) netns: Netns,
    pub(crate) known: Known,
    /// The VM goes on: not one frame more may be taken from it.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) found: mpsc::Sender<Found>,
}

impl Job {
    /// Takes all that waits, and what comes within [`LINGER`].
    pub(crate) fn run(self) {
        let end = match self.open() {
            Ok(queues) if queues.is_empty() => What::Nobody,
            Ok(queues) => {
                self.empty(queues);
                What::End
            }
            Err(cause) => What::Denied(cause),
        };
        self.hand_on(end);
    }

    /// The tap's queues. Where all processes are to be looked through, that is a second try.
    fn open(&self) -> Result<Vec<Queue>, String> {
        let taps = BTreeSet::from([self.tap.clone()]);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&self.tap).cloned();
        if let Some(pids) = known {
            // One that ended, or whose number is another's now, is looked for once more.
            if let Ok(queues) = self.copies(&Holders::find(&taps, Some(&pids)))
                && !queues.is_empty()
            {
                return Ok(queues);
            }
        }
        let holders = Holders::find(&taps, None);
        let queues = self.copies(&holders)?;
        match holders.denied {
            Some(cause) if queues.is_empty() => Err(cause.to_string()),
            _ => Ok(queues),
        }
    }

    fn copies(&self, holders: &Holders) -> Result<Vec<Queue>, String> {
        let (mut queues, mut failure) = (Vec::new(), None);
        for holder in holders.by_tap.get(&self.tap).into_iter().flatten() {
            match Queue::of(*holder, &self.tap, &self.netns) {
                Ok(queue) => queues.extend(queue),
                Err(cause) => failure = Some(crate::session::chain(&cause)),
            }
        }
        match failure {
            Some(cause) if queues.is_empty() => Err(cause),
            _ => Ok(queues),
        }
    }

    /// The copies are closed at the end: as long as they are open, the tap has carrier.
    fn empty(&self, mut queues: Vec<Queue>) {
        let until = Instant::now() + LINGER;
        while !queues.is_empty() && self.goes_on() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            // By turns, so that one flood of a queue does not keep the others back.
            queues.retain_mut(|queue| {
                while batch.len() < BATCH && bytes < BATCH_BYTES && self.goes_on() {
                    match queue.take() {
                        Ok(Some(waiting)) => {
                            bytes += waiting.frame.len();
                            batch.push(waiting);
                        }
                        Ok(None) => return true,
                        Err(_) => return false,
                    }
                }
                true
            });
            if !batch.is_empty() {
                if !self.hand_on(What::Frames(batch)) {
                    return;
                }
                continue;
            }
            if Instant::now() >= until || wait(&queues, SLICE).is_err() {
                return;
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    /// False: the agent ends.
    fn hand_on(&self, what: What) -> bool {
        self.found.blocking_send(Found { port: self.port.clone(), run: self.run, what }).is_ok()
    }
}
