//! The states of all hosts, kept up to date change by change.
//!
//! A network's rows are held once, whatever the number of its hosts, and a change of ports touches only those ports'
//! rows. Changes of a host's address, of subnets and of routes build the networks concerned anew.

use crate::{
    Delta, Row, RowKey, Rows,
    build::{self, Members, Table},
    place::Placed,
};
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{Desired, Host, HostName, Key, NetId, NetworkRef, Operation, PortRef, Versioned};

/// What all hosts have, as of one revision.
///
/// It looks at nothing but its arguments, and [`Compiler::rows`] always equals [`crate::compile`].
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    networks: BTreeMap<NetworkRef, NetworkState>,
    hosts: BTreeMap<HostName, HostState>,
    ports: BTreeMap<PortRef, PortState>,
    blocked: BTreeSet<PortRef>,
}

/// A network with ports.
#[derive(Clone, Debug)]
struct NetworkState {
    id: NetId,
    /// Its own row, subnets, records and routes.
    rows: Table,
    ports: BTreeSet<PortRef>,
    members: Members,
}

/// A host.
#[derive(Clone, Debug, Default)]
struct HostState {
    generation: u64,
    networks: BTreeSet<NetworkRef>,
    /// Places of ports, by port.
    ports: BTreeSet<PortRef>,
    /// Its own row, peers and ports.
    own: Table,
}

/// An attached port, as it was last seen.
#[derive(Clone, Debug)]
struct PortState {
    network: NetworkRef,
    hosts: Vec<HostName>,
    records: Vec<RowKey>,
    open: Option<u64>,
}

/// What changes in a network's rows.
#[derive(Debug, Default)]
struct NetworkDelta {
    /// Rows before, if they differ from those after; none: the row is new.
    before: BTreeMap<RowKey, Option<(Row, u64)>>,
}

/// What has to be looked at.
#[derive(Debug, Default)]
struct Concerned {
    ports: BTreeSet<PortRef>,
    /// Networks whose rows are to be built anew.
    networks: BTreeSet<NetworkRef>,
    /// Hosts whose own rows are to be built anew.
    hosts: BTreeSet<HostName>,
    /// Hosts that have a network whose rows change.
    told: BTreeSet<HostName>,
    deltas: BTreeMap<NetworkRef, NetworkDelta>,
    /// What the hosts' networks were.
    had: BTreeMap<HostName, BTreeSet<NetworkRef>>,
}

impl Compiler {
    /// Compiles everything; all hosts are at this generation.
    #[must_use]
    pub fn new(desired: &Desired, blocked: &BTreeSet<PortRef>, generation: u64) -> Self {
        let mut compiler = Self { blocked: blocked.clone(), ..Self::default() };
        let concerned = Concerned {
            ports: desired.ports.keys().cloned().collect(),
            hosts: desired.hosts.keys().cloned().collect(),
            ..Concerned::default()
        };
        compiler.rebuild(desired, concerned, generation);
        compiler
    }

    /// Takes a change: what each host concerned must be told.
    ///
    /// `desired` is the state after `operations`, `blocked` all ports that are blocked from now on, `generation` what
    /// the hosts concerned have afterwards (the revision). A deleted host gets nothing. The upserts and deletes are in
    /// the order of their keys.
    pub fn update(
        &mut self,
        desired: &Desired,
        operations: &[Operation],
        blocked: &BTreeSet<PortRef>,
        generation: u64,
    ) -> BTreeMap<HostName, Delta> {
        let mut concerned = Concerned::default();
        for operation in operations {
            self.concern(desired, operation.key(), &mut concerned);
        }
        for port in self.blocked.symmetric_difference(blocked) {
            let hosts = self.ports.get(port).map(|p| p.hosts.iter().cloned());
            concerned.hosts.extend(hosts.into_iter().flatten());
        }
        self.blocked.clone_from(blocked);
        self.rebuild(desired, concerned, generation)
    }

    /// A host's whole state; none if there is no such host.
    #[must_use]
    pub fn rows(&self, host: &HostName) -> Option<Rows> {
        let state = self.hosts.get(host)?;
        let shared = state.networks.iter().filter_map(|n| self.networks.get(n)).flat_map(|n| &n.rows);
        Some(Rows(state.own.iter().chain(shared).map(|(k, v)| (k.clone(), v.clone())).collect()))
    }

    /// The generation of a host's state: that of the last change that concerned it.
    #[must_use]
    pub fn generation(&self, host: &HostName) -> Option<u64> {
        self.hosts.get(host).map(|h| h.generation)
    }

