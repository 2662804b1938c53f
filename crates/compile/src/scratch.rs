//! A host's state from scratch: slow and plain, what the [`crate::Compiler`] is measured by.

use crate::{
    Rows,
    build::{self, Members},
    place::Placed,
};
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{Desired, HostName, NetworkRef, PortRef};

/// What a host needs to know of the site; nothing if there is no such host.
///
/// Blocked ports neither send nor receive on their own host yet.
#[must_use]
pub fn compile(desired: &Desired, host: &HostName, blocked: &BTreeSet<PortRef>) -> Rows {
    let mut rows = Rows::default();
    let Some(own) = desired.hosts.get(host) else { return rows };
    let mut networks: BTreeMap<NetworkRef, Vec<Placed<'_>>> = BTreeMap::new();
    for placed in desired.ports.values().filter_map(|port| Placed::new(desired, port)) {
        networks.entry(placed.network.clone()).or_default().push(placed);
    }
    networks.retain(|_, ports| ports.iter().flat_map(|p| &p.places).any(|place| place.host == *host));
    let table = &mut rows.0;
    let (row, generation) = build::host(desired, own);
    build::add(table, row, generation);
    let mut members = Vec::new();
    for (name, ports) in &networks {
        build::network(desired, name, table);
        let mut hosts = Members::new();
        for placed in ports {
            build::records(placed).for_each(|(row, generation)| build::add(table, row, generation));
            for place in &placed.places {
                let open = hosts.entry(place.host.clone()).or_default();
                *open = (*open).max(placed.open());
                if place.host == *host {
                    let (row, generation) = build::port(placed, place, blocked.contains(placed.name()));
                    build::add(table, row, generation);
                }
            }
        }
        members.extend(ports.first().map(|p| (p.net, hosts)));
    }
    build::peers(desired, host, members.iter().map(|(net, hosts)| (*net, hosts)), table);
    rows
}
