//! What a host measured of its ways to the others and of its uplinks.

use std::net::IpAddr;
use tenet_model::HostName;

/// All that a host measured; each report replaces the one before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Measured {
    /// The ways to the other hosts.
    pub paths: Vec<PathReport>,
    /// Its uplinks.
    pub uplinks: Vec<UplinkReport>,
}

/// How far the measurement of a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// The value holds.
    Measured,
    /// The value is looked for.
    Searching,
    /// The other host does not answer: what was known before, or the uplink's MTU, is used.
    Silent,
}

impl PathState {
    /// Its name, as in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Searching => "searching",
            Self::Silent => "silent",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Measured, Self::Searching, Self::Silent].into_iter().find(|s| s.name() == name)
    }
}

/// The way to another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathReport {
    /// The other host.
    pub peer: HostName,
    /// Its provider address.
    pub pa: IpAddr,
    /// Largest IP packet that got through, if that is known.
    pub mtu: Option<u16>,
    /// How far the measurement is.
    pub state: PathState,
    /// Round trip of the last probe in microseconds, or 0.
    pub rtt_us: u32,
    /// Age of the last confirmation when this was sent, in milliseconds.
    pub age_ms: u64,
    /// Method that the probes go by.
    pub method: String,
    /// Router that said that larger packets do not pass.
    pub limited_by: Option<IpAddr>,
    /// What an operator should know, or empty.
    pub detail: String,
}

/// An uplink, and how frames leave and arrive by it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UplinkReport {
    /// Its name.
    pub device: String,
    /// Its MTU.
    pub mtu: u32,
    /// How frames get from it into taps: plain, hub, kernel.
    pub receive: String,
    /// Why this way.
    pub receive_reason: String,
    /// All ways as tried.
    pub ways: Vec<ReceiveWay>,
    /// One per method.
    pub tests: Vec<OffloadTest>,
    /// One per UDP port of a method.
    pub tunnels: Vec<UdpTunnel>,
    /// Frames that came in pieces.
    pub outer_fragments: u64,
    /// What to do.
    pub hints: Vec<String>,
}

/// A way from an uplink into taps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReceiveWay {
    /// plain, hub, kernel.
    pub name: String,
    /// Whether it works here.
    pub works: bool,
    /// Into how many frames a bundle of 64 KB came apart, or 0.
    pub frames: u32,
    /// Nanoseconds per bundle, or 0.
    pub nanoseconds: u64,
    /// Why it does not work.
    pub detail: String,
}

/// Frames sent to another host by a method, with and without offloads, and looked at there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OffloadTest {
    /// The method.
    pub method: String,
    /// The host that looked, or empty.
    pub peer: String,
    /// ok, degraded, broken, untested.
    pub outcome: String,
    /// Frames whose checksums were done: ok, or what was wrong.
    pub plain: String,
    /// Checksums left to the kernel or the NIC.
    pub checksum: String,
    /// Segmentation left to the kernel or the NIC.
    pub segments: String,
    /// Largest frame that arrived, in bytes.
    pub largest: u32,
    /// What to do, or empty.
    pub detail: String,
}

/// A UDP port whose frames the kernel merges on arrival.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UdpTunnel {
    /// The method.
    pub method: String,
    /// The port.
    pub port: u16,
    /// Whether it does.
    pub merges: bool,
    /// Why not, or empty.
    pub detail: String,
}
