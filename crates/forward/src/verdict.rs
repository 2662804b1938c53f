//! The possible ends of a frame.

use tenet_tables::{Addr, DropReason, EventKind};
use tenet_wire::Mac;

/// What the tables say about a frame, before anything was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not ours: the host's own stack gets the frame untouched. Never for what a VM sent.
    Pass,
    /// Count it and forget it.
    Drop(DropReason),
    /// To a VM of this host.
    Deliver {
        /// The port.
        ifindex: u32,
        /// Whether the frame may skip the host's side of a veth.
        peer: bool,
    },
    /// To a VM of this host behind a tap, by way of the hub, which takes the tunnel off and keeps large frames whole.
    DeliverWhole {
        /// The port.
        ifindex: u32,
        /// Length of the frame without its tunnel.
        len: u16,
    },
    /// To another host: [`Target`] in the work sheet.
    Encapsulate,
    /// To another host by IP Rewrite: the addresses are in the work sheet.
    Rewrite,
    /// The port has moved: on to another host ([`Target::pa`] in the work sheet), in the tunnel that the frame came in.
    Onward,
    /// Encapsulated by a port's program already: out by the neighbour that the kernel knows.
    Send,
    /// A part of an STT frame that only somebody who puts it together can make use of.
    Slow,
    /// A later part of an STT frame: where the first one went, if that has come.
    Part,
    /// First look of [`crate::port_first`] only: an ARP packet, to be looked at more closely.
    Arp,
    /// First look only: a message of neighbour or multicast listener discovery.
    Discovery,
    /// First look only: a packet for the gateway itself.
    Gateway,
    /// First look only: a packet that ends here for this reason, of which its sender may have to be told.
    Complain(DropReason),
    /// Answer an ARP request: the target is at this MAC.
    AnswerArp {
        /// The target's MAC.
        mac: Mac,
    },
    /// Answer a ping of the gateway.
    AnswerEcho,
    /// Answer a neighbour solicitation: the target is at this MAC, or at the gateway's.
    AnswerNeighbour {
        /// The target's MAC.
        mac: Mac,
        /// Whether the target is the gateway.
        router: bool,
    },
    /// Answer a router solicitation.
    AnswerRouter,
    /// Tell the sender why its packet ends here.
    Error {
        /// What is counted.
        reason: DropReason,
        /// Type of ICMP, or of ICMPv6.
        ty: u8,
        /// Code of ICMP, or of ICMPv6.
        code: u8,
        /// Next-hop MTU, or 0.
        mtu: u16,
    },
    /// To every other port of the subnet, if the sender's limit allows.
    Flood {
        /// The virtual subnet.
        vsid: u32,
    },
}

/// What is to be done with the frame once it is edited: one call of the kernel each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Leave it to the host's stack.
    Pass,
    /// Drop it under this name.
    Drop(DropReason),
    /// Give it to the VM behind this port.
    Port {
        /// The port.
        ifindex: u32,
        /// Whether it may skip the host's side of a veth.
        peer: bool,
    },
    /// Give it to the VM behind this port by way of the hub.
    Hub {
        /// The port.
        ifindex: u32,
    },
    /// Give it back to the VM that sent the original: an answer, or an error with the reason it is counted by.
    Back(Option<DropReason>),
    /// Send it out of the uplink to the neighbour that the kernel knows.
    Wire,
    /// Give it to the slow device, or, without one, drop it under this name.
    Slow(DropReason),
    /// Send it out by way of the uplink's program, because the kernel does not know it to be IP yet.
    WireByMark,
}

/// Where an encapsulated frame goes, and in what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target {
    /// The other host's provider address (under IP Rewrite: the one that stands for the customer address).
    pub pa: Addr,
    /// One of the `METHOD_*`.
    pub method: u32,
    /// Virtual subnet of the destination.
    pub vsid: u32,
    /// Hash of the flow, all bits of it usable.
    pub flow: u32,
}

/// What the agent may be told about a frame, through a rate-limited ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Note {
    /// What happened; `None`: nothing to tell.
    pub kind: Option<EventKind>,
    /// Network, or 0.
    pub net: u32,
    /// Virtual subnet, or 0.
    pub vsid: u32,
    /// Customer address of interest, or unset.
    pub ca: Addr,
    /// Provider address of interest, or unset.
    pub pa: Addr,
    /// MAC of interest.
    pub mac: Mac,
}

