//! The state that a change would lead to, without a copy of the state it starts from.

use crate::{
    Change, Desired, Host, HostName, Key, Migration, Network, NetworkRef, Object, Operation, Port, PortRef,
    Route, Site, Subnet, SubnetRef, Tenant, TenantName, Versioned, Vm, VmRef,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// A map and what a change makes of it.
pub(crate) struct Layer<'a, K, V> {
    pub(crate) base: &'a BTreeMap<K, Versioned<V>>,
    /// Written (some) and deleted (none).
    pub(crate) over: BTreeMap<K, Option<&'a V>>,
}

impl<'a, K: Ord + Clone, V> Layer<'a, K, V> {
    fn new(base: &'a BTreeMap<K, Versioned<V>>) -> Self {
        Self { base, over: BTreeMap::new() }
    }

    /// The object after the change.
    pub(crate) fn get(&self, key: &K) -> Option<&'a V> {
        match self.over.get(key) {
            Some(written) => *written,
            None => self.base.get(key).map(|v| &v.value),
        }
    }

    /// The object before the change.
    pub(crate) fn before(&self, key: &K) -> Option<&'a V> {
        self.base.get(key).map(|v| &v.value)
    }

    /// What the change writes.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&K, &'a V)> {
        self.over.iter().filter_map(|(k, v)| v.map(|v| (k, v)))
    }

    /// What the change leaves as it is, from a key on.
    pub(crate) fn kept_from(&self, first: K) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.base.range(first..).filter(|(k, _)| !self.over.contains_key(*k)).map(|(k, v)| (k, &v.value))
    }

    /// What the change leaves as it is.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.base.iter().filter(|(k, _)| !self.over.contains_key(*k)).map(|(k, v)| (k, &v.value))
    }

    /// Everything after the change; first what it keeps, then what it writes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &'a V)> {
        self.kept().map(|(k, v)| -> (&K, &'a V) { (k, v) }).chain(self.written())
    }

    /// Everything after the change from a key on, while a condition on the key holds.
    pub(crate) fn span<'s>(
        &'s self,
        first: K,
        within: impl Fn(&K) -> bool + Copy + 's,
    ) -> impl Iterator<Item = (&'s K, &'a V)> + 's {
        let written = self.over.range(first.clone()..);
        self.kept_from(first)
            .take_while(move |(k, _)| within(k))
            .map(|(k, v)| -> (&'s K, &'a V) { (k, v) })
            .chain(written.take_while(move |(k, _)| within(k)).filter_map(|(k, v)| v.map(|v| (k, v))))
    }
}

/// The state after a change.
pub(crate) struct View<'a> {
    pub(crate) tenants: Layer<'a, TenantName, Tenant>,
    pub(crate) networks: Layer<'a, NetworkRef, Network>,
    pub(crate) subnets: Layer<'a, SubnetRef, Subnet>,
    pub(crate) vms: Layer<'a, VmRef, Vm>,
    pub(crate) ports: Layer<'a, PortRef, Port>,
    pub(crate) hosts: Layer<'a, HostName, Host>,
    pub(crate) routes: Layer<'a, (NetworkRef, IpNet, IpAddr), Route>,
    pub(crate) migrations: Layer<'a, VmRef, Migration>,
    /// Before, and what is written.
    pub(crate) site: (&'a Versioned<Site>, Option<&'a Site>),
}

impl<'a> View<'a> {
    pub(crate) fn new(base: &'a Desired, change: &'a Change) -> Self {
        let mut view = Self {
            tenants: Layer::new(&base.tenants),
            networks: Layer::new(&base.networks),
            subnets: Layer::new(&base.subnets),
            vms: Layer::new(&base.vms),
            ports: Layer::new(&base.ports),
            hosts: Layer::new(&base.hosts),
            routes: Layer::new(&base.routes),
            migrations: Layer::new(&base.migrations),
            site: (&base.site, None),
        };
        for operation in &change.operations {
            match operation {
                Operation::Put(object) => view.put(object),
                Operation::Delete(key) => view.delete(key),
            }
        }
        view
    }

