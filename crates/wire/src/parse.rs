//! Takes whole frames apart, for traces, tests and people.
//!
//! The data plane does not use this module: it loads the same layouts with kernel helpers.

use crate::{Arp, EtherType, Ethernet, Gre, Ipv4, ProtocolNumber};
use zerocopy::FromBytes;

/// Why a frame is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// The frame ends inside this header.
    Truncated(&'static str),
    /// A field of this header contradicts itself or the frame.
    Malformed(&'static str),
}

impl core::fmt::Display for ParseError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated(what) => write!(f, "frame ends inside its {what} header"),
            Self::Malformed(what) => write!(f, "{what} header contradicts itself or the frame"),
        }
    }
}

impl core::error::Error for ParseError {}

/// A frame's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload<'a> {
    /// ARP of IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4, its header checked; the slice is what the header says it carries.
    Ipv4(Ipv4, &'a [u8]),
    /// Anything else, not looked at.
    Other(&'a [u8]),
}

/// A frame taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Link header.
    pub eth: Ethernet,
    /// What it carries.
    pub payload: Payload<'a>,
}

/// An NVGRE frame taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nvgre<'a> {
    /// Outer network header.
    pub outer: Ipv4,
    /// Tunnel header.
    pub gre: Gre,
    /// The frame inside.
    pub inner: Frame<'a>,
}

/// Takes a frame apart.
///
/// # Errors
/// If a header ends early or lies about lengths.
///
/// ```
/// use tenet_wire::parse::{ParseError, frame};
/// assert_eq!(frame(&[0; 13]), Err(ParseError::Truncated("Ethernet")));
/// ```
pub fn frame(bytes: &[u8]) -> Result<Frame<'_>, ParseError> {
    let (eth, rest) = Ethernet::read_from_prefix(bytes).map_err(|_| ParseError::Truncated("Ethernet"))?;
    let payload = if eth.ty == EtherType::ARP {
        let (arp, _) = Arp::read_from_prefix(rest).map_err(|_| ParseError::Truncated("ARP"))?;
        if !arp.is_ipv4() {
            return Err(ParseError::Malformed("ARP"));
        }
        Payload::Arp(arp)
    } else if eth.ty == EtherType::IPV4 {
        let (ip, payload) = ipv4(rest)?;
        Payload::Ipv4(ip, payload)
    } else {
        Payload::Other(rest)
    };
    Ok(Frame { eth, payload })
}

/// Takes an IPv4 packet apart into its header and what it carries; options and padding are left out.
///
/// # Errors
/// If the header ends early or lies about lengths.
pub fn ipv4(bytes: &[u8]) -> Result<(Ipv4, &[u8]), ParseError> {
    let (ip, _) = Ipv4::read_from_prefix(bytes).map_err(|_| ParseError::Truncated("IPv4"))?;
    let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if !ip.fits(available) {
        return Err(ParseError::Malformed("IPv4"));
    }
    let payload = bytes
        .get(ip.header_len() as usize..usize::from(ip.total_len.get()))
        .ok_or(ParseError::Malformed("IPv4"))?;
    Ok((ip, payload))
}

/// Takes an NVGRE frame apart; `Ok(None)` if the frame is sound but something else.
///
/// # Errors
/// If a header ends early, lies about lengths, or breaks RFC 7637 §3.2.
pub fn nvgre(bytes: &[u8]) -> Result<Option<Nvgre<'_>>, ParseError> {
    let Payload::Ipv4(outer, rest) = frame(bytes)?.payload else { return Ok(None) };
    if outer.protocol != ProtocolNumber::GRE || outer.is_later_fragment() {
        return Ok(None);
    }
    let (gre, rest) = Gre::read_from_prefix(rest).map_err(|_| ParseError::Truncated("GRE"))?;
    if !gre.is_bridged() {
        return Ok(None);
    }
    if !gre.is_nvgre() {
        return Err(ParseError::Malformed("GRE"));
    }
    Ok(Some(Nvgre { outer, gre, inner: frame(rest)? }))
}
