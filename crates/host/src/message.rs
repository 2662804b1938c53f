//! What the agent tells the controller, before it becomes a protocol message.

use std::net::IpAddr;
use tenet_model::{NetId, PortRef};

/// Something to tell the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A generation stands in the kernel, or why not.
    Ack(Ack),
    /// The full state is needed.
    Resync {
        /// Why, in plain words.
        reason: String,
    },
    /// What a look at the kernel showed.
    Proof(Proof),
    /// A prepared port sent its first frame.
    PortActivated(PortRef),
    /// Something the data plane saw.
    Event(EventReport),
}

/// A generation stands in the kernel (or does not: `error` is not empty).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// The generation.
    pub generation: u64,
    /// Why it does not stand in the kernel.
    pub error: String,
    /// The networks concerned, as read back.
    pub networks: Vec<NetworkProof>,
    /// Their ports.
    pub ports: Vec<PortStatus>,
}

/// What a full read of the kernel showed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// The generation compared with.
    pub generation: u64,
    /// All networks.
    pub networks: Vec<NetworkProof>,
    /// All ports.
    pub ports: Vec<PortStatus>,
    /// What differed and was put right.
    pub repaired: Vec<String>,
    /// What is wrong and could not be put right.
    pub problems: Vec<String>,
}

/// A network's content in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkProof {
    /// The network.
    pub net: NetId,
    /// Digest over what was read back.
    pub digest: u64,
    /// How many rows it covers.
    pub rows: u64,
}

/// A port as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStatus {
    /// Its name.
    pub port: PortRef,
    /// Whether its device exists and carries the program.
    pub present: bool,
    /// Whether something is at the device's other end.
    pub carrier: bool,
    /// The device's number, or 0.
    pub ifindex: u32,
    /// Largest inner packet, or 0.
    pub mtu: u16,
    /// State as the kernel has it, or empty.
    pub state: &'static str,
    /// What is missing, in plain words.
    pub detail: String,
}

/// Something the data plane saw, with the names that the agent knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventReport {
    /// `EventKind::name`.
    pub kind: &'static str,
    /// The port or uplink where it was seen, if known.
    pub port: String,
    /// Virtual subnet or 0.
    pub vsid: u32,
    /// MAC of interest, or empty.
    pub mac: String,
    /// Customer address of interest.
    pub ca: Option<IpAddr>,
    /// Provider address of interest.
    pub pa: Option<IpAddr>,
    /// In plain words.
    pub text: String,
}
