//! A domain with two NICs, in two networks, between real libvirts: moved by virsh there and straight back, and by Tenet in
//! post-copy.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;
use tenet_api::rest::ReceiptView;
use tenet_lab::tool::Stream;
use tenet_model::{Name, Through};
use tenet_tests::domains::{ETH0, Hosts, Nic, VM, answers_at, has_link, newest, tenet};
use tenet_tests::guest::{RESTLESS, with_guests};
use tenet_tests::libvirt;
use tenet_tests::{Setup, World, block_on, skipped, until};

const PATIENCE: Duration = Duration::from_secs(60);
const DOMAIN: &str = "lv-1";
const ETH1: Nic = Nic {
    port: "eth1",
    mac: "52:54:00:00:00:78",
    subnet: ("contoso/back", "disk"),
    address: "10.9.1.77",
    gateway: "10.9.1.1",
};
/// Who talks to which NIC: each has somebody on either host.
const ASKERS: [(&str, &str); 4] = [
    ("contoso/log", ETH0.address),
    ("contoso/web", ETH0.address),
    ("contoso/tape", ETH1.address),
    ("contoso/nas", ETH1.address),
];
const SITE: &str = "
hosts: { h1: { pa: 192.168.1.10 }, h2: { pa: 192.168.2.20 } }
tenants:
  contoso:
    networks:
      prod: { subnets: { data: { prefix: 10.1.1.0/24, vsid: 5001 } } }
      back: { subnets: { disk: { prefix: 10.9.1.0/24, vsid: 5009 } } }
    vms:
      log: { ports: { eth0: { subnet: prod/data, address: 10.1.1.14, host: h1 } } }
      web: { ports: { eth0: { subnet: prod/data, address: 10.1.1.12, host: h2 } } }
      tape: { ports: { eth0: { subnet: back/disk, address: 10.9.1.13, host: h1 } } }
      nas: { ports: { eth0: { subnet: back/disk, address: 10.9.1.12, host: h2 } } }
";
/// 64 KB each: what a guest under emulation takes without effort.
const PACE: Duration = Duration::from_millis(20);
/// MiB a second: so slow that it writes more than is moved.
const SLOW: &str = "16";

#[test]
fn a_domain_with_two_nics_moves_there_and_back_and_in_post_copy() {
    if let Some(why) = libvirt::missing() {
        return skipped(why);
    }
    with_guests("lvm", SITE, Setup::PLAIN, |world, image, consoles| {
        let site = Hosts::start(world, consoles);
        site.one.define(&site.domain(DOMAIN, &[ETH0, ETH1], image));
        _ = site.one.virsh(&["start", DOMAIN]);
        flows(world);
        there_and_straight_back_twice(&site, world);
        in_post_copy(&site, world);
    });
}

/// By both NICs, from either host.
fn flows(world: &World) {
    for (from, to) in ASKERS {
        answers_at(world, from, to);
    }
}

/// Streams to both NICs, each from the host that the domain is on at first and from the other.
fn streams(world: &World) -> Vec<Stream> {
    let begin = |(from, to): (&str, &str)| {
        let to: IpAddr = to.parse().unwrap();
        Stream::start(world.lab.vm(from).unwrap().netns(), to, PACE).unwrap()
    };
    ASKERS.into_iter().map(begin).collect()
}

/// Nothing of them was lost.
fn whole(streams: Vec<Stream>) {
    for (stream, (from, to)) in streams.into_iter().zip(ASKERS) {
        let stream = stream.stop().unwrap();
        println!("{from} to {to}: {stream:?}");
        let received = &stream.received;
        assert!(
            received.in_order && received.bytes == stream.sent && stream.sent > 0,
            "{from} to {to}: {stream:?}"
        );
    }
}

/// Both NICs moved as one.
fn moved(receipt: &ReceiptView, from: &str, to: &str) {
    println!("{receipt:?}");
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!((receipt.from.as_str(), receipt.to.as_str()), (from, to));
    assert_eq!(receipt.ports, [ETH0.port, ETH1.port].map(|p| Name::new(p).unwrap()).into());
}

/// Both are there, and nothing is left where they were.
fn are(world: &World, there: &str, left: &str) {
    for nic in [ETH0, ETH1] {
        world.address_lives_on(VM, nic.address.parse().unwrap(), there);
        until(&format!("{left}'s tap is gone"), PATIENCE, || {
            (!has_link(world, left, &nic.tap())).then_some(())
        });
    }
    world.in_sync();
}

/// The generation of each NIC's record in the kernel of the host that it is on.
fn generations(world: &World, host: &str) -> [u64; 2] {
    let rows = world.table(host).rows;
    [ETH0, ETH1].map(|nic| {
        let ca: IpAddr = nic.address.parse().unwrap();
        rows.iter().find(|r| r.ca == ca).unwrap().generation
    })
}

fn there_and_straight_back_twice(site: &Hosts, world: &World) {
    let streams = streams(world);
    let path = [("h1", &site.one, "h2", &site.two), ("h2", &site.two, "h1", &site.one)];
    let path = [path, path].concat();
    let mut before = generations(world, "h1");
    for (_, source, to, target) in &path {
        let arguments =
            ["migrate", "--live", "--p2p", "--persistent", "--undefinesource", DOMAIN, &target.uri];
        _ = source.virsh(&arguments);
        // The next one begins whether or not this one's receipt is written.
        flows(world);
        before = until("both records have changed", PATIENCE, || {
            let now = generations(world, to);
            before.iter().zip(&now).all(|(before, now)| before < now).then_some(now)
        });
    }
    let receipts = until("the receipts", PATIENCE, || {
        let all = block_on(world.client.receipts()).unwrap();
        (all.len() == path.len()).then_some(all)
    });
    for (receipt, (from, _, to, _)) in receipts.iter().zip(&path) {
        moved(receipt, from, to);
    }
    whole(streams);
    are(world, "h1", "h2");
}

/// `tenet vm migrate --libvirt --post-copy` of a guest that writes faster than it is moved.
fn in_post_copy(site: &Hosts, world: &World) {
    let restless = site.guest(&site.one, DOMAIN).exec(["sh", "-c", RESTLESS]).unwrap();
    assert_eq!(restless.code, 0, "{restless:?}");
    _ = site.one.virsh(&["migrate-setspeed", DOMAIN, SLOW]);
    let streams = streams(world);
    let lab = world.lab.record().name.clone();
    let said = tenet(&[
        "--lab",
        lab.as_str(),
        "vm",
        "migrate",
        VM,
        "--to",
        "h2",
        "--libvirt",
        &site.two.uri,
        "--post-copy",
    ]);
    println!("{said}");
    assert!(said.contains("the agent, by libvirt, in post-copy"), "{said}");
    let receipt = newest(world);
    assert!(receipt.post_copy && receipt.through == Through::Libvirt, "{receipt:?}");
    flows(world);
    whole(streams);
    moved(&receipt, "h1", "h2");
    are(world, "h2", "h1");
    assert_eq!(site.two.virsh(&["domstate", DOMAIN]).trim(), "running");
}
