//! Rewrite addresses as they stand in the kernel's maps: `REWRITES`, `POOLS`, and back.

use crate::plan::Plan;
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};
use tenet_compile::{HostRow, RecordRow};
use tenet_tables::image::Image;
use tenet_tables::{Addr, CONFIG_FLAG_REWRITE, Mac, Pool, PoolKey, Record, RecordKey, Rewrite, RewriteKey};

/// Writes `POOLS`; the flags that `CONFIG` has for it.
pub(crate) fn plan_pools(host: &HostRow, generation: u64, plan: &mut Plan) -> u16 {
    for pool in &host.pool {
        let len = match pool {
            IpNet::V4(p) => 96 + u32::from(p.prefix_len()),
            IpNet::V6(p) => p.prefix_len().into(),
        };
        plan.image.pools.insert((PoolKey { pa: pool.trunc().addr().into() }, len), Pool { generation });
    }
    if host.pool.is_empty() { 0 } else { CONFIG_FLAG_REWRITE }
}

/// Writes a record's entries of `REWRITES`: for the host where it points, and for the other one of a migration.
pub(crate) fn plan_rewrites(record: &RecordRow, generation: u64, ifindex: u32, own: IpAddr, plan: &mut Plan) {
    let addr = |a: Option<IpAddr>| a.map_or(Addr::UNSET, Into::into);
    let (first, second) = (record.rewrite_pa, record.other_rewrite_pa);
    for (pa, other, host) in [(first, second, Some(record.pa)), (second, first, record.alt_pa)] {
        let Some(pa) = pa else { continue };
        let entry = Rewrite {
            net: record.net.0,
            vsid: record.vsid.number(),
            ca: record.ca.into(),
            other_pa: addr(other),
            mac: Mac::new(record.mac.octets()),
            reserved: 0,
            ifindex: if host == Some(own) { ifindex } else { 0 },
            reserved2: 0,
            generation,
        };
        if plan.image.rewrites.insert(RewriteKey { pa: pa.into() }, entry).is_some_and(|old| old != entry) {
            plan.problems.push(format!("rewrite address {pa} stands for two customer addresses"));
        }
    }
}

/// The entries of `REWRITES` by network and customer address.
pub(crate) struct Reverse<'i>(BTreeMap<RecordKey, Vec<(Addr, &'i Rewrite)>>);

impl<'i> Reverse<'i> {
    pub(crate) fn new(image: &'i Image) -> Self {
        let mut all: BTreeMap<RecordKey, Vec<_>> = BTreeMap::new();
        for (key, entry) in &image.rewrites {
            all.entry(RecordKey { net: entry.net, ca: entry.ca }).or_default().push((key.pa, entry));
        }
        Self(all)
    }

    /// A record's rewrite address and that of the other host of its migration. Where `RECORDS` and `REWRITES` do not say
    /// the same, the first one is the unspecified address, which no row has.
    pub(crate) fn of(&self, key: &RecordKey, record: &Record) -> (Option<IpAddr>, Option<IpAddr>) {
        let set = |a: Addr| (!a.is_unset()).then(|| a.into());
        let entries = self.0.get(key).map_or(&[][..], Vec::as_slice);
        let other = entries.iter().map(|(pa, _)| *pa).find(|pa| *pa != record.rewrite_pa);
        let other = other.unwrap_or(Addr::UNSET);
        let expected = [(record.rewrite_pa, other), (other, record.rewrite_pa)];
        let expected: Vec<_> = expected.into_iter().filter(|(pa, _)| !pa.is_unset()).collect();
        let agrees = |(pa, other_pa): &(Addr, Addr)| {
            entries.iter().any(|(at, e)| {
                (at, &e.other_pa) == (pa, other_pa)
                    && (e.vsid, e.mac, e.generation) == (record.vsid, record.mac, record.generation)
            })
        };
        let sound = entries.len() == expected.len() && expected.iter().all(agrees);
        let own = if sound { set(record.rewrite_pa) } else { Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) };
        (own, set(other))
    }
}
