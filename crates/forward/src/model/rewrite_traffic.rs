//! Frames of all kinds for the [`rewrite`](super::rewrite) site: good, hostile and broken, reproducible from a seed.

use super::packets::{Shape, bytes, frame};
use super::rewrite::{HOSTS, Machine, PORTS, UPLINK_MACS, gateway, machines, pool};
use super::traffic::{Dice, Sample, spoil};
use crate::Meta;
use alloc::vec::Vec;
use tenet_tables::{Addr, GATEWAY_MAC};
use tenet_wire::Mac;

const ROUTER_MAC: Mac = Mac::new([2, 0xbb, 0, 0, 0, 1]);

/// The next frame at the first host, whose ports have these interfaces.
pub fn sample(dice: &mut Dice, interfaces: &[u32; PORTS], uplink: u32) -> Sample {
    let from_wire = dice.one_in(2);
    let machines = machines();
    let (mut bytes, ifindex) = if from_wire {
        (arriving(dice, &machines), uplink)
    } else {
        let n = dice.below(PORTS);
        (sent(dice, &machines, &machines[n]), interfaces[n])
    };
    spoil(dice, &mut bytes);
    let meta = Meta { ifindex, len: bytes.len() as u32, ..Meta::default() };
    Sample { from_wire, bytes, meta }
}

fn router(v6: bool) -> Addr {
    if v6 {
        Addr::v6([0xfd, 0, 0, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    } else {
        Addr::v4([192, 168, 7, 1])
    }
}

/// What the provider network brings.
fn arriving(dice: &mut Dice, machines: &[Machine]) -> Vec<u8> {
    let shape = Shape::random(dice);
    let v6 = shape.v6;
    let me = machines[dice.below(PORTS)];
    let mine = me.pa(0, v6);
    let mut peer = machines[dice.pick(&[8, 8, 9, 9, 10, 11])];
    if dice.one_in(12) {
        peer = machines[dice.below(machines.len())];
    }
    let theirs = peer.home_pa(v6);
    match dice.below(12) {
        0 => {
            let sender = dice.pick(&[[0; 4], [192, 168, 100, 1]]);
            arp_request(dice, me.pa(0, false), sender)
        }
        1 => solicitation(dice, me.pa(0, true)),
        2..=4 => {
            let kinds = [(3, 4), (3, 1), (11, 0), (12, 0), (5, 1), (2, 0), (1, 3), (3, 0), (4, 0), (137, 0)];
            let own = if dice.one_in(10) { machines[0].home_pa(v6) } else { mine };
            let quote = dice.pick(&[12, 20, 24, 28, 40, 48, 58, 128, 500]);
            let kind = dice.pick(&kinds);
            let from = if dice.one_in(10) { theirs } else { router(v6) };
            arrives(&shape.error(kind, 1300, [from, mine], [own, theirs], quote))
        }
        5 => {
            let src = dice.pick(&[router(v6), pool(1, v6, 200), me.ca(v6), mine, theirs]);
            let mut dst =
                dice.pick(&[mine, pool(0, v6, 200), theirs, router(v6), pool(0, v6, 250), pool(1, v6, 3)]);
            if !v6 && dice.one_in(5) {
                dst = Addr::v4(HOSTS[0]);
            }
            arrives(&shape.build(src, dst))
        }
        _ => arrives(&shape.build(theirs, mine)),
    }
}

fn arrives(packet: &[u8]) -> Vec<u8> {
    frame(UPLINK_MACS[0], ROUTER_MAC, packet)
}

/// What a VM sends.
fn sent(dice: &mut Dice, machines: &[Machine], me: &Machine) -> Vec<u8> {
    let shape = Shape::random(dice);
    let v6 = shape.v6;
    let near: Vec<&Machine> = machines.iter().filter(|m| m.net == me.net || dice.one_in(20)).collect();
    let peer = near[dice.below(near.len())];
    let (mut src, mut dst) = (me.ca(v6), peer.ca(v6));
    let mut to = if peer.vsid == me.vsid && !dice.one_in(8) { peer.mac() } else { GATEWAY_MAC };
    match dice.below(20) {
        0 => return arp_request_to(dice, me.mac(), to, peer.ca(false), &bytes(me.ca(false))),
        1 => to = dice.pick(&[Mac::BROADCAST, Mac::new([0x33, 0x33, 0, 0, 0, 9]), machines[8].mac()]),
        2 => dst = dice.pick(&[gateway(me.vsid, v6), router(v6), machines[9].ca(v6), peer.home_pa(v6)]),
        3 => src = machines[dice.below(machines.len())].ca(v6),
        _ => {}
    }
    frame(to, me.mac(), &shape.build(src, dst))
}

fn arp_request(dice: &mut Dice, target: Addr, sender: [u8; 4]) -> Vec<u8> {
    arp_request_to(dice, ROUTER_MAC, Mac::BROADCAST, target, &sender)
}

fn arp_request_to(dice: &mut Dice, from: Mac, to: Mac, target: Addr, sender: &[u8]) -> Vec<u8> {
    let operation = if dice.one_in(5) { 2 } else { 1 };
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&to.octets()[..], &from.octets(), &head, &from.octets(), sender, &[0; 6], &bytes(target)].concat()
}

fn solicitation(dice: &mut Dice, target: Addr) -> Vec<u8> {
    let octets = bytes(target);
    let group = Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]]);
    let mut src = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    let mut transport = alloc::vec![135, 0, 0, 0, 0, 0, 0, 0];
    transport.extend(&octets);
    if dice.one_in(3) {
        src = Addr::UNSET;
    } else {
        transport.extend([&[1, 1][..], &ROUTER_MAC.octets()].concat());
    }
    let shape = Shape {
        v6: true,
        protocol: 58,
        class: 0,
        hop_limit: if dice.one_in(8) { 64 } else { 255 },
        extras: 0,
        transport,
        unsummed: false,
        part: None,
    };
    arrives(&shape.build(src, if dice.one_in(3) { target } else { group }))
}
