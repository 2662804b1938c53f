//! Rewrite addresses: who needs one, who keeps which, and when they are given back.
//!
//! [`Desired::check`] fills in [`Port::rewrite`] and [`Migration::rewrite`] by itself: a port gets an address for each of
//! its own as soon as its network's method is, or is being switched to, [`Method::Rewrite`]; it keeps them as long as it
//! stays on its host, and loses them when it is detached. When a network has left that method they stay until somebody
//! writes [`Desired::release`], for frames under way and hosts that have not heard of it yet still need them.

use crate::{
    Change, Desired, Family, Host, HostName, Key, Method, Migration, Name, Network, NetworkRef, Object,
    Operation, Port, PortRef, VmRef, Why,
    alloc::{address, lowest, number},
    rules::Problems,
    view::View,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

type Addresses = BTreeMap<IpAddr, IpAddr>;

impl Desired {
    /// What to write so that a network gets a method: at once where nothing is attached to it, else as the method that
    /// it is switching to; none if there is no such network.
    #[must_use]
    pub fn with_method(&self, network: &NetworkRef, method: Method) -> Option<Network> {
        let mut wanted = self.networks.get(network)?.value.clone();
        wanted.switching = None;
        if wanted.method != method {
            let mut ports = self.ports_of_tenant(&network.tenant);
            if ports.any(|(_, p)| p.value.host.is_some() && p.value.subnet.is_of(network)) {
                wanted.switching = Some(method);
            } else {
                wanted.method = method;
            }
        }
        Some(wanted)
    }

    /// Networks that use, and are switched to, other methods but still have rewrite addresses: once all hosts know their
    /// method, [`Desired::release`] gives these back.
    #[must_use]
    pub fn unreleased(&self) -> BTreeSet<NetworkRef> {
        let ports = self.ports.values().map(|p| &p.value).filter(|p| !p.rewrite.is_empty());
        let coming = self.migrations.values().flat_map(|m| {
            m.value.rewrite.keys().filter_map(|port| self.ports.get(&port_of(&m.value.vm, port)))
        });
        ports
            .chain(coming.map(|p| &p.value))
            .map(|p| p.subnet.network_ref())
            .filter(|n| self.networks.get(n).is_none_or(|n| !n.value.rewrites()))
            .collect()
    }

    /// The change that gives a network's rewrite addresses back; empty if it has none or needs them.
    #[must_use]
    pub fn release(&self, network: &NetworkRef) -> Change {
        if self.networks.get(network).is_some_and(|n| n.value.rewrites()) {
            return Change::default();
        }
        let ours = |port: &PortRef| self.ports.get(port).is_some_and(|p| p.value.subnet.is_of(network));
        let ports = self
            .ports_of_tenant(&network.tenant)
            .filter(|(name, p)| ours(name) && !p.value.rewrite.is_empty());
        let ports = ports.map(|(_, p)| Object::Port(Port { rewrite: Addresses::new(), ..p.value.clone() }));
        let migrations = self.migrations.values().filter_map(|m| {
            let mut migration = m.value.clone();
            migration.rewrite.retain(|port, _| !ours(&port_of(&m.value.vm, port)));
            (migration.rewrite != m.value.rewrite).then_some(Object::Migration(migration))
        });
        ports.chain(migrations).map(Operation::Put).collect()
    }
}

/// Fills in the rewrite addresses of the ports and migrations that a change writes; the operations that this needs
/// besides. `follow` are deletions that come with the change.
pub(crate) fn complete(
    base: &Desired,
    change: &mut Change,
    follow: &[Operation],
    problems: &mut Problems,
) -> Vec<Operation> {
    let all: Change = change.operations.iter().chain(follow).cloned().collect();
    let view = View::new(base, &all);
    let mut work = Work::new(base, &view);
    if work.ports.is_empty() && work.migrations.is_empty() {
        return Vec::new();
    }
    work.keep();
    work.allocate();
    let Work { ports, migrations, lacks, .. } = work;
    for ((host, family), lack) in lacks {
        problems.add(lack.about.clone(), lack.why(&view, host, family));
    }
    let mut more = Vec::new();
    for (key, state) in ports {
        let Some(port) = view.ports.get(key) else { continue };
        if port.rewrite != state.rewrite {
            write(change, &mut more, Object::Port(Port { rewrite: state.rewrite, ..port.clone() }));
        }
    }
    for (vm, rewrite) in migrations {
        let Some(migration) = view.migrations.get(vm) else { continue };
        if migration.rewrite != rewrite {
            write(change, &mut more, Object::Migration(Migration { rewrite, ..migration.clone() }));
        }
    }
    more
}

/// Puts an object into the place where the change has it, else among the others.
fn write(change: &mut Change, more: &mut Vec<Operation>, object: Object) {
    let key = object.key();
    match change.operations.iter_mut().find(|o| o.key() == key) {
        Some(operation) => *operation = Operation::Put(object),
        None => more.push(Operation::Put(object)),
    }
}

/// A port whose addresses are to be decided.
struct State<'v> {
    about: Key,
    host: Option<&'v HostName>,
    rewrite: Addresses,
}

