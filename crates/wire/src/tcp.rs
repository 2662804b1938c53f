//! TCP (RFC 9293), as far as the decision looks at it.
//!
//! ```text
//!  0      2      4         8         12           14      16        18      20
//!  |source|dest. |sequence |acknow-  |data offset |window |checksum |urgent |options …
//!  |port  |port  |number   |ledged   |and flags   |       |         |       |
//! ```

use crate::{Be16, Be32, Ports};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tcp {
    /// Source and destination port.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: Be32,
    /// Acknowledgement number.
    pub acknowledged: Be32,
    /// Header length in words (high four bits) and flags (low nine).
    pub offset_flags: Be16,
    /// Receive window.
    pub window: Be16,
    /// One's complement of the sum over pseudo header, header and payload.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

impl Tcp {
    /// Length in bytes, options apart.
    pub const LEN: u32 = 20;
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 16;
    /// Flag in [`Self::offset_flags`]: opens a connection.
    pub const SYN: u16 = 2;
    /// Option kind: end of the list.
    pub const OPTION_END: u8 = 0;
    /// Option kind: one byte of padding.
    pub const OPTION_NOTHING: u8 = 1;
    /// Option kind: maximum segment size, four bytes (RFC 9293 §3.7.1).
    pub const OPTION_MSS: u8 = 2;
    /// Length of [`Self::OPTION_MSS`].
    pub const MSS_LEN: u8 = 4;

    /// Length of a header with its options, as [`Self::offset_flags`] claims.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(offset_flags: Be16) -> u32 {
        (offset_flags.get() >> 12) as u32 * 4
    }

    /// Whether these flags open a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(offset_flags: Be16) -> bool {
        offset_flags.get() & Self::SYN != 0
    }
}

const _: () = assert!(core::mem::size_of::<Tcp>() == Tcp::LEN as usize);
