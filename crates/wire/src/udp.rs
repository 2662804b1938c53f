//! UDP (RFC 768).

use crate::Be16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A UDP header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Udp {
    /// Source port.
    pub src: Be16,
    /// Destination port.
    pub dst: Be16,
    /// Length of header and payload.
    pub len: Be16,
    /// One's complement of the sum over pseudo header, header and payload; 0: none.
    pub checksum: Be16,
}

impl Udp {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 6;
}

const _: () = assert!(core::mem::size_of::<Udp>() == Udp::LEN as usize);
