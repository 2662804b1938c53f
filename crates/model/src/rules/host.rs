//! Hosts: addresses and pools that are their own.

use super::Problems;
use crate::{Family, Host, Key, Why, address, view::View};
use std::collections::BTreeMap;

/// What written hosts may share with no other, and what is in use of their pools.
pub(super) fn check(view: &View<'_>, problems: &mut Problems) {
    if view.hosts.written().next().is_none() {
        return;
    }
    let mut pas: BTreeMap<_, _> = view.hosts.kept().map(|(k, h)| (h.pa, k)).collect();
    for (name, host) in view.hosts.written() {
        if let Some(other) = pas.insert(host.pa, name) {
            problems
                .add(Key::Host(name.clone()), Why::PaTaken { pa: host.pa, other: Key::Host(other.clone()) });
        }
    }
    family(view, problems);
    pools(view, problems);
    used(view, problems);
}

/// All provider addresses are of one family, which the outer headers are.
fn family(view: &View<'_>, problems: &mut Problems) {
    let Some((first, one)) = view.hosts.iter().next() else { return };
    // The one at fault is the one that is written; of two written ones the later one.
    for (name, host) in view.hosts.written() {
        if Family::of(&host.pa) != Family::of(&one.pa) {
            let (pa, other_pa, other) = (host.pa, one.pa, Key::Host(first.clone()));
            problems.add(Key::Host(name.clone()), Why::PaFamily { pa, other_pa, other });
        }
    }
}

/// No rewrite address is that of two hosts, or a provider address.
fn pools(view: &View<'_>, problems: &mut Problems) {
    for (name, host) in view.hosts.written() {
        let about = || Key::Host(name.clone());
        for (n, pool) in host.rewrite_pool.iter().enumerate() {
            let twice = host.rewrite_pool.iter().take(n).find(|other| address::overlap(pool, other));
            problems.all(&about(), twice.map(|other| overlap(host, *pool, *other)));
        }
        for (_, other) in view.hosts.iter().filter(|(other, _)| *other != name) {
            let title = || Key::Host(other.name.clone());
            // Of two written ones the later one is at fault.
            let first = other.name < *name || !view.hosts.over.contains_key(&other.name);
            for pool in &host.rewrite_pool {
                let same = other.rewrite_pool.iter().filter(|o| first && address::overlap(pool, o));
                problems.all(&about(), same.map(|o| overlap(other, *pool, *o)));
                if pool.contains(&other.pa) {
                    problems.add(about(), Why::PoolOverPa { pool: *pool, pa: other.pa, other: title() });
                }
            }
            // Where both are written the pool is at fault.
            let kept = !view.hosts.over.contains_key(&other.name);
            for pool in other.rewrite_pool.iter().filter(|p| kept && p.contains(&host.pa)) {
                problems.add(about(), Why::PaInPool { pa: host.pa, pool: *pool, other: title() });
            }
        }
        for pool in host.rewrite_pool.iter().filter(|p| p.contains(&host.pa)) {
            problems.add(about(), Why::PoolOverPa { pool: *pool, pa: host.pa, other: about() });
        }
    }
}

fn overlap(other: &Host, pool: ipnet::IpNet, other_pool: ipnet::IpNet) -> Why {
    Why::PoolOverlap { pool, other_pool, other: Key::Host(other.name.clone()) }
}

/// A pool keeps the addresses that are in use.
fn used(view: &View<'_>, problems: &mut Problems) {
    for (name, host) in view.hosts.written() {
        if view.hosts.before(name).is_none_or(|was| was.rewrite_pool == host.rewrite_pool) {
            continue;
        }
        let outside = |address: &std::net::IpAddr| !host.rewrite_pool.iter().any(|p| p.contains(address));
        let here = view.ports.iter().filter(|(_, p)| p.host.as_ref() == Some(name));
        let here = here.flat_map(|(port, p)| p.rewrite.values().map(move |a| (port.clone(), *a)));
        let coming = view.migrations.iter().filter(|(_, m)| m.to == *name).flat_map(|(vm, m)| {
            m.rewrite.iter().flat_map(move |(port, rewrite)| {
                let port =
                    crate::PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port: port.clone() };
                rewrite.values().map(move |a| (port.clone(), *a))
            })
        });
        let mut lost = here.chain(coming).filter(|(_, a)| outside(a));
        if let Some((port, address)) = lost.next() {
            let (port, more) = (Key::Port(port), lost.count());
            problems.add(Key::Host(name.clone()), Why::PoolInUse { address, port, more });
        }
    }
}
