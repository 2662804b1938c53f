//! Taps that agents make.

use crate::{Port, PortRef};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Hexadecimal digits in a tap's name; with the two letters before them it fits what a device may be called.
const DIGITS: usize = 11;

/// The name of the tap that an agent makes for a port: `tn` and the beginning of the SHA-256 of the port's full name.
///
/// It depends on nothing else, so that a VM's definition stays right when the VM moves to another host.
#[must_use]
pub fn tap_name(port: &PortRef) -> String {
    let mut name = String::from("tn");
    for byte in Sha256::digest(port.to_string()).iter().take(DIGITS.div_ceil(2)) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate("tn".len() + DIGITS);
    name
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
        assert_ne!(tap_name(&"contoso/sql/eth1".parse().unwrap()), "tn8492220cbcc");
    }
}
