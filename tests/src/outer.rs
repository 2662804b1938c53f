//! How a frame on the provider network was made, by its outer headers alone. On purpose none of our own parsers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_model::{Family, Method};

/// The outer headers of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The outer family.
    pub family: Family,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The tunnel that its protocol and port say; [`Method::Rewrite`] for anything else.
    pub method: Method,
}

/// What is around a frame; nothing for one that is no IP.
#[must_use]
pub fn outer(frame: &[u8]) -> Option<Outer> {
    let packet = frame.get(14..)?;
    let (family, protocol, src, dst, rest): (Family, u8, IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let at = |n: usize| packet.get(n..n + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
            let length = usize::from(packet.first()? & 15) * 4;
            let (src, dst) = (Ipv4Addr::from(at(12)?), Ipv4Addr::from(at(16)?));
            (Family::V4, *packet.get(9)?, src.into(), dst.into(), packet.get(length..)?)
        }
        [0x86, 0xdd] => {
            let at = |n: usize| packet.get(n..n + 16).and_then(|b| <[u8; 16]>::try_from(b).ok());
            let (src, dst) = (Ipv6Addr::from(at(8)?), Ipv6Addr::from(at(24)?));
            (Family::V6, *packet.get(6)?, src.into(), dst.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = rest.get(2..4).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let method = match (protocol, port) {
        (47, _) => Method::Nvgre,
        (17, Some(4789)) => Method::Vxlan,
        (17, Some(6081)) => Method::Geneve,
        (6, Some(7471)) => Method::Stt,
        _ => Method::Rewrite,
    };
    Some(Outer { family, src, dst, method })
}
