//! Network namespaces as VMs: `attach`, `detach` and `attached`, by this host's agent.

use crate::cli::{AttachArgs, AttachedArgs, DetachArgs, Global, Output, Place};
use crate::failure::{Code, Failure, Outcome};
use crate::print::{self, Table};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_api::local::{
    LocalClient, LocalPort, LocalVm, Outcome as Ended, Prepare, PreparePort, Purpose, Release,
};
use tenet_hostnet::{Kind, Link, Links, Netns};
use tenet_model::{Name, PortRef, VmRef, tap_name};

/// `attach`: a veth pair whose one end is a port of the agent's, the other the namespace's NIC.
pub async fn attach(global: &Global, args: AttachArgs) -> Outcome {
    let network = args.network().map_err(|e| Failure::of(&e, "").code(Code::Usage))?;
    let netns = open(&args.netns)?;
    let port = port(&args.vm, args.port.as_ref(), &args.device)?;
    let client = LocalClient::new(&args.socket.socket)?;
    let pair = Pair::new(&port, &args.device, &args.netns, &netns)?;
    let made = pair.make(&port)?;
    let prepare = Prepare {
        vm: args.vm.clone(),
        ports: vec![PreparePort {
            port: Some(port.port.clone()),
            mac: args.mac,
            network,
            subnet: args.subnet.clone(),
            addresses: args.addresses.clone(),
            device: Some(pair.near.clone()),
            queues: None,
        }],
        purpose: Purpose::Start,
        domain: None,
        timeout_ms: Some(args.timeout.saturating_mul(1000)),
    };
    let prepared = match client.prepare(&prepare).await {
        Ok(prepared) => prepared,
        Err(error) => {
            if made {
                // What the agent refused has left nothing but the pair; what came too late is taken back.
                if error.status() == Some(504) {
                    let _ = client.release(&release(&port, Ended::Failed)).await;
                }
                let _ = pair.host.delete_link(&pair.near);
            }
            return Err(error.into());
        }
    };
    let Some(ready) = prepared.ports.iter().find(|p| p.port == port) else {
        let text = format!("the agent's answer lacks port {port}");
        return Err(Failure::new(text, "use the `tenet` of the agent's version"));
    };
    pair.configure(ready, !args.no_default_route)?;
    if global.output == Output::Json {
        return print::json(&prepared);
    }
    let list = addresses(ready);
    print::line(&format!(
        "{} of {} is port {port}: {}, MAC {}, MTU {}",
        args.device,
        args.netns,
        list.join(" "),
        ready.mac,
        ready.mtu
    ))?;
    if prepared.fail_static {
        print::note("the controller does not answer: this is the last state that the host had");
    }
    Ok(())
}

/// `detach`: undoes `attach`. What is gone already is no error.
pub async fn detach(global: &Global, args: DetachArgs) -> Outcome {
    let client = LocalClient::new(&args.socket.socket)?;
    let host = Links::here().map_err(net)?;
    let port = match &args.vm {
        Some(vm) => port(vm, args.port.as_ref(), &args.device)?,
        None => match args.netns.as_ref().map(|place| found(place, &args.device, &host)) {
            Some(near) => {
                let near = near?;
                let vms = client.vms().await?;
                let ports = vms.into_iter().flat_map(|vm| vm.ports);
                let found = ports.into_iter().find(|p| p.device == near).map(|p| p.port);
                found.ok_or_else(|| {
                    Failure::new(
                        format!("{near}, the other end of {}, is no port of this host", args.device),
                        "name the VM with --vm; `tenet attached` shows the ports of this host",
                    )
                })?
            }
            None => {
                let hint =
                    "`tenet detach --netns NAME` or `tenet detach --vm VM`; `tenet attached` lists the ports";
                return Err(Failure::new("neither namespace nor VM is named", hint).code(Code::Usage));
            }
        },
    };
    let released = client.release(&release(&port, Ended::Stopped)).await?;
    let near = near(&port);
    if host.find(&near).map_err(net)?.is_some_and(|l| l.kind == Kind::Veth) {
        // The namespace, and with it the pair, may go at this very moment.
        match host.delete_link(&near) {
            Err(e) if !e.is_missing() => return Err(net(e)),
            Ok(()) | Err(_) => {}
        }
    }
    if global.output == Output::Json { print::json(&released) } else { print::line(&released.done) }
}

