//! Token buckets as a pure function of time.

/// Tokens are counted in thousandths, so that slow rates refill between frames.
const TOKEN: u64 = 1000;
/// Nothing refills for longer than this, which keeps the arithmetic far from overflow.
const LONGEST: u64 = 10_000_000_000;

/// Events per second that one interface may cause.
pub const EVENT_RATE: u32 = 100;
/// Events that one interface may cause in one burst.
pub const EVENT_BURST: u32 = 100;

/// A full bucket's tokens.
#[inline(always)]
#[must_use]
pub const fn full(burst: u32) -> u64 {
    burst as u64 * TOKEN
}

/// Refills a bucket for the time since its last use and takes one token, if there is one.
///
/// Two processors may do this at once to one bucket and let a frame too many through; that is cheaper than a lock.
///
/// ```
/// use tenet_forward::bucket::{full, take};
/// let (mut at, mut tokens) = (0, full(2));
/// assert!(take(&mut at, &mut tokens, 0, 1, 2) && take(&mut at, &mut tokens, 0, 1, 2));
/// assert!(!take(&mut at, &mut tokens, 0, 1, 2));
/// assert!(take(&mut at, &mut tokens, 1_000_000_000, 1, 2));
/// ```
#[inline(always)]
pub fn take(at: &mut u64, tokens: &mut u64, now: u64, rate: u32, burst: u32) -> bool {
    let passed = now.saturating_sub(*at);
    let passed = if passed > LONGEST { LONGEST } else { passed };
    // Nanoseconds times tokens per second, in thousandths: divided in two steps to keep small rates exact enough.
    let gained = (passed / 1000) * rate as u64 / 1000;
    let mut have = *tokens;
    if gained > 0 {
        // Time is taken over only with what it brought, or frequent looks would starve a slow bucket.
        *at = now;
        have += gained;
    }
    let limit = full(burst);
    if have > limit {
        have = limit;
    }
    let granted = have >= TOKEN;
    *tokens = if granted { have - TOKEN } else { have };
    granted
}
