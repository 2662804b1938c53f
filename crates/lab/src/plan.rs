//! Decides, from a site, which namespaces and devices a lab has. Pure.

use crate::record::PrefixRecord;
use crate::record::{ControllerRecord, HostRecord, PortRecord, Record, Segment, VmRecord};
use crate::{Error, Guests, Result};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use tenet_model::{Family, Name, PortRef, tap_name};
use tenet_site::{Position, Problem, Site, SiteError};

/// The provider network's MTU.
pub const PROVIDER_MTU: u32 = 1500;
/// The controller's subnet, from the range set aside for tests (RFC 2544): no site has its hosts there.
const CONTROLLER: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
/// The same of IPv6 (RFC 5180).
const CONTROLLER6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 2)];

/// What a plan is made for, besides the site.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The lab's name.
    pub name: Name,
    /// Keeps the namespaces of two labs apart.
    pub id: String,
    /// The lab's folder.
    pub dir: PathBuf,
    /// Where the BPF file system is mounted.
    pub bpffs: PathBuf,
    /// The `tenet` binary.
    pub binary: PathBuf,
    /// Whether to use clsact.
    pub clsact: bool,
    /// The site file's name in messages.
    pub file: String,
    /// Largest packet of all VMs, instead of what their network's method leaves of the provider network's.
    pub vm_mtu: Option<u32>,
    /// Which VMs are real guests.
    pub guests: Guests,
}

/// Plans a lab.
///
/// # Errors
/// [`Error::Site`] with everything in the site that a lab cannot be.
pub fn plan(options: &PlanOptions, site: &Site) -> Result<Record> {
    let mut problems = check(site);
    if !problems.is_empty() {
        problems.sort_by_key(|p| p.at);
        return Err(Error::Site(SiteError { file: options.file.clone(), problems }));
    }
    let prefix = format!("lab-{}-{}", options.name, options.id);
    let dir = &options.dir;
    let bpffs = options.bpffs.join(format!("tenet-{prefix}"));
    let pas: Vec<IpAddr> = site.hosts.iter().map(|h| h.value.pa).collect();
    let networks: BTreeSet<IpNet> = pas.iter().map(|pa| net(*pa)).collect();
    let networks: Vec<IpNet> = networks.into_iter().collect();
    let members = |n: &IpNet| pas.iter().filter(|pa| n.contains(*pa)).count();
    let segments = networks.iter().enumerate().map(|(at, n)| {
        let bridge = members(n) > 1;
        let owner = site.hosts.iter().find(|h| n.contains(&h.value.pa));
        let device = match owner {
            Some(host) if !bridge => router_device(&host.value.name, at),
            Some(_) | None => format!("br{at}"),
        };
        let others: Vec<IpAddr> =
            site.hosts.iter().filter(|h| n.contains(&h.value.pa)).filter_map(|h| second(&h.value)).collect();
        let other_gateway = others.first().map(|o| gateway(net(*o), &others));
        Segment { gateway: gateway(*n, &pas), other_gateway, prefix_len: n.prefix_len(), device, bridge }
    });
    let hosts = site.hosts.iter().enumerate().map(|(at, host)| {
        let name = host.value.name.clone();
        let segment = networks.iter().position(|n| n.contains(&host.value.pa));
        HostRecord {
            netns: format!("{prefix}-{name}"),
            pa: host.value.pa,
            other: second(&host.value),
            segment: segment.unwrap_or_default(),
            uplink: "eth0".to_owned(),
            router_device: router_device(&name, at),
            state_dir: dir.join("hosts").join(name.as_str()),
            bpffs: bpffs.join(name.as_str()),
            log: log(dir, name.as_str()),
            process: None,
            libvirt: None,
            name,
        }
    });
    let outer = pas.first().map_or(Family::V4, Family::of);
    let [to_controller, controller]: [IpAddr; 2] = match outer {
        Family::V4 => CONTROLLER.map(IpAddr::V4),
        Family::V6 => CONTROLLER6.map(IpAddr::V6),
    };
    let controller = ControllerRecord {
        // A host may be called `controller`; no name has a dot.
        netns: format!("{prefix}-.controller"),
        address: controller,
        gateway: to_controller,
        state_dir: dir.join("controller"),
        log: log(dir, ".controller"),
        process: None,
    };
    Ok(Record {
        name: options.name.clone(),
        id: options.id.clone(),
        dir: dir.clone(),
        bpffs: bpffs.clone(),
        binary: options.binary.clone(),
        clsact: options.clsact,
        complete: false,
        router: format!("{prefix}-.router"),
        segments: segments.collect(),
        controller,
        hosts: hosts.collect(),
        vms: vms(&prefix, site, outer, options),
        image: None,
        responder: None,
    })
}

