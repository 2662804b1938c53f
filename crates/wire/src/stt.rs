//! STT, the stateless transport tunnel (draft-davie-stt-08): Ethernet in segments that look like TCP.
//!
//! ```text
//!  0     2     4     6     8            12          14    16      18    20
//!  |src  |7471 |total|offs.|packet id   |offset+flag|window|chksum|urgent|     every segment
//!  0       1       2       3     4     6     8            12            16    18
//!  |version|flags  |L4 offs|rsvd.|MSS  |VLAN |context id, high and low   |pad  |   the first one
//! ```
//! "Sequence number" is the length of the whole STT frame and the place of this segment's bytes in it; the
//! "acknowledgement" numbers the frame. Both lengths count the STT header and not the TCP-like one. To NICs it is
//! TCP: they cut large frames into segments, join them again and check the checksum.

use crate::{Be16, Be32, Ethernet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes that STT puts before an inner frame, outer network header and inner link header apart.
pub const STT_HEADERS: u32 = SttSegment::LEN + SttHeader::LEN;

/// The TCP-like header of every segment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SttSegment {
    /// Number of the flow, which spreads flows over equal paths.
    pub src: Be16,
    /// [`Self::PORT`].
    pub dst: Be16,
    /// Length of the STT frame: STT header and inner frame.
    pub total: Be16,
    /// Where in the STT frame this segment's bytes belong.
    pub offset: Be16,
    /// Number of the STT frame, the same in all its segments.
    pub id: Be32,
    /// Header length (high four bits) and TCP's flags.
    pub flags: Be16,
    /// TCP's window, of no meaning.
    pub window: Be16,
    /// TCP's checksum, over the outer pseudo header as well.
    pub checksum: Be16,
    /// TCP's urgent pointer, of no meaning.
    pub urgent: Be16,
}

impl SttSegment {
    /// Length in bytes.
    pub const LEN: u32 = 20;
    /// The destination port (IANA).
    pub const PORT: Be16 = Be16::new(7471);
    /// Where the checksum stands in the header.
    pub const CHECKSUM_AT: u32 = 16;
    /// A header of five words, ACK and PSH.
    const PLAIN: u16 = 0x5018;
    /// Header length, and all flags but PSH, which is on the last segment only when a NIC cut the frame, and CWR, which
    /// is on the first only, and ECE.
    const FIXED: u16 = 0xff37;

    /// The header of a frame that is not cut yet, without checksum.
    #[inline(always)]
    #[must_use]
    pub const fn whole(flow: u16, total: u16, id: u32) -> Self {
        Self {
            src: Be16::new(flow),
            dst: Self::PORT,
            total: Be16::new(total),
            offset: Be16::new(0),
            id: Be32::new(id),
            flags: Be16::new(Self::PLAIN),
            window: Be16::new(0xffff),
            checksum: Be16::new(0),
            urgent: Be16::new(0),
        }
    }

    /// Whether this is STT: to its port, and of a connection that is neither opened, closed nor reset.
    #[inline(always)]
    #[must_use]
    pub fn is_stt(&self) -> bool {
        self.dst == Self::PORT && self.flags.get() & Self::FIXED == Self::PLAIN & Self::FIXED
    }

    /// Whether so many bytes have a place in the frame at all.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, bytes: u32) -> bool {
        let (total, offset) = (self.total.get() as u32, self.offset.get() as u32);
        bytes > 0 && total > SttHeader::LEN && offset < total && bytes <= total - offset
    }

    /// The ten halves of the header.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self) -> [u16; 10] {
        zerocopy::transmute!(self)
    }
}

/// The header that an STT frame starts with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SttHeader {
    /// 0.
    pub version: u8,
    /// Set of the `SttHeader::*` flags.
    pub flags: u8,
    /// Where the inner transport header starts in the inner frame, if its checksum is still to be finished; else 0.
    pub l4_offset: u8,
    /// Zero.
    pub reserved: u8,
    /// Payload bytes of one inner segment, if the inner frame stands for several; else 0.
    pub mss: Be16,
    /// The inner frame's tag: priority (three bits), presence (one), number (twelve).
    pub vlan: Be16,
    /// What the frame belongs to, high half; ours is zero.
    pub context_high: Be32,
    /// Low half: the virtual subnet.
    pub context_low: Be32,
    /// Aligns the inner network header.
    pub pad: Be16,
}

/// What is wrong with an STT header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SttFault {
    /// A version that nobody defined.
    Version,
    /// Flags, L4 offset or MSS contradict each other, or the inner frame.
    Fields,
    /// The inner frame is tagged.
    Vlan,
    /// The context is no virtual subnet's number.
    Context,
}

impl SttHeader {
    /// Length in bytes, the padding included.
    pub const LEN: u32 = 18;
    /// The sender has checked the inner transport checksum.
    pub const VERIFIED: u8 = 1;
    /// The inner transport checksum is still to be finished: it holds the sum of its pseudo header.
    pub const PARTIAL: u8 = 2;
    /// The inner packet is IPv4.
    pub const IPV4: u8 = 4;
    /// The inner transport is TCP.
    pub const TCP: u8 = 8;
    const KNOWN: u8 = Self::VERIFIED | Self::PARTIAL | Self::IPV4 | Self::TCP;
    const VLAN_PRESENT: u16 = 0x1000;

    /// The virtual subnet; of meaning if [`Self::fault`] finds none.
    #[inline(always)]
    #[must_use]
    pub const fn vsid(&self) -> u32 {
        self.context_low.get()
    }

    /// Whether the inner transport checksum is still to be finished.
    #[inline(always)]
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.flags & Self::PARTIAL != 0
    }

    /// Whether nobody has to look at the inner transport checksum.
    #[inline(always)]
    #[must_use]
    pub const fn is_trusted(&self) -> bool {
        self.flags & (Self::PARTIAL | Self::VERIFIED) != 0
    }

    /// The first rule that the header breaks by itself.
    #[inline(always)]
    #[must_use]
    pub const fn fault(&self) -> Option<SttFault> {
        if self.version != 0 {
            return Some(SttFault::Version);
        }
        if self.flags & !Self::KNOWN != 0 {
            return Some(SttFault::Fields);
        }
        if self.is_partial() {
            let network = if self.flags & Self::IPV4 != 0 { 20 } else { 40 };
            if (self.l4_offset as u32) < Ethernet::LEN + network {
                return Some(SttFault::Fields);
            }
            // Only TCP has segments of this size.
            if self.mss.half() != 0 && self.flags & Self::TCP == 0 {
                return Some(SttFault::Fields);
            }
        } else if self.l4_offset != 0 || self.mss.half() != 0 {
            return Some(SttFault::Fields);
        }
        if self.vlan.get() & Self::VLAN_PRESENT != 0 {
            return Some(SttFault::Vlan);
        }
        if self.context_high.get() != 0 || self.context_low.get() > 0xff_ffff {
            return Some(SttFault::Context);
        }
        None
    }

    /// The nine halves of the header.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self) -> [u16; 9] {
        zerocopy::transmute!(self)
    }
}

const _: () = assert!(core::mem::size_of::<SttSegment>() == SttSegment::LEN as usize);
const _: () = assert!(core::mem::size_of::<SttHeader>() == SttHeader::LEN as usize);
const _: () = assert!(core::mem::align_of::<SttHeader>() == 2);
