//! All objects at one revision.

use crate::{
    Host, HostName, Key, Migration, Network, NetworkRef, Object, Port, PortRef, Route, Site, Subnet,
    SubnetRef, Tenant, TenantName, Vm, VmRef,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// An object and the store revision that last wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Versioned<T> {
    /// The object.
    pub value: T,
    /// Store revision of its last write.
    pub revision: u64,
}

/// All objects of a site at one store revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// Store revision of the last write to any object.
    pub revision: u64,
    /// Tenants.
    pub tenants: BTreeMap<TenantName, Versioned<Tenant>>,
    /// Networks.
    pub networks: BTreeMap<NetworkRef, Versioned<Network>>,
    /// Subnets.
    pub subnets: BTreeMap<SubnetRef, Versioned<Subnet>>,
    /// VMs.
    pub vms: BTreeMap<VmRef, Versioned<Vm>>,
    /// Ports.
    pub ports: BTreeMap<PortRef, Versioned<Port>>,
    /// Hosts.
    pub hosts: BTreeMap<HostName, Versioned<Host>>,
    /// Customer routes.
    pub routes: BTreeMap<(NetworkRef, IpNet, IpAddr), Versioned<Route>>,
    /// Running migrations.
    pub migrations: BTreeMap<VmRef, Versioned<Migration>>,
    /// What holds for the whole site; revision 0 and the defaults until it is written.
    pub site: Versioned<Site>,
}

impl Desired {
    /// Writes an object at a revision.
    pub fn put(&mut self, object: Object, revision: u64) {
        self.revision = self.revision.max(revision);
        match (object.key(), object) {
            (Key::Tenant(k), Object::Tenant(value)) => {
                drop(self.tenants.insert(k, Versioned { value, revision }))
            }
            (Key::Network(k), Object::Network(value)) => {
                drop(self.networks.insert(k, Versioned { value, revision }))
            }
            (Key::Subnet(k), Object::Subnet(value)) => {
                drop(self.subnets.insert(k, Versioned { value, revision }))
            }
            (Key::Vm(k), Object::Vm(value)) => drop(self.vms.insert(k, Versioned { value, revision })),
            (Key::Port(k), Object::Port(value)) => drop(self.ports.insert(k, Versioned { value, revision })),
            (Key::Host(k), Object::Host(value)) => drop(self.hosts.insert(k, Versioned { value, revision })),
            (Key::Route(n, p, h), Object::Route(value)) => {
                drop(self.routes.insert((n, p, h), Versioned { value, revision }));
            }
            (Key::Migration(k), Object::Migration(value)) => {
                drop(self.migrations.insert(k, Versioned { value, revision }));
            }
            (Key::Site, Object::Site(value)) => self.site = Versioned { value, revision },
            (key, object) => unreachable!("key() of {object:?} gave {key:?}"),
        }
    }

    /// Deletes an object at a revision; whether it was there.
    pub fn delete(&mut self, key: &Key, revision: u64) -> bool {
        self.revision = self.revision.max(revision);
        match key {
            Key::Tenant(k) => self.tenants.remove(k).is_some(),
            Key::Network(k) => self.networks.remove(k).is_some(),
            Key::Subnet(k) => self.subnets.remove(k).is_some(),
            Key::Vm(k) => self.vms.remove(k).is_some(),
            Key::Port(k) => self.ports.remove(k).is_some(),
            Key::Host(k) => self.hosts.remove(k).is_some(),
            Key::Route(n, p, h) => self.routes.remove(&(n.clone(), *p, *h)).is_some(),
            Key::Migration(k) => self.migrations.remove(k).is_some(),
            Key::Site => std::mem::take(&mut self.site).revision != 0,
        }
    }

    /// The object of this name, with its revision.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Versioned<Object>> {
        fn up<T: Clone>(
            v: Option<&Versioned<T>>,
            wrap: impl FnOnce(T) -> Object,
        ) -> Option<Versioned<Object>> {
            v.map(|v| Versioned { value: wrap(v.value.clone()), revision: v.revision })
        }
        match key {
            Key::Tenant(k) => up(self.tenants.get(k), Object::Tenant),
            Key::Network(k) => up(self.networks.get(k), Object::Network),
            Key::Subnet(k) => up(self.subnets.get(k), Object::Subnet),
            Key::Vm(k) => up(self.vms.get(k), Object::Vm),
            Key::Port(k) => up(self.ports.get(k), Object::Port),
            Key::Host(k) => up(self.hosts.get(k), Object::Host),
            Key::Route(n, p, h) => up(self.routes.get(&(n.clone(), *p, *h)), Object::Route),
            Key::Migration(k) => up(self.migrations.get(k), Object::Migration),
            Key::Site => up(Some(&self.site).filter(|s| s.revision != 0), Object::Site),
        }
    }

    /// Whether the state has exactly this object.
    #[must_use]
    pub fn holds(&self, object: &Object) -> bool {
        match object {
            Object::Tenant(o) => self.tenants.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Network(o) => self.networks.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Subnet(o) => self.subnets.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Vm(o) => self.vms.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Port(o) => self.ports.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Host(o) => self.hosts.get(&o.name).is_some_and(|v| v.value == *o),
            Object::Route(o) => self.routes.get(&o.key_parts()).is_some_and(|v| v.value == *o),
            Object::Migration(o) => self.migrations.get(&o.vm).is_some_and(|v| v.value == *o),
            Object::Site(o) => self.site.value == *o,
        }
    }

    /// A network's subnets, by name.
    pub fn subnets_of<'a>(
        &'a self,
        network: &'a NetworkRef,
    ) -> impl Iterator<Item = (&'a SubnetRef, &'a Versioned<Subnet>)> {
        self.subnets.range(network.first_subnet()..).take_while(|(k, _)| k.is_of(network))
    }

    /// A network's routes, by prefix and next hop.
    pub fn routes_of<'a>(&'a self, network: &'a NetworkRef) -> impl Iterator<Item = &'a Versioned<Route>> {
        self.routes.range(network.first_route()..).take_while(|(k, _)| k.0 == *network).map(|(_, v)| v)
    }

    /// A VM's ports, by name.
    pub fn ports_of<'a>(&'a self, vm: &'a VmRef) -> impl Iterator<Item = (&'a PortRef, &'a Versioned<Port>)> {
        self.ports.range(vm.first_port()..).take_while(|(k, _)| k.is_of(vm))
    }

    /// A tenant's ports, by name.
    pub fn ports_of_tenant<'a>(
        &'a self,
        tenant: &'a TenantName,
    ) -> impl Iterator<Item = (&'a PortRef, &'a Versioned<Port>)> {
        self.ports.range(tenant.first_port()..).take_while(|(k, _)| k.tenant == *tenant)
    }
}
