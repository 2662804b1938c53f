//! Out: STT's headers before a VM's frame.

use super::{FLIP, Headers, HeadersV4, HeadersV6, addresses, pseudo_sum, tcp_length_fits};
use crate::{
    Frame, FrameMut, PortWork, Refused, Target,
    packet::{L3, Packet},
};
use tenet_tables::Addr;
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Ipv4, Mac, ProtocolNumber, STT_HEADERS, SttHeader, SttSegment, checksum,
    outer_ipv4, outer_ipv6,
};

/// What [`encapsulate`] works on, outside of eBPF's stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct SttWork {
    /// The headers that are put before the frame.
    pub headers: Headers,
    /// The first bytes of the inner TCP header of a frame that stands for several.
    pub tcp: [u16; SAVED],
}

/// What is to be sent, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job<'a> {
    /// Length of the frame.
    pub len: u32,
    /// Payload bytes per segment if it stands for several, else 0.
    pub gso_size: u32,
    /// This host.
    pub own: &'a Addr,
    /// Where to.
    pub to: &'a Target,
    /// Number of the STT frame.
    pub id: u32,
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It is ready for the wire.
    Ready,
    /// It is as it was: a kind that cannot be cut up by TCP's rules. Cut it up first.
    Uncut,
}

/// Halves of the inner TCP header that give way when the kernel is made to forget its checksum.
const SAVED: usize = 8;
/// The same in bytes.
const SAVED_BYTES: u32 = 2 * SAVED as u32;

/// Puts STT's headers before a frame.
///
/// A frame that stands for several TCP segments stays one: the kernel will cut the STT frame up as if it were such a
/// segment itself. For that it must forget where it wanted to fill in the inner checksum, so that it looks for a
/// header to fill one in, and finds the outer: a checksum's place that is cut away is forgotten (from kernel 6.11 on,
/// segmentation drops frames where it is not in the outermost TCP header).
///
/// # Errors
/// If the frame ends before its headers do, or the kernel refuses.
#[inline(always)]
pub fn encapsulate<F: FrameMut>(
    frame: &mut F,
    sheet: &mut SttWork,
    work: &PortWork,
    job: &Job<'_>,
) -> Result<Sent, Refused> {
    let (ip, v6) = (work.is_ip(), job.own.as_v4_word().is_none());
    let total = job.len + SttHeader::LEN;
    let mut inner = 0;
    if work.routed {
        work.head.store_packet(frame, Ethernet::LEN)?;
    }
    if job.gso_size != 0 {
        let tcp = ip && work.packet.protocol == ProtocolNumber::TCP;
        if !tcp || !work.packet.plain || work.packet.fragment || !tcp_length_fits(total) {
            return Ok(Sent::Uncut);
        }
        frame.load(work.packet.transport_at(), &mut sheet.tcp)?;
    } else {
        inner = inner_sum(frame, work, job.len)?;
    }
    fill(sheet, work, job, v6, total, inner);
    make_room(frame, work, job, v6)?;
    store(frame, sheet, work, job, v6)
}

/// The sum of the inner frame without its link header, in sixteen bits.
///
/// The checksum of an inner transport may be unfinished. When it is filled in, on the way out or by the receiver, the
/// transport's bytes add up to the complement of its pseudo header, whatever they are ("local checksum offload" in the
/// kernel's Documentation/networking/checksum-offloads.rst).
#[inline(always)]
fn inner_sum<F: Frame>(frame: &F, work: &PortWork, len: u32) -> Result<u16, Refused> {
    let packet = &work.packet;
    let exact = work.is_ip() && !packet.fragment && packet.len + Ethernet::LEN == len;
    let (tcp, udp) = (packet.protocol == ProtocolNumber::TCP, packet.protocol == ProtocolNumber::UDP);
    if exact && (tcp || udp) {
        let mut check = 0u16;
        let found = frame.load(packet.transport_at() + if tcp { 16 } else { 6 }, &mut check);
        if found.is_ok() && check != 0 {
            return lco_sum(frame, Ethernet::LEN, &work.head.l3, packet);
        }
    }
    frame.sum(Ethernet::LEN, len - Ethernet::LEN)
}

/// The sum of a packet whose transport checksum is, or will be, right.
#[inline(always)]
pub(super) fn lco_sum<F: Frame>(frame: &F, ip_at: u32, l3: &L3, packet: &Packet) -> Result<u16, Refused> {
    let length = packet.len - packet.transport;
    let pseudo = pseudo_sum(addresses(l3, packet.v6), packet.protocol, length);
    let transport = !checksum::fold(pseudo);
    // IPv4's own checksum makes its header add up to nothing.
    let network = if !packet.v6 {
        0
    } else if packet.plain {
        let halves: [u16; 20] = zerocopy::transmute!(*l3.v6());
        checksum::fold(checksum::sum(&halves))
    } else {
        frame.sum(ip_at, packet.transport)?
    };
    Ok(checksum::fold(transport as u32 + network as u32))
}

