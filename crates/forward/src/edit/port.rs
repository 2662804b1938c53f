//! What is done with a VM's frame: delivered, answered, or complained about.

use super::{Inside, done, encapsulate};
use crate::stt::Sent;
use crate::{
    Action, FrameMut, PortWork, Refused, Tables, Target, Verdict,
    packet::{halves6, is_link_local},
    rewrite,
};
use tenet_tables::{
    Addr, Config, DropReason, GATEWAY_LINK_LOCAL, METHOD_STT, PORT_FLAG_AUTOCONF, Port, Subnet,
};
use tenet_wire::{
    ALL_NODES, ALL_NODES_MAC, AdvertisementFrame, Arp, Be16, Be32, Ends, Ethernet, Icmp, Icmp6,
    Icmp6ErrorFrame, IcmpErrorFrame, Ipv4Frame, Ipv6Frame, Ipv6Halves, Mac, Neighbour, QUOTE6, QUOTE6_MORE,
    RouterAdvertisement, RouterFrame, checksum,
};

/// Carries out a verdict on a VM's frame. [`Verdict::Flood`] is not for here: see [`crate::flood`].
pub fn port<F: FrameMut, T: Tables>(
    frame: &mut F,
    len: u32,
    verdict: Verdict,
    tables: &T,
    ifindex: u32,
    work: &PortWork,
) -> Action {
    if verdict == Verdict::Rewrite {
        done(rewrite::send(frame, work), Action::Wire)
    } else if verdict.to_words()[0] < Verdict::FIRST_RARE {
        port_forward(frame, len, verdict, tables, work)
    } else if verdict.is_discovery() {
        if verdict.advertises() {
            let action = port_advertise(frame, verdict, tables, ifindex, work);
            if matches!(verdict, Verdict::AnswerRouter) {
                return action;
            }
        }
        port_neighbour(frame, verdict, work)
    } else if work.is_v6() {
        port_answer6(frame, verdict, tables, ifindex, work)
    } else {
        port_answer(frame, verdict, tables, ifindex, work)
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
            let action = if work.is_ip() { Action::Wire } else { Action::WireByMark };
            match wrap(frame, len, work, config, &work.to) {
                Ok(Sent::Ready) => action,
                Ok(Sent::Uncut) => Action::Slow(DropReason::SttUnsupported),
                Err(Refused) => Action::Drop(DropReason::KernelRefused),
            }
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
}

/// To a neighbour on this host: as it is, or as the gateway left it.
#[inline(always)]
fn deliver<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    if work.routed { work.head.store(frame) } else { Ok(()) }
}

/// The part of [`port`] that turns frames of ARP and IPv4 round.
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
            let Some(gateway) = Gateway::find(tables, ifindex) else { return Action::Drop(reason) };
            let address = Be32::from_word(gateway.subnet.gateway.words[3]);
            done(error(frame, work, (gateway.mac, address), ty, code, mtu), Action::Back(Some(reason)))
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
}

/// The first part of [`port`] that answers neighbour discovery: makes a router's advertisement of the frame, if the
/// verdict wants one. Of a solicitation that asks where the gateway is, this sends a copy only: advertisements are sent
/// on demand, and whoever looks for the gateway uses it, and hears anew that it is a router before what he heard before
/// expires.
#[inline(always)]
pub fn port_advertise<F: FrameMut, T: Tables>(
    frame: &mut F,
    verdict: Verdict,
    tables: &T,
    ifindex: u32,
    work: &PortWork,
) -> Action {
    let asked = matches!(verdict, Verdict::AnswerRouter);
    let gateway = match Gateway::find(tables, ifindex) {
        Some(gateway) if !gateway.subnet.gateway6.is_unset() => gateway,
        _ => return Action::Drop(DropReason::NdUnknown),
    };
    // Who probes for the gateway's address wants it himself.
    let looks = matches!(verdict, Verdict::AnswerNeighbour { router: true, .. });
    if !asked && (!looks || work.packet.src.is_unset()) {
        return Action::Drop(DropReason::NdUnknown);
    }
    let action = done(answer_router(frame, work, &gateway), Action::Back(None));
    if !asked && matches!(action, Action::Back(_)) {
        frame.clone_to_port(ifindex);
    }
    action
}