fn vms(prefix: &str, site: &Site, outer: Family, options: &PlanOptions) -> Vec<VmRecord> {
    let mut devices = BTreeSet::new();
    let vms = site.vms.iter().map(|vm| {
        let name = vm.value.name.clone();
        let real = options.guests.has(&name);
        let ports =
            site.ports.iter().filter(|p| p.value.name.vm_ref() == name).enumerate().map(|(at, port)| {
                let port = &port.value;
                let subnet = site.subnets.iter().find(|s| s.value.name == port.subnet).map(|s| &s.value);
                let network = site.networks.iter().find(|n| n.value.name == port.subnet.network_ref());
                let method = network.and_then(|n| n.value.method).unwrap_or_default();
                // As on any host: a hypervisor gets the agent's tap unless the site names a device.
                let tap = real && port.device.is_none();
                let device = match &port.device {
                    Some(named) => named.clone(),
                    None if tap => tap_name(&port.name),
                    None => device(&port.name, &devices),
                };
                devices.insert(device.clone());
                let link = if port.name.port.as_str().len() <= 15 {
                    port.name.port.to_string()
                } else {
                    format!("eth{at}")
                };
                PortRecord {
                    name: port.name.clone(),
                    link,
                    device,
                    tap,
                    host: port.host.clone(),
                    mac: port.mac,
                    addresses: port.addresses.clone(),
                    prefixes: subnet.map_or(Vec::new(), |s| s.prefixes.iter().map(prefix_record).collect()),
                    mtu: options.vm_mtu.unwrap_or_else(|| PROVIDER_MTU - u32::from(method.overhead(outer))),
                }
            });
        let ports = ports.collect();
        VmRecord {
            netns: format!("{prefix}-{}.{}", name.tenant, name.vm),
            name,
            real,
            guest: None,
            arriving: None,
            ports,
        }
    });
    vms.collect()
}

/// What a lab cannot be built from; all else is the controller's to judge.
fn check(site: &Site) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |at: Position, text: String| problems.push(Problem { at, text, other: None });
    if site.hosts.is_empty() {
        problem(Position { line: 1, column: 1 }, "a lab needs a host: add one under `hosts`".to_owned());
    }
    for host in &site.hosts {
        let pa = host.value.pa;
        if [CONTROLLER[0].into(), CONTROLLER6[0].into()].iter().any(|c: &IpAddr| net(pa).contains(c)) {
            problem(
                host.at,
                format!("provider address {pa} is in the lab controller's subnet: choose another"),
            );
        }
        let edge = matches!(pa, IpAddr::V4(a) if [0, 255].contains(&a.octets()[3]));
        if pa.is_loopback() || pa.is_unspecified() || pa.is_multicast() || edge || net(pa).addr() == pa {
            problem(host.at, format!("provider address {pa} is no address of a host in {}", net(pa)));
        }
    }
    for port in &site.ports {
        if let Some(host) = &port.value.host
            && !site.hosts.iter().any(|h| h.value.name == *host)
        {
            let text = format!("port {} is on host {host}, which is not under `hosts`", port.value.name);
            problem(port.at, text);
        }
    }
    problems
}

