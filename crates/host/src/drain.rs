//! What a VM left unread when it was stopped to be moved, and how that is sent on.
//!
//! QEMU reads no more from a VM's tap from the moment on at which it stops the VM's processors; what waits there then
//! has been decapsulated and accepted, and the redirect does not see it. The agent takes it out and sends it once
//! more, by a tap of its own: that is a port of the VM's subnet for as long as this takes, and may speak for
//! everybody. `port_in` finds the VM's MAC, sees that the port has moved, and redirects with the network's method; the
//! new host takes it, for it comes from the host that the VM left. Where the VM goes on at its old place after all,
//! the same write gives the frame back to it.

use crate::core::HostCore;
use crate::plan::{self, Device, DeviceKind};
use std::collections::BTreeMap;
use tenet_compile::PortState;
use tenet_model::PortRef;
use tenet_tables::{Addr, DEVICE_TAP, DropReason, Mac, PORT_ACTIVE, PORT_MOVED, Port};

/// Name of the agent's tap.
pub const TAP: &str = "tenet-drain";

/// Frames to groups are not sent on: by the agent's tap they would reach the whole subnet once more.
pub const BROADCAST: &str = "broadcast";

/// The tap among a host's devices.
#[must_use]
pub fn tap(devices: &BTreeMap<String, Device>) -> Option<(&String, &Device)> {
    devices.iter().find(|(_, d)| d.kind == DeviceKind::Drain)
}

/// A port on a tap whose VM is about to leave this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    /// Its name.
    pub name: PortRef,
    /// Its tap.
    pub tap: String,
    /// The tap's number.
    pub ifindex: u32,
    /// What the kernel has of it.
    pub port: Port,
    /// Whether its hypervisor says that the VM stands still, and the kernel redirects: only then may anybody else read
    /// the tap.
    pub stands: bool,
}

impl HostCore {
    /// Ports on taps whose VMs are about to leave this host.
    pub fn leaving(&self) -> impl Iterator<Item = Leaving> {
        let rows = self.rows().into_iter().flat_map(plan::ports).map(|(row, _)| row);
        let moving = rows.filter(|row| match row.state {
            PortState::Active => row.peer_pa.is_some() && !self.has_arrived(&row.name),
            PortState::Moved => true,
            PortState::Blocked | PortState::Prepared => false,
        });
        moving.filter_map(|row| {
            let device = self.device(&row.device).filter(|d| d.kind == DeviceKind::Tap)?;
            let port = *self.actual()?.ports.get(&device.ifindex)?;
            let stands = port.state == PORT_MOVED && self.stands_still(&row.name.vm_ref());
            let (name, tap) = (row.name.clone(), row.device.clone());
            Some(Leaving { name, tap, ifindex: device.ifindex, port, stands })
        })
    }
}

/// The agent's tap as a port of the subnet of another port: it may speak for everybody, and nothing leads to it.
#[must_use]
pub const fn sender(port: &Port) -> Port {
    Port {
        peer_pa: Addr::UNSET,
        mac: Mac { halves: [0; 3] },
        state: PORT_ACTIVE,
        device: DEVICE_TAP,
        flags: 0,
        flood_rate: 0,
        flood_burst: 0,
        ..*port
    }
}

/// Whether a frame from a port's tap may be sent on; else the name of the reason why not.
///
/// # Errors
/// A drop reason's name, or [`BROADCAST`].
pub fn may_go_on(frame: &[u8], port: &Port) -> Result<(), &'static str> {
    let Some((to, _)) = frame.split_first_chunk::<6>().filter(|(_, rest)| rest.len() >= 8) else {
        return Err(DropReason::Truncated.name());
    };
    let to = Mac::new(*to);
    if to.is_group() {
        return Err(BROADCAST);
    }
    if to != port.mac {
        return Err(DropReason::UnknownMac.name());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_tables::PORT_FLAG_SECURITY;

    #[test]
    fn only_what_is_for_the_vm_alone_goes_on() {
        let port = Port { mac: Mac::new([2, 0, 0, 0, 0, 9]), ..Port::default() };
        let frame = |to: [u8; 6]| [&to[..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45]].concat();
        assert_eq!(may_go_on(&frame([2, 0, 0, 0, 0, 9]), &port), Ok(()));
        assert_eq!(may_go_on(&frame([2, 0, 0, 0, 0, 8]), &port), Err("unknown_mac"));
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            assert_eq!(may_go_on(&frame(group), &port), Err(BROADCAST));
        }
        for short in 0..14 {
            assert_eq!(may_go_on(&frame([2, 0, 0, 0, 0, 9])[..short], &port), Err("truncated"), "{short}");
        }
    }

    #[test]
    fn the_sender_is_in_the_ports_subnet_and_no_frame_leads_to_it() {
        let port = Port {
            net: 7,
            vsid: 5001,
            mtu: 1458,
            mac: Mac::new([2, 0, 0, 0, 0, 9]),
            state: PORT_MOVED,
            peer_pa: std::net::IpAddr::from([172, 16, 0, 2]).into(),
            flags: PORT_FLAG_SECURITY,
            flood_rate: 9,
            ..Port::default()
        };
        let sender = sender(&port);
        assert_eq!((sender.net, sender.vsid, sender.mtu, sender.state), (7, 5001, 1458, PORT_ACTIVE));
        assert_eq!((sender.peer_pa, sender.flags, sender.mac), (Addr::UNSET, 0, Mac::default()));
        assert_eq!(sender.flood_rate, 0, "not one broadcast leaves by it");
    }
}
