//! Random changes of a small site, most of them sound, for property tests here and in other crates.
#![expect(clippy::expect_used, reason = "only tests use this, and its names are fixed")]

use crate::{
    Allocator, Change, Desired, Family, Host, HostName, Key, Method, Migration, Name, Network, NetworkRef,
    Object, Operation, Phase, Port, PortRef, Route, Site, Subnet, SubnetPrefix, SubnetRef, Tenant, UdpPorts,
    Vm, VmRef, tap_name,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use uuid::Uuid;

/// Numbers that decide what comes next; from a test framework's seed, so that a failure can be repeated.
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below a limit (SplitMix64).
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_of<T: Clone>(&mut self, items: impl Iterator<Item = T>) -> Option<T> {
        let items: Vec<T> = items.collect();
        let n = self.below(items.len().max(1) as u64) as usize;
        items.get(n).cloned()
    }
}

/// A change of one to four steps; sound in most cases, so check it first.
#[must_use]
pub fn change(desired: &Desired, dice: &mut Dice) -> Change {
    let steps = if dice.below(4) == 0 { 1 + dice.below(4) } else { 1 };
    let mut change = Change::default();
    for _ in 0..steps {
        let operations = step(desired, dice);
        let fresh = |o: &Operation| !change.operations.iter().any(|c| c.key() == o.key());
        let fresh: Vec<_> = operations.into_iter().filter(fresh).collect();
        change.operations.extend(fresh);
    }
    change
}

/// A letter of a small alphabet, so that names meet again.
fn name(dice: &mut Dice, prefix: &str, of: u64) -> Name {
    let text = format!("{prefix}{}", dice.below(of));
    Name::new(text).expect("a prefix and a digit are a name")
}

fn step(desired: &Desired, dice: &mut Dice) -> Vec<Operation> {
    let made = match dice.below(23) {
        0 => Some(Object::Tenant(Tenant { name: name(dice, "t", 3) })),
        1 => network(desired, dice),
        2 => subnet(desired, dice),
        3 => {
            let tenant = dice.one_of(desired.tenants.keys().cloned());
            tenant.map(|tenant| Object::Vm(Vm { name: VmRef { tenant, vm: name(dice, "v", 4) } }))
        }
        4..=8 => port(desired, dice),
        9 => Some(host(dice)),
        10 => route(desired, dice),
        11 | 12 => migration(desired, dice),
        13 | 14 => {
            let running = dice.one_of(desired.migrations.values().map(|m| m.value.clone()));
            running.map(|mut migration| {
                migration.phase = [Phase::Prepared, Phase::Switched][dice.below(2) as usize];
                Object::Migration(migration)
            })
        }
        15 => return finish(desired, dice),
        20 | 21 => return switch(desired, dice),
        22 => {
            let ports = UdpPorts { vxlan: 4789 + dice.below(2) as u16, geneve: 6081 + dice.below(2) as u16 };
            let next = desired.site.value.next_ports().filter(|_| dice.below(3) != 0);
            let site = next.unwrap_or_else(|| desired.with_udp_ports(ports));
            Some(Object::Site(Site { hosts_begin_migrations: dice.below(2) == 0, ..site }))
        }
        _ => return delete(desired, dice).into_iter().map(Operation::Delete).collect(),
    };
    made.into_iter().map(Operation::Put).collect()
}

fn network(desired: &Desired, dice: &mut Dice) -> Option<Object> {
    let tenant = dice.one_of(desired.tenants.keys().cloned())?;
    let name = NetworkRef { tenant, network: name(dice, "n", 2) };
    let was = desired.networks.get(&name).map(|n| n.value.id);
    let id = was.or_else(|| Allocator::new(desired).net_id().ok())?;
    let rdid = Uuid::from_u128(u128::from(dice.below(u64::MAX)));
    let method = Method::ALL[dice.below(5) as usize];
    let switching = dice.one_of(Method::ALL.into_iter()).filter(|_| dice.below(4) == 0);
    Some(Object::Network(Network { name, rdid, id, method, switching }))
}

/// A step on the way from one method to another.
fn switch(desired: &Desired, dice: &mut Dice) -> Vec<Operation> {
    let Some(network) = dice.one_of(desired.networks.values().map(|n| n.value.clone())) else {
        return vec![];
    };
    if let (Some(method), true) = (network.switching, dice.below(3) != 0) {
        let done = Network { method, switching: None, ..network };
        return vec![Operation::Put(Object::Network(done))];
    }
    if dice.below(3) == 0 {
        return desired.release(&network.name).operations;
    }
    // Half of the time to or from the one that needs addresses.
    let method = Method::ALL[dice.below(8).min(4) as usize];
    let begun = desired.with_method(&network.name, method).map(Object::Network);
    begun.map(Operation::Put).into_iter().collect()
}

fn subnet(desired: &Desired, dice: &mut Dice) -> Option<Object> {
    let network = dice.one_of(desired.networks.keys().cloned())?;
    let third = dice.below(3);
    let subnet = name(dice, "s", 3);
    let name = SubnetRef { tenant: network.tenant, network: network.network, subnet };
    let keep = dice.below(3) != 0;
    let was = desired.subnets.get(&name).filter(|_| keep);
    let vsid = was.map(|s| s.value.vsid).or_else(|| Allocator::new(desired).vsid().ok())?;
    let last = 1 + dice.below(2) * 253;
    let own = |prefix: String, gateway: String| {
        Some(SubnetPrefix { prefix: prefix.parse().ok()?, gateway: gateway.parse().ok()? })
    };
    let v4 = own(format!("10.1.{third}.0/24"), format!("10.1.{third}.{last}"))?;
    let v6 = own(format!("fd00:1:{third}::/64"), format!("fd00:1:{third}::{last:x}"))?;
    let prefixes = [vec![v4], vec![v6], vec![v4, v6], vec![v6, v4]][dice.below(4) as usize].clone();
    Some(Object::Subnet(Subnet { name, vsid, prefixes }))
}

