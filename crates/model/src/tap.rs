//! Taps that agents make.

use crate::{Port, PortRef};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// In front of a tap's name.
const PREFIX: &str = "tn";
/// Hexadecimal digits in a tap's name; with the two letters before them it fits what a device may be called.
const DIGITS: usize = 11;

/// The name of the tap that an agent makes for a port: `tn` and the beginning of the SHA-256 of the port's full name.
///
/// It depends on nothing else, so that a VM's definition stays right when the VM moves to another host.
#[must_use]
pub fn tap_name(port: &PortRef) -> String {
    let mut name = String::from(PREFIX);
    for byte in Sha256::digest(port.to_string()).iter().take(DIGITS.div_ceil(2)) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(PREFIX.len() + DIGITS);
    name
}

/// Whether a device has the form of the names that [`tap_name`] gives.
#[must_use]
pub fn is_tap_name(device: &str) -> bool {
    let hexadecimal = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    device.strip_prefix(PREFIX).is_some_and(|hex| hex.len() == DIGITS && hex.bytes().all(hexadecimal))
}

impl Port {
    /// Whether this device is one that the agent makes for the port, on the port's own host or where its VM moves.
    #[must_use]
    pub fn tap_at(&self, device: &str) -> bool {
        self.tap && device == tap_name(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taps_name_is_the_same_for_ever() {
        // printf contoso/sql/eth0 | sha256sum
        assert_eq!(tap_name(&"contoso/sql/eth0".parse().unwrap()), "tn8492220cbcc");
        assert!(is_tap_name("tn8492220cbcc"));
        for other in ["", "tn", "tn8492220cbc", "tn8492220cbccc", "tn8492220cbcC", "vn8492220cbcc"] {
            assert!(!is_tap_name(other), "{other}");
        }
        assert_ne!(tap_name(&"contoso/sql/eth1".parse().unwrap()), "tn8492220cbcc");
    }
}