    fn put(&mut self, object: &'a Object) {
        match object {
            Object::Tenant(o) => drop(self.tenants.over.insert(o.name.clone(), Some(o))),
            Object::Network(o) => drop(self.networks.over.insert(o.name.clone(), Some(o))),
            Object::Subnet(o) => drop(self.subnets.over.insert(o.name.clone(), Some(o))),
            Object::Vm(o) => drop(self.vms.over.insert(o.name.clone(), Some(o))),
            Object::Port(o) => drop(self.ports.over.insert(o.name.clone(), Some(o))),
            Object::Host(o) => drop(self.hosts.over.insert(o.name.clone(), Some(o))),
            Object::Route(o) => {
                self.routes.over.insert(o.key_parts(), Some(o));
            }
            Object::Migration(o) => drop(self.migrations.over.insert(o.vm.clone(), Some(o))),
            Object::Site(o) => self.site.1 = Some(o),
        }
    }

    pub(crate) fn delete(&mut self, key: &Key) {
        match key.clone() {
            Key::Tenant(k) => drop(self.tenants.over.insert(k, None)),
            Key::Network(k) => drop(self.networks.over.insert(k, None)),
            Key::Subnet(k) => drop(self.subnets.over.insert(k, None)),
            Key::Vm(k) => drop(self.vms.over.insert(k, None)),
            Key::Port(k) => drop(self.ports.over.insert(k, None)),
            Key::Host(k) => drop(self.hosts.over.insert(k, None)),
            Key::Route(n, p, h) => drop(self.routes.over.insert((n, p, h), None)),
            Key::Migration(k) => drop(self.migrations.over.insert(k, None)),
            Key::Site => {}
        }
    }

    /// Whether the object exists before the change.
    pub(crate) fn existed(&self, key: &Key) -> bool {
        match key {
            Key::Tenant(k) => self.tenants.base.contains_key(k),
            Key::Network(k) => self.networks.base.contains_key(k),
            Key::Subnet(k) => self.subnets.base.contains_key(k),
            Key::Vm(k) => self.vms.base.contains_key(k),
            Key::Port(k) => self.ports.base.contains_key(k),
            Key::Host(k) => self.hosts.base.contains_key(k),
            Key::Route(n, p, h) => self.routes.base.contains_key(&(n.clone(), *p, *h)),
            Key::Migration(k) => self.migrations.base.contains_key(k),
            Key::Site => self.site.0.revision != 0,
        }
    }

    /// A network's subnets.
    pub(crate) fn subnets_of<'s>(&'s self, network: &'s NetworkRef) -> impl Iterator<Item = &'a Subnet> + 's {
        self.subnets.span(network.first_subnet(), move |k| k.is_of(network)).map(|(_, v)| v)
    }

    /// A VM's ports.
    pub(crate) fn ports_of<'s>(&'s self, vm: &'s VmRef) -> impl Iterator<Item = &'a Port> + 's {
        self.ports.span(vm.first_port(), move |k| k.is_of(vm)).map(|(_, v)| v)
    }

    /// A tenant's ports.
    pub(crate) fn ports_of_tenant<'s>(
        &'s self,
        tenant: &'s TenantName,
    ) -> impl Iterator<Item = &'a Port> + 's {
        self.ports.span(tenant.first_port(), move |k| k.tenant == *tenant).map(|(_, v)| v)
    }

    /// A network's routes.
    pub(crate) fn routes_of<'s>(&'s self, network: &'s NetworkRef) -> impl Iterator<Item = &'a Route> + 's {
        self.routes.span(network.first_route(), move |k| k.0 == *network).map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Name;

    #[test]
    fn spans_a_tenants_ports_and_no_others() {
        let port = |name: &str| {
            Object::Port(Port {
                name: name.parse().unwrap(),
                subnet: "a/n/s".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                addresses: vec![],
                host: None,
                device: None,
                tap: false,
                queues: 1,
                security: true,
                rewrite: BTreeMap::new(),
            })
        };
        let mut base = Desired::default();
        for name in ["a/v/p", "a-b/v/p", "ab/v/p", "b/a/p", "b/b/p", "b/b/q", "c/v/p"] {
            base.put(port(name), 1);
        }
        let change = Change {
            operations: vec![
                Operation::Put(port("b/z/p")),
                Operation::Delete(Key::Port("b/b/q".parse().unwrap())),
                Operation::Put(port("c/z/p")),
            ],
        };
        let view = View::new(&base, &change);
        let tenant = Name::new("b").unwrap();
        let names: Vec<String> = view.ports_of_tenant(&tenant).map(|p| p.name.to_string()).collect();
        assert_eq!(names, ["b/a/p", "b/b/p", "b/z/p"]);
        let vm = "b/b".parse().unwrap();
        assert_eq!(view.ports_of(&vm).count(), 1);
    }
}
