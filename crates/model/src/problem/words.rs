//! Parts of the problems' sentences.

use crate::{Key, Phase};
use ipnet::IpNet;
use std::fmt;

/// `and 3 more`.
pub(super) struct More(pub(super) usize);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " and {} more", self.0) }
    }
}

/// `10.1.1.0/24 and fd00:1::/64`.
pub(super) struct Listed<'a>(pub(super) &'a [IpNet]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, prefix) in self.0.iter().enumerate() {
            write!(f, "{}{prefix}", if n == 0 { "" } else { " and " })?;
        }
        Ok(())
    }
}

/// How to get rid of a user.
pub(super) struct Remedy<'a>(pub(super) &'a Key);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Key::Migration(_) => "wait until that is done, or cancel it",
            Key::Port(_) => "detach or delete it first",
            Key::Tenant(_)
            | Key::Network(_)
            | Key::Subnet(_)
            | Key::Vm(_)
            | Key::Host(_)
            | Key::Site
            | Key::Route(..) => "delete that first",
        })
    }
}

/// The default gateway of a prefix.
pub(super) struct FirstOf<'a>(pub(super) &'a IpNet);

impl fmt::Display for FirstOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::default_gateway(self.0) {
            Some(first) => write!(f, "{first}"),
            None => f.write_str("an address inside"),
        }
    }
}

/// A phase, or none.
pub(super) struct PhaseName(pub(super) Option<Phase>);

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            None => "none",
            Some(Phase::Preparing) => "preparing",
            Some(Phase::Prepared) => "prepared",
            Some(Phase::Switched) => "switched",
        })
    }
}
