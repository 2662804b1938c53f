//! The pair of provider addresses that stands for a packet's customer addresses.

use super::{difference, mend, readdress, receive::set, same_family};
use crate::{FrameMut, PortWork, Refused, Tables, packet::Packet};
use tenet_tables::{Addr, DropReason, Record, RecordKey, RewriteKey};
use tenet_wire::{Ethernet, Mac};

/// Source and destination on the provider network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pair {
    /// Stands for the sender's customer address.
    pub src: Addr,
    /// Stands for the receiver's.
    pub dst: Addr,
}

/// Who sends a packet to whom, as far as the link header and the port say.
#[derive(Clone, Copy)]
pub(crate) struct Parties {
    /// Network.
    pub net: u32,
    /// The sender's port.
    pub ifindex: u32,
    /// MAC that the packet goes to, the gateway's hop done.
    pub mac: Mac,
    /// Virtual subnet that it goes to.
    pub vsid: u32,
}

/// The pair for a packet that goes to another host, by the records of its own two addresses.
///
/// The link header does not cross, so that the packet reaches whoever has its destination address. Where that is
/// another machine than the link header's (an appliance on the way, or a next hop), the packet cannot be carried.
#[inline(always)]
pub(crate) fn pair<T: Tables>(
    tables: &T,
    packet: &Packet,
    who: Parties,
    pair: &mut Pair,
) -> Result<(), DropReason> {
    let Some(own) = tables.record(&RecordKey { net: who.net, ca: packet.src }) else {
        return Err(DropReason::NoRewriteAddress);
    };
    let Some(other) = tables.record(&RecordKey { net: who.net, ca: packet.dst }) else {
        return Err(DropReason::NoRewriteAddress);
    };
    if own.ifindex != who.ifindex || other.mac != who.mac || other.vsid != who.vsid {
        return Err(DropReason::NoRewriteAddress);
    }
    set(pair, stands_for(tables, own, true), stands_for(tables, other, false));
    if same_family(&pair.src, packet.v6) && same_family(&pair.dst, packet.v6) {
        Ok(())
    } else {
        Err(DropReason::NoRewriteAddress)
    }
}

/// The address of a record; of a machine that migrates, and so has one at each of two hosts, the one of this host
/// (`here`) or the other.
#[inline(always)]
fn stands_for<'t, T: Tables>(tables: &'t T, record: &'t Record, here: bool) -> &'t Addr {
    let pa = &record.rewrite_pa;
    if record.alt_pa.is_unset() || record.ifindex == 0 {
        return pa;
    }
    // Both have a row, and the row of this host's names the port.
    match tables.rewrite(&RewriteKey { pa: *pa }) {
        Some(row) if (row.ifindex != 0) != here && !row.other_pa.is_unset() => &row.other_pa,
        _ => pa,
    }
}

/// Puts the pair in the place of the packet's own addresses. The link header becomes the kernel's when it knows the
/// neighbour.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn send<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    let (packet, Pair { src, dst }) = (&work.packet, &work.pair);
    let difference = difference(packet.v6, [&packet.src, &packet.dst], [src, dst]);
    let mut l3 = work.head.l3;
    readdress(&mut l3, packet.v6, [src, dst], difference);
    if packet.v6 {
        frame.store(Ethernet::LEN, l3.v6())?;
    } else {
        frame.store(Ethernet::LEN, l3.v4())?;
    }
    mend(frame, packet, difference)
}
