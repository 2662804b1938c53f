//! Makes of a site the one that a lab is told to be: another family outside, another method, rewrite addresses.

use crate::LabOptions;
use crate::plan::net;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_model::Family;
use tenet_site::Site;

/// Rewrite addresses of a host: 32 of IPv4, 256 of IPv6.
const POOL4: u8 = 27;
const POOL6: u8 = 120;

/// Applies the options to a parsed site, which stays as it is where they say nothing.
pub fn prepare(site: &mut Site, options: &LabOptions) {
    if options.underlay == Some(Family::V6) {
        for host in &mut site.hosts {
            host.value.pa = outer_v6(host.value.pa);
        }
    }
    for network in &mut site.networks {
        network.value.method = network.value.method.or(options.method);
    }
    if options.rewrite_pools {
        pools(site);
    }
}

/// The IPv6 provider address that stands for an IPv4 one: its subnet becomes a /64.
#[must_use]
pub fn outer_v6(pa: IpAddr) -> IpAddr {
    match pa {
        IpAddr::V4(pa) => {
            let [a, b, c, d] = pa.octets().map(u16::from);
            Ipv6Addr::new(0xfd7e, a, b, c, 0, 0, 0, d).into()
        }
        IpAddr::V6(_) => pa,
    }
}

/// A host's address of the other family on a provider network that has both; none for an IPv6 address that was not
/// made of an IPv4 one.
#[must_use]
pub fn other(pa: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = pa else { return Some(outer_v6(pa)) };
    let [_, a, b, c, .., d] = v6.segments();
    let octet = |n: u16| u8::try_from(n).ok();
    let v4 = IpAddr::V4(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?));
    (outer_v6(v4) == pa).then_some(v4)
}

/// Gives each host without ranges one of either family, for rewriting keeps a packet's: at the end of its provider
/// subnet, the next host of the subnet the one before.
fn pools(site: &mut Site) {
    let mut taken: Vec<IpAddr> = site.hosts.iter().map(|h| h.value.pa).collect();
    taken.extend(site.hosts.iter().filter_map(|h| other(h.value.pa)));
    for host in &mut site.hosts {
        if host.value.rewrite_pool.as_ref().is_some_and(|p| !p.is_empty()) {
            continue;
        }
        let mut pools = Vec::new();
        for pa in [Some(host.value.pa), other(host.value.pa)].into_iter().flatten() {
            // The router has a low address, which the first range from the end never reaches.
            if let Some(pool) = ranges(net(pa)).find(|r| !taken.iter().any(|t| r.contains(t))) {
                taken.push(pool.addr());
                pools.push(pool);
            }
        }
        host.value.rewrite_pool = Some(pools);
    }
}

/// A provider subnet's ranges, from its last on.
fn ranges(subnet: IpNet) -> impl Iterator<Item = IpNet> {
    (1..=7_u8).rev().filter_map(move |n| match subnet.network() {
        IpAddr::V4(a) => {
            let first = Ipv4Addr::from_bits(a.to_bits() | u32::from(n) << (32 - POOL4));
            Ipv4Net::new(first, POOL4).ok().map(IpNet::V4)
        }
        IpAddr::V6(a) => {
            let first = Ipv6Addr::from_bits(a.to_bits() | u128::from(n) << (128 - POOL6));
            Ipv6Net::new(first, POOL6).ok().map(IpNet::V6)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_model::Method;

    fn prepared(text: &str, change: impl FnOnce(&mut LabOptions)) -> Site {
        let mut site = tenet_site::parse("site.yaml", text).unwrap();
        let mut options = LabOptions::new("x", "/bin/false").unwrap();
        change(&mut options);
        prepare(&mut site, &options);
        site
    }

    const HOSTS: &str =
        "hosts:\n  a: { pa: 192.168.1.240 }\n  b: { pa: 192.168.1.2 }\n  c: { pa: 192.168.2.2 }\n";

    #[test]
    fn addresses_have_counterparts() {
        let v4: IpAddr = "192.168.1.240".parse().unwrap();
        assert_eq!(other(v4), Some("fd7e:c0:a8:1::f0".parse().unwrap()));
        assert_eq!(other(other(v4).unwrap()), Some(v4));
        assert_eq!(other("fd00:1::1".parse().unwrap()), None);
    }

    #[test]
    fn nothing_asked_nothing_changed() {
        let site = prepared(HOSTS, |_| ());
        assert!(site.hosts.iter().all(|h| h.value.pa.is_ipv4() && h.value.rewrite_pool.is_none()));
    }

    #[test]
    fn ranges_are_in_the_subnet_and_meet_nothing() {
        for underlay in [Family::V4, Family::V6] {
            let site = prepared(HOSTS, |o| (o.underlay, o.rewrite_pools) = (Some(underlay), true));
            let pools: Vec<IpNet> =
                site.hosts.iter().flat_map(|h| h.value.rewrite_pool.clone().unwrap()).collect();
            assert_eq!(pools.len(), 6, "{pools:?}");
            for (at, host) in site.hosts.iter().enumerate() {
                let pa = host.value.pa;
                assert_eq!(Family::of(&pa), underlay);
                assert!(net(pa).contains(&pools[2 * at]), "{pools:?}");
                assert!(net(other(pa).unwrap()).contains(&pools[2 * at + 1]), "{pools:?}");
                assert!(pools.iter().all(|p| !p.contains(&pa)), "{pools:?}");
            }
            for (at, pool) in pools.iter().enumerate() {
                let others = pools.iter().skip(at + 1);
                assert!(others.into_iter().all(|p| !p.contains(pool) && !pool.contains(p)), "{pools:?}");
            }
        }
    }

    #[test]
    fn the_method_is_for_networks_that_name_none() {
        let text =
            format!("{HOSTS}tenants: {{ t: {{ networks: {{ a: {{}}, b: {{ method: nvgre }} }} }} }}\n");
        let site = prepared(&text, |o| o.method = Some(Method::Vxlan));
        let methods: Vec<_> = site.networks.iter().map(|n| n.value.method).collect();
        assert_eq!(methods, [Some(Method::Vxlan), Some(Method::Nvgre)]);
    }
}
