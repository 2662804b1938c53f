//! IPv6 (RFC 8200) and its fragment header.
//!
//! ```text
//!  0              4           6     7     8          24         40
//!  |ver|class|flow|payload    |next |hop  |source    |dest.     |
//!  |4    8    20  |length     |hdr  |limit|16 bytes  |16 bytes  |
//! ```

use crate::{Be16, Ethernet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 address in wire order, as halves so that eBPF copies it without byte loads.
pub type Ipv6Halves = [u16; 8];

/// An IPv6 header without extension headers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv6 {
    /// Version (high four bits), traffic class (eight), and the flow label's high four bits.
    pub start: Be16,
    /// The flow label's low sixteen bits.
    pub flow: Be16,
    /// Length of what follows the header.
    pub payload_len: Be16,
    /// What follows: one of [`crate::ProtocolNumber`], or anything else.
    pub next: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Halves,
    /// Destination address.
    pub dst: Ipv6Halves,
}

impl Ipv6 {
    /// Length in bytes.
    pub const LEN: u32 = 40;

    /// Version field.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        (self.start.get() >> 12) as u8
    }

    /// DSCP (high six bits) and ECN (low two), as IPv4's byte of them.
    #[inline(always)]
    #[must_use]
    pub const fn class(&self) -> u8 {
        (self.start.get() >> 4) as u8
    }

    /// Sets DSCP and ECN.
    #[inline(always)]
    pub fn set_class(&mut self, class: u8) {
        self.start = Be16::new(self.start.get() & 0xf00f | (class as u16) << 4);
    }

    /// Whether version and length are possible in `available` bytes, jumbograms apart.
    #[inline(always)]
    #[must_use]
    pub const fn fits(&self, available: u32) -> bool {
        self.version() == 6 && self.payload_len.get() as u32 + Self::LEN <= available
    }
}

/// The fragment header (RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv6Fragment {
    /// What follows.
    pub next: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of eight bytes (high thirteen bits), and in the lowest bit whether more follow.
    pub offset: Be16,
    /// Identification.
    pub id: [Be16; 2],
}

impl Ipv6Fragment {
    /// Length in bytes.
    pub const LEN: u32 = 8;

    /// Whether this is a fragment other than the first.
    #[inline(always)]
    #[must_use]
    pub const fn is_later(&self) -> bool {
        self.offset.get() & 0xfff8 != 0
    }
}

/// The head of an untagged IPv6 frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv6Frame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv6,
}

impl Ipv6Frame {
    /// Length in bytes.
    pub const LEN: u32 = 54;
}

const _: () = assert!(core::mem::size_of::<Ipv6>() == Ipv6::LEN as usize);
const _: () = assert!(core::mem::size_of::<Ipv6Frame>() == Ipv6Frame::LEN as usize);
const _: () = assert!(core::mem::size_of::<Ipv6Fragment>() == Ipv6Fragment::LEN as usize);
const _: () = assert!(core::mem::align_of::<Ipv6Frame>() == 2);
