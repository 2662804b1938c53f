//! The largest packet that a VM may send.

use crate::plan::{Uplink, host_row, records_of};
use std::{collections::BTreeMap, net::IpAddr};
use tenet_compile::{NetworkRow, Rows};
use tenet_model::{Family, Method, NetId};

/// MTU taken for an uplink that is not there, until it is.
const DEFAULT_MTU: u32 = 1500;
/// What an IPv6 link must carry (RFC 8200 §5).
const LEAST_IPV6: u16 = 1280;

/// Largest inner IP packet of a network on this host.
///
/// It is that of the narrowest path to another host of the network, as there is no choice by packet. While the method
/// changes, both must fit.
pub(crate) fn port_mtu(
    rows: &Rows,
    net: NetId,
    network: Option<&NetworkRow>,
    uplink: Option<Uplink>,
    paths: &BTreeMap<IpAddr, u16>,
) -> u16 {
    let mtu = uplink.map_or(DEFAULT_MTU, |u| u.mtu);
    let Some(own) = host_row(rows).map(|h| h.pa) else { return 0 };
    let peers = records_of(rows, net).flat_map(|(r, _)| [Some(r.pa), r.alt_pa]).flatten();
    let narrowest = peers.filter_map(|pa| paths.get(&pa)).map(|path| u32::from(*path)).fold(mtu, u32::min);
    let outer = Family::of(&own);
    let methods = network.map_or((Method::default(), None), |n| (n.method, n.switching));
    let overhead = [Some(methods.0), methods.1].into_iter().flatten().map(|m| m.overhead(outer)).max();
    u16::try_from(narrowest.saturating_sub(overhead.unwrap_or(0).into())).unwrap_or(u16::MAX)
}

/// What is wrong with a network's largest packet, if something is.
pub(crate) fn too_small(rows: &Rows, net: NetId, network: Option<&NetworkRow>, mtu: u16) -> Option<String> {
    if mtu >= LEAST_IPV6 || !records_of(rows, net).any(|(r, _)| r.ca.is_ipv6()) {
        return None;
    }
    let name = network.map_or_else(|| format!("network {}", net.0), |n| format!("network {}", n.name));
    Some(format!(
        "{name} has IPv6 addresses, but the provider network leaves {mtu} bytes for a packet of it, and IPv6 needs \
         {LEAST_IPV6}: raise the MTU of the provider network"
    ))
}
