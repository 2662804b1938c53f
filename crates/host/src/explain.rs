//! A difference between kernel and wanted state in plain words.

use std::net::IpAddr;
use tenet_compile::{Row, RowKey, Rows};
use tenet_model::NetId;
use tenet_tables::image::{Image, Operation};

/// Says what differed, for the write that puts it right.
pub(crate) fn explain(operation: &Operation, actual: &Image, rows: &Rows) -> String {
    let network = |net: u32| match rows.0.get(&RowKey::Network(NetId(net))) {
        Some((Row::Network(n), _)) => n.name.to_string(),
        _ => format!("network {net}"),
    };
    let ip = |a| IpAddr::from(a);
    let (what, had, wants) = match operation {
        Operation::Configure(_) => ("the host's configuration".to_owned(), actual.config.is_some(), true),
        Operation::Peer(k, v) => {
            let scope = if k.net == 0 { String::new() } else { format!(" in {}", network(k.net)) };
            (format!("the peer {}{scope}", ip(k.pa)), actual.peers.contains_key(k), v.is_some())
        }
        Operation::Subnet(k, v) => {
            (format!("virtual subnet {k}"), actual.subnets.contains_key(k), v.is_some())
        }
        Operation::Pool(k, v) => (
            format!("the range {} of rewrite addresses", ip(k.0.pa)),
            actual.pools.contains_key(k),
            v.is_some(),
        ),
        Operation::Rewrite(k, v) => {
            (format!("the rewrite address {}", ip(k.pa)), actual.rewrites.contains_key(k), v.is_some())
        }
        Operation::Record(k, v) => (
            format!("the lookup record of {} in {}", ip(k.ca), network(k.net)),
            actual.records.contains_key(k),
            v.is_some(),
        ),
        Operation::Mac(k, v) => {
            let mac = k.mac.octets().map(|o| format!("{o:02x}")).join(":");
            (format!("MAC {mac} of virtual subnet {}", k.vsid), actual.macs.contains_key(k), v.is_some())
        }
        Operation::Flood(k, v) => (
            format!("receiver {} of broadcasts in virtual subnet {}", k.index, k.vsid),
            actual.flood.contains_key(k),
            v.is_some(),
        ),
        Operation::Route(k, v) => {
            let len = if k.ca.as_v4_word().is_some() { k.len.saturating_sub(96) } else { k.len };
            let what = format!("the route to {}/{len} in {}", ip(k.ca), network(k.net));
            (what, actual.routes.contains_key(k), v.is_some())
        }
        Operation::Port(k, v) => {
            (format!("the port at interface {k}"), actual.ports.contains_key(k), v.is_some())
        }
    };
    match (had, wants) {
        (false, _) => format!("{what} was missing: written again"),
        (true, true) => format!("{what} differed: corrected"),
        (true, false) => format!("{what} is nobody's: removed"),
    }
}
