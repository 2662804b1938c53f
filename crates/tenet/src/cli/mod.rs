//! The arguments of all commands, and with them the command line's reference.

mod lab;
mod libvirt;
mod local;
mod name;
mod object;
mod role;

pub use lab::{ExecArgs, LabCommand, LabTool, Vms};
pub use libvirt::{DomainArgs, HookArgs, ImportArgs, InstallHookArgs, LibvirtCommand};
pub use local::{AttachArgs, AttachedArgs, DetachArgs, Place, Socket};
pub use name::MigrationName;
pub use object::{
    HostCommand, NetworkCommand, RouteCommand, RunArgs, SiteCommand, SubnetCommand, TenantCommand, VmCommand,
};
pub use role::{AgentArgs, ControllerArgs, Hook, Receive};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use tenet_model::{HostName, NetworkRef, VmRef};

/// What a command's exit code means; a part of --help and of the reference.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done, or nothing to do
  1  refused or failed; the message says why and what to do next
  2  the command line is wrong
  3  the controller cannot be reached, or its admin file cannot be read
  4  a conflict: somebody else changed it first, or another object stands in the way
  5  stored, but not all hosts are proven to hold it, or to be reached (`status`, `table`, `counters`, `paths`, and
     changes that wait)
`lab exec` ends with the exit code of the command that it ran.

Names are written TENANT/NAME, as in contoso/sql; a name without a tenant is tenant `default`'s.";

/// Isolated virtual networks for many tenants over an ordinary routed network.
#[derive(Debug, Parser)]
#[command(name = "tenet", version, after_help = EXIT_CODES, max_term_width = 110, arg_required_else_help = true)]
#[command(infer_subcommands = false, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// How to print: tables for people, JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, help_heading = "Common options")]
    pub output: Output,
    /// The controller's admin file, which says where it is and lets us in
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TENET_ADMIN_FILE",
        default_value = "/var/lib/tenet/admin.json",
        help_heading = "Common options"
    )]
    pub admin_file: PathBuf,
    /// Talk to the controller of this lab instead
    #[arg(long, global = true, value_name = "NAME", env = "TENET_LAB", help_heading = "Common options")]
    pub lab: Option<String>,
    /// Longest wait until a change is in the hosts' kernels, in seconds; 0 does not wait
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 10,
        help_heading = "Common options"
    )]
    pub wait: u64,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// Tables for people.
    Table,
    /// JSON for programs, as the REST API sends it.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller: keeps what is desired and tells every host what it needs
    Controller(ControllerArgs),
    /// Run a host's agent: writes the kernel's tables as the controller says
    Agent(AgentArgs),
    /// Hosts: servers that run an agent
    #[command(subcommand)]
    Host(HostCommand),
    /// Tenants: who owns networks and VMs
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Networks: isolated routing domains, each with an address space of its own
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Subnets of networks
    #[command(subcommand)]
    Subnet(SubnetCommand),
    /// VMs and their ports
    #[command(subcommand)]
    Vm(VmCommand),
    /// Customer routes of networks
    #[command(subcommand)]
    Route(RouteCommand),
    /// What holds for the whole site
    #[command(subcommand)]
    Site(SiteCommand),
    /// Show the lookup table: as desired, or as it stands in the kernel of one host
    Table(TableArgs),
    /// Show what is desired, applied and proven, host by host; exit code 5 if these differ
    Status,
    /// Show how large packets may be between the hosts, as measured, and which link or host is wrong; exit code 5 if
    /// one is
    Paths(PathsArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Show the counters of ports and uplinks
    Counters(CountersArgs),
    /// Show running migrations, and what past ones cost
    Migrations(MigrationsArgs),
    /// Show what past migrations cost
    Receipts(PastArgs),
    /// Make the site as a file says; shows the difference first
    Apply(ApplyArgs),
    /// Print the site as a file that `apply` takes
    Export,
    /// Attach a network namespace of this host, as a container has one, to a network
    Attach(AttachArgs),
    /// Detach a network namespace of this host
    Detach(DetachArgs),
    /// Show the ports of this host as its agent knows them, controller or not
    Attached(AttachedArgs),
    /// A whole site on this machine: hosts and VMs as network namespaces
    #[command(subcommand)]
    Lab(LabCommand),
    /// libvirt's domains: their hook, attaching and importing them
    #[command(subcommand)]
    Libvirt(LibvirtCommand),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Tools that run inside of a lab's VMs
    #[command(subcommand, hide = true)]
    LabTool(LabTool),
    /// Print documentation that is generated from the code
    #[command(subcommand, hide = true)]
    Docs(DocsCommand),
}

/// Arguments of `table`.
#[derive(Debug, Args)]
pub struct TableArgs {
    /// The host whose kernel is asked; without it, what is desired for the site
    pub host: Option<HostName>,
    /// Only this network's records
    #[arg(long, value_parser = name::network)]
    pub network: Option<NetworkRef>,
}

/// Arguments of `paths`.
#[derive(Debug, Args)]
pub struct PathsArgs {
    /// Only this host's paths
    pub host: Option<HostName>,
    /// Also list the paths that are as they should be, however many there are
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
}

/// Arguments of `counters`.
#[derive(Debug, Args)]
pub struct CountersArgs {
    /// Only this host's
    pub host: Option<HostName>,
}

/// Arguments of `receipts`.
#[derive(Debug, Args)]
pub struct PastArgs {
    /// Only this VM's
    #[arg(value_parser = name::vm)]
    pub vm: Option<VmRef>,
    /// All past ones instead of the last 20 (programs, with -o json, get all of them)
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `migrations`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MigrationsArgs {
    /// One of them, whole
    #[command(subcommand)]
    pub command: Option<MigrationsCommand>,
    /// Which
    #[command(flatten)]
    pub past: PastArgs,
}

/// What is done with one migration.
#[derive(Debug, Subcommand)]
pub enum MigrationsCommand {
    /// Show the whole receipt of a migration, with each host's acknowledgement
    Show {
        /// The VM, for its newest; or as much of an id as `tenet migrations` prints
        #[arg(value_name = "VM|ID", value_parser = name::migration)]
        migration: MigrationName,
    },
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The site file; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Only show the difference
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Delete what the file does not have (of hosts, tenants and all that is in them)
    #[arg(long)]
    pub prune: bool,
    /// Also if the file names other hosts for VMs that run where they are, by what the agents there said last: there they
    /// lose their network
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    pub shell: Shell,
}

/// Documentation.
#[derive(Debug, Subcommand)]
pub enum DocsCommand {
    /// The reference of the command line, in Markdown
    Cli,
}
