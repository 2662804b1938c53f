//! A host's session: what it was sent, what it has yet to get, and what it said.

use crate::{Measured, Micros};
use std::collections::{BTreeMap, VecDeque};
use tenet_compile::{Delta, Row, RowKey, Rows};
use tenet_model::{NetId, PortRef};

/// Names a session; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// What an agent says of itself first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// The agent's version.
    pub version: String,
    /// Generation of the state that it has.
    pub generation: u64,
    /// How programs are attached.
    pub hook: String,
    /// Its uplinks.
    pub uplinks: Vec<String>,
    /// MTU of its uplink.
    pub uplink_mtu: u32,
    /// Its kernel.
    pub kernel: String,
    /// Where it looks for QEMU's monitors; empty: nowhere, or it does not say.
    pub qmp_dir: String,
}

/// What was read back of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkProof {
    /// The network.
    pub net: NetId,
    /// As `compile::digests`.
    pub digest: u64,
    /// Rows read back.
    pub rows: u64,
}

/// How a port is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortReport {
    /// The port.
    pub port: PortRef,
    /// Its device exists and carries the program.
    pub present: bool,
    /// Its device has a carrier.
    pub carrier: bool,
    /// Its device's index.
    pub ifindex: u32,
    /// Largest inner packet.
    pub mtu: u32,
    /// State as the kernel has it.
    pub state: String,
    /// What is missing.
    pub detail: String,
}

/// A message stands in the kernel, or does not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// Its generation.
    pub generation: u64,
    /// Why it does not.
    pub error: Option<String>,
    /// Networks read back; those that it concerned, at least.
    pub networks: Vec<NetworkProof>,
    /// Ports, likewise.
    pub ports: Vec<PortReport>,
}

/// A full read of the kernel's maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// Generation of the agent's wanted state.
    pub generation: u64,
    /// All networks.
    pub networks: Vec<NetworkProof>,
    /// All ports.
    pub ports: Vec<PortReport>,
    /// What differed and was put right.
    pub repaired: Vec<String>,
    /// What is wrong and was not.
    pub problems: Vec<String>,
}

/// What a host is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Its full state.
    Full {
        /// Its generation.
        generation: u64,
        /// Its rows.
        rows: Rows,
    },
    /// What changed; base and generation are equal where only a hold ended.
    Delta(Delta),
}

/// What a host has yet to get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Pending {
    /// Everything.
    Full,
    /// These rows (none: deleted).
    Rows(BTreeMap<RowKey, Option<(Row, u64)>>),
}

#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    pub(crate) generation: u64,
    pub(crate) sent_at: Micros,
    /// Lowest revision whose effect is in the message.
    pub(crate) oldest: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) since: Micros,
    pub(crate) pending: Pending,
    /// Lowest revision whose effect is pending.
    pub(crate) oldest: Option<u64>,
    pub(crate) in_flight: Option<InFlight>,
    /// Generation of the last message sent.
    pub(crate) sent: u64,
    /// After a refusal: nothing is sent before this.
    pub(crate) not_before: Micros,
}

impl Session {
    pub(crate) const fn new(id: SessionId, now: Micros) -> Self {
        Self {
            id,
            since: now,
            pending: Pending::Full,
            oldest: Some(0),
            in_flight: None,
            sent: 0,
            not_before: 0,
        }
    }

    /// Gathers changed rows.
    pub(crate) fn gather(&mut self, change: &Delta, revision: u64) {
        self.oldest = Some(self.oldest.map_or(revision, |o| o.min(revision)));
        let Pending::Rows(rows) = &mut self.pending else { return };
        for key in &change.deletes {
            rows.insert(key.clone(), None);
        }
        for (row, generation) in &change.upserts {
            rows.insert(row.key(), Some((row.clone(), *generation)));
        }
    }

    /// Everything will be sent again.
    pub(crate) fn start_over(&mut self, not_before: Micros) {
        let in_flight = self.in_flight.take().map(|m| m.oldest);
        self.oldest = Some(self.oldest.into_iter().chain(in_flight).min().unwrap_or(0));
        self.pending = Pending::Full;
        self.not_before = not_before;
    }

    /// The next message, if one is due; `state` gives the host's rows.
    pub(crate) fn next(
        &mut self,
        now: Micros,
        revision: u64,
        state: impl FnOnce() -> Rows,
    ) -> Option<Message> {
        if self.in_flight.is_some() || now < self.not_before {
            return None;
        }
        let message = match &mut self.pending {
            Pending::Full => Message::Full { generation: revision, rows: state() },
            Pending::Rows(rows) if rows.is_empty() => {
                self.oldest = None;
                return None;
            }
            Pending::Rows(rows) => {
                let mut delta = Delta { base: self.sent, generation: revision, ..Delta::default() };
                for (key, row) in std::mem::take(rows) {
                    match row {
                        Some(row) => delta.upserts.push(row),
                        None => delta.deletes.push(key),
                    }
                }
                Message::Delta(delta)
            }
        };
        self.pending = Pending::Rows(BTreeMap::new());
        self.sent = revision;
        let oldest = self.oldest.take().unwrap_or(revision);
        self.in_flight = Some(InFlight { generation: revision, sent_at: now, oldest });
        Some(message)
    }

    /// Whether the host has everything up to a revision.
    pub(crate) fn has(&self, revision: u64) -> bool {
        let unacknowledged = self.oldest.into_iter().chain(self.in_flight.as_ref().map(|m| m.oldest)).min();
        unacknowledged.is_none_or(|o| o > revision)
    }
}

/// What is known of a network on a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proven {
    pub(crate) digest: u64,
    pub(crate) rows: u64,
    pub(crate) generation: u64,
    pub(crate) at: Micros,
}

/// What is known of a host, with or without a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) session: Option<Session>,
    /// When the last session ended (or the controller started).
    pub(crate) gone_since: Micros,
    /// The last session's hello.
    pub(crate) last_hello: Option<Hello>,
    pub(crate) applied: Option<u64>,
    pub(crate) proven: BTreeMap<NetId, Proven>,
    pub(crate) proven_at: Option<(u64, Micros)>,
    pub(crate) ports: BTreeMap<PortRef, PortReport>,
    pub(crate) error: Option<String>,
    pub(crate) problems: Vec<String>,
    pub(crate) repaired: VecDeque<String>,
    pub(crate) measured: Option<(Measured, Micros)>,
    /// Revision that last changed its rows.
    pub(crate) target: u64,
    /// Digests of its desired rows, while they are known.
    pub(crate) digests: Option<BTreeMap<NetId, u64>>,
}

impl Host {
    /// Takes what was read back; `whole`: what is not named is no longer there.
    pub(crate) fn read_back(
        &mut self,
        now: Micros,
        generation: u64,
        networks: &[NetworkProof],
        ports: Vec<PortReport>,
        whole: bool,
    ) {
        if whole {
            self.proven.clear();
            self.ports.clear();
            self.proven_at = Some((generation, now));
        }
        for n in networks {
            self.proven.insert(n.net, Proven { digest: n.digest, rows: n.rows, generation, at: now });
        }
        for p in ports {
            self.ports.insert(p.port.clone(), p);
        }
    }
}
