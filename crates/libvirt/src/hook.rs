//! What a call of libvirt's qemu hook asks for.
//!
//! The order of calls, as libvirt makes them:
//!
//! | | calls |
//! | --- | --- |
//! | start | `prepare begin`, `start begin`, `started begin` |
//! | stop | `stopped end`, `release end` |
//! | migration, at the destination | `migrate begin`, `prepare begin`, `start begin`, `started begin`: all before memory moves |
//! | migration, at the source | `stopped end`, `release end`, when the guest runs elsewhere already |
//! | migration that failed, at the destination | `stopped end`, `release end` |
//! | libvirtd started again | `reconnect begin` for each running domain |
//!
//! No call tells that the guest has switched hosts, and `prepare begin` does not tell a start from an arrival: that is
//! what the agent and the controller know.

use crate::{Domain, DomainError, Mark, Source, mentions_us, set_target};
use std::net::IpAddr;
use tenet_model::{HostName, Mac, Name, PortRef, SubnetRef, VmRef, is_tap_name, tap_name};

/// The arguments of a hook's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call<'a> {
    /// The domain's name.
    pub domain: &'a str,
    /// `prepare`, `migrate`, `release` and others.
    pub operation: &'a str,
    /// `begin`, `end` or `-`.
    pub stage: &'a str,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing: it is none of our business, or not at this time.
    Nothing,
    /// Have the ports made ready.
    Prepare(Prepare),
    /// Say that the domain is over on this host.
    Release {
        /// The VM.
        vm: VmRef,
    },
}

/// Ports to make ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepare {
    /// The VM.
    pub vm: VmRef,
    /// For what.
    pub purpose: Purpose,
    /// Its ports, one for each interface that is ours.
    pub ports: Vec<Wanted>,
}

/// For what ports are made ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The domain starts here, or arrives by a migration that was told before.
    Start,
    /// The domain is about to arrive by a live migration.
    Incoming,
    /// It runs already; libvirtd has just come back. A refusal would make libvirt end the guest, so there is none.
    Running,
}

/// A port as the domain wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name; without it the site knows the port by its MAC.
    pub name: Option<Name>,
    /// Its MAC.
    pub mac: Mac,
    /// Its subnet, by which it may be made.
    pub subnet: Option<SubnetRef>,
    /// Its addresses, if it is made.
    pub addresses: Vec<IpAddr>,
    /// The tap that the domain opens.
    pub device: String,
    /// Whether somebody else than the agent makes that tap.
    pub foreign: bool,
    /// Queues of it that the domain opens.
    pub queues: u16,
}

/// A port that is ready, as the agent says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its MAC.
    pub mac: Mac,
    /// Its tap on this host.
    pub device: String,
    /// Its port.
    pub port: PortRef,
    /// Queues for which the agent makes the tap; none: somebody else makes it.
    pub queues: Option<u16>,
}

