//! STT (draft-davie-stt-08) in place: what the kernel's own TCP offloads keep in one piece crosses in one piece.
//!
//! [`encapsulate`] sends. [`Arrival::look`] tells what has come, [`decapsulate`] takes the headers off a whole frame. A frame
//! that the receiving kernel joined only in part is not lost: its inner frame is one large TCP segment, and every part
//! of that is a TCP segment too, once it has headers ([`Stream`]). Only parts of other frames need somebody who puts
//! them together: the agent, by way of the slow device.

mod part;
mod receive;
mod send;

pub use part::{PartFate, Stream, StreamKey, deliver_first, deliver_later, later};
pub use receive::{Arrival, Kind, checksum_is_right, decapsulate, outer_addresses};
pub use send::{Job, Sent, SttWork, encapsulate};

use crate::packet::L3;
use tenet_wire::{Ethernet, Ipv4, Ipv6, SttHeader, SttSegment, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// For how long after it last looked whoever puts frames together is believed to be there, in nanoseconds. It looks
/// every fifth of a second.
pub const JOINER_PATIENCE: u64 = 2_000_000_000;

/// Whether somebody puts frames together, who last looked at that moment of the monotonic clock; 0: nobody.
#[inline(always)]
#[must_use]
pub const fn is_joining(looked: u64, now: u64) -> bool {
    looked != 0 && now.saturating_sub(looked) < JOINER_PATIENCE
}

/// Bytes between the two families' network headers.
const FLIP: u32 = 20;

/// What stands behind the outer network header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rest {
    /// The TCP-like header.
    pub tcp: SttSegment,
    /// STT's own.
    pub stt: SttHeader,
    /// The inner link header.
    pub inner: Ethernet,
}

/// All headers before the inner network header, in IPv4.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HeadersV4 {
    /// Outer link header.
    pub eth: Ethernet,
    /// Outer network header.
    pub ip: Ipv4,
    /// What follows.
    pub rest: Rest,
}

/// The same in IPv6.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HeadersV6 {
    /// Outer link header.
    pub eth: Ethernet,
    /// Outer network header.
    pub ip: Ipv6,
    /// What follows.
    pub rest: Rest,
}

impl HeadersV4 {
    const LEN: u32 = 86;
}

impl HeadersV6 {
    const LEN: u32 = 106;
}

const _: () = assert!(size_of::<HeadersV4>() == HeadersV4::LEN as usize);
const _: () = assert!(size_of::<HeadersV6>() == HeadersV6::LEN as usize);

/// Headers of either family.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers {
    /// In IPv4.
    pub v4: HeadersV4,
    /// In IPv6.
    pub v6: HeadersV6,
}

/// Whether an STT frame of so many bytes can be cut up by TCP's rules: its length and the outer header's have sixteen
/// bits.
#[inline(always)]
const fn tcp_length_fits(total: u32) -> bool {
    total + SttSegment::LEN + Ipv4::LEN <= u16::MAX as u32
}

/// The sum of a pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) of these addresses' sum.
#[inline(always)]
const fn pseudo_sum(addresses: u32, protocol: u8, len: u32) -> u32 {
    addresses
        + (protocol as u16).to_be() as u32
        + (len as u16).to_be() as u32
        + ((len >> 16) as u16).to_be() as u32
}

/// What stands in a segment's checksum field while somebody still has to sum its bytes up: the pseudo header alone.
#[inline(always)]
pub(crate) const fn pseudo_alone(addresses: u32, len: u32) -> u16 {
    checksum::fold(pseudo_sum(addresses, tenet_wire::ProtocolNumber::TCP, len))
}

/// The sum of a packet's addresses.
#[inline(always)]
fn addresses(l3: &L3, v6: bool) -> u32 {
    if v6 {
        checksum::sum(&l3.v6().src) + checksum::sum(&l3.v6().dst)
    } else {
        checksum::sum(&l3.v4().src.halves()) + checksum::sum(&l3.v4().dst.halves())
    }
}
