//! Who may have a VM: what runs on a host asks for it, the desired state decides.
//!
//! A host may have a VM that is on no host, or on itself. A VM of another host comes to it by a live migration only,
//! which the claim begins where the site lets hosts do so ([`tenet_model::Site::hosts_begin_migrations`]).
//! A claim may make a VM and ports of it in a subnet that exists; it never alters MAC, addresses or subnet of a port
//! that is there, and never makes a tenant, a network or a subnet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use tenet_model::{Desired, HostName, Key, Mac, Name, NetworkRef, Phase, Port, PortRef, SubnetRef, VmRef};
use uuid::Uuid;

/// What a host asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The VM.
    pub vm: VmRef,
    /// Its ports; all that it has if none is named.
    pub ports: Vec<ClaimPort>,
    /// Whether it comes by a live migration.
    pub incoming: bool,
}

/// A port that a host asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClaimPort {
    /// Its name; else the one of that MAC, else the VM's only one.
    pub port: Option<Name>,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its network.
    pub network: Option<NetworkRef>,
    /// Its subnet there; the network's only one if not named.
    pub subnet: Option<Name>,
    /// Its customer addresses.
    pub addresses: Vec<IpAddr>,
    /// Its device; as it is, else a tap of the agent's, if not named.
    pub device: Option<String>,
    /// Queues that the VM opens of it; as many as it has, if not said.
    pub queues: Option<u16>,
}

/// A port as the host shall have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: PortRef,
    /// Its subnet.
    pub subnet: SubnetRef,
    /// Its MAC, if the claim says.
    pub mac: Option<Mac>,
    /// Its addresses, if the claim says.
    pub addresses: Vec<IpAddr>,
    /// Its device; none: a tap of the agent's.
    pub device: Option<String>,
    /// Queues of that tap, if the claim says.
    pub queues: Option<u16>,
    /// Port security, as it is.
    pub security: bool,
}

/// What is to be done for a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Granted {
    /// The ports are attached to the host; the VM is made first if it is new.
    Attach {
        /// Whether the VM must be made.
        new_vm: bool,
        /// Its ports.
        ports: Vec<Wanted>,
    },
    /// A migration of the VM to the host begins.
    Migrate {
        /// Where it comes from.
        from: HostName,
        /// Devices on the host that are named.
        devices: BTreeMap<Name, String>,
    },
    /// The migration to the host is under way.
    Join(Uuid),
    /// The VM has just moved to another host, and that migration is about to end: ask again when it is over.
    Later(Uuid),
}

/// How a VM's stay on a host ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It stopped.
    Stopped,
    /// It did not come up.
    Failed,
    /// It runs on another host.
    Moved,
}

/// Where a host had a VM that is over there, by the host's own state at that moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stay {
    /// An agent of an earlier version does not say.
    Unsaid,
    /// On its way to it, by a migration.
    Arriving,
    /// On it.
    Here,
    /// It had no port there, or none that had not moved away.
    Away,
}

/// What is to be done when a VM is over on a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Release {
    /// Its ports leave the host.
    Detach(Vec<PortRef>),
    /// Its migration is given up.
    Cancel,
    /// Its migration is past the switch: ask again when it is done.
    Later(Uuid),
    /// Nothing, because of this.
    Nothing(String),
}

