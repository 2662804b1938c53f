//! What is done with a tunnel's headers.

use super::done;
use crate::{Action, FrameMut, Refused, Tables, Target, UplinkWork, Verdict, hub, packet::halves6};
use tenet_tables::{Addr, Config, DropReason, METHOD_GENEVE, METHOD_NVGRE, METHOD_VXLAN};
use tenet_wire::{
    Be16, Be32, Envelope, EtherType, Ethernet, Geneve, Gre, GreOuter, GreOuter6, Ipv4, Ipv6, Mac,
    TunnelHeader, UdpOuter, UdpOuter6, Vxlan, outer_ipv4, outer_ipv6, outer_protocol, outer_udp,
};

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
            done(readdress(frame, work, config, &work.to.pa), Action::Wire)
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
}

/// What of a frame shows in the headers that are put before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inside {
    /// Its link header, which is written anew.
    pub eth: Ethernet,
    /// Whether it is IP of either version.
    pub ip: bool,
    /// Its DSCP and ECN if it is.
    pub class: u8,
}

/// Puts a tunnel's headers before a frame of `len` bytes. The target's address chooses their family.
///
/// # Errors
/// If the kernel refuses, the frame becomes longer than the outer header can say, or the method is no tunnel of these.
#[inline(always)]
pub fn encapsulate<F: FrameMut>(
    frame: &mut F,
    len: u32,
    inside: &Inside,
    config: &Config,
    to: &Target,
) -> Result<(), Refused> {
    let (tunnel, port) = if to.method == METHOD_NVGRE as u32 {
        (TunnelHeader::from(Gre::nvgre(to.vsid, (to.flow >> 24) as u8)), 0)
    } else if to.method == METHOD_VXLAN as u32 {
        (Vxlan::new(to.vsid).into(), config.vxlan_port)
    } else if to.method == METHOD_GENEVE as u32 {
        (Geneve::new(to.vsid).into(), config.geneve_port)
    } else {
        return Err(Refused);
    };
    let udp = to.method != METHOD_NVGRE as u32;
    let v6 = to.pa.as_v4_word().is_none();
    let envelope = Envelope { v6, udp };
    // All that follows the outer link header; nothing longer than IPv4 can say, whatever the family.
    let total = len + envelope.overhead() - Ethernet::LEN;
    if total > u16::MAX as u32 {
        return Err(Refused);
    }
    frame.grow_tunnel(envelope, inside.ip)?;
    let room = Room {
        total: total as u16,
        protocol: outer_protocol(udp),
        port,
        ecn: if inside.ip { inside.class & Ipv4::ECN } else { 0 },
        flow: to.flow,
        tunnel,
        inner: inside.eth,
    };
    if v6 {
        room.fill_v6(frame, udp, &config.pa, &to.pa)
    } else {
        room.fill_v4(frame, udp, &config.pa, &to.pa)
    }
}

/// What the outer headers of both families are made of.
struct Room {
    /// Length of all that follows the outer link header.
    total: u16,
    protocol: u8,
    port: u16,
    ecn: u8,
    flow: u32,
    tunnel: TunnelHeader,
    inner: Ethernet,
}

impl Room {
    #[inline(always)]
    fn fill_v4<F: FrameMut>(self, frame: &mut F, udp: bool, from: &Addr, to: &Addr) -> Result<(), Refused> {
        let Self { total, protocol, port, ecn, flow, tunnel, inner } = self;
        let (src, dst) = (Be32::from_word(from.words[3]), Be32::from_word(to.words[3]));
        let ip = outer_ipv4(src, dst, protocol, total, ecn);
        let eth = link(EtherType::IPV4);
        if udp {
            let udp = outer_udp(port, total - Ipv4::LEN as u16, flow);
            return frame.store(0, &UdpOuter { eth, ip, udp, tunnel, inner });
        }
        frame.store(0, &GreOuter { eth, ip, tunnel, inner })
    }

    #[inline(always)]
    fn fill_v6<F: FrameMut>(self, frame: &mut F, udp: bool, from: &Addr, to: &Addr) -> Result<(), Refused> {
        let Self { total, protocol, port, ecn, flow, tunnel, inner } = self;
        let payload = total - Ipv6::LEN as u16;
        let ip = outer_ipv6(halves6(from), halves6(to), protocol, payload, ecn, flow >> 12);
        let eth = link(EtherType::IPV6);
        if udp {
            return frame
                .store(0, &UdpOuter6 { eth, ip, udp: outer_udp(port, payload, flow), tunnel, inner });
        }
        frame.store(0, &GreOuter6 { eth, ip, tunnel, inner })
    }
}

/// The outer link header: the kernel replaces the addresses when it knows the neighbour.
#[inline(always)]
fn link(ty: Be16) -> Ethernet {
    Ethernet { dst: Mac::default(), src: Mac::default(), ty }
}

/// Takes the tunnel's headers off a frame.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn decapsulate<F: FrameMut>(frame: &mut F, work: &UplinkWork) -> Result<(), Refused> {
    frame.shrink_tunnel(&work.shed)?;
    frame.store(0, &work.tunnel.inner.eth)?;
    if work.marked { store_marked(frame, Ethernet::LEN, work) } else { Ok(()) }
}

/// Stores an inner network header that took over a congestion mark, at `at`.
#[inline(always)]
pub(crate) fn store_marked<F: FrameMut>(frame: &mut F, at: u32, work: &UplinkWork) -> Result<(), Refused> {
    if work.shed.inner == EtherType::IPV6 {
        frame.store(at, &work.inner6.start)
    } else {
        frame.store(at, &work.tunnel.inner.ip)
    }
}

/// Sends a tunnelled frame from this host to another, the outer hop count less one.
#[inline(always)]
pub(super) fn readdress<F: FrameMut>(
    frame: &mut F,
    work: &UplinkWork,
    config: &Config,
    pa: &Addr,
) -> Result<(), Refused> {
    let envelope = work.shed.envelope;
    if work.shed.summed {
        // None is right in either family, and our own frames have none.
        frame.store(envelope.tunnel_at() - 2, &Be16::new(0))?;
    }
    if envelope.v6 {
        let mut ip = work.outer6;
        ip.src = halves6(&config.pa);
        ip.dst = halves6(pa);
        ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        return frame.store(Ethernet::LEN, &ip);
    }
    let mut ip = work.outer.ip;
    ip.src = Be32::from_word(config.pa.words[3]);
    ip.dst = Be32::from_word(pa.words[3]);
    ip.ttl = ip.ttl.wrapping_sub(1);
    frame.store(Ethernet::LEN, &ip.with_checksum())
}