/// The second part of [`port`] that answers neighbour discovery.
#[inline(always)]
pub fn port_neighbour<F: FrameMut>(frame: &mut F, verdict: Verdict, work: &PortWork) -> Action {
    match verdict {
        Verdict::AnswerNeighbour { mac, router } => {
            done(answer_neighbour(frame, work, mac, router), Action::Back(None))
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
}

/// The part of [`port`] that turns other frames of IPv6 round.
#[inline(always)]
pub fn port_answer6<F: FrameMut, T: Tables>(
    frame: &mut F,
    verdict: Verdict,
    tables: &T,
    ifindex: u32,
    work: &PortWork,
) -> Action {
    match verdict {
        Verdict::AnswerEcho => done(answer_echo6(frame, work), Action::Back(None)),
        Verdict::Error { reason, ty, code, mtu } => {
            let Some(gateway) = Gateway::find(tables, ifindex) else { return Action::Drop(reason) };
            let result = error6(frame, work, &gateway, Icmp6::ty_code(ty, code), mtu);
            done(result, Action::Back(Some(reason)))
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
}

/// To another host: as it is, or as the gateway left it, behind a tunnel's headers.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub(crate) fn wrap<F: FrameMut>(
    frame: &mut F,
    len: u32,
    work: &PortWork,
    config: &Config,
    to: &Target,
) -> Result<Sent, Refused> {
    if to.method == METHOD_STT as u32 {
        return frame.stt_encapsulate(len, work, config, to);
    }
    if work.routed {
        work.head.store_packet(frame, Ethernet::LEN)?;
    }
    encapsulate(
        frame,
        len,
        &Inside { eth: work.head.eth, ip: work.is_ip(), class: work.class() },
        config,
        to,
    )?;
    Ok(Sent::Ready)
}

#[inline(always)]
fn answer_arp<F: FrameMut>(frame: &mut F, mac: Mac) -> Result<(), Refused> {
    let mut request = Arp::default();
    frame.load(Ethernet::LEN, &mut request)?;
    frame.store(0, &request.reply(mac))
}

/// Makes a ping of either version its answer; the checksum covers addresses that change places, and the type.
#[inline(always)]
fn turn_echo<F: FrameMut>(frame: &mut F, at: u32, reply: u8) -> Result<(), Refused> {
    let mut start = [Be16::default(); 2];
    frame.load(at, &mut start)?;
    let [old, sum] = start;
    let new = Be16::new(old.get() & 0xff | (reply as u16) << 8);
    let start = [new, Be16::from_half(checksum::update(sum.half(), old.half(), new.half()))];
    frame.store(at, &start)
}

#[inline(always)]
fn answer_echo<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    turn_echo(frame, work.packet.transport_at(), Icmp::ECHO_REPLY)?;
    let mut ip = *work.head.l3.v4();
    (ip.src, ip.dst) = (ip.dst, ip.src);
    ip.set_ttl(64);
    frame.store(0, &Ipv4Frame { eth: turned(work), ip })
}

#[inline(always)]
fn answer_echo6<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    turn_echo(frame, work.packet.transport_at(), Icmp6::ECHO_REPLY)?;
    let mut ip = *work.head.l3.v6();
    (ip.src, ip.dst) = (ip.dst, ip.src);
    ip.hop_limit = 64;
    frame.store(0, &Ipv6Frame { eth: turned(work), ip })
}

#[inline(always)]
fn turned(work: &PortWork) -> Ethernet {
    let eth = &work.head.eth;
    Ethernet { dst: eth.src, src: eth.dst, ty: eth.ty }
}

/// The gateway of a port's subnet.
struct Gateway<'t> {
    mac: Mac,
    port: &'t Port,
    subnet: &'t Subnet,
}

