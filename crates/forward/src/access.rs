//! What the decision may touch: a frame, and the host's tables.

use crate::{OuterSum, PortWork, Shed, Target, UplinkWork, outer, stt};
use tenet_tables::{
    Addr, Config, DropReason, FloodEntry, FloodKey, MacEntry, MacKey, Peer, PeerKey, Port, Record, RecordKey,
    Rewrite, RewriteKey, Route, Subnet,
};
use tenet_wire::Envelope;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The frame ends before the bytes asked for, or the kernel refused an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// What is known about a frame beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// Interface that the frame came in by.
    pub ifindex: u32,
    /// Length in bytes.
    pub len: u32,
    /// Payload bytes per segment if the frame stands for several (GSO), else 0.
    pub gso_size: u32,
    /// Mark set by a program of this host.
    pub mark: u32,
    /// Whether a VLAN tag was taken off before we saw the frame.
    pub tagged: bool,
}

/// A frame to look at.
pub trait Frame {
    /// Copies the bytes from `at` on.
    ///
    /// # Errors
    /// If the frame ends before.
    fn load<T: FromBytes + IntoBytes>(&self, at: u32, into: &mut T) -> Result<(), Refused>;

    /// One's complement sum of `len` bytes from `at` on, as halves in memory order.
    ///
    /// # Errors
    /// If the frame ends before.
    fn sum(&self, at: u32, len: u32) -> Result<u16, Refused>;

    /// Payload bytes per segment if the frame stands for several, else 0.
    fn gso_size(&self) -> u32;

    /// Whether the kernel or a device has found the frame's first checksum right.
    fn verified(&self) -> bool;

    /// [`outer::checksum_is_right`]; false if the frame ends before the datagram does. In eBPF a call.
    #[inline(always)]
    fn outer_checksum(&self, sum: &OuterSum) -> bool
    where
        Self: Sized,
    {
        outer::checksum_is_right(self, sum) == Ok(true)
    }

    /// [`stt::checksum_is_right`]; false if the frame ends before. In eBPF a call.
    #[inline(always)]
    fn stt_checksum(&self, arrival: &stt::Arrival, outer: u32, at: u32) -> bool
    where
        Self: Sized,
    {
        stt::checksum_is_right(self, arrival, outer, at) == Ok(true)
    }

    /// [`outer::check_options`]. In eBPF a call.
    ///
    /// # Errors
    /// What is wrong with them.
    #[inline(always)]
    fn geneve_options(&self, at: u32, len: u32) -> Result<(), DropReason>
    where
        Self: Sized,
    {
        outer::check_options(self, at, len)
    }
}

/// A frame to change.
pub trait FrameMut: Frame {
    /// Overwrites the bytes from `at` on.
    ///
    /// # Errors
    /// If the frame ends before.
    fn store<T: IntoBytes + Immutable>(&mut self, at: u32, from: &T) -> Result<(), Refused>;

    /// Mends the transport's checksum that stands at `at`, after what it covers changed by `difference` (see
    /// [`tenet_wire::checksum::difference`]; several changes in one go are fine).
    ///
    /// `pseudo`: the change is in the pseudo header (addresses). A checksum that the kernel or a device still has to
    /// finish covers only that, so that other changes do not touch it. `udp`: a checksum of zero means that there is none
    /// and stays. The kernel's `bpf_l4_csum_replace` with a difference.
    ///
    /// # Errors
    /// If the frame ends before.
    fn mend_l4(&mut self, at: u32, difference: u32, pseudo: bool, udp: bool) -> Result<(), Refused>;

    /// Tells the kernel, which may keep a sum over the frame that a device made, that an IPv6 header changed by
    /// `difference`. IPv4's headers sum up to the same whatever changes in them.
    fn account(&mut self, difference: u32);

    /// Makes room for a tunnel's headers at the front; what is in it is undefined. `ip`: whether the frame is IP.
    ///
    /// # Errors
    /// If the kernel has no memory, or not for this kind of frame.
    fn grow_tunnel(&mut self, envelope: Envelope, ip: bool) -> Result<(), Refused>;

