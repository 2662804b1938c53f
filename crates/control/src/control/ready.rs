//! Whether a host can take a VM, asked before anything moves.

use super::{Control, open_id};
use crate::session::Host;
use tenet_model::{Family, HostName, VmRef};

/// Why a host cannot take a VM now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotReady {
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: String,
}

impl Control {
    /// Whether a host can take a VM as far as its agent, its uplink and its paths are concerned. What the model knows
    /// (rewrite pools, names of devices) is told by the change's own check.
    ///
    /// # Errors
    /// [`NotReady`] if its agent has no session, or its packets would have to be smaller there.
    pub fn ready_for(&self, vm: &VmRef, to: &HostName) -> Result<(), NotReady> {
        let Some(host) = self.hosts.get(to) else { return Ok(()) };
        if open_id(host).is_none() {
            return Err(NotReady {
                text: format!("the agent of host {to} is not connected"),
                hint: format!("start it there, or look at its log; `tenet host show {to}` says since when"),
            });
        }
        for (name, port) in self.desired().ports_of(vm) {
            let Some(from) = port.value.host.as_ref().filter(|from| *from != to) else { continue };
            let report = self.hosts.get(from).and_then(|h| h.ports.get(name));
            let Some(has) = report.map(|r| r.mtu).filter(|mtu| *mtu != 0) else { continue };
            let Some((mtu, limit)) = self.mtu_on(name, to, host) else { continue };
            if mtu < has {
                return Err(NotReady {
                    text: format!(
                        "host {to} has room for packets of {mtu} bytes ({limit}), but port {name} uses {has} on {from}"
                    ),
                    hint: format!(
                        "raise the MTU of the provider network at {to}; `tenet paths` shows where it is small"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Largest packet that a port would have on a host, and what limits it.
    fn mtu_on(&self, name: &tenet_model::PortRef, to: &HostName, host: &Host) -> Option<(u32, String)> {
        let network = self.plan.network_of(name)?;
        let desired = self.desired();
        let methods = &desired.networks.get(&network)?.value;
        let outer = Family::of(&desired.hosts.get(to)?.value.pa);
        let overhead = [Some(methods.method), methods.switching].into_iter().flatten();
        let overhead = overhead.map(|m| u32::from(m.overhead(outer))).max()?;
        let measured = host.measured.as_ref().map(|(m, _)| m);
        let uplink = crate::paths::uplink_mtu(host).map(|m| (m, format!("its uplink's MTU is {m}")));
        let others = self.plan.hosts_of(&network);
        let paths = measured.into_iter().flat_map(|m| &m.paths).filter(|p| others.contains(&p.peer));
        let paths = paths.filter_map(|p| {
            let mtu = u32::from(p.mtu?);
            Some((mtu, format!("its path to host {} carries {mtu}", p.peer)))
        });
        let (mtu, limit) = uplink.into_iter().chain(paths).min_by_key(|(mtu, _)| *mtu)?;
        Some((mtu.saturating_sub(overhead), limit))
    }
}
