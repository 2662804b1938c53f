//! What is done with a tunnel's headers.

use super::done;
use crate::{Action, FrameMut, PortWork, Refused, Tables, Target, UplinkWork, Verdict, hub};
use tenet_tables::{Config, DropReason};
use tenet_wire::{
    Be32, EtherType, Ethernet, Gre, Ipv4, Ipv4Frame, Mac, NVGRE_OVERHEAD, NvgreOuter, outer_ipv4,
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
            done(readdress(frame, work, config, Be32::from_word(work.to.pa.words[3])), Action::Wire)
        }
        _ => Action::Drop(DropReason::KernelRefused),
    }
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
    let ip = work.is_ip();
    let ecn = work.class() & Ipv4::ECN;
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
    if work.routed { work.head.store_packet(frame, NvgreOuter::LEN) } else { Ok(()) }
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
