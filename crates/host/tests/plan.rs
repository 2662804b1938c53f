//! Rows to tables and back.

mod common;

use common::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tenet_compile::{HostRow, NetworkRow, PortState, RecordRow, Row, RowKey, Rows, SubnetRow, digests};
use tenet_host::{Device, Plan, Uplink, rows_back};
use tenet_model::{Method, NetId, OtherPort};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{
    Addr, CONFIG_FLAG_OTHER_GENEVE, CONFIG_FLAG_REWRITE, DEVICE_VETH, FLOOD_LIMIT, FloodEntry, FloodKey,
    METHOD_GATEWAY, METHOD_VXLAN, PEER_FLAG_ANY_SOURCE, PORT_FLAG_AUTOCONF, PORT_FLAG_DOWN,
    PORT_FLAG_SECURITY, PeerKey, RecordKey,
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
            with(Operation::Record(*k, Some(tenet_tables::Record { rewrite_pa: addr([9, 9, 9, 9]), ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { method: 77, ..*v })));
            with(Operation::Record(*k, Some(tenet_tables::Record { vsid: v.vsid + 1, ..*v })));
            with(Operation::Record(RecordKey { net: k.net, ca: addr([9, 9, 9, 9]) }, Some(*v)));
        }
    }
    for (k, v) in &image.subnets {
        with(Operation::Subnet(*k, None));
        with(Operation::Subnet(*k, Some(tenet_tables::Subnet { prefix_len: 97, ..*v })));
        with(Operation::Subnet(*k, Some(tenet_tables::Subnet { prefix6_len: 63, ..*v })));
        with(Operation::Subnet(*k, Some(tenet_tables::Subnet { gateway6: addr([9, 9, 9, 9]), ..*v })));
        with(Operation::Subnet(*k + 1000, Some(*v)));
    }
    for (k, v) in &image.rewrites {
        with(Operation::Rewrite(*k, None));
        with(Operation::Rewrite(*k, Some(tenet_tables::Rewrite { other_pa: addr([9, 9, 9, 9]), ..*v })));
        with(Operation::Rewrite(*k, Some(tenet_tables::Rewrite { ca: addr([9, 9, 9, 9]), ..*v })));
        with(Operation::Rewrite(*k, Some(tenet_tables::Rewrite { vsid: v.vsid + 1, ..*v })));
        with(Operation::Rewrite(*k, Some(tenet_tables::Rewrite { net: v.net + 9, ..*v })));
        with(Operation::Rewrite(*k, Some(tenet_tables::Rewrite { generation: v.generation + 1, ..*v })));
        with(Operation::Rewrite(tenet_tables::RewriteKey { pa: addr([9, 9, 9, 9]) }, Some(*v)));
    }
    for (k, v) in &image.routes {
        with(Operation::Route(*k, None));
        with(Operation::Route(*k, Some(tenet_tables::Route { next_hop: addr([9, 9, 9, 9]), ..*v })));
        with(Operation::Route(*k, Some(tenet_tables::Route { metric: v.metric ^ 1, ..*v })));
    }
    all
}

/// The small site with IPv6 beside IPv4, by a method.
fn dual(kind: Kind) -> Rows {
    let mut site = small(7);
    let mut put = |row: Row| drop(site.0.insert(row.key(), (row, 7)));
    let Row::Network(row) = network(1) else { unreachable!() };
    put(Row::Network(NetworkRow { method: kind.method, switching: kind.switching, ..row }));
    let Row::Subnet(row) = subnet(1) else { unreachable!() };
    put(Row::Subnet(SubnetRow { prefixes: prefixes(1, kind), ..row }));
    for (n, pa) in [(11, OWN), (12, OTHER)] {
        let Row::Record(row) = record(1, n, pa, None) else { unreachable!() };
        put(Row::Record(RecordRow { method: kind.method, ..row.clone() }));
        put(Row::Record(RecordRow { ca: ca6(1, n), method: kind.method, ..row }));
    }
    site
}

