//! IP Rewrite, compared with packets whose checksums are computed from scratch.

use tenet_forward::Action;
use tenet_forward::model::packets::{Shape, frame};
use tenet_forward::model::rewrite::{
    self as site, HOSTS, Machine, UPLINK_MACS, gateway, image, interface, pool,
};
use tenet_forward::model::traffic::Dice;
use tenet_forward::model::{self, Outcome};
use tenet_tables::image::Image;
use tenet_tables::{Addr, DropReason, EventKind, GATEWAY_MAC, PORT_ACTIVE};
use tenet_wire::Mac;

const PACKETS: u32 = 30_000;
const UPLINK: u32 = 99;
const ROUTER_MAC: Mac = Mac::new([2, 0xbb, 0, 0, 0, 1]);

fn host(n: usize) -> Image {
    image(n, UPLINK, interface)
}

fn receive(image: &Image, bytes: &[u8]) -> Outcome {
    model::uplink_in(bytes, &model::meta(bytes, UPLINK), image)
}

/// A packet as the provider network brings it to the first host.
fn arriving(packet: &[u8]) -> Vec<u8> {
    frame(UPLINK_MACS[0], ROUTER_MAC, packet)
}

fn router(v6: bool) -> Addr {
    if v6 {
        Addr::v6([0xfd, 0, 0, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    } else {
        Addr::v4([192, 168, 7, 1])
    }
}

#[test]
fn what_arrives_is_as_if_sent_between_customer_addresses() {
    let (image, machines) = (host(0), site::machines());
    let mut dice = Dice::new(1);
    let mut beyond_reach = 0;
    for n in 0..PACKETS {
        let shape = Shape::random(&mut dice);
        let (from, to) = (&machines[dice.pick(&[8, 9])], &machines[dice.pick(&[0, 1, 2])]);
        let v6 = shape.v6;
        let sent = shape.build(from.home_pa(v6), to.home_pa(v6));
        let mut wanted = shape.build(from.ca(v6), to.ca(v6));
        if !shape.reaches_checksum() {
            // Neither side changes what it does not find, so that it is right for the customer addresses all the way.
            let at = sent.len() - shape.part.map_or(shape.transport.len(), |(_, len)| len);
            wanted[at..].copy_from_slice(&sent[at..]);
            beyond_reach += u32::from(shape.checksum_at().is_some());
        }
        let src = if from.vsid == to.vsid { from.mac() } else { GATEWAY_MAC };
        let outcome = receive(&image, &arriving(&sent));
        let context = || format!("packet {n}: {shape:?}\n{outcome:02x?}");
        let wanted_action = Action::Port { ifindex: interface(to.number), peer: to.number == 0 };
        assert_eq!(outcome.action, wanted_action, "{}", context());
        assert_eq!(outcome.frame.bytes, frame(to.mac(), src, &wanted), "{}", context());
    }
    assert!(beyond_reach > 20, "{beyond_reach}");
}

#[test]
fn errors_of_routers_quote_customer_addresses() {
    let (image, machines) = (host(0), site::machines());
    let mut dice = Dice::new(2);
    for n in 0..PACKETS {
        let shape = Shape { hop_limit: 3, ..Shape::random(&mut dice) };
        let v6 = shape.v6;
        let (me, peer) = (&machines[dice.pick(&[0, 1, 2])], &machines[dice.pick(&[8, 9])]);
        let kind = if v6 {
            dice.pick(&[(2, 0), (3, 0), (1, 3), (4, 0)])
        } else {
            dice.pick(&[(3, 4), (11, 0), (3, 1), (12, 0)])
        };
        // All of the packet, or so little that its transport's checksum is missing, or nothing of the transport.
        let headers = if v6 { 40 } else { 20 };
        let quote = headers + dice.pick(&[0, 4, 8, 18, 20, 28, 128, 500]);
        let mtu = 1300;
        let sent =
            shape.error(kind, mtu, [router(v6), me.home_pa(v6)], [me.home_pa(v6), peer.home_pa(v6)], quote);
        let mut wanted =
            shape.error(kind, mtu, [gateway(me.vsid, v6), me.ca(v6)], [me.ca(v6), peer.ca(v6)], quote);
        let outcome = receive(&image, &arriving(&sent));
        let context = || format!("error {n}: {shape:?}, {quote} bytes quoted\n{outcome:02x?}");
        let wanted_action = Action::Port { ifindex: interface(me.number), peer: me.number == 0 };
        assert_eq!(outcome.action, wanted_action, "{}", context());
        let got = &outcome.frame.bytes;
        if !shape.reaches_checksum() || got.len() < 14 + wanted.len() {
            // The quoted transport stays as it was quoted; the error's own checksum is right all the same.
            let icmp = if v6 { 40 } else { 20 };
            let at = icmp + 8 + headers;
            wanted[at..].copy_from_slice(&sent[at..]);
            refill(&mut wanted, icmp, v6);
        }
        assert_eq!(*got, frame(me.mac(), GATEWAY_MAC, &wanted), "{}", context());
    }
}

/// Computes an ICMP message's checksum anew.
fn refill(packet: &mut [u8], at: usize, v6: bool) {
    packet[at + 2..at + 4].fill(0);
    let mut sum = tenet_wire::checksum::sum_bytes(&packet[at..]);
    if v6 {
        let len = (packet.len() - 40) as u16;
        let pseudo = [&packet[8..40], &len.to_be_bytes(), &[0, 58]].concat();
        sum += tenet_wire::checksum::sum_bytes(&pseudo);
    }
    packet[at + 2..at + 4].copy_from_slice(&tenet_wire::checksum::finish(sum).to_ne_bytes());
}

fn plain(v6: bool) -> Shape {
    Shape {
        v6,
        protocol: 17,
        class: 0,
        hop_limit: 64,
        extras: 0,
        transport: [&[0x12, 0x34, 0, 53, 0, 0, 0, 0][..], b"hello"].concat(),
        unsummed: false,
        part: None,
    }
}

/// A plain packet between two addresses, as it arrives at the first host.
fn arrives(image: &Image, src: Addr, dst: Addr, v6: bool) -> Outcome {
    receive(image, &arriving(&plain(v6).build(src, dst)))
}

fn machine(n: usize) -> Machine {
    site::machines()[n]
}

#[test]
fn pairs_of_one_network_pass_and_no_others() {
    let image = host(0);
    for v6 in [false, true] {
        let me = machine(0).home_pa(v6);
        let strangers = [
            (machine(10).home_pa(v6), EventKind::MovedAddress),
            (router(v6), EventKind::UnknownPa),
            (pool(1, v6, 200), EventKind::UnknownPa),
            (machine(8).ca(v6), EventKind::UnknownPa),
        ];
        for (src, event) in strangers {
            let outcome = arrives(&image, src, me, v6);
            assert_eq!(outcome.action, Action::Drop(DropReason::RewritePair), "{src:?}");
            assert_eq!(outcome.note.kind, Some(event));
            assert_eq!((outcome.note.ca, outcome.note.pa), (machine(0).ca(v6), src));
        }
        // Nobody else speaks for this host's machines.
        assert_eq!(arrives(&image, machine(1).home_pa(v6), me, v6).action, Action::Drop(DropReason::Loop));
        // An address of the pool that is given to nobody, and one that belongs to another host.
        let from = machine(8).home_pa(v6);
        let unknown = Action::Drop(DropReason::RewriteUnknown);
        assert_eq!(arrives(&image, from, pool(0, v6, 200), v6).action, unknown);
        let mut stale = image.clone();
        stale.ports.remove(&interface(0));
        assert_eq!(arrives(&stale, from, me, v6).action, unknown);
        for row in stale.rewrites.values_mut() {
            row.ifindex = 0;
        }
        assert_eq!(arrives(&stale, from, me, v6).action, unknown);
        // What others route through this host is theirs, and so is what is for the host itself.
        for dst in [machine(8).home_pa(v6), router(v6), if v6 { router(true) } else { Addr::v4(HOSTS[0]) }] {
            assert_eq!(arrives(&image, router(v6), dst, v6).action, Action::Pass);
        }
    }
}

#[test]
fn nothing_is_taken_without_rewrite_addresses() {
    let mut image = host(0);
    image.config.as_mut().unwrap().flags = 0;
    let outcome = arrives(&image, machine(8).home_pa(false), machine(0).home_pa(false), false);
    assert_eq!(outcome.action, Action::Pass);
}

#[test]
fn ports_that_are_not_here_are_found_or_refused() {
    let image = host(0);
    for v6 in [false, true] {
        let from = machine(8).home_pa(v6);
        // Prepared: whatever comes for this host's address was redirected.
        let here = arrives(&image, from, machine(3).pa(0, v6), v6);
        assert_eq!(here.action, Action::Port { ifindex: interface(3), peer: false });
        for n in [4, 5] {
            let m = machine(n);
            let outcome = arrives(&image, from, m.pa(0, v6), v6);
            assert_eq!(outcome.action, Action::Wire);
            assert_eq!(outcome.moved, interface(m.number));
            assert_eq!(outcome.note.kind, Some(EventKind::Redirected));
            let wanted = Shape { hop_limit: 63, ..plain(v6) }.build(from, m.pa(1, v6));
            assert_eq!(outcome.frame.bytes[14..], wanted);
            let last = Shape { hop_limit: 1, ..plain(v6) }.build(from, m.pa(0, v6));
            assert_eq!(receive(&image, &arriving(&last)).action, Action::Drop(DropReason::Loop));
        }
        assert_eq!(
            arrives(&image, from, machine(6).home_pa(v6), v6).action,
            Action::Drop(DropReason::PortBlocked)
        );
        let mut alone = image.clone();
        alone.rewrites.values_mut().for_each(|r| r.other_pa = Addr::UNSET);
        let ends = [(4, DropReason::PortBlocked), (5, DropReason::PortDown)];
        for (n, reason) in ends {
            assert_eq!(arrives(&alone, from, machine(n).pa(0, v6), v6).action, Action::Drop(reason));
        }
    }
}

/// A redirected error names the old address in its quote, and the new one on its outside.
#[test]
fn redirected_errors_are_translated() {
    let (mut old, mut new) = (host(0), host(1));
    let (me, peer) = (machine(4), machine(8));
    for v6 in [false, true] {
        let kind = if v6 { (2, 0) } else { (3, 4) };
        let quoted = [me.pa(0, v6), peer.home_pa(v6)];
        let sent = plain(v6).error(kind, 1300, [router(v6), me.pa(0, v6)], quoted, 500);
        let redirected = receive(&old, &arriving(&sent));
        assert_eq!(redirected.action, Action::Wire);
        let outcome = receive(&new, &redirected.frame.bytes);
        assert_eq!(outcome.action, Action::Port { ifindex: interface(4), peer: false });
        let ends = [gateway(me.vsid, v6), me.ca(v6)];
        let mut wanted = plain(v6).error(kind, 1300, ends, [me.ca(v6), peer.ca(v6)], 500);
        let hops = if v6 { 7 } else { 8 };
        wanted[hops] -= 1;
        if !v6 {
            wanted[10..12].fill(0);
            let sum = tenet_wire::checksum::finish(tenet_wire::checksum::sum_bytes(&wanted[..20]));
            wanted[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
        assert_eq!(outcome.frame.bytes[14..], wanted);
    }
    for image in [&mut old, &mut new] {
        assert!(image.ports.values().any(|p| p.state == PORT_ACTIVE));
    }
}

#[test]
fn errors_about_the_packets_of_others_reach_nobody() {
    let image = host(0);
    let refused = Action::Drop(DropReason::RewritePair);
    for v6 in [false, true] {
        let me = machine(0).home_pa(v6);
        let ends = [router(v6), me];
        let kind = if v6 { (2, 0) } else { (3, 4) };
        let error =
            |quoted| receive(&image, &arriving(&plain(v6).error(kind, 1300, ends, quoted, 500))).action;
        // From another machine, to another network, to nobody.
        assert_eq!(error([machine(1).home_pa(v6), machine(8).home_pa(v6)]), refused);
        assert_eq!(error([me, machine(10).home_pa(v6)]), refused);
        assert_eq!(error([me, router(v6)]), refused);
        // Cut off within the quoted header, and not an error at all.
        let short = plain(v6).error(kind, 1300, ends, [me, machine(8).home_pa(v6)], 12);
        assert_eq!(receive(&image, &arriving(&short)).action, Action::Drop(DropReason::Truncated));
        let redirect = if v6 { (137, 0) } else { (5, 1) };
        let other = plain(v6).error(redirect, 0, ends, [me, machine(8).home_pa(v6)], 500);
        assert_eq!(receive(&image, &arriving(&other)).action, refused);
        // An error from a machine of another network is a pair like any other.
        let forged = [machine(10).home_pa(v6), me];
        let forged = plain(v6).error(kind, 1300, forged, [me, machine(8).home_pa(v6)], 500);
        assert_eq!(receive(&image, &arriving(&forged)).action, refused);
    }
}

#[test]
fn arp_for_rewrite_addresses_is_answered() {
    let image = host(0);
    let ask = |target: Addr, sender: [u8; 4], operation: u8, ifindex: u32| {
        let mut bytes =
            [&[0xff; 6][..], &ROUTER_MAC.octets(), &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        bytes.extend(ROUTER_MAC.octets());
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(model::packets::bytes(target));
        model::uplink_in(&bytes, &model::meta(&bytes, ifindex), &image)
    };
    let asker = [192, 168, 100, 1];
    // Here, here without an asker's address (a probe), and here but moved on.
    for (target, sender) in [
        (machine(0).home_pa(false), asker),
        (machine(1).home_pa(false), [0; 4]),
        (machine(4).pa(0, false), asker),
    ] {
        let outcome = ask(target, sender, 1, UPLINK);
        assert_eq!(outcome.action, Action::Back(None), "{target:?}");
        let bytes = outcome.frame.bytes;
        assert_eq!(bytes[..12], [ROUTER_MAC.octets(), UPLINK_MACS[0].octets()].concat());
        assert_eq!(bytes[20..22], [0, 2]);
        assert_eq!(bytes[22..28], UPLINK_MACS[0].octets());
        assert_eq!(bytes[28..32], model::packets::bytes(target));
        assert_eq!(bytes[32..42], [&ROUTER_MAC.octets()[..], &sender].concat());
    }
    for target in [machine(8).home_pa(false), pool(0, false, 200), Addr::v4(HOSTS[0])] {
        assert_eq!(ask(target, asker, 1, UPLINK).action, Action::Pass, "{target:?}");
    }
    assert_eq!(ask(machine(0).home_pa(false), asker, 2, UPLINK).action, Action::Pass);
    assert_eq!(ask(machine(0).home_pa(false), asker, 1, UPLINK + 1).action, Action::Pass);
}

#[test]
fn neighbour_solicitations_for_rewrite_addresses_are_answered() {
    let image = host(0);
    let ours = machine(0).home_pa(true);
    let link_local = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let group = |target: Addr| {
        let octets = model::packets::bytes(target);
        Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]])
    };
    let ask = |src: Addr, dst: Addr, target: Addr, hop_limit: u8| {
        let mut transport = vec![135, 0, 0, 0, 0, 0, 0, 0];
        transport.extend(model::packets::bytes(target));
        if src != Addr::UNSET {
            transport.extend([&[1, 1][..], &ROUTER_MAC.octets()].concat());
        }
        let shape = Shape { protocol: 58, hop_limit, transport, ..plain(true) };
        receive(&image, &arriving(&shape.build(src, dst)))
    };
    for (src, dst) in [(link_local, group(ours)), (router(true), ours), (Addr::UNSET, group(ours))] {
        let outcome = ask(src, dst, ours, 255);
        assert_eq!(outcome.action, Action::Back(None), "{src:?} {dst:?}");
        let probe = src == Addr::UNSET;
        let all_nodes = Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let (to, to_mac) =
            if probe { (all_nodes, Mac::new([0x33, 0x33, 0, 0, 0, 1])) } else { (src, ROUTER_MAC) };
        let mut transport = vec![136, 0, 0, 0, if probe { 0x20 } else { 0x60 }, 0, 0, 0];
        transport.extend(model::packets::bytes(ours));
        transport.extend([&[2, 1][..], &UPLINK_MACS[0].octets()].concat());
        let mut wanted = Shape { protocol: 58, hop_limit: 255, transport, ..plain(true) }.build(ours, to);
        wanted[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        assert_eq!(outcome.frame.bytes, frame(to_mac, UPLINK_MACS[0], &wanted));
    }
    let others = machine(8).home_pa(true);
    assert_eq!(ask(link_local, group(others), others, 255).action, Action::Pass);
    assert_eq!(ask(link_local, group(ours), ours, 64).action, Action::Pass, "from further than the link");
    // To an address of ours, about another: not for the host's stack.
    assert_eq!(ask(link_local, ours, others, 255).action, Action::Drop(DropReason::RewritePair));
}

fn send(image: &Image, number: u8, bytes: &[u8]) -> Outcome {
    let mut bucket = tenet_tables::Bucket { flood_tokens: 1_000_000, ..Default::default() };
    model::port_in(bytes, &model::meta(bytes, interface(number)), &mut image.clone(), &mut bucket, 0)
}

/// The provider network's part: a new link header.
fn carry(bytes: &[u8], to: usize) -> Vec<u8> {
    frame(UPLINK_MACS[to], ROUTER_MAC, &bytes[14..])
}

#[test]
fn what_one_host_sends_the_other_delivers_unchanged() {
    let (hosts, machines) = ([host(0), host(1)], site::machines());
    let mut dice = Dice::new(3);
    let mut seen = [0; 2];
    for n in 0..PACKETS {
        let mut shape = Shape::random(&mut dice);
        shape.hop_limit = shape.hop_limit.max(2);
        let v6 = shape.v6;
        let (me, peer) = (&machines[dice.pick(&[0, 1, 2])], &machines[dice.pick(&[8, 9])]);
        let routed = me.vsid != peer.vsid;
        let packet = shape.build(me.ca(v6), peer.ca(v6));
        let to = if routed { GATEWAY_MAC } else { peer.mac() };
        let told = format!("packet {n}: {shape:?} from {} to {}", me.number, peer.number);
        let context = || told.clone();
        let out = send(&hosts[0], me.number, &frame(to, me.mac(), &packet));
        assert_eq!(out.action, Action::Wire, "{} {out:02x?}", context());
        if routed {
            shape.hop_limit -= 1;
        }
        if shape.reaches_checksum() || shape.checksum_at().is_none() {
            let on_wire = shape.build(me.home_pa(v6), peer.home_pa(v6));
            assert_eq!(out.frame.bytes[14..], on_wire, "{}", context());
        }
        let delivered = receive(&hosts[1], &carry(&out.frame.bytes, 1));
        assert_eq!(
            delivered.action,
            Action::Port { ifindex: interface(peer.number), peer: false },
            "{}",
            context()
        );
        let src = if routed { GATEWAY_MAC } else { me.mac() };
        let wanted = frame(peer.mac(), src, &shape.build(me.ca(v6), peer.ca(v6)));
        assert_eq!(delivered.frame.bytes, wanted, "{}", context());
        seen[usize::from(routed)] += 1;
    }
    assert!(seen.iter().all(|n| *n > 1000), "{seen:?}");
}

fn plain_to(me: usize, peer: usize, v6: bool) -> Vec<u8> {
    let (me, peer) = (machine(me), machine(peer));
    let to = if me.vsid == peer.vsid { peer.mac() } else { GATEWAY_MAC };
    frame(to, me.mac(), &plain(v6).build(me.ca(v6), peer.ca(v6)))
}

#[test]
fn what_has_no_pair_is_refused() {
    let image = host(0);
    let refused = Action::Drop(DropReason::NoRewriteAddress);
    // Only IPv4 has an address there.
    assert_eq!(send(&image, 0, &plain_to(0, 11, false)).action, Action::Wire);
    assert_eq!(send(&image, 0, &plain_to(0, 11, true)).action, refused);
    for v6 in [false, true] {
        // The sender's own is missing.
        let mut poor = image.clone();
        let own = tenet_tables::RecordKey { net: 3, ca: machine(0).ca(v6) };
        poor.records.get_mut(&own).unwrap().rewrite_pa = Addr::UNSET;
        assert_eq!(send(&poor, 0, &plain_to(0, 8, v6)).action, refused);
        // An address of the other family stands for nothing.
        poor.records.get_mut(&own).unwrap().rewrite_pa = machine(0).home_pa(!v6);
        assert_eq!(send(&poor, 0, &plain_to(0, 8, v6)).action, refused);
        // Without port security a VM sends for others, but not with their address on the wire.
        let others = plain(v6).build(machine(0).ca(v6), machine(8).ca(v6));
        assert_eq!(send(&image, 2, &frame(machine(8).mac(), machine(2).mac(), &others)).action, refused);
        // To one machine's MAC and another's address: what an appliance in between would have to see.
        let beside = plain(v6).build(machine(0).ca(v6), machine(9).ca(v6));
        assert_eq!(send(&image, 0, &frame(machine(8).mac(), machine(0).mac(), &beside)).action, refused);
        let nobody = plain(v6).build(machine(0).ca(v6), router(v6));
        assert_eq!(send(&image, 0, &frame(machine(8).mac(), machine(0).mac(), &nobody)).action, refused);
    }
}

#[test]
fn machines_that_migrate_are_found_from_both_hosts() {
    let hosts = [host(0), host(1)];
    for v6 in [false, true] {
        for n in [3, 4, 5] {
            // From their old or new neighbours on both hosts.
            let (m, near, far) = (machine(n), machine(0), machine(8));
            let out = send(&hosts[0], near.number, &plain_to(0, n, v6));
            assert_eq!(out.action, Action::Wire, "{n}");
            assert_eq!(out.frame.bytes[14..], plain(v6).build(near.home_pa(v6), m.pa(1, v6)), "{n}");
            let moved = if n == 3 { 0 } else { interface(m.number) };
            assert_eq!(out.moved, moved);
            let delivered = receive(&hosts[1], &carry(&out.frame.bytes, 1));
            assert_eq!(delivered.action, Action::Port { ifindex: interface(m.number), peer: false }, "{n}");
            // From elsewhere, to where the tables say that they live; redirected if they do not any more.
            let out = send(&hosts[1], far.number, &plain_to(8, n, v6));
            if n == 5 {
                // The new host has the port already, and knows the old one's address.
                assert_eq!(out.frame.bytes[14..], plain(v6).build(far.home_pa(v6), m.pa(0, v6)));
                let redirected = receive(&hosts[0], &carry(&out.frame.bytes, 0));
                assert_eq!((redirected.action, redirected.moved), (Action::Wire, interface(5)));
                let back = receive(&hosts[1], &carry(&redirected.frame.bytes, 1));
                assert_eq!(back.action, Action::Drop(DropReason::Loop), "a host's own frame comes back");
            } else {
                assert_eq!(out.action, Action::Port { ifindex: interface(m.number), peer: false });
            }
        }
        // The first frame at the new host carries the address of the new host.
        let out = send(&hosts[0], 3, &plain_to(3, 8, v6));
        assert!(out.activated);
        assert_eq!(out.frame.bytes[14..], plain(v6).build(machine(3).pa(0, v6), machine(8).home_pa(v6)));
    }
}

#[test]
fn questions_about_machines_elsewhere_are_answered_from_the_table() {
    let image = host(0);
    let (me, peer) = (machine(0), machine(8));
    let arp = |to: Mac, operation: u8| {
        let mut bytes =
            [&to.octets()[..], &me.mac().octets(), &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        bytes.extend(me.mac().octets());
        bytes.extend(model::packets::bytes(me.ca(false)));
        bytes.extend([0; 6]);
        bytes.extend(model::packets::bytes(peer.ca(false)));
        send(&image, 0, &bytes)
    };
    for to in [peer.mac(), Mac::BROADCAST] {
        let outcome = arp(to, 1);
        assert_eq!(outcome.action, Action::Back(None));
        assert_eq!(outcome.frame.bytes[22..28], peer.mac().octets());
    }
    assert_eq!(arp(peer.mac(), 2).action, Action::Drop(DropReason::RewriteUnsupported));
    let mut transport = vec![135, 0, 0, 0, 0, 0, 0, 0];
    transport.extend(model::packets::bytes(peer.ca(true)));
    transport.extend([&[1, 1][..], &me.mac().octets()].concat());
    let question = Shape { protocol: 58, hop_limit: 255, transport: transport.clone(), ..plain(true) };
    let bytes = frame(peer.mac(), me.mac(), &question.build(me.ca(true), peer.ca(true)));
    let outcome = send(&image, 0, &bytes);
    assert_eq!(outcome.action, Action::Back(None));
    assert_eq!(outcome.frame.bytes[80..86], peer.mac().octets());
    // A neighbour on this host answers for itself.
    let near = machine(2);
    let bytes = frame(near.mac(), me.mac(), &question.build(me.ca(true), near.ca(true)));
    assert_eq!(send(&image, 0, &bytes).action, Action::Port { ifindex: interface(2), peer: false });
    // Announcements stay on their link, whoever sends them.
    transport[0] = 136;
    transport[8..24].copy_from_slice(&model::packets::bytes(me.ca(true)));
    transport[24] = 2;
    let answer = Shape { protocol: 58, hop_limit: 255, transport, ..plain(true) };
    let bytes = frame(peer.mac(), me.mac(), &answer.build(me.ca(true), peer.ca(true)));
    let unsupported = Action::Drop(DropReason::RewriteUnsupported);
    assert_eq!(send(&image, 0, &bytes).action, unsupported);
    assert_eq!(
        receive(&image, &arriving(&answer.build(peer.home_pa(true), me.home_pa(true)))).action,
        unsupported
    );
}

#[test]
fn broadcasts_stay_on_their_host() {
    let image = host(0);
    for v6 in [false, true] {
        let group = if v6 { Mac::new([0x33, 0x33, 0, 0, 0, 9]) } else { Mac::BROADCAST };
        let all = if v6 {
            Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9])
        } else {
            Addr::v4([255; 4])
        };
        let outcome =
            send(&image, 0, &frame(group, machine(0).mac(), &plain(v6).build(machine(0).ca(v6), all)));
        assert_eq!(outcome.action, Action::Drop(DropReason::RewriteUnsupported));
        assert_eq!(outcome.frame.to_ports.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [interface(2)]);
        assert!(outcome.frame.to_wire.is_empty());
        // Where there is nobody elsewhere, nothing is refused.
        let outcome =
            send(&image, 7, &frame(group, machine(7).mac(), &plain(v6).build(machine(7).ca(v6), all)));
        assert_eq!(outcome.action, Action::Drop(DropReason::Replicated));
    }
}

#[test]
fn every_frame_ends_where_it_may() {
    let interfaces = std::array::from_fn(|i| interface(i as u8));
    let image = host(0);
    let mut dice = Dice::new(4);
    let mut reasons = std::collections::BTreeSet::new();
    for n in 0..PACKETS {
        let sample = model::rewrite_traffic::sample(&mut dice, &interfaces, UPLINK);
        let outcome = if sample.from_wire {
            receive(&image, &sample.bytes)
        } else {
            send(&image, (sample.meta.ifindex - interface(0)) as u8, &sample.bytes)
        };
        let ends = std::panic::catch_unwind(|| model::rewrite_fuzz::ends_where_it_may(&outcome, &image));
        assert!(ends.is_ok(), "frame {n}: {sample:02x?}\n{outcome:02x?}");
        if let Action::Drop(reason) = outcome.action {
            reasons.insert(reason);
        }
    }
    for reason in [
        DropReason::RewriteUnsupported,
        DropReason::RewriteUnknown,
        DropReason::RewritePair,
        DropReason::NoRewriteAddress,
        DropReason::Loop,
    ] {
        assert!(reasons.contains(&reason), "no frame was dropped for {}", reason.name());
    }
}