    /// Takes a tunnel's headers off; the first fourteen bytes are undefined then.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn shrink_tunnel(&mut self, shed: &Shed) -> Result<(), Refused>;

    /// Puts the room of a [`crate::HubFrame`] in the place of a tunnel's headers; what is in it is undefined.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn swap_tunnel(&mut self, shed: &Shed) -> Result<(), Refused>;

    /// [`stt::encapsulate`]. In eBPF a call.
    ///
    /// # Errors
    /// If the kernel refuses.
    #[inline(always)]
    fn stt_encapsulate(
        &mut self,
        len: u32,
        work: &PortWork,
        config: &Config,
        to: &Target,
    ) -> Result<stt::Sent, Refused>
    where
        Self: Sized,
    {
        let job = stt::Job { len, gso_size: self.gso_size(), own: &config.pa, to, id: 0 };
        stt::encapsulate(self, &mut stt::SttWork::default(), work, &job)
    }

    /// [`crate::edit::stt_whole`]. In eBPF a call.
    ///
    /// # Errors
    /// If the kernel refuses.
    #[inline(always)]
    fn stt_decapsulate(&mut self, work: &UplinkWork) -> Result<(), Refused>
    where
        Self: Sized,
    {
        crate::edit::stt_whole(self, work)
    }

    /// Makes room before a frame of whatever protocol; what is in it is undefined.
    ///
    /// # Errors
    /// If the kernel has no memory.
    fn grow_head(&mut self, by: u32) -> Result<(), Refused>;

    /// Makes room behind the link header of an IP frame, or takes so many bytes away there; what is in the room, and the
    /// link header, are undefined then. A checksum whose place is taken away, and which the kernel was to fill in, is
    /// forgotten; `trusted`: one that was found right stays so.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn room(&mut self, by: i32, trusted: bool) -> Result<(), Refused>;

    /// Has the kernel take an IP frame for one of the other family: twenty bytes are added behind the link header (IPv6), or
    /// taken away; all forty or twenty bytes there are undefined then.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn other_family(&mut self, v6: bool) -> Result<(), Refused>;

    /// Cuts the frame off, or adds bytes at its end, which are undefined. Not for frames that stand for several.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn resize(&mut self, len: u32) -> Result<(), Refused>;

    /// Makes the frame one of `len` bytes without any offload; all bytes are undefined then.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn remake(&mut self, len: u32) -> Result<(), Refused>;

    /// Sends a copy to the VM behind a port.
    fn clone_to_port(&mut self, ifindex: u32);

    /// Sends a copy, which is encapsulated, to the provider network.
    fn clone_to_wire(&mut self, uplink: u32);
}

/// The host's tables, as the maps of `tenet-tables`.
///
/// A row may change while it is read; no decision depends on two reads of one field.
pub trait Tables {
    /// Map `CONFIG`.
    fn config(&self) -> Option<&Config>;
    /// Map `PORTS`.
    fn port(&self, ifindex: u32) -> Option<&Port>;
    /// Map `SUBNETS`.
    fn subnet(&self, vsid: u32) -> Option<&Subnet>;
    /// Map `RECORDS`.
    fn record(&self, key: &RecordKey) -> Option<&Record>;
    /// Map `REWRITES`.
    fn rewrite(&self, key: &RewriteKey) -> Option<&Rewrite>;
    /// Map `POOLS`: whether the address is one of this host's rewrite addresses, in use or not.
    fn in_pool(&self, pa: Addr) -> bool;
    /// Map `MACS`.
    fn mac(&self, key: &MacKey) -> Option<&MacEntry>;
    /// Map `ROUTES`: the longest prefix of the network that holds the address.
    fn route(&self, net: u32, ca: Addr) -> Option<&Route>;
    /// Map `PEERS`.
    fn peer(&self, key: &PeerKey) -> Option<&Peer>;
    /// Map `FLOOD`.
    fn flood(&self, key: &FloodKey) -> Option<&FloodEntry>;
}
