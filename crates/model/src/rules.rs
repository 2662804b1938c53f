//! The rules that the objects of a site keep among each other.

mod delete;
mod host;
mod migration;
mod port;

use crate::{
    Change, DEFAULT_TENANT, Desired, Family, Key, Method, Network, Object, Operation, Port, Problem, Route,
    Site, Subnet, Why, address, rewrite, view::View,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Collects problems.
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, about: Key, why: Why) {
        self.0.push(Problem { about, why });
    }

    fn all(&mut self, about: &Key, why: impl IntoIterator<Item = Why>) {
        self.0.extend(why.into_iter().map(|why| Problem { about: about.clone(), why }));
    }
}

/// The operations that a change comes to, or all its problems.
pub(crate) fn check(base: &Desired, change: &Change) -> Result<Vec<Operation>, Vec<Problem>> {
    let mut problems = Problems(Vec::new());
    let mut order = BTreeMap::new();
    for (i, operation) in change.operations.iter().enumerate() {
        if order.insert(operation.key(), i).is_some() {
            problems.add(operation.key(), Why::Twice);
        }
    }
    let mut effective = change.clone();
    cascade(base, &order, &mut effective);
    let follow = effective.operations.split_off(change.operations.len());
    let more = rewrite::complete(base, &mut effective, &follow, &mut problems);
    effective.operations.retain(|o| changes(base, o));
    let asked = effective.operations.len();
    effective.operations.extend(follow);
    effective.operations.extend(more);
    let view = View::new(base, &effective);
    for operation in &effective.operations[..asked] {
        match operation {
            Operation::Put(object) => put(&view, object, &mut problems),
            Operation::Delete(key) => delete::check(&view, key, &mut problems),
        }
    }
    // Ports that get or lose rewrite addresses by the way are written, too: what else the change does must suit them.
    for operation in &effective.operations[asked..] {
        if let Operation::Put(Object::Port(port)) = operation {
            port::put(&view, port, &mut problems);
        }
    }
    networks(&view, &mut problems);
    subnets(&view, &mut problems);
    host::check(&view, &mut problems);
    port::check(&view, &mut problems);
    migration::devices(&view, &mut problems);
    if problems.0.is_empty() {
        return Ok(effective.operations);
    }
    problems.0.sort_by_key(|p| order.get(&p.about).copied().unwrap_or(usize::MAX));
    Err(problems.0)
}

/// Whether an operation is more than a repetition of what already is.
fn changes(base: &Desired, operation: &Operation) -> bool {
    match operation {
        Operation::Put(object) => !base.holds(object),
        Operation::Delete(_) => true,
    }
}

/// Adds the deletions that follow: a deleted VM takes its ports along.
fn cascade(base: &Desired, order: &BTreeMap<Key, usize>, change: &mut Change) {
    let mut follow = Vec::new();
    for operation in &change.operations {
        let Operation::Delete(Key::Vm(vm)) = operation else { continue };
        let ports = base.ports_of(vm).map(|(name, _)| Key::Port(name.clone()));
        follow.extend(ports.filter(|k| !order.contains_key(k)).map(Operation::Delete));
    }
    change.operations.extend(follow);
}

/// What an object needs to exist, and what it must be on its own.
fn put(view: &View<'_>, object: &Object, problems: &mut Problems) {
    let about = object.key();
    match object {
        Object::Tenant(_) => {}
        Object::Network(o) => {
            if view.tenants.get(&o.name.tenant).is_none() {
                problems.add(about, Why::Unknown(Key::Tenant(o.name.tenant.clone())));
            }
        }
        Object::Subnet(o) => {
            if view.networks.get(&o.name.network_ref()).is_none() {
                problems.add(about.clone(), Why::Unknown(Key::Network(o.name.network_ref())));
            }
            problems.all(&about, prefixes(o));
        }
        Object::Vm(o) => {
            if view.tenants.get(&o.name.tenant).is_none() {
                problems.add(about, Why::Unknown(Key::Tenant(o.name.tenant.clone())));
            }
        }
        Object::Port(o) => port::put(view, o, problems),
        Object::Host(o) => {
            problems.all(&about, address::provider(o.pa));
            problems.all(&about, o.rewrite_pool.iter().flat_map(|pool| address::pool(*pool)));
        }
        Object::Route(o) => {
            if view.networks.get(&o.network).is_none() {
                problems.add(about, Why::Unknown(Key::Network(o.network.clone())));
                return;
            }
            problems.all(&about, address::route(o.prefix));
            problems.all(&about, route(view, o));
        }
        Object::Migration(o) => migration::put(view, o, problems),
        Object::Site(o) => problems.all(&about, udp_ports(o)),
    }
}

