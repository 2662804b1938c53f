//! Geneve (RFC 8926 §3.4) and its options (§3.5).
//!
//! ```text
//!  0                     2              4                  7       8
//!  |ver|opt len|O|C|rsvd |protocol      |VNI               |reserved| options …
//!  |2   6       1 1 6    |0x6558        |24 bits           |        | opt len × 4 bytes
//!
//!  option:  |class 16|type 8|rsvd 3, length 5| data: length × 4 bytes
//! ```

use crate::{Be16, Be32, EtherType};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A Geneve header without its options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Geneve {
    /// Version, options' length, flags.
    pub start: Be16,
    /// Type of the payload.
    pub protocol: Be16,
    /// VNI and a reserved byte.
    pub vni: Be32,
}

impl Geneve {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// The frame is for the tunnel endpoint itself (O).
    pub const CONTROL: u16 = 0x0080;
    /// There are options that must be understood (C).
    pub const CRITICAL: u16 = 0x0040;
    /// Most options there can be: all of four bytes, as many as their length can say.
    pub const OPTIONS_MAX: u32 = 63;

    /// The header of a frame in a virtual subnet, without options.
    #[inline(always)]
    #[must_use]
    pub const fn new(vni: u32) -> Self {
        Self { start: Be16::new(0), protocol: EtherType::BRIDGED, vni: Be32::new(vni << 8) }
    }

    /// The version, of which only 0 is defined.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        (self.start.get() >> 14) as u8
    }

    /// Length of the options in bytes, at most 252.
    #[inline(always)]
    #[must_use]
    pub const fn options_len(&self) -> u32 {
        (self.start.get() as u32 >> 8 & 0x3f) * 4
    }

    /// Whether the payload is for the tunnel endpoint and must not be forwarded.
    #[inline(always)]
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.start.get() & Self::CONTROL != 0
    }

    /// Whether an Ethernet frame follows.
    #[inline(always)]
    #[must_use]
    pub fn is_bridged(&self) -> bool {
        self.protocol == EtherType::BRIDGED
    }

    /// The virtual subnet.
    #[inline(always)]
    #[must_use]
    pub const fn vni(&self) -> u32 {
        self.vni.get() >> 8
    }
}

/// The first four bytes of an option.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GeneveOption {
    /// Who defined the type.
    pub class: Be16,
    /// Type (high eight bits), and in the lowest five the length of the data in words.
    pub kind: Be16,
}

impl GeneveOption {
    /// Length in bytes, data apart.
    pub const LEN: u32 = 4;

    /// Whether whoever does not know the option must drop the frame.
    #[inline(always)]
    #[must_use]
    pub const fn is_critical(&self) -> bool {
        self.kind.get() & 0x8000 != 0
    }

    /// Length in bytes, data included: 4 to 128.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        Self::LEN + (self.kind.get() as u32 & 0x1f) * 4
    }

    /// Never: an option has at least its own head.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// What is wrong with a header's options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionsError {
    /// The lengths do not add up.
    Lengths,
    /// One must be understood and is not; we know none.
    Critical,
}

/// Walks `len` bytes of options, each of which `load` brings by its offset.
///
/// The whole list is looked at, so that lying lengths are found behind a critical option too.
///
/// # Errors
/// If the lengths do not add up, or an option is critical (RFC 8926 §3.5): we know none.
#[inline(always)]
pub fn walk_options(len: u32, mut load: impl FnMut(u32) -> Option<GeneveOption>) -> Result<(), OptionsError> {
    let mut at = 0;
    let mut critical = false;
    let mut left = Geneve::OPTIONS_MAX;
    while at < len && left > 0 {
        left -= 1;
        let Some(option) = load(at) else { return Err(OptionsError::Lengths) };
        critical |= option.is_critical();
        at += option.len();
    }
    if at != len {
        return Err(OptionsError::Lengths);
    }
    if critical { Err(OptionsError::Critical) } else { Ok(()) }
}

const _: () = assert!(core::mem::size_of::<Geneve>() == Geneve::LEN as usize);
const _: () = assert!(core::mem::size_of::<GeneveOption>() == GeneveOption::LEN as usize);

#[cfg(test)]
mod tests {
    use super::{Geneve, GeneveOption, OptionsError, walk_options};
    use zerocopy::{FromBytes, IntoBytes};

    fn walk(options: &[u8], len: usize) -> Result<(), OptionsError> {
        walk_options(len as u32, |at| {
            options.get(at as usize..).and_then(|o| GeneveOption::read_from_prefix(o).ok()).map(|(o, _)| o)
        })
    }

    #[test]
    fn encodes_as_drawn() {
        assert_eq!(Geneve::new(0x12_3456).as_bytes(), [0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
        let header = Geneve::read_from_bytes(&[0xff, 0xc0, 0x65, 0x58, 0, 0, 10, 0]);
        assert!(
            header
                .is_ok_and(|h| h.version() == 3 && h.options_len() == 252 && h.is_control() && h.vni() == 10)
        );
    }

    #[test]
    fn walks_options() {
        assert_eq!(walk(&[], 0), Ok(()));
        assert_eq!(walk(&[1, 2, 0x7f, 0], 4), Ok(()));
        // Reserved bits above the length are ignored.
        assert_eq!(walk(&[1, 2, 3, 0xe1, 0, 0, 0, 0, 1, 2, 4, 0], 12), Ok(()));
        let all = [0, 1, 2, 0].repeat(63);
        assert_eq!(walk(&all, 252), Ok(()));
    }

    #[test]
    fn refuses_lengths_that_lie() {
        // One option says more than there is, whatever follows in the frame.
        assert_eq!(walk(&[1, 2, 3, 2, 0, 0, 0, 0, 9, 9, 9, 9], 8), Err(OptionsError::Lengths));
        assert_eq!(walk(&[1, 2, 0x83, 31], 4), Err(OptionsError::Lengths));
        // The frame ends within the options.
        assert_eq!(walk(&[1, 2, 3, 0], 8), Err(OptionsError::Lengths));
    }

    #[test]
    fn refuses_critical_options() {
        // OVN's logical ports: class 0x0102, type 0x80.
        assert_eq!(walk(&[1, 2, 0x80, 1, 0, 1, 0, 2], 8), Err(OptionsError::Critical));
        assert_eq!(walk(&[1, 2, 0, 0, 1, 2, 0xff, 0], 8), Err(OptionsError::Critical));
    }
}
