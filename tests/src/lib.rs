//! Helpers of the end-to-end tests, which are in `tests/`: each drives real `tenet` processes in a lab.
//!
//! Three things to know: [`Fixture`] (one lab for all tests of a file, taken down when the file's process ends),
//! [`World`] (a lab with its controller's client) and [`Nic`] (a VM's NIC, to send and see single frames).
//!
//! A test that cannot run here says `SKIPPED` with the reason and passes.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests stop at the first surprise")]

pub mod bpf;
mod cut;
pub mod domains;
pub mod frame;
pub mod guest;
pub mod libvirt;
mod moves;
mod nic;
pub mod outer;
pub mod ovs;
pub mod pcap;
mod reach;
mod restart;
pub mod tunnel;
mod world;

pub use cut::Cut;
pub use moves::check_moves;
pub use nic::{IcmpError, Nic, Watch, ipv4};
pub use reach::check_reach;
pub use restart::{Load, Paused, check_agent_restart};
pub use world::{Fixture, Guard, Setup, World, binary, block_on, missing, skipped, until};

/// The default site of a lab and what its tests need beside.
pub const SITE: &str = include_str!("site.yaml");
/// The same with a third host.
pub const THREE_HOSTS: &str = include_str!("three.yaml");
/// Where the hosts of a site stand that has three, each in a provider subnet of its own; its tenants follow.
pub const APART: &str =
    "hosts: { h1: { pa: 192.168.1.10 }, h2: { pa: 192.168.2.20 }, h3: { pa: 192.168.3.30 } }\n";
/// The site of the basic matrix.
pub const BASIC: &str = include_str!("basic.yaml");
/// Two hosts, and VMs with addresses of both families in two subnets.
pub const DUAL: &str = include_str!("dual.yaml");
