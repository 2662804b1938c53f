//! What NVGRE, VXLAN and Geneve have in common: eight bytes of their own, an identifier of 24 bits at the same place.
//!
//! ```text
//!  outer Ethernet | outer IPv4 or IPv6 | GRE: nothing, else UDP 8 | tunnel header 8 | inner Ethernet | payload
//!
//!  0              2              4                  7          8
//!  NVGRE   flags  |0x6558        |VSID              |FlowID    |   RFC 7637 §3.2
//!  VXLAN   flags  |reserved      |VNI               |reserved  |   RFC 7348 §5
//!  Geneve  lengths|0x6558        |VNI               |reserved  |   RFC 8926 §3.4, options follow
//! ```

use crate::{
    Be16, Be32, Ethernet, Geneve, Gre, Ipv4, Ipv4Frame, Ipv6, Ipv6Frame, Ipv6Halves, ProtocolNumber, Udp,
    Vxlan,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A tunnel header of any of the three kinds; the methods say which kind's rules they apply.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TunnelHeader {
    /// Flags, version, lengths: the kind's own.
    pub start: Be16,
    /// Type of the payload where the kind has it.
    pub protocol: Be16,
    /// Virtual subnet (high 24 bits) and a byte of the kind's own.
    pub id: Be32,
}

impl TunnelHeader {
    /// Length in bytes.
    pub const LEN: u32 = 8;

    /// The virtual subnet, whatever the kind calls it.
    #[inline(always)]
    #[must_use]
    pub const fn vsid(&self) -> u32 {
        self.id.get() >> 8
    }

    /// As NVGRE's.
    #[inline(always)]
    #[must_use]
    pub const fn gre(self) -> Gre {
        zerocopy::transmute!(self)
    }

    /// As VXLAN's.
    #[inline(always)]
    #[must_use]
    pub const fn vxlan(self) -> Vxlan {
        zerocopy::transmute!(self)
    }

    /// As Geneve's.
    #[inline(always)]
    #[must_use]
    pub const fn geneve(self) -> Geneve {
        zerocopy::transmute!(self)
    }
}

impl From<Gre> for TunnelHeader {
    #[inline(always)]
    fn from(header: Gre) -> Self {
        zerocopy::transmute!(header)
    }
}

impl From<Vxlan> for TunnelHeader {
    #[inline(always)]
    fn from(header: Vxlan) -> Self {
        zerocopy::transmute!(header)
    }
}

impl From<Geneve> for TunnelHeader {
    #[inline(always)]
    fn from(header: Geneve) -> Self {
        zerocopy::transmute!(header)
    }
}

/// Which headers stand between the outer link header and the tunnel header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Envelope {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// UDP follows: VXLAN and Geneve; else GRE.
    pub udp: bool,
}

impl Envelope {
    /// From the outer link header to the tunnel header.
    #[inline(always)]
    #[must_use]
    pub const fn tunnel_at(self) -> u32 {
        let network = if self.v6 { Ipv6Frame::LEN } else { Ipv4Frame::LEN };
        if self.udp { network + Udp::LEN } else { network }
    }

    /// All that a sender puts before an inner frame, in bytes: 42 to 70, without options.
    #[inline(always)]
    #[must_use]
    pub const fn overhead(self) -> u32 {
        self.tunnel_at() + TunnelHeader::LEN
    }
}

/// The largest [`Envelope::overhead`].
pub const TUNNEL_OVERHEAD_MAX: u32 = Envelope { v6: true, udp: true }.overhead();

/// What a receiver looks at behind the outer headers: tunnel header, inner link and network header.
///
/// With Geneve's options the inner headers stand further back.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TunnelFrame {
    /// Tunnel header.
    pub header: TunnelHeader,
    /// Inner link header, and network header if it is IPv4; else the first twenty bytes of what follows.
    pub inner: Ipv4Frame,
}

impl TunnelFrame {
    /// Length in bytes.
    pub const LEN: u32 = TunnelHeader::LEN + Ipv4Frame::LEN;
}

