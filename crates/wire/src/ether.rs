//! Ethernet.
//!
//! ```text
//!  0      6      12   14
//!  | dst  | src  |type|
//! ```

use crate::Be16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An Ethernet address in wire order, as halves so that eBPF copies it without byte loads.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Mac {
    /// Each half holds two wire bytes in memory order.
    pub halves: [u16; 3],
}

impl Mac {
    /// All ones.
    pub const BROADCAST: Self = Self { halves: [0xffff; 3] };

    /// Takes the six wire bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(o: [u8; 6]) -> Self {
        Self {
            halves: [
                u16::from_ne_bytes([o[0], o[1]]),
                u16::from_ne_bytes([o[2], o[3]]),
                u16::from_ne_bytes([o[4], o[5]]),
            ],
        }
    }

    /// The six wire bytes.
    #[must_use]
    pub const fn octets(&self) -> [u8; 6] {
        let (a, b, c) =
            (self.halves[0].to_ne_bytes(), self.halves[1].to_ne_bytes(), self.halves[2].to_ne_bytes());
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }

    /// Whether the group bit is set: multicast or broadcast (IEEE 802-2014 §8.2.2).
    #[inline(always)]
    #[must_use]
    pub const fn is_group(&self) -> bool {
        self.halves[0].to_ne_bytes()[0] & 1 != 0
    }
}

/// What follows an Ethernet header, as far as we care.
pub struct EtherType;

impl EtherType {
    /// IPv4.
    pub const IPV4: Be16 = Be16::new(0x0800);
    /// IPv6.
    pub const IPV6: Be16 = Be16::new(0x86dd);
    /// ARP (RFC 826).
    pub const ARP: Be16 = Be16::new(0x0806);
    /// Reverse ARP (RFC 903): with it a hypervisor announces a VM that it resumes.
    pub const RARP: Be16 = Be16::new(0x8035);
    /// A customer VLAN tag (IEEE 802.1Q).
    pub const VLAN: Be16 = Be16::new(0x8100);
    /// A service VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: Be16 = Be16::new(0x88a8);
    /// An Ethernet frame inside GRE (RFC 7637 §3.2, "transparent Ethernet bridging").
    pub const BRIDGED: Be16 = Be16::new(0x6558);

    /// Whether the type announces a VLAN tag.
    #[inline(always)]
    #[must_use]
    pub fn is_vlan(ty: Be16) -> bool {
        ty == Self::VLAN || ty == Self::SERVICE_VLAN
    }
}

/// The header of an untagged frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// One of [`EtherType`], or anything else.
    pub ty: Be16,
}

impl Ethernet {
    /// Length in bytes.
    pub const LEN: u32 = 14;
}

const _: () = assert!(core::mem::size_of::<Ethernet>() == Ethernet::LEN as usize);
