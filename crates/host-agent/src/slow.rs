//! STT's slow device and the thread at its far end: made once something on this host crosses by STT.

use crate::session::chain;
use tenet_datapath::{Datapath, SlowPath};
use tenet_hostnet::Links;
use tenet_tables::{METHOD_STT, PROBE_VSID, image::Image, image::Operation};

/// The slow device, as far as it is needed.
#[derive(Default)]
pub(crate) struct Slow {
    /// Whether a row named STT.
    wanted: bool,
    /// Numbers of its ends, or why there is none.
    made: Option<Result<(u32, u32), String>>,
    /// Puts frames together. Without it the data plane goes on with all that it can do itself.
    path: Option<SlowPath>,
}

impl Slow {
    /// Takes note of rows that are written.
    pub(crate) fn notice(&mut self, operations: &[Operation]) {
        let stt = u32::from(METHOD_STT);
        self.wanted |= operations.iter().any(|o| match o {
            Operation::Subnet(_, Some(s)) => s.method == stt,
            Operation::Record(_, Some(r)) => r.method == METHOD_STT,
            // The agents' probes try every method, whatever the networks use.
            Operation::Mac(k, Some(m)) => m.method == stt && k.vsid != PROBE_VSID,
            _ => false,
        });
    }

    /// Takes note of rows that are there, and of a device that an earlier run made.
    pub(crate) fn notice_all(&mut self, image: &Image) {
        let stt = u32::from(METHOD_STT);
        self.wanted |= image.config.is_some_and(|config| config.slow != 0)
            || image.subnets.values().any(|s| s.method == stt)
            || image.records.values().any(|r| r.method == METHOD_STT);
    }

    /// Makes the device if it is wanted and not there; whether the list of devices changed by it. A failure is told
    /// once.
    pub(crate) fn make(&mut self, datapath: &Datapath, links: &Links) -> bool {
        if !self.wanted || self.made.is_some() {
            return false;
        }
        self.renew(datapath, links);
        matches!(self.made, Some(Ok(_)))
    }

    /// Puts the device right, if there is one.
    pub(crate) fn restore(&mut self, datapath: &Datapath, links: &Links) {
        if self.made.is_some() {
            self.renew(datapath, links);
        }
    }

    fn renew(&mut self, datapath: &Datapath, links: &Links) {
        let made = datapath.ensure_slow().map_err(|e| chain(&e));
        if self.made.as_ref() == Some(&made) && (self.path.is_some() || made.is_err()) {
            return;
        }
        self.path = None;
        match &made {
            Ok((near, far)) => match SlowPath::start(links.netns(), *far, datapath.bpffs()) {
                Ok(path) => {
                    tracing::info!(near, far, "STT frames that come in odd parts are put together here");
                    self.path = Some(path);
                }
                Err(cause) => tracing::warn!(%cause, "STT frames that come in odd parts are lost"),
            },
            Err(cause) => {
                tracing::warn!(%cause, "no slow device for STT: bundles of datagrams and odd parts are lost")
            }
        }
        self.made = Some(made);
    }

    /// Number of the end that the data plane sends to.
    pub(crate) fn near(&self) -> Option<u32> {
        match self.made {
            Some(Ok((near, _))) => Some(near),
            _ => None,
        }
    }

    /// Name, explanation and figure of the slow path's counters.
    pub(crate) fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.path.as_ref().map(SlowPath::counters).unwrap_or_default()
    }
}