    /// The hosts that have a network's rows.
    pub fn hosts_of(&self, network: &NetworkRef) -> impl Iterator<Item = &HostName> {
        self.networks.get(network).into_iter().flat_map(|n| n.members.keys())
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &HostName> {
        self.hosts.keys()
    }

    /// Finds what an operation concerns.
    fn concern(&self, desired: &Desired, key: Key, concerned: &mut Concerned) {
        match key {
            Key::Tenant(_) | Key::Vm(_) => {}
            Key::Route(network, ..) => drop(concerned.networks.insert(network)),
            Key::Network(network) => self.concern_network(network, concerned),
            Key::Subnet(subnet) => self.concern_network(subnet.network_ref(), concerned),
            Key::Port(port) => drop(concerned.ports.insert(port)),
            Key::Migration(vm) => concerned.ports.extend(desired.ports_of(&vm).map(|(name, _)| name.clone())),
            Key::Site => concerned.hosts.extend(desired.hosts.keys().cloned()),
            Key::Host(host) => {
                if let Some(state) = self.hosts.get(&host) {
                    concerned.ports.extend(state.ports.iter().cloned());
                    // It is a peer of all other hosts of its networks.
                    let networks = state.networks.iter().filter_map(|n| self.networks.get(n));
                    concerned.hosts.extend(networks.flat_map(|n| n.members.keys()).cloned());
                }
                concerned.hosts.insert(host);
            }
        }
    }

    /// A network's or subnet's numbers are in the rows of its ports too.
    fn concern_network(&self, network: NetworkRef, concerned: &mut Concerned) {
        if let Some(state) = self.networks.get(&network) {
            concerned.ports.extend(state.ports.iter().cloned());
        }
        concerned.networks.insert(network);
    }

    /// Brings everything concerned up to date.
    fn rebuild(
        &mut self,
        desired: &Desired,
        mut concerned: Concerned,
        generation: u64,
    ) -> BTreeMap<HostName, Delta> {
        for port in std::mem::take(&mut concerned.ports) {
            self.forget(&port, &mut concerned);
            let placed = desired.ports.get(&port).and_then(|p| Placed::new(desired, p));
            if let Some(placed) = placed {
                self.place(&placed, &mut concerned);
            }
        }
        let changed: BTreeSet<NetworkRef> =
            concerned.networks.iter().chain(concerned.deltas.keys()).cloned().collect();
        for network in changed {
            self.settle(desired, network, &mut concerned);
        }
        let hosts = concerned.hosts.union(&concerned.told).cloned().collect::<Vec<_>>();
        hosts.into_iter().filter_map(|host| self.tell(desired, host, &concerned, generation)).collect()
    }

    /// Takes a port out of the network and the hosts where it was.
    fn forget(&mut self, port: &PortRef, concerned: &mut Concerned) {
        let Some(was) = self.ports.remove(port) else { return };
        let delta = concerned.deltas.entry(was.network.clone()).or_default();
        if let Some(network) = self.networks.get_mut(&was.network) {
            network.ports.remove(port);
            for key in was.records {
                let row = network.rows.remove(&key);
                delta.saw(key, row);
            }
        }
        for host in was.hosts {
            if let Some(state) = self.hosts.get_mut(&host) {
                state.ports.remove(port);
            }
            concerned.hosts.insert(host);
        }
    }

    /// Puts a port into its network and its hosts.
    fn place(&mut self, placed: &Placed<'_>, concerned: &mut Concerned) {
        let delta = concerned.deltas.entry(placed.network.clone()).or_default();
        let network =
            self.networks.entry(placed.network.clone()).or_insert_with(|| NetworkState::new(placed.net));
        network.id = placed.net;
        network.ports.insert(placed.name().clone());
        let mut records = Vec::with_capacity(placed.port.addresses.len());
        for (row, generation) in build::records(placed) {
            let key = row.key();
            let was = network.rows.insert(key.clone(), (row, generation));
            delta.saw(key.clone(), was);
            records.push(key);
        }
        let hosts: Vec<HostName> = placed.places.iter().map(|p| p.host.clone()).collect();
        for host in &hosts {
            self.hosts.entry(host.clone()).or_default().ports.insert(placed.name().clone());
            concerned.hosts.insert(host.clone());
        }
        let state = PortState { network: placed.network.clone(), hosts, records, open: placed.open() };
        self.ports.insert(placed.name().clone(), state);
    }

    /// Brings a network's own rows and its members up to date, now that its ports are.
    fn settle(&mut self, desired: &Desired, name: NetworkRef, concerned: &mut Concerned) {
        let Some(network) = self.networks.get_mut(&name) else { return };
        let delta = concerned.deltas.entry(name.clone()).or_default();
        let rebuild =
            concerned.networks.contains(&name) || network.members.is_empty() || network.ports.is_empty();
        if rebuild {
            let mut rows = Table::new();
            if !network.ports.is_empty() {
                build::network(desired, &name, &mut rows);
            }
            let old: Vec<RowKey> =
                network.rows.keys().filter(|k| !matches!(k, RowKey::Record(..))).cloned().collect();
            for key in old {
                let row = network.rows.remove(&key);
                delta.saw(key, row);
            }
            for (key, row) in rows {
                delta.saw(key.clone(), None);
                network.rows.insert(key, row);
            }
        }
        let mut members = Members::new();
        for port in network.ports.iter().filter_map(|p| self.ports.get(p)) {
            for host in &port.hosts {
                match members.get_mut(host) {
                    Some(open) => *open = (*open).max(port.open),
                    None => drop(members.insert(host.clone(), port.open)),
                }
            }
        }
        let was = std::mem::replace(&mut network.members, members);
        if was != network.members {
            // Each member's peers follow from the others.
            concerned.hosts.extend(was.keys().chain(network.members.keys()).cloned());
        }
        delta.settle(&network.rows);
        if !delta.before.is_empty() {
            concerned.told.extend(network.members.keys().cloned());
        }
        for host in was.keys().filter(|h| !network.members.contains_key(*h)) {
            self.hosts.get_mut(host).into_iter().for_each(|h| {
                concerned.had.entry(host.clone()).or_insert_with(|| h.networks.clone());
                h.networks.remove(&name);
            });
        }
        for host in network.members.keys().filter(|h| !was.contains_key(*h)) {
            let state = self.hosts.entry(host.clone()).or_default();
            concerned.had.entry(host.clone()).or_insert_with(|| state.networks.clone());
            state.networks.insert(name.clone());
        }
        if network.ports.is_empty() {
            self.networks.remove(&name);
        }
    }

    /// Brings a host's own rows up to date and puts together what it must be told; none if that is nothing.
    fn tell(
        &mut self,
        desired: &Desired,
        host: HostName,
        concerned: &Concerned,
        generation: u64,
    ) -> Option<(HostName, Delta)> {
        let Some(object) = desired.hosts.get(&host) else {
            self.hosts.remove(&host);
            return None;
        };
        let own = concerned.hosts.contains(&host).then(|| self.own(desired, &host, object));
        let state = self.hosts.entry(host.clone()).or_default();
        let mut changes: BTreeMap<RowKey, Option<(Row, u64)>> = BTreeMap::new();
        let had = concerned.had.get(&host).unwrap_or(&state.networks);
        for network in had.difference(&state.networks) {
            lose(self.networks.get(network), concerned.deltas.get(network), &mut changes);
        }
        if let Some(own) = own {
            differ(&state.own, &own, &mut changes);
            state.own = own;
        }
        for name in &state.networks {
            let Some(network) = self.networks.get(name) else { continue };
            if !had.contains(name) {
                changes.extend(network.rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))));
            } else if let Some(delta) = concerned.deltas.get(name) {
                let rows = delta.before.keys().map(|key| (key.clone(), network.rows.get(key).cloned()));
                changes.extend(rows);
            }
        }
        let base = state.generation;
        if changes.is_empty() {
            return None;
        }
        state.generation = generation;
        let mut delta = Delta { base, generation, ..Delta::default() };
        for (key, row) in changes {
            match row {
                Some(row) => delta.upserts.push(row),
                None => delta.deletes.push(key),
            }
        }
        Some((host, delta))
    }

    /// A host's own row, peers and ports.
    fn own(&self, desired: &Desired, host: &HostName, object: &Versioned<Host>) -> Table {
        let mut own = Table::new();
        let (row, generation) = build::host(desired, object);
        build::add(&mut own, row, generation);
        let Some(state) = self.hosts.get(host) else { return own };
        for placed in state.ports.iter().filter_map(|p| desired.ports.get(p)) {
            let Some(placed) = Placed::new(desired, placed) else { continue };
            for place in placed.places.iter().filter(|p| p.host == *host) {
                let (row, generation) = build::port(&placed, place, self.blocked.contains(placed.name()));
                build::add(&mut own, row, generation);
            }
        }
        let networks = state.networks.iter().filter_map(|n| self.networks.get(n)).map(|n| (n.id, &n.members));
        build::peers(desired, host, networks, &mut own);
        own
    }
}

