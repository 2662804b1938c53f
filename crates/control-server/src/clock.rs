//! The only place that reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};
use tenet_control::Micros;

/// Microseconds since 1970 (UTC).
pub(crate) fn micros() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Milliseconds since 1970 (UTC).
pub(crate) fn ms() -> u64 {
    micros() / 1000
}

/// A random id (RFC 9562 §5.4): randomness is the shell's business, the pure crates take ids as arguments.
pub(crate) fn random_id() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}
