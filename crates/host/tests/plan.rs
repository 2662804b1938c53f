//! Rows to tables and back.

mod common;

use common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tenet_compile::{PortState, Row, RowKey, Rows, digests};
use tenet_host::{Device, Plan, Uplink, rows_back};
use tenet_model::NetId;
use tenet_tables::image::{Image, Operation};
use tenet_tables::{
    Addr, DEVICE_VETH, FLOOD_LIMIT, FloodEntry, FloodKey, METHOD_GATEWAY, PEER_FLAG_ANY_SOURCE,
    PORT_FLAG_DOWN, PORT_FLAG_SECURITY, PeerKey, RecordKey,
};

const UPLINK: Option<Uplink> = Some(uplink(1500));

const fn uplink(mtu: u32) -> Uplink {
    Uplink { ifindex: 2, mtu, hub: 0, slow: 0, mac: tenet_tables::Mac::new([2, 0, 0, 0, 9, 9]) }
}

fn plan(rows: &Rows, devices: &BTreeMap<String, Device>, uplink: Option<Uplink>) -> Plan {
    tenet_host::plan(rows, devices, uplink, &BTreeMap::new())
}

fn addr(a: impl Into<IpAddr>) -> Addr {
    a.into().into()
}

fn flood(image: &Image, vsid: u32) -> Vec<FloodEntry> {
    let all: Vec<_> = image.flood.iter().filter(|(k, _)| k.vsid == vsid).collect();
    for (n, (k, _)) in (0u32..).zip(&all) {
        assert_eq!(**k, FloodKey { vsid, index: n }, "indices have no gaps");
    }
    all.into_iter().map(|(_, e)| *e).collect()
}

#[test]
fn small_site_fills_every_table() {
    let p = plan(&small(7), &devices(&[("eth0", 2), ("tap1-11", 11)]), UPLINK);
    assert_eq!(p.problems, Vec::<String>::new());
    let i = p.image;
    assert_eq!(i.config.map(|c| (c.uplink, c.pa)), Some((2, addr(OWN))));
    let port = i.ports[&11];
    assert_eq!((port.net, port.vsid, port.mtu, port.device), (1, 5001, 1458, DEVICE_VETH));
    assert_eq!((port.flags, port.generation), (PORT_FLAG_SECURITY, 7));
    let here = i.records[&RecordKey { net: 1, ca: addr(ca(11)) }];
    let there = i.records[&RecordKey { net: 1, ca: addr(ca(12)) }];
    assert_eq!((here.ifindex, here.pa), (11, addr(OWN)));
    assert_eq!((there.ifindex, there.pa, there.generation), (0, addr(OTHER), 7));
    let gateway = i.records[&RecordKey { net: 1, ca: addr(ca(1)) }];
    assert_eq!(
        (gateway.method, gateway.pa, gateway.mac),
        (METHOD_GATEWAY, Addr::UNSET, tenet_tables::GATEWAY_MAC)
    );
    assert_eq!(i.macs.values().map(|m| m.ifindex).collect::<Vec<_>>(), [11, 0]);
    assert_eq!(i.subnets[&5001].prefix_len, 96 + 24);
    assert_eq!(i.routes.keys().map(|p| (p.net, p.len)).collect::<Vec<_>>(), [(1, 96 + 24)]);
    assert_eq!(i.peers.keys().copied().collect::<Vec<_>>(), [PeerKey { net: 0, pa: addr(OTHER) }]);
    let local = FloodEntry { pa: Addr::UNSET, ifindex: 11 };
    assert_eq!(flood(&i, 5001), [local, FloodEntry { pa: addr(OTHER), ifindex: 0 }]);
}

#[test]
fn missing_device_leaves_the_port_out_and_the_record_without_interface() {
    let i = plan(&small(7), &devices(&[("eth0", 2)]), UPLINK).image;
    assert!(i.ports.is_empty());
    assert!(i.records.values().all(|r| r.ifindex == 0));
    assert_eq!(flood(&i, 5001).len(), 1);
}

#[test]
fn no_carrier_sets_the_flag_and_jumbo_uplink_the_mtu() {
    let down: BTreeMap<_, _> = [("tap1-11".to_owned(), Device { carrier: false, ..device(11) })].into();
    let i = plan(&small(7), &down, Some(uplink(9000))).image;
    assert_eq!((i.ports[&11].flags, i.ports[&11].mtu), (PORT_FLAG_SECURITY | PORT_FLAG_DOWN, 8958));
    assert_eq!(plan(&small(7), &down, Some(uplink(70_000))).image.ports[&11].mtu, u16::MAX);
    assert_eq!(plan(&small(7), &down, Some(uplink(20))).image.ports[&11].mtu, 0);
}

