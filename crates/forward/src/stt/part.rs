//! Parts of a large inner TCP segment, delivered as the smaller TCP segments that they are.
//!
//! The first part brings the inner headers, which are kept; every later one gets them with its own sequence number.
//! TCP knows no boundaries between segments, so that the receiver cannot tell, and a lost part loses no more than itself.

use super::{Arrival, FLIP, pseudo_sum, receive::strip};
use crate::{Frame, FrameMut, Refused};
use tenet_tables::Addr;
use tenet_wire::{
    Be16, Be32, EtherType, Ethernet, Ipv4, Ipv6, ProtocolNumber, SttHeader, SttSegment, Tcp, checksum,
};

/// Which STT frame a part is of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct StreamKey {
    /// The sending host.
    pub src: Addr,
    /// Its number of the frame.
    pub id: u32,
}

/// Halves of TCP options.
const OPTIONS: usize = 20;

/// What a frame's first part leaves for the later ones.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stream {
    /// Where all parts go on to, or unset: they are delivered here.
    pub onward: Addr,
    /// The port that gets them, or that has moved.
    pub ifindex: u32,
    /// Bytes of the STT frame that have come.
    pub taken: u32,
    /// Length of the STT frame.
    pub total: u32,
    /// Bytes from the STT frame's begin to the inner TCP's payload.
    pub payload_at: u32,
    /// Payload bytes of an inner segment.
    pub mss: u32,
    /// Inner link header.
    pub eth: Ethernet,
    /// Inner network header, if IPv4.
    pub v4: Ipv4,
    /// Inner network header, if IPv6.
    pub v6: Ipv6,
    /// Inner TCP header.
    pub tcp: Tcp,
    /// Its options.
    pub options: [u16; OPTIONS],
}

/// FIN and PSH, which belong to the last part.
const AT_THE_END: u16 = 0x9;
/// CWR, which belongs to the first.
const AT_THE_BEGINNING: u16 = 0x80;
/// SYN, RST and URG: such a segment is not taken apart.
const INDIVISIBLE: u16 = 0x26;

/// What becomes of a later part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartFate {
    /// To the port.
    Deliver,
    /// On to another host.
    Onward,
    /// It contradicts the first part, or has come before.
    Broken,
}

impl Stream {
    #[inline(always)]
    fn network_len(&self) -> u32 {
        if self.eth.ty == EtherType::IPV6 { Ipv6::LEN } else { Ipv4::LEN }
    }

    /// Reads the inner headers of a first part that start at `at`. False: it is none that can be delivered.
    #[inline(always)]
    fn read<F: Frame>(&mut self, frame: &F, arrival: &Arrival, at: u32, eth: &Ethernet) -> bool {
        self.eth = *eth;
        self.total = arrival.segment.total.get() as u32;
        self.taken = arrival.have;
        self.mss = arrival.header.mss.get() as u32;
        let ip_at = at + Ethernet::LEN;
        let inner = self.total - SttHeader::LEN - Ethernet::LEN;
        let fits = if eth.ty == EtherType::IPV4 {
            frame.load(ip_at, &mut self.v4).is_ok()
                && self.v4.version_ihl == Ipv4::PLAIN
                && self.v4.protocol == ProtocolNumber::TCP
                && !self.v4.is_fragment()
                && self.v4.total_len.get() as u32 == inner
        } else if eth.ty == EtherType::IPV6 {
            frame.load(ip_at, &mut self.v6).is_ok()
                && self.v6.version() == 6
                && self.v6.next == ProtocolNumber::TCP
                && self.v6.payload_len.get() as u32 + Ipv6::LEN == inner
        } else {
            false
        };
        let tcp_at = ip_at + self.network_len();
        if !fits || frame.load(tcp_at, &mut self.tcp).is_err() {
            return false;
        }
        let header = Tcp::header_len(self.tcp.offset_flags);
        self.payload_at = SttHeader::LEN + Ethernet::LEN + self.network_len() + header;
        if header < Tcp::LEN
            || self.payload_at >= arrival.have
            || self.tcp.offset_flags.get() & INDIVISIBLE != 0
        {
            return false;
        }
        let mut i = 0;
        while i < OPTIONS {
            if Tcp::LEN + 2 * i as u32 >= header {
                break;
            }
            let mut pair = [0u16; 2];
            if frame.load(tcp_at + Tcp::LEN + 2 * i as u32, &mut pair).is_err() {
                return false;
            }
            self.options[i] = pair[0];
            self.options[i + 1] = pair[1];
            i += 2;
        }
        true
    }