/// A [`Verdict`] as plain words.
///
/// The decision returns these and not the enum itself: a verdict without content leaves some bytes of the enum
/// undefined, which the compiler may read early and the kernel's verifier refuses to have read.
pub type Words = [u32; 3];

/// A drop as words.
#[inline(always)]
pub(crate) const fn dropped(reason: DropReason) -> Words {
    Verdict::Drop(reason).to_words()
}

impl Verdict {
    /// First of [`Self::to_words`] of the verdicts that turn a frame round, and of all above.
    pub const FIRST_RARE: u32 = 16;
    /// Verdicts from this one on, up to [`Self::FIRST_RARE`], are of the first look only.
    pub const FIRST_CLOSER: u32 = 12;

    /// Whether it answers neighbour discovery.
    #[inline(always)]
    #[must_use]
    pub const fn is_discovery(self) -> bool {
        matches!(self, Self::AnswerNeighbour { .. } | Self::AnswerRouter)
    }

    /// Whether a router's advertisement is sent, with the answer or as the answer.
    #[inline(always)]
    #[must_use]
    pub const fn advertises(self) -> bool {
        matches!(self, Self::AnswerNeighbour { router: true, .. } | Self::AnswerRouter)
    }

    /// The verdict as plain words, every one of them defined, so that eBPF may keep it in a map.
    #[inline(always)]
    #[must_use]
    pub const fn to_words(self) -> Words {
        match self {
            Self::Pass => [0, 0, 0],
            Self::Drop(reason) => [1, reason as u32, 0],
            Self::Deliver { ifindex, peer } => [2, ifindex, peer as u32],
            Self::Encapsulate => [3, 0, 0],
            Self::Onward => [4, 0, 0],
            Self::Rewrite => [11, 0, 0],
            Self::Send => [5, 0, 0],
            Self::Slow => [10, 0, 0],
            Self::Part => [9, 0, 0],
            Self::DeliverWhole { ifindex, len } => [6, ifindex, len as u32],
            Self::AnswerArp { mac } => {
                let [a, b, c] = mac.halves;
                [16, a as u32 | (b as u32) << 16, c as u32]
            }
            Self::AnswerEcho => [17, 0, 0],
            Self::Arp => [12, 0, 0],
            Self::Discovery => [13, 0, 0],
            Self::Gateway => [14, 0, 0],
            Self::Complain(reason) => [15, reason as u32, 0],
            Self::AnswerNeighbour { mac, router } => {
                let [a, b, c] = mac.halves;
                [20, a as u32 | (b as u32) << 16, c as u32 | (router as u32) << 16]
            }
            Self::AnswerRouter => [21, 0, 0],
            Self::Error { reason, ty, code, mtu } => {
                [18, reason as u32, ty as u32 | (code as u32) << 8 | (mtu as u32) << 16]
            }
            Self::Flood { vsid } => [19, vsid, 0],
        }
    }

    /// The verdict that [`Self::to_words`] was given; a drop for anything else.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: Words) -> Self {
        let [tag, a, b] = words;
        match tag {
            0 => Self::Pass,
            1 => Self::Drop(reason(a)),
            2 => Self::Deliver { ifindex: a, peer: b != 0 },
            3 => Self::Encapsulate,
            4 => Self::Onward,
            11 => Self::Rewrite,
            5 => Self::Send,
            10 => Self::Slow,
            9 => Self::Part,
            6 => Self::DeliverWhole { ifindex: a, len: b as u16 },
            12 => Self::Arp,
            13 => Self::Discovery,
            14 => Self::Gateway,
            15 => Self::Complain(reason(a)),
            16 => Self::AnswerArp { mac: Mac { halves: [a as u16, (a >> 16) as u16, b as u16] } },
            17 => Self::AnswerEcho,
            18 => Self::Error { reason: reason(a), ty: b as u8, code: (b >> 8) as u8, mtu: (b >> 16) as u16 },
            19 => Self::Flood { vsid: a },
            20 => Self::AnswerNeighbour {
                mac: Mac { halves: [a as u16, (a >> 16) as u16, b as u16] },
                router: b >> 16 != 0,
            },
            21 => Self::AnswerRouter,
            _ => Self::Drop(DropReason::Malformed),
        }
    }
}

#[inline(always)]
const fn reason(number: u32) -> DropReason {
    match DropReason::from_number(number) {
        Some(reason) => reason,
        None => DropReason::Malformed,
    }
}
