//! Big-endian numbers at an alignment of two.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16-bit number in wire order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Be16(u16);

impl Be16 {
    /// Puts a number into wire order.
    #[inline(always)]
    #[must_use]
    pub const fn new(n: u16) -> Self {
        Self(n.to_be())
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The half that the two wire bytes form in memory, which is what Internet checksums add up.
    #[inline(always)]
    #[must_use]
    pub const fn half(self) -> u16 {
        self.0
    }

    /// Takes two wire bytes as the half they form in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_half(half: u16) -> Self {
        Self(half)
    }
}

/// A 32-bit number in wire order; its alignment is that of a half.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Be32([u16; 2]);

impl Be32 {
    /// Puts a number into wire order.
    #[inline(always)]
    #[must_use]
    pub const fn new(n: u32) -> Self {
        Self::from_word(n.to_be())
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        u32::from_be(self.word())
    }

    /// Takes four wire bytes as the word they form in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self(zerocopy::transmute!(word))
    }

    /// The word that the four wire bytes form in memory.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        zerocopy::transmute!(self.0)
    }

    /// The two halves that the four wire bytes form in memory.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self) -> [u16; 2] {
        self.0
    }

    /// Takes the four wire bytes.
    #[must_use]
    pub const fn from_octets(o: [u8; 4]) -> Self {
        Self::from_word(u32::from_ne_bytes(o))
    }

    /// The four wire bytes.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.word().to_ne_bytes()
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#06x}", self.get())
    }
}

impl core::fmt::Debug for Be32 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let o = self.octets();
        write!(f, "{}.{}.{}.{}", o[0], o[1], o[2], o[3])
    }
}
