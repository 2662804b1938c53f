//! The rows of a host's state, deltas between two states, and the digest that proves them equal.

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};
use tenet_model::{Mac, Method, Name, NetId, NetworkRef, OtherPort, PortRef, SubnetPrefix, SubnetRef, Vsid};
use uuid::Uuid;

/// Names a row of a host's state.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RowKey {
    /// The host itself.
    Host,
    /// Another host, by provider address.
    Peer(IpAddr),
    /// A network that has a port here.
    Network(NetId),
    /// A subnet of such a network.
    Subnet(NetId, Vsid),
    /// A lookup record.
    Record(NetId, IpAddr),
    /// The best customer route to a prefix.
    Route(NetId, IpNet),
    /// A port that lives here, will live here, or has just left.
    Port(NetId, PortRef),
}

impl RowKey {
    /// The network whose digest covers the row, if one does.
    #[must_use]
    pub const fn network(&self) -> Option<NetId> {
        match self {
            Self::Host | Self::Peer(_) => None,
            Self::Network(n)
            | Self::Subnet(n, _)
            | Self::Record(n, _)
            | Self::Route(n, _)
            | Self::Port(n, _) => Some(*n),
        }
    }
}

/// The host itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRow {
    /// Its name.
    pub name: Name,
    /// Its provider address.
    pub pa: IpAddr,
    /// The site's UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The site's UDP port of Geneve.
    pub geneve_port: u16,
    /// A port at which it takes frames beside these, while one of them changes.
    pub other_port: Option<OtherPort>,
    /// Ranges of its rewrite addresses.
    pub pool: Vec<IpNet>,
}

/// Another host of at least one of this host's networks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRow {
    /// Its name.
    pub name: Name,
    /// Its provider address.
    pub pa: IpAddr,
    /// Networks of this host in which it may send from any customer address (an appliance lives there).
    pub any_source: Vec<NetId>,
}

/// A network that has a port here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkRow {
    /// Its number.
    pub id: NetId,
    /// Its name.
    pub name: NetworkRef,
    /// Its routing domain id.
    pub rdid: Uuid,
    /// Its method.
    pub method: Method,
    /// The method that it is about to have.
    pub switching: Option<Method>,
}

/// A subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetRow {
    /// Its network.
    pub net: NetId,
    /// Its number on the wire.
    pub vsid: Vsid,
    /// Its name.
    pub name: SubnetRef,
    /// Its prefixes with their gateways: IPv4 first.
    pub prefixes: Vec<SubnetPrefix>,
}

/// A lookup record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordRow {
    /// Its network.
    pub net: NetId,
    /// The customer address.
    pub ca: IpAddr,
    /// The port's MAC.
    pub mac: Mac,
    /// The port's subnet.
    pub vsid: Vsid,
    /// Provider address of the host where the port lives.
    pub pa: IpAddr,
    /// The second legal provider address while a migration runs.
    pub alt_pa: Option<IpAddr>,
    /// The network's method.
    pub method: Method,
    /// What stands for the customer address on the host where the port lives, if its network needs (or just needed) it.
    pub rewrite_pa: Option<IpAddr>,
    /// What stands for it on the other host while a migration runs.
    pub other_rewrite_pa: Option<IpAddr>,
    /// The port.
    pub port: PortRef,
}

/// The best customer route to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteRow {
    /// Its network.
    pub net: NetId,
    /// Destination.
    pub prefix: IpNet,
    /// Next hop's customer address; none: on link (a subnet's own prefix).
    pub next_hop: Option<IpAddr>,
    /// Its metric.
    pub metric: u32,
}

/// What a port may do on this host; the `PORT_*` states of the kernel's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// Neither send nor receive yet.
    Blocked,
    /// Lives here.
    Active,
    /// Destination of a migration; the first frame activates it.
    Prepared,
    /// Source of a migration after the switch.
    Moved,
}

/// A port on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRow {
    /// Its network.
    pub net: NetId,
    /// Its name.
    pub name: PortRef,
    /// Its subnet.
    pub vsid: Vsid,
    /// Its MAC.
    pub mac: Mac,
    /// The device that it is.
    pub device: String,
    /// Whether the agent makes, owns and removes that device, a tap.
    pub tap: bool,
    /// Queues that the VM may open of that tap.
    pub queues: u16,
    /// What it may do.
    pub state: PortState,
    /// The other host's provider address while a migration of it runs.
    pub peer_pa: Option<IpAddr>,
    /// Whether source MAC and address must be its own.
    pub security: bool,
}