/// How many prefixes a subnet has, and what each must be on its own.
fn prefixes(subnet: &Subnet) -> Vec<Why> {
    let mut why = Vec::new();
    if subnet.prefixes.is_empty() {
        why.push(Why::NoPrefix);
    }
    for family in [Family::V4, Family::V6] {
        if subnet.prefixes.iter().filter(|p| p.family() == family).count() > 1 {
            why.push(Why::TwoPrefixes { family });
        }
    }
    why.extend(subnet.prefixes.iter().flat_map(|p| address::subnet(p.prefix, p.gateway)));
    why
}

/// UDP ports tell the methods apart.
fn udp_ports(site: &Site) -> Vec<Why> {
    let usual = Site::default();
    let wanted = site.wanted_ports();
    let mut why = Vec::new();
    for (method, port, default) in
        [(Method::Vxlan, wanted.vxlan, usual.vxlan_port), (Method::Geneve, wanted.geneve, usual.geneve_port)]
    {
        if port == 0 {
            why.push(Why::UdpPortZero { method, default });
        }
    }
    let port = wanted.geneve;
    if port != 0 && (port == wanted.vxlan || port == usual.vxlan_port) {
        why.push(Why::UdpPortTaken { port });
    } else if port == site.vxlan_port {
        why.push(Why::UdpPortInUse { port, by: Method::Vxlan });
    } else if wanted.vxlan == site.geneve_port {
        why.push(Why::UdpPortInUse { port: wanted.vxlan, by: Method::Geneve });
    }
    why
}

/// Networks: number and routing domain id are a network's own.
fn networks(view: &View<'_>, problems: &mut Problems) {
    if view.networks.written().next().is_none() {
        return;
    }
    let mut ids = BTreeMap::new();
    let mut rdids = BTreeMap::new();
    let mut claim = |network: &Network, written: bool| {
        let key = || Key::Network(network.name.clone());
        let other_id = ids.insert(network.id, key());
        let other_rdid = rdids.insert(network.rdid, key());
        if !written {
            return;
        }
        if network.id.0 == 0 {
            problems.add(key(), Why::NetIdZero);
        }
        if let Some(other) = other_id {
            problems.add(key(), Why::NetIdTaken { id: network.id, other });
        }
        if let Some(other) = other_rdid {
            problems.add(key(), Why::RdidTaken { rdid: network.rdid, other });
        }
        // The kernel's maps are keyed by the number: two generations of it must not mix.
        if let Some(was) = view.networks.before(&network.name).filter(|was| was.id != network.id) {
            let (from, to) = (was.id.0.to_string(), network.id.0.to_string());
            problems.add(key(), Why::Fixed { field: "number", from, to });
        }
        problems.all(&key(), method(view, network));
    };
    view.networks.kept().for_each(|(_, n)| claim(n, false));
    view.networks.written().for_each(|(_, n)| claim(n, true));
}

/// A network in use changes its method in two steps, so that receivers are ready before senders change.
fn method(view: &View<'_>, network: &Network) -> Option<Why> {
    if network.switching == Some(network.method) {
        return Some(Why::SwitchToSame { method: network.method });
    }
    let was = view.networks.before(&network.name)?;
    if was.method == network.method || was.switching == Some(network.method) {
        return None;
    }
    let attached = |p: &Port| p.host.is_some() && p.subnet.is_of(&network.name);
    let mut ports = view.ports_of_tenant(&network.name.tenant);
    let used = ports.any(|p| attached(p) && view.ports.before(&p.name).is_some_and(attached));
    used.then_some(Why::MethodAtOnce { from: was.method, to: network.method })
}

