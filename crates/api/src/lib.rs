//! What crosses a process border: the agents' protocol ([`agent`]), the REST types ([`rest`]), a typed
//! REST client ([`client`]), and the agent's local socket ([`local`]).
//!
//! Three things to know: [`agent`] is generated from `proto/agent.proto` and converts to and from the rows of
//! `compile`; [`rest`] is what people and tools send and get as JSON; [`client::Client`] speaks it over pinned TLS.
//! Must never hold domain rules: those are the model's.

pub mod agent;
pub mod client;
mod convert;
pub mod local;
pub mod rest;
mod tls;

pub use convert::{ConvertError, to_rows};