/// One line of a host's state, without the generation that last changed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Row {
    /// The host itself.
    Host(HostRow),
    /// Another host.
    Peer(PeerRow),
    /// A network.
    Network(NetworkRow),
    /// A subnet.
    Subnet(SubnetRow),
    /// A lookup record.
    Record(RecordRow),
    /// A route.
    Route(RouteRow),
    /// A port.
    Port(PortRow),
}

impl Row {
    /// The row's key.
    #[must_use]
    pub fn key(&self) -> RowKey {
        match self {
            Self::Host(_) => RowKey::Host,
            Self::Peer(r) => RowKey::Peer(r.pa),
            Self::Network(r) => RowKey::Network(r.id),
            Self::Subnet(r) => RowKey::Subnet(r.net, r.vsid),
            Self::Record(r) => RowKey::Record(r.net, r.ca),
            Self::Route(r) => RowKey::Route(r.net, r.prefix),
            Self::Port(r) => RowKey::Port(r.net, r.name.clone()),
        }
    }
}

/// A host's state: each row with the generation that last changed it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows(pub BTreeMap<RowKey, (Row, u64)>);

/// What turns the state of one generation into that of a later one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    /// Generation that the receiver must have.
    pub base: u64,
    /// Generation that it has then.
    pub generation: u64,
    /// Rows to write, each with the generation that last changed it.
    pub upserts: Vec<(Row, u64)>,
    /// Rows to delete.
    pub deletes: Vec<RowKey>,
}

impl Rows {
    /// The changes that turn `self` into `next`.
    #[must_use]
    pub fn delta_to(&self, base: u64, next: &Self, generation: u64) -> Delta {
        Delta {
            base,
            generation,
            upserts: next
                .0
                .iter()
                .filter(|(k, v)| self.0.get(k) != Some(v))
                .map(|(_, v)| v.clone())
                .collect(),
            deletes: self.0.keys().filter(|k| !next.0.contains_key(k)).cloned().collect(),
        }
    }

    /// Applies a delta; applying it twice changes nothing more.
    pub fn apply(&mut self, delta: &Delta) {
        for key in &delta.deletes {
            self.0.remove(key);
        }
        for (row, generation) in &delta.upserts {
            self.0.insert(row.key(), (row.clone(), *generation));
        }
    }
}

/// The digest of what the kernel holds of each network: subnets, records and routes with their generations.
///
/// SHA-256 over one text line a row in key order, cut to 64 bits. Covers only what a host can read back from its
/// maps, so that the controller's digest of the desired rows and the agent's digest of the kernel's are comparable:
/// `subnet VSID PREFIX GATEWAY (once more for a second prefix) GEN`,
/// `record CA MAC VSID PA ALT METHOD REWRITE OTHERREWRITE GEN`, `route PREFIX NEXTHOP METRIC GEN`.
#[must_use]
pub fn digests(rows: &Rows) -> BTreeMap<NetId, u64> {
    let mut hashers: BTreeMap<NetId, Sha256> = BTreeMap::new();
    let mut line = String::new();
    for (key, (row, generation)) in &rows.0 {
        line.clear();
        let written = match row {
            Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Port(_) => continue,
            Row::Subnet(r) => {
                let prefixes = r.prefixes.iter().map(|p| format!("{} {} ", p.prefix, p.gateway));
                writeln!(line, "subnet {} {}{generation}", r.vsid, prefixes.collect::<String>())
            }
            Row::Record(r) => {
                let text = |a: Option<IpAddr>| a.map_or_else(String::new, |a| a.to_string());
                let (alt, rewrite, other) = (text(r.alt_pa), text(r.rewrite_pa), text(r.other_rewrite_pa));
                writeln!(
                    line,
                    "record {} {} {} {} {alt} {} {rewrite} {other} {generation}",
                    r.ca, r.mac, r.vsid, r.pa, r.method
                )
            }
            Row::Route(r) => {
                let hop = r.next_hop.map_or_else(String::new, |a| a.to_string());
                writeln!(line, "route {} {hop} {} {generation}", r.prefix, r.metric)
            }
        };
        if let (Ok(()), Some(net)) = (written, key.network()) {
            hashers.entry(net).or_default().update(line.as_bytes());
        }
    }
    hashers
        .into_iter()
        .map(|(net, h)| {
            let full = h.finalize();
            (net, full.iter().take(8).fold(0u64, |n, b| n << 8 | u64::from(*b)))
        })
        .collect()
}
