//! Headers as they stand on the wire, their checksums, and the tunnels' formats.
//!
//! Three kinds of things: layouts ([`Ethernet`], [`Ipv4`], [`Arp`], [`Gre`], …), which are plain
//! bytes with names and judge nothing; checks on them ([`Ipv4::fits`], [`Arp::is_ipv4`],
//! [`Gre::is_nvgre`]), which say what we accept; and [`parse`], which takes a whole frame apart for
//! people and tools. The same source runs in the kernel and in user space.
//!
//! All layouts have an alignment of two and an even size, because eBPF has no unaligned access: a
//! header on the stack is copied by halves and never byte by byte. From a slice of any alignment
//! they are read with `zerocopy::FromBytes::read_from_prefix`.
//!
//! This crate must never allocate, do I/O, or know what a header means for forwarding.
#![no_std]

mod arp;
mod be;
pub mod checksum;
mod ether;
mod geneve;
mod gre;
mod icmp;
mod icmp6;
mod ipv4;
mod ipv6;
mod nd;
pub mod parse;
mod stt;
mod tcp;
mod tunnel;
mod udp;
mod vxlan;

pub use arp::{Arp, ArpFrame};
pub use be::{Be16, Be32};
pub use ether::{EtherType, Ethernet, Mac};
pub use geneve::{Geneve, GeneveOption, OptionsError, walk_options};
pub use gre::{Gre, NVGRE_OVERHEAD};
pub use icmp::{Icmp, IcmpErrorFrame, QUOTE};
pub use icmp6::{Icmp6, Icmp6ErrorFrame, QUOTE6, QUOTE6_MORE, pseudo6};
pub use ipv4::{Ipv4, Ipv4Frame, Ports, ProtocolNumber};
pub use ipv6::{Ipv6, Ipv6Fragment, Ipv6Frame, Ipv6Halves};
pub use nd::{
    ALL_NODES, ALL_NODES_MAC, AdvertisementFrame, Ends, LinkOption, Neighbour, RouterAdvertisement,
    RouterFrame,
};
pub use stt::{STT_HEADERS, SttFault, SttHeader, SttSegment};
pub use tcp::Tcp;
pub use tunnel::{
    Envelope, GreOuter, GreOuter6, TUNNEL_OVERHEAD_MAX, TunnelFrame, TunnelHeader, UdpOuter, UdpOuter6,
    outer_ipv4, outer_ipv6, outer_protocol, outer_udp,
};
pub use udp::Udp;
pub use vxlan::Vxlan;
