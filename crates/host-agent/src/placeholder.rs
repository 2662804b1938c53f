//! A frame for QEMU to lose.
//!
//! A QEMU that waits for its VM's memory reads one frame from the VM's tap as soon as there is one, keeps it, since the
//! VM does not run yet, reads no more, and loses it when the VM starts (QEMU 7.2: seen by captures at the tap, in every
//! move). That was the first of the VM's frames that were redirected here. So the agent gives it one that nobody
//! misses, as soon as it has the tap open. With several queues that is enough: the others are open only when the VM
//! runs. With vhost-net, which reads no frame before the VM runs, the VM gets this one, and knows no such protocol.

use crate::agent::Agent;
use std::collections::BTreeMap;
use tenet_model::PortRef;
use tenet_tables::GATEWAY_MAC;

/// To a group that no bridge passes on (IEEE 802.1D-2004 section 7.12.6).
const TO: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0f];
/// Local Experimental EtherType 1 (IEEE 802-2014 section 9.2.4).
const ETHER_TYPE: [u8; 2] = 0x88b5_u16.to_be_bytes();
/// For whoever finds it in a capture.
const TEXT: &[u8] = b"tenet: nobody's frame";
/// The shortest frame, without its check sequence (IEEE 802.3).
const SHORTEST: usize = 60;

/// Prepared ports whose tap's reader was given one, with the tap's number.
pub(crate) type Given = BTreeMap<PortRef, u32>;

impl Agent {
    /// Who has a prepared port's tap open when the agent starts was given a frame by an earlier run, or its VM runs by now.
    pub(crate) fn resume_placeholders(&mut self) {
        self.placeholders = self.core.awaited().collect();
    }

    /// Devices or rows may have changed.
    pub(crate) fn give_placeholders(&mut self) {
        let mut awaited: Given = self.core.awaited().collect();
        if awaited.keys().any(|port| !self.placeholders.contains_key(port)) {
            // What the data plane has told and nobody has taken yet: a VM that has sent its first frame runs.
            self.take_events();
            awaited = self.core.awaited().collect();
        }
        self.placeholders.retain(|port, ifindex| awaited.get(port) == Some(ifindex));
        for (port, ifindex) in awaited {
            if self.placeholders.contains_key(&port) {
                continue;
            }
            match self.kernel.give(ifindex, &frame()) {
                Ok(()) => tracing::debug!(%port, "the tap's reader was given a frame of nobody's"),
                Err(cause) => tracing::warn!(%port, %cause, "the first frame that comes for the VM is lost"),
            }
            // One that failed fails again.
            self.placeholders.insert(port, ifindex);
        }
    }
}

fn frame() -> Vec<u8> {
    let mut frame = [&TO[..], &GATEWAY_MAC.octets(), &ETHER_TYPE, TEXT].concat();
    frame.resize(SHORTEST, 0);
    frame
}
