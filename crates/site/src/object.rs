//! The objects of a site file.

use crate::Position;
use std::collections::BTreeMap;
use tenet_api::rest::{
    ChangeItem, HostSpec, NetworkSpec, PortSpec, RouteSpec, SettingsSpec, Spec, SubnetSpec, TenantSpec,
    VmSpec,
};
use tenet_model::Key;

/// Something and its place in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At<T> {
    /// The thing.
    pub value: T,
    /// Where its name stands.
    pub at: Position,
}

/// The objects of a file, in the file's order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Site {
    /// What holds for the whole site.
    pub settings: Option<At<SettingsSpec>>,
    /// Hosts.
    pub hosts: Vec<At<HostSpec>>,
    /// Tenants.
    pub tenants: Vec<At<TenantSpec>>,
    /// Networks.
    pub networks: Vec<At<NetworkSpec>>,
    /// Subnets.
    pub subnets: Vec<At<SubnetSpec>>,
    /// VMs.
    pub vms: Vec<At<VmSpec>>,
    /// Ports.
    pub ports: Vec<At<PortSpec>>,
    /// Customer routes.
    pub routes: Vec<At<RouteSpec>>,
}

impl Site {
    /// Where each object stands.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<Key, Position> {
        let all = self.specs();
        all.into_iter().map(|(spec, at)| (key(&spec), at)).collect()
    }

    /// All objects one by one, in an order in which each stands after what it names.
    #[must_use]
    pub fn specs(&self) -> Vec<(Spec, Position)> {
        fn all<T: Clone>(of: &[At<T>], spec: fn(T) -> Spec) -> impl Iterator<Item = (Spec, Position)> {
            of.iter().map(move |o| (spec(o.value.clone()), o.at))
        }
        all(self.settings.as_slice(), Spec::Site)
            .chain(all(&self.tenants, Spec::Tenant))
            .chain(all(&self.hosts, Spec::Host))
            .chain(all(&self.networks, Spec::Network))
            .chain(all(&self.subnets, Spec::Subnet))
            .chain(all(&self.vms, Spec::Vm))
            .chain(all(&self.ports, Spec::Port))
            .chain(all(&self.routes, Spec::Route))
            .collect()
    }

    /// The change that puts all objects and deletes nothing.
    #[must_use]
    pub fn puts(&self) -> Vec<ChangeItem> {
        self.specs().into_iter().map(|(object, _)| ChangeItem::Put { object }).collect()
    }
}

/// The key of the object that a spec asks for.
#[must_use]
pub fn key(spec: &Spec) -> Key {
    match spec.clone() {
        Spec::Tenant(o) => Key::Tenant(o.name),
        Spec::Network(o) => Key::Network(o.name),
        Spec::Subnet(o) => Key::Subnet(o.name),
        Spec::Vm(o) => Key::Vm(o.name),
        Spec::Port(o) => Key::Port(o.name),
        Spec::Host(o) => Key::Host(o.name),
        Spec::Route(o) => Key::Route(o.network, o.prefix, o.next_hop),
        Spec::Site(_) => Key::Site,
    }
}

/// A site as the controller tells it; its objects have no place in a file.
impl From<tenet_api::rest::Site> for Site {
    fn from(from: tenet_api::rest::Site) -> Self {
        let mut site = Self::default();
        for spec in from.specs() {
            let at = Position::default();
            match spec {
                Spec::Tenant(value) => site.tenants.push(At { value, at }),
                Spec::Network(value) => site.networks.push(At { value, at }),
                Spec::Subnet(value) => site.subnets.push(At { value, at }),
                Spec::Vm(value) => site.vms.push(At { value, at }),
                Spec::Port(value) => site.ports.push(At { value, at }),
                Spec::Host(value) => site.hosts.push(At { value, at }),
                Spec::Route(value) => site.routes.push(At { value, at }),
                Spec::Site(value) => site.settings = Some(At { value, at }),
            }
        }
        site
    }
}
