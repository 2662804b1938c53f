//! A frame in the kernel.

use crate::{stt, sum};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{
        bpf_clone_redirect, bpf_csum_level, bpf_csum_update, bpf_l4_csum_replace, bpf_set_hash,
        bpf_set_hash_invalid, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_proto,
        bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use core::mem::size_of;
use tenet_forward::{
    Frame, FrameMut, Meta, OuterSum, PortWork, Refused, SEND_MARK, Shed, Target, UplinkWork,
    stt::{Arrival, Sent},
};
use tenet_tables::{Config, DropReason};
use tenet_wire::{Envelope, EtherType, Ethernet, Ipv4Frame, Ipv6Frame};

/// `bpf_skb_adjust_room`: a segment stays as long as it is.
const FIXED_GSO: u64 = 1;
/// The new headers are IPv4 or IPv6, GRE or UDP, and an Ethernet header.
const ENCAP_IPV4: u64 = 1 << 1;
const ENCAP_IPV6: u64 = 1 << 2;
const ENCAP_GRE: u64 = 1 << 3;
const ENCAP_UDP: u64 = 1 << 4;
const ENCAP_ETHERNET: u64 = 1 << 6 | (Ethernet::LEN as u64) << 56;
/// What the kernel knows about the inner checksum stays true.
const KEEP_CHECKSUM: u64 = 1 << 5;
/// What is left after taking headers off is IPv4 or IPv6 (kernel 6.4).
const DECAP_IPV4: u64 = 1 << 7;
const DECAP_IPV6: u64 = 1 << 8;
/// The kernel is to forget the tunnel that is taken off, so that no device has to know it.
const DECAP_GRE: u64 = 1 << 9;
const DECAP_UDP: u64 = 1 << 10;
/// `bpf_csum_level`: how many checksums of the frame are known to be right; one less.
const LEVEL_QUERY: u64 = 0;
const LEVEL_LESS: u64 = 2;
/// `PACKET_HOST` of the kernel's if_packet.h.
const PACKET_HOST: u32 = 0;
const INGRESS: u64 = 1;
/// What every segment repeats: Ethernet, IPv4 and TCP with timestamps.
const SEGMENT_HEADERS: u32 = 66;

/// Whether this kernel knows [`DECAP_GRE`]; the loader tries it and says so here.
#[unsafe(no_mangle)]
static KERNEL_FORGETS: u8 = 0;

/// Whether this kernel knows [`DECAP_IPV4`] and [`DECAP_IPV6`]; the loader tries it and says so here.
#[unsafe(no_mangle)]
static KERNEL_TURNS: u8 = 0;

/// Whether the kernel can be told that what is left of a frame is of the other IP version.
#[inline(always)]
pub fn kernel_turns() -> bool {
    // SAFETY: a constant that the loader sets before the program is loaded.
    unsafe { core::ptr::read_volatile(&raw const KERNEL_TURNS) != 0 }
}

/// The frame that a program was called for.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.as_ptr().cast() }
    }

    /// The frame of a program's context.
    #[inline(always)]
    pub fn from_raw(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The program's context.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// The same frame for another function; one at a time uses it.
    #[inline(always)]
    pub fn again(&self) -> Self {
        Self { raw: self.raw }
    }

    /// What is known about the frame beside its bytes.
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        // SAFETY: the context is valid for the whole call; the verifier checks each field's access.
        unsafe {
            Meta {
                ifindex: (*self.raw).ifindex,
                len: (*self.raw).len,
                gso_size: (*self.raw).gso_size,
                mark: (*self.raw).mark,
                tagged: (*self.raw).vlan_present != 0,
            }
        }
    }

    /// Bytes now, and frames on the wire that they stand for.
    #[inline(always)]
    pub fn weight(&self) -> (u64, u64) {
        // SAFETY: as in `meta`.
        let (len, segments, size) = unsafe { ((*self.raw).len, (*self.raw).gso_segs, (*self.raw).gso_size) };
        // The kernel forgets the number of segments, but not their size, when headers are put on or taken off.
        let frames = match (segments, size) {
            (0, 0) => 1,
            (0, size) => len.saturating_sub(SEGMENT_HEADERS).div_ceil(size),
            (segments, _) => segments,
        };
        (u64::from(len), u64::from(frames))
    }

    /// Sets the mark that programs of this host see.
    #[inline(always)]
    pub fn set_mark(&mut self, mark: u32) {
        // SAFETY: as in `meta`; programs of this type may write the mark.
        unsafe { (*self.raw).mark = mark }
    }

    /// Tells the kernel that the frame is for the machine that gets it, whatever it thought of the old link header.
    #[inline(always)]
    pub fn to_host(&mut self) {
        // SAFETY: the helper takes numbers beside the context.
        unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
    }

    /// Number that [`Self::set_hash`] left.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).hash }
    }

    /// Leaves a number that, unlike the mark, goes with the frame to another namespace.
    #[inline(always)]
    pub fn set_hash(&mut self, number: u32) {
        // SAFETY: the helper takes numbers beside the context.
        unsafe { bpf_set_hash(self.raw, number) };
    }

    /// Makes the hash one of the flow again.
    #[inline(always)]
    pub fn forget_hash(&mut self) {
        // SAFETY: the helper takes the context.
        unsafe { bpf_set_hash_invalid(self.raw) };
    }

    /// Puts the network header behind the link header, where the kernel's decapsulation left it at the frame's start.
    #[inline(always)]
    pub fn mend_network_header(&mut self) -> Result<(), Refused> {
        const LINK: u32 = Ethernet::LEN;
        let mut eth = Ethernet::default();
        self.load(0, &mut eth)?;
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_change_head(self.raw, LINK, 0) })?;
        self.adjust(-(LINK as i32), FIXED_GSO | KEEP_CHECKSUM)?;
        self.store(0, &eth)
    }

    #[inline(always)]
    fn adjust(&mut self, by: i32, flags: u64) -> Result<(), Refused> {
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_adjust_room(self.raw, by, BPF_ADJ_ROOM_MAC, flags) })
    }

    /// Before an outer checksum goes: what the kernel knows is about one checksum less.
    #[inline(always)]
    fn less_verified(&mut self, shed: &Shed) {
        if shed.summed {
            // SAFETY: the helper takes numbers beside the context. Where nothing is known it refuses.
            unsafe { bpf_csum_level(self.raw, LEVEL_LESS) };
        }
    }

    /// Pads a frame: kernels without [`DECAP_IPV4`] want to be left with an IPv6 header's length at least.
    #[inline(always)]
    fn lengthen(&mut self, len: u32) -> Result<(), Refused> {
        if self.meta().len < len { self.tail(len) } else { Ok(()) }
    }

    #[inline(always)]
    fn tail(&mut self, len: u32) -> Result<(), Refused> {
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_change_tail(self.raw, len, 0) })
    }
}

