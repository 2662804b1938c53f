//! Arguments of the lab's commands.

use clap::{Args, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;
use tenet_model::{Family, Method};

/// Labs.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring a lab up
    Up {
        /// The lab's name
        #[arg(default_value = "demo")]
        name: String,
        /// The site file; without it, two tenants with the same addresses on two hosts
        #[arg(long, value_name = "FILE")]
        site: Option<PathBuf>,
        /// The provider network's family; with v6, each host has an IPv6 address made of its IPv4 one
        #[arg(long, value_name = "FAMILY", value_parser = family)]
        underlay: Option<Family>,
        /// The method of the networks that name none: nvgre, vxlan, geneve, stt or rewrite
        #[arg(long)]
        method: Option<Method>,
        /// Attach programs by clsact, as on kernels before 6.6
        #[arg(long)]
        clsact: bool,
        /// What VMs are: namespaces, or real guests under QEMU
        #[arg(long, value_enum, value_name = "KIND", default_value_t = Vms::Namespaces)]
        vms: Vms,
    },
    /// End a lab and remove all that it made, also what a crashed `up` left
    Down {
        /// The lab's name
        #[arg(default_value = "demo")]
        name: String,
    },
    /// List the labs
    List,
    /// Show a lab's hosts, VMs and processes
    Status {
        /// The lab's name
        #[arg(default_value = "demo")]
        name: String,
    },
    /// Run a command in a VM, as in `lab exec contoso/web -- ping 10.1.1.11`
    Exec(ExecArgs),
    /// Use the serial console of a VM that is a real guest; Ctrl-] leaves it
    Console {
        /// The VM, as TENANT/VM
        vm: String,
    },
    /// Move a running VM to another host, the VM's part included, and print what it cost
    Migrate {
        /// The VM
        vm: String,
        /// The destination
        host: String,
    },
    /// Show in plain words what Tenet does, check each thing shown, and clean up
    Demo {
        /// Leave the lab running
        #[arg(long)]
        keep: bool,
        /// Attach programs by clsact, as on kernels before 6.6
        #[arg(long)]
        clsact: bool,
        /// What VMs are: namespaces, or real guests under QEMU
        #[arg(long, value_enum, value_name = "KIND", default_value_t = Vms::Namespaces)]
        vms: Vms,
    },
}

/// What a lab's VMs are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Vms {
    /// Network namespaces: up at once
    Namespaces,
    /// Real guests under QEMU, which are emulated; needs qemu-system-x86 and busybox-static
    Qemu,
}

/// Arguments of `lab exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The VM, as TENANT/VM
    #[arg(required_unless_present_any = ["host", "router"])]
    pub vm: Option<String>,
    /// Run on this host instead
    #[arg(long, value_name = "HOST", conflicts_with_all = ["router", "vm"])]
    pub host: Option<String>,
    /// Run on the physical network's router instead
    #[arg(long, conflicts_with = "vm")]
    pub router: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Tools that run inside of a lab's VMs.
#[derive(Debug, Subcommand)]
pub enum LabTool {
    /// Answer for all VMs of a lab, each with its name
    Respond {
        /// The lab's folder
        dir: PathBuf,
    },
    /// Ask who is at an address
    Ask {
        /// The address
        address: IpAddr,
    },
    /// Ask an address many times a second and say what was lost
    Probe {
        /// The address
        address: IpAddr,
        /// The name that should answer
        #[arg(long)]
        expect: String,
        /// Questions a second
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// For so many seconds
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Send a checked TCP stream to an address
    Stream {
        /// The address
        address: IpAddr,
        /// For so many seconds
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Microseconds between two chunks of 64 KB; 0 sends as fast as it goes
        #[arg(long, default_value_t = 2000)]
        pace_us: u64,
    },
}

/// `v4` or `v6`.
fn family(text: &str) -> Result<Family, String> {
    match text {
        "v4" => Ok(Family::V4),
        "v6" => Ok(Family::V6),
        _ => Err("use v4 or v6".to_owned()),
    }
}