/// `attached`
pub async fn attached(global: &Global, args: AttachedArgs) -> Outcome {
    let vms = LocalClient::new(&args.socket.socket)?.vms().await?;
    if global.output == Output::Json {
        return print::json(&vms);
    }
    let mut table = Table::new(["PORT", "DEVICE", "MAC", "ADDRESSES", "MTU", "STATE", "DOMAIN", "DETAIL"]);
    for LocalVm { domain, ports, .. } in &vms {
        for p in ports {
            let device = if p.tap { format!("{} (tap)", p.device) } else { p.device.clone() };
            table.row([
                p.port.to_string(),
                device,
                p.mac.to_string(),
                addresses(p).join(" "),
                p.mtu.to_string(),
                p.state.clone(),
                print::or_dash(domain.as_ref()),
                p.detail.clone(),
            ]);
        }
    }
    print::table(&table, "no ports on this host")
}

fn release(port: &PortRef, outcome: Ended) -> Release {
    Release { vm: port.vm_ref(), outcome, ports: vec![port.port.clone()] }
}

fn port(vm: &VmRef, port: Option<&Name>, device: &str) -> Outcome<PortRef> {
    let port = match port {
        Some(port) => port.clone(),
        None => Name::new(device).map_err(|_| {
            Failure::new(format!("device {device} is no name for a port"), "name the port with --port")
                .code(Code::Usage)
        })?,
    };
    Ok(PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port })
}

/// The host's end of a port's pair: the same whenever it is made.
fn near(port: &PortRef) -> String {
    let tap = tap_name(port);
    format!("tv{}", tap.strip_prefix("tn").unwrap_or(&tap))
}

fn net(error: tenet_hostnet::Error) -> Failure {
    let hint = hint(error.errno());
    Failure::of(&error, hint)
}

/// What to do about an error of the kernel's.
const fn hint(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EPERM | libc::EACCES) => "run as root",
        Some(libc::ENODEV | libc::ENXIO | libc::ESRCH) => {
            "the device went meanwhile: `ip link` shows what there is (in a namespace: `ip -n NAME link`); try again"
        }
        Some(libc::ENOENT) => "`ip netns` shows the named namespaces; try again",
        Some(libc::EEXIST) => {
            "`ip link` and `ip address` (`ip -n NAME ...` in the namespace) show what has it: remove that, or name \
             another device"
        }
        Some(libc::EBUSY) => "`ip -d link` shows what uses the device: take it out there, and try again",
        Some(libc::EOPNOTSUPP) => "load the kernel's module for it (`modprobe veth`), and try again",
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
            "the host is short of files or memory: look at `ulimit -n` and `free`"
        }
        Some(libc::EINVAL | libc::ERANGE) => {
            "check the device's name (15 characters at most) with `ip link`, and the kernel's words with `dmesg`"
        }
        Some(_) | None => "`dmesg` may say more; `tenet detach` takes back what is there, then try again",
    }
}

fn open(place: &Place) -> Outcome<Netns> {
    let opened = match place {
        Place::Name(name) => Netns::open(name),
        Place::Path(path) => Netns::at(path),
        Place::Process(pid) => Netns::of_process(*pid),
    };
    opened.map_err(|e| {
        let hint =
            if e.errno() == Some(libc::EACCES) { "run as root" } else { "`ip netns` lists the named ones" };
        Failure::of(&e, hint)
    })
}

/// The host's device at the other end of a namespace's.
fn found(place: &Place, device: &str, host: &Links) -> Outcome<String> {
    let inner = Links::in_netns(&open(place)?).map_err(net)?;
    let hint = "name the VM with --vm, and the port is let go";
    let Some(link) = inner.find(device).map_err(net)? else {
        return Err(Failure::new(format!("{place} has no device {device}"), hint));
    };
    let near = match (link.kind, link.lower) {
        (Kind::Veth, Some(index)) => host.by_index(index).map_err(net)?,
        _ => None,
    };
    // A number says little alone: the other end must say the same.
    match near.filter(|n| n.kind == Kind::Veth && n.lower == Some(link.index)) {
        Some(near) => Ok(near.name),
        None => {
            Err(Failure::new(format!("{device} of {place} is no veth with its other end on this host"), hint))
        }
    }
}

