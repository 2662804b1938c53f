//! Lists what is there and proposes a site file.

use super::virsh::Virsh;
use crate::cli::ImportArgs;
use crate::failure::{Failure, Outcome};
use crate::print;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use tenet_api::rest::{NetworkSpec, PortSpec, PrefixSpec, SubnetSpec, TenantSpec, VmSpec};
use tenet_hostnet::Links;
use tenet_libvirt::{Domain, Found, Network, Proposal, Source, propose};
use tenet_model::{Mac, PortRef, TenantName};
use tenet_site::{At, Position, Site};

/// `libvirt import`
pub async fn import(args: &ImportArgs) -> Outcome {
    let virsh = Virsh::new(&args.connect);
    let names = virsh.run(&["list", "--all", "--name"]).await?;
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for name in names.lines().map(str::trim).filter(|n| !n.is_empty()) {
        let info = virsh.info(name).await?;
        let xml = if info.persistent { virsh.stored(name).await? } else { virsh.live(name).await? };
        match Domain::parse(&xml) {
            Ok(domain) => {
                let addresses = if info.active { addresses(&virsh, name).await } else { BTreeMap::new() };
                found.push(Found { domain, running: info.active, addresses });
            }
            Err(e) => unread.push(format!("domain {name} is left out: {e}")),
        }
    }
    if found.is_empty() && unread.is_empty() {
        return Err(Failure::new(
            format!("there are no domains at {}", args.connect),
            "give libvirt's URI by --connect; `virsh --connect URI list --all` shows what it has",
        ));
    }
    let prefixes = prefixes(&virsh, &found).await;
    let mut proposal = propose(&found, &prefixes, &args.tenant);
    proposal.notes.extend(unread);
    print::text(&file(&proposal, args))
}

/// What libvirt knows of a running domain's addresses: by its own DHCP, else by the host's neighbours.
async fn addresses(virsh: &Virsh, domain: &str) -> BTreeMap<Mac, Vec<IpAddr>> {
    let mut all: BTreeMap<Mac, Vec<IpAddr>> = BTreeMap::new();
    for source in ["lease", "arp"] {
        // A domain may have none that libvirt could know; that is no failure.
        let Ok(text) = virsh.run(&["domifaddr", "--domain", domain, "--source", source]).await else {
            continue;
        };
        for (mac, address) in tenet_libvirt::addresses(&text) {
            let known = all.entry(mac).or_default();
            if !known.contains(&address) {
                known.push(address);
            }
        }
    }
    all
}

/// The prefixes of what NICs are connected to: libvirt's networks say theirs, of bridges the host has an address.
async fn prefixes(virsh: &Virsh, found: &[Found]) -> BTreeMap<Source, Vec<IpNet>> {
    let mut all = BTreeMap::new();
    for source in found.iter().flat_map(|f| &f.domain.interfaces).map(|i| &i.source) {
        if all.contains_key(source) {
            continue;
        }
        let prefixes = match source {
            Source::Network(name) => {
                let xml = virsh.run(&["net-dumpxml", "--network", name]).await.unwrap_or_default();
                let network = Network::parse(&xml).unwrap_or_default();
                match network.bridge {
                    Some(bridge) if network.prefixes.is_empty() => of_device(&bridge),
                    _ => network.prefixes,
                }
            }
            Source::Bridge(device) | Source::Direct(device) => of_device(device),
            Source::Ethernet | Source::Other(_) => Vec::new(),
        };
        all.insert(source.clone(), prefixes);
    }
    all
}

fn of_device(name: &str) -> Vec<IpNet> {
    let read = || {
        let links = Links::here()?;
        let index = links.index(name)?;
        links.addrs().map(|all| {
            let own = all.into_iter().filter(|a| a.link == index);
            own.filter_map(|a| IpNet::new(a.ip, a.prefix_len).ok())
                .filter(|p| !matches!(p.addr(), IpAddr::V6(a) if a.is_unicast_link_local()))
                .collect()
        })
    };
    read().unwrap_or_default()
}

/// The site file: what to know in comments, then the objects.
fn file(proposal: &Proposal, args: &ImportArgs) -> String {
    let mut out = format!("# Proposed by `tenet libvirt import --connect {}`.\n", args.connect);
    out += "# Read it, put it right, then: tenet apply -f THIS_FILE\n";
    for note in &proposal.notes {
        _ = writeln!(out, "# note: {}", note.replace('\n', " "));
    }
    for segment in &proposal.segments {
        _ = writeln!(out, "# {} stands for {}", segment.name.network_ref(), segment.of);
    }
    if !proposal.ports.is_empty() {
        out += "# The ports are on no host. Then, on the domains' host, with each domain shut down:\n";
    }
    for port in &proposal.ports {
        _ = writeln!(
            out,
            "#   tenet libvirt attach {} --vm {} --port {} --mac {}{}",
            port.domain,
            port.vm,
            port.port,
            port.mac,
            if port.running { "   # runs now" } else { "" }
        );
    }
    out.push('\n');
    out + &tenet_site::write(&site(proposal, &args.tenant))
}

fn site(proposal: &Proposal, tenant: &TenantName) -> Site {
    let mut site = Site::default();
    if proposal.vms.is_empty() {
        return site;
    }
    site.tenants.push(at(TenantSpec { name: tenant.clone() }));
    for segment in &proposal.segments {
        let prefixes = segment.prefixes.iter().map(|p| PrefixSpec { prefix: *p, gateway: None }).collect();
        site.networks.push(at(NetworkSpec { name: segment.name.network_ref(), method: None, rdid: None }));
        site.subnets.push(at(SubnetSpec { name: segment.name.clone(), prefixes, vsid: None }));
    }
    for vm in &proposal.vms {
        site.vms.push(at(VmSpec { name: vm.clone() }));
    }
    for port in &proposal.ports {
        let name =
            PortRef { tenant: port.vm.tenant.clone(), vm: port.vm.vm.clone(), port: port.port.clone() };
        site.ports.push(at(PortSpec {
            name,
            subnet: port.subnet.clone(),
            mac: Some(port.mac),
            addresses: port.addresses.clone(),
            host: None,
            device: None,
            queues: (port.queues > 1).then_some(port.queues),
            security: true,
        }));
    }
    site
}

fn at<T>(value: T) -> At<T> {
    At { value, at: Position::default() }
}
