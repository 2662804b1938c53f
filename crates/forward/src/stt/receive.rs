//! In: what has come, and a whole frame without its headers.

use super::{FLIP, addresses, pseudo_alone, pseudo_sum, send::lco_sum};
use crate::{
    Frame, FrameMut, Refused,
    packet::{L3, Packet},
};
use tenet_wire::{
    EtherType, Ethernet, ProtocolNumber, STT_HEADERS, SttFault, SttHeader, SttSegment, checksum,
};

/// How much of an STT frame has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Nothing: it is something else.
    #[default]
    Foreign,
    /// All of it.
    Whole,
    /// Its beginning, with all headers of the inner frame.
    First,
    /// A part without headers, or with too few.
    Later,
    /// Nothing that makes sense.
    Broken,
}

/// An STT segment, or several that the kernel has joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrival {
    /// The TCP-like header; of several the first.
    pub segment: SttSegment,
    /// The STT header, except of a later part.
    pub header: SttHeader,
    /// Bytes of the STT frame that are here.
    pub have: u32,
    /// How much of the frame that is.
    pub kind: Kind,
}

/// What the first part must hold: all headers of an inner TCP frame without options.
const FIRST_AT_LEAST: u32 = SttHeader::LEN + Ethernet::LEN + 40 + 20;

impl Arrival {
    /// Looks at what stands at `at`, behind an outer network header that speaks of `len` bytes of TCP.
    #[inline(always)]
    pub fn look<F: Frame>(&mut self, frame: &F, at: u32, len: u32) -> Kind {
        self.kind = Kind::Foreign;
        if frame.load(at, &mut self.segment).is_err() || !self.segment.is_stt() {
            return Kind::Foreign;
        }
        self.have = len.wrapping_sub(SttSegment::LEN);
        let total = self.segment.total.get() as u32;
        self.kind = if len <= SttSegment::LEN || !self.segment.holds(self.have) {
            Kind::Broken
        } else if self.segment.offset.half() != 0 || self.have != total && self.have < FIRST_AT_LEAST {
            Kind::Later
        } else if frame.load(at + SttSegment::LEN, &mut self.header).is_err() {
            Kind::Broken
        } else if self.have == total {
            Kind::Whole
        } else {
            Kind::First
        };
        self.kind
    }

    /// Whether the inner frame is one large TCP segment, so that a part of it can become a smaller one.
    #[inline(always)]
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        const FLAGS: u8 = SttHeader::PARTIAL | SttHeader::TCP;
        self.header.flags & FLAGS == FLAGS && self.header.mss.half() != 0
    }

    /// Whether the kernel's idea of the segments, if it has any, is the sender's.
    #[inline(always)]
    #[must_use]
    pub const fn agrees_on(&self, gso_size: u32) -> bool {
        gso_size == 0 || self.is_stream() && self.header.mss.get() as u32 == gso_size
    }

    /// The first rule that the header breaks, the inner link header's type known.
    #[inline(always)]
    #[must_use]
    pub fn fault(&self, eth: &Ethernet) -> Option<SttFault> {
        if let Some(fault) = self.header.fault() {
            return Some(fault);
        }
        if !self.header.is_partial() {
            return None;
        }
        // The checksum's place is in the frame.
        let end = self.header.l4_offset as u32 + if self.header.flags & SttHeader::TCP != 0 { 18 } else { 8 };
        if SttHeader::LEN + end > self.segment.total.get() as u32 {
            return Some(SttFault::Fields);
        }
        let v4 = self.header.flags & SttHeader::IPV4 != 0;
        let ty = if v4 { EtherType::IPV4 } else { EtherType::IPV6 };
        if eth.ty == ty { None } else { Some(SttFault::Fields) }
    }
}

