//! What an agent is told when it starts.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use tenet_model::VmRef;

/// How an agent runs.
pub struct Options {
    /// Where key, certificate and the last state are kept; root's alone.
    pub state_dir: PathBuf,
    /// Base URLs of the controllers' REST listeners (as `https://controller:7443`); after the first start those of
    /// then are taken where none are given.
    pub controllers: Vec<String>,
    /// Join token, for the first start.
    pub token: Option<String>,
    /// The NICs that carry the provider network.
    pub uplinks: Vec<String>,
    /// The kernel's part.
    pub kernel: KernelPart,
    /// Whether offloads of the uplinks stay as they are, also those that the self-test finds wrong.
    pub keep_offloads: bool,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where hypervisors and containers of this host ask for ports; nowhere if not said.
    pub socket: Option<PathBuf>,
    /// Time between two full compares of kernel and wanted state.
    pub compare_every: Duration,
    /// Where QEMU's monitors (QMP) are found, as `TENANT.VM.sock`; none: VMs are not watched this way.
    pub qmp_dir: Option<PathBuf>,
    /// The libvirt whose domains' events are watched.
    pub libvirt: Libvirt,
    /// Called once the maps are open and the uplinks carry their program, controller or not.
    pub ready: Option<Box<dyn FnOnce() + Send>>,
}

/// Time between two full compares, unless told otherwise.
pub const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// Where QEMU's monitors are found, unless told otherwise.
pub const QMP_DIR: &str = "/run/tenet/qmp";

/// Where a VM's monitor is in the folder of monitors.
#[must_use]
pub fn monitor_path(dir: &Path, vm: &VmRef) -> PathBuf {
    dir.join(format!("{}.{}.sock", vm.tenant, vm.vm))
}

/// The libvirt whose domains an agent follows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Libvirt {
    /// This host's, as soon as there is one.
    #[default]
    Auto,
    /// None.
    Off,
    /// The one at this URI.
    At(String),
}

/// What names no libvirt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is none of `auto`, `off` and a libvirt's URI, as qemu:///system")]
pub struct NoLibvirt(String);

impl FromStr for Libvirt {
    type Err = NoLibvirt;

    fn from_str(text: &str) -> Result<Self, NoLibvirt> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            // A word alone is rather a slip than one of the aliases of libvirt.conf.
            uri if uri.contains("://") => Ok(Self::At(uri.to_owned())),
            other => Err(NoLibvirt(other.to_owned())),
        }
    }
}

impl fmt::Display for Libvirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::At(uri) => uri,
        })
    }
}

/// Where the programs and maps are pinned, unless told otherwise.
pub const BPFFS: &str = "/sys/fs/bpf/tenet";

/// What stands for the kernel.
pub enum KernelPart {
    /// The kernel of this host (of the calling thread's network namespace).
    Real {
        /// Folder in a bpffs for pinned maps and links.
        bpffs: PathBuf,
        /// How programs are attached.
        hook: Hook,
        /// How frames get from the uplinks into taps.
        receive: tenet_datapath::Receive,
    },
    /// Maps in memory on a host where every device exists: no privilege needed, no frame carried.
    None {
        /// MTU of the imagined uplink.
        uplink_mtu: u32,
    },
    /// Anything else, for tests.
    Other(Box<dyn crate::Kernel>),
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hook {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX.
    Tcx,
    /// A clsact filter.
    Clsact,
}
