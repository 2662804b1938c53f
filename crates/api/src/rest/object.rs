//! Specs and views of the objects of a site.

use super::SubnetSpec;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use tenet_model::{
    ActivatedBy, HostName, Mac, Method, Name, NetworkRef, PortRef, SubnetRef, TenantName, Through, VmRef,
};
use utoipa::ToSchema;
use uuid::Uuid;

/// A tenant, as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSpec {
    /// Its name.
    #[schema(value_type = String, example = "contoso")]
    pub name: TenantName,
}

/// A tenant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TenantView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: TenantName,
    /// Revision that wrote it.
    pub revision: u64,
}

/// A network, as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name.
    #[schema(value_type = String, example = "contoso/blue")]
    pub name: NetworkRef,
    /// Its routing domain id; chosen if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdid: Option<Uuid>,
    /// How its frames cross the provider network: `nvgre`, `vxlan`, `geneve`, `stt` or `rewrite`; nvgre if omitted, and
    /// what it is stays. A network that exists changes in two steps, receivers first, and loses no frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "nvgre")]
    pub method: Option<Method>,
}

/// What to alter of a network.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkPatch {
    /// How its frames shall cross the provider network. With `wait=applied` the answer comes once all connected hosts
    /// send by it. A further change meanwhile replaces this one; the present method gives it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "vxlan")]
    pub method: Option<Method>,
}

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NetworkRef,
    /// Its routing domain id.
    pub rdid: Uuid,
    /// Its number in the kernel's maps.
    pub id: u32,
    /// How its frames cross the provider network.
    #[schema(value_type = String)]
    pub method: Method,
    /// The method that it is about to have: its hosts are being made ready to receive it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub switching: Option<Method>,
    /// Hosts whose acknowledgement a change of method waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub waiting_for: Vec<HostName>,
    /// Revision that wrote it.
    pub revision: u64,
}

/// A VM, as asked for; its ports are asked for by themselves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name.
    #[schema(value_type = String, example = "contoso/sql")]
    pub name: VmRef,
}

/// A VM with its ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VmRef,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// Its running migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationView>,
    /// Revision that wrote it.
    pub revision: u64,
}

const fn yes() -> bool {
    true
}

/// A port, as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its name.
    #[schema(value_type = String, example = "contoso/sql/eth0")]
    pub name: PortRef,
    /// The subnet it is attached to.
    #[schema(value_type = String, example = "contoso/blue/web")]
    pub subnet: SubnetRef,
    /// Its MAC; what it has stays, a new one is chosen if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Its customer addresses; what it has stays, the lowest free one of the subnet if none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The host it lives on; left out: stays where it is (detaching is a request of its own).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// The device on that host; with a host and without a device it is a tap that the host's agent makes and removes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Queues that the VM may open of such a tap, as many as its NIC has; what it has stays, 1 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether source MAC and address must be the port's (off for appliances).
    #[serde(default = "yes")]
    pub security: bool,
}

const fn one() -> u16 {
    1
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: PortRef,
    /// The subnet it is attached to.
    #[schema(value_type = String)]
    pub subnet: SubnetRef,
    /// Its MAC.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Its customer addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The host it lives on.
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// The device on that host.
    pub device: Option<String>,
    /// Whether the device is a tap that the host's agent makes and removes.
    #[serde(default)]
    pub tap: bool,
    /// Queues that the VM may open of such a tap.
    #[serde(default = "one")]
    pub queues: u16,
    /// Whether source MAC and address must be the port's.
    pub security: bool,
    /// The provider address that stands for each of its customer addresses (method `rewrite`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub rewrite: BTreeMap<IpAddr, IpAddr>,
    /// Revision that wrote it.
    pub revision: u64,
}

/// A host, as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Its name.
    #[schema(value_type = String, example = "h1")]
    pub name: HostName,
    /// Its provider address, IPv4 or IPv6 (all hosts of a site: the same).
    #[schema(value_type = String, example = "192.168.1.10")]
    pub pa: IpAddr,
    /// Ranges of provider addresses that may stand for customer addresses here (method `rewrite`); what it has stays
    /// if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["192.168.1.128/25"]))]
    pub rewrite_pool: Option<Vec<IpNet>>,
}

