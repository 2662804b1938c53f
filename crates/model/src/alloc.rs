//! What the caller leaves out: the next free VSID, network number, MAC and customer address.

use crate::{Change, Desired, GATEWAY_MAC, Mac, NetId, Object, Operation, PortRef, Subnet, SubnetRef, Vsid};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

/// Nothing is left to allocate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Exhausted {
    /// All VSIDs are in use.
    #[error("all VSIDs from 4096 to 16777214 are in use: delete subnets")]
    Vsids,
    /// All network numbers are in use.
    #[error("all network numbers are in use: delete networks")]
    NetIds,
    /// All addresses of the subnet are in use.
    #[error("all addresses of subnet {subnet} ({prefix}) are in use: delete ports or add a subnet")]
    Addresses {
        /// The subnet.
        subnet: SubnetRef,
        /// Its prefix.
        prefix: IpNet,
    },
    /// An IPv6 subnet.
    #[error("subnet {subnet} ({prefix}) is IPv6, which is not yet available: use an IPv4 prefix")]
    Ipv6 {
        /// The subnet.
        subnet: SubnetRef,
        /// Its prefix.
        prefix: IpNet,
    },
    /// All MACs of the site's prefix are in use.
    #[error("all MAC addresses of 02:54 are in use: delete ports")]
    Macs,
}

/// Hands out what is free in a state and in a change that is being put together: equal input, equal output.
///
/// What it handed out once it does not hand out again; what the caller chose is told by [`Allocator::reserve`].
pub struct Allocator<'a> {
    desired: &'a Desired,
    reserved: Desired,
    vsids: Option<BTreeSet<Vsid>>,
    net_ids: Option<BTreeSet<NetId>>,
    macs: Option<BTreeSet<Mac>>,
    addresses: BTreeMap<SubnetRef, BTreeSet<Ipv4Addr>>,
}

impl<'a> Allocator<'a> {
    /// Allocates from what is free in a state.
    #[must_use]
    pub fn new(desired: &'a Desired) -> Self {
        Self {
            desired,
            reserved: Desired::default(),
            vsids: None,
            net_ids: None,
            macs: None,
            addresses: BTreeMap::new(),
        }
    }

    /// Takes out what the operations of a change name themselves; best before the first allocation.
    pub fn reserve(&mut self, change: &Change) {
        for operation in &change.operations {
            match operation {
                Operation::Put(object) => self.reserve_object(object),
                Operation::Delete(_) => {}
            }
        }
    }

    /// Takes out what an object names.
    pub fn reserve_object(&mut self, object: &Object) {
        match object {
            Object::Network(o) => {
                if let Some(used) = &mut self.net_ids {
                    used.insert(o.id);
                }
            }
            Object::Subnet(o) => {
                if let Some(used) = &mut self.vsids {
                    used.insert(o.vsid);
                }
            }
            Object::Port(o) => {
                if let Some(used) = &mut self.macs {
                    used.insert(o.mac);
                }
                if let Some(used) = self.addresses.get_mut(&o.subnet) {
                    used.extend(o.addresses.iter().filter_map(v4));
                }
            }
            Object::Tenant(_) | Object::Vm(_) | Object::Host(_) | Object::Route(_) | Object::Migration(_) => {
                return;
            }
        }
        self.reserved.put(object.clone(), 0);
    }

    /// The lowest free VSID.
    ///
    /// # Errors
    /// [`Exhausted::Vsids`].
    pub fn vsid(&mut self) -> Result<Vsid, Exhausted> {
        let both = [self.desired, &self.reserved];
        let used = self.vsids.get_or_insert_with(|| {
            both.iter().flat_map(|d| d.subnets.values()).map(|s| s.value.vsid).collect()
        });
        let free = lowest(Vsid::MIN.number(), used.iter().map(|v| v.number()));
        let vsid = Vsid::new(free).map_err(|_| Exhausted::Vsids)?;
        used.insert(vsid);
        Ok(vsid)
    }

    /// The lowest free network number.
    ///
    /// # Errors
    /// [`Exhausted::NetIds`].
    pub fn net_id(&mut self) -> Result<NetId, Exhausted> {
        let both = [self.desired, &self.reserved];
        let used = self.net_ids.get_or_insert_with(|| {
            both.iter().flat_map(|d| d.networks.values()).map(|n| n.value.id).collect()
        });
        let id = NetId(lowest(1, used.iter().map(|n| n.0)));
        if used.insert(id) { Ok(id) } else { Err(Exhausted::NetIds) }
    }

    /// A free MAC for a port: 02:54 and four bytes that follow from the port's name, so that the same port tends to
    /// get the same MAC again.
    ///
    /// # Errors
    /// [`Exhausted::Macs`].
    pub fn mac(&mut self, port: &PortRef) -> Result<Mac, Exhausted> {
        let both = [self.desired, &self.reserved];
        let used = self
            .macs
            .get_or_insert_with(|| both.iter().flat_map(|d| d.ports.values()).map(|p| p.value.mac).collect());
        let start = fold(&port.to_string());
        for step in 0..=u32::MAX {
            let [a, b, c, d] = start.wrapping_add(step).to_be_bytes();
            let octets = [0x02, 0x54, a, b, c, d];
            let Ok(mac) = Mac::new(octets) else { continue };
            if octets != GATEWAY_MAC && used.insert(mac) {
                return Ok(mac);
            }
        }
        Err(Exhausted::Macs)
    }

    /// The lowest free address of a subnet: neither network, broadcast nor gateway address.
    ///
    /// # Errors
    /// [`Exhausted::Addresses`] and [`Exhausted::Ipv6`].
    pub fn address(&mut self, subnet: &Subnet) -> Result<IpAddr, Exhausted> {
        let IpNet::V4(prefix) = subnet.prefix else {
            return Err(Exhausted::Ipv6 { subnet: subnet.name.clone(), prefix: subnet.prefix });
        };
        let both = [self.desired, &self.reserved];
        let used = self.addresses.entry(subnet.name.clone()).or_insert_with(|| {
            let tenant = &subnet.name.tenant;
            both.iter()
                .flat_map(|d| d.ports.range(tenant.first_port()..).take_while(|(k, _)| k.tenant == *tenant))
                .filter(|(_, p)| p.value.subnet == subnet.name)
                .flat_map(|(_, p)| p.value.addresses.iter().filter_map(v4))
                .collect()
        });
        used.extend(v4(&subnet.gateway));
        let first = u32::from(prefix.network()).saturating_add(1);
        let free = lowest(first, used.range(Ipv4Addr::from(first)..).map(|a| u32::from(*a)));
        let address = Ipv4Addr::from(free);
        if free >= u32::from(prefix.broadcast()) {
            return Err(Exhausted::Addresses { subnet: subnet.name.clone(), prefix: subnet.prefix });
        }
        used.insert(address);
        Ok(IpAddr::V4(address))
    }
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(a) => Some(*a),
        IpAddr::V6(_) => None,
    }
}

/// The lowest number from `first` on that is not in an ascending sequence; the last one if all are.
fn lowest(first: u32, used: impl Iterator<Item = u32>) -> u32 {
    let mut free = first;
    for n in used {
        if n > free {
            break;
        }
        if n == free {
            free = free.saturating_add(1);
        }
    }
    free
}

/// FNV-1a, 64 bits folded to 32: spreads names evenly and is the same on every machine.
fn fold(text: &str) -> u32 {
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 32) ^ (hash & 0xffff_ffff)) as u32
}
