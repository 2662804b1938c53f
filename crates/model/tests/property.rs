//! Whatever random changes are let through, the site keeps its rules, written here a second time as plainly as can be.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tenet_model::{
    Allocator, Change, Desired, GATEWAY_MAC, Key, Method, Name, NetId, Object, Operation, Port, Site, Subnet,
    SubnetPrefix, Tenant, Vsid,
    testing::{Dice, change},
};

/// Every broken rule.
fn broken(site: &Desired) -> Vec<String> {
    let mut out = Vec::new();
    let mut rule = |holds: bool, what: String| {
        if !holds {
            out.push(what);
        }
    };
    rule(site.tenants.contains_key(&Name::new("default").unwrap()), "default is there".to_owned());
    unique(site.networks.values().map(|n| n.value.id), "network numbers", &mut rule);
    unique(site.networks.values().map(|n| n.value.rdid), "RDIDs", &mut rule);
    unique(site.subnets.values().map(|s| s.value.vsid), "VSIDs", &mut rule);
    unique(site.hosts.values().map(|h| h.value.pa), "PAs", &mut rule);
    hosts(site, &mut rule);
    rewrites(site, &mut rule);
    let Site { vxlan_port, geneve_port, .. } = site.site.value;
    let (mut vxlan, mut geneve) = (BTreeSet::from([vxlan_port, 4789]), BTreeSet::from([geneve_port]));
    if let Some(other) = site.site.value.other_port() {
        let whose = if other.method == Method::Vxlan { &mut vxlan } else { &mut geneve };
        rule(whose.insert(other.port) || other.port == 4789, "the other port is another one".to_owned());
    }
    rule(vxlan.is_disjoint(&geneve), "UDP ports tell the methods apart".to_owned());
    for (name, n) in &site.networks {
        rule(n.value.switching != Some(n.value.method), format!("{name} switches to another method"));
    }
    for name in site.networks.keys() {
        rule(site.tenants.contains_key(&name.tenant), format!("{name} has a tenant"));
    }
    for (name, s) in &site.subnets {
        rule(site.networks.contains_key(&name.network_ref()), format!("{name} has a network"));
        for own in &s.value.prefixes {
            rule(own.prefix.contains(&own.gateway), format!("{name} has its gateway inside"));
        }
        for (other, o) in
            site.subnets.iter().filter(|(o, _)| *o != name && o.network_ref() == name.network_ref())
        {
            let all = |s: &Subnet| s.prefixes.iter().map(|p| p.prefix).collect::<Vec<_>>();
            let apart = !all(&s.value).iter().any(|p| all(&o.value).iter().any(|o| p.contains(o)));
            rule(apart, format!("{name} and {other} are apart"));
        }
    }
    for name in site.vms.keys() {
        rule(site.tenants.contains_key(&name.tenant), format!("{name} has a tenant"));
    }
    ports(site, &mut rule);
    for (network, prefix, hop) in site.routes.keys() {
        let subnet = site.subnets_of(network).find_map(|(_, s)| s.value.prefix_of(hop));
        rule(subnet.is_some_and(|own| own.gateway != *hop), format!("{prefix} via {hop} has a next hop"));
        rule(site.networks.contains_key(network), format!("{prefix} via {hop} has a network"));
        let inside =
            site.subnets_of(network).any(|(_, s)| s.value.prefixes.iter().any(|p| p.prefix.contains(prefix)));
        rule(!inside, format!("{prefix} via {hop} takes nothing from a subnet"));
    }
    for (vm, m) in &site.migrations {
        rule(site.vms.contains_key(vm), format!("the migration of {vm} has a VM"));
        rule(m.value.from != m.value.to, format!("{vm} goes elsewhere"));
        rule(site.hosts.contains_key(&m.value.to), format!("{vm} has a destination"));
        let attached = site.ports_of(vm).filter(|(_, p)| p.value.host.is_some());
        let ports: BTreeMap<_, _> = attached.map(|(k, p)| (k.port.clone(), p.value.host.clone())).collect();
        rule(ports.values().all(|h| h.as_ref() == Some(&m.value.from)), format!("{vm} is on its source"));
        rule(ports.keys().eq(m.value.devices.keys()) && !ports.is_empty(), format!("{vm} has its devices"));
    }
    out
}

