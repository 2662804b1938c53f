//! To a tap by way of the hub.
//!
//! A kernel that takes our tunnel off a bundle of segments in place still believes that there is a tunnel,
//! and cuts the bundle up for devices that cannot segment tunnels: taps. It forgets the tunnel where it
//! takes one off itself. So the hub, a network namespace with one route, is given the frame in a tunnel
//! that the kernel can take off: Ethernet in IPv6 (SRv6 End.DX2, RFC 8986 §4.9), for [`HubFrame::SID`].

use crate::{FrameMut, Refused, UplinkWork};
use tenet_wire::{Be16, EtherType, Ethernet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Link header and IPv6 header of a frame on its way into the hub.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HubFrame {
    /// The outer link header, as it came.
    pub eth: Ethernet,
    /// Version, traffic class and flow label.
    pub start: [Be16; 2],
    /// Length of what follows.
    pub payload: Be16,
    /// Next header and hop limit.
    pub next: Be16,
    /// Source.
    pub src: [Be16; 8],
    /// Destination.
    pub dst: [Be16; 8],
}

const _: () = assert!(size_of::<HubFrame>() == HubFrame::LEN as usize);

impl HubFrame {
    /// Length in bytes.
    pub const LEN: u32 = 54;
    /// Where the hub's route leads to. Of the unique local addresses (RFC 4193), and never outside the hub.
    pub const SID: core::net::Ipv6Addr = core::net::Ipv6Addr::new(0xfd54, 0x656e, 0x6574, 0, 0, 0, 0, 1);
    /// Next header 143, Ethernet (RFC 8986 §10.1), and one hop to go.
    const ETHERNET_ONE_HOP: u16 = 143 << 8 | 1;

    #[inline(always)]
    fn new(eth: Ethernet, payload: u16) -> Self {
        let zero = Be16::new(0);
        let address = |last| {
            [Be16::new(0xfd54), Be16::new(0x656e), Be16::new(0x6574), zero, zero, zero, zero, Be16::new(last)]
        };
        Self {
            eth: Ethernet { ty: EtherType::IPV6, ..eth },
            start: [Be16::new(0x6000), zero],
            payload: Be16::new(payload),
            next: Be16::new(Self::ETHERNET_ONE_HOP),
            src: address(2),
            dst: address(1),
        }
    }
}

/// Length of the inner frame of one of `len` bytes, `outer` of which are the tunnel's, if an IPv6 header can say it.
#[inline(always)]
pub(crate) fn inner_len(len: u32, outer: u32) -> Option<u16> {
    let inner = len.wrapping_sub(outer);
    if inner <= u16::MAX as u32 { Some(inner as u16) } else { None }
}

/// Makes a tunnelled frame one for the hub.
#[inline(always)]
pub(crate) fn rewrap<F: FrameMut>(frame: &mut F, len: u16, work: &UplinkWork) -> Result<(), Refused> {
    frame.swap_tunnel(&work.shed)?;
    frame.store(0, &HubFrame::new(work.outer.eth, len))?;
    if !work.marked {
        return Ok(());
    }
    crate::edit::store_marked(frame, HubFrame::LEN + Ethernet::LEN, work)
}