/// Whether the checksum of the segment at `at` is right, of which nobody has said so. `outer` is the sum of the outer
/// addresses.
///
/// Right is also the sum of the pseudo header alone: a kernel that shares its memory with the sender's, as between two
/// namespaces, leaves it to whoever needs it. And where the inner transport vouches for the payload, the headers are
/// enough: their sum says whether the whole is right if the inner checksum is, which the VM will look at.
///
/// # Errors
/// If the frame ends before the segment does.
#[inline(always)]
pub fn checksum_is_right<F: Frame>(
    frame: &F,
    arrival: &Arrival,
    outer: u32,
    at: u32,
) -> Result<bool, Refused> {
    let len = SttSegment::LEN + arrival.have;
    let pseudo = pseudo_sum(outer, ProtocolNumber::TCP, len);
    if arrival.segment.checksum.half() == pseudo_alone(outer, len) {
        return Ok(true);
    }
    if matches!(arrival.kind, Kind::Whole) && !arrival.header.is_partial() {
        let (mut eth, mut l3, mut packet) = (Ethernet::default(), L3::default(), Packet::default());
        let inner_at = at + STT_HEADERS;
        frame.load(inner_at, &mut eth)?;
        let ip_at = inner_at + Ethernet::LEN;
        let end = at + len;
        if (eth.ty == EtherType::IPV4 || eth.ty == EtherType::IPV6)
            && Packet::load(frame, ip_at, end, eth.ty, &mut l3, &mut packet).is_ok()
            && !packet.fragment
            && (packet.protocol == ProtocolNumber::TCP || packet.protocol == ProtocolNumber::UDP)
            && packet.len + ip_at == end
        {
            let halves: [u16; 7] = zerocopy::transmute!(eth);
            let ours = checksum::sum(&arrival.segment.halves())
                + checksum::sum(&arrival.header.halves())
                + checksum::sum(&halves);
            let inner = lco_sum(frame, ip_at, &l3, &packet)?;
            if checksum::finish(pseudo + ours + inner as u32) == 0 {
                return Ok(true);
            }
        }
    }
    let sum = frame.sum(at, len)?;
    Ok(checksum::finish(pseudo + sum as u32) == 0)
}

/// Takes the outer headers off: link header apart, the frame is the inner one then.
#[inline(always)]
pub(super) fn strip<F: FrameMut>(
    frame: &mut F,
    outer_v6: bool,
    eth: &Ethernet,
    trusted: bool,
) -> Result<(), Refused> {
    let mut less = if outer_v6 { 40 } else { 20 } + STT_HEADERS + Ethernet::LEN;
    if eth.ty == EtherType::IPV6 && !outer_v6 {
        frame.other_family(true)?;
        less += FLIP;
    } else if eth.ty != EtherType::IPV6 && outer_v6 {
        // What is no IP passes for IPv4, which may be shorter.
        frame.other_family(false)?;
        less -= FLIP;
    }
    frame.room(-(less as i32), trusted)?;
    frame.store(0, eth)
}

/// Takes the headers off a whole frame; the congestion mark is the caller's business.
///
/// A large frame's checksum is left to the kernel, which fills it in, or in part, where the frame goes next. For a small
/// one nobody would.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn decapsulate<F: FrameMut>(
    frame: &mut F,
    arrival: &Arrival,
    outer_v6: bool,
    eth: &Ethernet,
    gso_size: u32,
) -> Result<(), Refused> {
    let partial = arrival.header.is_partial();
    let verified = arrival.header.flags & SttHeader::VERIFIED != 0;
    strip(frame, outer_v6, eth, verified && !partial)?;
    if !partial || gso_size != 0 {
        return Ok(());
    }
    let start = arrival.header.l4_offset as u32;
    let len = arrival.have - SttHeader::LEN;
    let tcp = arrival.header.flags & SttHeader::TCP != 0;
    let at = start + if tcp { 16 } else { 6 };
    if at + 2 > len {
        return Err(Refused);
    }
    // The sum of the pseudo header stands in the checksum's place and is added up with the rest.
    let sum = frame.sum(start, len - start)?;
    let check = checksum::finish(sum as u32);
    frame.store(at, &if check == 0 && !tcp { 0xffff } else { check })
}

/// The sum of the outer addresses.
#[inline(always)]
#[must_use]
pub fn outer_addresses(l3: &L3, v6: bool) -> u32 {
    addresses(l3, v6)
}
