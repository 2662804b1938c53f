//! ICMPv6 (RFC 4443), as far as a router sends and answers it.
//!
//! ```text
//!  0     1     2         4                    8
//!  |type |code |checksum |MTU, or id and seq. |   an error quotes from here on the packet that it complains about
//! ```

use crate::{Be16, Be32, EtherType, Ethernet, Ipv6, Ipv6Halves, Mac, ProtocolNumber, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first eight bytes of an ICMPv6 message.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Icmp6 {
    /// Message type (high byte) and code (low byte).
    pub ty_code: Be16,
    /// One's complement of the sum over pseudo header and message.
    pub checksum: Be16,
    /// Identifier and sequence number of an echo; MTU in "packet too big".
    pub rest: Be32,
}

impl Icmp6 {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// The packet could not be delivered; the code says why.
    pub const UNREACHABLE: u8 = 1;
    /// Larger than the next link carries.
    pub const TOO_BIG: u8 = 2;
    /// The hops ran out.
    pub const TIME_EXCEEDED: u8 = 3;
    /// A ping.
    pub const ECHO: u8 = 128;
    /// Answer to a ping.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query, report and done (RFC 2710 §3).
    pub const MLD_QUERY: u8 = 130;
    /// See [`Self::MLD_QUERY`].
    pub const MLD_REPORT: u8 = 131;
    /// See [`Self::MLD_QUERY`].
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation (RFC 4861 §4.1).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement (RFC 4861 §4.2).
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation (RFC 4861 §4.3).
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861 §4.4).
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect (RFC 4861 §4.5).
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report of version 2 (RFC 3810 §5.2).
    pub const MLD2_REPORT: u8 = 143;
    /// Code of [`Self::UNREACHABLE`]: no route.
    pub const NO_ROUTE: u8 = 0;
    /// Code of [`Self::UNREACHABLE`]: no such machine.
    pub const ADDRESS: u8 = 3;
    /// Code of [`Self::UNREACHABLE`]: nobody listens.
    pub const PORT: u8 = 4;

    /// Whether the type is an error's, which must never cause another error (RFC 4443 §2.4 e.1).
    #[inline(always)]
    #[must_use]
    pub const fn is_error(ty: u8) -> bool {
        ty < 128
    }

    /// Whether the message is neighbour discovery's or multicast listener discovery's.
    #[inline(always)]
    #[must_use]
    pub const fn is_discovery(ty: u8) -> bool {
        (ty >= Self::MLD_QUERY && ty <= Self::REDIRECT) || ty == Self::MLD2_REPORT
    }

    /// Type and code as they stand on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn ty_code(ty: u8, code: u8) -> Be16 {
        Be16::new((ty as u16) << 8 | code as u16)
    }

    /// Message type.
    #[inline(always)]
    #[must_use]
    pub const fn ty(&self) -> u8 {
        (self.ty_code.get() >> 8) as u8
    }
}

/// Sum over the pseudo header (RFC 8200 §8.1) of a packet with `len` bytes behind its header.
#[inline(always)]
#[must_use]
pub fn pseudo6(src: &Ipv6Halves, dst: &Ipv6Halves, len: u16, protocol: u8) -> u32 {
    checksum::sum(src)
        + checksum::sum(dst)
        + Be16::new(len).half() as u32
        + Be16::new(protocol as u16).half() as u32
}

/// How much of a plain packet an error quotes: its header and eight bytes.
pub const QUOTE6: usize = 48;
/// How much of a packet with one short extension header an error quotes beyond [`QUOTE6`].
pub const QUOTE6_MORE: usize = 8;

/// An ICMPv6 error as a whole frame, [`QUOTE6_MORE`] apart.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Icmp6ErrorFrame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv6,
    /// What is wrong.
    pub icmp: Icmp6,
    /// The start of the packet that it is about.
    pub quote: [u16; QUOTE6 / 2],
}

impl Icmp6ErrorFrame {
    /// Length in bytes.
    pub const LEN: u32 = 110;

    /// Fills in everything around [`Self::quote`], which the caller has loaded, as has he the rest of the quote that
    /// follows the frame: `more`, zeros if it is not sent. `len` is the length of what is sent.
    #[inline(always)]
    pub fn complete(
        &mut self,
        from: (Mac, Ipv6Halves),
        to: (Mac, Ipv6Halves),
        ty_code: Be16,
        mtu: u16,
        more: &[u16; QUOTE6_MORE / 2],
        len: u32,
    ) {
        let payload = (len - Ethernet::LEN - Ipv6::LEN) as u16;
        self.eth = Ethernet { dst: to.0, src: from.0, ty: EtherType::IPV6 };
        self.ip = Ipv6 {
            start: Be16::new(0x6000),
            flow: Be16::new(0),
            payload_len: Be16::new(payload),
            next: ProtocolNumber::ICMPV6,
            hop_limit: 64,
            src: from.1,
            dst: to.1,
        };
        self.icmp = Icmp6 { ty_code, checksum: Be16::new(0), rest: Be32::new(mtu as u32) };
        let head: [u16; 4] = zerocopy::transmute!(self.icmp);
        let sum = pseudo6(&self.ip.src, &self.ip.dst, payload, ProtocolNumber::ICMPV6)
            + checksum::sum(&head)
            + checksum::sum(&self.quote)
            + checksum::sum(more);
        self.icmp.checksum = Be16::from_half(checksum::finish(sum));
    }
}

const _: () = assert!(core::mem::size_of::<Icmp6>() == Icmp6::LEN as usize);
const _: () = assert!(core::mem::size_of::<Icmp6ErrorFrame>() == Icmp6ErrorFrame::LEN as usize);
