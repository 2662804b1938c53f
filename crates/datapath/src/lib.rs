//! The kernel side of a host: loads the eBPF programs, owns the maps, hangs programs on devices.
//!
//! Three types to know: [`Datapath`] (programs and maps of one host, open), [`Attachment`] (a program
//! on a device) and [`Error`] (which says what to do).
//!
//! Everything that forwards frames is pinned in a directory of a bpffs: `maps/` holds the maps by
//! name, `links/` the TCX links as `<role>-<ifindex>`. So forwarding does not need this process: an
//! agent that starts again opens what is there, swaps programs only if they differ, and loses no frame.
//! Before kernel 6.6 the programs hang on clsact filters, which stay by themselves.
//!
//! Attaching acts in the network namespace of the calling thread, like every system call about devices.
//!
//! This crate must never decide what the maps should hold: it writes [`Operation`]s and reads an
//! [`Image`] back. It must never misread maps of another layout: see [`Error::ForeignLayout`].

mod attach;
mod bpffs;
mod check;
mod counters;
mod datapath;
mod detach;
mod error;
mod events;
mod hub;
mod image;
mod receive;
mod repair;
mod slow;
mod sys;
mod table;

pub use attach::{Attachment, Change, Hook, Role};
pub use check::{Feature, check, turns_versions};
pub use datapath::{Datapath, Options, ProgramFacts};
pub use detach::{Teardown, detach_all};
pub use error::Error;
pub use events::Events;
pub use hub::{HUB, prepare_hub};
pub use receive::{BUNDLE, Cost, Receive, measure as measure_receive};
pub use slow::{SLOW, SLOW_IN, SlowPath};
pub use tenet_tables::image::{Image, Operation};

/// Default directory of the pins.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/tenet";

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
