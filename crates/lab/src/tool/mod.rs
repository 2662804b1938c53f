//! What runs inside VMs: a responder that answers with its VM's name, and clients that measure.
//!
//! As tenants' addresses overlap, an answer alone proves nothing; only its content says who gave it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

mod probe;
mod respond;
mod stream;

pub use probe::{Probe, ProbeReport};
pub use respond::{ask, respond};
pub use stream::{Stream, StreamReport, Verdict};

/// The port on which every VM's responder listens, UDP and TCP.
pub const PORT: u16 = 7007;

/// The address that stands for all of its family.
const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}
