//! Takes whole frames apart, for traces, tests and people.
//!
//! The data plane does not use this module: it loads the same layouts with kernel helpers.

use crate::{
    Arp, EtherType, Ethernet, Gre, Icmp6, Ipv4, Ipv6, Ipv6Fragment, LinkOption, Neighbour, ProtocolNumber,
    RouterAdvertisement,
};
use zerocopy::FromBytes;

mod tunnel;

pub use tunnel::{Kind, Outer, TunnelPorts, Tunnelled, pseudo_sum, tunnel};

/// Why a frame is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// The frame ends inside this header.
    Truncated(&'static str),
    /// A field of this header contradicts itself or the frame.
    Malformed(&'static str),
    /// A tunnel header of a version that nobody defined.
    Version(&'static str),
    /// A Geneve frame for the tunnel endpoint itself (RFC 8926 §3.4).
    Control,
    /// A Geneve option that must be understood and is not (RFC 8926 §3.5).
    Critical,
    /// Geneve options whose lengths do not add up.
    Options,
    /// The sum over header and payload is wrong.
    Checksum(&'static str),
}

impl core::fmt::Display for ParseError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated(what) => write!(f, "frame ends inside its {what} header"),
            Self::Malformed(what) => write!(f, "{what} header contradicts itself or the frame"),
            Self::Version(what) => write!(f, "{what} header has an unknown version"),
            Self::Control => write!(f, "Geneve frame is for the tunnel endpoint"),
            Self::Critical => write!(f, "Geneve option is critical and unknown"),
            Self::Options => write!(f, "Geneve options' lengths do not add up"),
            Self::Checksum(what) => write!(f, "{what} checksum is wrong"),
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
    /// IPv6, its header checked; what it carries stands behind its extension headers.
    Ipv6(Ipv6, Transport<'a>),
    /// Anything else, not looked at.
    Other(&'a [u8]),
}

/// What a packet of IPv6 carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport<'a> {
    /// One of [`ProtocolNumber`], or anything else.
    pub protocol: u8,
    /// The fragment header, if there is one. A later fragment's [`Self::bytes`] are the middle of something.
    pub fragment: Option<Ipv6Fragment>,
    /// What stands behind the extension headers.
    pub bytes: &'a [u8],
}

/// A message of neighbour discovery taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discovery<'a> {
    /// Somebody asks for routers.
    RouterSolicitation(Options<'a>),
    /// A router tells of itself, in the form that ours have.
    RouterAdvertisement(RouterAdvertisement),
    /// A solicitation, or an advertisement, by [`Neighbour::ty_code`].
    Neighbour(Neighbour, Options<'a>),
}

/// Options of neighbour discovery, one after the other; a forbidden length ends them with an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    /// The start of an option, and all of its bytes.
    type Item = Result<(LinkOption, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let Ok((option, _)) = LinkOption::read_from_prefix(rest) else {
            return Some(Err(ParseError::Truncated("discovery option")));
        };
        let len = option.len() as usize;
        if len == 0 {
            return Some(Err(ParseError::Malformed("discovery option")));
        }
        let Some((all, rest)) = rest.split_at_checked(len) else {
            return Some(Err(ParseError::Truncated("discovery option")));
        };
        self.rest = rest;
        Some(Ok((option, all)))
    }
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
    } else if eth.ty == EtherType::IPV6 {
        let (ip, transport) = ipv6(rest)?;
        Payload::Ipv6(ip, transport)
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

/// Takes an IPv6 packet apart into its header and what stands behind its extension headers; padding is left out.
///
/// # Errors
/// If a header ends early or lies about lengths.
pub fn ipv6(bytes: &[u8]) -> Result<(Ipv6, Transport<'_>), ParseError> {
    let (ip, rest) = Ipv6::read_from_prefix(bytes).map_err(|_| ParseError::Truncated("IPv6"))?;
    let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if !ip.fits(available) {
        return Err(ParseError::Malformed("IPv6"));
    }
    let mut bytes = rest.get(..usize::from(ip.payload_len.get())).ok_or(ParseError::Malformed("IPv6"))?;
    let (mut protocol, mut fragment) = (ip.next, None);
    while ProtocolNumber::is_extension(protocol) {
        let (header, _) =
            Ipv6Fragment::read_from_prefix(bytes).map_err(|_| ParseError::Truncated("IPv6 extension"))?;
        let len = if protocol == ProtocolNumber::FRAGMENT {
            fragment = Some(header);
            Ipv6Fragment::LEN as usize
        } else {
            (usize::from(header.reserved) + 1) * 8
        };
        bytes = bytes.get(len..).ok_or(ParseError::Malformed("IPv6 extension"))?;
        protocol = header.next;
        if header.is_later() && fragment.is_some() {
            break;
        }
    }
    Ok((ip, Transport { protocol, fragment, bytes }))
}

/// Takes a message of ICMPv6 apart; `Ok(None)` if it is none of neighbour discovery.
///
/// # Errors
/// If the message ends early, or an advertisement of a router is not like ours.
pub fn discovery(message: &[u8]) -> Result<Option<Discovery<'_>>, ParseError> {
    const WHAT: &str = "neighbour discovery";
    let (icmp, rest) = Icmp6::read_from_prefix(message).map_err(|_| ParseError::Truncated("ICMPv6"))?;
    Ok(Some(match icmp.ty() {
        Icmp6::ROUTER_SOLICITATION => Discovery::RouterSolicitation(Options { rest }),
        Icmp6::ROUTER_ADVERTISEMENT => {
            let nd =
                RouterAdvertisement::read_from_bytes(message).map_err(|_| ParseError::Malformed(WHAT))?;
            Discovery::RouterAdvertisement(nd)
        }
        Icmp6::NEIGHBOUR_SOLICITATION | Icmp6::NEIGHBOUR_ADVERTISEMENT => {
            let (nd, rest) = Neighbour::read_from_prefix(message).map_err(|_| ParseError::Truncated(WHAT))?;
            Discovery::Neighbour(nd, Options { rest })
        }
        _ => return Ok(None),
    }))
}

/// Takes an NVGRE frame in IPv4 apart; [`tunnel`] knows all others. `Ok(None)` if the frame is sound but something else.
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
