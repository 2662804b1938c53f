//! Arguments of the controller and the agent.

use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Arguments of `controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Where the site, the certificate authority and the admin file are kept; root's alone
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tenet")]
    pub state_dir: PathBuf,
    /// Where people and tools are served (REST over TLS)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7443")]
    pub rest: SocketAddr,
    /// Where agents are served (gRPC over mutual TLS)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7444")]
    pub grpc: SocketAddr,
    /// A name or address under which this machine is reached, for its certificate; may be repeated
    #[arg(long = "address", value_name = "NAME")]
    pub addresses: Vec<String>,
}

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The controller's URL, as https://controller:7443; remembered from the first start on
    #[arg(long = "controller", value_name = "URL", env = "TENET_CONTROLLER")]
    pub controllers: Vec<String>,
    /// The join token from `tenet host token`, for the first start
    #[arg(long, value_name = "TOKEN", env = "TENET_JOIN_TOKEN", hide_env_values = true)]
    pub join: Option<String>,
    /// The NIC that carries the provider network; may be repeated
    #[arg(long = "uplink", value_name = "DEVICE")]
    pub uplinks: Vec<String>,
    /// Where key, certificate and the last state are kept; root's alone
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tenet-agent")]
    pub state_dir: PathBuf,
    /// Folder in the BPF file system where programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/tenet")]
    pub bpffs: PathBuf,
    /// How programs are attached
    #[arg(long, value_enum, default_value_t = Hook::Auto)]
    pub hook: Hook,
    /// How frames get from the uplinks into taps
    #[arg(long, value_enum, default_value_t = Receive::Auto)]
    pub receive: Receive,
    /// Leave the uplinks' offloads as they are, also those that the self-test finds wrong
    #[arg(long)]
    pub keep_offloads: bool,
    /// Where metrics are served; `off` serves none
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7445")]
    pub metrics: String,
    /// Where hypervisors and containers of this host ask for ports; root's alone; `none` opens none
    #[arg(long, value_name = "PATH", default_value = tenet_api::local::SOCKET)]
    pub socket: PathBuf,
    /// Seconds between two full compares of what the kernel holds and what it should
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub compare_every: u64,
    /// Where QEMU's monitors (QMP) of VMs are found, as TENANT.VM.sock; each belongs to the agent alone
    #[arg(long, value_name = "DIR", default_value = tenet_host_agent::QMP_DIR)]
    pub qmp_dir: PathBuf,
    /// The libvirt whose domains' events are watched, as qemu:///system; `auto`: this host's, as soon as there is one;
    /// `off`: none
    #[arg(long, value_name = "URI", default_value_t)]
    pub libvirt: tenet_host_agent::Libvirt,
    /// Leave the kernel part out: maps in memory, no frame carried (for measuring the control plane)
    #[arg(long, hide = true)]
    pub no_kernel: bool,
    /// Only say what this kernel has and lacks
    #[arg(long, conflicts_with = "detach")]
    pub check: bool,
    /// Take programs and maps out of the kernel; forwarding ends
    #[arg(long)]
    pub detach: bool,
    /// Make what must outlive a service with mounts of its own, and end; the unit's ExecStartPre
    #[arg(long, conflicts_with_all = ["detach", "check"])]
    pub prepare: bool,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Hook {
    /// TCX where the kernel has it (6.6), else clsact
    Auto,
    /// TCX
    Tcx,
    /// A clsact filter
    Clsact,
}

/// How frames get from the uplinks into taps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Receive {
    /// The best that works, as tried and measured at the start
    Auto,
    /// Taken out of the tunnel in tc; large frames reach taps cut up
    Plain,
    /// By way of a namespace with an SRv6 route, which keeps large frames whole
    Hub,
    /// Taken out of the tunnel in tc, where the kernel can forget the tunnel
    Kernel,
}
