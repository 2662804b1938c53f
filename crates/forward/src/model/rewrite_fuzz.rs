//! Fuzz targets of IP Rewrite.

use super::packets::{Shape, bytes as octets, frame};
use super::rewrite::{HOSTS, Machine, PORTS, UPLINK_MACS, gateway, image, interface, machines};
use super::{Outcome, meta, port_in, uplink_in};
use crate::Action;
use alloc::vec::Vec;
use tenet_tables::{Addr, Bucket, DropReason, RewriteKey, image::Image};
use tenet_wire::{Mac, checksum};

const UPLINK: u32 = 99;
const ROUTER_MAC: Mac = Mac::new([2, 0xbb, 0, 0, 0, 1]);

/// Judges and edits any bytes as a frame at a host with rewrite addresses. The first byte chooses where it comes in: by
/// its low three bits the port, or with bit 3 the uplink.
pub fn rewrite(bytes: &[u8]) {
    let Some((choice, frame)) = bytes.split_first() else { return };
    let mut image = image(0, UPLINK, interface);
    let outcome = if choice & 8 != 0 {
        let outcome = uplink_in(frame, &meta(frame, UPLINK), &image);
        let passed = outcome.action == Action::Pass;
        assert!(!passed || outcome.frame.bytes == frame, "what is not ours must not be touched");
        outcome
    } else {
        let mut bucket = Bucket { flood_tokens: 1_000_000, ..Bucket::default() };
        let meta = meta(frame, interface(choice & 7));
        let outcome = port_in(frame, &meta, &mut image, &mut bucket, 1);
        assert!(outcome.action != Action::Pass, "a VM's frame must not reach the host's stack");
        outcome
    };
    ends_where_it_may(&outcome, &image);
}

/// What leaves goes between two addresses of one network, away from this host; what is delivered is the port's.
pub fn ends_where_it_may(outcome: &Outcome, image: &Image) {
    let bytes = &outcome.frame.bytes;
    match outcome.action {
        Action::Wire => {
            let [src, dst] = ends(bytes).map(|pa| image.rewrites.get(&RewriteKey { pa }));
            // A redirected error still comes from its router.
            assert!(src.is_some() || outcome.moved != 0, "from an address that stands for nothing");
            assert!(dst.is_some_and(|d| d.ifindex == 0), "to ourselves, or to nobody");
            assert!(src.is_none_or(|s| dst.is_some_and(|d| d.net == s.net)), "between two networks");
        }
        Action::Port { ifindex, .. } => {
            assert_eq!(bytes[..6], image.ports[&ifindex].mac.octets(), "another's MAC");
        }
        Action::WireByMark | Action::Hub { .. } | Action::Slow(_) => panic!("a tunnel where there is none"),
        Action::Drop(reason) => {
            assert!(reason != DropReason::KernelRefused, "an edit beyond the frame's end");
        }
        Action::Pass | Action::Back(_) => {}
    }
    assert!(outcome.frame.to_wire.is_empty(), "a broadcast on the provider network");
}

/// Source and destination of a packet in a frame.
fn ends(frame: &[u8]) -> [Addr; 2] {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (at, len) = if v6 { (22, 16) } else { (26, 4) };
    [at, at + len].map(|at| match (v6, frame[at..at + len].try_into(), frame[at..].first_chunk()) {
        (true, Ok(octets), _) => Addr::v6(octets),
        (_, _, Some(octets)) => Addr::v4(*octets),
        _ => Addr::UNSET,
    })
}

/// Translates any bytes as the packet that a router's error quotes.
///
/// The first byte chooses the family (bit 0), whether the quoted addresses are made those of a packet of ours (bit 1)
/// and the machine (the bits above); the second and the third are the error's type and code.
pub fn rewrite_quote(bytes: &[u8]) {
    let [choice, ty, code, quoted @ ..] = bytes else { return };
    let v6 = choice & 1 != 0;
    let all = machines();
    let me = all[usize::from(choice >> 2) % PORTS];
    let peer = all[8];
    let router = if v6 { Addr::v6([0xfd; 16]) } else { Addr::v4([192, 168, 7, 1]) };
    let mut body = alloc::vec![*ty, *code, 0, 0, 0, 0, 5, 0];
    body.extend(quoted.iter().take(600));
    let (at, len) = if v6 { (8 + 8, 16) } else { (8 + 12, 4) };
    let patched = choice & 2 != 0 && body.len() >= at + 2 * len;
    if patched {
        body[at..at + len].copy_from_slice(&octets(me.pa(0, v6)));
        body[at + len..at + 2 * len].copy_from_slice(&octets(peer.home_pa(v6)));
    }
    let shape = Shape {
        v6,
        protocol: if v6 { 58 } else { 1 },
        class: 0,
        hop_limit: 64,
        extras: 0,
        transport: body,
        unsummed: false,
        part: None,
    };
    let sent = frame(UPLINK_MACS[0], ROUTER_MAC, &shape.build(router, me.pa(0, v6)));
    let outcome = uplink_in(&sent, &meta(&sent, UPLINK), &image(0, UPLINK, interface));
    assert!(outcome.action != Action::Pass, "a frame for a rewrite address must not reach the host's stack");
    assert!(outcome.action != Action::Drop(DropReason::KernelRefused), "an edit beyond the frame's end");
    if matches!(outcome.action, Action::Port { .. }) {
        check(&outcome.frame.bytes[14..], v6, &me, &sent[14..]);
    }
}

/// An error that is delivered is whole, and names no provider address.
fn check(got: &[u8], v6: bool, me: &Machine, sent: &[u8]) {
    assert_eq!(got.len(), sent.len());
    let header = if v6 { 40 } else { 20 };
    let addresses = if v6 { 8 } else { 12 };
    let len = (header - addresses) / 2;
    let wanted: Vec<u8> = [octets(gateway(me.vsid, v6)), octets(me.ca(v6))].concat();
    assert_eq!(got[addresses..header], wanted, "the error's own addresses");
    let quoted = header + 8 + addresses;
    assert_eq!(got[quoted..quoted + len], octets(me.ca(v6)), "the quoted source");
    let pool = octets(Addr::v4(HOSTS[1]));
    assert!(v6 || got[quoted + len..quoted + 2 * len] != pool[..], "the quoted destination");
    if !v6 {
        assert_eq!(checksum::finish(checksum::sum_bytes(&got[..header])), 0, "the header's checksum");
    }
    let mut sum = u64::from(checksum::sum_bytes(&got[header..]));
    if v6 {
        let length = ((got.len() - header) as u32).to_be_bytes();
        let pseudo = [&got[addresses..header], &length, &[0, 0, 0, 58]].concat();
        sum += u64::from(checksum::sum_bytes(&pseudo));
    }
    let folded = (sum & 0xffff_ffff) as u32 % 0xffff + (sum >> 32) as u32 % 0xffff;
    assert_eq!(folded % 0xffff, 0, "the error's checksum");
}