/// `to-h1` where that fits a device's name.
fn router_device(host: &Name, at: usize) -> String {
    let name = format!("to-{host}");
    if name.len() <= 15 { name } else { format!("to.{at}") }
}

/// `contoso-sql` where that fits and is free, else the names' ends cut and a number added.
fn device(port: &PortRef, taken: &BTreeSet<String>) -> String {
    let plain = format!("{}-{}", port.tenant, port.vm);
    if plain.len() <= 15 && !taken.contains(&plain) {
        return plain;
    }
    let vm: String = port.vm.as_str().chars().take(9).collect();
    (0..).map(|n| format!("{vm}.{n}")).find(|name| !taken.contains(name)).unwrap_or(vm)
}

fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

/// A host's address of the other family, if it has rewrite addresses of that: they need a network to go over.
fn second(host: &tenet_api::rest::HostSpec) -> Option<IpAddr> {
    let other = crate::prepare::other(host.pa)?;
    let pools = host.rewrite_pool.as_deref().unwrap_or_default();
    pools.iter().any(|p| Family::of(&p.addr()) == Family::of(&other)).then_some(other)
}

fn prefix_record(of: &tenet_api::rest::PrefixSpec) -> PrefixRecord {
    let gateway = of.gateway.or_else(|| tenet_model::default_gateway(&of.prefix));
    PrefixRecord { prefix: of.prefix, gateway }
}

/// The provider subnet that a lab puts an address into.
pub(crate) fn net(pa: IpAddr) -> IpNet {
    // The length is one that the family has, so the fallback is never needed.
    IpNet::new(pa, crate::network::subnet_len(pa)).map_or_else(|_| pa.into(), |n| n.trunc())
}