/// Why a claim is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// Another host has the VM.
    #[error("VM {vm} is on host {on}")]
    Elsewhere {
        /// The VM.
        vm: VmRef,
        /// Who has it.
        on: HostName,
        /// Who asked.
        host: HostName,
    },
    /// Another host has the VM, and the site lets no host begin a migration.
    #[error(
        "VM {vm} is on host {on}, no migration to host {host} was asked for, and in this site no host begins one"
    )]
    NotAsked {
        /// The VM.
        vm: VmRef,
        /// Who has it.
        on: HostName,
        /// Who asked.
        host: HostName,
    },
    /// It is on its way to another host.
    #[error("VM {vm} is moving from host {from} to host {to}")]
    Moving {
        /// The VM.
        vm: VmRef,
        /// Its source.
        from: HostName,
        /// Its destination.
        to: HostName,
    },
    /// The VM is not in the site, and the claim does not say what to make.
    #[error("VM {0} does not exist")]
    NoVm(VmRef),
    /// The VM has no port.
    #[error("VM {0} has no port")]
    NoPort(VmRef),
    /// The port is not in the site, and the claim does not say what to make.
    #[error("port {0} does not exist")]
    UnknownPort(PortRef),
    /// Which of the VM's ports is meant is open.
    #[error("VM {0} has several ports")]
    WhichPort(VmRef),
    /// Two of the claim's ports are one.
    #[error("port {0} is claimed twice")]
    Twice(PortRef),
    /// Something that the claim names does not exist.
    #[error("{} does not exist", .0.title())]
    Unknown(Key),
    /// Which of the network's subnets is meant is open.
    #[error("network {0} has several subnets")]
    WhichSubnet(NetworkRef),
    /// A subnet is named without its network.
    #[error("subnet {0} is named without its network")]
    HalfNamed(Name),
    /// The port is there and is another.
    #[error("port {port} has {what} {has}, not {asked}")]
    Differs {
        /// The port.
        port: PortRef,
        /// In what.
        what: &'static str,
        /// What the site says.
        has: Box<str>,
        /// What the claim says.
        asked: Box<str>,
    },
}

impl Denied {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Elsewhere { vm, on, host } => format!(
                "move it with `tenet vm migrate {vm} --to {host}`; if it does not run on {on} any more, let it go there \
                 with `tenet vm detach {vm}`"
            ),
            Self::NotAsked { vm, host, .. } => format!(
                "begin it with `tenet vm migrate {vm} --to {host} --switch-only --no-wait`, then try again \
                 (`tenet site show`: hosts_begin_migrations)"
            ),
            Self::Moving { vm, .. } => {
                format!("wait until the move is done, or give it up with `tenet vm cancel {vm}`")
            }
            Self::NoVm(vm) => {
                format!("name network and subnet, and it is made; or make it with `tenet vm create {vm}`")
            }
            Self::NoPort(_) | Self::UnknownPort(_) => "name network and subnet, and the port is made".into(),
            Self::WhichPort(_) => "name the port or its MAC".into(),
            Self::Twice(_) => "name each port once".into(),
            Self::Unknown(Key::Network(_)) => {
                "check the name: `tenet network list` shows what there is".into()
            }
            Self::Unknown(_) => "check the name: `tenet subnet list` shows what there is".into(),
            Self::WhichSubnet(_) => "name the subnet".into(),
            Self::HalfNamed(_) => "name the network, too".into(),
            Self::Differs { .. } => {
                "a claim alters no port that is there: ask for it as it is, or alter it with `tenet apply`"
                    .into()
            }
        }
    }

    /// Whether something that was named is not there.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::NoVm(_) | Self::NoPort(_) | Self::UnknownPort(_) | Self::Unknown(_))
    }

    /// Whether it is the site's state that stands against it.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Elsewhere { .. } | Self::NotAsked { .. } | Self::Moving { .. } | Self::Differs { .. }
        )
    }
}

/// What is to be done for a host's claim.
///
/// # Errors
/// [`Denied`] if it may not have the VM, or names what is not there.
pub fn claim(desired: &Desired, host: &HostName, claim: &Claim) -> Result<Granted, Denied> {
    let vm = &claim.vm;
    if let Some(m) = desired.migrations.get(vm).map(|m| &m.value) {
        if m.to == *host {
            return Ok(Granted::Join(m.id));
        }
        if claim.incoming && m.phase == Phase::Switched {
            return Ok(Granted::Later(m.id));
        }
        return Err(Denied::Moving { vm: vm.clone(), from: m.from.clone(), to: m.to.clone() });
    }
    let elsewhere = desired.ports_of(vm).find_map(|(_, p)| p.value.host.as_ref().filter(|h| *h != host));
    if let (Some(on), false) = (elsewhere, claim.incoming) {
        return Err(Denied::Elsewhere { vm: vm.clone(), on: on.clone(), host: host.clone() });
    }
    if let (Some(on), false) = (elsewhere, desired.site.value.hosts_begin_migrations) {
        return Err(Denied::NotAsked { vm: vm.clone(), on: on.clone(), host: host.clone() });
    }
    let ports = wanted(desired, host, claim)?;
    let Some(from) = elsewhere else {
        return Ok(Granted::Attach { new_vm: !desired.vms.contains_key(vm), ports });
    };
    let named = |c: &Wanted| Some((c.name.port.clone(), c.device.clone()?));
    Ok(Granted::Migrate { from: from.clone(), devices: ports.iter().filter_map(named).collect() })
}

