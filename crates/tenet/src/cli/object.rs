//! Arguments of the commands on objects.

use crate::cli::{Socket, name};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;
use tenet_model::{HostName, Mac, Method, Name, NetworkRef, SubnetRef, TenantName, Through, VmRef};
use uuid::Uuid;

/// Hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List the hosts
    List,
    /// Show all that is known of a host
    Show {
        /// The host
        host: HostName,
    },
    /// Print a one-time token with which a host joins; adds the host if it is not there
    Token {
        /// The host
        host: HostName,
        /// Its provider address; needed if the host is not there yet
        #[arg(long)]
        pa: Option<IpAddr>,
        /// Seconds until the token expires
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        ttl: u64,
    },
    /// Add a host
    Add {
        /// The host
        host: HostName,
        /// Its address on the provider network, IPv4 or IPv6 (the same for all hosts)
        #[arg(long)]
        pa: IpAddr,
        /// A range of addresses on the provider network that may stand for VMs' addresses there (method rewrite);
        /// may be given several times
        #[arg(long, value_name = "PREFIX")]
        rewrite_pool: Vec<IpNet>,
    },
    /// Alter a host
    Set {
        /// The host
        host: HostName,
        /// The ranges of addresses on the provider network that may stand for VMs' addresses there (method rewrite),
        /// in place of those it has; may be given several times
        #[arg(long, value_name = "PREFIX", required_unless_present = "no_rewrite_pool")]
        rewrite_pool: Vec<IpNet>,
        /// Take all of its ranges away
        #[arg(long, conflicts_with = "rewrite_pool")]
        no_rewrite_pool: bool,
    },
    /// Remove a host that has no ports
    Remove {
        /// The host
        host: HostName,
    },
}

/// Tenants.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant
    Create {
        /// The tenant
        tenant: TenantName,
    },
    /// List the tenants
    List,
    /// Show a tenant with its networks and VMs
    Show {
        /// The tenant
        tenant: TenantName,
    },
    /// Delete a tenant that owns nothing
    Delete {
        /// The tenant
        tenant: TenantName,
    },
}

/// Networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
        /// How its frames cross the provider network: nvgre, vxlan, geneve, stt or rewrite; nvgre if left out
        #[arg(long)]
        method: Option<Method>,
        /// Its routing domain id; chosen if left out
        #[arg(long)]
        rdid: Option<Uuid>,
    },
    /// Change how a network's frames cross the provider network, while it runs and without losing any
    Set {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
        /// The method: nvgre, vxlan, geneve, stt or rewrite
        #[arg(long)]
        method: Method,
    },
    /// List the networks
    List,
    /// Show a network with its subnets and routes
    Show {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
    },
    /// Delete a network that has no subnets
    Delete {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
    },
}

/// Subnets.
#[derive(Debug, Subcommand)]
pub enum SubnetCommand {
    /// Create a subnet
    Create {
        /// The subnet, as TENANT/NETWORK/SUBNET
        #[arg(value_parser = name::subnet)]
        subnet: SubnetRef,
        /// Its prefix, as 10.1.1.0/24 or fd00:1::/64; given twice, the subnet has one of IPv4 and one of IPv6
        #[arg(long = "prefix", value_name = "PREFIX", required = true)]
        prefixes: Vec<IpNet>,
        /// Its number on the wire, 4096 to 16777214; the lowest free one if left out
        #[arg(long)]
        vsid: Option<u32>,
        /// The gateway's address in the prefix that holds it; the first of the prefix if left out
        #[arg(long = "gateway", value_name = "ADDRESS")]
        gateways: Vec<IpAddr>,
    },
    /// List the subnets
    List,
    /// Show a subnet with its ports
    Show {
        /// The subnet, as TENANT/NETWORK/SUBNET
        #[arg(value_parser = name::subnet)]
        subnet: SubnetRef,
    },
    /// Delete a subnet that has no ports
    Delete {
        /// The subnet, as TENANT/NETWORK/SUBNET
        #[arg(value_parser = name::subnet)]
        subnet: SubnetRef,
    },
}

/// VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM, with a port if a subnet is given
    Create {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
        /// The port
        #[command(flatten)]
        port: NewPort,
    },
    /// List the VMs
    List,
    /// Show a VM with its ports
    Show {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
    },
    /// Delete a VM with its ports
    Delete {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
    },
    /// Attach a VM's port to a host: to a tap that its agent makes, or to a device that is there
    Attach {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
        /// The host
        #[arg(long)]
        host: HostName,
        /// A device that is there, a tap or the host's end of a veth; left out, the agent makes a tap
        #[arg(long)]
        device: Option<String>,
        /// Queues of the VM's NIC, for a tap that the agent makes
        #[arg(long)]
        queues: Option<u16>,
        /// The port, if the VM has several
        #[arg(long)]
        port: Option<Name>,
        /// The subnet, if the port shall be made
        #[arg(long, value_parser = name::subnet)]
        subnet: Option<SubnetRef>,
        /// Also if the VM runs on another host, by what the agent there said last: there it loses its network
        #[arg(long)]
        force: bool,
    },
    /// Print the arguments with which QEMU opens a VM's ports, for a shell
    RunArgs(RunArgs),
    /// Detach a VM's port from its host
    Detach {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
        /// The port; all of the VM's if left out
        #[arg(long)]
        port: Option<Name>,
    },
    /// Move a VM to another host while it runs: prepare the network, move it, follow it to its end; Ctrl-C gives it up,
    /// or says why it cannot, and a second one leaves it
    Migrate {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
        /// The destination
        #[arg(long)]
        to: HostName,
        /// The device there, or PORT=DEVICE for each port; the same name as on the source if left out
        #[arg(long = "device", value_name = "DEVICE", value_parser = name::device)]
        devices: Vec<(Option<Name>, String)>,
        /// Who moves the VM's memory
        #[command(flatten)]
        through: MoveThrough,
        /// With --qmp or --libvirt: once the first pass over the memory is done, let the VM go on at the destination, and
        /// the rest of its memory follow (post-copy); it moves however much it writes, but there is no way back then
        #[arg(long)]
        post_copy: bool,
        /// Return once the VM may move
        #[arg(long)]
        no_wait: bool,
    },
    /// Say that a VM runs on its migration's destination; its first frame says so by itself
    Switch {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
    },
    /// Give up a migration that is not yet switched, nor in post-copy
    Cancel {
        /// The VM
        #[arg(value_parser = name::vm)]
        vm: VmRef,
    },
}

