//! The last state on disk, so that a restart without a controller knows what is wanted.
//!
//! A journal of the controller's own messages: one full state, then deltas, each with its length and a checksum.
//! It is written before the kernel is, so that it is never older than the maps; a tail cut short by a crash is
//! ignored. No fsync: after a power cut the maps are empty too, and the controller sends all again.

use prost::Message as _;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use tenet_api::agent;
use tenet_compile::{Delta, Rows};

/// The journal grows by this beyond twice the full state before it is written afresh.
const SLACK: u64 = 256 * 1024;
const HEAD: usize = 12;

/// The journal.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    file: Option<File>,
    full_size: u64,
    size: u64,
}

impl Cache {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("rows"), file: None, full_size: 0, size: 0 }
    }

    /// Generation and rows that were last written, if any.
    pub(crate) fn load(&self) -> Option<(u64, Rows)> {
        let bytes = fs::read(&self.path).ok()?;
        let mut state: Option<(u64, Rows)> = None;
        for message in Records(&bytes) {
            use agent::controller_message::Message as M;
            match (agent::ControllerMessage::decode(message).ok()?.message?, &mut state) {
                (M::Full(full), _) => state = Some((full.generation, full.into_rows().ok()?)),
                (M::Delta(delta), Some((generation, rows))) => {
                    let delta = Delta::try_from(delta).ok()?;
                    if delta.base != *generation {
                        return None;
                    }
                    rows.apply(&delta);
                    *generation = delta.generation;
                }
                (M::Delta(_), None) | (M::Question(_) | M::Farewell(_) | M::Drive(_), _) => return None,
            }
        }
        state
    }

    /// Replaces the journal by a full state, atomically.
    pub(crate) fn write_full(&mut self, generation: u64, rows: &Rows) -> io::Result<()> {
        let full = agent::Full::new(generation, rows);
        let record = record(agent::controller_message::Message::Full(full));
        let file = crate::keep::replace(&self.path, &record, false)?;
        self.full_size = record.len() as u64;
        self.size = self.full_size;
        self.file = Some(file);
        Ok(())
    }

    /// Adds a change; whether the journal should be written afresh once the change is taken.
    pub(crate) fn append(&mut self, delta: &Delta) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(true) };
        let record = record(agent::controller_message::Message::Delta(delta.into()));
        if let Err(error) = file.write_all(&record) {
            // Half a record stands there now: the next write starts afresh.
            self.file = None;
            return Err(error);
        }
        self.size += record.len() as u64;
        Ok(self.size > 2 * self.full_size + SLACK)
    }
}

fn record(message: agent::controller_message::Message) -> Vec<u8> {
    let body = agent::ControllerMessage { message: Some(message) }.encode_to_vec();
    let mut record = Vec::with_capacity(HEAD + body.len());
    record.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend(checksum(&body).to_le_bytes());
    record.extend(body);
    record
}

/// Whole records of a journal.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(HEAD)?;
        let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let sum = u64::from_le_bytes(head[4..].try_into().ok()?);
        let (body, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (checksum(body) == sum).then_some(body)
    }
}

/// FNV-1a: against accidents, not against anybody.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}
