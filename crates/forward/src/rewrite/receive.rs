//! What the provider network brings for this host's rewrite addresses.
//!
//! In two looks, as at what a VM sends: [`uplink_first`] judges what is frequent, and what it finds to be rare
//! [`uplink_closer`] looks at again. [`edit`] then writes what they planned; [`uplink`] is all three.

use super::{Pair, difference, is_discovery, mend, neighbour, quote, readdress, same_family};
use crate::packet::{Packet, addr6};
use crate::{
    Action, Frame, FrameMut, Head, Meta, Note, Tables, Verdict, needs_closer_look,
    reach::skips_queue,
    verdict::{Words, dropped},
};
use tenet_tables::{
    Addr, CONFIG_FLAG_REWRITE, Config, DropReason, EventKind, LAYOUT_VERSION, PORT_ACTIVE, PORT_FLAG_DOWN,
    PORT_MOVED, PORT_PREPARED, Port, Rewrite, RewriteKey,
};
use tenet_wire::{EtherType, Ethernet};

/// What the looks and the edit share, and what they leave for the agent.
///
/// The two bytes before the head bring the packet's addresses to a multiple of four.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default)]
pub struct RewriteWork {
    pad: u16,
    /// Link and network header, as they are to be but for the addresses.
    pub head: Head,
    /// What the packet says.
    pub packet: Packet,
    /// The packet's new addresses.
    pub to: Pair,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What the agent may be told.
    pub note: Note,
}

/// Not for us.
pub(super) const PASS: Words = Verdict::Pass.to_words();

/// Everything fixed about one call.
pub(super) struct Call<'a, T> {
    pub meta: &'a Meta,
    pub tables: &'a T,
    pub config: &'a Config,
}

/// Judges and edits a frame that is no tunnel of ours: [`Action::Pass`], untouched, unless it is for a rewrite
/// address of this host. Such a frame never reaches the host's stack.
pub fn uplink<F: FrameMut, T: Tables>(
    frame: &mut F,
    meta: &Meta,
    tables: &T,
    work: &mut RewriteWork,
) -> Action {
    let mut words = uplink_first(frame, meta, tables, work);
    if needs_closer_look(words) {
        words = uplink_closer(frame, meta, tables, words, work);
    }
    edit(frame, words, work)
}

/// The first look.
#[inline(always)]
pub fn uplink_first<F: Frame, T: Tables>(
    frame: &F,
    meta: &Meta,
    tables: &T,
    work: &mut RewriteWork,
) -> Words {
    work.moved = 0;
    work.note.kind = None;
    let Some(config) = tables.config() else { return PASS };
    if config.flags & CONFIG_FLAG_REWRITE == 0 || config.layout != LAYOUT_VERSION || meta.tagged {
        return PASS;
    }
    if work.head.load(frame, meta.len).is_err() {
        return PASS;
    }
    let ty = work.head.eth.ty;
    if ty == EtherType::ARP {
        return Verdict::Arp.to_words();
    }
    if ty == EtherType::IPV4 {
        work.packet.dst = Addr::v4_word(work.head.l3.v4().dst.word());
    } else if ty == EtherType::IPV6 {
        work.packet.dst = addr6(&work.head.l3.v6().dst);
        if neighbour::is_solicited_node(&work.packet.dst) {
            return Verdict::Discovery.to_words();
        }
    } else {
        return PASS;
    }
    let call = Call { meta, tables, config };
    if work.packet.dst == config.pa {
        return PASS;
    }
    let Some(to) = tables.rewrite(&RewriteKey { pa: work.packet.dst }) else { return call.unused(work) };
    if to.ifindex == 0 {
        return call.unused(work);
    }
    if let Err(reason) = work.packet.take(frame, Ethernet::LEN, meta.len, ty, &work.head.l3) {
        return dropped(reason);
    }
    call.ours(frame, work, to)
}

/// The second look, at a frame that [`uplink_first`] said `words` of.
#[inline(always)]
pub fn uplink_closer<F: FrameMut, T: Tables>(
    frame: &mut F,
    meta: &Meta,
    tables: &T,
    words: Words,
    work: &mut RewriteWork,
) -> Words {
    let Some(config) = tables.config() else { return PASS };
    let call = Call { meta, tables, config };
    match Verdict::from_words(words) {
        Verdict::Arp => neighbour::arp(&call, frame),
        Verdict::Discovery => neighbour::solicited(&call, frame, work),
        Verdict::Gateway => call.error(frame, work),
        _ => dropped(DropReason::KernelRefused),
    }
}

/// Writes what was planned for a packet, and says what is left to do.
#[inline(always)]
pub fn edit<F: FrameMut>(frame: &mut F, words: Words, work: &mut RewriteWork) -> Action {
    let action = match Verdict::from_words(words) {
        Verdict::Pass => return Action::Pass,
        Verdict::Drop(reason) => return Action::Drop(reason),
        Verdict::AnswerArp { .. } => return Action::Back(None),
        Verdict::Deliver { ifindex, peer } => Action::Port { ifindex, peer },
        Verdict::Onward => Action::Wire,
        _ => return Action::Drop(DropReason::KernelRefused),
    };
    let RewriteWork { head, packet, to, .. } = work;
    let difference = difference(packet.v6, [&packet.src, &packet.dst], [&to.src, &to.dst]);
    readdress(&mut head.l3, packet.v6, [&to.src, &to.dst], difference);
    if head.store(frame).is_err() || mend(frame, packet, difference).is_err() {
        return Action::Drop(DropReason::KernelRefused);
    }
    action
}