/// The ports and migrations that have to be looked at, and what they get.
struct Work<'w, 'v> {
    base: &'v Desired,
    view: &'w View<'v>,
    ports: BTreeMap<&'w PortRef, State<'v>>,
    migrations: BTreeMap<&'w VmRef, BTreeMap<Name, Addresses>>,
    used: BTreeSet<IpAddr>,
    lacks: BTreeMap<(&'v HostName, Family), Lack>,
}

impl<'w, 'v> Work<'w, 'v> {
    /// Finds what the change concerns.
    fn new(base: &'v Desired, view: &'w View<'v>) -> Self {
        let mut work = Self {
            base,
            view,
            ports: BTreeMap::new(),
            migrations: BTreeMap::new(),
            used: BTreeSet::new(),
            lacks: BTreeMap::new(),
        };
        let had = |name: &PortRef| base.ports.get(name).is_some_and(|p| !p.value.rewrite.is_empty());
        for (name, port) in view.ports.written() {
            if work.rewrites(port) || had(name) || !port.rewrite.is_empty() {
                work.port(name, port, Key::Port(name.clone()));
            }
        }
        let begins = |(name, n): &(&NetworkRef, &Network)| {
            n.rewrites() && view.networks.before(name).is_none_or(|was| !was.rewrites())
        };
        for (network, _) in view.networks.written().filter(begins) {
            let first = network.tenant.first_port();
            let all = view.ports.span(first, |k| k.tenant == network.tenant);
            for (name, port) in all.filter(|(_, p)| p.subnet.is_of(network)) {
                work.port(name, port, Key::Network(network.clone()));
            }
            // A VM that moves while its network begins to rewrite.
            for (vm, migration) in view.migrations.iter() {
                if view.ports_of(vm).any(|p| p.subnet.is_of(network)) {
                    work.migrations.insert(vm, migration.rewrite.clone());
                }
            }
        }
        for (vm, migration) in view.migrations.written() {
            if !migration.rewrite.is_empty() || view.ports_of(vm).any(|p| work.rewrites(p)) {
                work.migrations.insert(vm, migration.rewrite.clone());
            }
        }
        work
    }

    fn port(&mut self, name: &'w PortRef, port: &'v Port, about: Key) {
        let rewrite = Addresses::new();
        self.ports.entry(name).or_insert(State { about, host: port.host.as_ref(), rewrite });
    }

    fn rewrites(&self, port: &Port) -> bool {
        self.view.networks.get(&port.subnet.network_ref()).is_some_and(Network::rewrites)
    }

    /// Every address stays what it was where that is possible.
    fn keep(&mut self) {
        for (_, port) in self.view.ports.iter().filter(|(name, _)| !self.ports.contains_key(name)) {
            self.used.extend(port.rewrite.values());
        }
        for (_, m) in self.view.migrations.iter().filter(|(vm, _)| !self.migrations.contains_key(vm)) {
            self.used.extend(m.rewrite.values().flat_map(BTreeMap::values));
        }
        let mut ports = std::mem::take(&mut self.ports);
        for (name, state) in &mut ports {
            let (Some(port), Some(host)) = (self.view.ports.get(name), self.host(state.host)) else {
                continue;
            };
            let was = self.base.ports.get(name).map(|p| &p.value.rewrite).filter(|_| self.rewrites(port));
            let coming = self.base.migrations.get(&name.vm_ref()).filter(|m| m.value.to == host.name);
            let coming = coming.and_then(|m| m.value.rewrite.get(&name.port));
            state.rewrite = self.kept(&port.addresses, host, [Some(&port.rewrite), was, coming]);
        }
        self.ports = ports;
        let mut migrations = std::mem::take(&mut self.migrations);
        for (vm, rewrite) in &mut migrations {
            let asked = std::mem::take(rewrite);
            let Some(migration) = self.view.migrations.get(vm) else { continue };
            let Some(host) = self.host(Some(&migration.to)) else { continue };
            for port in self.moving(migration) {
                let name = &port.name.port;
                let was = self.base.migrations.get(vm).filter(|_| self.rewrites(port));
                let was = was.and_then(|m| m.value.rewrite.get(name));
                let kept = self.kept(&port.addresses, host, [asked.get(name), was, None]);
                if !kept.is_empty() {
                    rewrite.insert(name.clone(), kept);
                }
            }
        }
        self.migrations = migrations;
    }

