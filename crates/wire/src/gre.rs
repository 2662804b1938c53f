//! GRE with a key, and NVGRE (RFC 7637).
//!
//! ```text
//!  outer Ethernet | outer IPv4, protocol 47 | GRE 8 bytes | inner Ethernet, untagged | payload
//!
//!  0              2              4                  7       8
//!  |flags         |protocol      |VSID              |FlowID |
//!  |0x2000: K=1   |0x6558        |24 bits           |8 bits |
//! ```

use crate::{Be16, Be32, EtherType, Ipv4Frame};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What NVGRE over IPv4 puts before an inner frame, in bytes.
pub const NVGRE_OVERHEAD: u32 = Ipv4Frame::LEN + Gre::LEN;

/// A GRE header with a key and nothing else.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Gre {
    /// Flags and version.
    pub flags: Be16,
    /// Type of the payload.
    pub protocol: Be16,
    /// NVGRE: VSID and FlowID.
    pub key: Be32,
}

impl Gre {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// A key, no checksum, no sequence number, version 0: the only flags that RFC 7637 §3.2 allows.
    pub const KEY_ONLY: Be16 = Be16::new(0x2000);

    /// The header of an NVGRE frame.
    #[inline(always)]
    #[must_use]
    pub const fn nvgre(vsid: u32, flow: u8) -> Self {
        Self { flags: Self::KEY_ONLY, protocol: EtherType::BRIDGED, key: Be32::new(vsid << 8 | flow as u32) }
    }

    /// Whether an Ethernet frame follows, NVGRE's or another tunnel's.
    #[inline(always)]
    #[must_use]
    pub fn is_bridged(&self) -> bool {
        self.protocol == EtherType::BRIDGED
    }

    /// Version field, of which NVGRE's is 0 (RFC 2784 §2.3.1).
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.flags.get() as u8 & 7
    }

    /// Whether flags and protocol are exactly NVGRE's; only then [`Self::vsid`] means something.
    #[inline(always)]
    #[must_use]
    pub fn is_nvgre(&self) -> bool {
        self.is_bridged() && self.flags == Self::KEY_ONLY
    }

    /// The virtual subnet.
    #[inline(always)]
    #[must_use]
    pub const fn vsid(&self) -> u32 {
        self.key.get() >> 8
    }

    /// The flow's number, which spreads flows over equal paths (RFC 7637 §4.1).
    #[must_use]
    pub const fn flow(&self) -> u8 {
        self.key.octets()[3]
    }
}

const _: () = assert!(core::mem::size_of::<Gre>() == Gre::LEN as usize);
