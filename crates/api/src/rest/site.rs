//! A whole site in one document: the form of `tenet apply` and `tenet export`.

use super::{
    ChangeItem, HostSpec, NetworkSpec, PortSpec, RouteSpec, SettingsSpec, Spec, SubnetSpec, TenantSpec,
    VmSpec,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{HostName, Mac, Name, PortRef, SubnetRef, VmRef};
use utoipa::ToSchema;

/// All that is desired, in a stable order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Site {
    /// Revision this was read at; ignored when applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What holds for the whole site, unless all of it is as it is by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsSpec>,
    /// Tenants.
    pub tenants: Vec<TenantSpec>,
    /// Hosts.
    pub hosts: Vec<HostSpec>,
    /// Networks.
    pub networks: Vec<NetworkSpec>,
    /// Subnets.
    pub subnets: Vec<SubnetSpec>,
    /// VMs with their ports.
    pub vms: Vec<SiteVm>,
    /// Customer routes.
    pub routes: Vec<RouteSpec>,
}

/// A VM with its ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteVm {
    /// Its name.
    #[schema(value_type = String, example = "contoso/sql")]
    pub name: VmRef,
    /// Its ports by name.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, SitePort>)]
    pub ports: BTreeMap<Name, SitePort>,
}

const fn yes() -> bool {
    true
}

/// A VM's port; as `PortSpec`, its name standing outside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SitePort {
    /// The subnet it is attached to.
    #[schema(value_type = String, example = "contoso/blue/web")]
    pub subnet: SubnetRef,
    /// Its MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Its customer addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The host it lives on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// The device on that host; with a host and without a device it is a tap that the host's agent makes and removes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Queues that the VM may open of such a tap, as many as its NIC has; what it has stays, 1 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether source MAC and address must be the port's.
    #[serde(default = "yes")]
    pub security: bool,
}

impl Site {
    /// The objects one by one, in an order in which each stands after what it names.
    #[must_use]
    pub fn specs(&self) -> Vec<Spec> {
        let mut all: Vec<Spec> = Vec::new();
        all.extend(self.settings.clone().map(Spec::Site));
        all.extend(self.tenants.iter().cloned().map(Spec::Tenant));
        all.extend(self.hosts.iter().cloned().map(Spec::Host));
        all.extend(self.networks.iter().cloned().map(Spec::Network));
        all.extend(self.subnets.iter().cloned().map(Spec::Subnet));
        for vm in &self.vms {
            all.push(Spec::Vm(VmSpec { name: vm.name.clone() }));
            all.extend(vm.ports.iter().map(|(name, p)| Spec::Port(p.spec(&vm.name, name))));
        }
        all.extend(self.routes.iter().cloned().map(Spec::Route));
        all
    }

    /// The change that puts all objects of this document (and deletes nothing).
    #[must_use]
    pub fn puts(&self) -> Vec<ChangeItem> {
        self.specs().into_iter().map(|object| ChangeItem::Put { object }).collect()
    }
}

impl SitePort {
    /// The port as an object of its own.
    #[must_use]
    pub fn spec(&self, vm: &VmRef, name: &Name) -> PortSpec {
        PortSpec {
            name: PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port: name.clone() },
            subnet: self.subnet.clone(),
            mac: self.mac,
            addresses: self.addresses.clone(),
            host: self.host.clone(),
            device: self.device.clone(),
            queues: self.queues,
            security: self.security,
        }
    }
}