/// The router's address in a provider subnet: the first that no host has, from 1 on.
fn gateway(net: IpNet, pas: &[IpAddr]) -> IpAddr {
    let candidate = |n: u8| match net.addr() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | u32::from(n))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | u128::from(n))),
    };
    (1..=254).map(candidate).find(|g| !pas.contains(g)).unwrap_or_else(|| candidate(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> PlanOptions {
        PlanOptions {
            name: Name::new("demo").unwrap(),
            id: "1a2b".into(),
            dir: "/run/tenet-lab/demo".into(),
            bpffs: "/sys/fs/bpf".into(),
            binary: "/usr/bin/tenet".into(),
            clsact: false,
            file: "site.yaml".into(),
            vm_mtu: None,
            guests: Guests::None,
        }
    }

    fn plan_of(text: &str) -> Result<Record> {
        plan(&options(), &tenet_site::parse("site.yaml", text).unwrap())
    }

    #[test]
    fn the_default_site_has_every_kind_of_pair() {
        let record = plan_of(crate::DEFAULT_SITE).unwrap();
        assert_eq!((record.hosts.len(), record.vms.len(), record.segments.len()), (2, 6, 2));
        for tenant in ["contoso", "fabrikam"] {
            let on: BTreeSet<_> = record
                .vms
                .iter()
                .filter(|v| v.name.tenant.as_str() == tenant)
                .flat_map(|v| v.ports.iter().map(|p| p.host.clone()))
                .collect();
            assert_eq!(on.len(), 2, "{tenant} is on both hosts");
        }
        let mut kinds = BTreeSet::new();
        let ports: Vec<_> = record.vms.iter().flat_map(|v| &v.ports).collect();
        for a in &ports {
            for b in ports.iter().filter(|b| b.name != a.name && b.name.tenant == a.name.tenant) {
                kinds.insert((a.host == b.host, a.prefixes == b.prefixes));
            }
        }
        assert_eq!(kinds.len(), 4);
    }

    #[test]
    fn hosts_in_one_subnet_share_a_bridge_and_the_router_avoids_their_addresses() {
        let record =
            plan_of("hosts:\n  a: { pa: 10.0.0.1 }\n  b: { pa: 10.0.0.2 }\n  c: { pa: 10.0.1.1 }\n").unwrap();
        assert_eq!(record.segments[0].gateway.to_string(), "10.0.0.3");
        assert!(record.segments[0].bridge && !record.segments[1].bridge);
        assert_eq!(record.segments[1].device, "to-c");
    }

    #[test]
    fn a_site_of_ipv6_hosts_has_routers_and_a_controller_of_ipv6() {
        let text =
            "hosts:\n  a: { pa: \"fd00:1::1\" }\n  b: { pa: \"fd00:1::2\" }\n  c: { pa: \"fd00:2::9\" }\n";
        let record = plan_of(text).unwrap();
        assert_eq!(
            (record.segments[0].gateway.to_string(), record.segments[0].prefix_len),
            ("fd00:1::3".into(), 64)
        );
        assert!(record.segments[0].bridge && !record.segments[1].bridge);
        assert!(record.controller.address.is_ipv6());
    }

    #[test]
    fn device_names_fit_and_differ() {
        let mut text = "hosts:\n  a: { pa: 10.0.0.1 }\ntenants:\n".to_owned();
        for (tenant, vm) in [
            ("a-b", "c"),
            ("a", "b-c"),
            ("a-very-long-name", "of-a-vm-1"),
            ("a-very-long-name-2", "of-a-vm-1"),
        ] {
            text += &format!(
                "  {tenant}: {{ vms: {{ {vm}: {{ ports: {{ p: {{ subnet: n/s, host: a }} }} }} }} }}\n"
            );
        }
        let record = plan_of(&text).unwrap();
        let devices: BTreeSet<_> =
            record.vms.iter().flat_map(|v| v.ports.iter().map(|p| p.device.clone())).collect();
        assert_eq!(devices.len(), 4, "{devices:?}");
        assert!(devices.iter().all(|d| d.len() <= 15), "{devices:?}");
    }

    #[test]
    fn a_guest_gets_the_agents_tap_unless_the_site_names_a_device() {
        let text = "hosts:\n  a: { pa: 10.0.0.1 }\ntenants:\n  t:\n    vms:\n      real: { ports: { p: { subnet: n/s, host: a }, q: { subnet: n/s, host: a, device: mine } } }\n      plain: { ports: { p: { subnet: n/s, host: a } } }\n";
        let guests = Guests::These(vec!["t/real".parse().unwrap()]);
        let options = PlanOptions { guests, ..options() };
        let record = plan(&options, &tenet_site::parse("site.yaml", text).unwrap()).unwrap();
        let ports = record
            .vms
            .iter()
            .flat_map(|vm| vm.ports.iter().map(move |p| (vm.real, p.tap, p.device.as_str())));
        let expected = tap_name(&"t/real/p".parse().unwrap());
        assert_eq!(
            ports.collect::<BTreeSet<_>>(),
            BTreeSet::from([
                (true, true, expected.as_str()),
                (true, false, "mine"),
                (false, false, "t-plain")
            ])
        );
    }

    #[test]
    fn says_where_a_site_cannot_be_a_lab() {
        for (text, expected) in [
            ("{}", "site.yaml:1:1: a lab needs a host"),
            ("hosts:\n  a: { pa: \"::1\" }\n", "site.yaml:2:3: provider address ::1 is no address of a host"),
            (
                "hosts:\n  a: { pa: \"2001:2::7\" }\n",
                "site.yaml:2:3: provider address 2001:2::7 is in the lab controller's",
            ),
            (
                "hosts:\n  a: { pa: 198.18.0.7 }\n",
                "site.yaml:2:3: provider address 198.18.0.7 is in the lab controller's",
            ),
            (
                "hosts:\n  a: { pa: 1.2.3.4 }\ntenants: { t: { vms: { v: { ports: { p: { subnet: n/s, host: z } } } } } }\n",
                "site.yaml:3:38: port t/v/p is on host z",
            ),
        ] {
            let error = plan_of(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
