//! Keys and values of the BPF maps: the only types that cross the kernel border.
//!
//! The agent writes these, the eBPF programs read them, and both sides compile this very source.
//! Three types to know: [`Port`] (a local NIC and what it may do), [`Record`] (where a customer
//! address lives) and [`DropReason`] (every way a frame can end).
//!
//! With the feature `image`, [`image::Image`] is the content of all maps as plain data (needs `alloc`).
//!
//! Every type is `repr(C)` without padding, its size asserted at compile time; addresses and MACs
//! hold the bytes as they stand on the wire. This crate must never allocate, read a clock or know
//! a map's API. A change of any layout raises [`LAYOUT_VERSION`], so that an agent never adopts
//! pinned maps that it would misread.
#![no_std]

#[cfg(feature = "image")]
pub mod image;
mod names;

pub use names::{DropReason, EventKind};
pub use tenet_wire::Mac;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of all layouts below; stored in [`Config::layout`].
pub const LAYOUT_VERSION: u32 = 3;

/// The gateway MAC of every subnet on every host (locally administered, "TENET" in the low bytes).
pub const GATEWAY_MAC: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);

/// The gateway's link-local address in every subnet: the one that [`GATEWAY_MAC`] makes (RFC 4291 appendix A).
pub const GATEWAY_LINK_LOCAL: Addr =
    Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, b'T', b'e', 0xff, 0xfe, b'n', b'e', b't']);

/// An IP address as it stands on the wire; IPv4 as an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2).
///
/// Four words so that eBPF, which has no unaligned loads, copies it word by word.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Addr {
    /// Each word holds four wire bytes in memory order.
    pub words: [u32; 4],
}

