//! The controller's core: which host is told what and when, and how a migration goes on. Sans I/O.
//!
//! Three types to know: [`Control`] (the state machine), [`Output`] (what its shell must do) and [`Message`] (what a
//! session's host is sent next). The shell feeds it the store's changes in order of their revisions, what the sessions
//! say, and the time; it must call [`Control::tick`] a few times a second. Must never do I/O or read a clock.
//!
//! A session has one message under way at a time. What changes meanwhile is gathered row by row, so that a slow host
//! costs no more memory than its state and gets one delta for all that it missed.
//!
//! Order of a change: a newly attached port is held ([`tenet_compile::PortState::Blocked`]) on its own host until the
//! connected hosts of its network have its records, or [`HOLD`] has passed. A removed port is told to all at once:
//! whichever host is first, the frames on their way to it are lost with it.

pub mod claim;
mod control;
mod happening;
mod measured;
mod migration;
mod paths;
mod plan;
mod session;
mod status;

pub use control::{Control, LEAVE, NotReady, Order, Output, Refused, Switching, Word};
pub use happening::Happening;
pub use measured::{Measured, OffloadTest, PathReport, PathState, ReceiveWay, UdpTunnel, UplinkReport};
pub use migration::{AWAY, DISCONNECTED, DOUBT, Frames, PREPARE, Progress, RECEIVE, SETTLE, STALL, Stage};
pub use paths::{Finding, Path, Paths};
pub use session::{Ack, Hello, Message, NetworkProof, PortReport, Proof, SessionId};
pub use status::{HostReport, NetworkReport, state_name};

/// A time: microseconds since 1970 (UTC).
pub type Micros = u64;

/// Longest hold of a newly attached port.
pub const HOLD: Micros = 2_000_000;
/// A host that does not acknowledge for this long has its session closed.
pub const HUNG: Micros = 30_000_000;
/// After a refused message the host's full state is sent again after this time.
pub const RETRY: Micros = 5_000_000;
/// A connected host whose agent has read nothing back for this long is not proven any more: it may hang.
pub const STALE: Micros = 30_000_000;
