//! Neighbour discovery for IPv6 (RFC 4861).
//!
//! ```text
//!  solicitation, advertisement:
//!  0          2         4      8                24
//!  |type code |checksum |flags |target address  | options …
//!
//!  an option: type, length in units of eight bytes, value
//! ```

use crate::{
    Be16, Be32, EtherType, Ethernet, Icmp6, Ipv6, Ipv6Halves, Mac, ProtocolNumber, checksum, pseudo6,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// All nodes of the link, `ff02::1`.
pub const ALL_NODES: Ipv6Halves = [0xff02_u16.to_be(), 0, 0, 0, 0, 0, 0, 1_u16.to_be()];
/// The MAC of [`ALL_NODES`] (RFC 2464 §7).
pub const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

/// A neighbour solicitation or advertisement without options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Neighbour {
    /// Message type (high byte) and code (low byte).
    pub ty_code: Be16,
    /// One's complement of the sum over pseudo header and message.
    pub checksum: Be16,
    /// Flags of an advertisement; zero in a solicitation.
    pub flags: Be32,
    /// The address that is asked for, or told about.
    pub target: Ipv6Halves,
}

impl Neighbour {
    /// Length in bytes.
    pub const LEN: u32 = 24;
    /// Flag: the sender is a router.
    pub const ROUTER: u32 = 1 << 31;
    /// Flag: the answer to a solicitation.
    pub const SOLICITED: u32 = 1 << 30;
    /// Flag: replaces what the receiver had.
    pub const OVERRIDE: u32 = 1 << 29;
}

/// The start of an option.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LinkOption {
    /// [`Self::SOURCE`] or [`Self::TARGET`] (high byte), and the length in units of eight bytes.
    pub ty_len: Be16,
    /// The address.
    pub mac: Mac,
}

impl LinkOption {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// Type of an option with the sender's MAC.
    pub const SOURCE: u8 = 1;
    /// Type of an option with the target's MAC.
    pub const TARGET: u8 = 2;

    /// An option of a type.
    #[inline(always)]
    #[must_use]
    pub const fn new(ty: u8, mac: Mac) -> Self {
        Self { ty_len: Be16::new((ty as u16) << 8 | 1), mac }
    }

    /// The type.
    #[inline(always)]
    #[must_use]
    pub const fn ty(&self) -> u8 {
        (self.ty_len.get() >> 8) as u8
    }

    /// Length of the whole option in bytes; 0 is forbidden (RFC 4861 §4.6).
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        (self.ty_len.get() as u32 & 0xff) * 8
    }

    /// Whether the option has the forbidden length.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A neighbour advertisement with the target's MAC, as a whole frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AdvertisementFrame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv6,
    /// What is said.
    pub nd: Neighbour,
    /// Where the target is.
    pub option: LinkOption,
}

/// Who gets an answer, and who is said to give it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Receiver's MAC.
    pub dst_mac: Mac,
    /// Receiver.
    pub dst: Ipv6Halves,
    /// Sender's MAC.
    pub src_mac: Mac,
    /// Sender.
    pub src: Ipv6Halves,
}

impl AdvertisementFrame {
    /// Length in bytes.
    pub const LEN: u32 = 86;

    /// Says that `target` is at the sender's MAC.
    #[inline(always)]
    #[must_use]
    pub fn new(ends: &Ends, target: Ipv6Halves, flags: u32) -> Self {
        const PAYLOAD: u16 = (Neighbour::LEN + LinkOption::LEN) as u16;
        let mut frame = Self {
            eth: Ethernet { dst: ends.dst_mac, src: ends.src_mac, ty: EtherType::IPV6 },
            ip: discovery_header(ends, PAYLOAD),
            nd: Neighbour {
                ty_code: Icmp6::ty_code(Icmp6::NEIGHBOUR_ADVERTISEMENT, 0),
                checksum: Be16::new(0),
                flags: Be32::new(flags),
                target,
            },
            option: LinkOption::new(LinkOption::TARGET, ends.src_mac),
        };
        let nd: [u16; 12] = zerocopy::transmute!(frame.nd);
        let option: [u16; 4] = zerocopy::transmute!(frame.option);
        let sum = pseudo6(&ends.src, &ends.dst, PAYLOAD, ProtocolNumber::ICMPV6)
            + checksum::sum(&nd)
            + checksum::sum(&option);
        frame.nd.checksum = Be16::from_half(checksum::finish(sum));
        frame
    }
}

/// Network header of neighbour discovery, which never passed a router (RFC 4861 §3.1).
#[inline(always)]
fn discovery_header(ends: &Ends, payload: u16) -> Ipv6 {
    Ipv6 {
        start: Be16::new(0x6000),
        flow: Be16::new(0),
        payload_len: Be16::new(payload),
        next: ProtocolNumber::ICMPV6,
        hop_limit: 255,
        src: ends.src,
        dst: ends.dst,
    }
}