impl Addr {
    /// No address.
    pub const UNSET: Self = Self { words: [0; 4] };
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// Maps an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::v4_word(u32::from_ne_bytes(octets))
    }

    /// Maps an IPv4 address given as the word that its four wire bytes form in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(word: u32) -> Self {
        Self { words: [0, 0, Self::MAPPED, word] }
    }

    /// Takes the sixteen wire bytes of an IPv6 address.
    #[must_use]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// The IPv4 word in memory order, if this is a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4_word(&self) -> Option<u32> {
        if self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED {
            Some(self.words[3])
        } else {
            None
        }
    }

    /// Whether no address is set.
    #[inline(always)]
    #[must_use]
    pub const fn is_unset(&self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] == 0
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(a: core::net::IpAddr) -> Self {
        match a {
            core::net::IpAddr::V4(a) => Self::v4(a.octets()),
            core::net::IpAddr::V6(a) => Self::v6(a.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        let mut o = [0u8; 16];
        for (i, w) in a.words.iter().enumerate() {
            o[i * 4..i * 4 + 4].copy_from_slice(&w.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(o).to_canonical()
    }
}

/// Declares a map's key or value: `repr(C)`, no padding (zerocopy's `IntoBytes` proves it), size asserted.
macro_rules! layout {
    ($($(#[$m:meta])* struct $n:ident = $size:literal { $($(#[$fm:meta])* $f:ident: $t:ty,)* })*) => { $(
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $n { $($(#[$fm])* pub $f: $t,)* }
        const _: () = assert!(core::mem::size_of::<$n>() == $size);
    )* };
}

layout! {
    /// Map `CONFIG` (array, one entry): what all programs of the host need.
    struct Config = 52 {
        /// [`LAYOUT_VERSION`] of whoever wrote the maps; 0 before the agent configured the host.
        layout: u32,
        /// Interface index of the uplink that carries encapsulated frames out.
        uplink: u32,
        /// This host's provider address.
        pa: Addr,
        /// MAC with which the gateway of every subnet answers.
        gateway_mac: Mac,
        /// The uplink's own MAC, with which rewrite addresses are answered for.
        uplink_mac: Mac,
        /// Interface index of the hub, which takes the tunnel off frames for taps; 0 if there is none.
        hub: u32,
        /// Interface index of the device by which the agent takes over STT frames that the programs cannot finish; 0 if there is none.
        slow: u32,
        /// UDP port of VXLAN, in host order. [`VXLAN_PORT`] is accepted beside it.
        vxlan_port: u16,
        /// UDP port of Geneve, in host order.
        geneve_port: u16,
        /// Set of `CONFIG_FLAG_*`.
        flags: u16,
        /// UDP port of one of both that is accepted beside these while it changes, in host order; 0 if none does. Once the
        /// upper half of `flags`, and zero: programs and agents of either age read each other right (we run on
        /// little-endian machines only).
        other_port: u16,
    }

    /// Map `PORTS` (hash, key: interface index `u32`): a local NIC of a VM.
    struct Port = 56 {
        /// Network id; scope of customer addresses.
        net: u32,
        /// Virtual subnet the port is attached to.
        vsid: u32,
        /// Provider address of the other host while a migration of this port runs, else unset.
        peer_pa: Addr,
        /// The port's own MAC.
        mac: Mac,
        /// Largest inner IP packet that fits the provider network, in bytes.
        mtu: u16,
        /// One of the `PORT_*` states.
        state: u8,
        /// One of the `DEVICE_*` kinds.
        device: u8,
        /// Set of `PORT_FLAG_*`.
        flags: u16,
        /// Broadcast and multicast frames per second that the port may send; 0 means none.
        flood_rate: u32,
        /// Broadcast and multicast frames that the port may send in one burst.
        flood_burst: u32,
        /// Unused, zero.
        reserved: u32,
        /// Number of the record or object change that last wrote this row.
        generation: u64,
    }

    /// Map `SUBNETS` (hash, key: VSID `u32`).
    struct Subnet = 56 {
        /// Network id the subnet belongs to.
        net: u32,
        /// Length in bits of the IPv4 prefix in the `Addr` form (96 + length); 0 without one.
        prefix_len: u32,
        /// Length in bits of the IPv6 prefix; 0 without one.
        prefix6_len: u32,
        /// One of the `METHOD_*`: how copies of a broadcast cross the provider network.
        method: u32,
        /// IPv4 address of the distributed gateway, or unset.
        gateway: Addr,
        /// IPv6 address of the distributed gateway, or unset. Beside it the gateway has [`GATEWAY_LINK_LOCAL`].
        gateway6: Addr,
        /// As in [`Port::generation`].
        generation: u64,
    }

    /// Key of map `RECORDS` (hash).
    struct RecordKey = 20 {
        /// Network id.
        net: u32,
        /// Customer address.
        ca: Addr,
    }

    /// Value of map `RECORDS`: the lookup record of a customer address.
    struct Record = 72 {
        /// Provider address of the host where the port lives.
        pa: Addr,
        /// The second legal provider address while a migration runs, else unset.
        alt_pa: Addr,
        /// The address that stands for the customer address under [`METHOD_REWRITE`], else unset.
        rewrite_pa: Addr,
        /// The port's MAC.
        mac: Mac,
        /// One of the `METHOD_*`.
        method: u8,
        /// Unused, zero.
        reserved: u8,
        /// Virtual subnet of the customer address.
        vsid: u32,
        /// Interface index of the port if it (also) lives on this host, else 0.
        ifindex: u32,
        /// As in [`Port::generation`].
        generation: u64,
    }

    /// Key of map `REWRITES` (hash): a rewrite address, as it stands on the wire.
    struct RewriteKey = 16 {
        /// The provider address.
        pa: Addr,
    }

    /// Value of map `REWRITES`: the customer address that a rewrite address stands for.
    struct Rewrite = 64 {
        /// Network id.
        net: u32,
        /// Virtual subnet of the customer address.
        vsid: u32,
        /// The customer address.
        ca: Addr,
        /// While a migration runs: the address that stands for it at the other host, else unset.
        other_pa: Addr,
        /// MAC of its port.
        mac: Mac,
        /// Unused, zero.
        reserved: u16,
        /// Interface index of the port if this is its address on this host, else 0.
        ifindex: u32,
        /// Unused, zero.
        reserved2: u32,
        /// As in [`Port::generation`].
        generation: u64,
    }

    /// Key of map `POOLS` (LPM trie), after the trie's own `prefix_len` word: a range of this host's rewrite addresses.
    struct PoolKey = 16 {
        /// First address, bits behind the length zero.
        pa: Addr,
    }

    /// Value of map `POOLS`.
    struct Pool = 8 {
        /// As in [`Port::generation`].
        generation: u64,
    }

    /// Key of map `MACS` (hash).
    struct MacKey = 12 {
        /// Virtual subnet.
        vsid: u32,
        /// MAC of a port in it.
        mac: Mac,
        /// Unused, zero.
        reserved: u16,
    }

    /// Value of map `MACS`: where the port with this MAC lives.
    struct MacEntry = 24 {
        /// Provider address of its host.
        pa: Addr,
        /// Interface index of the port if it (also) lives on this host, else 0.
        ifindex: u32,
        /// One of the `METHOD_*`.
        method: u32,
    }

    /// Key of map `ROUTES` (LPM trie), after the trie's own `prefix_len` word of 32 + prefix bits.
    struct RouteKey = 20 {
        /// Network id in big-endian order, as the trie compares bits from the first byte on.
        net_be: u32,
        /// Destination.
        ca: Addr,
    }

    /// Value of map `ROUTES`: a customer route, or a subnet's own prefix.
    struct Route = 32 {
        /// Next hop's customer address; unset: the destination is on link.
        next_hop: Addr,
        /// Lowest wins; the agent writes only the winner.
        metric: u32,
        /// Unused, zero.
        reserved: u32,
        /// As in [`Port::generation`].
        generation: u64,
    }

    /// Key of map `PEERS` (hash): who may send us frames of a network.
    struct PeerKey = 20 {
        /// Network id; 0 stands for "a known host", whatever the network.
        net: u32,
        /// Outer source address.
        pa: Addr,
    }

    /// Value of map `PEERS`.
    struct Peer = 8 {
        /// Set of `PEER_FLAG_*`.
        flags: u32,
        /// Unused, zero.
        reserved: u32,
    }

    /// Key of map `FLOOD` (hash): the n-th receiver of a subnet's broadcasts, counted from 0 without gaps.
    struct FloodKey = 8 {
        /// Virtual subnet.
        vsid: u32,
        /// Position.
        index: u32,
    }

    /// Value of map `FLOOD`: either a local port or another host.
    struct FloodEntry = 20 {
        /// Provider address of another host, or unset for a local port.
        pa: Addr,
        /// Interface index of a local port, or 0 for another host.
        ifindex: u32,
    }

    /// Map `COUNTERS` (per-CPU hash, key: interface index `u32`). "From" and "to" are seen from the VM.
    struct Counters = 80 {
        /// Frames the VM sent.
        tx_frames: u64,
        /// Bytes the VM sent, Ethernet header included.
        tx_bytes: u64,
        /// Frames delivered to the VM.
        rx_frames: u64,
        /// Bytes delivered to the VM.
        rx_bytes: u64,
        /// Frames sent on to the other host because the port has moved.
        redirected: u64,
        /// ARP requests and pings answered from the table.
        answered: u64,
        /// ICMP errors sent to the VM.
        icmp_errors: u64,
        /// Broadcast or multicast frames replicated.
        flooded: u64,
        /// Frames handed to the agent because the programs cannot finish them.
        slow: u64,
        /// TCP connections whose segment size was lowered to what fits.
        clamped: u64,
    }

    /// Key of map `DROPS` (per-CPU hash; value `u64` frames).
    struct DropKey = 8 {
        /// Interface where the frame came from: a port, or the uplink.
        ifindex: u32,
        /// A [`DropReason`] as number.
        reason: u32,
    }

    /// Value of map `BUCKETS` (hash, key: interface index `u32`): token bucket for floods and one for events.
    struct Bucket = 32 {
        /// Time of the last flood refill, in nanoseconds of the monotonic clock.
        flood_at: u64,
        /// Flood tokens left, in thousandths of a frame.
        flood_tokens: u64,
        /// Time of the last event refill.
        event_at: u64,
        /// Event tokens left, in thousandths of an event.
        event_tokens: u64,
    }

    /// Entry of ring `EVENTS`.
    struct Event = 56 {
        /// An [`EventKind`] as number.
        kind: u32,
        /// Interface where the frame came from.
        ifindex: u32,
        /// Virtual subnet, or 0 where none is known.
        vsid: u32,
        /// Network id or 0.
        net: u32,
        /// MAC of interest: the offender's source or the unknown destination.
        mac: Mac,
        /// Unused, zero.
        reserved: u16,
        /// Customer address of interest or unset.
        ca: Addr,
        /// Provider address of interest or unset.
        pa: Addr,
    }
}

/// The port is known but must neither send nor receive yet.
pub const PORT_BLOCKED: u8 = 0;
/// The port lives here.
pub const PORT_ACTIVE: u8 = 1;
/// Destination of a migration: the port's first frame makes it [`PORT_ACTIVE`].
pub const PORT_PREPARED: u8 = 2;
/// Source of a migration after the switch: frames for the port go on to [`Port::peer_pa`].
pub const PORT_MOVED: u8 = 3;

/// Anything that frames are given to by plain redirect and that is no tap, such as a veth without peer delivery.
pub const DEVICE_PLAIN: u8 = 0;
/// A veth whose peer is in another namespace; IP frames skip the host-side queue (`bpf_redirect_peer`, 5.10).
pub const DEVICE_VETH: u8 = 1;
/// A tap: IP frames from the provider network reach it by way of the hub, if the host has one.
pub const DEVICE_TAP: u8 = 2;

/// Source MAC and CA must be the port's.
pub const PORT_FLAG_SECURITY: u16 = 1;
/// The device has no carrier: frames for it are dropped as `port_down`, or redirected during a migration.
pub const PORT_FLAG_DOWN: u16 = 2;

/// A host address of the port's in the subnet's IPv6 prefix is the one that its MAC makes (RFC 4862 §5.5.3): the
/// gateway's advertisements tell the VM to form it.
pub const PORT_FLAG_AUTOCONF: u16 = 4;

/// This host has rewrite addresses: frames for them are ours.
pub const CONFIG_FLAG_REWRITE: u16 = 1;
/// [`Config::other_port`] is Geneve's, not VXLAN's.
pub const CONFIG_FLAG_OTHER_GENEVE: u16 = 2;

/// The record is a subnet's gateway: it lives on every host, has no provider address and no interface.
pub const METHOD_GATEWAY: u8 = 0;
/// Frames to this address cross the provider network by NVGRE (RFC 7637).
pub const METHOD_NVGRE: u8 = 1;
/// By VXLAN (RFC 7348).
pub const METHOD_VXLAN: u8 = 2;
/// By Geneve (RFC 8926).
pub const METHOD_GENEVE: u8 = 3;
/// By STT (draft-davie-stt-08).
pub const METHOD_STT: u8 = 4;
/// By IP Rewrite: every customer address has a provider address of its own, and nothing is added.
pub const METHOD_REWRITE: u8 = 5;

/// UDP port of VXLAN (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;
/// UDP port of Geneve (RFC 8926 §3.3).
pub const GENEVE_PORT: u16 = 6081;
/// Port of STT's TCP-like header (draft-davie-stt-08).
pub const STT_PORT: u16 = 7471;

/// Network id of the agents' own probes, which no network of the site has.
pub const PROBE_NET: u32 = u32::MAX;
/// VSID of the agents' own probes: RFC 7637 §3.4 reserves it for messages between virtualization endpoints.
pub const PROBE_VSID: u32 = 0xFF_FFFF;

/// Ports on this host may send from any customer address of the network (an appliance lives there).
pub const PEER_FLAG_ANY_SOURCE: u32 = 1;

/// Longest list of receivers of one subnet's broadcasts that the programs walk.
pub const FLOOD_LIMIT: u32 = 256;
