//! What the agents measured: the ways between hosts, and their uplinks.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::HostName;
use utoipa::ToSchema;

/// The ways between the hosts, as measured with real probes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Paths {
    /// Whether no way is worse than the uplinks at its ends promise.
    pub ok: bool,
    /// The MTU of each host's uplink.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub uplinks: BTreeMap<HostName, u32>,
    /// The ways, one line for both directions between two hosts.
    pub pairs: Vec<PathPair>,
    /// What is wrong, and where to look; the likeliest cause of each narrow way is told once.
    pub findings: Vec<PathFinding>,
}

/// The ways between two hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PathPair {
    /// One host.
    #[schema(value_type = String)]
    pub a: HostName,
    /// The other host.
    #[schema(value_type = String)]
    pub b: HostName,
    /// From `a` to `b`, as `a` measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there: Option<PathView>,
    /// From `b` to `a`, as `b` measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<PathView>,
    /// What the uplinks at both ends promise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<u32>,
    /// Whether both directions were measured and carry that.
    pub ok: bool,
}

/// The way from one host to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PathView {
    /// Largest IP packet that got through, in bytes; none: not measured yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// `measured`, `searching` or `silent` (no answer: what was known before, or the uplink's MTU, is used).
    pub state: String,
    /// Round trip of the last answered probe in microseconds; 0: none.
    pub rtt_us: u32,
    /// Milliseconds since the last confirmation.
    pub age_ms: u64,
    /// Method that the probes go by.
    pub method: String,
    /// The router that said that larger packets do not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub limited_by: Option<IpAddr>,
    /// What an operator should know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Something that is wrong with ways between hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PathFinding {
    /// `host`, `pair`, `network`, `router`, `uplink` or `silent`.
    pub kind: String,
    /// The hosts concerned.
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<HostName>,
    /// What was measured, in plain words.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// An uplink, and how frames leave and arrive by it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Uplink {
    /// Its name.
    pub device: String,
    /// Its MTU.
    pub mtu: u32,
    /// How frames get from it into taps: `plain`, `hub` or `kernel`.
    pub receive: String,
    /// Why this way.
    pub receive_reason: String,
    /// All ways, as tried at the agent's start.
    pub ways: Vec<ReceiveWay>,
    /// The offload self-test, one line for each method.
    pub tests: Vec<OffloadTest>,
    /// UDP ports whose frames the kernel merges on arrival.
    pub tunnels: Vec<UdpTunnel>,
    /// Frames that came in pieces: some path is too small for what is sent on it.
    pub outer_fragments: u64,
    /// What to do.
    pub hints: Vec<String>,
}

/// A way from an uplink into taps.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ReceiveWay {
    /// `plain`, `hub` or `kernel`.
    pub name: String,
    /// Whether it works here.
    pub works: bool,
    /// Into how many frames a bundle of 64 KB came apart; 0: not measured.
    pub frames: u32,
    /// Nanoseconds per bundle; 0: not measured.
    pub nanoseconds: u64,
    /// Why it does not work.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Frames sent to another host by a method, with and without offloads, and looked at there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct OffloadTest {
    /// The method.
    pub method: String,
    /// The host that looked; empty: none was there.
    pub peer: String,
    /// `ok`, `degraded`, `broken` or `untested`.
    pub outcome: String,
    /// Frames with their checksums done: `ok`, or what was wrong.
    pub plain: String,
    /// Checksums left to the kernel or the NIC: `ok`, or what was wrong.
    pub checksum: String,
    /// Segmentation left to the kernel or the NIC: `ok`, or what was wrong.
    pub segments: String,
    /// Largest frame that arrived, in bytes.
    pub largest: u32,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A UDP port whose frames the kernel merges on arrival.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UdpTunnel {
    /// The method.
    pub method: String,
    /// The port.
    pub port: u16,
    /// Whether it does.
    pub merges: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
