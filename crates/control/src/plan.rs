//! The site and what each host needs of it, kept together.

use std::collections::BTreeSet;
use tenet_compile::{Compiler, Delta, Rows};
use tenet_model::{Desired, HostName, NetworkRef, Operation, PortRef, VmRef};

#[derive(Debug)]
pub(crate) struct Plan {
    desired: Desired,
    compiler: Compiler,
}

impl Plan {
    pub(crate) fn new(desired: Desired) -> Self {
        let compiler = Compiler::new(&desired, &BTreeSet::new(), desired.revision);
        Self { desired, compiler }
    }

    /// Takes a change; what each host concerned must be told.
    pub(crate) fn apply(
        &mut self,
        operations: &[Operation],
        revision: u64,
        blocked: &BTreeSet<PortRef>,
    ) -> Vec<(HostName, Delta)> {
        self.desired.apply(operations, revision);
        self.compiler.update(&self.desired, operations, blocked, revision).into_iter().collect()
    }

    /// Other ports are blocked from now on; the revision stays.
    pub(crate) fn reblock(&mut self, blocked: &BTreeSet<PortRef>) -> Vec<(HostName, Delta)> {
        self.compiler.update(&self.desired, &[], blocked, self.desired.revision).into_iter().collect()
    }

    pub(crate) const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// A host's rows; none of them if there is no such host.
    pub(crate) fn rows(&self, host: &HostName) -> Rows {
        self.compiler.rows(host).unwrap_or_default()
    }

    /// Hosts that have a network's rows.
    pub(crate) fn hosts_of(&self, network: &NetworkRef) -> BTreeSet<HostName> {
        self.compiler.hosts_of(network).cloned().collect()
    }

    /// The network of a port.
    pub(crate) fn network_of(&self, port: &PortRef) -> Option<NetworkRef> {
        self.desired.ports.get(port).map(|p| p.value.subnet.network_ref())
    }

    /// The networks of a VM's attached ports.
    pub(crate) fn networks_of(&self, vm: &VmRef) -> BTreeSet<NetworkRef> {
        let attached = self.desired.ports_of(vm).filter(|(_, p)| p.value.host.is_some());
        attached.map(|(_, p)| p.value.subnet.network_ref()).collect()
    }
}
