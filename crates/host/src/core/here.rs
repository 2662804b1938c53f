//! VMs on this host, for whoever asks here: all from the agent's own rows and from what the kernel holds.

use super::HostCore;
use crate::{message::PortStatus, plan};
use std::net::IpAddr;
use tenet_compile::{PortRow, Row, RowKey, SubnetRow};
use tenet_model::{HostName, VmRef};

/// A port of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Here {
    /// As wanted.
    pub row: PortRow,
    /// Generation of that.
    pub generation: u64,
    /// This host's name.
    pub host: Option<HostName>,
    /// As it is.
    pub status: PortStatus,
    /// Its customer addresses.
    pub addresses: Vec<IpAddr>,
    /// Its subnet.
    pub subnet: Option<SubnetRow>,
}

impl HostCore {
    /// The ports of a VM on this host, or of all.
    #[must_use]
    pub fn here(&self, vm: Option<&VmRef>) -> Vec<Here> {
        let Some(rows) = self.rows() else { return Vec::new() };
        let host = match rows.0.get(&RowKey::Host) {
            Some((Row::Host(host), _)) => Some(host.name.clone()),
            _ => None,
        };
        let wanted = plan::ports(rows).filter(|(p, _)| vm.is_none_or(|vm| p.name.vm_ref() == *vm));
        let mut all: Vec<Here> = wanted
            .map(|(row, generation)| {
                let subnet = match rows.0.get(&RowKey::Subnet(row.net, row.vsid)) {
                    Some((Row::Subnet(subnet), _)) => Some(subnet.clone()),
                    _ => None,
                };
                let records = plan::records_of(rows, row.net).filter(|(r, _)| r.port == row.name);
                let addresses = records.map(|(r, _)| r.ca).collect();
                Here {
                    row: row.clone(),
                    generation,
                    host: host.clone(),
                    status: self.status(row),
                    addresses,
                    subnet,
                }
            })
            .collect();
        all.sort_by(|a, b| a.row.name.cmp(&b.row.name));
        all
    }
}
