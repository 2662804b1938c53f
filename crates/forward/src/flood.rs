//! Broadcast and multicast: a copy for every port of the subnet.
//!
//! In steps, one per receiver: the eBPF shell makes each step a function that the verifier checks once,
//! where a loop would be walked through in every round.

use crate::stt::Sent;
use crate::{FrameMut, PortWork, Refused, Tables, Target, edit, packet::halves6};
use tenet_tables::{
    Addr, Config, DropReason, FLOOD_LIMIT, FloodKey, METHOD_REWRITE, PORT_ACTIVE, PORT_FLAG_DOWN,
};
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Ipv4, Ipv4Frame, Ipv6Frame, ProtocolNumber, SttSegment, checksum,
};

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

/// Encapsulates a VM's frame for nobody yet, so that [`remote_step`] can address it. The subnet says how.
///
/// # Errors
/// [`DropReason::KernelRefused`], or what is missing.
#[inline(always)]
pub fn encapsulate<F: FrameMut, T: Tables>(
    frame: &mut F,
    len: u32,
    work: &PortWork,
    vsid: u32,
    tables: &T,
) -> Result<(), DropReason> {
    let Some(config) = tables.config() else { return Err(DropReason::NotConfigured) };
    let Some(subnet) = tables.subnet(vsid) else { return Err(DropReason::UnknownVsid) };
    // All hosts of a site have addresses of one family, so that ours stands for theirs until the copies are addressed.
    let to = Target { pa: config.pa, method: subnet.method, vsid, flow: work.flow() };
    match edit::wrap(frame, len, work, config, &to) {
        Ok(Sent::Ready) => Ok(()),
        // A bundle of multicast datagrams, of which there are no copies to be cut up.
        Ok(Sent::Uncut) => Err(DropReason::SttUnsupported),
        Err(Refused) => Err(DropReason::KernelRefused),
    }
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
    let mut ty = Be16::default();
    if frame.load(LINK_TYPE, &mut ty).is_err() {
        return false;
    }
    let v4 = entry.pa.as_v4_word();
    if v4.is_some() != (ty == EtherType::IPV4) {
        return true;
    }
    let addressed = match v4 {
        Some(pa) => address_v4(frame, pa),
        None => address_v6(frame, &entry.pa),
    };
    if addressed.is_err() {
        return false;
    }
    frame.clone_to_wire(uplink);
    true
}

/// Offset of the link header's type.
const LINK_TYPE: u32 = 12;

#[inline(always)]
fn address_v4<F: FrameMut>(frame: &mut F, pa: u32) -> Result<(), Refused> {
    let mut outer = Ipv4::default();
    frame.load(Ethernet::LEN, &mut outer)?;
    let old = outer.dst;
    outer.dst = Be32::from_word(pa);
    frame.store(Ethernet::LEN, &outer.with_checksum())?;
    if outer.protocol != ProtocolNumber::TCP {
        return Ok(());
    }
    let change = checksum::difference(&old.halves(), &outer.dst.halves());
    let open = frame.gso_size() > 0;
    edit::mend_stt(frame, Ipv4Frame::LEN + SttSegment::CHECKSUM_AT, change, open)
}

#[inline(always)]
fn address_v6<F: FrameMut>(frame: &mut F, pa: &Addr) -> Result<(), Refused> {
    // The destination is the last field of the network header.
    const AT: u32 = Ipv6Frame::LEN - 16;
    let mut old = Addr::UNSET;
    frame.load(AT, &mut old)?;
    frame.store(AT, &halves6(pa))?;
    let mut next_and_hops = Be16::default();
    frame.load(Ethernet::LEN + 6, &mut next_and_hops)?;
    if next_and_hops.get() >> 8 != ProtocolNumber::TCP as u16 {
        return Ok(());
    }
    let change = edit::difference(&old, pa);
    let open = frame.gso_size() > 0;
    edit::mend_stt(frame, Ipv6Frame::LEN + SttSegment::CHECKSUM_AT, change, open)
}

/// All steps of a VM's broadcast; the name that the original ends under.
pub fn from_port<F: FrameMut, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: &PortWork,
    (len, vsid, sender): (u32, u32, u32),
    config: &Config,
) -> DropReason {
    to_ports(frame, tables, vsid, sender);
    if let Err(reason) = encapsulate(frame, len, work, vsid, tables) {
        return reason;
    }
    for index in 0..FLOOD_LIMIT {
        if !remote_step(frame, tables, vsid, index, config.uplink) {
            break;
        }
    }
    DropReason::Replicated
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
