//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! ```text
//!  0        2        4     5     6        8           14        18          24        28
//!  |hardware|protocol|hlen |plen |opera-  |sender     |sender   |target     |target   |
//!  |type 1  |0x0800  |6    |4    |tion    |MAC        |address  |MAC        |address  |
//! ```

use crate::{Be16, Be32, EtherType, Ethernet, Mac};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An ARP packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Arp {
    /// 1 is Ethernet.
    pub hardware: Be16,
    /// 0x0800 is IPv4.
    pub protocol: Be16,
    /// Length of a hardware address and (second wire byte) of a protocol address.
    pub lengths: Be16,
    /// [`Arp::REQUEST`], [`Arp::REPLY`] or another.
    pub operation: Be16,
    /// Sender's MAC.
    pub sender_mac: Mac,
    /// Sender's address; 0.0.0.0 in a probe (RFC 5227 §2.1.1).
    pub sender: Be32,
    /// Target's MAC; nothing in a request.
    pub target_mac: Mac,
    /// Target's address.
    pub target: Be32,
}

impl Arp {
    /// Length in bytes.
    pub const LEN: u32 = 28;
    /// Who has the target address?
    pub const REQUEST: Be16 = Be16::new(1);
    /// The sender has it.
    pub const REPLY: Be16 = Be16::new(2);
    const ETHERNET: Be16 = Be16::new(1);
    const SIX_AND_FOUR: Be16 = Be16::new(0x0604);

    /// Whether the packet speaks of IPv4 addresses on Ethernet; only then the fields above mean what they say.
    #[inline(always)]
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.hardware == Self::ETHERNET
            && self.protocol == EtherType::IPV4
            && self.lengths == Self::SIX_AND_FOUR
    }

    /// The answer to this request: the target address is at `mac`.
    #[inline(always)]
    #[must_use]
    pub fn reply(&self, mac: Mac) -> ArpFrame {
        ArpFrame {
            eth: Ethernet { dst: self.sender_mac, src: mac, ty: EtherType::ARP },
            arp: Self {
                hardware: Self::ETHERNET,
                protocol: EtherType::IPV4,
                lengths: Self::SIX_AND_FOUR,
                operation: Self::REPLY,
                sender_mac: mac,
                sender: self.target,
                target_mac: self.sender_mac,
                target: self.sender,
            },
        }
    }
}

/// A whole ARP frame, padding apart.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ArpFrame {
    /// Link header.
    pub eth: Ethernet,
    /// Payload.
    pub arp: Arp,
}

impl ArpFrame {
    /// Length in bytes.
    pub const LEN: u32 = 42;
}

const _: () = assert!(core::mem::size_of::<Arp>() == Arp::LEN as usize);
const _: () = assert!(core::mem::size_of::<ArpFrame>() == ArpFrame::LEN as usize);
