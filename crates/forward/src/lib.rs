//! What happens to a frame.
//!
//! [`port_ingress`] judges what a VM sends, [`uplink_ingress`] what comes from the provider network.
//! Both read a [`Frame`] and [`Tables`] and return a [`Verdict`]; the headers that the verdict changes
//! are left in a work sheet ([`PortWork`], [`UplinkWork`]). [`edit`] then turns frame and verdict into
//! an [`Action`], which is one call of the kernel. The same source runs in eBPF, in tests and in traces.
//!
//! This crate must never read a clock, allocate (the `model` feature apart), log, loop without a bound,
//! or read past the end of a frame. Everything is inlined because eBPF has a stack of 512 bytes and
//! passes at most five registers to a function.
#![no_std]

#[cfg(feature = "model")]
extern crate alloc;

mod access;
pub mod bucket;
pub mod edit;
pub mod flood;
mod hub;
#[cfg(feature = "model")]
pub mod model;
pub mod outer;
pub mod packet;
mod port;
mod reach;
pub mod rewrite;
pub mod stt;
mod uplink;
mod verdict;

pub use access::{Frame, FrameMut, Meta, Refused, Tables};
pub use hub::HubFrame;
pub use port::{Head, PortWork, clamp, needs_closer_look, port_closer, port_first, port_ingress};
pub use uplink::{OuterSum, Shed, UplinkWork, combine_ecn, damaged, is_sound, uplink_first, uplink_ingress};
pub use verdict::{Action, Note, Target, Verdict, Words};

/// Mark of an encapsulated frame that a port's program hands to the uplink's program for sending.
///
/// `bpf_redirect_neigh` takes only frames that the kernel knows to be IP, and a clone cannot use it at
/// all; passing the uplink's ingress makes the kernel look at the outer header. Frames from outside carry
/// no mark, and the outer source must be this host's as well.
pub const SEND_MARK: u32 = 0x54_65_6e_74;
