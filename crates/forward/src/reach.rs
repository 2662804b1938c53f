//! From a row of the tables to the place where the frame goes.

use crate::{
    Tables, Target, Verdict,
    verdict::{Words, dropped},
};
use tenet_tables::{
    Addr, DEVICE_VETH, DropReason, METHOD_NVGRE, METHOD_REWRITE, PORT_ACTIVE, PORT_FLAG_DOWN, PORT_MOVED,
    PORT_PREPARED, Port,
};

/// Where a frame for a port of this host goes, by the port's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate<'t> {
    /// The VM is here.
    Here,
    /// The VM is still at its old host, which this row names.
    StillThere(&'t Addr),
    /// The VM has moved, or is about to, to this host.
    Moved(&'t Addr),
    /// Neither.
    Drop(DropReason),
}

/// Decides by a port's state. `home` is the provider address in the row that named the port; `from` is the
/// outer source of a frame from the wire, unset for one from a VM of this host; `own` is this host's address.
#[inline(always)]
pub(crate) fn fate<'t>(port: &'t Port, home: &'t Addr, from: Addr, own: &Addr) -> Fate<'t> {
    if port.state == PORT_ACTIVE {
        if port.flags & PORT_FLAG_DOWN == 0 {
            return Fate::Here;
        }
        return if port.peer_pa.is_unset() {
            Fate::Drop(DropReason::PortDown)
        } else {
            Fate::Moved(&port.peer_pa)
        };
    }
    if port.state == PORT_PREPARED {
        // A frame that the old host redirected must not go back; and once the table says that the port
        // lives here, there is no other place.
        let redirected = !port.peer_pa.is_unset() && port.peer_pa == from;
        return if redirected || *home == *own { Fate::Here } else { Fate::StillThere(home) };
    }
    // Also what comes from that very host: its own VMs do not know yet either, and it takes what comes back from here.
    // Two hosts that each believe the other to have the VM pass a frame on until its outer hops are used up.
    if port.state == PORT_MOVED && !port.peer_pa.is_unset() {
        return Fate::Moved(&port.peer_pa);
    }
    Fate::Drop(DropReason::PortBlocked)
}

/// Whether a frame for this port may skip the host's side of a veth: only IP, because `bpf_redirect_peer`
/// keeps the protocol that the kernel saw first.
#[inline(always)]
pub(crate) fn skips_queue(port: &Port, ip: bool) -> bool {
    ip && port.device == DEVICE_VETH
}

/// A row that says where an address or a MAC lives.
#[derive(Clone, Copy)]
pub(crate) struct Place<'t> {
    pub pa: &'t Addr,
    pub ifindex: u32,
    pub method: u32,
    pub vsid: u32,
}

/// Sends a VM's frame to a place. Returns the port that has moved, if it is one of ours, beside the verdict.
#[inline(always)]
pub(crate) fn towards<T: Tables>(
    tables: &T,
    place: Place<'_>,
    ip: bool,
    flow: u32,
    own: &Addr,
    to: &mut Target,
) -> (Words, u32) {
    let mut pa = place.pa;
    let mut moved = 0;
    if place.ifindex != 0 {
        let Some(port) = tables.port(place.ifindex) else { return (dropped(DropReason::NoRecord), 0) };
        match fate(port, place.pa, Addr::UNSET, own) {
            Fate::Here => {
                let peer = skips_queue(port, ip);
                return (Verdict::Deliver { ifindex: place.ifindex, peer }.to_words(), 0);
            }
            Fate::Drop(reason) => return (dropped(reason), 0),
            Fate::StillThere(home) => pa = home,
            Fate::Moved(to) => {
                pa = to;
                moved = place.ifindex;
            }
        }
    } else if *pa == *own {
        return (dropped(DropReason::Loop), 0);
    }
    if place.method < METHOD_NVGRE as u32 || place.method > METHOD_REWRITE as u32 {
        return (dropped(DropReason::NoRecord), 0);
    }
    // Word by word: eBPF has no instruction for more, and a copy between places that might overlap is a slow call.
    let [a, b, c, d] = pa.words;
    to.pa.words = [a, b, c, d];
    to.method = place.method;
    to.vsid = place.vsid;
    to.flow = flow;
    (Verdict::Encapsulate.to_words(), moved)
}