    /// Writes the inner headers of a part of `len` payload bytes that starts at `offset` of the STT frame, from the network
    /// header on. `large`: the kernel will fill in TCP's checksum.
    #[inline(always)]
    fn write<F: FrameMut>(
        &mut self,
        frame: &mut F,
        (offset, len): (u32, u32),
        ecn: Option<u8>,
        large: bool,
    ) -> Result<(), Refused> {
        let header = Tcp::header_len(self.tcp.offset_flags);
        let segment = header + len;
        let pseudo = if self.eth.ty == EtherType::IPV6 {
            let mut ip = self.v6;
            ip.payload_len = Be16::new(segment as u16);
            if let Some(ecn) = ecn {
                ip.set_class(ip.class() & !Ipv4::ECN | ecn);
            }
            frame.store(Ethernet::LEN, &ip)?;
            checksum::sum(&ip.src) + checksum::sum(&ip.dst)
        } else {
            let mut ip = self.v4;
            ip.total_len = Be16::new((Ipv4::LEN + segment) as u16);
            if let Some(ecn) = ecn {
                ip.tos = ip.tos & !Ipv4::ECN | ecn;
            }
            frame.store(Ethernet::LEN, &ip.with_checksum())?;
            checksum::sum(&ip.src.halves()) + checksum::sum(&ip.dst.halves())
        };
        let mut tcp = self.tcp;
        let mut flags = tcp.offset_flags.get();
        if offset + len != self.total {
            flags &= !AT_THE_END;
        }
        if offset != self.payload_at {
            flags &= !AT_THE_BEGINNING;
        }
        tcp.offset_flags = Be16::new(flags);
        tcp.sequence = Be32::new(tcp.sequence.get().wrapping_add(offset - self.payload_at));
        tcp.checksum = Be16::new(0);
        let at = Ethernet::LEN + self.network_len();
        frame.store(at, &tcp)?;
        let mut i = 0;
        while i < OPTIONS {
            if Tcp::LEN + 2 * i as u32 >= header {
                break;
            }
            frame.store(at + Tcp::LEN + 2 * i as u32, &[self.options[i], self.options[i + 1]])?;
            i += 2;
        }
        let pseudo = pseudo_sum(pseudo, ProtocolNumber::TCP, segment);
        let check = if large {
            checksum::fold(pseudo)
        } else {
            checksum::finish(pseudo + frame.sum(at, segment)? as u32)
        };
        frame.store(at + Tcp::CHECKSUM_AT, &check)
    }
}

/// Makes a first part a TCP segment of its own, and leaves in `stream` what the later ones need. `Ok(false)`: it is none
/// that can be delivered by itself, and is as it was.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn deliver_first<F: FrameMut>(
    frame: &mut F,
    stream: &mut Stream,
    arrival: &Arrival,
    (outer_v6, inner_at): (bool, u32),
    (eth, ecn): (&Ethernet, Option<u8>),
    gso_size: u32,
) -> Result<bool, Refused> {
    if !arrival.is_stream() || !stream.read(frame, arrival, inner_at, eth) {
        return Ok(false);
    }
    strip(frame, outer_v6, eth, false)?;
    let len = arrival.have - stream.payload_at;
    stream.write(frame, (stream.payload_at, len), ecn, gso_size != 0)?;
    Ok(true)
}

/// Judges a later part by what the first one left.
#[inline(always)]
pub fn later(stream: &mut Stream, arrival: &Arrival, gso_size: u32) -> PartFate {
    if stream.total != arrival.segment.total.get() as u32 {
        return PartFate::Broken;
    }
    // Nothing twice: what has come may never be more than the whole.
    let taken = stream.taken + arrival.have;
    if taken > stream.total {
        return PartFate::Broken;
    }
    if stream.onward.is_unset() {
        let early = (arrival.segment.offset.get() as u32) < stream.payload_at;
        if early || gso_size != 0 && gso_size != stream.mss {
            return PartFate::Broken;
        }
    }
    stream.taken = taken;
    if stream.onward.is_unset() { PartFate::Deliver } else { PartFate::Onward }
}

/// Makes a later part, of whose outer headers `len` bytes of frame are left with the payload, a TCP segment.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn deliver_later<F: FrameMut>(
    frame: &mut F,
    stream: &mut Stream,
    arrival: &Arrival,
    outer_v6: bool,
    ecn: Option<u8>,
    gso_size: u32,
) -> Result<(), Refused> {
    let inner_v6 = stream.eth.ty == EtherType::IPV6;
    let mut less = if outer_v6 { 40 } else { 20 } + SttSegment::LEN;
    let more = stream.payload_at - SttHeader::LEN - Ethernet::LEN;
    let have = arrival.have;
    // The kernel takes away no more than leaves a network header's length.
    let small = have < 2 * Ipv6::LEN;
    if small {
        frame.resize(Ethernet::LEN + less + have + 2 * Ipv6::LEN)?;
    }
    if inner_v6 && !outer_v6 {
        frame.other_family(true)?;
        less += FLIP;
    } else if !inner_v6 && outer_v6 {
        frame.other_family(false)?;
        less -= FLIP;
    }
    frame.room(-(less as i32), false)?;
    frame.room(more as i32, false)?;
    if small {
        frame.resize(Ethernet::LEN + more + have)?;
    }
    frame.store(0, &stream.eth)?;
    stream.write(frame, (arrival.segment.offset.get() as u32, have), ecn, gso_size != 0)
}
