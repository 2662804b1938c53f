//! All objects at one revision.

use crate::{
    Host, HostName, Key, Migration, Network, NetworkRef, Object, Port, PortRef, Route, Subnet, SubnetRef, Tenant,
    TenantName, Vm, VmRef,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// An object and the store revision that last wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
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
}

impl Desired {
    /// Writes an object at a revision.
    pub fn put(&mut self, object: Object, revision: u64) {
        self.revision = self.revision.max(revision);
        match (object.key(), object) {
            (Key::Tenant(k), Object::Tenant(value)) => drop(self.tenants.insert(k, Versioned { value, revision })),
            (Key::Network(k), Object::Network(value)) => drop(self.networks.insert(k, Versioned { value, revision })),
            (Key::Subnet(k), Object::Subnet(value)) => drop(self.subnets.insert(k, Versioned { value, revision })),
            (Key::Vm(k), Object::Vm(value)) => drop(self.vms.insert(k, Versioned { value, revision })),
            (Key::Port(k), Object::Port(value)) => drop(self.ports.insert(k, Versioned { value, revision })),
            (Key::Host(k), Object::Host(value)) => drop(self.hosts.insert(k, Versioned { value, revision })),
            (Key::Route(n, p, h), Object::Route(value)) => {
                drop(self.routes.insert((n, p, h), Versioned { value, revision }));
            }
            (Key::Migration(k), Object::Migration(value)) => {
                drop(self.migrations.insert(k, Versioned { value, revision }));
            }
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
        }
    }

    /// The object of this name, with its revision.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Versioned<Object>> {
        fn up<T: Clone>(v: Option<&Versioned<T>>, wrap: impl FnOnce(T) -> Object) -> Option<Versioned<Object>> {
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
        }
    }
}
