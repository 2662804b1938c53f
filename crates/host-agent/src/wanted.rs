//! What the controller wants of this host: taken, kept on disk, and refused where it is not understood.

use crate::agent::Agent;
use crate::cache::Cache;
use crate::convert;
use crate::taps::{TapWish, wishes};
use crate::vms::prepared;
use std::collections::BTreeSet;
use std::io;
use tenet_api::agent::{self, agent_message};
use tenet_compile::{Delta, Row};
use tenet_host::Input;

impl Agent {
    pub(crate) fn full(&mut self, full: agent::Full) {
        let generation = full.generation;
        match full.into_rows() {
            Ok(rows) => {
                self.foresee(&mut rows.0.values().map(|(row, _)| row));
                self.save(|cache| cache.write_full(generation, &rows));
                let (from, before, count) = (self.core.generation(), self.applied, rows.0.len());
                let prepared = prepared(rows.0.values().map(|(row, _)| row));
                self.feed(Input::Full { generation, rows });
                self.drop_taps();
                self.prepared(prepared);
                self.give_placeholders();
                self.expect_drains();
                tracing::info!(
                    generation,
                    from,
                    rows = count,
                    writes = self.applied - before,
                    "full state applied"
                );
            }
            Err(cause) => {
                tracing::error!(generation, %cause, "the full state is not understood");
                self.refuse(generation, &cause);
            }
        }
    }

    pub(crate) fn delta(&mut self, delta: agent::Delta) {
        let generation = delta.generation;
        match Delta::try_from(delta) {
            Ok(delta) => {
                self.foresee(&mut delta.upserts.iter().map(|(row, _)| row));
                let fits = delta.base == self.core.generation();
                let mut afresh = false;
                if fits {
                    self.save(|cache| cache.append(&delta).map(|a| afresh = a));
                }
                let (base, rows, before) =
                    (delta.base, delta.upserts.len() + delta.deletes.len(), self.applied);
                let prepared = prepared(delta.upserts.iter().map(|(row, _)| row));
                self.feed(Input::Delta(delta));
                self.drop_taps();
                self.prepared(prepared);
                self.give_placeholders();
                self.expect_drains();
                if afresh {
                    let (generation, rows) =
                        (self.core.generation(), self.core.rows().cloned().unwrap_or_default());
                    self.save(|cache| cache.write_full(generation, &rows));
                }
                tracing::info!(generation, base, rows, writes = self.applied - before, "change applied");
            }
            Err(cause) => {
                tracing::error!(generation, %cause, "the change is not understood");
                self.refuse(generation, &cause);
            }
        }
    }

    fn refuse(&mut self, generation: u64, cause: &dyn std::fmt::Display) {
        let error = format!("the state is not understood by this version of the agent: {cause}");
        self.send(convert::wrap(agent_message::Message::Ack(agent::Ack {
            generation,
            error,
            ..Default::default()
        })));
    }

    fn foresee(&mut self, rows: &mut dyn Iterator<Item = &Row>) {
        let rows: Vec<&Row> = rows.collect();
        let foreseen = self.kernel.foresee(&mut device_names(rows.iter().copied()));
        // Those that are there, as far as is known, need not be looked for each time.
        let there: BTreeSet<TapWish> = self.core.taps().map(TapWish::from).collect();
        let mut new = wishes(rows.into_iter());
        new.retain(|wish| !there.contains(wish) || self.taps.contains_key(&wish.device));
        self.make_taps(&new);
        if foreseen {
            self.look_at_devices();
        }
    }

    fn save(&mut self, write: impl FnOnce(&mut Cache) -> io::Result<()>) {
        if let Err(cause) = write(&mut self.cache) {
            tracing::error!(%cause, "the state cannot be kept on disk; a restart will need the controller");
        }
    }
}

/// The devices that these rows name.
pub(crate) fn device_names<'a>(rows: impl Iterator<Item = &'a Row>) -> impl Iterator<Item = &'a str> {
    rows.filter_map(|row| match row {
        Row::Port(p) => Some(p.device.as_str()),
        Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) => {
            None
        }
    })
}