/// A router advertisement with our three options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RouterAdvertisement {
    /// Message type (high byte) and code (low byte).
    pub ty_code: Be16,
    /// One's complement of the sum over pseudo header and message.
    pub checksum: Be16,
    /// Hop limit for the hosts (high byte), flags.
    pub hops_flags: Be16,
    /// Seconds for which the sender is a default router.
    pub lifetime: Be16,
    /// Milliseconds; 0: unspecified.
    pub reachable: Be32,
    /// Milliseconds; 0: unspecified.
    pub retransmit: Be32,
    /// The router's MAC.
    pub link: LinkOption,
    /// Type 5, length 1, and two bytes of zeros.
    pub mtu_head: [Be16; 2],
    /// Largest packet of the link.
    pub mtu: Be32,
    /// Type 3, length 4.
    pub prefix_head: Be16,
    /// Length of the prefix in bits (high byte), and `L` and `A`.
    pub prefix_len_flags: Be16,
    /// Seconds.
    pub valid: Be32,
    /// Seconds.
    pub preferred: Be32,
    /// Zero.
    pub reserved: Be32,
    /// The prefix; bits behind its length are zero.
    pub prefix: Ipv6Halves,
}

impl RouterAdvertisement {
    /// Length in bytes.
    pub const LEN: u32 = 64;
    /// Prefix flag `L`: on link.
    pub const ON_LINK: u8 = 0x80;
    /// Prefix flag `A`: hosts may form addresses in it (RFC 4862).
    pub const AUTONOMOUS: u8 = 0x40;
    /// The longest possible (RFC 8319 §4): hosts ask for advertisements, nobody sends them on time.
    pub const LIFETIME: u16 = 65535;
    /// For ever (RFC 4861 §4.6.2).
    pub const INFINITE: u32 = u32::MAX;

    /// An advertisement of the router with this MAC.
    #[inline(always)]
    #[must_use]
    pub fn new(mac: Mac, mtu: u16, prefix: Ipv6Halves, prefix_len: u8, flags: u8) -> Self {
        Self {
            ty_code: Icmp6::ty_code(Icmp6::ROUTER_ADVERTISEMENT, 0),
            checksum: Be16::new(0),
            hops_flags: Be16::new(64 << 8),
            lifetime: Be16::new(Self::LIFETIME),
            reachable: Be32::new(0),
            retransmit: Be32::new(0),
            link: LinkOption::new(LinkOption::SOURCE, mac),
            mtu_head: [Be16::new(5 << 8 | 1), Be16::new(0)],
            mtu: Be32::new(mtu as u32),
            prefix_head: Be16::new(3 << 8 | 4),
            prefix_len_flags: Be16::new((prefix_len as u16) << 8 | flags as u16),
            valid: Be32::new(Self::INFINITE),
            preferred: Be32::new(Self::INFINITE),
            reserved: Be32::new(0),
            prefix,
        }
    }
}

/// A router advertisement as a whole frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RouterFrame {
    /// Link header.
    pub eth: Ethernet,
    /// Network header.
    pub ip: Ipv6,
    /// What is said.
    pub nd: RouterAdvertisement,
}

impl RouterFrame {
    /// Length in bytes.
    pub const LEN: u32 = 118;

    /// Puts an advertisement into a frame.
    #[inline(always)]
    #[must_use]
    pub fn new(ends: &Ends, nd: RouterAdvertisement) -> Self {
        const PAYLOAD: u16 = RouterAdvertisement::LEN as u16;
        let mut frame = Self {
            eth: Ethernet { dst: ends.dst_mac, src: ends.src_mac, ty: EtherType::IPV6 },
            ip: discovery_header(ends, PAYLOAD),
            nd,
        };
        frame.nd.checksum = Be16::new(0);
        let halves: [u16; 32] = zerocopy::transmute!(frame.nd);
        let sum = pseudo6(&ends.src, &ends.dst, PAYLOAD, ProtocolNumber::ICMPV6) + checksum::sum(&halves);
        frame.nd.checksum = Be16::from_half(checksum::finish(sum));
        frame
    }
}

const _: () = assert!(core::mem::size_of::<Neighbour>() == Neighbour::LEN as usize);
const _: () = assert!(core::mem::size_of::<LinkOption>() == LinkOption::LEN as usize);
const _: () = assert!(core::mem::size_of::<AdvertisementFrame>() == AdvertisementFrame::LEN as usize);
const _: () = assert!(core::mem::size_of::<RouterAdvertisement>() == RouterAdvertisement::LEN as usize);
const _: () = assert!(core::mem::size_of::<RouterFrame>() == RouterFrame::LEN as usize);