/// Why a domain cannot start as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HookError {
    /// Its description is wrong.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The bytes are no text.
    #[error("the description of domain {domain} is no UTF-8")]
    Encoding {
        /// The domain.
        domain: String,
    },
    /// An interface is of a type that has no tap of its own.
    #[error(
        "interface {mac} of domain {domain} is type='{found}', and port {port} needs \
         <interface type='ethernet'> with <target dev='{device}' managed='no'/>: \
         shut it down and run `tenet libvirt attach {domain} --mac {mac}`"
    )]
    Type {
        /// The domain.
        domain: String,
        /// The interface.
        mac: Mac,
        /// Its type.
        found: String,
        /// The port.
        port: Box<PortRef>,
        /// The tap that it should open.
        device: String,
    },
    /// libvirt would make the tap itself, after the hook.
    #[error(
        "interface {mac} of domain {domain} lacks <target dev='{device}' managed='no'/>: without managed='no' \
         libvirt makes a tap of its own; run `tenet libvirt attach {domain} --mac {mac}`"
    )]
    Managed {
        /// The domain.
        domain: String,
        /// The interface.
        mac: Mac,
        /// The tap that it should open.
        device: String,
    },
    /// The agent's tap has another name than the domain opens.
    #[error(
        "interface {mac} of domain {domain} opens {opened}, and its port is on {device}: \
         run `tenet libvirt attach {domain} --mac {mac}`"
    )]
    Device {
        /// The domain.
        domain: String,
        /// The interface.
        mac: Mac,
        /// What the domain opens.
        opened: String,
        /// What the port is on.
        device: String,
    },
    /// It opens several queues, and the tap has one.
    #[error(
        "interface {mac} of domain {domain} has <driver queues='{opened}'/>, and the tap of its port {port} is made \
         for one queue: run `tenet vm attach {} --port {} --host {} --queues {opened}`{}, or take \
         <driver queues> out with `virsh edit {domain}`",
        port.vm_ref(), port.port, named(host.as_ref()), whence(host.as_ref(), port)
    )]
    OneQueue {
        /// The domain.
        domain: String,
        /// The interface.
        mac: Mac,
        /// The port.
        port: Box<PortRef>,
        /// The host where the port is, if it is known.
        host: Option<HostName>,
        /// Queues that the domain opens.
        opened: u16,
    },
    /// It opens one queue, and the tap has several.
    #[error(
        "interface {mac} of domain {domain} opens one queue, and the tap of its port {port} is made for {queues}: add \
         <driver queues='{queues}'/> to it with `virsh edit {domain}`, or run \
         `tenet vm attach {} --port {} --host {} --queues 1`{}",
        port.vm_ref(), port.port, named(host.as_ref()), whence(host.as_ref(), port)
    )]
    SeveralQueues {
        /// The domain.
        domain: String,
        /// The interface.
        mac: Mac,
        /// The port.
        port: Box<PortRef>,
        /// The host where the port is, if it is known.
        host: Option<HostName>,
        /// Queues that the port has.
        queues: u16,
    },
}

fn named(host: Option<&HostName>) -> &str {
    host.map_or("HOST", HostName::as_str)
}

/// How to find a host that is not known here.
fn whence(host: Option<&HostName>, port: &PortRef) -> String {
    if host.is_some() {
        return String::new();
    }
    format!(" (`tenet vm show {}` tells the host that it is on)", port.vm_ref())
}

/// What a call asks for; `xml` is what libvirt wrote to the hook's standard input.
///
/// # Errors
/// [`HookError`] if the domain is ours and cannot start as it is described. Never for a domain that is not ours.
pub fn plan(call: Call<'_>, xml: &[u8]) -> Result<Plan, HookError> {
    let purpose = match (call.operation, call.stage) {
        ("prepare", "begin") => Some(Purpose::Start),
        ("migrate", "begin") => Some(Purpose::Incoming),
        ("reconnect", "begin") => Some(Purpose::Running),
        ("release", "end") => None,
        _ => return Ok(Plan::Nothing),
    };
    if !mentions_us(xml) {
        return Ok(Plan::Nothing);
    }
    let xml = std::str::from_utf8(xml).map_err(|_| HookError::Encoding { domain: call.domain.to_owned() })?;
    let domain = Domain::parse(xml)?;
    let Some(mark) = &domain.mark else { return Ok(Plan::Nothing) };
    let vm = mark.vm.clone();
    Ok(match purpose {
        None => Plan::Release { vm },
        Some(purpose) => Plan::Prepare(Prepare { vm, purpose, ports: wanted(&domain, mark)? }),
    })
}

/// The description that a domain shall have on the host that it moves to, if that is another one than it has.
///
/// # Errors
/// [`DomainError`] if that cannot be written.
pub fn redirect(xml: &str, wanted: &[Wanted], answers: &[Answer]) -> Result<Option<String>, DomainError> {
    let mut out = None;
    for want in wanted {
        let Some(answer) = answers.iter().find(|a| a.mac == want.mac) else { continue };
        if answer.device != want.device {
            out = Some(set_target(out.as_deref().unwrap_or(xml), want.mac, &answer.device)?);
        }
    }
    Ok(out)
}