/// Arguments of `vm run-args`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The VM
    #[arg(value_parser = name::vm)]
    pub vm: VmRef,
    /// The host where QEMU is to run: the VM's, or the one where it moves
    #[arg(long)]
    pub host: Option<HostName>,
    /// One argument a line, not quoted
    #[arg(long)]
    pub lines: bool,
    /// Where the agent looks for QEMU's monitors; as that agent says if left out, and /run/tenet/qmp if it does not
    #[arg(long, value_name = "DIR")]
    pub qmp_dir: Option<PathBuf>,
    /// This host's agent, which is asked where there is no controller's admin file
    #[command(flatten)]
    pub socket: Socket,
}

/// Who moves a VM's memory.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct MoveThrough {
    /// Another tool moves the VM once it may move; only the network is switched (this is so if nothing else is said)
    #[arg(long)]
    pub switch_only: bool,
    /// The source's agent moves it by QEMU's monitor to where an incoming QEMU waits, as tcp:10.0.0.2:49152
    /// (tcp:HOST:PORT, rdma:HOST:PORT or unix:/PATH)
    #[arg(long, value_name = "URI")]
    pub qmp: Option<String>,
    /// The source's agent moves it by libvirt, to qemu+ssh://HOST/system of the destination if no URI is given
    /// (qemu+ssh, qemu+tls, qemu+tcp or qemu+unix, without parameters that run programs)
    #[arg(long, value_name = "URI", num_args = 0..=1, default_missing_value = "")]
    pub libvirt: Option<String>,
}

impl MoveThrough {
    /// Through what, and where to.
    #[must_use]
    pub fn chosen(self, to: &HostName) -> (Through, Option<String>) {
        match (self.qmp, self.libvirt) {
            (Some(uri), _) => (Through::Qmp, Some(uri)),
            (None, Some(uri)) if uri.is_empty() => {
                (Through::Libvirt, Some(format!("qemu+ssh://{to}/system")))
            }
            (None, Some(uri)) => (Through::Libvirt, Some(uri)),
            (None, None) => (Through::SwitchOnly, None),
        }
    }
}

/// The first port of a new VM.
#[derive(Debug, Args)]
pub struct NewPort {
    /// The subnet it is attached to
    #[arg(long, value_parser = name::subnet)]
    pub subnet: Option<SubnetRef>,
    /// The port's name
    #[arg(long, default_value = "eth0", requires = "subnet")]
    pub port: Name,
    /// Its address, or one of its addresses; the lowest free one of each of the subnet's prefixes if left out
    #[arg(long = "address", value_name = "ADDRESS", requires = "subnet")]
    pub addresses: Vec<IpAddr>,
    /// Its MAC; chosen if left out
    #[arg(long, requires = "subnet")]
    pub mac: Option<Mac>,
    /// Let it send from any MAC and address, as an appliance that routes must
    #[arg(long, requires = "subnet")]
    pub no_security: bool,
}

/// Customer routes.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Create a route, or alter its metric
    Create {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
        /// Destination, as 0.0.0.0/0
        #[arg(long, value_name = "PREFIX")]
        to: IpNet,
        /// Next hop: the address of a port of the network
        #[arg(long, value_name = "ADDRESS")]
        via: IpAddr,
        /// Lowest wins
        #[arg(long, default_value_t = 0)]
        metric: u32,
    },
    /// List the routes
    List,
    /// Show a network's routes
    Show {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
    },
    /// Delete a route
    Delete {
        /// The network
        #[arg(value_parser = name::network)]
        network: NetworkRef,
        /// Destination
        #[arg(long, value_name = "PREFIX")]
        to: IpNet,
        /// Next hop
        #[arg(long, value_name = "ADDRESS")]
        via: IpAddr,
    },
}

/// What holds for the whole site.
#[derive(Debug, Subcommand)]
pub enum SiteCommand {
    /// Show what holds for the whole site
    Show,
    /// Alter what holds for the whole site
    #[command(arg_required_else_help = true)]
    Set {
        /// UDP port to which VXLAN is sent (4789 unless it was ever set); hosts receive it at 4789 as well
        #[arg(long, value_name = "PORT")]
        vxlan_port: Option<u16>,
        /// UDP port to which Geneve is sent (6081 unless it was ever set)
        #[arg(long, value_name = "PORT")]
        geneve_port: Option<u16>,
        /// Whether what runs on a host may fetch a VM of another host, as `virsh migrate` does (true unless it was
        /// ever set); with false, ask for it by `tenet vm migrate VM --to HOST --switch-only` first
        #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
        hosts_begin_migrations: Option<bool>,
    },
}
