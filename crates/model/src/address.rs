//! What an address or prefix may be used for.

use crate::Why;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway that a subnet has if none is given: its first address. None where the prefix has no room.
#[must_use]
pub fn default_gateway(prefix: &IpNet) -> Option<IpAddr> {
    if prefix.max_prefix_len() - prefix.prefix_len() < 2 {
        return None;
    }
    Some(match prefix {
        IpNet::V4(p) => Ipv4Addr::from(u32::from(p.network()).checked_add(1)?).into(),
        IpNet::V6(p) => Ipv6Addr::from(u128::from(p.network()).checked_add(1)?).into(),
    })
}

/// Blocks that are no unicast addresses of a network, with what they are for (RFC 6890).
const RESERVED: [(IpNet, &str, &str); 9] = [
    (v4([0, 0, 0, 0], 8), "0.0.0.0/8", "this network"),
    (v4([127, 0, 0, 0], 8), "127.0.0.0/8", "loopback"),
    (v4([169, 254, 0, 0], 16), "169.254.0.0/16", "link-local"),
    (v4([224, 0, 0, 0], 4), "224.0.0.0/4", "multicast"),
    (v4([240, 0, 0, 0], 4), "240.0.0.0/4", "reserved and broadcast"),
    (v6(Ipv6Addr::UNSPECIFIED, 96), "::/96", "unspecified, loopback and IPv4-compatible"),
    (MAPPED, "::ffff:0:0/96", "IPv4-mapped"),
    (v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "fe80::/10", "link-local"),
    (v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "ff00::/8", "multicast"),
];

const MAPPED: IpNet = v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(address: Ipv6Addr, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, len))
}

/// What is wrong with a subnet's prefix and gateway.
pub(crate) fn subnet(prefix: IpNet, gateway: IpAddr) -> Vec<Why> {
    let mut why = host_bits(prefix);
    if prefix.max_prefix_len() - prefix.prefix_len() < 2 {
        why.push(Why::PrefixTooLong { prefix });
    }
    why.extend(overlapped(prefix));
    if !why.is_empty() {
        // The gateway is judged by a prefix that makes sense.
        return why;
    }
    if !prefix.contains(&gateway) {
        why.push(Why::GatewayOutside { gateway, prefix });
    } else if let Some(which) = edge(prefix, gateway) {
        why.push(Why::GatewayReserved { gateway, which, prefix });
    }
    why
}

/// What is wrong with a customer route's prefix; a default route is fine.
pub(crate) fn route(prefix: IpNet) -> Vec<Why> {
    let mut why = host_bits(prefix);
    if prefix.prefix_len() > 0 {
        // A shorter prefix than a block's is about what else it has; but IPv4 addresses stand as IPv4-mapped ones in
        // the kernel's table.
        let taken = |block: &IpNet| block.contains(&prefix) || *block == MAPPED && prefix.contains(block);
        why.extend(RESERVED.iter().find(|(block, ..)| taken(block)).map(reserved(prefix)));
    }
    why
}

/// What is wrong with a range of rewrite addresses.
pub(crate) fn pool(prefix: IpNet) -> Vec<Why> {
    let mut why = host_bits(prefix);
    why.extend(overlapped(prefix));
    why
}

/// What is wrong with a provider address.
pub(crate) fn provider(pa: IpAddr) -> Option<Why> {
    unusable(pa).map(|use_| Why::PaUnusable { pa, use_ })
}

/// What an address is for that no machine of a network can have.
pub(crate) fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(a) if a.is_broadcast() => return Some("the broadcast address"),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => return Some("the unspecified address"),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => return Some("loopback"),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    RESERVED.iter().find(|(block, ..)| block.contains(&address)).map(|(.., use_)| *use_)
}

/// Which of a prefix's addresses without a machine the address is, if one.
pub(crate) fn edge(prefix: IpNet, address: IpAddr) -> Option<&'static str> {
    match prefix {
        IpNet::V4(_) if address == prefix.network() => Some("network"),
        IpNet::V4(_) if address == prefix.broadcast() => Some("broadcast"),
        // RFC 4291 §2.6.1.
        IpNet::V6(_) if address == prefix.network() => Some("subnet-router anycast"),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// Whether two prefixes have an address in common.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn overlapped(prefix: IpNet) -> Option<Why> {
    RESERVED.iter().find(|(block, ..)| overlap(block, &prefix)).map(reserved(prefix))
}

fn reserved(prefix: IpNet) -> impl Fn(&(IpNet, &'static str, &'static str)) -> Why {
    move |(_, reserved, use_)| Why::PrefixReserved { prefix, reserved, use_ }
}

fn host_bits(prefix: IpNet) -> Vec<Why> {
    if prefix.trunc() == prefix { vec![] } else { vec![Why::HostBits { prefix }] }
}
