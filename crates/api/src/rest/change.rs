//! Changes: what one sends to alter the desired state, and what comes back.

use super::Spec;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{HostName, Key, Mac, Name, NetworkRef, PortRef, SubnetRef, TenantName, Through, VmRef};
use utoipa::{IntoParams, ToSchema};

/// Names an object to delete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// A tenant.
    Tenant {
        /// Its name.
        #[schema(value_type = String)]
        name: TenantName,
    },
    /// A network.
    Network {
        /// Its name.
        #[schema(value_type = String)]
        name: NetworkRef,
    },
    /// A subnet.
    Subnet {
        /// Its name.
        #[schema(value_type = String)]
        name: SubnetRef,
    },
    /// A VM, with its ports.
    Vm {
        /// Its name.
        #[schema(value_type = String)]
        name: VmRef,
    },
    /// A port.
    Port {
        /// Its name.
        #[schema(value_type = String)]
        name: PortRef,
    },
    /// A host.
    Host {
        /// Its name.
        #[schema(value_type = String)]
        name: HostName,
    },
    /// A customer route.
    Route {
        /// The network.
        #[schema(value_type = String)]
        network: NetworkRef,
        /// Destination.
        #[schema(value_type = String)]
        prefix: IpNet,
        /// Next hop's customer address.
        #[schema(value_type = String)]
        next_hop: IpAddr,
    },
}

impl Target {
    /// The object's key in the model.
    #[must_use]
    pub fn key(&self) -> Key {
        match self.clone() {
            Self::Tenant { name } => Key::Tenant(name),
            Self::Network { name } => Key::Network(name),
            Self::Subnet { name } => Key::Subnet(name),
            Self::Vm { name } => Key::Vm(name),
            Self::Port { name } => Key::Port(name),
            Self::Host { name } => Key::Host(name),
            Self::Route { network, prefix, next_hop } => Key::Route(network, prefix, next_hop),
        }
    }
}

/// One line of a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum ChangeItem {
    /// Creates the object or brings it to this form.
    Put {
        /// What it shall be.
        object: Spec,
    },
    /// Deletes the object.
    Delete {
        /// Which.
        object: Target,
    },
}

/// Several changes as one: all of them or none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangesRequest {
    /// The lines, in any order.
    pub changes: Vec<ChangeItem>,
    /// Only check, and say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Refuse (409) if the site is no longer at this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Also if it takes ports to other hosts that VMs use where they are, by what the agents there said last: these VMs
    /// lose their network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// What became of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It is new.
    Created,
    /// It was altered.
    Updated,
    /// It was already so.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// An object that a change concerned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Which, as `kind/name`.
    #[schema(example = "vm/contoso/sql")]
    pub object: String,
    /// What became of it.
    pub effect: Effect,
    /// Its form now, with everything filled in; none if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Spec>,
}

/// How far a change had come on the hosts when the answer was sent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// Whether all connected hosts concerned had it in their kernels.
    pub complete: bool,
    /// Connected hosts concerned that had not yet acknowledged.
    pub waiting_for: Vec<String>,
    /// Time waited, in microseconds.
    pub waited_us: u64,
}

/// What a change did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangeReply {
    /// The site's revision after the change (or now, if nothing changed or it was a dry run).
    pub revision: u64,
    /// Whether nothing was written because only a check was asked for.
    pub dry_run: bool,
    /// The objects concerned.
    pub changed: Vec<Changed>,
    /// Present if the caller asked to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
}

/// Until when an answer is held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// Until the change is stored.
    #[default]
    Stored,
    /// Until the connected hosts concerned have it in their kernels.
    Applied,
}

/// Query of every changing request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Until when the answer is held back; `stored` if omitted.
    #[serde(default)]
    #[param(inline)]
    pub wait: Wait,
    /// Longest wait in milliseconds; 10,000 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

const fn yes() -> bool {
    true
}

/// A new VM, optionally with one port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name.
    #[schema(value_type = String, example = "contoso/sql")]
    pub name: VmRef,
    /// Its first port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<CreateVmPort>,
}

/// The first port of a new VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVmPort {
    /// Its name; `eth0` if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// The subnet it is attached to.
    #[schema(value_type = String, example = "contoso/blue/web")]
    pub subnet: SubnetRef,
    /// Its MAC; chosen if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Its customer address, if it has one; the lowest free one of each of the subnet's prefixes if no address is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Its customer addresses, if it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Whether source MAC and address must be the port's; true if omitted.
    #[serde(default = "yes")]
    pub security: bool,
}

/// Attaches a VM's port to a host; the port is made if a subnet is given and it does not exist.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The port; if omitted, the VM's only one (or `eth0` if it has none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub port: Option<Name>,
    /// The host.
    #[schema(value_type = String, example = "h1")]
    pub host: HostName,
    /// A device there that somebody else made (tap or host side of a veth); if omitted, the host's agent makes a tap,
    /// whose name the answer and the VM's view tell, and removes it when the port leaves the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "vnet0")]
    pub device: Option<String>,
    /// Queues that the VM may open of such a tap, as many as its NIC has; what it has stays, 1 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The subnet, if the port is to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub subnet: Option<SubnetRef>,
    /// Also if a VM uses the port on another host, by what the agent there said last: it loses its network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Detaches a VM's port from its host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// The port; all of the VM's if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub port: Option<Name>,
}

/// Begins a live migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Destination host.
    #[schema(value_type = String, example = "h2")]
    pub to: HostName,
    /// Devices on the destination, by port name; a port left out has the device name it has on the source.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub devices: BTreeMap<Name, String>,
    /// Who moves the VM's memory: `switch-only` (another tool), or the source's agent by `qmp` or `libvirt`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub through: Through,
    /// Where to, for `qmp` (as `tcp:10.0.0.2:49152`; an incoming QEMU waits there) and `libvirt` (as
    /// `qemu+ssh://h2/system`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// For `qmp` and `libvirt`: once the first pass over the memory is done, the VM goes on at the destination and the
    /// rest of its memory follows (post-copy). From then on there is no way back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_copy: bool,
}

impl Migrate {
    /// To this host by another tool, with the devices that the ports have on the source.
    #[must_use]
    pub const fn to(host: HostName) -> Self {
        Self { to: host, devices: BTreeMap::new(), through: Through::SwitchOnly, uri: None, post_copy: false }
    }
}

/// Asks for a one-time join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The host that will join with it.
    #[schema(value_type = String, example = "h1")]
    pub name: HostName,
    /// Its provider address; must be the host's if it exists already, and is needed if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub pa: Option<IpAddr>,
    /// Seconds until it expires; one hour if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// A one-time join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// `tenet1.FINGERPRINT.SECRET`; shown only here.
    pub token: String,
    /// When it expires, in milliseconds since 1970 (UTC).
    pub expires_ms: u64,
}

/// A host asks for its certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The join token.
    pub token: String,
    /// PEM of a certificate request; only its key is used, the name comes from the token.
    pub csr_pem: String,
}

/// What a host gets that joined.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    /// Its name.
    #[schema(value_type = String)]
    pub host: HostName,
    /// Its provider address.
    #[schema(value_type = String)]
    pub pa: IpAddr,
    /// PEM of its certificate.
    pub certificate_pem: String,
    /// PEM of the certificate authority.
    pub ca_pem: String,
    /// Port of the controller's gRPC listener.
    pub grpc_port: u16,
}