/// What to alter of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostPatch {
    /// Ranges of provider addresses that may stand for customer addresses here, in place of those it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["192.168.1.128/25"]))]
    pub rewrite_pool: Option<Vec<IpNet>>,
}

/// A host's rewrite pool and its use.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its ranges.
    #[schema(value_type = Vec<String>)]
    pub ranges: Vec<IpNet>,
    /// Addresses in use.
    pub used: u64,
    /// Addresses that there are; at most 2⁶⁴ − 1 are told.
    pub size: u64,
}

impl Pool {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.used == 0
    }
}

/// What holds for the whole site, as asked for; what is omitted stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingsSpec {
    /// UDP port to which VXLAN is sent; 4789 unless it was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 4789)]
    pub vxlan_port: Option<u16>,
    /// UDP port to which Geneve is sent; 6081 unless it was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 6081)]
    pub geneve_port: Option<u16>,
    /// Whether a hypervisor's tool on a host may fetch a VM of another host, as `virsh migrate` does; if not, a
    /// migration is asked for here first. True unless it was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub hosts_begin_migrations: Option<bool>,
}

/// What holds for the whole site.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingsView {
    /// UDP port to which VXLAN is sent; hosts receive it at 4789 as well.
    pub vxlan_port: u16,
    /// UDP port to which Geneve is sent.
    pub geneve_port: u16,
    /// UDP port to which VXLAN will be sent, once all hosts receive it there as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_vxlan_port: Option<u16>,
    /// UDP port to which Geneve will be sent, once all hosts receive it there as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_geneve_port: Option<u16>,
    /// Hosts that a change of these ports waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub waiting_for: Vec<HostName>,
    /// Whether a hypervisor's tool on a host may fetch a VM of another host.
    #[serde(default = "yes")]
    pub hosts_begin_migrations: bool,
    /// Revision that wrote it; 0: these are the defaults.
    pub revision: u64,
}

/// A host and how it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: HostName,
    /// Its provider address.
    #[schema(value_type = String)]
    pub pa: IpAddr,
    /// Its rewrite pool.
    #[serde(default, skip_serializing_if = "Pool::is_empty")]
    pub pool: Pool,
    /// Revision that wrote it.
    pub revision: u64,
    /// Whether its agent has a session.
    pub connected: bool,
    /// Whether what its kernel holds was proven to be what is desired.
    pub in_sync: bool,
    /// Ports attached to it.
    pub ports: u64,
    /// Its agent's version, if it ever connected to this controller.
    pub version: Option<String>,
}

/// A customer route, as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// The network.
    #[schema(value_type = String, example = "contoso/blue")]
    pub network: NetworkRef,
    /// Destination.
    #[schema(value_type = String, example = "0.0.0.0/0")]
    pub prefix: IpNet,
    /// Next hop's customer address.
    #[schema(value_type = String, example = "10.1.1.12")]
    pub next_hop: IpAddr,
    /// Lowest wins; 0 if omitted.
    #[serde(default)]
    pub metric: u32,
}

/// A customer route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteView {
    /// The network.
    #[schema(value_type = String)]
    pub network: NetworkRef,
    /// Destination.
    #[schema(value_type = String)]
    pub prefix: IpNet,
    /// Next hop's customer address.
    #[schema(value_type = String)]
    pub next_hop: IpAddr,
    /// Lowest wins.
    pub metric: u32,
    /// Revision that wrote it.
    pub revision: u64,
}

