//! An IP packet of either version, as far as the decision needs to know it.

use crate::{Frame, Refused};
use tenet_tables::{Addr, DropReason};
use tenet_wire::{Be16, EtherType, Ethernet, Ipv4, Ipv6, Ipv6Fragment, Ipv6Halves, Mac, ProtocolNumber, Tcp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Extension headers that are looked behind.
const EXTENSIONS: u32 = 4;

/// The first forty bytes of a packet: the header of IPv6, or that of IPv4 and the start of the transport's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct L3 {
    halves: [u16; 20],
}

/// [`L3`] with an IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct L3v4 {
    ip: Ipv4,
    transport: Tcp,
}

impl L3 {
    /// Length in bytes.
    pub const LEN: u32 = 40;

    /// The header, if the packet is IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn v4(&self) -> &Ipv4 {
        let all: &L3v4 = zerocopy::transmute_ref!(self);
        &all.ip
    }

    /// The header to change, if the packet is IPv4.
    #[inline(always)]
    pub fn v4_mut(&mut self) -> &mut Ipv4 {
        let all: &mut L3v4 = zerocopy::transmute_mut!(self);
        &mut all.ip
    }

    /// What follows the header, if the packet is IPv4 without options: ports, and more if it is TCP.
    #[inline(always)]
    #[must_use]
    pub const fn v4_transport(&self) -> &Tcp {
        let all: &L3v4 = zerocopy::transmute_ref!(self);
        &all.transport
    }

    /// [`Self::v4_transport`] to change.
    #[inline(always)]
    pub fn v4_transport_mut(&mut self) -> &mut Tcp {
        let all: &mut L3v4 = zerocopy::transmute_mut!(self);
        &mut all.transport
    }

    /// The header, if the packet is IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn v6(&self) -> &Ipv6 {
        zerocopy::transmute_ref!(self)
    }

    /// The header to change, if the packet is IPv6.
    #[inline(always)]
    pub fn v6_mut(&mut self) -> &mut Ipv6 {
        zerocopy::transmute_mut!(self)
    }
}

/// What both versions say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// DSCP and ECN.
    pub class: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// The transport protocol: behind IPv6's extension headers, if they were few.
    pub protocol: u8,
    /// Whether it is a part of a larger packet.
    pub fragment: bool,
    /// Whether it is such a part without a transport header.
    pub later_fragment: bool,
    /// Whether the transport header follows the network header at once: no options, no extension headers.
    pub plain: bool,
    /// Bytes from the network header's start to the transport header's.
    pub transport: u32,
    /// Length in bytes from the network header's start, as it claims.
    pub len: u32,
}

impl Packet {
    /// Reads the packet that starts at `at` in a frame of `len` bytes; the link header said `ty`, which is one of IP.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] or [`DropReason::Malformed`].
    #[inline(always)]
    pub fn load<F: Frame>(
        frame: &F,
        at: u32,
        len: u32,
        ty: Be16,
        l3: &mut L3,
        packet: &mut Self,
    ) -> Result<(), DropReason> {
        if ty == EtherType::IPV4 {
            frame.load(at, l3.v4_mut()).map_err(|Refused| DropReason::Truncated)?;
        } else {
            frame.load(at, l3.v6_mut()).map_err(|Refused| DropReason::Truncated)?;
        }
        packet.take(frame, at, len, ty, l3)
    }

    /// As [`Self::load`], of a packet whose start is loaded already. What the frame is too short for may hold anything.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] or [`DropReason::Malformed`].
    #[inline(always)]
    pub fn take<F: Frame>(
        &mut self,
        frame: &F,
        at: u32,
        len: u32,
        ty: Be16,
        l3: &L3,
    ) -> Result<(), DropReason> {
        let available = len.wrapping_sub(at);
        if len < at || available < if ty == EtherType::IPV4 { Ipv4::LEN } else { Ipv6::LEN } {
            return Err(DropReason::Truncated);
        }
        if ty == EtherType::IPV4 {
            self.take_v4(l3.v4(), available)
        } else {
            self.take_v6(frame, at, l3.v6(), available)
        }
    }

    #[inline(always)]
    fn take_v4(&mut self, ip: &Ipv4, available: u32) -> Result<(), DropReason> {
        if !ip.fits(available) {
            return Err(DropReason::Malformed);
        }
        self.v6 = false;
        self.src = Addr::v4_word(ip.src.word());
        self.dst = Addr::v4_word(ip.dst.word());
        self.class = ip.tos;
        self.hop_limit = ip.ttl;
        self.protocol = ip.protocol;
        self.fragment = ip.is_fragment();
        self.later_fragment = ip.is_later_fragment();
        self.plain = ip.version_ihl == Ipv4::PLAIN;
        self.transport = ip.header_len();
        self.len = ip.total_len.get() as u32;
        Ok(())
    }

