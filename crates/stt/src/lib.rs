//! STT in user space: putting frames together, and cutting them up.
//!
//! The eBPF programs send and receive STT by themselves as long as the kernel's own TCP offloads keep a frame in one
//! piece, or its pieces are parts of one inner TCP segment. This crate is for the rest: [`Reassembly`] joins segments
//! to whole frames, [`Segment::read`] takes a segment apart and checks it, [`Way`] puts the outer headers before a
//! frame, with the virtio header that lets the kernel do the cutting, and [`cut`] cuts without the kernel.
//!
//! This crate must never do I/O or read a clock: time is an argument.

pub mod fuzz;
mod reassembly;
mod segment;
mod send;

pub use reassembly::{Counters, Limits, Reassembly, Refusal, Whole};
pub use segment::{FrameId, Outer, Segment, Trust, Unreadable};
pub use send::{Offload, Tso, Unsendable, VirtioHeader, Way, cut};