/// Subnets: VSIDs over all, prefixes inside their network, and what the change of a subnet does to routes and ports.
fn subnets(view: &View<'_>, problems: &mut Problems) {
    if view.subnets.written().next().is_none() {
        return;
    }
    let mut vsids: BTreeMap<_, _> = view.subnets.kept().map(|(k, s)| (s.vsid, k)).collect();
    let mut judged = BTreeSet::new();
    for (name, subnet) in view.subnets.written() {
        let about = || Key::Subnet(name.clone());
        if let Some(other) = vsids.insert(subnet.vsid, name) {
            problems.add(about(), Why::VsidTaken { vsid: subnet.vsid, other: Key::Subnet(other.clone()) });
        }
        let network = name.network_ref();
        for other in view.subnets_of(&network) {
            // Of two written ones the later one is at fault.
            let first = other.name < *name || !view.subnets.over.contains_key(&other.name);
            if other.name != *name && first {
                problems.all(&about(), overlaps(subnet, other));
            }
        }
        for kept in view.routes_of(&network).filter(|r| !view.routes.over.contains_key(&r.key_parts())) {
            for own in subnet.prefixes.iter().filter(|p| p.prefix.contains(&kept.prefix)) {
                let route = Object::Route(kept.clone()).key();
                problems.add(about(), Why::SubnetOverRoute { prefix: own.prefix, route });
            }
            let had = view.subnets.before(name).is_some_and(|was| was.prefix_of(&kept.next_hop).is_some());
            // One that takes the prefix of another, which is deleted, may have its gateway where the next hop is.
            let has = subnet.prefix_of(&kept.next_hop).is_some();
            let route = Object::Route(kept.clone()).key();
            if (had || has) && judged.insert(route.clone()) {
                problems.all(&route, next_hop(view, kept));
            }
        }
    }
}

/// A route among its network's subnets.
fn route(view: &View<'_>, route: &Route) -> Vec<Why> {
    let mut why: Vec<Why> = view
        .subnets_of(&route.network)
        .flat_map(|s| s.prefixes.iter().map(move |p| (s, p.prefix)))
        .filter(|(_, prefix)| prefix.contains(&route.prefix))
        .map(|(s, subnet_prefix)| Why::RouteInSubnet {
            prefix: route.prefix,
            subnet_prefix,
            subnet: Key::Subnet(s.name.clone()),
        })
        .collect();
    why.extend(next_hop(view, route));
    why
}

/// What is wrong with a route's next hop.
fn next_hop(view: &View<'_>, route: &Route) -> Option<Why> {
    let next_hop = route.next_hop;
    let family = Family::of(&route.prefix.addr());
    if Family::of(&next_hop) != family {
        return Some(Why::NextHopFamily { next_hop, family, prefix: route.prefix });
    }
    let Some(subnet) = view.subnets_of(&route.network).find(|s| s.prefix_of(&next_hop).is_some()) else {
        return Some(Why::NextHopOutside { next_hop, network: Key::Network(route.network.clone()) });
    };
    let which = reserved(subnet, next_hop)?;
    Some(Why::NextHopReserved { next_hop, which, subnet: Key::Subnet(subnet.name.clone()) })
}

/// Which of a subnet's addresses without a port this is, if one.
fn reserved(subnet: &Subnet, address: IpAddr) -> Option<&'static str> {
    let own = subnet.prefix_of(&address)?;
    if address == own.gateway { Some("gateway") } else { address::edge(own.prefix, address) }
}

/// Where a subnet overlaps another.
fn overlaps(subnet: &Subnet, other: &Subnet) -> Vec<Why> {
    let pairs = subnet.prefixes.iter().flat_map(|p| other.prefixes.iter().map(|o| (p.prefix, o.prefix)));
    pairs
        .filter(|(a, b)| address::overlap(a, b))
        .map(|(prefix, other_prefix)| {
            let other = Key::Subnet(other.name.clone());
            Why::Overlap { prefix, other_prefix, other }
        })
        .collect()
}

/// The tenant that cannot be deleted.
fn is_default(tenant: &crate::TenantName) -> bool {
    tenant.as_str() == DEFAULT_TENANT
}
