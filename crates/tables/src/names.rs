//! Names that the data plane, the metrics, the CLI and the docs share.

/// Declares an enum of numbered, named and explained cases; the number crosses the kernel border.
macro_rules! named {
    ($(#[$m:meta])* enum $e:ident { $($(#[doc = $doc:literal])+ $v:ident = $n:literal => $name:literal,)* }) => {
        $(#[$m])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $e { $($(#[doc = $doc])+ $v = $n,)* }
        impl $e {
            /// All cases in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$v),*];
            /// The case with this number, if there is one.
            #[must_use]
            pub const fn from_number(n: u32) -> Option<Self> {
                match n { $($n => Some(Self::$v),)* _ => None }
            }
            /// The name in metrics, CLI and UI.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$v => $name,)* }
            }
            /// What happened and what an operator should look at.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$v => concat!($($doc),+),)* }
            }
        }
    };
}

named! {
    /// Why a frame ended here. Every drop has one of these and a counter of that name.
    enum DropReason {
        /// The frame ends before its own headers do: a broken sender, or a capture cut short.
        Truncated = 1 => "truncated",
        /// The device carries our program but no port is configured on it: detach it or attach a port.
        UnknownPort = 2 => "unknown_port",
        /// The port is not live yet: the hosts of its network have not all acknowledged it.
        PortBlocked = 3 => "port_blocked",
        /// The port's device has no carrier: the VM is stopped or its NIC is down.
        PortDown = 4 => "port_down",
        /// Source MAC is not the port's: a spoof, or an appliance that needs `--no-security`.
        SpoofedMac = 5 => "spoofed_mac",
        /// Source customer address is not the port's: a spoof, a wrong address in the VM, or an appliance.
        SpoofedCa = 6 => "spoofed_ca",
        /// Neither IPv4, IPv6 nor ARP: nothing else is carried.
        UnsupportedProtocol = 7 => "unsupported_protocol",
        /// A header contradicts itself or the frame: version, length, checksum or option that cannot be.
        Malformed = 8 => "malformed",
        /// No lookup record for the customer address: no such VM in the network, or it has no host.
        NoRecord = 9 => "no_record",
        /// No route for the destination: add a subnet or a customer route.
        NoRoute = 10 => "no_route",
        /// No port with the destination MAC in the subnet: a stale neighbour entry in the VM, or a flood.
        UnknownMac = 11 => "unknown_mac",
        /// The hop limit ran out at the gateway.
        TtlExceeded = 12 => "ttl_exceeded",
        /// Larger than the provider network carries; the sender was told the MTU.
        TooBig = 13 => "too_big",
        /// The port sends more broadcast and multicast than its limit.
        FloodLimited = 14 => "flood_limited",
        /// A broadcast was replicated (not a loss): the original frame ends here.
        Replicated = 15 => "replicated",
        /// ARP for an address that is the sender's own, or an announcement (gratuitous ARP, RARP); the table is the truth.
        ArpSuppressed = 16 => "arp_suppressed",
        /// ARP request for an address that no VM of the network has.
        ArpUnknown = 17 => "arp_unknown",
        /// Encapsulated frame from a provider address that is no host of this site.
        UnknownPa = 18 => "unknown_pa",
        /// Encapsulated frame whose inner source does not live at the outer source: a spoof or a stale table.
        WrongPa = 19 => "wrong_pa",
        /// Encapsulated frame for a virtual subnet that has no port here.
        UnknownVsid = 20 => "unknown_vsid",
        /// Tunnel header that the method's RFC forbids (flags, version, protocol type).
        BadTunnelHeader = 21 => "bad_tunnel_header",
        /// A tagged inner frame, which RFC 7637 §3.3 has the receiver drop.
        InnerVlan = 22 => "inner_vlan",
        /// An IP fragment of an encapsulated frame (RFC 7637 §4.4 forbids them): the provider MTU is too small.
        OuterFragment = 23 => "outer_fragment",
        /// The kernel refused an edit of the frame; look at the agent's log and the kernel's version.
        KernelRefused = 24 => "kernel_refused",
        /// The frame was answered or consumed by the gateway (not a loss).
        Consumed = 25 => "consumed",
        /// The encapsulated frame came back to the host that sent it: both hosts claim the other has the port.
        Loop = 26 => "loop",
        /// The agent has not configured this host yet.
        NotConfigured = 27 => "not_configured",
        /// Congestion was marked on the outside of a frame whose flow cannot hear of it (RFC 6040 §4.2).
        EcnMismatch = 28 => "ecn_mismatch",
        /// Tunnel header of a version that nobody defined (Geneve, STT, GRE).
        TunnelVersion = 29 => "tunnel_version",
        /// A Geneve frame for the tunnel endpoint itself (O flag), not for a VM (RFC 8926 §3.4).
        GeneveControl = 30 => "geneve_control",
        /// A Geneve option that must be understood and is not (RFC 8926 §3.5).
        GeneveCritical = 31 => "geneve_critical",
        /// Geneve options whose lengths do not add up.
        GeneveOptions = 32 => "geneve_options",
        /// The outer checksum is wrong: damage on the provider network, or a broken offload of a NIC.
        OuterChecksum = 33 => "outer_checksum",
        /// Part of an STT frame that nobody puts together: the agent does not run, or this host has no slow device.
        SttIncomplete = 34 => "stt_incomplete",
        /// A kind of frame that STT's kernel path cannot send and no agent is there to.
        SttUnsupported = 35 => "stt_unsupported",
        /// IP Rewrite carries IP from one machine to one other: no broadcast, multicast or other protocol.
        RewriteUnsupported = 36 => "rewrite_unsupported",
        /// A rewrite address of this host that stands for no customer address (any more).
        RewriteUnknown = 37 => "rewrite_unknown",
        /// Source and destination of a rewritten frame are not addresses of one network.
        RewritePair = 38 => "rewrite_pair",
        /// The address has no rewrite address on its host yet.
        NoRewriteAddress = 39 => "no_rewrite_address",
        /// A router advertisement or redirect from a VM: the gateway is the only router.
        RouterGuard = 40 => "router_guard",
        /// Neighbour discovery for the sender's own address, an announcement, or a report of a multicast listener; the table is the truth.
        NdSuppressed = 41 => "nd_suppressed",
        /// Neighbour solicitation for an address that no VM of the network has.
        NdUnknown = 42 => "nd_unknown",
    }
}

named! {
    /// What the data plane tells the agent, through a rate-limited ring.
    enum EventKind {
        /// A VM sends to a customer address that the table does not have.
        UnknownDestination = 1 => "unknown_destination",
        /// A VM sends with a MAC or customer address that is not its own.
        Spoof = 2 => "spoof",
        /// An encapsulated frame came from an unknown provider address.
        UnknownPa = 3 => "unknown_pa",
        /// An encapsulated frame's inner source lives elsewhere by our table: moved, or spoofed.
        MovedAddress = 4 => "moved_address",
        /// A VM announces a customer address that another port has.
        DuplicateAddress = 5 => "duplicate_address",
        /// The first frame of a prepared port: the VM runs here now.
        PortActivated = 6 => "port_activated",
        /// A frame was redirected to the host where the port has moved.
        Redirected = 7 => "redirected",
    }
}