/// A pair of devices, one on the host, one in the namespace.
struct Pair<'a> {
    host: Links,
    inner: Links,
    netns: &'a Netns,
    place: &'a Place,
    /// On the host.
    near: String,
    /// In the namespace.
    device: &'a str,
}

impl<'a> Pair<'a> {
    fn new(port: &PortRef, device: &'a str, place: &'a Place, netns: &'a Netns) -> Outcome<Self> {
        let (host, inner) = (Links::here().map_err(net)?, Links::in_netns(netns).map_err(net)?);
        Ok(Self { host, inner, netns, place, near: near(port), device })
    }

    /// Makes the pair; false if it is there.
    fn make(&self, port: &PortRef) -> Outcome<bool> {
        let (near, far) =
            (self.host.find(&self.near).map_err(net)?, self.inner.find(self.device).map_err(net)?);
        match (near, far) {
            (None, None) => {}
            (Some(near), Some(far)) if pair(&near, &far) => return Ok(false),
            (Some(_), _) => {
                let text = format!("port {port} is attached already, with another namespace or device");
                let hint = format!("detach it there first: `tenet detach --vm {}`", port.vm_ref());
                return Err(Failure::new(text, hint).code(Code::Conflict));
            }
            (None, Some(_)) => {
                let text = format!("{} has a device {} that is not this port's", self.place, self.device);
                return Err(Failure::new(text, "choose another name with --device").code(Code::Conflict));
            }
        }
        self.host.add_veth(&self.near, self.device, self.netns).map_err(net)?;
        Ok(true)
    }

    /// Brings the namespace's device to what the port is; what is so already stays.
    fn configure(&self, port: &LocalPort, default_route: bool) -> Outcome {
        let (links, device) = (&self.inner, self.device);
        let now = links.get(device).map_err(net)?;
        if now.mac != Some(port.mac.octets()) {
            links.set_mac(device, port.mac.octets()).map_err(net)?;
        }
        if now.mtu != port.mtu {
            links.set_mtu(device, port.mtu).map_err(net)?;
        }
        let there = links.addrs().map_err(net)?;
        for (ip, len) in port.addresses.iter().filter_map(|ip| Some((*ip, prefix_len(port, *ip)?))) {
            if !there.iter().any(|a| a.link == now.index && a.ip == ip) {
                links.add_addr(device, ip, len).map_err(net)?;
            }
        }
        for name in ["lo", device] {
            if links.find(name).map_err(net)?.is_some_and(|l| !l.up) {
                links.set_up(name).map_err(net)?;
            }
        }
        let used = |gateway: &IpAddr| port.addresses.iter().any(|a| a.is_ipv4() == gateway.is_ipv4());
        for gateway in port.prefixes.iter().map(|p| p.gateway).filter(used).filter(|_| default_route) {
            let any = match gateway {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            links.add_route(any, 0, Some(gateway), Some(device)).map_err(net)?;
        }
        Ok(())
    }
}

fn pair(near: &Link, far: &Link) -> bool {
    near.kind == Kind::Veth
        && far.kind == Kind::Veth
        && near.lower == Some(far.index)
        && far.lower == Some(near.index)
}

fn prefix_len(port: &LocalPort, ip: IpAddr) -> Option<u8> {
    port.prefixes.iter().find(|p| p.prefix.contains(&ip)).map(|p| p.prefix.prefix_len())
}

/// Addresses with the length of their prefix.
fn addresses(port: &LocalPort) -> Vec<String> {
    let text = |ip: &IpAddr| match prefix_len(port, *ip) {
        Some(len) => format!("{ip}/{len}"),
        None => ip.to_string(),
    };
    port.addresses.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_s_device_is_a_legal_name() {
        let name = near(&"contoso/sql/eth0".parse().unwrap());
        assert!(name.starts_with("tv") && name.len() <= 15, "{name}");
        assert_ne!(name, near(&"contoso/sql/eth1".parse().unwrap()));
        assert!(port(&"a/b".parse().unwrap(), None, "ETH0").is_err());
    }
}
