//! What this host's networks need of the kernel beside maps and programs.

use crate::plan;
use tenet_compile::{Row, Rows};
use tenet_model::Method;

/// What this host's networks need of the kernel beside maps and programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// A socket for VXLAN at this UDP port, by which the kernel joins segments.
    pub vxlan: Option<u16>,
    /// The same for Geneve.
    pub geneve: Option<u16>,
}

/// What these rows need. A method counts from the moment that a network is about to change to it: receivers are ready
/// before the first sender.
#[must_use]
pub fn needs(rows: &Rows) -> Needs {
    let mut needs = Needs::default();
    let Some(host) = plan::host_row(rows) else { return needs };
    for (row, _) in rows.0.values() {
        let Row::Network(network) = row else { continue };
        for method in [Some(network.method), network.switching].into_iter().flatten() {
            match method {
                Method::Vxlan => needs.vxlan = Some(host.vxlan_port),
                Method::Geneve => needs.geneve = Some(host.geneve_port),
                Method::Nvgre | Method::Stt | Method::Rewrite => {}
            }
        }
    }
    needs
}
