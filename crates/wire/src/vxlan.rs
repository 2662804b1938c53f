//! VXLAN (RFC 7348 §5).
//!
//! ```text
//!  0              2              4                  7       8
//!  |R R R R I R R R, reserved 24 |VNI               |reserved|
//!  |0x08          0              |24 bits           |0      |
//! ```

use crate::{Be16, Be32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A VXLAN header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vxlan {
    /// Flags (high eight bits) and the first reserved byte.
    pub flags: Be16,
    /// Reserved.
    pub reserved: Be16,
    /// VNI and the last reserved byte.
    pub vni: Be32,
}

impl Vxlan {
    /// Length in bytes.
    pub const LEN: u32 = 8;
    /// The I flag: the VNI is valid.
    pub const VALID: u16 = 0x0800;

    /// The header of a frame in a virtual subnet.
    #[inline(always)]
    #[must_use]
    pub const fn new(vni: u32) -> Self {
        Self { flags: Be16::new(Self::VALID), reserved: Be16::new(0), vni: Be32::new(vni << 8) }
    }

    /// Whether the I flag is set; all other bits are ignored on receipt.
    #[inline(always)]
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.flags.half() & Be16::new(Self::VALID).half() != 0
    }

    /// The virtual subnet.
    #[inline(always)]
    #[must_use]
    pub const fn vni(&self) -> u32 {
        self.vni.get() >> 8
    }
}

const _: () = assert!(core::mem::size_of::<Vxlan>() == Vxlan::LEN as usize);

#[cfg(test)]
mod tests {
    use super::Vxlan;
    use zerocopy::{FromBytes, IntoBytes};

    #[test]
    fn encodes_as_drawn() {
        assert_eq!(Vxlan::new(0x12_3456).as_bytes(), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn ignores_reserved_bits() {
        let header = Vxlan::read_from_bytes(&[0xff; 8]);
        assert!(header.is_ok_and(|h| h.is_valid() && h.vni() == 0xff_ffff));
        let header = Vxlan::read_from_bytes(&[0xf7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert!(header.is_ok_and(|h| !h.is_valid()));
    }
}