fn hosts(site: &Desired, rule: &mut dyn FnMut(bool, String)) {
    let families: BTreeSet<bool> = site.hosts.values().map(|h| h.value.pa.is_ipv4()).collect();
    rule(families.len() < 2, "provider addresses are of one family".to_owned());
    let pools: Vec<_> = site.hosts.values().flat_map(|h| &h.value.rewrite_pool).collect();
    for (n, pool) in pools.iter().enumerate() {
        let met = pools[..n].iter().any(|o| o.contains(*pool) || pool.contains(*o));
        rule(!met, format!("{pool} is in one pool"));
        let inside = site.hosts.values().any(|h| pool.contains(&h.value.pa));
        rule(!inside, format!("{pool} has no host"));
    }
}

/// Whose rewrite addresses are in which pool, and who has one.
fn rewrites(site: &Desired, rule: &mut dyn FnMut(bool, String)) {
    let mut all = Vec::new();
    let mut check = |what: &str, p: &Port, host: &tenet_model::HostName, given: &BTreeMap<_, _>| {
        let needs = site.networks.get(&p.subnet.network_ref()).is_some_and(|n| n.value.rewrites());
        let has = p.addresses.iter().all(|a| given.contains_key(a));
        rule(has || !needs, format!("{what} has all its rewrite addresses"));
        let pool = site.hosts.get(host).map_or(&[][..], |h| &h.value.rewrite_pool);
        for (ca, pa) in given {
            let ca: &std::net::IpAddr = ca;
            let pa: &std::net::IpAddr = pa;
            rule(p.addresses.contains(ca) && ca.is_ipv4() == pa.is_ipv4(), format!("{what} has {ca}"));
            rule(pool.iter().any(|pool| pool.contains(pa)), format!("{pa} of {what} is {host}'s"));
            all.push(*pa);
        }
    };
    let mut bare = true;
    for (name, p) in &site.ports {
        match &p.value.host {
            Some(host) => check(&name.to_string(), &p.value, host, &p.value.rewrite),
            None => bare &= p.value.rewrite.is_empty(),
        }
    }
    for (vm, m) in &site.migrations {
        for (name, p) in site.ports_of(vm).filter(|(_, p)| p.value.host.is_some()) {
            let none = BTreeMap::new();
            let given = m.value.rewrite.get(&name.port).unwrap_or(&none);
            check(&format!("{name} to be"), &p.value, &m.value.to, given);
        }
    }
    rule(bare, "detached ports have no rewrite addresses".to_owned());
    unique(all.into_iter(), "rewrite addresses", rule);
}

fn ports(site: &Desired, rule: &mut dyn FnMut(bool, String)) {
    for (name, p) in &site.ports {
        let p = &p.value;
        rule(site.vms.contains_key(&name.vm_ref()), format!("{name} has a VM"));
        rule(p.subnet.tenant == name.tenant, format!("{name} is in its tenant's subnet"));
        rule(p.host.as_ref().is_none_or(|h| site.hosts.contains_key(h)), format!("{name} has a host"));
        rule(p.host.is_some() == p.device.is_some(), format!("{name} has host and device"));
        rule(!p.tap || p.device == Some(tenet_model::tap_name(name)), format!("{name} has its tap"));
        rule(p.mac.octets() != GATEWAY_MAC && !p.addresses.is_empty(), format!("{name} has addresses"));
        let Some(subnet) = site.subnets.get(&p.subnet) else {
            rule(false, format!("{name} has a subnet"));
            continue;
        };
        let s = &subnet.value;
        let inside = p.addresses.iter().all(|a| {
            let Some(own) = s.prefix_of(a) else { return false };
            let broadcast = own.prefix.broadcast() == *a && a.is_ipv4();
            own.gateway != *a && own.prefix.network() != *a && !broadcast
        });
        rule(inside, format!("{name} has addresses of its subnet"));
    }
    let all = || site.ports.values().map(|p| &p.value);
    unique(
        all().flat_map(|p| p.addresses.iter().map(|a| (p.subnet.network_ref(), *a))),
        "addresses in a network",
        rule,
    );
    unique(all().map(|p| (p.subnet.clone(), p.mac)), "MACs in a subnet", rule);
    let here = all().filter_map(|p| Some((p.host.clone()?, p.device.clone()?)));
    let there = site.migrations.values().map(|m| &m.value);
    let there = there.flat_map(|m| m.devices.values().map(|d| (m.to.clone(), d.clone())));
    unique(here.chain(there), "devices of a host", rule);
}

