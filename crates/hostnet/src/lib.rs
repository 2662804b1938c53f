//! The host's network as the kernel sees it: links, addresses, routes, namespaces and tc filters.
//!
//! Three types to know: [`Links`] (a netlink handle bound to one namespace), [`Netns`] (a network
//! namespace, named as `ip netns` names them or anonymous) and [`LinkWatch`] (changes of links as
//! they happen).
//!
//! Everything is synchronous: a netlink request is answered by the kernel inside the system call,
//! in microseconds, so that a runtime would add tasks and no concurrency. A [`Links`] may be shared
//! between threads and used from async code; [`LinkWatch`] is a file descriptor for whoever polls.
//!
//! The netlink codec is our own ([`netlink`]): we read about fifteen attributes, must not fail on
//! those that a newer kernel adds, and need cls_bpf's, which the usual crates do not speak.
//!
//! This crate must never decide what the host should look like, and never touch a link that it was
//! not told to touch.
//!
//! ```no_run
//! # fn main() -> Result<(), tenet_hostnet::Error> {
//! use tenet_hostnet::{Links, Netns};
//! let vm = Netns::create("vm1")?;
//! let host = Links::here()?;
//! host.add_veth("tap1", "eth0", &vm)?;
//! host.set_up("tap1")?;
//! let inside = Links::in_netns(&vm)?;
//! inside.set_up("lo")?;
//! inside.set_up("eth0")?;
//! inside.add_addr("eth0", [10, 1, 1, 11].into(), 24)?;
//! inside.add_route([0, 0, 0, 0].into(), 0, Some([10, 1, 1, 1].into()), None)?;
//! let status = vm.command("ping").args(["-c1", "10.1.1.1"]).status();
//! # drop(status);
//! # Ok(()) }
//! ```

mod address;
mod device;
mod error;
mod feature;
mod gro;
mod link;
mod links;
pub mod netlink;
mod netns;
mod packet;
mod queue;
pub mod tc;
mod watch;

pub use address::{Address, RouteAnswer};
pub use device::TapOptions;
pub use error::Error;
pub use gro::{UdpGro, UdpTunnel};
pub use link::{Kind, Link, OperState};
pub use links::Links;
pub use netns::Netns;
pub use packet::FrameSocket;
pub use queue::{Holder, Holders, Queue, VNET_HEADER, Waiting, wait};
pub use watch::{LinkEvent, LinkWatch};

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