impl<T: Tables> Call<'_, T> {
    /// No address of a machine of this host. It may be one of another host's that the host's stack routes, but one
    /// of this host's pools is nobody's business but ours.
    #[inline(always)]
    fn unused(&self, work: &RewriteWork) -> Words {
        if self.tables.in_pool(work.packet.dst) { dropped(DropReason::RewriteUnknown) } else { PASS }
    }

    #[inline(always)]
    fn ours<F: Frame>(&self, frame: &F, work: &mut RewriteWork, to: &Rewrite) -> Words {
        let Some(port) = self.tables.port(to.ifindex) else {
            return dropped(DropReason::RewriteUnknown);
        };
        let from = match self.tables.rewrite(&RewriteKey { pa: work.packet.src }) {
            Some(from) if from.net == to.net => from,
            stranger => return self.stranger(frame, work, to, stranger.is_some()),
        };
        // We send ourselves nothing, and nobody else may speak for us.
        if from.ifindex != 0 {
            return dropped(DropReason::Loop);
        }
        if is_discovery(frame, &work.packet) {
            return dropped(DropReason::RewriteUnsupported);
        }
        work.head.eth.src = if from.vsid == to.vsid { from.mac } else { self.config.gateway_mac };
        self.by_state(work, port, to, &from.ca)
    }

    /// To the VM, as a frame from `src`, or to where the VM has moved.
    #[inline(always)]
    fn by_state(&self, work: &mut RewriteWork, port: &Port, to: &Rewrite, src: &Addr) -> Words {
        match fate(port, to) {
            Fate::Here => {}
            Fate::Moved => return self.onward(work, to),
            Fate::Drop(reason) => return dropped(reason),
        }
        let v6 = work.packet.v6;
        if !same_family(src, v6) || !same_family(&to.ca, v6) {
            return dropped(DropReason::NoRewriteAddress);
        }
        work.head.eth.dst = port.mac;
        set(&mut work.to, src, &to.ca);
        Verdict::Deliver { ifindex: to.ifindex, peer: skips_queue(port, true) }.to_words()
    }

    /// On to where the VM has moved: another address, and one hop less, so that hosts that disagree cannot loop a
    /// frame for ever. Its sender's address stays, by which the other host knows its network.
    #[inline(always)]
    fn onward(&self, work: &mut RewriteWork, to: &Rewrite) -> Words {
        if work.packet.hop_limit <= 1 {
            return dropped(DropReason::Loop);
        }
        if !same_family(&to.other_pa, work.packet.v6) {
            return dropped(DropReason::NoRewriteAddress);
        }
        work.moved = to.ifindex;
        self.note(work, EventKind::Redirected, to);
        work.note.mac = to.mac;
        if work.packet.v6 {
            let ip = work.head.l3.v6_mut();
            ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        } else {
            work.head.l3.v4_mut().decrement_ttl();
        }
        set(&mut work.to, &work.packet.src, &to.other_pa);
        Verdict::Onward.to_words()
    }

    /// A frame from an address that is none of the network's: an error of a router about a packet of ours, a
    /// question for the link address, or nothing that we take.
    #[inline(always)]
    fn stranger<F: Frame>(&self, frame: &F, work: &mut RewriteWork, to: &Rewrite, known: bool) -> Words {
        if neighbour::is_solicitation(frame, &work.packet) {
            return Verdict::Discovery.to_words();
        }
        if !known && quote::is_error(frame, &work.packet) {
            return Verdict::Gateway.to_words();
        }
        self.note(work, if known { EventKind::MovedAddress } else { EventKind::UnknownPa }, to);
        dropped(DropReason::RewritePair)
    }

    /// A router's error: with the packet that it quotes translated back, delivered as the gateway's.
    #[inline(always)]
    fn error<F: FrameMut>(&self, frame: &mut F, work: &mut RewriteWork) -> Words {
        let Some(to) = self.tables.rewrite(&RewriteKey { pa: work.packet.dst }) else { return PASS };
        let Some(port) = self.tables.port(to.ifindex) else {
            return dropped(DropReason::RewriteUnknown);
        };
        let v6 = work.packet.v6;
        let gateway = match self.tables.subnet(to.vsid) {
            Some(subnet) if v6 => &subnet.gateway6,
            Some(subnet) => &subnet.gateway,
            None => &Addr::UNSET,
        };
        work.head.eth.src = self.config.gateway_mac;
        let words = self.by_state(work, port, to, gateway);
        // The host that it is redirected to translates it.
        if !matches!(Verdict::from_words(words), Verdict::Deliver { .. }) {
            return words;
        }
        let translated = if v6 {
            quote::translate6(self, frame, &work.packet, to)
        } else {
            quote::translate4(self, frame, &work.packet, to)
        };
        match translated {
            Ok(()) => words,
            Err(reason) => dropped(reason),
        }
    }

    #[inline(always)]
    fn note(&self, work: &mut RewriteWork, kind: EventKind, to: &Rewrite) {
        work.note = Note {
            kind: Some(kind),
            net: to.net,
            vsid: to.vsid,
            ca: to.ca,
            pa: work.packet.src,
            mac: work.head.eth.src,
        };
    }
}

/// Word by word: eBPF has no instruction for more, and a copy between places that might overlap is a slow call.
#[inline(always)]
pub(super) fn set(pair: &mut Pair, src: &Addr, dst: &Addr) {
    let ([a, b, c, d], [e, f, g, h]) = (src.words, dst.words);
    pair.src.words = [a, b, c, d];
    pair.dst.words = [e, f, g, h];
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