    /// Gives addresses to those that need some and have none.
    fn allocate(&mut self) {
        let mut ports = std::mem::take(&mut self.ports);
        for (name, state) in &mut ports {
            let (Some(port), Some(host)) = (self.view.ports.get(name), self.host(state.host)) else {
                continue;
            };
            if self.rewrites(port) {
                self.give(port, host, &state.about, &mut state.rewrite);
            }
        }
        self.ports = ports;
        let mut migrations = std::mem::take(&mut self.migrations);
        for (vm, rewrite) in &mut migrations {
            let Some(migration) = self.view.migrations.get(vm) else { continue };
            let Some(host) = self.host(Some(&migration.to)) else { continue };
            let about = Key::Migration((*vm).clone());
            for port in self.moving(migration).into_iter().filter(|p| self.rewrites(p)).collect::<Vec<_>>() {
                let mut addresses = rewrite.remove(&port.name.port).unwrap_or_default();
                self.give(port, host, &about, &mut addresses);
                if !addresses.is_empty() {
                    rewrite.insert(port.name.port.clone(), addresses);
                }
            }
        }
        self.migrations = migrations;
    }

    fn host(&self, name: Option<&HostName>) -> Option<&'v Host> {
        self.view.hosts.get(name?)
    }

    /// The ports that a migration takes along.
    fn moving(&self, migration: &Migration) -> Vec<&'v Port> {
        let ports = self.view.ports_of(&migration.vm);
        ports.filter(|p| p.host.is_some() && migration.devices.contains_key(&p.name.port)).collect()
    }

    /// For each address the first choice that is in the host's pool and nobody else's.
    fn kept(&mut self, addresses: &[IpAddr], host: &Host, choices: [Option<&Addresses>; 3]) -> Addresses {
        let mut kept = Addresses::new();
        for ca in addresses {
            let choices = choices.iter().flatten().filter_map(|c| c.get(ca)).copied();
            let mut legal = choices.filter(|pa| {
                Family::of(pa) == Family::of(ca) && host.rewrite_pool.iter().any(|p| p.contains(pa))
            });
            if let Some(pa) = legal.find(|pa| !self.used.contains(pa)) {
                self.used.insert(pa);
                kept.insert(*ca, pa);
            }
        }
        kept
    }

    fn give(&mut self, port: &Port, host: &'v Host, about: &Key, rewrite: &mut Addresses) {
        for ca in &port.addresses {
            if rewrite.contains_key(ca) {
                continue;
            }
            let family = Family::of(ca);
            if let Some(pa) = free(host, family, &self.used) {
                self.used.insert(pa);
                rewrite.insert(*ca, pa);
            } else {
                let lack = self.lacks.entry((&host.name, family)).or_insert_with(|| Lack {
                    about: about.clone(),
                    port: port.name.clone(),
                    address: *ca,
                    count: 0,
                });
                lack.count += 1;
            }
        }
    }
}

/// Addresses that cannot be had: the first, and how many.
struct Lack {
    about: Key,
    port: PortRef,
    address: IpAddr,
    count: usize,
}

impl Lack {
    fn why(self, view: &View<'_>, host: &HostName, family: Family) -> Why {
        let (host, address, port, more) = (host.clone(), self.address, Key::Port(self.port), self.count - 1);
        let pool: Vec<IpNet> = view.hosts.get(&host).map_or_else(Vec::new, |h| of_family(h, family));
        if pool.is_empty() {
            Why::NoPool { host, family, address, port, more }
        } else {
            let size = |p: &IpNet| {
                let (first, last) = usable(p);
                (last - first).saturating_add(1)
            };
            let size = pool.iter().map(size).fold(0, u128::saturating_add);
            Why::PoolExhausted { host, pool, size, address, port, more }
        }
    }
}

/// A host's ranges of a family, lowest first.
fn of_family(host: &Host, family: Family) -> Vec<IpNet> {
    let own = host.rewrite_pool.iter().filter(|p| Family::of(&p.addr()) == family);
    own.copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// The lowest free address of a host's pool.
fn free(host: &Host, family: Family, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    of_family(host, family).into_iter().find_map(|pool| {
        let (first, last) = usable(&pool);
        let taken = used.range(address(family, first)..=address(family, last)).map(number);
        let free = lowest(first, taken);
        let found = address(family, free);
        (free <= last && !used.contains(&found)).then_some(found)
    })
}

/// First and last address of a range that are handed out: not those that would be a network's, broadcast's or anycast's
/// if the range were a network of its own.
fn usable(pool: &IpNet) -> (u128, u128) {
    let (first, last) = (number(&pool.network()), number(&pool.broadcast()));
    let large = pool.max_prefix_len() - pool.prefix_len() >= 2;
    match pool {
        IpNet::V4(_) if large => (first + 1, last - 1),
        IpNet::V6(_) if large => (first + 1, last),
        IpNet::V4(_) | IpNet::V6(_) => (first, last),
    }
}

fn port_of(vm: &VmRef, port: &Name) -> PortRef {
    PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port: port.clone() }
}
