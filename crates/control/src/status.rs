//! Desired, applied, proven: what can be said of the hosts.

use crate::{Control, Hello, Measured, Micros, PortReport, STALE, session::Host};
use std::collections::BTreeMap;
use tenet_compile::{PortRow, PortState, Row, digests};
use tenet_model::{HostName, NetId, NetworkRef, PortRef};

/// A host: what it shall have and what it has.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// Its name.
    pub name: HostName,
    /// Whether it has a session.
    pub connected: bool,
    /// When the session began, or the last one ended.
    pub since: Micros,
    /// What its agent said of itself last.
    pub hello: Option<Hello>,
    /// Revision that last changed its rows.
    pub desired: u64,
    /// Last generation that it acknowledged.
    pub applied: Option<u64>,
    /// Last generation that it read back whole, and when.
    pub proven: Option<(u64, Micros)>,
    /// Why its last acknowledgement was a refusal.
    pub error: Option<String>,
    /// Its networks.
    pub networks: Vec<NetworkReport>,
    /// Its ports as desired, each with what it said of them.
    pub ports: Vec<(PortRow, Option<PortReport>)>,
    /// What it found wrong and could not put right.
    pub problems: Vec<String>,
    /// What it put right.
    pub repaired: Vec<String>,
    /// What it measured last, and when it said so.
    pub measured: Option<(Measured, Micros)>,
    /// Whether it is connected, what it read back lately is what is desired, and all its ports do what they shall.
    pub in_sync: bool,
}

/// A network on a host.
#[derive(Clone, Debug)]
pub struct NetworkReport {
    /// The network.
    pub network: NetworkRef,
    /// Its number.
    pub net: NetId,
    /// Newest desired row.
    pub desired: u64,
    /// Digest of the desired rows.
    pub digest: u64,
    /// What was read back: digest, rows, generation, time.
    pub proven: Option<(u64, u64, u64, Micros)>,
    /// Whether the digests are equal.
    pub in_sync: bool,
}

impl Control {
    /// All about one host.
    #[must_use]
    pub fn host_report(&mut self, name: &HostName, now: Micros) -> Option<HostReport> {
        let rows = self.plan().rows(name);
        let host = self.hosts().get_mut(name)?;
        let wanted = host.digests.get_or_insert_with(|| digests(&rows)).clone();
        let mut newest: BTreeMap<NetId, u64> = BTreeMap::new();
        let mut names: BTreeMap<NetId, NetworkRef> = BTreeMap::new();
        let mut ports = Vec::new();
        for (key, (row, generation)) in rows.0 {
            if let Some(net) = key.network() {
                let n = newest.entry(net).or_default();
                *n = (*n).max(generation);
            }
            match row {
                Row::Network(r) => drop(names.insert(r.id, r.name)),
                Row::Port(r) => {
                    let report = host.ports.get(&r.name).cloned();
                    ports.push((r, report));
                }
                Row::Host(_) | Row::Peer(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) => {}
            }
        }
        let networks: Vec<NetworkReport> = wanted
            .iter()
            .filter_map(|(net, digest)| {
                let proven = host.proven.get(net).map(|p| (p.digest, p.rows, p.generation, p.at));
                Some(NetworkReport {
                    network: names.get(net)?.clone(),
                    net: *net,
                    desired: newest.get(net).copied().unwrap_or(0),
                    digest: *digest,
                    in_sync: proven.is_some_and(|(d, ..)| d == *digest),
                    proven,
                })
            })
            .collect();
        // Before the first whole look, the acknowledgements of all its networks together say as much.
        let by_parts = || networks.iter().map(|n| n.proven.map(|(_, _, g, at)| (g, at))).min().flatten();
        let proven = host.proven_at.or_else(by_parts);
        let session = host.session.as_ref();
        let mut problems = host.problems.clone();
        if let Some(age) = host.unread(now) {
            problems.push(format!(
                "its agent is connected, but has not read the kernel's tables back for {} s: look at its log, or start it again",
                age / 1_000_000
            ));
        }
        let right = problems.is_empty()
            && networks.iter().all(|n| n.in_sync)
            && ports.iter().all(|(row, report)| report.as_ref().is_some_and(|r| as_desired(row, r)));
        Some(HostReport {
            name: name.clone(),
            connected: session.is_some(),
            since: session.map_or(host.gone_since, |s| s.since),
            hello: host.last_hello.clone(),
            desired: host.target,
            applied: host.applied,
            proven,
            error: host.error.clone(),
            in_sync: settled(host) && right,
            networks,
            ports,
            problems,
            repaired: host.repaired.iter().cloned().collect(),
            measured: host.measured.clone(),
        })
    }

    /// What a host said last of a port, and whether it has a session now.
    #[must_use]
    pub fn port_report(&self, host: &HostName, port: &PortRef) -> Option<(&PortReport, bool)> {
        let host = self.host(host)?;
        Some((host.ports.get(port)?, host.session.is_some()))
    }

    /// For metrics: how many revisions each host's acknowledged state lies behind what it shall have.
    #[must_use]
    pub fn lags(&self) -> Vec<(HostName, bool, u64)> {
        self.all_hosts()
            .map(|(name, h)| {
                (name.clone(), h.session.is_some(), h.target.saturating_sub(h.applied.unwrap_or(0)))
            })
            .collect()
    }

    /// The rows that a host shall have.
    #[must_use]
    pub fn rows(&self, host: &HostName) -> tenet_compile::Rows {
        self.plan().rows(host)
    }
}

fn settled(host: &Host) -> bool {
    host.session.as_ref().is_some_and(|s| s.has(u64::MAX - 1)) && host.error.is_none()
}

/// Whether a port's device is there and does what it shall.
fn as_desired(row: &PortRow, report: &PortReport) -> bool {
    report.present && report.state == state_name(row.state)
}

/// A port's state as agents and people call it.
#[must_use]
pub const fn state_name(state: PortState) -> &'static str {
    match state {
        PortState::Blocked => "blocked",
        PortState::Active => "active",
        PortState::Prepared => "prepared",
        PortState::Moved => "moved",
    }
}

impl Host {
    /// How long a connected agent has not read anything back, if that is too long.
    fn unread(&self, now: Micros) -> Option<Micros> {
        let session = self.session.as_ref()?;
        let whole = self.proven_at.map(|(_, at)| at);
        let last = self.proven.values().map(|p| p.at).chain(whole).max();
        let age = now.saturating_sub(last.unwrap_or(0).max(session.since));
        (age > STALE).then_some(age)
    }
}