    #[inline(always)]
    fn take_v6<F: Frame>(&mut self, frame: &F, at: u32, ip: &Ipv6, available: u32) -> Result<(), DropReason> {
        if !ip.fits(available) {
            return Err(DropReason::Malformed);
        }
        self.v6 = true;
        self.src = addr6(&ip.src);
        self.dst = addr6(&ip.dst);
        // Mapped addresses never stand on a wire (RFC 4291 §2.5.5.2 is for sockets), and would pass for IPv4 in the
        // tables; a group sends nothing.
        if is_mapped(&self.src) || is_mapped(&self.dst) || is_multicast(&self.src) || self.dst.is_unset() {
            return Err(DropReason::Malformed);
        }
        self.class = ip.class();
        self.hop_limit = ip.hop_limit;
        self.protocol = ip.next;
        self.fragment = false;
        self.later_fragment = false;
        self.plain = true;
        self.transport = Ipv6::LEN;
        self.len = Ipv6::LEN + ip.payload_len.get() as u32;
        let mut left = EXTENSIONS;
        while left > 0 && ProtocolNumber::is_extension(self.protocol) {
            left -= 1;
            self.plain = false;
            let mut header = Ipv6Fragment::default();
            if frame.load(at + self.transport, &mut header).is_err() {
                return Err(DropReason::Truncated);
            }
            if self.protocol == ProtocolNumber::FRAGMENT {
                self.fragment = true;
                self.later_fragment = header.is_later();
                self.transport += Ipv6Fragment::LEN;
            } else {
                // The second byte is the length in units of eight bytes, the first eight not counted.
                self.transport += (header.reserved as u32 + 1) * 8;
            }
            self.protocol = header.next;
            if self.transport > self.len {
                return Err(DropReason::Malformed);
            }
            if self.later_fragment {
                return Ok(());
            }
        }
        // What stands behind more headers than we look behind could be anything (RFC 7113 §3).
        if ProtocolNumber::is_extension(self.protocol) { Err(DropReason::Malformed) } else { Ok(()) }
    }

    /// Offset of the transport header in a frame whose network header follows the link header.
    #[inline(always)]
    #[must_use]
    pub const fn transport_at(&self) -> u32 {
        Ethernet::LEN + self.transport
    }
}

/// Whether an address of IPv6 is one of IPv4's, mapped.
#[inline(always)]
#[must_use]
pub const fn is_mapped(addr: &Addr) -> bool {
    addr.as_v4_word().is_some()
}

/// Whether an address is one of IPv6's link-local ones, `fe80::/10`.
#[inline(always)]
#[must_use]
pub const fn is_link_local(addr: &Addr) -> bool {
    addr.words[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
}

/// Whether an address is a group of IPv6's, `ff00::/8`.
#[inline(always)]
#[must_use]
pub const fn is_multicast(addr: &Addr) -> bool {
    addr.words[0] & 0xff00_0000_u32.to_be() == 0xff00_0000_u32.to_be()
}

/// Whether a packet of IPv6 to this address may pass a router: one machine's, and not only the link's.
#[inline(always)]
#[must_use]
pub const fn is_routable6(addr: &Addr) -> bool {
    const LOOPBACK: u32 = 1_u32.to_be();
    let [a, b, c, d] = addr.words;
    let low = a | b | c == 0 && (d == 0 || d == LOOPBACK);
    !low && !is_link_local(addr) && !is_multicast(addr)
}

/// The MAC that a link-local address was made of (RFC 4291 appendix A), if it was.
#[inline(always)]
#[must_use]
pub const fn eui64_mac(addr: &Addr) -> Option<Mac> {
    let [a, b, c, d, e, f, g, h] = halves6(addr);
    // …:xxyy:zzff:fezz:yyxx, with the bit for "local" turned over.
    let [z, ff] = f.to_ne_bytes();
    let [fe, u] = g.to_ne_bytes();
    if a != 0xfe80_u16.to_be() || b | c | d != 0 || ff != 0xff || fe != 0xfe {
        return None;
    }
    Some(Mac { halves: [e ^ 0x0200_u16.to_be(), u16::from_ne_bytes([z, u]), h] })
}

/// An address from its halves.
#[inline(always)]
#[must_use]
pub const fn addr6(halves: &Ipv6Halves) -> Addr {
    zerocopy::transmute!(*halves)
}

/// The halves of an address as IPv6 writes it.
#[inline(always)]
#[must_use]
pub const fn halves6(addr: &Addr) -> Ipv6Halves {
    zerocopy::transmute!(*addr)
}