#[test]
fn migration_floods_both_hosts_once_and_leaves_out_the_moved_port() {
    let third = [192, 168, 3, 30];
    let mut site = small(7);
    for row in [record(1, 12, OTHER, Some(third)), record(1, 13, OTHER, None), peer(third, vec![])] {
        site.0.insert(row.key(), (row, 8));
    }
    let devices = devices(&[("tap1-11", 11)]);
    let local = FloodEntry { pa: Addr::UNSET, ifindex: 11 };
    let both = [FloodEntry { pa: addr(OTHER), ifindex: 0 }, FloodEntry { pa: addr(third), ifindex: 0 }];
    assert_eq!(flood(&plan(&site, &devices, UPLINK).image, 5001), [local, both[0], both[1]]);
    let moved = port(1, 11, PortState::Moved, Some(OTHER));
    site.0.insert(moved.key(), (moved, 9));
    assert_eq!(flood(&plan(&site, &devices, UPLINK).image, 5001), both);
}

#[test]
fn own_address_is_no_peer_and_appliances_are_flagged() {
    let site = rows(1, [host(OWN), peer(OWN, vec![]), peer(OTHER, vec![NetId(3)])]);
    let p = plan(&site, &BTreeMap::new(), UPLINK);
    assert_eq!(p.problems.len(), 1, "{:?}", p.problems);
    let flags: Vec<_> = p.image.peers.iter().map(|(k, v)| (k.net, v.flags)).collect();
    assert_eq!(flags, [(0, 0), (3, PEER_FLAG_ANY_SOURCE)]);
}

#[test]
fn too_many_receivers_are_cut_and_reported() {
    let mut site = small(7);
    for n in 0..=255u8 {
        let r = Row::Record(tenet_compile::RecordRow {
            net: NetId(1),
            ca: [10, 1, 1, n].into(),
            mac: mac(1, n),
            vsid: vsid(1),
            pa: [172, 16, 0, n].into(),
            alt_pa: None,
            method: tenet_model::Method::Nvgre,
            rewrite_pa: None,
            other_rewrite_pa: None,
            port: port_ref(1, n),
        });
        site.0.insert(r.key(), (r, 1));
    }
    let p = plan(&site, &devices(&[("tap1-11", 11)]), UPLINK);
    assert_eq!(flood(&p.image, 5001).len(), FLOOD_LIMIT as usize);
    assert!(p.problems[0].contains("257 receivers"), "{:?}", p.problems);
}

#[test]
fn device_of_two_ports_is_reported() {
    let mut site = small(7);
    let Row::Port(mut other) = port(1, 12, PortState::Active, None) else { unreachable!() };
    other.device = "tap1-11".into();
    site.0.insert(RowKey::Port(NetId(1), other.name.clone()), (Row::Port(other), 7));
    let p = plan(&site, &devices(&[("tap1-11", 11)]), UPLINK);
    assert!(p.problems[0].contains("the same device tap1-11"), "{:?}", p.problems);
}

/// All single changes of an image's digested tables.
fn damaged(image: &Image) -> Vec<Image> {
    let mut all = Vec::new();
    let mut with = |o: Operation| {
        let mut i = image.clone();
        i.apply(o);
        all.push(i);
    };
    for (k, v) in &image.records {
        with(Operation::Record(*k, None));
        if v.method != METHOD_GATEWAY {
            with(Operation::Record(*k, Some(tenet_tables::Record { generation: v.generation + 1, ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { pa: addr([9, 9, 9, 9]), ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { alt_pa: addr([9, 9, 9, 9]), ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { method: 77, ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { vsid: v.vsid + 1, ..*v })));
            with(Operation::Record(RecordKey { net: k.net, ca: addr([9, 9, 9, 9]) }, Some(*v)));
        }
    }
    for (k, v) in &image.subnets {
        with(Operation::Subnet(*k, None));
        with(Operation::Subnet(*k, Some(tenet_tables::Subnet { prefix_len: 97, ..*v })));
        with(Operation::Subnet(*k + 1000, Some(*v)));
    }
    for (k, v) in &image.routes {
        with(Operation::Route(*k, None));
        with(Operation::Route(*k, Some(tenet_tables::Route { next_hop: addr([9, 9, 9, 9]), ..*v })));
        with(Operation::Route(*k, Some(tenet_tables::Route { metric: v.metric ^ 1, ..*v })));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn digest_of_the_kernel_is_that_of_the_rows(rows in any_rows()) {
        let image = plan(&rows, &all_devices(), UPLINK).image;
        prop_assert_eq!(digests(&rows_back(&image, &rows)), digests(&rows));
    }

    #[test]
    fn every_single_damage_changes_a_digest_or_the_image(rows in any_rows()) {
        // Probes are in no digest either, on purpose.
        let mut devices = all_devices();
        devices.remove(tenet_host::probe::TAP);
        let image = plan(&rows, &devices, UPLINK).image;
        let good = digests(&rows);
        for bad in damaged(&image) {
            let gateways = |i: &Image| i.records.values().filter(|r| r.method == METHOD_GATEWAY).count();
            // The gateways' records are in no digest: the compare of images finds them.
            if gateways(&bad) == gateways(&image) {
                prop_assert_ne!(digests(&rows_back(&bad, &rows)), good.clone());
            }
            prop_assert!(!bad.operations_to(&image).is_empty());
        }
    }
}