fn wanted(desired: &Desired, host: &HostName, claim: &Claim) -> Result<Vec<Wanted>, Denied> {
    let vm = &claim.vm;
    let known: Vec<&Port> = desired.ports_of(vm).map(|(_, p)| &p.value).collect();
    if !desired.vms.contains_key(vm) && claim.ports.iter().all(|p| p.network.is_none()) {
        return Err(Denied::NoVm(vm.clone()));
    }
    let here = |port: &Port| port.device.clone().filter(|_| port.host.as_ref() == Some(host));
    if claim.ports.is_empty() {
        let all: Vec<Wanted> = known.iter().map(|p| as_it_is(p, here(p))).collect();
        return if all.is_empty() { Err(Denied::NoPort(vm.clone())) } else { Ok(all) };
    }
    let mut all: Vec<Wanted> = Vec::new();
    for asked in &claim.ports {
        let subnet = subnet(desired, asked)?;
        let mut one = match (find(vm, &known, claim, asked)?, subnet) {
            (Some(port), subnet) => {
                agrees(port, asked, subnet.as_ref())?;
                as_it_is(port, here(port))
            }
            (None, Some(subnet)) => {
                let port = asked.port.clone().or_else(|| free_name(&known, &all));
                let name =
                    port.map(|port| port_ref(vm, port)).ok_or_else(|| Denied::WhichPort(vm.clone()))?;
                let (mac, addresses) = (asked.mac, asked.addresses.clone());
                Wanted { name, subnet, mac, addresses, device: None, queues: None, security: true }
            }
            (None, None) => {
                return Err(match &asked.port {
                    Some(port) => Denied::UnknownPort(port_ref(vm, port.clone())),
                    None => Denied::NoPort(vm.clone()),
                });
            }
        };
        if all.iter().any(|w| w.name == one.name) {
            return Err(Denied::Twice(one.name));
        }
        one.device = asked.device.clone().or(one.device);
        one.queues = asked.queues;
        all.push(one);
    }
    Ok(all)
}

/// The VM's port that is meant; none if it is a new one.
fn find<'a>(
    vm: &VmRef,
    known: &[&'a Port],
    claim: &Claim,
    asked: &ClaimPort,
) -> Result<Option<&'a Port>, Denied> {
    if let Some(name) = &asked.port {
        return Ok(known.iter().find(|p| p.name.port == *name).copied());
    }
    let of_mac = asked.mac.and_then(|mac| known.iter().find(|p| p.mac == mac));
    match (of_mac, known, claim.ports.len()) {
        (Some(port), ..) => Ok(Some(port)),
        (None, [only], 1) => Ok(Some(only)),
        (None, [], _) => Ok(None),
        (None, _, _) if asked.mac.is_some() => Ok(None),
        (None, ..) => Err(Denied::WhichPort(vm.clone())),
    }
}

/// Whether a port that is there is what is asked for.
fn agrees(port: &Port, asked: &ClaimPort, subnet: Option<&SubnetRef>) -> Result<(), Denied> {
    let differs = |what, has: String, asked: String| Denied::Differs {
        port: port.name.clone(),
        what,
        has: has.into(),
        asked: asked.into(),
    };
    if let Some(mac) = asked.mac.filter(|mac| *mac != port.mac) {
        return Err(differs("MAC", port.mac.to_string(), mac.to_string()));
    }
    if let Some(subnet) = subnet.filter(|s| **s != port.subnet) {
        return Err(differs("subnet", port.subnet.to_string(), subnet.to_string()));
    }
    let set = |list: &[IpAddr]| list.iter().copied().collect::<BTreeSet<_>>();
    if !asked.addresses.is_empty() && set(&asked.addresses) != set(&port.addresses) {
        let text = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(differs("address", text(&port.addresses), text(&asked.addresses)));
    }
    Ok(())
}