/// Deletes all rows that a host had of a network: those now there that are not new, and those that were there before.
fn lose(
    network: Option<&NetworkState>,
    delta: Option<&NetworkDelta>,
    changes: &mut BTreeMap<RowKey, Option<(Row, u64)>>,
) {
    let before = |key: &RowKey| delta.and_then(|d| d.before.get(key));
    let stayed = network.into_iter().flat_map(|n| n.rows.keys()).filter(|key| before(key).is_none());
    let changed =
        delta.into_iter().flat_map(|d| &d.before).filter(|(_, was)| was.is_some()).map(|(key, _)| key);
    changes.extend(stayed.chain(changed).map(|key| (key.clone(), None)));
}

/// What turns one table into another.
fn differ(was: &Table, is: &Table, changes: &mut BTreeMap<RowKey, Option<(Row, u64)>>) {
    let gone = was.keys().filter(|key| !is.contains_key(*key));
    changes.extend(gone.map(|key| (key.clone(), None)));
    let written = is.iter().filter(|(key, row)| was.get(*key) != Some(*row));
    changes.extend(written.map(|(key, row)| (key.clone(), Some(row.clone()))));
}

impl NetworkState {
    const fn new(id: NetId) -> Self {
        Self { id, rows: Table::new(), ports: BTreeSet::new(), members: Members::new() }
    }
}

impl NetworkDelta {
    /// Remembers what a row was before it was first touched.
    fn saw(&mut self, key: RowKey, was: Option<(Row, u64)>) {
        self.before.entry(key).or_insert(was);
    }

    /// Forgets rows that are as they were.
    fn settle(&mut self, rows: &Table) {
        self.before.retain(|key, was| was.as_ref() != rows.get(key));
    }
}
