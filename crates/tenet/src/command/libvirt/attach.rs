//! Attaches a domain to a network, running or not.

use super::refused;
use super::virsh::Virsh;
use crate::cli::DomainArgs;
use crate::command::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use tenet_api::local::{self, LocalClient, LocalError, LocalPort, PreparePort};
use tenet_libvirt::{Domain, DomainError, Interface, Mark, MarkedPort, NAMESPACE, Nic, PREFIX, Source};
use tenet_model::{DEFAULT_TENANT, Mac, Name, PortRef, SubnetRef, TenantName, VmRef, tap_name};

/// What was done.
#[derive(Serialize)]
struct Done {
    domain: String,
    port: PortRef,
    mac: Mac,
    device: String,
    queues: u16,
    subnet: Option<SubnetRef>,
    addresses: Vec<IpAddr>,
    mtu: Option<u32>,
    /// Whether the guest has it now; else from its next start on.
    now: bool,
}

/// `libvirt attach`
pub async fn attach(context: &Context, args: DomainArgs) -> Outcome {
    if is_elsewhere(&args.connect) {
        return Err(Failure::new(
            format!("{} is libvirt on another host", args.connect),
            "run this on that host: its agent makes the port",
        )
        .code(Code::Usage));
    }
    let virsh = Virsh::new(&args.connect);
    let info = virsh.info(&args.domain).await?;
    let live = if info.active { Some(virsh.live(&args.domain).await?) } else { None };
    let stored = if info.persistent { Some(virsh.stored(&args.domain).await?) } else { None };
    let Some(xml) = live.as_ref().or(stored.as_ref()) else {
        return Err(Failure::new(format!("domain {} is gone", args.domain), "`virsh list --all` shows them"));
    };
    let domain = Domain::parse(xml).map_err(|e| broken(&e))?;
    let wish = Wish::new(&args, &domain)?;
    // A NIC that is there and is no tap of ours is changed only by shutting the guest down.
    let old = domain.interface(wish.port.mac).ok();
    let now = info.active && old.is_none_or(|i| i.source == Source::Ethernet && !i.managed);
    queues_fit(&args, &domain.name, old, now)?;
    let ready = wish.prepare(&args, &domain.name, now).await?;
    let device =
        ready.as_ref().map_or_else(|| tap_name(&wish.mark.port(&wish.port.name)), |p| p.device.clone());
    let nic = Nic {
        mac: wish.port.mac,
        device,
        mtu: ready.as_ref().map(|p| p.mtu),
        model: args.model.clone(),
        queues: args.queues,
    };
    let plugged = if now { wish.plug(&virsh, &domain, &nic).await } else { Ok(()) };
    let stored = match (plugged, stored) {
        (Ok(()), Some(stored)) => wish.store(&virsh, &stored, &nic).await,
        (other, _) => other,
    };
    if let Err(mut failure) = stored {
        if now && old.is_none() {
            wish.undo(&args).await;
            failure.hint =
                format!("{}\nthe port is in the site and on no host", failure.hint).trim().to_owned();
        }
        return Err(failure);
    }
    let done = Done {
        domain: domain.name.clone(),
        port: wish.mark.port(&wish.port.name),
        mac: nic.mac,
        device: nic.device,
        queues: wish.queues,
        subnet: ready.as_ref().map(|p| p.subnet.clone()).or(wish.port.subnet),
        addresses: ready.map_or(wish.port.addresses, |p| p.addresses),
        mtu: nic.mtu,
        now,
    };
    context.show(&done, |done| print::text(&words(done, info.active)))
}

/// What is wanted, all names settled.
struct Wish {
    /// The domain's mark as it shall be.
    mark: Mark,
    /// The port in question.
    port: MarkedPort,
    /// Queues of its tap that the domain opens.
    queues: u16,
}

impl Wish {
    fn new(args: &DomainArgs, domain: &Domain) -> Outcome<Self> {
        let vm = vm(args, domain)?;
        let mut mark = domain.mark.clone().unwrap_or(Mark { vm: vm.clone(), ports: Vec::new() });
        let subnet = match (&args.network, &args.subnet) {
            (Some(network), Some(subnet)) => Some(SubnetRef {
                tenant: network.tenant.clone(),
                network: network.network.clone(),
                subnet: subnet.clone(),
            }),
            _ => None,
        };
        if let Some(subnet) = &subnet
            && subnet.tenant != vm.tenant
        {
            let text = format!("VM {vm} and network {} are of two tenants", subnet.network_ref());
            return Err(Failure::new(text, "name a network of the VM's tenant").code(Code::Usage));
        }
        let marked = mark.ports.iter().find(|p| match (&args.port, args.mac) {
            (Some(name), _) => p.name == *name,
            (None, Some(mac)) => p.mac == mac,
            (None, None) => false,
        });
        let mac = match (args.mac, marked) {
            (Some(mac), _) => mac,
            (None, Some(marked)) => marked.mac,
            (None, None) => new_mac(domain)?,
        };
        let port = MarkedPort {
            name: args
                .port
                .clone()
                .or_else(|| marked.map(|m| m.name.clone()))
                .map_or_else(|| free_port(&mark), Ok)?,
            mac,
            subnet: subnet.or_else(|| marked.and_then(|m| m.subnet.clone())),
            addresses: match marked {
                Some(marked) if args.addresses.is_empty() => marked.addresses.clone(),
                _ => args.addresses.clone(),
            },
        };
        mark.put(port.clone());
        let there = domain.interface(mac).map_or(1, |i| i.queues);
        Ok(Self { mark, port, queues: args.queues.unwrap_or(there) })
    }