#[inline(always)]
fn checked(result: i64) -> Result<(), Refused> {
    if result < 0 { Err(Refused) } else { Ok(()) }
}

impl Frame for Skb {
    #[inline(always)]
    fn load<T>(&self, at: u32, into: &mut T) -> Result<(), Refused> {
        let to = core::ptr::from_mut(into).cast();
        // SAFETY: the helper writes `size_of::<T>()` bytes there or reports an error; T holds any bytes.
        checked(unsafe { bpf_skb_load_bytes(self.raw.cast(), at, to, size_of::<T>() as u32) })
    }

    #[inline(always)]
    fn sum(&self, at: u32, len: u32) -> Result<u16, Refused> {
        let sum = sum::frame_sum(self.raw, at, len);
        if sum <= u32::from(u16::MAX) { Ok(sum as u16) } else { Err(Refused) }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    fn stt_checksum(&self, _: &Arrival, outer: u32, at: u32) -> bool {
        stt::stt_checksum(self.raw, outer, at) != 0
    }

    #[inline(always)]
    fn verified(&self) -> bool {
        // SAFETY: the helper takes numbers beside the context.
        unsafe { bpf_csum_level(self.raw, LEVEL_QUERY) >= 0 }
    }

    #[inline(always)]
    fn outer_checksum(&self, sum: &OuterSum) -> bool {
        sum::outer_checksum(self.raw, sum.addresses, sum.at, u32::from(sum.geneve)) != 0
    }

    #[inline(always)]
    fn geneve_options(&self, at: u32, len: u32) -> Result<(), DropReason> {
        match DropReason::from_number(sum::geneve_options(self.raw, at, len)) {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    }
}

impl FrameMut for Skb {
    #[inline(always)]
    fn store<T>(&mut self, at: u32, from: &T) -> Result<(), Refused> {
        let from = core::ptr::from_ref(from).cast();
        // SAFETY: the helper reads `size_of::<T>()` initialised bytes there.
        checked(unsafe { bpf_skb_store_bytes(self.raw, at, from, size_of::<T>() as u32, 0) })
    }

    #[inline(always)]
    fn mend_l4(&mut self, at: u32, difference: u32, pseudo: bool, udp: bool) -> Result<(), Refused> {
        // Size 0: a difference instead of two values.
        let flags = u64::from(if pseudo { BPF_F_PSEUDO_HDR } else { 0 })
            | u64::from(if udp { BPF_F_MARK_MANGLED_0 } else { 0 });
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_l4_csum_replace(self.raw, at, 0, u64::from(difference), flags) })
    }

    #[inline(always)]
    fn account(&mut self, difference: u32) {
        // SAFETY: the helper takes a number beside the context. It refuses where the kernel keeps no sum.
        unsafe { bpf_csum_update(self.raw, difference) };
    }

