//! The Internet checksum (RFC 1071) and its repair after a change (RFC 1624).
//!
//! Sums run over halves as they lie in memory: one's complement sums do not depend on the byte order.

/// Adds up halves; room for 65,536 of them.
#[inline(always)]
#[must_use]
pub fn sum<const N: usize>(halves: &[u16; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += halves[i] as u32;
        i += 1;
    }
    sum
}

/// Adds up bytes of any number and alignment, for user space.
#[must_use]
pub fn sum_bytes(bytes: &[u8]) -> u32 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_ne_bytes([pair[0], low]));
    }
    while sum > u64::from(u32::MAX) {
        sum = (sum & 0xffff_ffff) + (sum >> 32);
    }
    sum as u32
}

/// The checksum of what was added up.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// What was added up, as a one's complement sum of sixteen bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum after one half of what it covers changed: `HC' = ~(~HC + ~m + m')` (RFC 1624 §3, eqn. 3).
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish((!checksum as u32 & 0xffff) + (!old as u32 & 0xffff) + new as u32)
}

/// The difference that changed halves make to a sum: for `FrameMut::mend_l4` of `tenet-forward`. Differences of several
/// changes may be added with [`add`].
#[inline(always)]
#[must_use]
pub fn difference<const N: usize>(from: &[u16; N], to: &[u16; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += (!from[i] as u32 & 0xffff) + to[i] as u32;
        i += 1;
    }
    sum
}

/// Adds two sums, the carry brought round.
#[inline(always)]
#[must_use]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u32
}

/// The checksum after what it covers changed by a [`difference`].
#[inline(always)]
#[must_use]
pub const fn mend(checksum: u16, difference: u32) -> u16 {
    finish(add(difference, !checksum as u32 & 0xffff))
}
