//! ICMP (RFC 792), as far as a router sends and answers it.
//!
//! ```text
//!  0     1     2         4         6         8
//!  |type |code |checksum |unused   |next-hop |   an error quotes from here on the packet
//!  |     |     |         |or id    |MTU / seq|   that it complains about
//! ```

use crate::{Be16, Be32, EtherType, Ethernet, Ipv4, Mac, ProtocolNumber, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first eight bytes of an ICMP message.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Icmp {
    /// Message type, one of the constants below or another.
    pub ty: u8,
    /// Detail of the type.
    pub code: u8,
    /// One's complement of the message's sum.
    pub checksum: Be16,
    /// Identifier of an echo; unused in errors.
    pub id: Be16,
    /// Sequence number of an echo; next-hop MTU in "fragmentation needed" (RFC 1191 §4).
    pub rest: Be16,
}

impl Icmp {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// Answer to an echo.
    pub const ECHO_REPLY: u8 = 0;
    /// The packet could not be delivered; the code says why.
    pub const UNREACHABLE: u8 = 3;
    /// A ping.
    pub const ECHO: u8 = 8;
    /// The hops ran out.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Code of [`Self::UNREACHABLE`]: no route.
    pub const NET: u8 = 0;
    /// Code of [`Self::UNREACHABLE`]: no such machine.
    pub const HOST: u8 = 1;
    /// Code of [`Self::UNREACHABLE`]: nobody listens.
    pub const PORT: u8 = 3;
    /// Code of [`Self::UNREACHABLE`]: too large and not to be fragmented.
    pub const FRAGMENTATION_NEEDED: u8 = 4;

    /// Whether the type is an error's, which must never cause another error (RFC 1122 §3.2.2).
    #[inline(always)]
    #[must_use]
    pub const fn is_error(ty: u8) -> bool {
        matches!(ty, 3 | 4 | 5 | 11 | 12)
    }
}

/// How much of the offending packet an error quotes: its header and eight bytes (RFC 792).
pub const QUOTE: usize = 28;

/// An ICMP error as a whole frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IcmpErrorFrame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv4,
    /// What is wrong.
    pub icmp: Icmp,
    /// The start of the packet that it is about.
    pub quote: [u16; QUOTE / 2],
}

impl IcmpErrorFrame {
    /// Length in bytes.
    pub const LEN: u32 = 70;

    /// Fills in everything around [`Self::quote`], which the caller has loaded.
    #[inline(always)]
    pub fn complete(&mut self, from: (Mac, Be32), to: (Mac, Be32), ty: u8, code: u8, mtu: u16) {
        self.eth = Ethernet { dst: to.0, src: from.0, ty: EtherType::IPV4 };
        self.ip = Ipv4 {
            version_ihl: Ipv4::PLAIN,
            // Internetwork control, which RFC 1812 §4.3.2.5 wants for errors.
            tos: 0xc0,
            total_len: Be16::new((Self::LEN - Ethernet::LEN) as u16),
            id: Be16::new(0),
            fragment: Be16::new(0),
            ttl: 64,
            protocol: ProtocolNumber::ICMP,
            checksum: Be16::new(0),
            src: from.1,
            dst: to.1,
        }
        .with_checksum();
        self.icmp = Icmp { ty, code, checksum: Be16::new(0), id: Be16::new(0), rest: Be16::new(mtu) };
        let head: [u16; 4] = zerocopy::transmute!(self.icmp);
        let sum = checksum::sum(&head).wrapping_add(checksum::sum(&self.quote));
        self.icmp.checksum = Be16::from_half(checksum::finish(sum));
    }
}

const _: () = assert!(core::mem::size_of::<Icmp>() == Icmp::LEN as usize);
const _: () = assert!(core::mem::size_of::<IcmpErrorFrame>() == IcmpErrorFrame::LEN as usize);
