//! Arguments of `tenet libvirt`.

use super::name;
use clap::{Args, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;
use tenet_model::{Mac, Name, NetworkRef, TenantName, VmRef};

/// libvirt's domains.
#[derive(Debug, Subcommand)]
pub enum LibvirtCommand {
    /// Let libvirt call `tenet libvirt hook` from now on
    InstallHook(InstallHookArgs),
    /// Attach a domain to a network, running or not
    Attach(DomainArgs),
    /// List the domains that are there and propose a site file for them
    Import(ImportArgs),
    /// What libvirt calls, with the domain's XML on standard input: makes ports ready, or refuses with the reason
    Hook(HookArgs),
}

/// Where the agent of this host listens.
#[derive(Clone, Debug, Args)]
pub struct Socket {
    /// The socket of this host's agent
    #[arg(long, value_name = "FILE", env = "TENET_SOCKET", default_value = tenet_api::local::SOCKET)]
    pub socket: PathBuf,
    /// Longest wait for the agent, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub timeout: u64,
}

/// Arguments of `libvirt hook`.
#[derive(Debug, Args)]
pub struct HookArgs {
    /// The agent
    #[command(flatten)]
    pub agent: Socket,
    /// The domain
    pub domain: String,
    /// What libvirt does: prepare, start, started, stopped, release, migrate, restore, reconnect
    pub operation: String,
    /// Whether it begins or ends
    #[arg(default_value = "-")]
    pub stage: String,
    /// What else libvirt says
    #[arg(default_value = "-")]
    pub extra: String,
}

/// Arguments of `libvirt install-hook`.
#[derive(Debug, Args)]
pub struct InstallHookArgs {
    /// The agent
    #[command(flatten)]
    pub agent: Socket,
    /// The folder of libvirt's hooks
    #[arg(long, value_name = "DIR", default_value = "/etc/libvirt/hooks")]
    pub dir: PathBuf,
    /// Be the only qemu hook, for libvirt before 6.5, which knows no folder qemu.d
    #[arg(long)]
    pub single: bool,
    /// Take it out again
    #[arg(long)]
    pub remove: bool,
}

/// Arguments of `libvirt attach`.
#[derive(Debug, Args)]
pub struct DomainArgs {
    /// The domain
    pub domain: String,
    /// The network; without it the port is one that the domain or the site knows already
    #[arg(long, value_parser = name::network, requires = "subnet")]
    pub network: Option<NetworkRef>,
    /// The subnet in it
    #[arg(long, requires = "network")]
    pub subnet: Option<Name>,
    /// The VM; named as the domain and of the network's tenant if left out
    #[arg(long, value_parser = name::vm)]
    pub vm: Option<VmRef>,
    /// The port; the next of eth0, eth1 ... if left out
    #[arg(long)]
    pub port: Option<Name>,
    /// MAC of an interface of the domain that shall become the port; a new interface if left out
    #[arg(long)]
    pub mac: Option<Mac>,
    /// Its address, or one of its addresses; chosen if left out
    #[arg(long = "address", value_name = "ADDRESS", requires = "subnet")]
    pub addresses: Vec<IpAddr>,
    /// Kind of a new interface
    #[arg(long, default_value = "virtio")]
    pub model: String,
    /// Queues of its interface, and with it of its tap; those that it has if left out, 1 for a new one
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub queues: Option<u16>,
    /// libvirt, as `virsh` takes it
    #[arg(short, long, value_name = "URI", default_value = "qemu:///system")]
    pub connect: String,
    /// The agent
    #[command(flatten)]
    pub agent: Socket,
}

/// Arguments of `libvirt import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// libvirt, as `virsh` takes it
    #[arg(short, long, value_name = "URI", default_value = "qemu:///system")]
    pub connect: String,
    /// Whose the VMs and networks shall be
    #[arg(long, default_value = tenet_model::DEFAULT_TENANT)]
    pub tenant: TenantName,
}
