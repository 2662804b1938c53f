//! Sockets by which the kernel joins the segments of UDP tunnels (GRO).
//!
//! The kernel joins segments inside UDP only where a tunnel's socket says how. So a host holds one for each port: that
//! of a vxlan or geneve device which carries nothing. The device has no address, knows no virtual subnet, and never sees
//! a frame, because Tenet's program at the uplink takes or drops all that is for these ports.

use crate::links::check_name;
use crate::{Error, Kind, Links, Result};

const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_VNIFILTER: u16 = 30;
const IFLA_GENEVE_PORT: u16 = 5;
const IFLA_GENEVE_COLLECT_METADATA: u16 = 6;
const IFLA_GENEVE_ZERO_CSUM6_RX: u16 = 10;

/// What the names of our devices begin with; the port follows.
const PREFIX: &str = "tenet-gro";

/// A tunnel over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpTunnel {
    /// VXLAN.
    Vxlan,
    /// Geneve. Without a geneve device (a kernel option of its own) a vxlan device on Geneve's port does the same for
    /// frames without options: both headers have eight bytes, which the kernel compares as a whole.
    Geneve,
}

/// Who holds a port's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpGro {
    /// Our device, which this is.
    Ours(String),
    /// Something else that this host runs. If it is a tunnel's device, the kernel joins segments all the same.
    Others,
}

impl Links {
    /// Holds the socket by which the kernel joins a tunnel's segments for a UDP port; what is there already is kept.
    ///
    /// # Errors
    /// If the kernel has no such devices: segments then stay single, which costs much speed.
    pub fn ensure_udp_gro(&self, tunnel: UdpTunnel, port: u16) -> Result<UdpGro> {
        let name = name(port);
        match self.find(&name)? {
            Some(link) if link.up => return Ok(UdpGro::Ours(name)),
            // One that could not be set up, or that somebody set down.
            Some(_) => self.delete_link(&name)?,
            None => {}
        }
        self.add_carrier(tunnel, &name, port)?;
        match self.quiet(&name).and_then(|()| self.set_up(&name)) {
            Ok(()) => Ok(UdpGro::Ours(name)),
            Err(e) => {
                self.delete_link(&name)?;
                if e.errno() == Some(libc::EADDRINUSE) { Ok(UdpGro::Others) } else { Err(e) }
            }
        }
    }

    /// Gives up the sockets of [`Links::ensure_udp_gro`] for all other ports.
    ///
    /// # Errors
    /// If a device cannot be deleted.
    pub fn keep_udp_gro(&self, ports: &[u16]) -> Result<()> {
        let kept: Vec<String> = ports.iter().map(|port| name(*port)).collect();
        let is_ours = |kind: &Kind| matches!(kind, Kind::Other(k) if k == "vxlan" || k == "geneve");
        for link in self.list()? {
            if link.name.starts_with(PREFIX) && is_ours(&link.kind) && !kept.contains(&link.name) {
                self.delete_link(&link.name)?;
            }
        }
        Ok(())
    }

    fn add_carrier(&self, tunnel: UdpTunnel, name: &str, port: u16) -> Result<()> {
        if tunnel == UdpTunnel::Geneve {
            match self.add_geneve(name, port) {
                Err(e) if lacks(&e) => {}
                other => return other,
            }
        }
        // A device that knows no virtual subnet takes no frame; kernels before 5.18 cannot be told.
        match self.add_vxlan(name, port, true) {
            Err(e) if lacks(&e) || e.errno() == Some(libc::EINVAL) => self.add_vxlan(name, port, false),
            other => other,
        }
    }

    fn add_vxlan(&self, name: &str, port: u16, filter: bool) -> Result<()> {
        check_name(name)?;
        self.create(name, &format!("create {name:?} for UDP port {port}"), "vxlan", |data| {
            let data = data
                .attr(IFLA_VXLAN_PORT, &port.to_be_bytes())
                .attr(IFLA_VXLAN_ZERO_CSUM6_RX, &[1])
                .attr(IFLA_VXLAN_COLLECT_METADATA, &[1]);
            if filter { data.attr(IFLA_VXLAN_VNIFILTER, &[1]) } else { data }
        })
    }

    fn add_geneve(&self, name: &str, port: u16) -> Result<()> {
        self.create(name, &format!("create {name:?} for UDP port {port}"), "geneve", |data| {
            data.attr(IFLA_GENEVE_PORT, &port.to_be_bytes())
                .attr(IFLA_GENEVE_ZERO_CSUM6_RX, &[1])
                .attr(IFLA_GENEVE_COLLECT_METADATA, &[])
        })
    }
}

fn name(port: u16) -> String {
    format!("{PREFIX}{port}")
}

/// Whether the kernel does not know a kind of device.
fn lacks(error: &Error) -> bool {
    error.errno() == Some(libc::EOPNOTSUPP)
}
