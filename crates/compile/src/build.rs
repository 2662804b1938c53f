//! Rows from objects.

use crate::{
    NetworkRow, PeerRow, PortRow, PortState, RecordRow, RouteRow, Row, RowKey, SubnetRow,
    place::{Place, Placed},
    row::HostRow,
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};
use tenet_model::{Desired, Host, HostName, NetId, NetworkRef, Site, Versioned};

/// Rows by key, each with the generation that last changed it.
pub(crate) type Table = BTreeMap<RowKey, (Row, u64)>;

/// Hosts of a network, each with the latest write of a port there that may send from any address.
pub(crate) type Members = BTreeMap<HostName, Option<u64>>;

pub(crate) fn add(table: &mut Table, row: Row, generation: u64) {
    table.insert(row.key(), (row, generation));
}

/// A network's own row, its subnets and its routes.
pub(crate) fn network(desired: &Desired, name: &NetworkRef, table: &mut Table) {
    let Some(Versioned { value: network, revision }) = desired.networks.get(name) else { return };
    let net = network.id;
    let (rdid, method, switching) = (network.rdid, network.method, network.switching);
    let row = NetworkRow { id: net, name: name.clone(), rdid, method, switching };
    add(table, Row::Network(row), *revision);
    for (name, Versioned { value: s, revision }) in desired.subnets_of(name) {
        let mut prefixes = s.prefixes.clone();
        prefixes.sort_by_key(|p| p.prefix);
        for own in &prefixes {
            let on_link = RouteRow { net, prefix: own.prefix, next_hop: None, metric: 0 };
            add(table, Row::Route(on_link), *revision);
        }
        let row = SubnetRow { net, vsid: s.vsid, name: name.clone(), prefixes };
        add(table, Row::Subnet(row), *revision);
    }
    // In order of prefix, then next hop: with equal metrics the lowest next hop stays.
    for Versioned { value: r, revision } in desired.routes_of(name) {
        let row = RouteRow { net, prefix: r.prefix, next_hop: Some(r.next_hop), metric: r.metric };
        match table.entry(RowKey::Route(net, r.prefix)) {
            Entry::Vacant(place) => drop(place.insert((Row::Route(row), *revision))),
            Entry::Occupied(mut best) => {
                if better(&row, &best.get().0) {
                    best.insert((Row::Route(row), *revision));
                }
            }
        }
    }
}

/// Whether a customer route beats what is there; what is on link stays.
const fn better(route: &RouteRow, best: &Row) -> bool {
    match best {
        Row::Route(best) => best.next_hop.is_some() && route.metric < best.metric,
        Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Port(_) => {
            true
        }
    }
}

/// A port's lookup records.
pub(crate) fn records<'p>(placed: &'p Placed<'_>) -> impl Iterator<Item = (Row, u64)> + 'p {
    placed.port.addresses.iter().map(|ca| {
        let row = RecordRow {
            net: placed.net,
            ca: *ca,
            mac: placed.port.mac,
            vsid: placed.vsid,
            pa: placed.pa,
            alt_pa: placed.alt_pa,
            method: placed.method,
            rewrite_pa: placed.rewrite.get(ca).copied(),
            other_rewrite_pa: placed.other_rewrite.get(ca).copied(),
            port: placed.name().clone(),
        };
        (Row::Record(row), placed.record_revision)
    })
}

/// The row of a port on one of its hosts.
pub(crate) fn port(placed: &Placed<'_>, place: &Place, blocked: bool) -> (Row, u64) {
    let state = match place.state {
        PortState::Active if blocked && placed.port.host.as_ref() == Some(&place.host) => PortState::Blocked,
        state => state,
    };
    let row = PortRow {
        net: placed.net,
        name: placed.name().clone(),
        vsid: placed.vsid,
        mac: placed.port.mac,
        device: place.device.clone(),
        tap: place.tap,
        queues: placed.port.queues,
        state,
        peer_pa: place.peer_pa,
        security: placed.port.security,
    };
    (Row::Port(row), placed.port_revision)
}

/// The host's own row.
pub(crate) fn host(desired: &Desired, host: &Versioned<Host>) -> (Row, u64) {
    let site = &desired.site.value;
    let Site { vxlan_port, geneve_port, .. } = *site;
    let (name, pa, pool) = (host.value.name.clone(), host.value.pa, host.value.rewrite_pool.clone());
    let row = HostRow { name, pa, vxlan_port, geneve_port, other_port: site.other_port(), pool };
    (Row::Host(row), host.revision.max(desired.site.revision))
}

/// The other hosts of a host's networks.
pub(crate) fn peers<'m>(
    desired: &Desired,
    host: &HostName,
    networks: impl Iterator<Item = (NetId, &'m Members)>,
    table: &mut Table,
) {
    let mut peers: BTreeMap<&HostName, (Vec<NetId>, u64)> = BTreeMap::new();
    for (net, members) in networks {
        for (member, open) in members.iter().filter(|(member, _)| *member != host) {
            let (any_source, revision) = peers.entry(member).or_default();
            if let Some(open) = open {
                any_source.push(net);
                *revision = (*revision).max(*open);
            }
        }
    }
    for (name, (mut any_source, revision)) in peers {
        let Some(peer) = desired.hosts.get(name) else { continue };
        any_source.sort_unstable();
        let pa: IpAddr = peer.value.pa;
        add(table, Row::Peer(PeerRow { name: name.clone(), pa, any_source }), revision.max(peer.revision));
    }
}
