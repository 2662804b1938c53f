//! What is: status, lookup table, counters, events.

use super::{MigrationView, NetworkView, PathFinding, Pool, Uplink};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{HostName, Mac, Method, NetworkRef, PortRef, Vsid};
use utoipa::ToSchema;

/// The whole site: desired, applied, proven.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The site's revision.
    pub revision: u64,
    /// The controller's version.
    pub version: String,
    /// Whether every host is connected and proven to hold what is desired.
    pub in_sync: bool,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
    /// Running migrations.
    pub migrations: Vec<MigrationView>,
    /// Networks whose method changes.
    #[serde(default)]
    pub switching: Vec<NetworkView>,
    /// What is wrong with the ways between hosts, and where to look; see `/v1/paths`.
    #[serde(default)]
    pub paths: Vec<PathFinding>,
}

/// One host: desired, applied, proven.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub name: HostName,
    /// Its provider address.
    #[schema(value_type = String)]
    pub pa: IpAddr,
    /// Whether its agent has a session.
    pub connected: bool,
    /// When the session began or ended, in milliseconds since 1970 (UTC).
    pub since_ms: Option<u64>,
    /// Its agent's version.
    pub version: Option<String>,
    /// Its kernel.
    pub kernel: Option<String>,
    /// How programs are attached: `tcx` or `clsact`.
    pub hook: Option<String>,
    /// Its uplinks.
    pub uplinks: Vec<String>,
    /// MTU of its uplink.
    pub uplink_mtu: Option<u32>,
    /// Where its agent looks for QEMU's monitors; left out: nowhere, or it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp_dir: Option<String>,
    /// What its agent found out about its uplinks: how frames are received, and the offload self-test.
    #[serde(default)]
    pub measured: Vec<Uplink>,
    /// Its rewrite pool.
    #[serde(default, skip_serializing_if = "Pool::is_empty")]
    pub pool: Pool,
    /// Generation of its desired state.
    pub desired_generation: u64,
    /// Last generation it acknowledged.
    pub applied_generation: Option<u64>,
    /// Last generation it read back from its kernel.
    pub proven_generation: Option<u64>,
    /// Milliseconds since then.
    pub proven_age_ms: Option<u64>,
    /// Whether what was read back lately is what is desired, and all its ports do what they shall.
    pub in_sync: bool,
    /// Why its last acknowledgement was a refusal.
    pub error: Option<String>,
    /// Its networks.
    pub networks: Vec<NetworkStatus>,
    /// Its ports.
    pub ports: Vec<PortStatusView>,
    /// What its agent found wrong and could not put right.
    pub problems: Vec<String>,
    /// What its agent found changed in the kernel and put right, newest last.
    pub repaired: Vec<String>,
}

/// One network on one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// The network.
    #[schema(value_type = String)]
    pub network: NetworkRef,
    /// Generation of the newest desired row.
    pub desired_generation: u64,
    /// Digest of the desired rows, in hexadecimal.
    pub desired_digest: String,
    /// Last generation that the host acknowledged.
    pub applied_generation: Option<u64>,
    /// Digest of what was read back from the kernel.
    pub proven_digest: Option<String>,
    /// Generation at which it was read back.
    pub proven_generation: Option<u64>,
    /// Milliseconds since then.
    pub proven_age_ms: Option<u64>,
    /// Rows read back.
    pub rows: u64,
    /// Whether the digests are equal.
    pub in_sync: bool,
}

/// One port on one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortStatusView {
    /// The port.
    #[schema(value_type = String)]
    pub port: PortRef,
    /// Its desired device.
    pub device: String,
    /// `blocked`, `active`, `prepared` or `moved`: as desired.
    pub desired_state: String,
    /// As the kernel has it; none if not yet reported.
    pub state: Option<String>,
    /// Its device exists and carries the program.
    pub present: bool,
    /// Its device has a carrier.
    pub carrier: bool,
    /// Its device's index.
    pub ifindex: u32,
    /// Largest inner packet, in bytes.
    pub mtu: u32,
    /// What is missing, in plain words.
    pub detail: String,
}

/// Lookup records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Table {
    /// The host whose kernel was asked; none: as desired, for the whole site.
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// The site's revision.
    pub revision: u64,
    /// The records.
    pub rows: Vec<TableRow>,
}

/// A lookup record, as HNV printed it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TableRow {
    /// The network.
    #[schema(value_type = String)]
    pub network: NetworkRef,
    /// Customer address.
    #[schema(value_type = String)]
    pub ca: IpAddr,
    /// MAC.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Virtual subnet.
    #[schema(value_type = u32)]
    pub vsid: Vsid,
    /// Provider address.
    #[schema(value_type = String)]
    pub pa: IpAddr,
    /// The second legal provider address while a migration runs.
    #[schema(value_type = Option<String>)]
    pub alt_pa: Option<IpAddr>,
    /// How frames for it cross the provider network.
    #[schema(value_type = String)]
    pub method: Method,
    /// The provider address that stands for it (method `rewrite`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rewrite_pa: Option<IpAddr>,
    /// `Static`: written by the controller.
    #[serde(rename = "type")]
    pub kind: String,
    /// The port.
    #[schema(value_type = Option<String>)]
    pub port: Option<PortRef>,
    /// Generation that last changed it.
    pub generation: u64,
    /// Whether the kernel's record is the desired one (of the host asked, or of all hosts that need it).
    pub in_sync: bool,
    /// What differs, in plain words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Counters of ports and uplinks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// One line per port or uplink and host.
    pub ports: Vec<PortCounters>,
    /// Hosts that could not be asked, with the reason.
    #[schema(value_type = BTreeMap<String, String>)]
    pub missing: BTreeMap<HostName, String>,
}

/// Counters of one port or uplink on one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// The host.
    #[schema(value_type = String)]
    pub host: HostName,
    /// `tenant/vm/port`, or `uplink:NAME`.
    pub port: String,
    /// Frames sent by the VM.
    pub tx_frames: u64,
    /// Bytes sent by the VM.
    pub tx_bytes: u64,
    /// Frames delivered to the VM.
    pub rx_frames: u64,
    /// Bytes delivered to the VM.
    pub rx_bytes: u64,
    /// Frames sent on to the host that the VM moved to.
    pub redirected: u64,
    /// Requests answered from the table (ARP, gateway ping).
    pub answered: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// Frames replicated.
    pub flooded: u64,
    /// Frames given to the slow device, because STT's fast path cannot finish them.
    #[serde(default)]
    pub slow: u64,
    /// TCP connections whose segment size was lowered to what fits.
    #[serde(default)]
    pub clamped: u64,
    /// Frames that the tap did not take, because no VM had it open or its queue was full.
    #[serde(default)]
    pub tap_unread: u64,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
    /// Of `redirected`: frames that a VM had left unread in its tap when it was moved.
    #[serde(default)]
    pub drained: u64,
    /// What could not be sent on of that, by reason.
    #[serde(default)]
    pub undrained: BTreeMap<String, u64>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct EventLine {
    /// Running number since the controller's start.
    pub id: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// What kind: `change`, `session-opened`, `session-closed`, `migration`, `method`, `path`, `repaired`, `problem`,
    /// `refused`, or the data plane's own (`unknown-destination`, `spoof` …).
    pub kind: String,
    /// The host concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// The port concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Further values by name (vsid, mac, ca, pa, migration …).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// In plain words.
    pub text: String,
}
