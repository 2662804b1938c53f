//! The agent's tap by which frames are sent on, as a descriptor.

use crate::probe::never_block;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use tenet_host::drain::TAP;
use tenet_hostnet::{Error, Links, TapOptions, Waiting};

/// Answers of the data plane to nobody that are thrown away in one go.
const ANSWERS: usize = 4096;

/// The tap. It is there as long as this is.
#[derive(Debug)]
pub(crate) struct DrainTap {
    file: File,
    /// Its number.
    pub(crate) ifindex: u32,
    /// Drops at it so far, by reason.
    pub(crate) drops: BTreeMap<&'static str, u64>,
}

impl DrainTap {
    /// Makes it.
    pub(crate) fn open(links: &Links) -> Result<Self, Error> {
        let tap = links.open_tap(TAP, TapOptions { vnet_hdr: true, multi_queue: false })?;
        never_block(&tap)
            .map_err(|source| Error::System { action: format!("set up tap {TAP:?}"), source })?;
        Ok(Self { file: tap.into(), ifindex: links.index(TAP)?, drops: BTreeMap::new() })
    }

    /// Has the data plane decide about a frame once more; it has when this returns.
    pub(crate) fn send(&mut self, waiting: &Waiting) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(waiting.header.len() + waiting.frame.len());
        bytes.extend(waiting.header);
        bytes.extend(&waiting.frame);
        self.file.write(&bytes).map(drop)
    }

    /// Throws away what the data plane answers.
    pub(crate) fn clear(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..ANSWERS {
            if self.file.read(&mut buffer).is_err() {
                return;
            }
        }
    }
}
