//! What is done with a VM's frame: delivered, answered, or complained about.

use super::{done, tunnel::encapsulate};
use crate::{Action, FrameMut, PortWork, Refused, Tables, Verdict};
use tenet_tables::{DropReason, Port};
use tenet_wire::{Arp, Be16, Be32, EtherType, Ethernet, Icmp, IcmpErrorFrame, Ipv4Frame, Mac, checksum};

/// Carries out a verdict on a VM's frame. [`Verdict::Flood`] is not for here: see [`crate::flood`].
pub fn port<F: FrameMut, T: Tables>(
    frame: &mut F,
    len: u32,
    verdict: Verdict,
    tables: &T,
    ifindex: u32,
    work: &PortWork,
) -> Action {
    if verdict.to_words()[0] >= Verdict::FIRST_RARE {
        port_answer(frame, verdict, tables, ifindex, work)
    } else {
        port_forward(frame, len, verdict, tables, work)
    }
}

/// The part of [`port`] that passes frames on.
#[inline(always)]
pub fn port_forward<F: FrameMut, T: Tables>(
    frame: &mut F,
    len: u32,
    verdict: Verdict,
    tables: &T,
    work: &PortWork,
) -> Action {
    match verdict {
        Verdict::Drop(reason) => Action::Drop(reason),
        Verdict::Deliver { ifindex, peer } => done(deliver(frame, work), Action::Port { ifindex, peer }),
        Verdict::Encapsulate => {
            let Some(config) = tables.config() else { return Action::Drop(DropReason::NotConfigured) };
            let ip = work.head.eth.ty == EtherType::IPV4;
            let action = if ip { Action::Wire } else { Action::WireByMark };
            done(encapsulate(frame, len, work, config, &work.to), action)
        }
        Verdict::Pass
        | Verdict::Send
        | Verdict::DeliverWhole { .. }
        | Verdict::Onward
        | Verdict::AnswerArp { .. }
        | Verdict::AnswerEcho
        | Verdict::Error { .. }
        | Verdict::Flood { .. } => Action::Drop(DropReason::KernelRefused),
    }
}

/// The part of [`port`] that turns frames round.
#[inline(always)]
pub fn port_answer<F: FrameMut, T: Tables>(
    frame: &mut F,
    verdict: Verdict,
    tables: &T,
    ifindex: u32,
    work: &PortWork,
) -> Action {
    match verdict {
        Verdict::AnswerArp { mac } => done(answer_arp(frame, mac), Action::Back(None)),
        Verdict::AnswerEcho => done(answer_echo(frame, work), Action::Back(None)),
        Verdict::Error { reason, ty, code, mtu } => {
            let Some(gateway) = gateway(tables, ifindex) else { return Action::Drop(reason) };
            done(error(frame, work, gateway, ty, code, mtu), Action::Back(Some(reason)))
        }
        Verdict::Pass
        | Verdict::Drop(_)
        | Verdict::Deliver { .. }
        | Verdict::DeliverWhole { .. }
        | Verdict::Encapsulate
        | Verdict::Onward
        | Verdict::Send
        | Verdict::Flood { .. } => Action::Drop(DropReason::KernelRefused),
    }
}

/// To a neighbour on this host: as it is, or as the gateway left it.
#[inline(always)]
fn deliver<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    if work.routed { frame.store(0, &Ipv4Frame { eth: work.head.eth, ip: work.head.ip }) } else { Ok(()) }
}

#[inline(always)]
fn answer_arp<F: FrameMut>(frame: &mut F, mac: Mac) -> Result<(), Refused> {
    let mut request = Arp::default();
    frame.load(Ethernet::LEN, &mut request)?;
    frame.store(0, &request.reply(mac))
}

#[inline(always)]
fn answer_echo<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    let at = Ethernet::LEN + work.head.ip.header_len();
    let mut start = [Be16::default(); 2];
    frame.load(at, &mut start)?;
    let [old, sum] = start;
    let new = Be16::new(old.get() & 0xff | (Icmp::ECHO_REPLY as u16) << 8);
    let start = [new, Be16::from_half(checksum::update(sum.half(), old.half(), new.half()))];
    let mut ip = work.head.ip;
    ip.src = work.head.ip.dst;
    ip.dst = work.head.ip.src;
    ip.set_ttl(64);
    let eth = Ethernet { dst: work.head.eth.src, src: work.head.eth.dst, ty: work.head.eth.ty };
    frame.store(at, &start)?;
    frame.store(0, &Ipv4Frame { eth, ip })
}

/// The gateway of a port's subnet: MAC and address.
#[inline(always)]
fn gateway<T: Tables>(tables: &T, ifindex: u32) -> Option<(Mac, Be32)> {
    let port: &Port = tables.port(ifindex)?;
    let subnet = tables.subnet(port.vsid)?;
    let mac = tables.config()?.gateway_mac;
    Some((mac, Be32::from_word(subnet.gateway.words[3])))
}

#[inline(always)]
fn error<F: FrameMut>(
    frame: &mut F,
    work: &PortWork,
    gateway: (Mac, Be32),
    ty: u8,
    code: u8,
    mtu: u16,
) -> Result<(), Refused> {
    let mut error = IcmpErrorFrame::default();
    frame.load(Ethernet::LEN, &mut error.quote)?;
    frame.remake(IcmpErrorFrame::LEN)?;
    error.complete(gateway, (work.head.eth.src, work.head.ip.src), ty, code, mtu);
    frame.store(0, &error)
}
