//! What the caller leaves out: the next free VSID, network number, MAC and customer address.

use crate::{
    Change, Desired, Family, GATEWAY_MAC, Mac, NetId, Object, Operation, PortRef, Subnet, SubnetPrefix,
    SubnetRef, Vsid,
};
use ipnet::{IpNet, Ipv4Net};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
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
    addresses: BTreeMap<(SubnetRef, Family), BTreeSet<u128>>,
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
                for address in &o.addresses {
                    if let Some(used) = self.addresses.get_mut(&(o.subnet.clone(), Family::of(address))) {
                        used.insert(number(address));
                    }
                }
            }
            Object::Tenant(_)
            | Object::Vm(_)
            | Object::Host(_)
            | Object::Route(_)
            | Object::Migration(_)
            | Object::Site(_) => {
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
        let free = lowest(Vsid::MIN.number().into(), used.iter().map(|v| v.number().into()));
        let vsid = u32::try_from(free).ok().and_then(|n| Vsid::new(n).ok()).ok_or(Exhausted::Vsids)?;
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
        // The agents' own probes have the highest number.
        let free = u32::try_from(lowest(1, used.iter().map(|n| n.0.into())));
        let id = free.ok().filter(|n| *n != u32::MAX).map(NetId).ok_or(Exhausted::NetIds)?;
        used.insert(id);
        Ok(id)
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

    /// The lowest free address of a subnet's first prefix.
    ///
    /// # Errors
    /// [`Exhausted::Addresses`].
    pub fn address(&mut self, subnet: &Subnet) -> Result<IpAddr, Exhausted> {
        match subnet.prefixes.first() {
            Some(prefix) => self.address_of(&subnet.name, prefix),
            // It does not pass the rules; nothing is free in it.
            None => {
                Err(Exhausted::Addresses { subnet: subnet.name.clone(), prefix: Ipv4Net::default().into() })
            }
        }
    }

    /// The lowest free address of each of a subnet's prefixes: what a port gets if none is chosen for it.
    ///
    /// # Errors
    /// [`Exhausted::Addresses`].
    pub fn addresses(&mut self, subnet: &Subnet) -> Result<Vec<IpAddr>, Exhausted> {
        subnet.prefixes.iter().map(|prefix| self.address_of(&subnet.name, prefix)).collect()
    }

    /// The lowest free address of a subnet's prefix: neither network, broadcast, anycast nor gateway address; with IPv6
    /// from the second on, as the first is the gateway's by custom.
    fn address_of(&mut self, subnet: &SubnetRef, own: &SubnetPrefix) -> Result<IpAddr, Exhausted> {
        let both = [self.desired, &self.reserved];
        let family = own.family();
        let used = self.addresses.entry((subnet.clone(), family)).or_insert_with(|| {
            let tenant = &subnet.tenant;
            both.iter()
                .flat_map(|d| d.ports.range(tenant.first_port()..).take_while(|(k, _)| k.tenant == *tenant))
                .filter(|(_, p)| p.value.subnet == *subnet)
                .flat_map(|(_, p)| &p.value.addresses)
                .filter(|a| Family::of(a) == family)
                .map(number)
                .collect()
        });
        used.insert(number(&own.gateway));
        let (first, last) = match own.prefix {
            IpNet::V4(p) => {
                (number(&p.network().into()) + 1, number(&p.broadcast().into()).saturating_sub(1))
            }
            IpNet::V6(p) => (number(&p.network().into()).saturating_add(2), number(&p.broadcast().into())),
        };
        let free = lowest(first, used.range(first..).copied());
        if free > last || used.contains(&free) {
            return Err(Exhausted::Addresses { subnet: subnet.clone(), prefix: own.prefix });
        }
        used.insert(free);
        Ok(address(family, free))
    }
}

/// An address as a number among those of its family.
pub(crate) fn number(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(*a)),
        IpAddr::V6(a) => u128::from(*a),
    }
}

/// The address of a number.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from((number & u128::from(u32::MAX)) as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The lowest number from `first` on that is not in an ascending sequence; the last one if all are.
pub(crate) fn lowest(first: u128, used: impl Iterator<Item = u128>) -> u128 {
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
