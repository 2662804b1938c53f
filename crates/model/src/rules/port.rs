//! Ports: what one needs, and what it may share with none other.

use super::{Problems, reserved};
use crate::{
    GATEWAY_MAC, Key, Mac, Name, Port, PortRef, Subnet, SubnetRef, Why, address, tap_name, view::View,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Queues of a tap (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const QUEUES: u16 = 256;

/// What a written port needs, and what it must be on its own.
pub(super) fn put(view: &View<'_>, port: &Port, problems: &mut Problems) {
    let about = Key::Port(port.name.clone());
    let vm = port.name.vm_ref();
    if view.vms.get(&vm).is_none() {
        problems.add(about.clone(), Why::Unknown(Key::Vm(vm.clone())));
    }
    if port.subnet.tenant != port.name.tenant {
        let (vm_tenant, subnet) = (vm.tenant.clone(), port.subnet.clone());
        problems.add(about.clone(), Why::ForeignSubnet { vm_tenant, subnet });
    }
    match view.subnets.get(&port.subnet) {
        Some(subnet) => problems.all(&about, addresses(port, subnet)),
        None => problems.add(about.clone(), Why::Unknown(Key::Subnet(port.subnet.clone()))),
    }
    if port.mac.octets() == GATEWAY_MAC {
        problems.add(about.clone(), Why::MacOfGateway { mac: port.mac });
    }
    match (&port.host, &port.device) {
        (Some(_), None) => problems.add(about.clone(), Why::HalfAttached { has: "host", lacks: "device" }),
        (None, Some(_)) => problems.add(about.clone(), Why::HalfAttached { has: "device", lacks: "host" }),
        (Some(_), Some(_)) | (None, None) => {}
    }
    if let Some(host) = port.host.as_ref().filter(|h| view.hosts.get(h).is_none()) {
        problems.add(about.clone(), Why::Unknown(Key::Host(host.clone())));
    }
    if let Some(device) = port.device.as_ref().filter(|d| !legal_device(d)) {
        problems.add(about.clone(), Why::DeviceName { device: device.clone() });
    }
    if port.tap && !port.device.as_ref().is_some_and(|d| port.tap_at(d)) {
        problems.add(about.clone(), Why::TapName { name: tap_name(&port.name) });
    }
    if !(1..=QUEUES).contains(&port.queues) {
        problems.add(about.clone(), Why::Queues { queues: port.queues, limit: QUEUES });
    }
    // Rewrite addresses come and go with the network's method, which needs not wait.
    let same = |was: &Port| Port { rewrite: port.rewrite.clone(), ..was.clone() } == *port;
    if view.migrations.before(&vm).is_some()
        && view.migrations.get(&vm).is_some()
        && !view.ports.before(&port.name).is_some_and(same)
    {
        problems.add(about, Why::Migrating { migration: Key::Migration(vm) });
    }
}

/// Addresses and MACs that two ports share, and ports that a changed subnet leaves outside.
pub(super) fn check(view: &View<'_>, problems: &mut Problems) {
    let mut claims = Claims::default();
    for (_, port) in view.ports.written() {
        claims.claim(port, problems);
    }
    // A subnet that is new, or whose prefixes and gateways stay, leaves no kept port outside.
    let changed: BTreeMap<&SubnetRef, &Subnet> = view
        .subnets
        .written()
        .filter(|(name, s)| view.subnets.before(name).is_some_and(|was| was.prefixes != s.prefixes))
        .collect();
    let tenants: BTreeSet<&Name> =
        claims.tenants.iter().copied().chain(changed.keys().map(|name| &name.tenant)).collect();
    for tenant in tenants {
        let kept = view.ports.kept_from(tenant.first_port()).take_while(|(k, _)| k.tenant == *tenant);
        for (name, port) in kept {
            claims.compare(port, problems);
            if let Some(subnet) = changed.get(&port.subnet) {
                problems.all(&Key::Port(name.clone()), addresses(port, subnet));
            }
        }
    }
}

/// Whether the kernel takes the text as a device's name (`dev_valid_name` in net/core/dev.c), kept to printable ASCII.
pub(super) fn legal_device(device: &str) -> bool {
    (1..=15).contains(&device.len())
        && device != "."
        && device != ".."
        && device.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

/// What is wrong with a port's addresses in its subnet.
fn addresses(port: &Port, subnet: &Subnet) -> Vec<Why> {
    let mut why = Vec::new();
    if port.addresses.is_empty() {
        why.push(Why::NoAddress { subnet: subnet.name.clone() });
    }
    for address in &port.addresses {
        if let Some(use_) = address::unusable(*address) {
            why.push(Why::AddressUnusable { address: *address, use_ });
        } else if subnet.prefix_of(address).is_none() {
            let (address, prefixes) = (*address, subnet.prefixes.iter().map(|p| p.prefix).collect());
            why.push(Why::AddressOutside { address, subnet: subnet.name.clone(), prefixes });
        } else if let Some(which) = reserved(subnet, *address) {
            why.push(Why::AddressReserved { address: *address, which, subnet: subnet.name.clone() });
        }
    }
    why
}

/// What the written ports take.
#[derive(Default)]
struct Claims<'a> {
    addresses: BTreeMap<(&'a Name, &'a Name, IpAddr), &'a PortRef>,
    macs: BTreeMap<(&'a SubnetRef, Mac), &'a PortRef>,
    tenants: BTreeSet<&'a Name>,
}

impl<'a> Claims<'a> {
    fn claim(&mut self, port: &'a Port, problems: &mut Problems) {
        let about = || Key::Port(port.name.clone());
        self.tenants.insert(&port.subnet.tenant);
        for address in &port.addresses {
            let place = (&port.subnet.tenant, &port.subnet.network, *address);
            match self.addresses.insert(place, &port.name) {
                Some(other) if *other == port.name => {
                    problems.add(about(), Why::AddressTwice { address: *address })
                }
                Some(other) => problems
                    .add(about(), Why::AddressTaken { address: *address, other: Key::Port(other.clone()) }),
                None => {}
            }
        }
        if let Some(other) = self.macs.insert((&port.subnet, port.mac), &port.name) {
            problems.add(about(), Why::MacTaken { mac: port.mac, other: Key::Port(other.clone()) });
        }
    }

    fn compare(&self, kept: &'a Port, problems: &mut Problems) {
        let other = || Key::Port(kept.name.clone());
        for address in &kept.addresses {
            let place = (&kept.subnet.tenant, &kept.subnet.network, *address);
            if let Some(name) = self.addresses.get(&place) {
                let about = Key::Port((*name).clone());
                problems.add(about, Why::AddressTaken { address: *address, other: other() });
            }
        }
        if let Some(name) = self.macs.get(&(&kept.subnet, kept.mac)) {
            problems.add(Key::Port((*name).clone()), Why::MacTaken { mac: kept.mac, other: other() });
        }
    }
}