    #[inline(always)]
    fn grow_tunnel(&mut self, envelope: Envelope, ip: bool) -> Result<(), Refused> {
        let len = envelope.overhead();
        if ip {
            let network = if envelope.v6 { ENCAP_IPV6 } else { ENCAP_IPV4 };
            let transport = if envelope.udp { ENCAP_UDP } else { ENCAP_GRE };
            return self.adjust(len as i32, FIXED_GSO | network | transport | ENCAP_ETHERNET);
        }
        // The kernel makes room after the link header for IP only.
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_change_head(self.raw, len, 0) })
    }

    #[inline(always)]
    fn shrink_tunnel(&mut self, shed: &Shed) -> Result<(), Refused> {
        // SAFETY: a constant that the loader sets before the program is loaded.
        let forgets = unsafe { core::ptr::read_volatile(&raw const KERNEL_FORGETS) } != 0;
        let forget = match (forgets, shed.envelope.udp) {
            (false, _) => 0,
            (true, false) => DECAP_GRE,
            (true, true) => DECAP_UDP,
        };
        // What is no IP passes for IPv4, which may be shorter.
        let left_v6 = shed.inner == EtherType::IPV6;
        let mut turn = 0;
        if left_v6 != shed.envelope.v6 {
            if kernel_turns() {
                turn = if left_v6 { DECAP_IPV6 } else { DECAP_IPV4 };
            } else if shed.envelope.v6 {
                self.lengthen(shed.len + Ipv6Frame::LEN)?;
            }
        }
        self.less_verified(shed);
        self.adjust(-(shed.len as i32), FIXED_GSO | KEEP_CHECKSUM | forget | turn)
    }

    #[inline(always)]
    fn swap_tunnel(&mut self, shed: &Shed) -> Result<(), Refused> {
        self.less_verified(shed);
        if shed.envelope.v6 {
            return self.adjust(Ipv6Frame::LEN as i32 - shed.len as i32, FIXED_GSO | KEEP_CHECKSUM);
        }
        // The first step leaves a frame that the kernel takes for IPv6 without having touched what it knows of the
        // tunnel's segments, the second makes room for the header's rest.
        const MORE: i32 = (Ipv6Frame::LEN - Ipv4Frame::LEN) as i32;
        self.adjust(Ipv4Frame::LEN as i32 - shed.len as i32, FIXED_GSO | KEEP_CHECKSUM | DECAP_IPV6)?;
        self.adjust(MORE, FIXED_GSO | KEEP_CHECKSUM)
    }

    #[inline(always)]
    fn stt_encapsulate(&mut self, _: u32, _: &PortWork, _: &Config, to: &Target) -> Result<Sent, Refused> {
        stt::encapsulate(self, to)
    }

    #[inline(always)]
    fn stt_decapsulate(&mut self, _: &UplinkWork) -> Result<(), Refused> {
        if stt::stt_decapsulate(self.raw) == 0 { Ok(()) } else { Err(Refused) }
    }

    #[inline(always)]
    fn grow_head(&mut self, by: u32) -> Result<(), Refused> {
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_change_head(self.raw, by, 0) })
    }

    #[inline(always)]
    fn room(&mut self, by: i32, trusted: bool) -> Result<(), Refused> {
        self.adjust(by, if by > 0 || trusted { FIXED_GSO | KEEP_CHECKSUM } else { FIXED_GSO })
    }

    #[inline(always)]
    fn other_family(&mut self, v6: bool) -> Result<(), Refused> {
        let ty = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
        // SAFETY: the helper takes numbers beside the context.
        checked(unsafe { bpf_skb_change_proto(self.raw, ty.half(), 0) })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Refused> {
        self.tail(len)
    }

    #[inline(always)]
    fn remake(&mut self, len: u32) -> Result<(), Refused> {
        // The kernel trims no frame below a checksum that is still to be filled in. Taking away more than
        // the largest header from behind the link header makes it forget that checksum; and
        // a change at the tail makes it forget segmentation.
        const ENOUGH: u32 = 160;
        const HEADERS: i32 = 76;
        self.tail(ENOUGH)?;
        self.adjust(-HEADERS, 0)?;
        self.tail(len)
    }

    #[inline(always)]
    fn clone_to_port(&mut self, ifindex: u32) {
        crate::tell::delivered(self, ifindex);
        // SAFETY: the helper takes numbers beside the context. A failed copy is a lost broadcast.
        unsafe { bpf_clone_redirect(self.raw, ifindex, 0) };
    }

    #[inline(always)]
    fn clone_to_wire(&mut self, uplink: u32) {
        self.set_mark(SEND_MARK);
        // SAFETY: as above.
        unsafe { bpf_clone_redirect(self.raw, uplink, INGRESS) };
    }
}