    /// Has the port made. For a guest that does not run this is a check, and the port is on no host again; there the
    /// agent may even be silent.
    async fn prepare(&self, args: &DomainArgs, domain: &str, now: bool) -> Outcome<Option<LocalPort>> {
        let client = LocalClient::new(&args.agent.socket).map_err(|e| refused(&e))?;
        let request = local::Prepare {
            vm: self.mark.vm.clone(),
            ports: vec![PreparePort {
                port: Some(self.port.name.clone()),
                mac: Some(self.port.mac),
                network: self.port.subnet.as_ref().map(SubnetRef::network_ref),
                subnet: self.port.subnet.as_ref().map(|s| s.subnet.clone()),
                addresses: self.port.addresses.clone(),
                device: None,
                queues: Some(self.queues),
            }],
            purpose: local::Purpose::Start,
            domain: Some(domain.to_owned()),
            timeout_ms: Some(args.agent.timeout * 1000),
        };
        let ready = match client.prepare(&request).await {
            Ok(ready) => ready,
            Err(LocalError::Unreachable { .. }) if !now => {
                print::note("the agent does not answer: the port is checked and made when the domain starts");
                return Ok(None);
            }
            Err(e) => return Err(refused(&e)),
        };
        if !now {
            self.undo(args).await;
        }
        let name = self.mark.port(&self.port.name);
        let port = ready.ports.into_iter().find(|p| p.port == name).ok_or_else(|| {
            Failure::new(format!("the agent did not make port {name}"), "look at the agent's log")
        })?;
        if port.mac != self.port.mac {
            return Err(Failure::new(
                format!("port {name} has MAC {} in the site, not {}", port.mac, self.port.mac),
                format!("give --mac {}, or another --port", port.mac),
            )
            .code(Code::Conflict));
        }
        Ok(Some(port))
    }

    /// Takes the port off this host again; it stays in the site.
    async fn undo(&self, args: &DomainArgs) {
        let release = local::Release {
            vm: self.mark.vm.clone(),
            outcome: local::Outcome::Stopped,
            ports: vec![self.port.name.clone()],
        };
        let Ok(client) = LocalClient::new(&args.agent.socket) else { return };
        if let Err(e) = client.release(&release).await {
            print::note(&format!("the port is still on this host: {}", e.line()));
        }
    }

    /// Into the running guest.
    async fn plug(&self, virsh: &Virsh, domain: &Domain, nic: &Nic) -> Outcome {
        let name = domain.name.as_str();
        match domain.interface(nic.mac) {
            Ok(there) if there.device.as_deref() == Some(&nic.device) => {}
            Ok(there) => {
                return Err(Failure::new(
                    format!(
                        "interface {} of the running domain {name} is on {}",
                        nic.mac,
                        there.device.as_deref().unwrap_or("another device")
                    ),
                    "shut it down and try again",
                ));
            }
            Err(_) => {
                let element = tenet_libvirt::interface(nic);
                virsh
                    .with_input(&["attach-device", "--domain", name, "/dev/stdin", "--live"], &element)
                    .await?;
            }
        }
        // Behind the NIC: where that fails, the mark would name an interface that is not there.
        let mark = self.mark.bare();
        let what =
            ["metadata", "--domain", name, "--uri", NAMESPACE, "--key", PREFIX, "--set", &mark, "--live"];
        virsh.run(&what).await.map(drop)
    }

    /// Into what the domain starts with the next time.
    async fn store(&self, virsh: &Virsh, xml: &str, nic: &Nic) -> Outcome {
        let xml = tenet_libvirt::set_mark(xml, &self.mark).map_err(|e| broken(&e))?;
        let xml = tenet_libvirt::set_interface(&xml, nic).map_err(|e| broken(&e))?;
        virsh.define(&xml).await
    }
}