const BOTH: Kind = Kind { method: Method::Vxlan, switching: None, v4: true, v6: true, left: false };

#[test]
fn ipv6_stands_beside_ipv4() {
    let i = plan(&dual(BOTH), &devices(&[("tap1-11", 11)]), UPLINK).image;
    let subnet = i.subnets[&5001];
    assert_eq!((subnet.prefix_len, subnet.prefix6_len, subnet.method), (96 + 24, 64, METHOD_VXLAN.into()));
    assert_eq!((subnet.gateway, subnet.gateway6), (addr(ca(1)), addr(prefixes(1, BOTH)[1].gateway)));
    for gateway in [subnet.gateway, subnet.gateway6] {
        assert_eq!(i.records[&RecordKey { net: 1, ca: gateway }].method, METHOD_GATEWAY);
    }
    assert_eq!(i.records[&RecordKey { net: 1, ca: addr(ca6(1, 11)) }].ifindex, 11);
    let only = plan(&dual(Kind { v4: false, ..BOTH }), &BTreeMap::new(), UPLINK).image.subnets[&5001];
    assert_eq!((only.prefix_len, only.gateway, only.prefix6_len), (0, Addr::UNSET, 64));
}

#[test]
fn a_subnet_of_ipv6_alone_floods_like_any() {
    let site = dual(Kind { v4: false, ..BOTH });
    let mut site =
        Rows(site.0.into_iter().filter(|(k, _)| !matches!(k, RowKey::Record(_, IpAddr::V4(_)))).collect());
    let local = FloodEntry { pa: Addr::UNSET, ifindex: 11 };
    let i = plan(&site, &devices(&[("tap1-11", 11)]), UPLINK).image;
    assert_eq!(flood(&i, 5001), [local, FloodEntry { pa: addr(OTHER), ifindex: 0 }]);
    // Over IPv6 as well.
    let far: IpAddr = "2001:db8::2".parse().unwrap();
    for (row, _) in site.0.values_mut() {
        match row {
            Row::Host(r) => r.pa = "2001:db8::1".parse().unwrap(),
            Row::Record(r) if r.pa == IpAddr::from(OTHER) => r.pa = far,
            Row::Record(r) => r.pa = "2001:db8::1".parse().unwrap(),
            _ => {}
        }
    }
    let i = plan(&site, &devices(&[("tap1-11", 11)]), UPLINK).image;
    assert_eq!(flood(&i, 5001), [local, FloodEntry { pa: addr(far), ifindex: 0 }]);
    assert_eq!(
        (i.ports[&11].mtu, i.config.unwrap().pa),
        (1500 - 70, addr("2001:db8::1".parse::<IpAddr>().unwrap()))
    );
}

#[test]
fn only_addresses_formed_from_the_mac_are_advertised_for_autoconfiguration() {
    for (n, expected) in [(11, 0), (12, PORT_FLAG_AUTOCONF)] {
        let mut site = dual(BOTH);
        let row = port(1, n, PortState::Active, None);
        site.0.insert(row.key(), (row, 7));
        let name = format!("tap1-{n}");
        let i = plan(&site, &devices(&[(&name, n.into())]), UPLINK).image;
        assert_eq!(i.ports[&n.into()].flags, PORT_FLAG_SECURITY | expected, "{}", ca6(1, n));
    }
}

