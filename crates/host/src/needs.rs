//! What this host's networks need of the kernel beside maps and programs.

use crate::plan;
use ipnet::{IpNet, Ipv6Net};
use std::{collections::BTreeSet, net::IpAddr};
use tenet_compile::{Delta, HostRow, RecordRow, Row, RowKey, Rows};
use tenet_model::Method;

/// What this host's networks need of the kernel beside maps and programs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Sockets for VXLAN at these UDP ports, by which the kernel joins segments. The port that is sent to stands first.
    pub vxlan: Vec<u16>,
    /// The same for Geneve.
    pub geneve: Vec<u16>,
    /// Ranges of IPv6 rewrite addresses of which one stands for an address here. Neighbours for which such a range is on
    /// link ask for its addresses by multicast, in groups that no NIC joins by itself (RFC 4291 §2.7.1).
    pub asked_for: BTreeSet<Ipv6Net>,
}

/// What these rows need. A method counts from the moment that a network is about to change to it: receivers are ready
/// before the first sender.
#[must_use]
pub fn needs(rows: &Rows) -> Needs {
    let mut needs = Needs::default();
    let Some(host) = plan::host_row(rows) else { return needs };
    for (row, _) in rows.0.values() {
        let network = match row {
            Row::Network(network) => network,
            Row::Record(record) => {
                needs.asked_for.extend(rewritten(host, record));
                continue;
            }
            Row::Host(_) | Row::Peer(_) | Row::Subnet(_) | Row::Route(_) | Row::Port(_) => continue,
        };
        for method in [Some(network.method), network.switching].into_iter().flatten() {
            match method {
                Method::Vxlan => needs.vxlan = ports(host, method, host.vxlan_port),
                Method::Geneve => needs.geneve = ports(host, method, host.geneve_port),
                Method::Nvgre | Method::Stt | Method::Rewrite => {}
            }
        }
    }
    needs
}

/// Whether a change can bear on what [`needs`] says, or on which hosts there are and what they send to each other: most
/// changes, as a VM's switch, are of records and ports only, and there may be hundreds of thousands of rows to look at.
#[must_use]
pub fn bears_on_hosts(rows: &Rows, delta: &Delta) -> bool {
    let bears = |row: &Row| match row {
        Row::Host(_) | Row::Peer(_) | Row::Network(_) => true,
        Row::Record(record) => record.rewrite_pa.or(record.other_rewrite_pa).is_some(),
        Row::Subnet(_) | Row::Route(_) | Row::Port(_) => false,
    };
    let before = |key: &RowKey| rows.0.get(key).is_some_and(|(row, _)| bears(row));
    delta.upserts.iter().any(|(row, _)| bears(row) || before(&row.key())) || delta.deletes.iter().any(before)
}

/// Where a method's frames are sent to, and where they may come as well.
fn ports(host: &HostRow, method: Method, sent: u16) -> Vec<u16> {
    let other = host.other_port.filter(|other| other.method == method).map(|other| other.port);
    [Some(sent), other].into_iter().flatten().collect()
}

/// The range of this host's from which a customer address has an IPv6 rewrite address here.
fn rewritten(host: &HostRow, record: &RecordRow) -> Option<Ipv6Net> {
    let places = [(Some(record.pa), record.rewrite_pa), (record.alt_pa, record.other_rewrite_pa)];
    let mut here = places.into_iter().filter(|(pa, _)| *pa == Some(host.pa)).filter_map(|(_, own)| own);
    let own = here.find_map(|own| if let IpAddr::V6(own) = own { Some(own) } else { None })?;
    host.pool.iter().find_map(|range| match range {
        IpNet::V6(range) if range.contains(&own) => Some(range.trunc()),
        IpNet::V4(_) | IpNet::V6(_) => None,
    })
}
