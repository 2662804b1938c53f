//! What an address or prefix may be used for.

use crate::Why;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr};

/// The gateway that a subnet has if none is given: its first address. None where the prefix has no room.
#[must_use]
pub fn default_gateway(prefix: &IpNet) -> Option<IpAddr> {
    prefix.hosts().next().filter(|_| prefix.max_prefix_len() - prefix.prefix_len() >= 2)
}

/// IPv4 blocks that are no unicast addresses of a network, with what they are for (RFC 6890).
const RESERVED: [(Ipv4Net, &str, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8), "0.0.0.0/8", "this network"),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "127.0.0.0/8", "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "169.254.0.0/16", "link-local"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "224.0.0.0/4", "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "240.0.0.0/4", "reserved and broadcast"),
];

/// What is wrong with a subnet's prefix and gateway.
pub(crate) fn subnet(prefix: IpNet, gateway: IpAddr) -> Vec<Why> {
    let IpNet::V4(v4) = prefix else {
        return vec![Why::Ipv6 { what: "prefix", address: prefix.to_string() }];
    };
    let mut why = host_bits(prefix);
    if v4.prefix_len() > 30 {
        why.push(Why::PrefixTooLong { prefix });
    }
    why.extend(
        RESERVED
            .iter()
            .find(|(block, ..)| block.contains(&v4) || v4.contains(block))
            .map(|(_, reserved, use_)| Why::PrefixReserved { prefix, reserved, use_ }),
    );
    if !why.is_empty() {
        // The gateway is judged by a prefix that makes sense.
        return why;
    }
    match gateway {
        IpAddr::V6(g) => why.push(Why::Ipv6 { what: "gateway", address: g.to_string() }),
        IpAddr::V4(g) if !v4.contains(&g) => why.push(Why::GatewayOutside { gateway, prefix }),
        IpAddr::V4(_) => {
            if let Some(which) = edge(prefix, gateway) {
                why.push(Why::GatewayReserved { gateway, which, prefix });
            }
        }
    }
    why
}

/// What is wrong with a customer route's prefix; the default route is fine.
pub(crate) fn route(prefix: IpNet) -> Vec<Why> {
    let IpNet::V4(v4) = prefix else {
        return vec![Why::Ipv6 { what: "prefix", address: prefix.to_string() }];
    };
    let mut why = host_bits(prefix);
    why.extend(
        RESERVED
            .iter()
            .filter(|(block, ..)| block.contains(&v4) && v4.prefix_len() > 0)
            .map(|(_, reserved, use_)| Why::PrefixReserved { prefix, reserved, use_ }),
    );
    why
}

/// What is wrong with a provider address.
pub(crate) fn provider(pa: IpAddr) -> Option<Why> {
    let IpAddr::V4(v4) = pa else {
        return Some(Why::Ipv6 { what: "provider address", address: pa.to_string() });
    };
    RESERVED.iter().find(|(block, ..)| block.contains(&v4)).map(|(.., use_)| Why::PaUnusable {
        pa,
        use_: if v4.is_broadcast() { "the broadcast address" } else { use_ },
    })
}

/// Which of a prefix's two addresses without a machine the address is, if one.
pub(crate) fn edge(prefix: IpNet, address: IpAddr) -> Option<&'static str> {
    if address == prefix.network() {
        Some("network")
    } else if address == prefix.broadcast() {
        Some("broadcast")
    } else {
        None
    }
}

fn host_bits(prefix: IpNet) -> Vec<Why> {
    if prefix.trunc() == prefix { vec![] } else { vec![Why::HostBits { prefix }] }
}