fn unique<T: Ord>(items: impl Iterator<Item = T>, what: &str, rule: &mut dyn FnMut(bool, String)) {
    let items: Vec<T> = items.collect();
    let set: BTreeSet<&T> = items.iter().collect();
    rule(set.len() == items.len(), format!("{what} are unique"));
}

/// Whether a write does no more than to take back what the network no longer needs.
fn taken_back(site: &Desired, operation: &Operation) -> bool {
    let Operation::Put(Object::Port(port)) = operation else { return false };
    let Some(was) = site.ports.get(&port.name) else { return false };
    let needs = site.networks.get(&port.subnet.network_ref()).is_some_and(|n| n.value.rewrites());
    !needs && port.rewrite.is_empty() && Port { rewrite: BTreeMap::new(), ..was.value.clone() } == *port
}

fn start() -> Desired {
    let mut site = Desired::default();
    site.put(Object::Tenant(Tenant { name: Name::new("default").unwrap() }), 1);
    site
}

/// Writes a change without asking.
fn forced(site: &Desired, change: &Change) -> Desired {
    let mut after = site.clone();
    after.apply(&change.operations, 0);
    after
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_site_keeps_its_rules(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut site = start();
        for revision in 2..200 {
            let change = change(&site, &mut dice);
            match site.check(&change) {
                Ok(checked) => {
                    site.apply(checked.operations(), revision);
                    prop_assert_eq!(broken(&site), Vec::<String>::new(), "after {:?}", change);
                    // Once done there is nothing left to do, deletions apart.
                    let puts = change.operations.into_iter().filter(|o| matches!(o, Operation::Put(_))).collect();
                    let again = site.check(&puts).unwrap();
                    prop_assert!(again.operations().iter().all(|o| taken_back(&site, o)), "{:?}", again);
                }
                Err(problems) => {
                    prop_assert!(!problems.is_empty());
                    for problem in problems {
                        let text = problem.to_string();
                        prop_assert!(text.contains(": "), "{} says what to do", text);
                    }
                }
            }
        }
    }

    /// Nothing sound is refused, as far as the plain rules and those about steps can tell.
    #[test]
    fn what_is_refused_breaks_a_rule(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut site = start();
        for revision in 2..200 {
            let change = change(&site, &mut dice);
            match site.check(&change) {
                Ok(checked) => site.apply(checked.operations(), revision),
                Err(problems) => {
                    use tenet_model::Why;
                    let step = problems.iter().any(|p| matches!(
                        p.why,
                        Why::Fixed { .. } | Why::Migrating { .. } | Why::AlreadyMigrating { .. } | Why::PhaseOrder { .. }
                            | Why::MethodAtOnce { .. } | Why::NotFound | Why::Twice | Why::DefaultTenant
                    ));
                    let after = forced(&site, &change);
                    prop_assert!(step || !broken(&after).is_empty(), "{:?} refused for {:?}", change, problems);
                }
            }
        }
    }

    #[test]
    fn what_is_allocated_is_free(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut site = start();
        for revision in 2..150 {
            if let Ok(checked) = site.check(&change(&site, &mut dice)) {
                site.apply(checked.operations(), revision);
            }
        }
        let mut allocator = Allocator::new(&site);
        let (vsids, ids) = ([allocator.vsid().unwrap(), allocator.vsid().unwrap()], [allocator.net_id().unwrap(), allocator.net_id().unwrap()]);
        prop_assert!(vsids[0] != vsids[1] && site.subnets.values().all(|s| !vsids.contains(&s.value.vsid)));
        prop_assert!(ids[0] != ids[1] && site.networks.values().all(|n| !ids.contains(&n.value.id)));
        for (name, subnet) in &site.subnets {
            let vm = tenet_model::VmRef { tenant: name.tenant.clone(), vm: Name::new("fresh").unwrap() };
            let mut change = Change::put(Object::Vm(tenet_model::Vm { name: vm.clone() }));
            for n in 0..3 {
                let name = tenet_model::PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port: Name::new(format!("p{n}")).unwrap() };
                let (mac, addresses) = (allocator.mac(&name).unwrap(), allocator.addresses(&subnet.value).unwrap());
                let subnet = subnet.value.name.clone();
                let port = Port { name, subnet, mac, addresses, host: None, device: None, tap: false, queues: 1, security: true, rewrite: BTreeMap::new() };
                change.operations.push(Operation::Put(Object::Port(port)));
            }
            prop_assert!(site.check(&change).is_ok(), "{:?}", site.check(&change));
        }
    }

    #[test]
    fn objects_and_keys_round_trip(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut site = start();
        for revision in 2..60 {
            let Ok(checked) = site.check(&change(&site, &mut dice)) else { continue };
            for operation in checked.operations() {
                let key = operation.key();
                prop_assert_eq!(&key.to_string().parse::<Key>().unwrap(), &key);
                if let Operation::Put(object) = operation {
                    let text = serde_json::to_string(object).unwrap();
                    prop_assert_eq!(&serde_json::from_str::<Object>(&text).unwrap(), object);
                }
            }
            site.apply(checked.operations(), revision);
        }
    }
}

