//! What the provider network brings for this host's rewrite addresses.

use super::{difference, is_discovery, mend, neighbour, quote, readdress, same_family};
use crate::packet::{L3, Packet};
use crate::{Action, FrameMut, Meta, Note, Refused, Tables, reach::skips_queue};
use tenet_tables::{
    Addr, CONFIG_FLAG_REWRITE, Config, DropReason, EventKind, LAYOUT_VERSION, PORT_ACTIVE, PORT_FLAG_DOWN,
    PORT_MOVED, PORT_PREPARED, Port, Rewrite, RewriteKey,
};
use tenet_wire::{EtherType, Ethernet, Ipv4Frame, Ipv6Frame};

/// What [`uplink`] works on, and what it leaves for the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct RewriteWork {
    /// The link header.
    pub eth: Ethernet,
    /// The network header.
    pub l3: L3,
    /// What it says.
    pub packet: Packet,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What the agent may be told.
    pub note: Note,
}

/// Everything fixed about one call.
pub(super) struct Call<'a, T> {
    pub meta: &'a Meta,
    pub tables: &'a T,
    pub config: &'a Config,
}

/// Judges and edits a frame that is no tunnel of ours: [`Action::Pass`], untouched, unless it is for a rewrite
/// address of this host. Such a frame never reaches the host's stack.
#[inline(always)]
pub fn uplink<F: FrameMut, T: Tables>(
    frame: &mut F,
    meta: &Meta,
    tables: &T,
    work: &mut RewriteWork,
) -> Action {
    let Some(config) = tables.config() else { return Action::Pass };
    if config.flags & CONFIG_FLAG_REWRITE == 0 || config.layout != LAYOUT_VERSION || meta.tagged {
        return Action::Pass;
    }
    if frame.load(0, &mut work.eth).is_err() {
        return Action::Pass;
    }
    let call = Call { meta, tables, config };
    if work.eth.ty == EtherType::ARP {
        return neighbour::arp(&call, frame);
    }
    if work.eth.ty == EtherType::IPV4 {
        if frame.load(Ethernet::LEN, work.l3.v4_mut()).is_err() {
            return Action::Pass;
        }
        work.packet.dst = Addr::v4_word(work.l3.v4().dst.word());
    } else if work.eth.ty == EtherType::IPV6 {
        if frame.load(Ethernet::LEN, work.l3.v6_mut()).is_err() {
            return Action::Pass;
        }
        work.packet.dst = crate::packet::addr6(&work.l3.v6().dst);
        if neighbour::is_solicited_node(&work.packet.dst) {
            return neighbour::solicited(&call, frame, work);
        }
    } else {
        return Action::Pass;
    }
    if work.packet.dst == config.pa {
        return Action::Pass;
    }
    let Some(to) = tables.rewrite(&RewriteKey { pa: work.packet.dst }) else { return call.unused(work) };
    if to.ifindex == 0 {
        return call.unused(work);
    }
    let (len, ty) = (meta.len, work.eth.ty);
    if let Err(reason) = work.packet.take(frame, Ethernet::LEN, len, ty, &work.l3) {
        return Action::Drop(reason);
    }
    call.ours(frame, work, to)
}

