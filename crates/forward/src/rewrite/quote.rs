//! Errors that routers of the provider network send about a packet of ours. They quote its headers, in which the
//! provider addresses stand; the VM must find its own there, or it would not know what the error is about.
//!
//! Errors between VMs quote customer addresses and need none of this.

use super::receive::Call;
use super::{checksum_at, difference, same_family};
use crate::packet::{Packet, addr6, halves6};
use crate::{Frame, FrameMut, Tables};
use tenet_tables::{Addr, DropReason, Rewrite, RewriteKey};
use tenet_wire::{Be16, Be32, Ethernet, Icmp, Ipv4, Ipv6, Ipv6Fragment, ProtocolNumber, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Extension headers of a quoted packet that are looked behind.
const EXTENSIONS: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Error4 {
    icmp: Icmp,
    quoted: Ipv4,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Error6 {
    icmp: Icmp,
    quoted: Ipv6,
}

/// What is needed of a quoted packet.
#[derive(Clone, Copy, Debug, Default)]
struct Quoted {
    src: Addr,
    dst: Addr,
    /// The transport protocol, or one without a checksum over addresses if the transport is out of reach.
    protocol: u8,
    /// Where in the frame the transport header starts.
    transport: u32,
}

/// Whether the packet is an error that may quote one of ours: not to be delivered, out of hops, a bad header, and
/// with IPv6 too big. Redirects are for the provider network's own machines.
#[inline(always)]
pub(super) fn is_error<F: Frame>(frame: &F, packet: &Packet) -> bool {
    let protocol = if packet.v6 { ProtocolNumber::ICMPV6 } else { ProtocolNumber::ICMP };
    if packet.protocol != protocol || packet.fragment || packet.transport + Icmp::LEN > packet.len {
        return false;
    }
    let mut start = Be16::default();
    if frame.load(packet.transport_at(), &mut start).is_err() {
        return false;
    }
    let ty = start.get() >> 8;
    if packet.v6 { matches!(ty, 1..=4) } else { matches!(ty, 3 | 11 | 12) }
}

/// Translates the packet that an error quotes back.
#[inline(always)]
pub(super) fn translate4<F: FrameMut, T: Tables>(
    call: &Call<'_, T>,
    frame: &mut F,
    packet: &Packet,
    to: &Rewrite,
) -> Result<(), DropReason> {
    let at = packet.transport_at();
    let mut error = Error4::default();
    if packet.transport + Icmp::LEN + Ipv4::LEN > packet.len || frame.load(at, &mut error).is_err() {
        return Err(DropReason::Truncated);
    }
    let header = error.quoted.header_len();
    if error.quoted.version_ihl >> 4 != 4 || header < Ipv4::LEN {
        return Err(DropReason::Malformed);
    }
    let quoted = Quoted {
        src: Addr::v4_word(error.quoted.src.word()),
        dst: Addr::v4_word(error.quoted.dst.word()),
        protocol: if error.quoted.is_later_fragment() {
            ProtocolNumber::FRAGMENT
        } else {
            error.quoted.protocol
        },
        transport: at + Icmp::LEN + header,
    };
    let dst = receiver(call, packet, &quoted, to)?;
    let change = difference(false, [&quoted.src, &quoted.dst], [&to.ca, &dst]);
    let old = error.quoted.checksum.half();
    let new = checksum::mend(old, change);
    error.quoted.src = Be32::from_word(to.ca.words[3]);
    error.quoted.dst = Be32::from_word(dst.words[3]);
    error.quoted.checksum = Be16::from_half(new);
    let sum = checksum::add(change, checksum::difference(&[old], &[new]));
    let sum = checksum::add(sum, mend_transport(frame, packet, &quoted, change)?);
    error.icmp.checksum = Be16::from_half(checksum::mend(error.icmp.checksum.half(), sum));
    frame.store(at, &error).map_err(|_| DropReason::KernelRefused)
}

/// As [`translate4`], of IPv6.
#[inline(always)]
pub(super) fn translate6<F: FrameMut, T: Tables>(
    call: &Call<'_, T>,
    frame: &mut F,
    packet: &Packet,
    to: &Rewrite,
) -> Result<(), DropReason> {
    let at = packet.transport_at();
    let mut error = Error6::default();
    if packet.transport + Icmp::LEN + Ipv6::LEN > packet.len || frame.load(at, &mut error).is_err() {
        return Err(DropReason::Truncated);
    }
    if error.quoted.version() != 6 {
        return Err(DropReason::Malformed);
    }
    let mut quoted = Quoted {
        src: addr6(&error.quoted.src),
        dst: addr6(&error.quoted.dst),
        protocol: error.quoted.next,
        transport: at + Icmp::LEN + Ipv6::LEN,
    };
    look_behind(frame, &mut quoted);
    let dst = receiver(call, packet, &quoted, to)?;
    let change = difference(true, [&quoted.src, &quoted.dst], [&to.ca, &dst]);
    error.quoted.src = halves6(&to.ca);
    error.quoted.dst = halves6(&dst);
    let sum = checksum::add(change, mend_transport(frame, packet, &quoted, change)?);
    error.icmp.checksum = Be16::from_half(checksum::mend(error.icmp.checksum.half(), sum));
    frame.store(at, &error).map_err(|_| DropReason::KernelRefused)
}

/// The customer address that the quoted packet went to, if the packet was this machine's.
///
/// Its source may be the address at the machine's old host, when the error has been redirected.
#[inline(always)]
fn receiver<T: Tables>(
    call: &Call<'_, T>,
    packet: &Packet,
    quoted: &Quoted,
    to: &Rewrite,
) -> Result<Addr, DropReason> {
    let ours = quoted.src == packet.dst
        || match call.tables.rewrite(&RewriteKey { pa: quoted.src }) {
            Some(row) => row.net == to.net && row.ca == to.ca,
            None => false,
        };
    match call.tables.rewrite(&RewriteKey { pa: quoted.dst }) {
        Some(row) if ours && row.net == to.net && same_family(&row.ca, packet.v6) => Ok(row.ca),
        _ => Err(DropReason::RewritePair),
    }
}

/// Finds the transport header behind extension headers, as far as they are quoted.
#[inline(always)]
fn look_behind<F: Frame>(frame: &F, quoted: &mut Quoted) {
    let mut left = EXTENSIONS;
    while left > 0 && ProtocolNumber::is_extension(quoted.protocol) {
        left -= 1;
        let mut header = Ipv6Fragment::default();
        if frame.load(quoted.transport, &mut header).is_err() {
            return;
        }
        if quoted.protocol == ProtocolNumber::FRAGMENT {
            if header.is_later() {
                return;
            }
            quoted.transport += Ipv6Fragment::LEN;
        } else {
            quoted.transport += (header.reserved as u32 + 1) * 8;
        }
        quoted.protocol = header.next;
    }
}

/// Mends the quoted transport's checksum, if it is quoted. Returns the difference that this makes.
#[inline(always)]
fn mend_transport<F: FrameMut>(
    frame: &mut F,
    packet: &Packet,
    quoted: &Quoted,
    change: u32,
) -> Result<u32, DropReason> {
    let Some(at) = checksum_at(quoted.protocol, packet.v6) else { return Ok(0) };
    let at = quoted.transport + at;
    let mut sum = Be16::default();
    if at + 2 > Ethernet::LEN + packet.len || frame.load(at, &mut sum).is_err() {
        return Ok(0);
    }
    let old = sum.half();
    let udp = quoted.protocol == ProtocolNumber::UDP;
    if udp && old == 0 {
        return Ok(0);
    }
    let mut new = checksum::mend(old, change);
    if udp && new == 0 {
        new = 0xffff;
    }
    frame.store(at, &Be16::from_half(new)).map_err(|_| DropReason::KernelRefused)?;
    Ok(checksum::difference(&[old], &[new]))
}

const _: () = assert!(core::mem::size_of::<Error4>() == 28);
const _: () = assert!(core::mem::size_of::<Error6>() == 48);