/// The site is walked through methods, pools and migrations, not only past them.
#[test]
fn random_sites_rewrite() {
    let (mut rewriting, mut addresses, mut coming, mut left) = (0, 0, 0, 0);
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let mut site = start();
        for revision in 2..300 {
            if let Ok(checked) = site.check(&change(&site, &mut dice)) {
                site.apply(checked.operations(), revision);
            }
            rewriting += site.networks.values().filter(|n| n.value.rewrites()).count();
            addresses += site.ports.values().filter(|p| p.value.rewrite.len() > 1).count();
            coming += site.migrations.values().filter(|m| !m.value.rewrite.is_empty()).count();
            left += site.unreleased().len();
        }
    }
    println!(
        "{rewriting} rewriting networks, {addresses} ports with two addresses, {coming} migrations, {left} left over"
    );
    assert!(rewriting > 200 && addresses > 100 && coming > 20 && left > 20);
}

#[test]
fn allocates_ipv6_from_the_second_address_on() {
    let mut subnet = Subnet {
        name: "default/n/s".parse().unwrap(),
        vsid: Vsid::MIN,
        prefixes: vec![SubnetPrefix {
            prefix: "fd00::/125".parse().unwrap(),
            gateway: "fd00::4".parse().unwrap(),
        }],
    };
    let mut site = start();
    site.put(Object::Subnet(subnet.clone()), 2);
    let mut allocator = Allocator::new(&site);
    let given: Vec<String> =
        std::iter::from_fn(|| allocator.address(&subnet).ok()).map(|a| a.to_string()).collect();
    assert_eq!(given, ["fd00::2", "fd00::3", "fd00::5", "fd00::6", "fd00::7"]);
    let (prefix, gateway) = ("10.0.0.0/30".parse().unwrap(), "10.0.0.1".parse().unwrap());
    subnet.prefixes = vec![
        SubnetPrefix { prefix, gateway },
        SubnetPrefix { prefix: "2001:db8::/64".parse().unwrap(), gateway: "2001:db8::1".parse().unwrap() },
    ];
    subnet.name = "default/n/t".parse().unwrap();
    let both: Vec<String> = allocator.addresses(&subnet).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(both, ["10.0.0.2", "2001:db8::2"]);
    let error = allocator.addresses(&subnet).unwrap_err().to_string();
    assert!(error.contains("default/n/t (10.0.0.0/30) are in use"), "{error}");
}

#[test]
fn allocates_the_lowest_free_until_nothing_is_left() {
    let mut site = start();
    let subnet = tenet_model::Subnet {
        name: "default/n/s".parse().unwrap(),
        vsid: Vsid::MIN,
        prefixes: vec![SubnetPrefix {
            prefix: "10.0.0.0/29".parse().unwrap(),
            gateway: "10.0.0.3".parse().unwrap(),
        }],
    };
    site.put(Object::Subnet(subnet.clone()), 2);
    let mut allocator = Allocator::new(&site);
    let given: Vec<String> =
        std::iter::from_fn(|| allocator.address(&subnet).ok()).map(|a| a.to_string()).collect();
    assert_eq!(given, ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    let error = allocator.address(&subnet).unwrap_err().to_string();
    assert!(error.contains("default/n/s (10.0.0.0/29) are in use"), "{error}");
    assert_eq!(allocator.vsid().unwrap(), Vsid::new(4097).unwrap());
    assert_eq!((allocator.net_id(), allocator.net_id()), (Ok(NetId(1)), Ok(NetId(2))));
    let port = "default/v/p".parse().unwrap();
    let (first, second) = (allocator.mac(&port).unwrap(), allocator.mac(&port).unwrap());
    assert_ne!(first, second);
    assert_eq!(Allocator::new(&site).mac(&port).unwrap(), first, "the same port gets the same MAC");
    assert_eq!(&first.octets()[..2], [0x02, 0x54]);
}
