//! How long to wait on machines that are slower than those that the limits were chosen for.

use std::sync::LazyLock;
use std::time::Duration;

/// The variable with the factor.
pub const VARIABLE: &str = "TENET_PATIENCE";

/// As many times `base` as the variable `TENET_PATIENCE` says (1 without it, 1000 at most): an emulated machine takes
/// tens of times as long for everything, and is not broken for that.
#[must_use]
pub fn patience(base: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| factor(std::env::var(VARIABLE).ok().as_deref()));
    base.saturating_mul(*FACTOR)
}

fn factor(text: Option<&str>) -> u32 {
    text.and_then(|t| t.trim().parse().ok()).unwrap_or(1).clamp(1, 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_factor_changes_nothing() {
        for (text, is) in [(None, 1), (Some(""), 1), (Some("x"), 1), (Some("0"), 1), (Some("-3"), 1)] {
            assert_eq!(factor(text), is, "{text:?}");
        }
        assert_eq!((factor(Some(" 6\n")), factor(Some("99999"))), (6, 1000));
    }
}
