//! What libvirt says about its networks and its guests' addresses.

use crate::DomainError;
use crate::domain::{child, read};
use ipnet::IpNet;
use std::net::IpAddr;
use tenet_model::Mac;

/// One of libvirt's own networks, as `virsh net-dumpxml` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    /// The bridge that it uses.
    pub bridge: Option<String>,
    /// The host's addresses in it, with their prefixes.
    pub prefixes: Vec<IpNet>,
}

impl Network {
    /// Reads a network's XML; addresses that are none are left out.
    ///
    /// # Errors
    /// [`DomainError`] if it is no XML of a network.
    pub fn parse(xml: &str) -> Result<Self, DomainError> {
        let document = read(xml)?;
        let root = document.root_element();
        if !root.has_tag_name("network") {
            return Err(DomainError::Root { found: root.tag_name().name().to_owned() });
        }
        let prefix = |ip: roxmltree::Node<'_, '_>| {
            let address: IpAddr = ip.attribute("address")?.parse().ok()?;
            match (ip.attribute("prefix"), ip.attribute("netmask")) {
                (Some(length), _) => IpNet::new(address, length.parse().ok()?).ok(),
                (None, Some(mask)) => IpNet::with_netmask(address, mask.parse().ok()?).ok(),
                (None, None) => None,
            }
        };
        Ok(Self {
            bridge: child(root, "bridge").and_then(|b| b.attribute("name")).map(str::to_owned),
            prefixes: root.children().filter(|c| c.has_tag_name("ip")).filter_map(prefix).collect(),
        })
    }
}

/// Reads what `virsh domifaddr` prints: device, MAC, family and address with its length in each line.
#[must_use]
pub fn addresses(text: &str) -> Vec<(Mac, IpAddr)> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let mac = words.next()?.parse().ok()?;
        let (address, _) = words.nth(1)?.split_once('/')?;
        Some((mac, address.parse().ok()?))
    };
    text.lines().filter_map(line).filter(|(_, a): &(Mac, IpAddr)| !is_link_local(a)).collect()
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
