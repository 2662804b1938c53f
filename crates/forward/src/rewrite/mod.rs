//! IP Rewrite: every customer address has a provider address of its own, and a frame between two machines is
//! the packet itself with the one pair of addresses in place of the other. Nothing is added.
//!
//! [`send`] chooses the pair for what a VM sends, [`receive`] takes what the provider network brings back to
//! customer addresses, [`quote`] does the same for packets that the errors of the provider network's routers quote.
//!
//! Both directions change checksums by the difference that the addresses make, wherever the checksum is within
//! reach; where it is not (in a later fragment, in a protocol that nobody knows), neither side touches it, and with the addresses it is right again at the receiver.

mod neighbour;
mod quote;
mod receive;
mod send;

pub use receive::{RewriteWork, edit, uplink, uplink_closer, uplink_first};
pub use send::{Pair, send};
pub(crate) use send::{Parties, pair};

use crate::packet::{L3, Packet, halves6};
use crate::{Frame, FrameMut, Refused};
use tenet_tables::Addr;
use tenet_wire::{Be16, Be32, Icmp6, ProtocolNumber, checksum};

/// Where a transport's checksum is, if it covers the addresses.
#[inline(always)]
#[must_use]
pub(crate) const fn checksum_at(protocol: u8, v6: bool) -> Option<u32> {
    match protocol {
        ProtocolNumber::TCP => Some(16),
        ProtocolNumber::UDP => Some(6),
        ProtocolNumber::ICMPV6 if v6 => Some(2),
        _ => None,
    }
}

/// Whether an address is of the packet's family.
#[inline(always)]
#[must_use]
pub(crate) const fn same_family(addr: &Addr, v6: bool) -> bool {
    !addr.is_unset() && addr.as_v4_word().is_some() != v6
}

/// The difference that new addresses make to every sum over them.
#[inline(always)]
#[must_use]
pub(crate) const fn difference(v6: bool, old: [&Addr; 2], new: [&Addr; 2]) -> u32 {
    let mut sum = 0u64;
    let mut i = if v6 { 0 } else { 3 };
    while i < 4 {
        sum += !old[0].words[i] as u64 + new[0].words[i] as u64;
        sum += !old[1].words[i] as u64 + new[1].words[i] as u64;
        i += 1;
    }
    // Less than seventeen times what 32 bits hold.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    checksum::add(sum as u32, (sum >> 32) as u32)
}

/// Puts new addresses into a network header; IPv4's own checksum changes by their [`difference`].
#[inline(always)]
pub(crate) fn readdress(l3: &mut L3, v6: bool, [src, dst]: [&Addr; 2], difference: u32) {
    if v6 {
        let ip = l3.v6_mut();
        ip.src = halves6(src);
        ip.dst = halves6(dst);
        return;
    }
    let ip = l3.v4_mut();
    ip.src = Be32::from_word(src.words[3]);
    ip.dst = Be32::from_word(dst.words[3]);
    ip.checksum = Be16::from_half(checksum::mend(ip.checksum.half(), difference));
}

/// Changes the transport's checksum by the [`difference`] of the addresses, if it covers them and is within reach.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub(crate) fn mend<F: FrameMut>(frame: &mut F, packet: &Packet, difference: u32) -> Result<(), Refused> {
    if packet.v6 {
        frame.account(difference);
    }
    let Some(at) = checksum_at(packet.protocol, packet.v6) else { return Ok(()) };
    if packet.later_fragment || packet.transport + at + 2 > packet.len {
        return Ok(());
    }
    frame.mend_l4(packet.transport_at() + at, difference, true, packet.protocol == ProtocolNumber::UDP)
}

/// Whether the packet is one of neighbour discovery, which tells about its own link only and does not cross.
#[inline(always)]
#[must_use]
pub(crate) fn is_discovery<F: Frame>(frame: &F, packet: &Packet) -> bool {
    if packet.protocol != ProtocolNumber::ICMPV6 || !packet.v6 || packet.later_fragment {
        return false;
    }
    let mut ty_code = Be16::default();
    frame.load(packet.transport_at(), &mut ty_code).is_ok() && Icmp6::is_discovery((ty_code.get() >> 8) as u8)
}
