//! One clock for everything that is compared: the machine's, which QEMU stamps its events with, too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970.
pub type Micros = i64;

/// Now.
#[must_use]
pub fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Microseconds as milliseconds.
#[must_use]
pub fn millis(us: Micros) -> f64 {
    us as f64 / 1e3
}

/// Asks the kernel to run the calling thread before all others, so that the instrument is on time on a busy machine.
/// Where that is refused it runs like the rest.
pub fn first_served() {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: one live parameter block is handed over; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
}
