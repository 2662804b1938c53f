//! From a verdict to an edited frame.

use crate::{Action, FrameMut, PortWork, Refused, Tables, Target, UplinkWork, Verdict, hub};
use tenet_tables::{Config, DropReason, Port};
use tenet_wire::{
    Arp, Be16, Be32, EtherType, Ethernet, Gre, Icmp, IcmpErrorFrame, Ipv4, Ipv4Frame, Mac, NVGRE_OVERHEAD,
    NvgreOuter, checksum, outer_ipv4,
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

/// Carries out a verdict on a frame from the provider network, [`Verdict::Flood`] apart.
#[inline(always)]
pub fn uplink<F: FrameMut, T: Tables>(
    frame: &mut F,
    verdict: Verdict,
    tables: &T,
    work: &UplinkWork,
) -> Action {
    match verdict {
        Verdict::Pass => Action::Pass,
        Verdict::Drop(reason) => Action::Drop(reason),
        Verdict::Send => Action::Wire,
        Verdict::Deliver { ifindex, peer } => done(decapsulate(frame, work), Action::Port { ifindex, peer }),
        Verdict::DeliverWhole { ifindex, len } => {
            done(hub::rewrap(frame, len, work), Action::Hub { ifindex })
        }
        Verdict::Onward => {
            let Some(config) = tables.config() else { return Action::Drop(DropReason::NotConfigured) };
            done(readdress(frame, work, config, Be32::from_word(work.to.pa.words[3])), Action::Wire)
        }
        Verdict::Encapsulate
        | Verdict::AnswerArp { .. }
        | Verdict::AnswerEcho
        | Verdict::Error { .. }
        | Verdict::Flood { .. } => Action::Drop(DropReason::KernelRefused),
    }
}

#[inline(always)]
fn done(result: Result<(), Refused>, action: Action) -> Action {
    match result {
        Ok(()) => action,
        Err(Refused) => Action::Drop(DropReason::KernelRefused),
    }
}

/// To a neighbour on this host: as it is, or as the gateway left it.
#[inline(always)]
fn deliver<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<(), Refused> {
    if work.routed { frame.store(0, &Ipv4Frame { eth: work.head.eth, ip: work.head.ip }) } else { Ok(()) }
}

/// Puts the tunnel's headers before a frame.
#[inline(always)]
pub fn encapsulate<F: FrameMut>(
    frame: &mut F,
    len: u32,
    work: &PortWork,
    config: &Config,
    to: &Target,
) -> Result<(), Refused> {
    let ip = work.head.eth.ty == EtherType::IPV4;
    let ecn = if ip { work.head.ip.tos & Ipv4::ECN } else { 0 };
    // The decision refused frames that this could overflow with.
    let total = (len + NVGRE_OVERHEAD - Ethernet::LEN) as u16;
    frame.grow_tunnel(ip)?;
    let own = Be32::from_word(config.pa.words[3]);
    let outer = NvgreOuter {
        // The kernel replaces the addresses when it knows the neighbour.
        eth: Ethernet { dst: Mac::default(), src: Mac::default(), ty: EtherType::IPV4 },
        ip: outer_ipv4(own, Be32::from_word(to.pa.words[3]), total, ecn),
        gre: Gre::nvgre(to.vsid, (to.flow >> 24) as u8),
        inner: work.head.eth,
    };
    frame.store(0, &outer)?;
    if work.routed { frame.store(NvgreOuter::LEN, &work.head.ip) } else { Ok(()) }
}

/// Takes the tunnel's headers off a frame.
#[inline(always)]
pub fn decapsulate<F: FrameMut>(frame: &mut F, work: &UplinkWork) -> Result<(), Refused> {
    frame.shrink_tunnel()?;
    if work.marked {
        frame.store(0, &Ipv4Frame { eth: work.inner.eth, ip: work.inner.ip })
    } else {
        frame.store(0, &work.inner.eth)
    }
}

/// Sends a tunnelled frame from this host to another, the outer hop count less one.
#[inline(always)]
fn readdress<F: FrameMut>(
    frame: &mut F,
    work: &UplinkWork,
    config: &Config,
    pa: Be32,
) -> Result<(), Refused> {
    let mut ip = work.outer.ip;
    ip.src = Be32::from_word(config.pa.words[3]);
    ip.dst = pa;
    ip.ttl = ip.ttl.wrapping_sub(1);
    frame.store(Ethernet::LEN, &ip.with_checksum())
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