/// A running migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    /// The VM.
    #[schema(value_type = String)]
    pub vm: VmRef,
    /// Identifies this migration in events and receipts.
    pub id: Uuid,
    /// Source host.
    #[schema(value_type = String)]
    pub from: HostName,
    /// Destination host.
    #[schema(value_type = String)]
    pub to: HostName,
    /// Devices on the destination, by port name.
    #[schema(value_type = BTreeMap<String, String>)]
    pub devices: BTreeMap<Name, String>,
    /// `preparing`, `prepared` (the VM may move) or `switched`.
    pub phase: String,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// When the switch was seen, in milliseconds since 1970 (UTC).
    pub switched_ms: Option<u64>,
    /// Hosts whose acknowledgement of the present phase is awaited.
    #[serde(default)]
    pub waiting_for: Vec<String>,
    /// Who moves the VM's memory: `switch-only` (another tool), `qmp`, `libvirt`, or `other` (a tool that began it).
    #[serde(default)]
    #[schema(value_type = String)]
    pub through: Through,
    /// Where it is moved to, in the hypervisor's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Whether it was asked to switch to post-copy after the first pass over the memory, or has done so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_copy: bool,
    /// How far the hypervisor is; none before it said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// How far a hypervisor is with moving a VM's memory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Bytes moved so far.
    pub transferred: u64,
    /// Bytes in all; 0 if not known.
    pub total: u64,
    /// QEMU's word: `setup`, `active`, `postcopy-active`, `completed` …, or `stopped` once the VM stands still.
    pub status: String,
}

/// What a finished migration cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReceiptView {
    /// The VM.
    #[schema(value_type = String)]
    pub vm: VmRef,
    /// The migration.
    pub id: Uuid,
    /// Source host.
    #[schema(value_type = String)]
    pub from: HostName,
    /// Destination host.
    #[schema(value_type = String)]
    pub to: HostName,
    /// Whether the VM runs on the destination (else it was rolled back to the source).
    pub moved: bool,
    /// Why it was rolled back.
    pub reason: Option<String>,
    /// Frames that the source sent on to the destination.
    pub redirected: u64,
    /// Frames for the VM that either host had to drop while it moved, or that its tap there did not take.
    pub lost: u64,
    /// Of `redirected`: frames that the VM had left unread in its tap on the source when it was stopped.
    #[serde(default)]
    pub drained: u64,
    /// Whether both hosts told their counters before and after the move; else the two numbers above are not reliable.
    #[serde(default)]
    pub exact: bool,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// From the request until all hosts were prepared, in microseconds.
    pub prepare_us: u64,
    /// From the switch until the last host acknowledged its new records, in microseconds.
    pub last_ack_us: u64,
    /// Per host: microseconds from the switch to its acknowledgement.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub acks_us: BTreeMap<HostName, u64>,
    /// Hosts that had not acknowledged when the migration ended: their VMs do not reach the VM until they do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub behind: BTreeSet<HostName>,
    /// From the VM's stop on the source until it ran on the destination, in microseconds, as the hypervisors' words
    /// reached the controller; none if one of them was not heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// The same in QEMU's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_us: Option<u64>,
    /// From RESUME on the destination to the VM's first frame there, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_frame_us: Option<u64>,
    /// What told that the VM runs on the destination: `frame`, `resume` or `operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub activated_by: Option<ActivatedBy>,
    /// Who moved the VM's memory: `switch-only`, `qmp`, `libvirt` or `other`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub through: Through,
    /// Whether the VM ran on the destination before all of its memory was there.
    #[serde(default)]
    pub post_copy: bool,
    /// The VM's attached ports, all of which moved as one.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub ports: BTreeSet<Name>,
}

/// What a switch led to: the receipt if it was waited for, else the migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptOrMigration {
    /// It is done.
    Receipt(ReceiptView),
    /// It goes on.
    Migration(MigrationView),
}

/// Anything one can ask for in a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Spec {
    /// A tenant.
    Tenant(TenantSpec),
    /// A network.
    Network(NetworkSpec),
    /// A subnet.
    Subnet(SubnetSpec),
    /// A VM.
    Vm(VmSpec),
    /// A port.
    Port(PortSpec),
    /// A host.
    Host(HostSpec),
    /// A customer route.
    Route(RouteSpec),
    /// What holds for the whole site.
    Site(SettingsSpec),
}