fn as_it_is(port: &Port, device: Option<String>) -> Wanted {
    Wanted {
        name: port.name.clone(),
        subnet: port.subnet.clone(),
        mac: None,
        addresses: Vec::new(),
        device,
        queues: None,
        security: port.security,
    }
}

fn subnet(desired: &Desired, asked: &ClaimPort) -> Result<Option<SubnetRef>, Denied> {
    let network = match (&asked.network, &asked.subnet) {
        (None, None) => return Ok(None),
        (None, Some(subnet)) => return Err(Denied::HalfNamed(subnet.clone())),
        (Some(network), _) => network,
    };
    if !desired.networks.contains_key(network) {
        return Err(Denied::Unknown(Key::Network(network.clone())));
    }
    if let Some(subnet) = &asked.subnet {
        let (tenant, network) = (network.tenant.clone(), network.network.clone());
        let name = SubnetRef { tenant, network, subnet: subnet.clone() };
        let known = desired.subnets.contains_key(&name);
        return if known { Ok(Some(name)) } else { Err(Denied::Unknown(Key::Subnet(name))) };
    }
    let mut all = desired.subnets_of(network).map(|(name, _)| name);
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(Some(only.clone())),
        (None, _) | (Some(_), Some(_)) => Err(Denied::WhichSubnet(network.clone())),
    }
}

fn port_ref(vm: &VmRef, port: Name) -> PortRef {
    PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port }
}

/// `eth0`, `eth1` …: the first that neither the VM nor the claim has.
fn free_name(known: &[&Port], taken: &[Wanted]) -> Option<Name> {
    let names = (0..1000).filter_map(|n| Name::new(format!("eth{n}")).ok());
    let free = |name: &Name| {
        known.iter().all(|p| p.name.port != *name) && taken.iter().all(|w| w.name.port != *name)
    };
    names.into_iter().find(free)
}

/// What is to be done when a VM is over on a host. A host that does not have it is told so and changes nothing: to let
/// go twice is no error. What is said of an earlier stay there may come when a migration brings the VM back, and does
/// nothing to that.
#[must_use]
pub fn release(
    desired: &Desired,
    host: &HostName,
    vm: &VmRef,
    (ended, stay): (Ended, Stay),
    ports: &[Name],
) -> Release {
    if let Some(m) = desired.migrations.get(vm).map(|m| &m.value) {
        let (from, to) = (m.from == *host, m.to == *host);
        let earlier = match (stay, m.phase) {
            (Stay::Away, _) | (Stay::Here, Phase::Preparing | Phase::Prepared) => true,
            (Stay::Unsaid | Stay::Arriving, _) | (Stay::Here, Phase::Switched) => false,
        };
        if to && ended == Ended::Stopped && earlier {
            return Release::Nothing(format!(
                "VM {vm} was over here before, and comes back from host {}",
                m.from
            ));
        }
        return match (ended, m.phase) {
            (Ended::Failed, Phase::Preparing | Phase::Prepared) if from || to => Release::Cancel,
            // It was only on its way here: it cannot have stopped.
            (Ended::Stopped, Phase::Preparing | Phase::Prepared) if to => Release::Cancel,
            (Ended::Failed | Ended::Stopped, Phase::Switched) if to => Release::Later(m.id),
            _ if from => Release::Nothing(format!("VM {vm} is moving to host {}: that decides", m.to)),
            _ if to => Release::Nothing(format!("VM {vm} is moving here from host {}", m.from)),
            _ => Release::Nothing(format!("VM {vm} is not on host {host}")),
        };
    }
    let here: Vec<PortRef> = desired
        .ports_of(vm)
        .filter(|(_, p)| p.value.host.as_ref() == Some(host))
        .map(|(name, _)| name.clone())
        .filter(|name| ports.is_empty() || ports.contains(&name.port))
        .collect();
    match ended {
        _ if here.is_empty() => Release::Nothing(format!("VM {vm} has no such port on host {host}")),
        // That it has gone is the migration's word, which has none to say so.
        Ended::Moved => Release::Nothing(format!("no move of VM {vm} from host {host} is known")),
        Ended::Stopped | Ended::Failed => Release::Detach(here),
    }
}
