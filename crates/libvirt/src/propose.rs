//! Proposes a site for domains that are there already.
//!
//! Each thing that NICs are connected to (a network of libvirt's, a bridge, a device of the host; each VLAN of it)
//! becomes a network with one subnet, each domain a VM, each of its NICs on such a thing a port with the MAC that it
//! has. Ports are on no host: a domain's NIC becomes one by `tenet libvirt attach`.

use crate::{Domain, Interface, Source};
use ipnet::{IpNet, Ipv4Net};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};
use tenet_model::{Mac, Name, SubnetRef, TenantName, VmRef, default_gateway};

/// A domain that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The domain.
    pub domain: Domain,
    /// Whether it runs.
    pub running: bool,
    /// Its addresses, as far as libvirt knows them.
    pub addresses: BTreeMap<Mac, Vec<IpAddr>>,
}

/// What a site could be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proposal {
    /// One for each thing that NICs are connected to.
    pub segments: Vec<Segment>,
    /// VMs, in the order of the domains.
    pub vms: Vec<VmRef>,
    /// Ports, in the order of the domains and their NICs.
    pub ports: Vec<ProposedPort>,
    /// What a person should know or put right.
    pub notes: Vec<String>,
}

/// A network with its only subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The subnet.
    pub name: SubnetRef,
    /// Its prefixes.
    pub prefixes: Vec<IpNet>,
    /// What it stands for.
    pub of: String,
}

/// A port of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProposedPort {
    /// The domain that it is of.
    pub domain: String,
    /// Whether the domain runs.
    pub running: bool,
    /// The VM.
    pub vm: VmRef,
    /// The port's own name.
    pub port: Name,
    /// Its subnet.
    pub subnet: SubnetRef,
    /// The MAC that the NIC has.
    pub mac: Mac,
    /// Queues that the NIC has.
    pub queues: u16,
    /// The addresses that it has, if they are known; else they are chosen.
    pub addresses: Vec<IpAddr>,
}

/// Proposes a site: `prefixes` are those of the things that NICs are connected to, as far as this host knows them.
#[must_use]
pub fn propose(found: &[Found], prefixes: &BTreeMap<Source, Vec<IpNet>>, tenant: &TenantName) -> Proposal {
    let mut out = Proposal::default();
    let mut names = Names::default();
    let mut segments: BTreeMap<(Source, Option<u16>), SubnetRef> = BTreeMap::new();
    let (mut macs, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for one in found {
        let domain = &one.domain;
        if let Some(mark) = &domain.mark {
            let vm = &mark.vm;
            out.notes.push(format!("domain {} is Tenet's already, as VM {vm}: left out", domain.name));
            continue;
        }
        let nics: Vec<(&Interface, Mac)> = domain
            .interfaces
            .iter()
            .filter_map(|i| Some((i, i.mac?)))
            .filter(|(i, _)| connected(i))
            .collect();
        for interface in domain.interfaces.iter().filter(|i| !connected(i)) {
            let mac = interface.mac.map_or_else(|| "without MAC".to_owned(), |m| m.to_string());
            out.notes.push(format!(
                "domain {}: interface {mac} is connected to nothing that could be a network: left out",
                domain.name
            ));
        }
        if nics.is_empty() {
            out.notes.push(format!("domain {} has no interface on a network: left out", domain.name));
            continue;
        }
        let vm = VmRef { tenant: tenant.clone(), vm: names.vm(&domain.name) };
        if vm.vm.as_str() != domain.name {
            out.notes.push(format!("domain {} is named VM {vm} here", domain.name));
        }
        out.vms.push(vm.clone());
        for (n, (interface, mac)) in nics.into_iter().enumerate() {
            let key = (interface.source.clone(), interface.vlan);
            let subnet = segments.entry(key).or_insert_with(|| {
                let name = names.segment(&title(interface));
                SubnetRef { tenant: tenant.clone(), network: name.clone(), subnet: name }
            });
            if !macs.insert((subnet.clone(), mac)) {
                out.notes.push(format!(
                    "domain {}: interface {mac} has the MAC of another domain's on {}: left out",
                    domain.name,
                    title(interface)
                ));
                continue;
            }
            let mut addresses = one.addresses.get(&mac).cloned().unwrap_or_default();
            addresses.retain(|a| taken.insert((subnet.clone(), *a)));
            out.ports.push(ProposedPort {
                domain: domain.name.clone(),
                running: one.running,
                vm: vm.clone(),
                port: names.port(n),
                subnet: subnet.clone(),
                mac,
                queues: interface.queues,
                addresses,
            });
        }
    }
    for (n, ((source, vlan), name)) in segments.into_iter().enumerate() {
        let of = title_of(&source, vlan);
        let known = prefixes.get(&source).filter(|_| vlan.is_none()).cloned().unwrap_or_default();
        let prefixes = segment_prefixes(&mut out, &name, &of, known, n);
        out.segments.push(Segment { name, prefixes, of });
    }
    out
}

/// Settles a segment's prefixes and takes addresses out of its ports that do not go with them.
fn segment_prefixes(
    out: &mut Proposal,
    name: &SubnetRef,
    of: &str,
    known: Vec<IpNet>,
    number: usize,
) -> Vec<IpNet> {
    let mut prefixes: Vec<IpNet> = Vec::new();
    for prefix in known.iter().map(IpNet::trunc) {
        // One of each family is what a subnet can have.
        let same =
            |p: &&IpNet| matches!((p, prefix), (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)));
        if default_gateway(&prefix).is_none() {
            continue;
        }
        if prefixes.iter().any(|p| same(&p)) {
            out.notes.push(format!("{of} has {prefix} as well: not in subnet {name}"));
        } else {
            prefixes.push(prefix);
        }
    }
    if prefixes.is_empty() {
        let mut addresses = out.ports.iter().filter(|p| p.subnet == *name).flat_map(|p| &p.addresses);
        let seen = addresses.find_map(|a| match a {
            IpAddr::V4(a) => Ipv4Net::new(*a, 24).ok(),
            IpAddr::V6(_) => None,
        });
        let (prefix, why) = match seen {
            Some(prefix) => (prefix.trunc(), "guessed from its guests' addresses"),
            // 10.128.0.0/9 has room for as many as a host can have bridges.
            None => (Ipv4Net::new_assert(made_up(number), 24), "made up, as none of its addresses is known"),
        };
        out.notes.push(format!("subnet {name} ({of}): prefix {prefix} is {why}: put it right"));
        prefixes.push(IpNet::V4(prefix));
    }
    for port in out.ports.iter_mut().filter(|p| p.subnet == *name) {
        let before = port.addresses.len();
        port.addresses.retain(|a| {
            let inside = prefixes.iter().find(|p| p.contains(a));
            // A gateway of Tenet's stands there; the network's and the broadcast address are no machine's.
            inside.is_some_and(|p| {
                let edge = *a == p.network() || matches!(p, IpNet::V4(_)) && *a == p.broadcast();
                !edge && default_gateway(p) != Some(*a)
            })
        });
        if port.addresses.len() < before {
            out.notes.push(format!(
                "domain {}: an address of {} is not one of subnet {name}'s machines: left out",
                port.domain, port.mac
            ));
        } else if port.addresses.is_empty() {
            out.notes.push(format!(
                "domain {}: the address of {} is not known: one will be chosen; write the guest's own as `address:`",
                port.domain, port.mac
            ));
        }
    }
    prefixes
}

