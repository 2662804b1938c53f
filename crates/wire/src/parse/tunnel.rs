//! NVGRE, VXLAN and Geneve, over IPv4 or IPv6.

use super::{Frame, ParseError, Payload, frame};
use crate::{
    Geneve, GeneveOption, Gre, Ipv4, Ipv6, OptionsError, ProtocolNumber, TunnelHeader, Udp, Vxlan, checksum,
    walk_options,
};
use zerocopy::FromBytes;

/// An outer network header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outer {
    /// IPv4.
    V4(Ipv4),
    /// IPv6.
    V6(Ipv6),
}

impl Outer {
    /// DSCP and ECN.
    #[must_use]
    pub const fn class(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.tos,
            Self::V6(ip) => ip.class(),
        }
    }

    /// Hops left.
    #[must_use]
    pub const fn hop_limit(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.ttl,
            Self::V6(ip) => ip.hop_limit,
        }
    }
}

/// The kinds of tunnels, each with its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// NVGRE (RFC 7637).
    Nvgre(Gre),
    /// VXLAN (RFC 7348).
    Vxlan(Vxlan),
    /// Geneve (RFC 8926) and its options.
    Geneve(Geneve, &'a [u8]),
}

/// A tunnelled frame taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnelled<'a> {
    /// Outer network header.
    pub outer: Outer,
    /// Outer transport header, of those that have one.
    pub udp: Option<Udp>,
    /// Tunnel header.
    pub kind: Kind<'a>,
    /// Virtual subnet.
    pub vsid: u32,
    /// The frame inside, as bytes.
    pub bytes: &'a [u8],
    /// The frame inside, or why it is none: the tunnel is sound all the same.
    pub inner: Result<Frame<'a>, ParseError>,
}

/// UDP ports by which tunnels are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelPorts {
    /// VXLAN's.
    pub vxlan: u16,
    /// Geneve's.
    pub geneve: u16,
}

impl Default for TunnelPorts {
    /// The assigned ones (RFC 7348 §5, RFC 8926 §3.3).
    fn default() -> Self {
        Self { vxlan: 4789, geneve: 6081 }
    }
}

/// Takes an NVGRE, VXLAN or Geneve frame apart, over IPv4 or IPv6; `Ok(None)` if the frame is sound but something else.
///
/// # Errors
/// If an outer header ends early, lies about lengths, or breaks its RFC; if there is an outer checksum and it is wrong.
pub fn tunnel(bytes: &[u8], ports: TunnelPorts) -> Result<Option<Tunnelled<'_>>, ParseError> {
    let (outer, protocol, rest) = match frame(bytes)?.payload {
        Payload::Ipv4(ip, _) if ip.is_later_fragment() => return Ok(None),
        Payload::Ipv4(ip, rest) => (Outer::V4(ip), ip.protocol, rest),
        Payload::Ipv6(_, rest) if rest.fragment.is_some_and(|f| f.is_later()) => return Ok(None),
        Payload::Ipv6(ip, rest) => (Outer::V6(ip), rest.protocol, rest.bytes),
        Payload::Arp(_) | Payload::Other(_) => return Ok(None),
    };
    let (udp, kind, bytes) = if protocol == ProtocolNumber::GRE {
        let (gre, rest) = Gre::read_from_prefix(rest).map_err(|_| ParseError::Truncated("GRE"))?;
        if !gre.is_bridged() {
            return Ok(None);
        }
        if gre.version() != 0 {
            return Err(ParseError::Version("GRE"));
        }
        if !gre.is_nvgre() {
            return Err(ParseError::Malformed("GRE"));
        }
        (None, Kind::Nvgre(gre), rest)
    } else if protocol == ProtocolNumber::UDP {
        let (udp, _) = Udp::read_from_prefix(rest).map_err(|_| ParseError::Truncated("UDP"))?;
        let port = udp.dst.get();
        if port != ports.vxlan && port != ports.geneve {
            return Ok(None);
        }
        // No sender of tunnels leaves a rest behind the datagram.
        if usize::from(udp.len.get()) != rest.len() {
            return Err(ParseError::Malformed("UDP"));
        }
        let (datagram, payload) = (rest, rest.get(Udp::LEN as usize..).unwrap_or_default());
        let sum = || pseudo_sum(&outer, &udp) + u32::from(checksum::fold(checksum::sum_bytes(datagram)));
        if udp.checksum.get() != 0 && checksum::finish(sum()) != 0 {
            return Err(ParseError::Checksum("UDP"));
        }
        let (kind, rest) = if port == ports.geneve { geneve(payload)? } else { vxlan(payload)? };
        (Some(udp), kind, rest)
    } else {
        return Ok(None);
    };
    let vsid = match kind {
        Kind::Nvgre(gre) => gre.vsid(),
        Kind::Vxlan(header) => header.vni(),
        Kind::Geneve(header, _) => header.vni(),
    };
    Ok(Some(Tunnelled { outer, udp, kind, vsid, bytes, inner: frame(bytes) }))
}

/// Sum of the pseudo header that stands before a UDP datagram (RFC 768, RFC 8200 §8.1), folded to few bits.
#[must_use]
pub fn pseudo_sum(outer: &Outer, udp: &Udp) -> u32 {
    let addresses = match outer {
        Outer::V4(ip) => {
            let ([a, b], [c, d]) = (ip.src.halves(), ip.dst.halves());
            checksum::sum(&[a, b, c, d])
        }
        Outer::V6(ip) => checksum::sum(&ip.src) + checksum::sum(&ip.dst),
    };
    addresses + u32::from(u16::from(ProtocolNumber::UDP).to_be()) + u32::from(udp.len.half())
}

fn vxlan(payload: &[u8]) -> Result<(Kind<'_>, &[u8]), ParseError> {
    let (header, rest) = Vxlan::read_from_prefix(payload).map_err(|_| ParseError::Truncated("VXLAN"))?;
    if header.is_valid() { Ok((Kind::Vxlan(header), rest)) } else { Err(ParseError::Malformed("VXLAN")) }
}

fn geneve(payload: &[u8]) -> Result<(Kind<'_>, &[u8]), ParseError> {
    let (header, rest) = Geneve::read_from_prefix(payload).map_err(|_| ParseError::Truncated("Geneve"))?;
    if header.version() != 0 {
        return Err(ParseError::Version("Geneve"));
    }
    let len = header.options_len() as usize;
    let (Some(options), Some(inner)) = (rest.get(..len), rest.get(len..)) else {
        return Err(ParseError::Options);
    };
    let walked = walk_options(header.options_len(), |at| {
        options
            .get(at as usize..)
            .and_then(|o| GeneveOption::read_from_prefix(o).ok())
            .map(|(option, _)| option)
    });
    match walked {
        Err(OptionsError::Lengths) => return Err(ParseError::Options),
        Err(OptionsError::Critical) => return Err(ParseError::Critical),
        Ok(()) => {}
    }
    if header.is_control() {
        return Err(ParseError::Control);
    }
    if !header.is_bridged() {
        return Err(ParseError::Malformed("Geneve"));
    }
    Ok((Kind::Geneve(header, options), inner))
}

impl Kind<'_> {
    /// The tunnel header, without options.
    #[must_use]
    pub fn header(&self) -> TunnelHeader {
        match *self {
            Self::Nvgre(header) => header.into(),
            Self::Vxlan(header) => header.into(),
            Self::Geneve(header, _) => header.into(),
        }
    }
}
