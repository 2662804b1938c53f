//! The objects of a site, as the store keeps them.

use crate::{
    HostName, Key, Mac, Method, Name, NetId, NetworkRef, PortRef, SubnetRef, TenantName, VmRef, Vsid,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uuid::Uuid;

/// Who owns networks and VMs (HNV's customer).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
}

/// A tenant's isolated routing domain with its own address space (HNV's VM network).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: NetworkRef,
    /// Routing domain id (HNV's RDID).
    pub rdid: Uuid,
    /// Its number in the kernel's maps.
    pub id: NetId,
    /// How its frames cross the provider network.
    pub method: Method,
}

/// One L2 segment and its prefix in a network (HNV's virtual subnet).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    /// Its name.
    pub name: SubnetRef,
    /// Its number on the wire.
    pub vsid: Vsid,
    /// Its prefix, host bits zero.
    pub prefix: IpNet,
    /// The distributed gateway's address.
    pub gateway: IpAddr,
}

/// A machine whose NICs are ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: VmRef,
}

/// One NIC of a VM, attached to one subnet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: PortRef,
    /// The subnet it is attached to.
    pub subnet: SubnetRef,
    /// Its MAC.
    pub mac: Mac,
    /// Its customer addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The host it lives on, if it is attached.
    pub host: Option<HostName>,
    /// The device on that host (tap or host side of a veth), if it is attached.
    pub device: Option<String>,
    /// Whether source MAC and address must be the port's (off for appliances).
    pub security: bool,
}

/// A server that runs an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its provider address.
    pub pa: IpAddr,
}

/// A customer route of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// The network.
    pub network: NetworkRef,
    /// Destination, host bits zero.
    pub prefix: IpNet,
    /// Next hop's customer address, in one of the network's subnets.
    pub next_hop: IpAddr,
    /// Lowest wins.
    pub metric: u32,
}

impl Route {
    /// What tells it from other routes: network, prefix and next hop.
    #[must_use]
    pub fn key_parts(&self) -> (NetworkRef, IpNet, IpAddr) {
        (self.network.clone(), self.prefix, self.next_hop)
    }
}

/// How far a migration is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The destination gets the ports (prepared) and all hosts of the networks the second legal address.
    Preparing,
    /// All of them acknowledged; the VM may move.
    Prepared,
    /// The VM runs on the destination; records are rewritten, the source redirects.
    Switched,
}

/// A running migration of a VM with all its attached ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// The VM.
    pub vm: VmRef,
    /// Identifies this migration in events and receipts.
    pub id: Uuid,
    /// Source host.
    pub from: HostName,
    /// Destination host.
    pub to: HostName,
    /// Devices on the destination, by port name.
    pub devices: std::collections::BTreeMap<Name, String>,
    /// How far it is.
    pub phase: Phase,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// When the switch was seen, in milliseconds since 1970 (UTC).
    pub switched_ms: Option<u64>,
}

/// What a finished migration cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The VM.
    pub vm: VmRef,
    /// The migration.
    pub id: Uuid,
    /// Source host.
    pub from: HostName,
    /// Destination host.
    pub to: HostName,
    /// Whether the VM runs on the destination (else it was rolled back to the source).
    pub moved: bool,
    /// Why it was rolled back, in plain words.
    pub reason: Option<String>,
    /// Frames that the source sent on to the destination.
    pub redirected: u64,
    /// Frames for the VM that either host had to drop while it moved (`port_down`, `port_blocked`, `loop`).
    pub lost: u64,
    /// Whether both hosts told their counters before and after the move; else the two numbers above are only what is
    /// known: too low where a host did not answer, too high where the controller started again meanwhile.
    #[serde(default)]
    pub exact: bool,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// From the request until all hosts were prepared, in microseconds.
    pub prepare_us: u64,
    /// From the switch until the last host acknowledged its new records, in microseconds.
    pub last_ack_us: u64,
    /// Per host: microseconds from the switch to its acknowledgement.
    pub acks_us: std::collections::BTreeMap<HostName, u64>,
}

/// Anything that is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Object {
    /// A tenant.
    Tenant(Tenant),
    /// A network.
    Network(Network),
    /// A subnet.
    Subnet(Subnet),
    /// A VM.
    Vm(Vm),
    /// A port.
    Port(Port),
    /// A host.
    Host(Host),
    /// A customer route.
    Route(Route),
    /// A running migration.
    Migration(Migration),
}

impl Object {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Tenant(o) => Key::Tenant(o.name.clone()),
            Self::Network(o) => Key::Network(o.name.clone()),
            Self::Subnet(o) => Key::Subnet(o.name.clone()),
            Self::Vm(o) => Key::Vm(o.name.clone()),
            Self::Port(o) => Key::Port(o.name.clone()),
            Self::Host(o) => Key::Host(o.name.clone()),
            Self::Route(o) => Key::Route(o.network.clone(), o.prefix, o.next_hop),
            Self::Migration(o) => Key::Migration(o.vm.clone()),
        }
    }
}
