//! Arguments of the commands that ask this host's agent.

use crate::cli::name;
use clap::Args;
use std::{net::IpAddr, path::PathBuf, str::FromStr};
use tenet_model::{Mac, Name, NameError, NetworkRef, VmRef};

/// Where the agent of this host listens.
#[derive(Debug, Args)]
pub struct Socket {
    /// The agent's socket
    #[arg(long, value_name = "PATH", env = "TENET_SOCKET", default_value = tenet_api::local::SOCKET)]
    pub socket: PathBuf,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The namespace: a name as `ip netns` knows it, /a/path, or pid:NUMBER of a process in it
    #[arg(long, value_name = "NETNS")]
    pub netns: Place,
    /// What the namespace is in the site
    #[arg(long, value_parser = name::vm)]
    pub vm: VmRef,
    /// Its network, as NETWORK (of the VM's tenant) or TENANT/NETWORK; needed if the port is new
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// The subnet there; may be left out if there is one only
    #[arg(long, requires = "network")]
    pub subnet: Option<Name>,
    /// The device in the namespace
    #[arg(long, default_value = "eth0")]
    pub device: String,
    /// The port; named as the device if left out
    #[arg(long)]
    pub port: Option<Name>,
    /// Its customer address; may be repeated; as it is, or chosen, if left out
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<IpAddr>,
    /// Its MAC; as it is, or chosen, if left out
    #[arg(long)]
    pub mac: Option<Mac>,
    /// Make no default routes
    #[arg(long)]
    pub no_default_route: bool,
    /// Longest wait until the port is there, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub timeout: u64,
    /// The agent
    #[command(flatten)]
    pub socket: Socket,
}

impl AttachArgs {
    /// The network; without a tenant it is the VM's.
    pub fn network(&self) -> Result<Option<NetworkRef>, NameError> {
        let full = |text: &String| match text.contains('/') {
            true => text.parse(),
            false => {
                Name::new(text.as_str()).map(|network| NetworkRef { tenant: self.vm.tenant.clone(), network })
            }
        };
        self.network.as_ref().map(full).transpose()
    }
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The namespace; may be left out if VM is given, as for one that is gone
    #[arg(long, value_name = "NETNS", required_unless_present = "vm")]
    pub netns: Option<Place>,
    /// The VM; found by the namespace's device if left out
    #[arg(long, value_parser = name::vm)]
    pub vm: Option<VmRef>,
    /// The device in the namespace
    #[arg(long, default_value = "eth0")]
    pub device: String,
    /// The port; named as the device if left out
    #[arg(long)]
    pub port: Option<Name>,
    /// The agent
    #[command(flatten)]
    pub socket: Socket,
}

/// Arguments of `attached`.
#[derive(Debug, Args)]
pub struct AttachedArgs {
    /// The agent
    #[command(flatten)]
    pub socket: Socket,
}

/// Where a namespace is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// By its name in `/run/netns`.
    Name(String),
    /// By a path, as `/proc/1/ns/net`.
    Path(PathBuf),
    /// By a process in it.
    Process(u32),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(pid) = text.strip_prefix("pid:") {
            return pid.parse().map(Self::Process).map_err(|_| format!("`{pid}` is no process id"));
        }
        match text {
            "" => Err("name a namespace: NAME, /a/path or pid:NUMBER".into()),
            path if path.starts_with('/') => Ok(Self::Path(path.into())),
            name if name.contains('/') => Err("write a path from the root on, as /proc/1/ns/net".into()),
            name => Ok(Self::Name(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => path.display().fmt(f),
            Self::Process(pid) => write!(f, "pid:{pid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_named_in_three_ways() {
        assert_eq!("web".parse(), Ok(Place::Name("web".into())));
        assert_eq!("/proc/7/ns/net".parse(), Ok(Place::Path("/proc/7/ns/net".into())));
        assert_eq!("pid:7".parse(), Ok(Place::Process(7)));
        assert!("pid:x".parse::<Place>().is_err() && "a/b".parse::<Place>().is_err());
        assert!("".parse::<Place>().is_err());
    }
}
