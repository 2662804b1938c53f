//! Where a port is: on its host, and while its VM moves on two.

use crate::PortState;
use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{Desired, HostName, Method, NetId, NetworkRef, Phase, Port, PortRef, Versioned, Vsid};

/// No rewrite addresses.
static NONE: BTreeMap<IpAddr, IpAddr> = BTreeMap::new();

/// A port on one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) host: HostName,
    pub(crate) device: String,
    pub(crate) tap: bool,
    pub(crate) state: PortState,
    pub(crate) peer_pa: Option<IpAddr>,
}

/// An attached port with all that its rows derive from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) port: &'a Port,
    pub(crate) network: NetworkRef,
    pub(crate) net: NetId,
    pub(crate) method: Method,
    pub(crate) vsid: Vsid,
    /// Where its records point to.
    pub(crate) pa: IpAddr,
    pub(crate) alt_pa: Option<IpAddr>,
    /// What stands for its addresses there, and on the other host of its migration.
    pub(crate) rewrite: &'a BTreeMap<IpAddr, IpAddr>,
    pub(crate) other_rewrite: &'a BTreeMap<IpAddr, IpAddr>,
    /// Its own host first, then the destination of its migration.
    pub(crate) places: Vec<Place>,
    /// The latest write of what its records derive from.
    pub(crate) record_revision: u64,
    /// The latest write of what its port rows derive from.
    pub(crate) port_revision: u64,
}

impl<'a> Placed<'a> {
    /// Where the port is; none if it is not attached (or names what does not exist).
    pub(crate) fn new(desired: &'a Desired, port: &'a Versioned<Port>) -> Option<Self> {
        let host = port.value.host.as_ref()?;
        let device = port.value.device.as_ref()?;
        let home = desired.hosts.get(host)?;
        let network = port.value.subnet.network_ref();
        let net = desired.networks.get(&network)?;
        let subnet = desired.subnets.get(&port.value.subnet)?;
        let here = Place {
            host: host.clone(),
            device: device.clone(),
            tap: port.value.tap_at(device),
            state: PortState::Active,
            peer_pa: None,
        };
        let mut placed = Placed {
            port: &port.value,
            network,
            net: net.value.id,
            method: net.value.method,
            vsid: subnet.value.vsid,
            pa: home.value.pa,
            alt_pa: None,
            rewrite: &port.value.rewrite,
            other_rewrite: &NONE,
            places: vec![here],
            record_revision: port.revision.max(home.revision).max(net.revision).max(subnet.revision),
            port_revision: port.revision.max(subnet.revision),
        };
        placed.migrate(desired, home.revision);
        Some(placed)
    }

    /// Adds what a running migration of the VM makes of it.
    fn migrate(&mut self, desired: &'a Desired, home_revision: u64) {
        let Some(migration) = desired.migrations.get(&self.port.name.vm_ref()) else { return };
        let there = migration.value.devices.get(&self.port.name.port);
        let (Some(device), Some(to)) = (there, desired.hosts.get(&migration.value.to)) else { return };
        let [here] = self.places.as_mut_slice() else { return };
        if here.host != migration.value.from {
            return;
        }
        let (from_pa, to_pa) = (self.pa, to.value.pa);
        self.other_rewrite = migration.value.rewrite.get(&self.port.name.port).unwrap_or(&NONE);
        let there = match migration.value.phase {
            Phase::Preparing | Phase::Prepared => {
                self.alt_pa = Some(to_pa);
                PortState::Prepared
            }
            Phase::Switched => {
                here.state = PortState::Moved;
                (self.pa, self.alt_pa) = (to_pa, Some(from_pa));
                std::mem::swap(&mut self.rewrite, &mut self.other_rewrite);
                PortState::Active
            }
        };
        here.peer_pa = Some(to_pa);
        let (host, device, tap) = (migration.value.to.clone(), device.clone(), self.port.tap_at(device));
        self.places.push(Place { host, device, tap, state: there, peer_pa: Some(from_pa) });
        let revision = migration.revision.max(to.revision);
        self.record_revision = self.record_revision.max(revision);
        // Both port rows name the other host's address.
        self.port_revision = self.port_revision.max(revision).max(home_revision);
    }

    pub(crate) fn name(&self) -> &'a PortRef {
        &self.port.name
    }

    /// The revision of a port that may send from any address.
    pub(crate) fn open(&self) -> Option<u64> {
        (!self.port.security).then_some(self.port_revision)
    }
}