impl Prepare {
    /// Checks that the domain opens what the agent of this host (`host`, if its name is known) has made ready.
    ///
    /// # Errors
    /// [`HookError::Device`] for the first one that differs.
    pub fn check(&self, domain: &str, answers: &[Answer], host: Option<&HostName>) -> Result<(), HookError> {
        self.check_queues(domain, answers, host)?;
        for want in &self.ports {
            let Some(answer) = answers.iter().find(|a| a.mac == want.mac) else { continue };
            if answer.device != want.device {
                return Err(HookError::Device {
                    domain: domain.to_owned(),
                    mac: want.mac,
                    opened: want.device.clone(),
                    device: answer.device.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Prepare {
    /// Checks that the domain opens each tap of the agent's as it is made: the kernel lets nobody open a tap for several
    /// queues with one, nor the other way round, and libvirt says of it only that the tap cannot be opened. `host` is
    /// where the port is to be changed: this one, and not the destination of a migration.
    ///
    /// # Errors
    /// [`HookError::OneQueue`] or [`HookError::SeveralQueues`] for the first one that differs.
    pub fn check_queues(
        &self,
        domain: &str,
        answers: &[Answer],
        host: Option<&HostName>,
    ) -> Result<(), HookError> {
        for want in &self.ports {
            let Some(answer) = answers.iter().find(|a| a.mac == want.mac) else { continue };
            let (domain, mac, port) = (domain.to_owned(), want.mac, Box::new(answer.port.clone()));
            match (want.queues, answer.queues) {
                (opened, Some(queues)) if opened > 1 && queues <= 1 => {
                    return Err(HookError::OneQueue { domain, mac, port, host: host.cloned(), opened });
                }
                (opened, Some(queues)) if opened <= 1 && queues > 1 => {
                    return Err(HookError::SeveralQueues { domain, mac, port, host: host.cloned(), queues });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn wanted(domain: &Domain, mark: &Mark) -> Result<Vec<Wanted>, HookError> {
    if mark.ports.is_empty() {
        // The site knows which of them are its ports.
        let plain = domain.interfaces.iter().filter(|i| i.source == Source::Ethernet && !i.managed);
        let known = plain.filter_map(|i| Some((i.mac?, i.device.clone()?, i.queues)));
        return Ok(known
            .map(|(mac, device, queues)| {
                let foreign = !is_tap_name(&device);
                Wanted { name: None, mac, subnet: None, addresses: Vec::new(), device, foreign, queues }
            })
            .collect());
    }
    mark.ports
        .iter()
        .map(|port| {
            let interface = domain.interface(port.mac)?;
            let name = mark.port(&port.name);
            let tap = tap_name(&name);
            let domain = domain.name.clone();
            let found = match &interface.source {
                Source::Ethernet => None,
                Source::Network(_) => Some("network".to_owned()),
                Source::Bridge(_) => Some("bridge".to_owned()),
                Source::Direct(_) => Some("direct".to_owned()),
                Source::Other(other) => Some(other.clone()),
            };
            if let Some(found) = found {
                return Err(HookError::Type {
                    domain,
                    mac: port.mac,
                    found,
                    port: Box::new(name),
                    device: tap,
                });
            }
            let Some(device) = interface.device.clone().filter(|_| !interface.managed) else {
                return Err(HookError::Managed { domain, mac: port.mac, device: tap });
            };
            Ok(Wanted {
                name: Some(port.name.clone()),
                mac: port.mac,
                subnet: port.subnet.clone(),
                addresses: port.addresses.clone(),
                foreign: device != tap,
                device,
                queues: interface.queues,
            })
        })
        .collect()
}
