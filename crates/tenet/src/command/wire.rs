//! NVGRE frames in words.

use std::net::{Ipv4Addr, Ipv6Addr};
use tenet_wire::parse::{Frame, Payload, nvgre};
use tenet_wire::{Arp, Ipv4, Ipv6, Ipv6Halves, ProtocolNumber};

/// An NVGRE frame as people read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Outer source and destination: the hosts.
    pub outer: (Ipv4Addr, Ipv4Addr),
    /// Virtual subnet.
    pub vsid: u32,
    /// The flow's number.
    pub flow: u8,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Inner source and destination, if it is IPv4.
    pub inner: Option<(Ipv4Addr, Ipv4Addr)>,
    /// What is inside, in words.
    pub words: String,
}

/// Whether a frame is one of the agents' own tests of methods and paths, or no NVGRE at all.
///
/// By the few bytes that tell, as a capture may have cut the rest off: the outer protocol, and the VSID that RFC 7637
/// §3.4 keeps for messages between virtualization endpoints.
pub fn is_not_tenants(bytes: &[u8]) -> bool {
    const PROTOCOL: usize = 14 + 9;
    const VSID: usize = 14 + 20 + 4;
    bytes.get(PROTOCOL) != Some(&ProtocolNumber::GRE) || bytes.get(VSID..VSID + 3) == Some(&[0xff; 3])
}

/// Takes a frame apart: nothing if it is sound but not NVGRE.
///
/// # Errors
/// What is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Option<Seen>, String> {
    let Some(found) = nvgre(bytes).map_err(|e| e.to_string())? else { return Ok(None) };
    let address = |o: [u8; 4]| Ipv4Addr::from(o);
    let pair = |ip: &Ipv4| (address(ip.src.octets()), address(ip.dst.octets()));
    let (inner, words) = words(&found.inner);
    Ok(Some(Seen {
        outer: pair(&found.outer),
        vsid: found.gre.vsid(),
        flow: found.gre.flow(),
        dont_fragment: found.outer.dont_fragment(),
        inner,
        words,
    }))
}

fn words(frame: &Frame<'_>) -> (Option<(Ipv4Addr, Ipv4Addr)>, String) {
    match &frame.payload {
        Payload::Arp(arp) => {
            let kind = if arp.operation == Arp::REQUEST { "request" } else { "reply" };
            (None, format!("ARP {kind} for {}", Ipv4Addr::from(arp.target.octets())))
        }
        Payload::Ipv4(ip, rest) => {
            let (from, to) = (Ipv4Addr::from(ip.src.octets()), Ipv4Addr::from(ip.dst.octets()));
            let port = |at: usize| {
                rest.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
            };
            let what = match ip.protocol {
                ProtocolNumber::ICMP => "ICMP".to_owned(),
                ProtocolNumber::TCP => format!("TCP {} > {}", port(0), port(2)),
                ProtocolNumber::UDP => format!("UDP {} > {}", port(0), port(2)),
                other => format!("protocol {other}"),
            };
            (Some((from, to)), format!("{from} > {to}  {what}, TTL {}, {} bytes", ip.ttl, ip.total_len.get()))
        }
        Payload::Ipv6(ip, transport) => {
            let address = |halves: Ipv6Halves| {
                let [a, b, c, d, e, f, g, h] = halves.map(u16::from_be);
                Ipv6Addr::new(a, b, c, d, e, f, g, h)
            };
            let port = |at: usize| {
                let bytes = transport.bytes.get(at..at + 2);
                bytes.and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
            };
            let what = match transport.protocol {
                ProtocolNumber::ICMPV6 => "ICMPv6".to_owned(),
                ProtocolNumber::TCP => format!("TCP {} > {}", port(0), port(2)),
                ProtocolNumber::UDP => format!("UDP {} > {}", port(0), port(2)),
                other => format!("protocol {other}"),
            };
            let (from, to) = (address(ip.src), address(ip.dst));
            let len = u32::from(ip.payload_len.get()) + Ipv6::LEN;
            (None, format!("{from} > {to}  {what}, hop limit {}, {len} bytes", ip.hop_limit))
        }
        Payload::Other(rest) => {
            (None, format!("EtherType {:#06x}, {} bytes", frame.eth.ty.get(), rest.len()))
        }
    }
}