#[test]
fn mtu_is_that_of_the_narrowest_path_less_the_larger_overhead() {
    use Method::*;
    let site = |method, switching| dual(Kind { method, switching, ..BOTH });
    let third: IpAddr = [192, 168, 9, 9].into();
    for (method, switching, path, expected) in [
        (Nvgre, None, None, 1458),
        (Vxlan, None, None, 1450),
        (Geneve, None, Some(1400), 1350),
        (Stt, None, None, 1428),
        (Rewrite, None, None, 1500),
        (Rewrite, None, Some(1480), 1480),
        (Nvgre, Some(Stt), None, 1428),
        (Stt, Some(Rewrite), None, 1428),
        (Rewrite, Some(Vxlan), Some(1480), 1430),
        (Nvgre, None, Some(9000), 1458),
    ] {
        let mut paths = BTreeMap::from([(third, 576)]);
        paths.extend(path.map(|p| (IpAddr::from(OTHER), p)));
        let p = tenet_host::plan(&site(method, switching), &devices(&[("tap1-11", 11)]), UPLINK, &paths);
        assert_eq!(p.image.ports[&11].mtu, expected, "{method} {switching:?} {path:?}");
        assert_eq!(p.problems, Vec::<String>::new());
    }
    let narrow = BTreeMap::from([(IpAddr::from(OTHER), 1300)]);
    let p = tenet_host::plan(&site(Vxlan, None), &devices(&[("tap1-11", 11)]), UPLINK, &narrow);
    assert!(p.problems[0].contains("t1/blue has IPv6 addresses, but"), "{:?}", p.problems);
    assert!(p.problems[0].contains("1250 bytes"), "{:?}", p.problems);
}

