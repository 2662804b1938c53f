//! One function per fuzz target; the stable tests run the same ones over the corpora.
//!
//! The first byte of an input for [`port_ingress`] and [`uplink_ingress`] chooses what stands beside the
//! frame: its low four bits the port, bit 4 a large frame, bit 5 our mark, bit 6 a tag, bit 7 a provider network of IPv6.

use super::{Outcome, port_in, site, uplink_in};
use crate::{Action, Meta, SEND_MARK};
use tenet_tables::{Bucket, DropReason};
use tenet_wire::{ProtocolNumber, checksum, parse, pseudo6};

/// Takes any bytes apart.
pub fn wire(bytes: &[u8]) {
    let _ = parse::frame(bytes);
    let _ = parse::ipv4(bytes);
    if let Ok((_, transport)) = parse::ipv6(bytes) {
        assert!(transport.bytes.len() + 40 <= bytes.len());
    }
    if let Ok(Some(parse::Discovery::Neighbour(_, options) | parse::Discovery::RouterSolicitation(options))) =
        parse::discovery(bytes)
    {
        assert!(options.count() <= bytes.len());
    }
    if let Ok(Some(found)) = parse::tunnel(bytes, parse::TunnelPorts::default()) {
        assert!(found.vsid < 1 << 24 && found.bytes.len() < bytes.len());
        if let parse::Kind::Geneve(header, options) = found.kind {
            assert!(options.len() == header.options_len() as usize && header.version() == 0);
        }
    }
    if let Ok(Some(found)) = parse::nvgre(bytes) {
        assert!(found.gre.is_nvgre() && found.gre.vsid() < 1 << 24);
    }
}

fn meta(choice: u8, frame: &[u8], ifindex: u32) -> Meta {
    Meta {
        ifindex,
        len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        gso_size: if choice & 0x10 != 0 { 1000 } else { 0 },
        mark: if choice & 0x20 != 0 { SEND_MARK } else { 0 },
        tagged: choice & 0x40 != 0,
    }
}

/// Judges and edits any bytes as a VM's frame.
pub fn port_ingress(bytes: &[u8]) {
    let Some((choice, frame)) = bytes.split_first() else { return };
    let site = site::site(core::array::from_fn(|i| 100 + i as u32), 99);
    let mut image = site.image;
    let mut bucket = Bucket { flood_tokens: 1_000_000, ..Bucket::default() };
    let meta = meta(*choice, frame, 100 + u32::from(choice & 0xf));
    let outcome = port_in(frame, &meta, &mut image, &mut bucket, 1);
    assert!(outcome.action != Action::Pass, "a VM's frame must not reach the host's stack");
    check(&outcome);
    if let Action::Back(error) = outcome.action {
        sound(&outcome.frame.bytes, error.is_some());
        outcome.frame.to_ports.iter().for_each(|(_, copy)| sound(copy, true));
    }
}

/// What the gateway says can be read, and is summed up right if it made all of it: an answer to a ping keeps the
/// checksum's error that the ping had.
fn sound(bytes: &[u8], made: bool) {
    let sum = match parse::frame(bytes).map(|f| f.payload) {
        Ok(parse::Payload::Arp(_)) => return,
        Ok(parse::Payload::Ipv4(_, message)) => checksum::sum_bytes(message),
        Ok(parse::Payload::Ipv6(ip, transport)) => {
            let len = u16::try_from(transport.bytes.len()).unwrap_or(u16::MAX);
            let pseudo = pseudo6(&ip.src, &ip.dst, len, ProtocolNumber::ICMPV6);
            checksum::add(pseudo, checksum::sum_bytes(transport.bytes))
        }
        other => panic!("an answer that nobody understands: {other:?}"),
    };
    assert!(!made || checksum::finish(sum) == 0, "an answer with a wrong checksum");
}

/// Judges and edits any bytes as a frame from the provider network.
pub fn uplink_ingress(bytes: &[u8]) {
    let Some((choice, frame)) = bytes.split_first() else { return };
    let mut site = site::site(core::array::from_fn(|i| 100 + i as u32), 99);
    if choice & 0x80 != 0 {
        site.move_to_ipv6();
    }
    let outcome = uplink_in(frame, &meta(*choice, frame, site.uplink), &site.image);
    if outcome.action == Action::Pass {
        assert!(outcome.frame.bytes == frame, "what is not ours must not be touched");
    }
    check(&outcome);
}

fn check(outcome: &Outcome) {
    assert!(outcome.action != Action::Drop(DropReason::KernelRefused), "an edit beyond the frame's end");
}
