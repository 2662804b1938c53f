//! What an agent is told when it starts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
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
    /// The libvirt (a connection's URI) whose domains' events are watched.
    pub libvirt: Option<String>,
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