fn port(desired: &Desired, dice: &mut Dice) -> Option<Object> {
    let vm = dice.one_of(desired.vms.keys().cloned())?;
    let name = PortRef { tenant: vm.tenant.clone(), vm: vm.vm, port: name(dice, "p", 2) };
    let subnet = dice
        .one_of(desired.subnets.values().map(|s| s.value.clone()).filter(|s| s.name.tenant == vm.tenant))?;
    let mut allocator = Allocator::new(desired);
    let addresses = match dice.below(2) {
        0 => allocator.addresses(&subnet).ok()?,
        _ => (0..=dice.below(2)).map_while(|_| allocator.address(&subnet).ok()).collect(),
    };
    let mac = allocator.mac(&name).ok()?;
    let host = dice.one_of(desired.hosts.keys().cloned()).filter(|_| dice.below(5) != 0);
    let tap = host.is_some() && dice.below(3) == 0;
    let device = host.as_ref().map(|_| if tap { tap_name(&name) } else { device(&name) });
    let security = dice.below(4) != 0;
    let queues = 1 + dice.below(2) as u16;
    let (subnet, rewrite) = (subnet.name, BTreeMap::new());
    Some(Object::Port(Port { name, subnet, mac, addresses, host, device, tap, queues, security, rewrite }))
}

/// Its own on every host.
fn device(port: &PortRef) -> String {
    format!("{}{}{}", port.tenant, port.vm, port.port).replace("default", "d")
}

fn host(dice: &mut Dice) -> Object {
    let n = dice.below(5);
    let name: HostName = Name::new(format!("h{n}")).expect("a letter and a digit are a name");
    let pa = match dice.below(20) {
        0 => IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, n as u16)),
        _ => IpAddr::V4(Ipv4Addr::new(192, 168, dice.below(3) as u8, 10 + n as u8)),
    };
    // Small ones, which are soon exhausted, and now and then one that meets another host's.
    let at = if dice.below(8) == 0 { 0 } else { n };
    let texts = [format!("192.168.9.{}/29", at * 8), format!("fd00:9::{at}0/125"), "10.9.0.0/24".to_owned()];
    let all = texts.iter().filter(|_| dice.below(6) != 0).take(2);
    let rewrite_pool = all.filter_map(|text| text.parse().ok()).collect();
    Object::Host(Host { name, pa, rewrite_pool })
}

fn route(desired: &Desired, dice: &mut Dice) -> Option<Object> {
    let subnet = dice.one_of(desired.subnets.values().map(|s| s.value.clone()))?;
    let own = subnet.prefixes.first()?;
    let prefixes = match own.family() {
        Family::V4 => ["0.0.0.0/0", "172.16.0.0/12", "10.0.0.0/8"],
        Family::V6 => ["::/0", "2001:db8::/32", "fd00::/16"],
    };
    let prefix = prefixes[dice.below(3) as usize].parse().ok()?;
    let next_hop = own.prefix.hosts().nth(1 + dice.below(3) as usize)?;
    let metric = dice.below(3) as u32;
    Some(Object::Route(Route { network: subnet.name.network_ref(), prefix, next_hop, metric }))
}

fn migration(desired: &Desired, dice: &mut Dice) -> Option<Object> {
    let attached =
        desired.ports.values().filter_map(|p| Some((p.value.name.vm_ref(), p.value.host.clone()?)));
    let (vm, from) = dice.one_of(attached)?;
    let to = dice.one_of(desired.hosts.keys().cloned())?;
    let ports = desired.ports_of(&vm).filter(|(_, p)| p.value.host.is_some());
    let devices = ports.map(|(name, p)| {
        let device = p.value.device.clone().filter(|_| p.value.tap).unwrap_or_else(|| device(name));
        (name.port.clone(), device)
    });
    let devices = devices.collect();
    let id = Uuid::from_u128(u128::from(dice.below(u64::MAX)));
    Some(Object::Migration(Migration::new(vm, id, from, to, devices)))
}

/// A migration's end: the ports live on the destination, or stay where they are.
fn finish(desired: &Desired, dice: &mut Dice) -> Vec<Operation> {
    let Some(migration) = dice.one_of(desired.migrations.values().map(|m| m.value.clone())) else {
        return vec![];
    };
    let mut operations = vec![Operation::Delete(Key::Migration(migration.vm.clone()))];
    if dice.below(3) != 0 {
        for (name, port) in desired.ports_of(&migration.vm) {
            let Some(device) = migration.devices.get(&name.port) else { continue };
            let tap = port.value.tap_at(device);
            let (host, device) = (Some(migration.to.clone()), Some(device.clone()));
            operations.push(Operation::Put(Object::Port(Port { host, device, tap, ..port.value.clone() })));
        }
    }
    operations
}

fn delete(desired: &Desired, dice: &mut Dice) -> Option<Key> {
    match dice.below(9) {
        8 => Some(Key::Site),
        0 => dice.one_of(desired.tenants.keys().cloned()).map(Key::Tenant),
        1 => dice.one_of(desired.networks.keys().cloned()).map(Key::Network),
        2 => dice.one_of(desired.subnets.keys().cloned()).map(Key::Subnet),
        3 => dice.one_of(desired.vms.keys().cloned()).map(Key::Vm),
        4 | 5 => dice.one_of(desired.ports.keys().cloned()).map(Key::Port),
        6 => dice.one_of(desired.hosts.keys().cloned()).map(Key::Host),
        _ => dice.one_of(desired.routes.keys().cloned()).map(|(n, p, h)| Key::Route(n, p, h)),
    }
}
