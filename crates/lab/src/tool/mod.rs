//! What runs inside VMs: a responder that answers with its VM's name, and clients that measure.
//!
//! As tenants' addresses overlap, an answer alone proves nothing; only its content says who gave it.

mod measure;
mod probe;
mod remote;
mod respond;
mod serve;
mod stream;

pub use measure::ProbeReport;
pub use probe::Probe;
pub use respond::{ask, respond};
pub use serve::PORT;
pub use stream::{Stream, StreamReport, Verdict};
