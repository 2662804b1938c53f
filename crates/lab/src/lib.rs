//! Whole sites on one machine: hosts and VMs as network namespaces, joined by a routed "physical" network.
//!
//! Three things to know: [`Lab`] (a running lab: up, down, its hosts, VMs and controller's client), [`Record`] (what it
//! is made of, written before it is made) and [`tool`] (what runs inside VMs: responder, probe, stream).
//!
//! Controller and agents are real processes of the `tenet` binary; only the network namespace of an agent differs from
//! ours. Must never touch a namespace, device or process that the record does not name.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tenet_lab::{Lab, LabOptions};
//! let lab = Lab::up(LabOptions::new("try", "/usr/bin/tenet")?).await?;
//! lab.vm("contoso/web")?.command("ping").args(["-c1", "10.1.1.11"]).status()?;
//! println!("{:?}", lab.client()?.status().await?.in_sync);
//! # Ok(()) }
//! ```

mod bpffs;
mod capture;
mod error;
mod forward;
pub mod guest;
mod lab;
mod migrate;
mod network;
pub mod packet;
mod patience;
mod plan;
mod prepare;
mod process;
mod real;
mod record;
mod talk;
pub mod tool;
mod up;

pub use capture::{Capture, Captured};
pub use error::{Error, Result, Tail};
pub use lab::{Guests, Host, Lab, LabOptions, SiteFile, VmHandle};
pub use migrate::{Move, Moved};
pub use patience::{VARIABLE as PATIENCE_VARIABLE, patience};
pub use plan::{PROVIDER_MTU, PlanOptions, plan};
pub use prepare::outer_v6;
pub use process::Process;
pub use record::{ControllerRecord, HostRecord, LABS, PortRecord, PrefixRecord, Record, Segment, VmRecord};

/// The site of a lab that is not told another: two tenants with the same addresses on two hosts.
pub const DEFAULT_SITE: &str = include_str!("site.yaml");
