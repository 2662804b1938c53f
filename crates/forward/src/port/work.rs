//! What one look at a VM's frame leaves for the next, for the edits and for the agent.

use crate::{
    Frame, FrameMut, Note, Refused, Target,
    packet::{L3, Packet},
    rewrite::Pair,
};
use tenet_tables::Addr;
use tenet_wire::{Be16, EtherType, Ethernet, Ipv4Frame, Ipv6Frame, Ipv6Halves, Ports, Tcp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first bytes of a frame; what lies beyond its end stays zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Head {
    /// Link header.
    pub eth: Ethernet,
    /// Start of the packet, if the link header says that it is IP.
    pub l3: L3,
}

/// A [`Head`] as IPv4 has it.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head4 {
    frame: Ipv4Frame,
    transport: [u16; 10],
}

impl Head {
    /// Length in bytes.
    pub const LEN: u32 = Ethernet::LEN + L3::LEN;

    #[inline(always)]
    pub(crate) fn load<F: Frame>(&mut self, frame: &F, len: u32) -> Result<(), Refused> {
        if len >= Self::LEN {
            return frame.load(0, self);
        }
        // Few frames are that short: ARP, and small datagrams from taps.
        self.l3 = L3::default();
        frame.load(0, &mut self.eth)?;
        if len >= Ipv4Frame::LEN {
            frame.load(Ethernet::LEN, self.l3.v4_mut())?;
        }
        if len >= Ipv4Frame::LEN + 4 {
            frame.load(Ipv4Frame::LEN, &mut self.l3.v4_transport_mut().ports)?;
        }
        Ok(())
    }

    /// Writes link and network header to where they came from.
    #[inline(always)]
    pub(crate) fn store<F: FrameMut>(&self, frame: &mut F) -> Result<(), Refused> {
        if self.eth.ty == EtherType::IPV4 {
            let head: &Head4 = zerocopy::transmute_ref!(self);
            frame.store(0, &head.frame)
        } else {
            let head: &Ipv6Frame = zerocopy::transmute_ref!(self);
            frame.store(0, head)
        }
    }

    /// Writes the network header.
    #[inline(always)]
    pub(crate) fn store_packet<F: FrameMut>(&self, frame: &mut F, at: u32) -> Result<(), Refused> {
        if self.eth.ty == EtherType::IPV4 {
            frame.store(at, self.l3.v4())
        } else {
            frame.store(at, self.l3.v6())
        }
    }
}

const _: () = assert!(size_of::<Head>() == Head::LEN as usize);

/// What [`super::port_ingress`] leaves for the edits and for the agent.
///
/// The two bytes before the head bring the packet's addresses to a multiple of four.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortWork {
    /// Largest segment that the opener of a TCP connection may offer; 0: the frame opens none.
    pub segment: u16,
    /// The frame's first bytes, rewritten if the gateway routed it.
    pub head: Head,
    /// What the packet says, if the frame is one of IP.
    pub packet: Packet,
    /// Start of the transport's header, if the packet is TCP or UDP and no fragment; else ports and flags are zero.
    pub transport: Tcp,
    /// The address that a neighbour solicitation asks for.
    pub target: Ipv6Halves,
    /// Whether the gateway routed the frame.
    pub routed: bool,
    /// Whether this is the first frame of a prepared port, which makes it active.
    pub activated: bool,
    /// Where the frame goes if it is encapsulated.
    pub to: Target,
    /// The addresses that stand for the packet's own, if it goes to another host by IP Rewrite.
    pub pair: Pair,
    /// The port of this host that has moved and that the frame is redirected for, or 0.
    pub moved: u32,
    /// What the agent may be told.
    pub note: Note,
}

impl PortWork {
    /// Forgets what the frame before left and the decision does not write in any case.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.segment = 0;
        self.transport.ports = Ports::default();
        self.transport.offset_flags = Be16::default();
        self.routed = false;
        self.activated = false;
        self.moved = 0;
        self.note.kind = None;
    }

    /// Whether the frame is one of IP.
    #[inline(always)]
    #[must_use]
    pub fn is_ip(&self) -> bool {
        self.head.eth.ty == EtherType::IPV4 || self.head.eth.ty == EtherType::IPV6
    }

    /// Whether the frame is one of IPv6.
    #[inline(always)]
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.head.eth.ty == EtherType::IPV6
    }

    /// DSCP and ECN of the packet; 0 if the frame is none of IP.
    #[inline(always)]
    #[must_use]
    pub fn class(&self) -> u8 {
        if self.is_ip() { self.packet.class } else { 0 }
    }

    /// Bits that tell flows apart (the high ones best), equal for all frames of one flow and for all fragments of one packet.
    #[inline(always)]
    #[must_use]
    pub fn flow(&self) -> u32 {
        let mut mix = fold(&self.packet.src, self.packet.v6)
            ^ fold(&self.packet.dst, self.packet.v6).rotate_left(7)
            ^ self.packet.protocol as u32;
        mix ^= (self.transport.ports.src.half() as u32) << 16 | self.transport.ports.dst.half() as u32;
        // Fibonacci hashing: the high bits depend on all bits.
        mix.wrapping_mul(0x9e37_79b9)
    }
}

#[inline(always)]
fn fold(addr: &Addr, v6: bool) -> u32 {
    let [a, b, c, d] = addr.words;
    if v6 { a ^ b.rotate_left(5) ^ c.rotate_left(11) ^ d } else { d }
}
