//! The core's messages as the protocol's.

use std::time::{SystemTime, UNIX_EPOCH};
use tenet_api::agent::{self, AgentMessage, agent_message::Message as M};
use tenet_host::{Message, NetworkProof, PortStatus};
use tenet_tables::Counters;

/// A message of the protocol.
pub(crate) fn message(message: Message) -> AgentMessage {
    wrap(match message {
        Message::Ack(ack) => M::Ack(agent::Ack {
            generation: ack.generation,
            error: ack.error,
            networks: ack.networks.iter().map(proof).collect(),
            ports: ack.ports.into_iter().map(status).collect(),
        }),
        Message::Resync { reason } => M::Resync(agent::Resync { reason }),
        Message::Proof(p) => M::Proof(agent::Proof {
            generation: p.generation,
            networks: p.networks.iter().map(proof).collect(),
            ports: p.ports.into_iter().map(status).collect(),
            repaired: p.repaired,
            problems: p.problems,
        }),
        Message::PortActivated(port) => M::PortActivated(agent::PortActivated { port: port.to_string() }),
        Message::Event(e) => M::Event(agent::Event {
            kind: e.kind.to_owned(),
            port: e.port,
            vsid: e.vsid,
            mac: e.mac,
            ca: e.ca.map_or_else(String::new, |a| a.to_string()),
            pa: e.pa.map_or_else(String::new, |a| a.to_string()),
            time_ms: now_ms(),
            text: e.text,
        }),
    })
}

pub(crate) const fn wrap(message: M) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

fn proof(p: &NetworkProof) -> agent::NetworkProof {
    agent::NetworkProof { net: p.net.0, digest: p.digest, rows: p.rows }
}

fn status(p: PortStatus) -> agent::PortStatus {
    agent::PortStatus {
        port: p.port.to_string(),
        present: p.present,
        carrier: p.carrier,
        ifindex: p.ifindex,
        mtu: p.mtu.into(),
        state: p.state.to_owned(),
        detail: p.detail,
    }
}

/// What the programs counted at a port or uplink. Every field is named, so that a new one cannot be left out.
pub(crate) fn counters(port: String, counted: Counters) -> agent::PortCounters {
    let Counters {
        tx_frames,
        tx_bytes,
        rx_frames,
        rx_bytes,
        redirected,
        answered,
        icmp_errors,
        flooded,
        slow,
        clamped,
    } = counted;
    agent::PortCounters {
        port,
        tx_frames,
        tx_bytes,
        rx_frames,
        rx_bytes,
        redirected,
        answered,
        icmp_errors,
        flooded,
        slow,
        clamped,
        ..agent::PortCounters::default()
    }
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
