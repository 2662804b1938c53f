//! The agent's core: what the kernel's tables of this host should hold, and what to do about it when they do not.
//!
//! Three types to know: [`HostCore`] (the state machine: inputs in, outputs out), [`plan::Plan`] (rows turned
//! into the content of the maps) and [`Output`] (what the shell must do).
//!
//! Pure: no I/O, no task, no clock. Time comes with the inputs. It must never empty the tables because it knows
//! nothing: without rows (a first start, or one without controller and cache) what is in the kernel stays.

pub mod back;
mod core;
pub mod drain;
mod event;
mod explain;
mod input;
mod message;
mod mtu;
mod needs;
mod part;
pub mod paths;
pub mod plan;
pub mod probe;
mod rewrite;
mod rise;

pub use crate::core::{Here, HostCore};
pub use crate::input::{AttachState, Input, Output, Role, Stats};
pub use back::rows_back;
pub use message::{Ack, EventReport, Message, NetworkProof, PortStatus, Proof};
pub use needs::{Needs, bears_on_hosts, needs};
pub use plan::{Device, DeviceKind, Plan, Uplink, plan};
pub use rise::{Alarm, Lately};
