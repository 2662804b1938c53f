//! Broadcast and multicast: a copy for every port of the subnet.
//!
//! In steps, one per receiver: the eBPF shell makes each step a function that the verifier checks once,
//! where a loop would be walked through in every round.

use crate::{FrameMut, PortWork, Refused, Tables, Target, edit};
use tenet_tables::{Config, DropReason, FLOOD_LIMIT, FloodKey, METHOD_REWRITE, PORT_ACTIVE, PORT_FLAG_DOWN};
use tenet_wire::{Be32, Ethernet, Ipv4};

/// Copies a frame without tunnel to the `index`-th receiver, if that is a port of this host and not the
/// sender. False: the list has ended.
///
/// A port that migrates gets no copy until it is active: a broadcast is repeated by whoever needs it.
#[inline(always)]
pub fn local_step<F: FrameMut, T: Tables>(
    frame: &mut F,
    tables: &T,
    vsid: u32,
    index: u32,
    sender: u32,
) -> bool {
    let Some(entry) = tables.flood(&FloodKey { vsid, index }) else { return false };
    let ifindex = entry.ifindex;
    if ifindex == 0 || ifindex == sender {
        return true;
    }
    if let Some(port) = tables.port(ifindex)
        && port.state == PORT_ACTIVE
        && port.flags & PORT_FLAG_DOWN == 0
    {
        frame.clone_to_port(ifindex);
    }
    true
}

/// Encapsulates a VM's frame for nobody yet, so that [`remote_step`] can address it.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn encapsulate<F: FrameMut>(
    frame: &mut F,
    len: u32,
    work: &PortWork,
    vsid: u32,
    config: &Config,
) -> Result<(), Refused> {
    let to = Target { vsid, flow: work.flow(), ..Target::default() };
    edit::encapsulate(frame, len, work, config, &to)
}

/// Copies an encapsulated frame to the `index`-th receiver, if that is another host. False: the list has ended.
#[inline(always)]
pub fn remote_step<F: FrameMut, T: Tables>(
    frame: &mut F,
    tables: &T,
    vsid: u32,
    index: u32,
    uplink: u32,
) -> bool {
    let Some(entry) = tables.flood(&FloodKey { vsid, index }) else { return false };
    if entry.ifindex != 0 {
        return true;
    }
    let Some(pa) = entry.pa.as_v4_word() else { return true };
    let mut outer = Ipv4::default();
    if frame.load(Ethernet::LEN, &mut outer).is_err() {
        return false;
    }
    outer.dst = Be32::from_word(pa);
    if frame.store(Ethernet::LEN, &outer.with_checksum()).is_err() {
        return false;
    }
    frame.clone_to_wire(uplink);
    true
}

/// All steps of a VM's broadcast.
pub fn from_port<F: FrameMut, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: &PortWork,
    (len, vsid, sender): (u32, u32, u32),
    config: &Config,
) {
    to_ports(frame, tables, vsid, sender);
    if encapsulate(frame, len, work, vsid, config).is_ok() {
        for index in 0..FLOOD_LIMIT {
            if !remote_step(frame, tables, vsid, index, config.uplink) {
                return;
            }
        }
    }
}

/// The end of a VM's broadcast that no method carries to other hosts; `None`: there is one.
///
/// IP Rewrite has no addresses for groups. It is said by name if there is anybody elsewhere.
#[inline(always)]
pub fn end_of_local<T: Tables>(tables: &T, vsid: u32) -> Option<DropReason> {
    if tables.subnet(vsid)?.method != METHOD_REWRITE as u32 {
        return None;
    }
    let mut index = 0;
    while index < FLOOD_LIMIT {
        let Some(entry) = tables.flood(&FloodKey { vsid, index }) else { break };
        if entry.ifindex == 0 {
            return Some(DropReason::RewriteUnsupported);
        }
        index += 1;
    }
    Some(DropReason::Replicated)
}

/// All steps to the ports of this host.
pub fn to_ports<F: FrameMut, T: Tables>(frame: &mut F, tables: &T, vsid: u32, sender: u32) {
    for index in 0..FLOOD_LIMIT {
        if !local_step(frame, tables, vsid, index, sender) {
            return;
        }
    }
}