#[test]
fn rewrite_addresses_stand_in_both_directions() {
    let third = [192, 168, 3, 30];
    let mut site = small(7);
    for (n, pa, alt, first, second) in [
        (11, OWN, Some(third), [172, 20, 0, 11], Some([172, 20, 3, 11])),
        (12, OTHER, None, [172, 20, 1, 12], None),
        (13, OTHER, Some(OWN), [172, 20, 1, 13], Some([172, 20, 0, 13])),
    ] {
        let Row::Record(row) = record(1, n, pa, alt) else { unreachable!() };
        let (rewrite_pa, other_rewrite_pa) = (Some(first.into()), second.map(Into::into));
        let row = Row::Record(RecordRow { method: Method::Rewrite, rewrite_pa, other_rewrite_pa, ..row });
        site.0.insert(row.key(), (row, 8));
    }
    for row in [
        port(1, 13, PortState::Prepared, Some(OTHER)),
        Row::Host(HostRow {
            pool: vec!["172.20.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
            ..own_row()
        }),
    ] {
        site.0.insert(row.key(), (row, 9));
    }
    let i = plan(&site, &devices(&[("tap1-11", 11), ("tap1-13", 13)]), UPLINK).image;
    let entries: Vec<_> = (i.rewrites.iter())
        .map(|(k, r)| (IpAddr::from(k.pa), IpAddr::from(r.ca), IpAddr::from(r.other_pa), r.ifindex))
        .collect();
    let none = IpAddr::from(Addr::UNSET);
    let a = |octets: [u8; 4]| IpAddr::from(octets);
    let expected = [
        (a([172, 20, 0, 11]), ca(11), a([172, 20, 3, 11]), 11),
        (a([172, 20, 0, 13]), ca(13), a([172, 20, 1, 13]), 13),
        (a([172, 20, 1, 12]), ca(12), none, 0),
        (a([172, 20, 1, 13]), ca(13), a([172, 20, 0, 13]), 0),
        (a([172, 20, 3, 11]), ca(11), a([172, 20, 0, 11]), 0),
    ];
    assert_eq!(entries.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    assert_eq!(i.records[&RecordKey { net: 1, ca: addr(ca(12)) }].rewrite_pa, addr([172, 20, 1, 12]));
    let pools: Vec<_> =
        i.pools.iter().map(|((k, len), p)| (IpAddr::from(k.pa), *len, p.generation)).collect();
    assert_eq!(pools, [(a([172, 20, 0, 0]), 120, 9), ("fd00:9::".parse().unwrap(), 64, 9)]);
    assert_eq!(i.config.unwrap().flags, CONFIG_FLAG_REWRITE);
}

/// Rows of the small site at one step of a change from NVGRE to IP Rewrite and away again.
fn step(method: Method, switching: Option<Method>, addresses: bool) -> Rows {
    let mut site = dual(Kind { method, switching, ..BOTH });
    for (row, _) in site.0.values_mut() {
        if let Row::Record(r) = row {
            let at = if r.pa == IpAddr::from(OWN) { 0 } else { 1 };
            let IpAddr::V4(ca) = r.ca else { continue };
            r.rewrite_pa = addresses.then(|| stand_in(at, 1, r.ca, ca.octets()[3]));
        }
    }
    site
}

#[test]
fn a_change_of_method_readies_receivers_first() {
    use Method::{Nvgre, Rewrite, Vxlan};
    let steps = [
        step(Nvgre, None, false),
        step(Nvgre, Some(Rewrite), true),
        step(Rewrite, None, true),
        step(Rewrite, Some(Vxlan), true),
        step(Vxlan, None, true),
        step(Vxlan, None, false),
    ];
    let images: Vec<Image> =
        steps.iter().map(|rows| plan(rows, &devices(&[("tap1-11", 11)]), UPLINK).image).collect();
    let methods = |i: &Image| i.records.values().map(|r| r.method).collect::<Vec<_>>();
    for (n, pair) in images.windows(2).enumerate() {
        let operations = pair[0].operations_to(&pair[1]);
        let at = |what: fn(&Operation) -> bool| operations.iter().position(what);
        let (rewrite, record) =
            (at(|o| matches!(o, Operation::Rewrite(..))), at(|o| matches!(o, Operation::Record(..))));
        match n {
            // Addresses come before the records that name them; the senders go on as they did.
            0 => {
                assert!(rewrite < record && rewrite.is_some(), "{operations:?}");
                assert_eq!(methods(&pair[0]), methods(&pair[1]));
            }
            // Senders switch; nothing that receivers use is touched.
            1 | 3 => {
                assert_eq!((rewrite, pair[0].rewrites.len()), (None, 2), "{operations:?}");
                assert_ne!(methods(&pair[0]), methods(&pair[1]));
            }
            2 => assert_eq!((rewrite, record), (None, None), "{operations:?}"),
            // Addresses go after the records that named them.
            4 => assert!(rewrite > record && record.is_some(), "{operations:?}"),
            _ => unreachable!(),
        }
    }
}

#[test]
fn config_has_the_sites_ports_and_the_uplinks_own() {
    let mut site = small(7);
    let row = Row::Host(HostRow { vxlan_port: 8472, geneve_port: 6082, ..own_row() });
    site.0.insert(row.key(), (row, 9));
    let uplink = Uplink { slow: 77, ..uplink(1500) };
    let c = plan(&site, &BTreeMap::new(), Some(uplink)).image.config.unwrap();
    assert_eq!((c.vxlan_port, c.geneve_port, c.slow, c.flags), (8472, 6082, 77, 0));
    assert_eq!((c.uplink_mac, c.other_port), (uplink.mac, 0));
    for (method, flag) in [(Method::Vxlan, 0), (Method::Geneve, CONFIG_FLAG_OTHER_GENEVE)] {
        let other_port = Some(OtherPort { method, port: 7000 });
        let row = Row::Host(HostRow { other_port, ..own_row() });
        site.0.insert(row.key(), (row, 9));
        let c = plan(&site, &BTreeMap::new(), Some(uplink)).image.config.unwrap();
        assert_eq!((c.vxlan_port, c.geneve_port, c.other_port, c.flags), (4789, 6081, 7000, flag));
    }
}

fn own_row() -> HostRow {
    let Row::Host(row) = host(OWN) else { unreachable!() };
    row
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn digest_of_the_kernel_is_that_of_the_rows(rows in any_rows()) {
        let image = plan(&rows, &all_devices(), UPLINK).image;
        prop_assert_eq!(digests(&rows_back(&image, &rows)), digests(&rows));
    }

    #[test]
    fn pools_are_compared_too(rows in any_rows()) {
        let image = plan(&rows, &all_devices(), UPLINK).image;
        prop_assert_eq!(image.pools.len(), 2);
        for key in image.pools.keys() {
            let mut bad = image.clone();
            bad.apply(Operation::Pool(*key, None));
            prop_assert_eq!(bad.operations_to(&image), vec![Operation::Pool(*key, image.pools.get(key).copied())]);
        }
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