/// Only virtio has several queues, and a running guest keeps those that its NIC has.
fn queues_fit(args: &DomainArgs, domain: &str, old: Option<&Interface>, now: bool) -> Outcome {
    let Some(queues) = args.queues else { return Ok(()) };
    let model = old.map_or(Some(args.model.as_str()), |i| i.model.as_deref());
    if queues > 1 && !model.is_some_and(|m| m.starts_with("virtio")) {
        let text = format!("an interface of model {} has one queue", model.unwrap_or("rtl8139"));
        let hint = "leave --queues out, or make it one of model virtio (`virsh edit`)";
        return Err(Failure::new(text, hint).code(Code::Usage));
    }
    match old {
        Some(old) if now && old.queues != queues => Err(Failure::new(
            format!("the interface of the running domain {domain} has {} queues, not {queues}", old.queues),
            format!("shut it down (`virsh shutdown {domain}`) and try again"),
        )
        .code(Code::Conflict)),
        Some(_) | None => Ok(()),
    }
}

/// The VM that a domain is, or shall be.
fn vm(args: &DomainArgs, domain: &Domain) -> Outcome<VmRef> {
    if let Some(mark) = &domain.mark {
        return match &args.vm {
            Some(vm) if *vm != mark.vm => Err(Failure::new(
                format!("domain {} is VM {} already", domain.name, mark.vm),
                "leave --vm out, or take Tenet's element out of its metadata first (`virsh edit`)",
            )
            .code(Code::Conflict)),
            _ => Ok(mark.vm.clone()),
        };
    }
    if let Some(vm) = &args.vm {
        return Ok(vm.clone());
    }
    let default = || Name::new(DEFAULT_TENANT);
    let tenant: TenantName =
        args.network.as_ref().map_or_else(default, |n| Ok(n.tenant.clone())).map_err(bad_name)?;
    let vm = Name::new(domain.name.clone()).map_err(|_| {
        let text = format!("domain {} has a name that no VM can have", domain.name);
        Failure::new(text, "give the VM's name by --vm").code(Code::Usage)
    })?;
    Ok(VmRef { tenant, vm })
}

fn free_port(mark: &Mark) -> Outcome<Name> {
    let names = (0_u32..).map(|n| format!("eth{n}"));
    let free = names.into_iter().find(|n| mark.ports.iter().all(|p| p.name.as_str() != n));
    Name::new(free.unwrap_or_default()).map_err(bad_name)
}

/// QEMU's own prefix and three random octets, as libvirt chooses them.
fn new_mac(domain: &Domain) -> Outcome<Mac> {
    let mut source = File::open("/dev/urandom").map_err(|e| Failure::of(&e, "give a MAC by --mac"))?;
    loop {
        let mut own = [0; 3];
        source.read_exact(&mut own).map_err(|e| Failure::of(&e, "give a MAC by --mac"))?;
        let mac = Mac::new([0x52, 0x54, 0x00, own[0], own[1], own[2]])
            .map_err(|e| Failure::of(&e, "give a MAC by --mac"))?;
        if domain.interfaces.iter().all(|i| i.mac != Some(mac)) {
            return Ok(mac);
        }
    }
}

/// Whether a URI names another machine: `qemu+ssh://h2/system`.
fn is_elsewhere(uri: &str) -> bool {
    let Some((_, rest)) = uri.split_once("://") else { return false };
    !rest.starts_with('/')
}

fn words(done: &Done, running: bool) -> String {
    let at = done.subnet.as_ref().map_or_else(String::new, |s| format!(" in {s}"));
    let addresses: Vec<_> = done.addresses.iter().map(ToString::to_string).collect();
    let with =
        if addresses.is_empty() { String::new() } else { format!(", address {}", addresses.join(" ")) };
    let queues = if done.queues > 1 { format!(" with {} queues", done.queues) } else { String::new() };
    let when = match (done.now, running) {
        (true, _) => "; it is in the running guest",
        (false, true) => {
            "; shut the domain down and start it: a NIC of a running guest cannot be connected anew"
        }
        (false, false) => "; it is there when the domain starts",
    };
    format!(
        "domain {}: port {}{at}{with}, MAC {}, tap {}{queues}{when}\n",
        done.domain, done.port, done.mac, done.device
    )
}

fn broken(error: &DomainError) -> Failure {
    Failure::of(error, "look at the domain with `virsh dumpxml` and put it right with `virsh edit`")
}

fn bad_name(error: tenet_model::NameError) -> Failure {
    Failure::of(&error, "give the names by --vm and --port").code(Code::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_are_told_by_the_uri() {
        for here in ["qemu:///system", "qemu+unix:///system?socket=/x", "test:///default", "qemu"] {
            assert!(!is_elsewhere(here), "{here}");
        }
        for there in ["qemu+ssh://h2/system", "qemu+tcp://10.0.0.1/system"] {
            assert!(is_elsewhere(there), "{there}");
        }
    }
}