fn made_up(number: usize) -> Ipv4Addr {
    let n = u16::try_from(number % 0x8000).unwrap_or_default();
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 128 | high, low, 0)
}

fn connected(interface: &Interface) -> bool {
    match &interface.source {
        Source::Network(name) | Source::Bridge(name) | Source::Direct(name) => !name.is_empty(),
        Source::Ethernet | Source::Other(_) => false,
    }
}

fn title(interface: &Interface) -> String {
    title_of(&interface.source, interface.vlan)
}

fn title_of(source: &Source, vlan: Option<u16>) -> String {
    let name = match source {
        Source::Network(name) => format!("network {name}"),
        Source::Bridge(name) => format!("bridge {name}"),
        Source::Direct(name) => format!("device {name}"),
        Source::Ethernet => "a tap".to_owned(),
        Source::Other(other) => other.clone(),
    };
    vlan.map_or_else(|| name.clone(), |vlan| format!("{name} vlan {vlan}"))
}

/// Names that are legal and not given yet.
#[derive(Default)]
struct Names {
    vms: BTreeSet<Name>,
    segments: BTreeSet<Name>,
}

impl Names {
    fn vm(&mut self, text: &str) -> Name {
        free(&mut self.vms, text, "vm")
    }

    /// Without the word for its kind: `network default` is `default`.
    fn segment(&mut self, title: &str) -> Name {
        let text = title.split_once(' ').map_or(title, |(_, name)| name);
        free(&mut self.segments, text, "net")
    }

    fn port(&self, number: usize) -> Name {
        legal(&format!("eth{number}"), "eth")
    }
}

fn free(given: &mut BTreeSet<Name>, text: &str, otherwise: &str) -> Name {
    let plain = legal(text, otherwise);
    let others = (2_u32..).map(|n| legal(&format!("{}-{n}", short(plain.as_str(), 52)), otherwise));
    let mut all = std::iter::once(plain.clone()).chain(others);
    let name = all.find(|n| !given.contains(n)).unwrap_or(plain);
    given.insert(name.clone());
    name
}

/// The nearest legal name.
fn legal(text: &str, otherwise: &str) -> Name {
    let text: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    let text = short(text.trim_matches('-'), 63).trim_matches('-');
    Name::new(text).unwrap_or_else(|_| fallback(otherwise))
}

fn short(text: &str, most: usize) -> &str {
    // Only ASCII comes here.
    text.get(..most).unwrap_or(text)
}

#[expect(clippy::expect_used, reason = "all callers give a literal that is a legal name")]
fn fallback(text: &str) -> Name {
    Name::new(text).expect("a legal literal")
}
