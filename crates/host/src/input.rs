//! What an agent's core is told, and what it asks for.

use crate::message::Message;
use crate::plan::Device;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tenet_compile::{Delta, Rows};
use tenet_model::{PortRef, VmRef};
use tenet_tables::Event;
use tenet_tables::image::{Image, Operation};

/// Which program a device carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A VM's NIC.
    Port,
    /// A NIC that carries the provider network.
    Uplink,
}

/// How far a device's program is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachState {
    /// Asked for.
    Pending,
    /// It runs.
    Attached,
    /// It could not be attached, because of this.
    Failed(String),
}

/// What the core is told.
#[expect(clippy::large_enum_variant, reason = "it is handed over once and never kept")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The state that an earlier run of the agent had.
    Cached {
        /// Its generation.
        generation: u64,
        /// Its rows.
        rows: Rows,
    },
    /// A session with the controller began.
    Connected,
    /// It ended.
    Disconnected,
    /// The full state.
    Full {
        /// Its generation.
        generation: u64,
        /// Its rows.
        rows: Rows,
    },
    /// A change of state.
    Delta(Delta),
    /// All devices of the host, by name.
    Devices(BTreeMap<String, Device>),
    /// The measured MTU of the provider network to other hosts, by provider address; the uplink's holds for the others.
    Paths(BTreeMap<IpAddr, u16>),
    /// All that the kernel holds: the maps' content and the devices that carry our programs.
    Kernel {
        /// The maps.
        image: Image,
        /// Programs in place, by interface index.
        attached: BTreeMap<u32, Role>,
    },
    /// The kernel's maps cannot be read, because of this.
    Unreadable(String),
    /// The shell put something back that is neither entry nor program; each in plain words.
    Restored(Vec<String>),
    /// Taps that ports ask for and that cannot be had, each with the reason: what bears the name now is not theirs.
    Taps(BTreeMap<String, String>),
    /// What an operator should know of ports that work, by port.
    Notes(BTreeMap<PortRef, String>),
    /// Result of [`Output::Attach`].
    Attached {
        /// The device's number.
        ifindex: u32,
        /// Whether its program runs now.
        result: Result<(), String>,
    },
    /// Result of [`Output::Apply`].
    Applied {
        /// What the maps hold now at the keys that were written.
        read_back: Vec<Operation>,
        /// What the kernel refused.
        errors: Vec<String>,
    },
    /// The data plane raised an event.
    Seen(Event),
    /// So many frames were dropped at an uplink for their marks of congestion since that was last told.
    Congested {
        /// The uplink's number.
        ifindex: u32,
        /// How many.
        frames: u64,
    },
    /// A VM stands still, to be switched to another host: what comes for it goes there from now on, if it moves.
    VmStopped(VmRef),
    /// A VM runs here.
    VmResumed(VmRef),
    /// Its hypervisor is not heard any more.
    VmForgotten(VmRef),
}

/// What the shell must do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Make a device ready and put the program on it; answer with [`Input::Attached`].
    Attach {
        /// The device's name.
        device: String,
        /// Its number.
        ifindex: u32,
        /// Which program.
        role: Role,
    },
    /// Take a program off, or forget it where the device is gone.
    Detach {
        /// The device's number.
        ifindex: u32,
    },
    /// Write these in this order, read their keys back, answer with [`Input::Applied`]. May be empty.
    Apply(Vec<Operation>),
    /// Tell the controller; without a session, drop it.
    Send(Message),
}

/// Figures for the metrics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Differences between kernel and wanted state that were put right.
    pub repairs: u64,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Full states and deltas taken.
    pub changes: u64,
}
