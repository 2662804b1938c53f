//! The objects of a site file.

use crate::Position;
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{HostName, Key, Mac, Method, NetworkRef, PortRef, SubnetRef, TenantName, VmRef, Vsid};
use uuid::Uuid;

/// Something and its place in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At<T> {
    /// The thing.
    pub value: T,
    /// Where its name stands.
    pub at: Position,
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSpec {
    /// Its name.
    pub name: HostName,
    /// Its provider address.
    pub pa: IpAddr,
}

/// A network; what is not given is up to the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkSpec {
    /// Its name.
    pub name: NetworkRef,
    /// Its method.
    pub method: Option<Method>,
    /// Its routing domain id.
    pub rdid: Option<Uuid>,
}

/// A subnet; what is not given is up to the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetSpec {
    /// Its name.
    pub name: SubnetRef,
    /// Its prefix.
    pub prefix: IpNet,
    /// Its number on the wire.
    pub vsid: Option<Vsid>,
    /// The gateway's address.
    pub gateway: Option<IpAddr>,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Its name.
    pub name: VmRef,
}

/// A port; what is not given is up to the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Its name.
    pub name: PortRef,
    /// The subnet.
    pub subnet: SubnetRef,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its customer addresses.
    pub addresses: Vec<IpAddr>,
    /// The host it lives on; none: not attached.
    pub host: Option<HostName>,
    /// The device on that host.
    pub device: Option<String>,
    /// Whether source MAC and address must be its own.
    pub security: bool,
}

/// A customer route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteSpec {
    /// Its network.
    pub network: NetworkRef,
    /// Destination.
    pub prefix: IpNet,
    /// Next hop.
    pub next_hop: IpAddr,
    /// Lowest wins.
    pub metric: u32,
}

/// The objects of a file, in the file's order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Site {
    /// Hosts.
    pub hosts: Vec<At<HostSpec>>,
    /// Tenants.
    pub tenants: Vec<At<TenantName>>,
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
        let hosts = self.hosts.iter().map(|o| (Key::Host(o.value.name.clone()), o.at));
        let tenants = self.tenants.iter().map(|o| (Key::Tenant(o.value.clone()), o.at));
        let networks = self.networks.iter().map(|o| (Key::Network(o.value.name.clone()), o.at));
        let subnets = self.subnets.iter().map(|o| (Key::Subnet(o.value.name.clone()), o.at));
        let vms = self.vms.iter().map(|o| (Key::Vm(o.value.name.clone()), o.at));
        let ports = self.ports.iter().map(|o| (Key::Port(o.value.name.clone()), o.at));
        let routes = self.routes.iter().map(|o| {
            (Key::Route(o.value.network.clone(), o.value.prefix, o.value.next_hop), o.at)
        });
        hosts.chain(tenants).chain(networks).chain(subnets).chain(vms).chain(ports).chain(routes).collect()
    }
}
