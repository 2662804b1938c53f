//! libvirt's domains as Tenet sees them: reads and edits their XML, decides what a hook's call asks for, proposes a
//! site for domains that are there already.
//!
//! Three things to know: [`Domain`] (what is read), [`Mark`] (Tenet's own element in a domain's metadata) and
//! [`plan`] (a hook's call → what to ask of the host's agent).
//! Must never run a program, read a file or talk to libvirt: `tenet libvirt` does that.
//!
//! A domain is edited as text, at the places where its elements stand, so that what libvirt knows and we do not stays
//! as it is to the byte.

mod domain;
mod edit;
mod hook;
mod mark;
mod network;
mod propose;

pub use domain::{Domain, DomainError, Interface, Source};
pub use edit::{Nic, interface, set_interface, set_mark, set_target};
pub use hook::{Answer, Call, HookError, Plan, Prepare, Purpose, Wanted, plan, redirect};
pub use mark::{Mark, MarkError, MarkedPort};
pub use network::{Network, addresses};
pub use propose::{Found, Proposal, ProposedPort, Segment, propose};

/// Namespace of Tenet's element in a domain's metadata.
pub const NAMESPACE: &str = "urn:tenet:libvirt:1";
/// The prefix that it is written with; also the key that `virsh metadata` takes.
pub const PREFIX: &str = "tenet";

/// Whether a domain's XML can have an element of ours: a look at the bytes, for those that have nothing to do with us.
#[must_use]
pub fn mentions_us(xml: &[u8]) -> bool {
    let needle = NAMESPACE.as_bytes();
    xml.windows(needle.len()).any(|w| w == needle)
}
