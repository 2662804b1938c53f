//! An IP packet of either version, as far as the decision needs to know it.

use crate::{Frame, Refused};
use tenet_tables::{Addr, DropReason};
use tenet_wire::{Be16, EtherType, Ethernet, Ipv4, Ipv6, Ipv6Fragment, Ipv6Halves, ProtocolNumber};

/// Extension headers that are looked behind.
const EXTENSIONS: u32 = 4;

/// The network header, whichever it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct L3 {
    /// If the packet is IPv4.
    pub v4: Ipv4,
    /// If the packet is IPv6.
    pub v6: Ipv6,
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
            frame.load(at, &mut l3.v4).map_err(|Refused| DropReason::Truncated)?;
            packet.take_v4(&l3.v4, len.wrapping_sub(at))
        } else {
            frame.load(at, &mut l3.v6).map_err(|Refused| DropReason::Truncated)?;
            packet.take_v6(frame, at, &l3.v6, len.wrapping_sub(at))
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
                break;
            }
        }
        Ok(())
    }

    /// Offset of the transport header in a frame whose network header follows the link header.
    #[inline(always)]
    #[must_use]
    pub const fn transport_at(&self) -> u32 {
        Ethernet::LEN + self.transport
    }
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