/// Writes the headers into the work sheet.
#[inline(always)]
fn fill(sheet: &mut SttWork, work: &PortWork, job: &Job<'_>, v6: bool, total: u32, inner: u16) {
    let gso = job.gso_size != 0;
    let ecn = work.class() & Ipv4::ECN;
    let mut stt = SttHeader { context_low: Be32::new(job.to.vsid), ..SttHeader::default() };
    if work.head.eth.ty == EtherType::IPV4 {
        stt.flags |= SttHeader::IPV4;
    }
    if work.is_ip() && work.packet.protocol == ProtocolNumber::TCP {
        stt.flags |= SttHeader::TCP;
    }
    if gso {
        stt.flags |= SttHeader::PARTIAL;
        stt.l4_offset = work.packet.transport_at() as u8;
        stt.mss = Be16::new(job.gso_size as u16);
    }
    let mut tcp = SttSegment::whole(0xc000 | (job.to.flow >> 18) as u16, total as u16, job.id);
    let tcp_len = total + SttSegment::LEN;
    // The kernel replaces the addresses when it knows the neighbour.
    let eth = Ethernet { dst: Mac::default(), src: Mac::default(), ty: EtherType::IPV4 };
    let outer_sum;
    if v6 {
        let (src, dst) = (crate::packet::halves6(job.own), crate::packet::halves6(&job.to.pa));
        let ip = outer_ipv6(src, dst, ProtocolNumber::TCP, tcp_len as u16, ecn, job.to.flow);
        outer_sum = checksum::sum(&src) + checksum::sum(&dst);
        sheet.headers.v6.eth = Ethernet { ty: EtherType::IPV6, ..eth };
        sheet.headers.v6.ip = ip;
    } else {
        let (src, dst) = (Be32::from_word(job.own.words[3]), Be32::from_word(job.to.pa.words[3]));
        let ip = outer_ipv4(src, dst, ProtocolNumber::TCP, (tcp_len + Ipv4::LEN) as u16, ecn);
        outer_sum = checksum::sum(&src.halves()) + checksum::sum(&dst.halves());
        sheet.headers.v4.eth = eth;
        sheet.headers.v4.ip = ip;
    }
    let pseudo = pseudo_sum(outer_sum, ProtocolNumber::TCP, tcp_len);
    tcp.checksum = Be16::from_half(if gso {
        checksum::fold(pseudo)
    } else {
        let inner_eth: [u16; 7] = zerocopy::transmute!(work.head.eth);
        let ours = checksum::sum(&tcp.halves()) + checksum::sum(&stt.halves()) + checksum::sum(&inner_eth);
        checksum::finish(pseudo + ours + inner as u32)
    });
    let rest = super::Rest { tcp, stt, inner: work.head.eth };
    if v6 {
        sheet.headers.v6.rest = rest;
    } else {
        sheet.headers.v4.rest = rest;
    }
}

/// Makes the headers' room, and has the kernel take the frame for one of the outer family.
#[inline(always)]
fn make_room<F: FrameMut>(frame: &mut F, work: &PortWork, job: &Job<'_>, v6: bool) -> Result<(), Refused> {
    let network = if v6 { 40 } else { 20 };
    let mut more = network + STT_HEADERS + Ethernet::LEN;
    if !work.is_ip() {
        return frame.grow_head(more);
    }
    let mut saved = if job.gso_size != 0 { work.packet.transport + SAVED_BYTES } else { 0 };
    if v6 != work.is_v6() {
        frame.other_family(v6)?;
        more = if v6 { more - FLIP } else { more + FLIP };
        if saved != 0 {
            // The header that changed its length goes with what is saved.
            saved = if v6 { saved + FLIP } else { saved - FLIP };
        }
    }
    if saved != 0 {
        frame.room(-(saved as i32), false)?;
        more += saved;
    }
    frame.room(more as i32, false)
}

#[inline(always)]
fn store<F: FrameMut>(
    frame: &mut F,
    sheet: &SttWork,
    work: &PortWork,
    job: &Job<'_>,
    v6: bool,
) -> Result<Sent, Refused> {
    let at = if v6 {
        frame.store(0, &sheet.headers.v6)?;
        HeadersV6::LEN
    } else {
        frame.store(0, &sheet.headers.v4)?;
        HeadersV4::LEN
    };
    let large = job.gso_size != 0;
    // IPv4's smaller header took the begin of an inner IPv6 header away.
    if large || work.is_v6() && !v6 {
        work.head.store_packet(frame, at)?;
    }
    if large {
        frame.store(at + work.packet.transport, &sheet.tcp)?;
    }
    Ok(Sent::Ready)
}