impl<T: Tables> Call<'_, T> {
    /// No address of a machine of this host. It may be one of another host's that the host's stack routes, but one
    /// of this host's pools is nobody's business but ours.
    #[inline(always)]
    fn unused(&self, work: &RewriteWork) -> Action {
        if self.tables.in_pool(work.packet.dst) {
            Action::Drop(DropReason::RewriteUnknown)
        } else {
            Action::Pass
        }
    }

    #[inline(always)]
    fn ours<F: FrameMut>(&self, frame: &mut F, work: &mut RewriteWork, to: &Rewrite) -> Action {
        let Some(port) = self.tables.port(to.ifindex) else {
            return Action::Drop(DropReason::RewriteUnknown);
        };
        let from = match self.tables.rewrite(&RewriteKey { pa: work.packet.src }) {
            Some(from) if from.net == to.net => from,
            stranger => return self.stranger(frame, work, to, port, stranger),
        };
        // We send ourselves nothing, and nobody else may speak for us.
        if from.ifindex != 0 {
            return Action::Drop(DropReason::Loop);
        }
        if is_discovery(frame, &work.packet) {
            return Action::Drop(DropReason::RewriteUnsupported);
        }
        match fate(port, to) {
            Fate::Here => {}
            Fate::Moved => return self.onward(frame, work, to),
            Fate::Drop(reason) => return Action::Drop(reason),
        }
        work.eth.src = if from.vsid == to.vsid { from.mac } else { self.config.gateway_mac };
        self.deliver(frame, work, port, to, &from.ca)
    }

    /// To the VM, as a frame from `src`.
    #[inline(always)]
    pub(super) fn deliver<F: FrameMut>(
        &self,
        frame: &mut F,
        work: &mut RewriteWork,
        port: &Port,
        to: &Rewrite,
        src: &Addr,
    ) -> Action {
        let v6 = work.packet.v6;
        if !same_family(src, v6) || !same_family(&to.ca, v6) {
            return Action::Drop(DropReason::NoRewriteAddress);
        }
        work.eth.dst = port.mac;
        let difference = difference(v6, [&work.packet.src, &work.packet.dst], [src, &to.ca]);
        readdress(&mut work.l3, v6, [src, &to.ca], difference);
        match self.put(frame, work, difference) {
            Ok(()) => Action::Port { ifindex: to.ifindex, peer: skips_queue(port, true) },
            Err(Refused) => Action::Drop(DropReason::KernelRefused),
        }
    }

    /// On to where the VM has moved: another address, and one hop less, so that hosts that disagree cannot loop a
    /// frame for ever. Its sender's address stays, by which the other host knows its network.
    #[inline(always)]
    fn onward<F: FrameMut>(&self, frame: &mut F, work: &mut RewriteWork, to: &Rewrite) -> Action {
        if work.packet.hop_limit <= 1 {
            return Action::Drop(DropReason::Loop);
        }
        let v6 = work.packet.v6;
        if !same_family(&to.other_pa, v6) {
            return Action::Drop(DropReason::NoRewriteAddress);
        }
        work.moved = to.ifindex;
        self.note(work, EventKind::Redirected, to);
        work.note.mac = to.mac;
        let src = work.packet.src;
        let difference = difference(v6, [&src, &work.packet.dst], [&src, &to.other_pa]);
        if v6 {
            let ip = work.l3.v6_mut();
            ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        } else {
            work.l3.v4_mut().decrement_ttl();
        }
        readdress(&mut work.l3, v6, [&src, &to.other_pa], difference);
        match self.put(frame, work, difference) {
            Ok(()) => Action::Wire,
            Err(Refused) => Action::Drop(DropReason::KernelRefused),
        }
    }

    /// Writes link and network header, and mends the transport's checksum.
    #[inline(always)]
    fn put<F: FrameMut>(&self, frame: &mut F, work: &RewriteWork, difference: u32) -> Result<(), Refused> {
        if work.packet.v6 {
            frame.store(0, &Ipv6Frame { eth: work.eth, ip: *work.l3.v6() })?;
        } else {
            frame.store(0, &Ipv4Frame { eth: work.eth, ip: *work.l3.v4() })?;
        }
        mend(frame, &work.packet, difference)
    }

    /// A frame from an address that is none of the network's: an error of a router about a packet of ours, a
    /// question for the link address, or nothing that we take.
    #[inline(always)]
    fn stranger<F: FrameMut>(
        &self,
        frame: &mut F,
        work: &mut RewriteWork,
        to: &Rewrite,
        port: &Port,
        stranger: Option<&Rewrite>,
    ) -> Action {
        if neighbour::is_solicitation(frame, &work.packet) {
            return neighbour::solicited(self, frame, work);
        }
        if stranger.is_none() && quote::is_error(frame, &work.packet) {
            return match fate(port, to) {
                Fate::Here => quote::deliver(self, frame, work, port, to),
                Fate::Moved => self.onward(frame, work, to),
                Fate::Drop(reason) => Action::Drop(reason),
            };
        }
        let known = stranger.is_some();
        self.note(work, if known { EventKind::MovedAddress } else { EventKind::UnknownPa }, to);
        Action::Drop(DropReason::RewritePair)
    }

    #[inline(always)]
    fn note(&self, work: &mut RewriteWork, kind: EventKind, to: &Rewrite) {
        work.note = Note {
            kind: Some(kind),
            net: to.net,
            vsid: to.vsid,
            ca: to.ca,
            pa: work.packet.src,
            mac: work.eth.src,
        };
    }
}

enum Fate {
    Here,
    Moved,
    Drop(DropReason),
}

/// Decides by a port's state. Unlike a tunnel's, the address itself says for which host the sender took it: a
/// frame for this host's address of a prepared port was redirected to us.
#[inline(always)]
fn fate(port: &Port, to: &Rewrite) -> Fate {
    let down = port.flags & PORT_FLAG_DOWN != 0;
    let moved = (port.state == PORT_ACTIVE && down) || port.state == PORT_MOVED;
    if port.state == PORT_PREPARED || (port.state == PORT_ACTIVE && !down) {
        Fate::Here
    } else if moved && !to.other_pa.is_unset() {
        Fate::Moved
    } else if moved && down {
        Fate::Drop(DropReason::PortDown)
    } else {
        Fate::Drop(DropReason::PortBlocked)
    }
}