impl<'t> Gateway<'t> {
    #[inline(always)]
    fn find<T: Tables>(tables: &'t T, ifindex: u32) -> Option<Self> {
        let port = tables.port(ifindex)?;
        let subnet = tables.subnet(port.vsid)?;
        let mac = tables.config()?.gateway_mac;
        Some(Self { mac, port, subnet })
    }
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
    error.complete(gateway, (work.head.eth.src, work.head.l3.v4().src), ty, code, mtu);
    frame.store(0, &error)
}

#[inline(always)]
fn error6<F: FrameMut>(
    frame: &mut F,
    work: &PortWork,
    gateway: &Gateway<'_>,
    ty_code: Be16,
    mtu: u16,
) -> Result<(), Refused> {
    let mut error = Icmp6ErrorFrame::default();
    let mut more = [0u16; QUOTE6_MORE / 2];
    frame.load(Ethernet::LEN, &mut error.quote)?;
    let mut len = Icmp6ErrorFrame::LEN;
    if !work.packet.plain {
        frame.load(Ethernet::LEN + QUOTE6 as u32, &mut more)?;
        len += QUOTE6_MORE as u32;
    }
    frame.remake(len)?;
    // Whoever speaks from a link-local address only, or in a subnet without a global one, hears of the gateway so.
    let local = is_link_local(&work.packet.src) || gateway.subnet.gateway6.is_unset();
    let own = if local { &GATEWAY_LINK_LOCAL } else { &gateway.subnet.gateway6 };
    let to = (work.head.eth.src, work.head.l3.v6().src);
    error.complete((gateway.mac, halves6(own)), to, ty_code, mtu, &more, len);
    frame.store(0, &error)?;
    if len > Icmp6ErrorFrame::LEN { frame.store(Icmp6ErrorFrame::LEN, &more) } else { Ok(()) }
}

/// Who gets an answer from `src`: the sender, or all if it has no address yet.
#[inline(always)]
fn back_to(work: &PortWork, src_mac: Mac, src: Ipv6Halves) -> Ends {
    if work.packet.src.is_unset() {
        Ends { dst_mac: ALL_NODES_MAC, dst: ALL_NODES, src_mac, src }
    } else {
        Ends { dst_mac: work.head.eth.src, dst: work.head.l3.v6().src, src_mac, src }
    }
}

#[inline(always)]
fn answer_neighbour<F: FrameMut>(
    frame: &mut F,
    work: &PortWork,
    mac: Mac,
    router: bool,
) -> Result<(), Refused> {
    let target = work.target;
    frame.remake(AdvertisementFrame::LEN)?;
    let solicited = if work.packet.src.is_unset() { 0 } else { Neighbour::SOLICITED };
    let flags = Neighbour::OVERRIDE | solicited | if router { Neighbour::ROUTER } else { 0 };
    frame.store(0, &AdvertisementFrame::new(&back_to(work, mac, target), target, flags))
}

#[inline(always)]
fn answer_router<F: FrameMut>(frame: &mut F, work: &PortWork, gateway: &Gateway<'_>) -> Result<(), Refused> {
    frame.remake(RouterFrame::LEN)?;
    let bits = gateway.subnet.prefix6_len;
    let prefix = halves6(&prefix(&gateway.subnet.gateway6, bits));
    let mut flags = RouterAdvertisement::ON_LINK;
    if gateway.port.flags & PORT_FLAG_AUTOCONF != 0 {
        flags |= RouterAdvertisement::AUTONOMOUS;
    }
    let nd = RouterAdvertisement::new(gateway.mac, gateway.port.mtu, prefix, bits as u8, flags);
    frame.store(0, &RouterFrame::new(&back_to(work, gateway.mac, halves6(&GATEWAY_LINK_LOCAL)), nd))
}

/// An address with all bits behind a prefix set to zero.
#[inline(always)]
fn prefix(addr: &Addr, bits: u32) -> Addr {
    let [a, b, c, d] = addr.words;
    Addr { words: [kept(a, bits, 0), kept(b, bits, 32), kept(c, bits, 64), kept(d, bits, 96)] }
}

#[inline(always)]
const fn kept(word: u32, bits: u32, before: u32) -> u32 {
    let bits = bits.saturating_sub(before);
    if bits >= 32 { word } else { word & !(u32::MAX >> bits).to_be() }
}
