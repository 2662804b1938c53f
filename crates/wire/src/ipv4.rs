//! IPv4 (RFC 791) and the ports of TCP and UDP.
//!
//! ```text
//!  0     1     2           4           6           8     9     10          12       16       20
//!  |ver  |tos  |total      |id         |flags      |ttl  |proto|header     |source  |dest.   |
//!  |+ihl |     |length     |           |+offset    |     |     |checksum   |address |address |
//! ```

use crate::{Be16, Be32, Ethernet, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv4 {
    /// Version (high four bits) and header length in words (low four).
    pub version_ihl: u8,
    /// DSCP (high six bits) and ECN (low two, RFC 3168 §5).
    pub tos: u8,
    /// Length of header and payload.
    pub total_len: Be16,
    /// Identification, of use to fragments only.
    pub id: Be16,
    /// Flags (high three bits) and fragment offset in units of eight bytes.
    pub fragment: Be16,
    /// Hops left.
    pub ttl: u8,
    /// One of [`ProtocolNumber`], or anything else.
    pub protocol: u8,
    /// One's complement of the header's sum.
    pub checksum: Be16,
    /// Source address.
    pub src: Be32,
    /// Destination address.
    pub dst: Be32,
}

/// Protocols above IPv4 that we look at.
pub struct ProtocolNumber;

impl ProtocolNumber {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE (RFC 2784, RFC 2890).
    pub const GRE: u8 = 47;
    /// IPv6's fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;

    /// Whether an IPv6 next header is an extension header that the transport may stand behind: hop-by-hop options,
    /// routing, fragment, destination options (RFC 8200 §4).
    #[inline(always)]
    #[must_use]
    pub const fn is_extension(next: u8) -> bool {
        next == 0 || next == 43 || next == Self::FRAGMENT || next == 60
    }
}

impl Ipv4 {
    /// Length in bytes, options apart.
    pub const LEN: u32 = 20;
    /// Version 4 and a header of five words.
    pub const PLAIN: u8 = 0x45;
    /// The "do not fragment" flag.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// The "more fragments" flag.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The fragment offset.
    pub const OFFSET: u16 = 0x1fff;
    /// The two ECN bits of [`Self::tos`].
    pub const ECN: u8 = 3;
    /// Congestion experienced (RFC 3168 §5).
    pub const ECN_CE: u8 = 3;

    /// Length of the header with its options, as it claims.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(&self) -> u32 {
        (self.version_ihl as u32 & 0xf) * 4
    }

    /// Whether version, header length and total length are possible in `available` bytes.
    ///
    /// This is the check that makes [`Self::header_len`] and [`Self::total_len`] safe to use as offsets.
    #[inline(always)]
    #[must_use]
    pub const fn fits(&self, available: u32) -> bool {
        let total = self.total_len.get() as u32;
        self.version_ihl >> 4 == 4
            && self.header_len() >= Self::LEN
            && total >= self.header_len()
            && total <= available
    }

    /// Whether this is a part of a larger packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment.half() & Be16::new(Self::OFFSET | Self::MORE_FRAGMENTS).half() != 0
    }

    /// Whether this is a fragment other than the first, so that no transport header follows.
    #[inline(always)]
    #[must_use]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment.half() & Be16::new(Self::OFFSET).half() != 0
    }

    /// Whether nobody may fragment this packet.
    #[inline(always)]
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment.half() & Be16::new(Self::DONT_FRAGMENT).half() != 0
    }

    /// The ten halves of the header.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self) -> [u16; 10] {
        zerocopy::transmute!(self)
    }

    /// The header with its checksum filled in, whatever it held before.
    #[inline(always)]
    #[must_use]
    pub fn with_checksum(mut self) -> Self {
        self.checksum = Be16::new(0);
        self.checksum = Be16::from_half(checksum::finish(checksum::sum(&self.halves())));
        self
    }

    /// Takes one hop off and mends the checksum (RFC 1624); the caller has checked that one is left.
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        self.set_ttl(self.ttl.wrapping_sub(1));
    }

    /// Sets the hops left and mends the checksum (RFC 1624).
    #[inline(always)]
    pub fn set_ttl(&mut self, ttl: u8) {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.ttl = ttl;
        let new = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.checksum = Be16::from_half(checksum::update(self.checksum.half(), old, new));
    }

    /// Sets the byte of DSCP and ECN and mends the checksum (RFC 1624).
    #[inline(always)]
    pub fn set_tos(&mut self, tos: u8) {
        let old = u16::from_ne_bytes([self.version_ihl, self.tos]);
        self.tos = tos;
        let new = u16::from_ne_bytes([self.version_ihl, self.tos]);
        self.checksum = Be16::from_half(checksum::update(self.checksum.half(), old, new));
    }
}

/// Whether an address (as the word its wire bytes form in memory) names one machine: not "this
/// network" (0/8), loopback (127/8), multicast or reserved (224/3) (RFC 1122 §3.2.1.3, RFC 1112 §4).
#[inline(always)]
const fn names_one_machine(word: u32) -> bool {
    let first = word.to_ne_bytes()[0];
    first != 0 && first != 127 && first < 224
}

impl Be32 {
    /// Whether this, as an IPv4 address, can be the one machine that sends or receives a routed packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_routable(self) -> bool {
        names_one_machine(self.word())
    }
}

/// The first four bytes of TCP and UDP.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ports {
    /// Source port.
    pub src: Be16,
    /// Destination port.
    pub dst: Be16,
}

/// The head of an untagged IPv4 frame whose header has no options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ipv4Frame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv4,
}

impl Ipv4Frame {
    /// Length in bytes.
    pub const LEN: u32 = 34;
}

const _: () = assert!(core::mem::size_of::<Ipv4>() == Ipv4::LEN as usize);
const _: () = assert!(core::mem::size_of::<Ipv4Frame>() == Ipv4Frame::LEN as usize);
const _: () = assert!(core::mem::align_of::<Ipv4Frame>() == 2);
