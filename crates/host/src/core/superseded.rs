//! A port that went elsewhere while this host was not told: the older claim goes quiet, and says so.

use super::HostCore;
use crate::input::Output;
use crate::message::{EventReport, Message};
use crate::plan;
use tenet_compile::{PortRow, PortState, Row, RowKey, Rows};
use tenet_tables::PORT_ACTIVE;

/// Kind of the report, as events' kinds are named.
const SUPERSEDED: &str = "superseded";

impl HostCore {
    /// What is to be said when `next` takes the place of the rows that this host has: ports that run here by those, with
    /// something on their device still, and are this host's no longer by the next.
    pub(super) fn superseded(&self, generation: u64, next: &Rows) -> Vec<Output> {
        let Some((had, rows)) = &self.state else { return Vec::new() };
        if generation < *had {
            return Vec::new();
        }
        let gone = plan::ports(rows).filter(|(row, _)| !next.0.contains_key(&key(row)));
        gone.filter(|(row, _)| self.runs_here(row))
            .map(|(row, since)| {
                let own = rows.0.values().find_map(|(r, _)| if let Row::Host(h) = r { Some(h.pa) } else { None });
                let record = next.0.values().find_map(|(r, since)| match r {
                    Row::Record(r) if r.net == row.net && r.port == row.name => Some((r, *since)),
                    _ => None,
                });
                let elsewhere = record.filter(|(r, _)| Some(r.pa) != own);
                let place = match elsewhere {
                    Some((record, newer)) => {
                        let peer = next.0.get(&RowKey::Peer(record.pa));
                        let name = match peer {
                            Some((Row::Peer(peer), _)) => format!("host {} ({})", peer.name, record.pa),
                            _ => record.pa.to_string(),
                        };
                        format!("it lives on {name} since generation {newer}")
                    }
                    None => format!("it is not this host's at generation {generation}"),
                };
                let text = format!(
                    "{}: {place}, and what is on {} here (generation {since}) goes quiet: end it if it is a second copy",
                    row.name, row.device
                );
                Output::Send(Message::Event(EventReport {
                    kind: SUPERSEDED,
                    port: row.name.to_string(),
                    vsid: row.vsid.number(),
                    mac: row.mac.to_string(),
                    ca: record.map(|(r, _)| r.ca),
                    pa: elsewhere.map(|(r, _)| r.pa),
                    text,
                }))
            })
            .collect()
    }

    /// Whether the port is live on a device that has something at its other end.
    fn runs_here(&self, row: &PortRow) -> bool {
        let Some(device) = self.devices.get(&row.device).filter(|d| d.carrier) else { return false };
        let kernel = self.actual.as_ref().and_then(|a| a.ports.get(&device.ifindex));
        match row.state {
            PortState::Active => true,
            PortState::Prepared => {
                self.activated.contains_key(&row.name) || kernel.is_some_and(|p| p.state == PORT_ACTIVE)
            }
            PortState::Blocked | PortState::Moved => false,
        }
    }
}

fn key(row: &PortRow) -> RowKey {
    RowKey::Port(row.net, row.name.clone())
}