/// Declares what a sender puts before an inner frame, with the inner link header, which moves.
macro_rules! outer {
    ($($(#[$m:meta])* $n:ident = $len:literal { $($f:ident: $t:ty = $doc:literal,)* })*) => { $(
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $n {
            /// Outer link header, filled in by whoever knows the neighbour.
            pub eth: Ethernet,
            $(#[doc = $doc] pub $f: $t,)*
            /// Tunnel header.
            pub tunnel: TunnelHeader,
            /// Inner link header.
            pub inner: Ethernet,
        }
        impl $n {
            /// Length in bytes.
            pub const LEN: u32 = $len;
        }
        const _: () = assert!(core::mem::size_of::<$n>() == $len);
    )* };
}

outer! {
    /// NVGRE in IPv4.
    GreOuter = 56 { ip: Ipv4 = "Outer network header.", }
    /// NVGRE in IPv6.
    GreOuter6 = 76 { ip: Ipv6 = "Outer network header.", }
    /// VXLAN or Geneve in IPv4.
    UdpOuter = 64 { ip: Ipv4 = "Outer network header.", udp: Udp = "Outer transport header.", }
    /// VXLAN or Geneve in IPv6.
    UdpOuter6 = 84 { ip: Ipv6 = "Outer network header.", udp: Udp = "Outer transport header.", }
}

/// Hop limit of outer headers: a life of its own (the pipe model of RFC 2983 and RFC 8926 §4.4.2).
const HOPS: u8 = 64;

/// Outer IPv4 header of a tunnelled frame: never fragmented (RFC 7637 §4.4, RFC 7348 §4.3), the DSCP its own
/// (RFC 2983 §3), and of the inner header only the ECN bits (RFC 6040 §4.1, normal mode).
#[inline(always)]
#[must_use]
pub fn outer_ipv4(src: Be32, dst: Be32, protocol: u8, total_len: u16, ecn: u8) -> Ipv4 {
    Ipv4 {
        version_ihl: Ipv4::PLAIN,
        tos: ecn & Ipv4::ECN,
        total_len: Be16::new(total_len),
        id: Be16::new(0),
        fragment: Be16::new(Ipv4::DONT_FRAGMENT),
        ttl: HOPS,
        protocol,
        checksum: Be16::new(0),
        src,
        dst,
    }
    .with_checksum()
}

/// Outer IPv6 header of a tunnelled frame. The flow label spreads flows over equal paths, as routers may not look
/// behind it (RFC 6438 §3).
#[inline(always)]
#[must_use]
pub const fn outer_ipv6(
    src: Ipv6Halves,
    dst: Ipv6Halves,
    next: u8,
    payload_len: u16,
    ecn: u8,
    flow: u32,
) -> Ipv6 {
    const LABEL: u32 = 0x000f_ffff;
    let start = 6 << 28 | ((ecn & Ipv4::ECN) as u32) << 20 | flow & LABEL;
    Ipv6 {
        start: Be16::new((start >> 16) as u16),
        flow: Be16::new(start as u16),
        payload_len: Be16::new(payload_len),
        next,
        hop_limit: HOPS,
        src,
        dst,
    }
}

/// UDP header of a tunnelled frame. The source port spreads flows over equal paths (RFC 7348 §5, RFC 8926 §3.3) and is
/// one of the dynamic ports (RFC 6335 §6): 14 bits of the flow's hash. There is no checksum in either family
/// (RFC 7348 §5; over IPv6 by RFC 6935 §5, as the inner packet has its own and receivers check the tunnel's peers).
#[inline(always)]
#[must_use]
pub const fn outer_udp(port: u16, len: u16, flow: u32) -> Udp {
    Udp {
        src: Be16::new(0xc000 | (flow >> 18) as u16),
        dst: Be16::new(port),
        len: Be16::new(len),
        checksum: Be16::new(0),
    }
}

/// Outer protocol or next header of a method.
#[inline(always)]
#[must_use]
pub const fn outer_protocol(udp: bool) -> u8 {
    if udp { ProtocolNumber::UDP } else { ProtocolNumber::GRE }
}

const _: () = assert!(core::mem::size_of::<TunnelHeader>() == TunnelHeader::LEN as usize);
const _: () = assert!(core::mem::size_of::<TunnelFrame>() == TunnelFrame::LEN as usize);
const _: () = assert!(core::mem::align_of::<UdpOuter6>() == 2);
