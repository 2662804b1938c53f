//! The tables' entries for the agents' own probes.

mod common;

use common::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use tenet_compile::{RowKey, digests};
use tenet_host::probe::{METHODS, TAP, mac, rewrite_ca};
use tenet_host::{Device, DeviceKind, Input, Message, Role, plan, rows_back};
use tenet_tables::{GATEWAY_MAC, METHOD_REWRITE, MacKey, PROBE_NET, PROBE_VSID, RecordKey};

const TAP_INDEX: u32 = 77;

fn with_tap() -> BTreeMap<String, Device> {
    let mut all = devices(&[("eth0", 2), ("tap1-11", 9)]);
    all.insert(TAP.into(), Device { kind: DeviceKind::Probe, ..device(TAP_INDEX) });
    all
}

#[test]
fn every_host_is_reached_by_every_method() {
    let plan = plan(&small(7), &with_tap(), None, &BTreeMap::new()).image;
    for (pa, ifindex) in [(OWN, TAP_INDEX), (OTHER, 0)] {
        for (method, name) in METHODS {
            let key = MacKey { vsid: PROBE_VSID, mac: mac(pa.into(), method), reserved: 0 };
            let entry = plan.macs[&key];
            assert_eq!((entry.method, entry.ifindex), (method.into(), ifindex), "{name}");
            assert_eq!(IpAddr::from(entry.pa), IpAddr::from(pa), "{name}");
        }
        let record = plan.records[&RecordKey { net: PROBE_NET, ca: IpAddr::from(pa).into() }];
        assert_eq!((record.ifindex, record.vsid), (ifindex, PROBE_VSID));
        let behind = plan.records[&RecordKey { net: PROBE_NET, ca: rewrite_ca(pa.into()).into() }];
        assert_eq!(IpAddr::from(behind.rewrite_pa), IpAddr::from(pa), "leaves as the host's own");
        assert_eq!((behind.mac, behind.ifindex), (mac(pa.into(), METHOD_REWRITE), ifindex));
    }
    assert!(plan.rewrites.is_empty(), "what comes to a host's own address stays its stack's");
    assert_eq!(plan.ports[&TAP_INDEX].mtu, u16::MAX);
}

#[test]
fn without_a_tap_there_is_nothing() {
    let plan = plan(&small(7), &devices(&[("eth0", 2)]), None, &BTreeMap::new()).image;
    assert!(plan.records.keys().all(|k| k.net != PROBE_NET));
    assert!(!plan.subnets.contains_key(&PROBE_VSID));
}

#[test]
fn no_proof_and_no_digest_knows_of_probes() {
    let rows = small(7);
    let image = plan(&rows, &with_tap(), None, &BTreeMap::new()).image;
    assert_eq!(digests(&rows_back(&image, &rows)), digests(&rows));
    let mut sim = Sim::started();
    sim.feed(Input::Devices(with_tap()));
    sim.full(7, rows);
    assert_eq!(sim.attached[&TAP_INDEX], Role::Port);
    for message in sim.said() {
        let (Message::Ack(_) | Message::Proof(_)) = &message else { continue };
        assert!(!format!("{message:?}").contains(&PROBE_NET.to_string()), "{message:?}");
    }
    assert_eq!(sim.core.name_of(TAP_INDEX), "");
}

#[test]
fn addresses_behind_provider_addresses_are_of_the_same_kind() {
    for pa in ["10.0.0.1", "192.168.1.10", "127.0.0.1", "fd7e:192:168:1::a", "2001:db8::1", "fe80::1", "::1"]
    {
        let pa: IpAddr = pa.parse().unwrap();
        let ca = rewrite_ca(pa);
        assert_eq!((ca.is_ipv4(), rewrite_ca(ca)), (pa.is_ipv4(), pa));
        assert!(ca != pa && !matches!(ca, IpAddr::V6(a) if a.is_multicast() || a.to_ipv4_mapped().is_some()));
    }
}

#[test]
fn a_host_with_the_address_behind_anothers_keeps_its_tunnels() {
    let odd: std::net::Ipv4Addr = std::net::Ipv4Addr::from(OTHER);
    let IpAddr::V4(odd) = rewrite_ca(odd.into()) else { panic!("IPv4") };
    let mut rows = small(7);
    let row = peer(odd.octets(), vec![]);
    rows.0.insert(row.key(), (row, 8));
    let plan = plan(&rows, &with_tap(), None, &BTreeMap::new()).image;
    let record = plan.records[&RecordKey { net: PROBE_NET, ca: IpAddr::from(odd).into() }];
    assert_eq!(IpAddr::from(record.pa), IpAddr::from(odd));
    assert!(record.rewrite_pa.is_unset());
}

#[test]
fn a_new_host_is_probed_from_its_delta_on() {
    let mut sim = Sim::started();
    sim.feed(Input::Devices(with_tap()));
    sim.full(7, small(7));
    let new = [192, 168, 3, 30];
    let mut next = small(7);
    let row = peer(new, vec![]);
    next.0.insert(row.key(), (row, 8));
    sim.feed(Input::Delta(small(7).delta_to(7, &next, 8)));
    let key = RecordKey { net: PROBE_NET, ca: IpAddr::from(new).into() };
    assert!(sim.image.records.contains_key(&key));
    sim.feed(Input::Delta(next.delta_to(8, &small(7), 9)));
    assert!(!sim.image.records.contains_key(&key));
    let other = RecordKey { net: PROBE_NET, ca: IpAddr::from(OTHER).into() };
    assert!(sim.image.records.contains_key(&other));
    assert!(small(7).0.contains_key(&RowKey::Host));
}

#[test]
fn macs_are_unicast_and_apart() {
    let mut all = BTreeSet::new();
    for n in 0..1000u16 {
        let six: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, n / 7, n).into();
        let [a, b] = n.to_be_bytes();
        for pa in [six, [10, 0, a, b].into()] {
            for (method, _) in METHODS {
                let mac = mac(pa, method);
                assert_eq!(mac.octets()[0] & 3, 2, "local and unicast");
                assert_ne!(mac, GATEWAY_MAC);
                assert!(all.insert(mac), "{pa}");
            }
        }
    }
}

#[test]
fn what_networks_need_is_there_before_they_change() {
    use tenet_compile::Row;
    use tenet_host::{Needs, needs};
    use tenet_model::{Method, NetId, OtherPort};
    let mut rows = small(7);
    assert_eq!(needs(&rows), Needs::default());
    let mut set = |method, switching| {
        let Some((Row::Network(n), _)) = rows.0.get_mut(&RowKey::Network(NetId(1))) else {
            panic!("a network")
        };
        (n.method, n.switching) = (method, switching);
        needs(&rows)
    };
    assert_eq!(set(Method::Stt, None), Needs::default());
    let both = set(Method::Vxlan, Some(Method::Geneve));
    assert_eq!((both.vxlan, both.geneve), (vec![4789], vec![6081]));
    assert_eq!(set(Method::Rewrite, None), Needs::default());
    // A port that changes is needed twice.
    let Some((Row::Host(h), _)) = rows.0.get_mut(&RowKey::Host) else { panic!("a host") };
    h.other_port = Some(OtherPort { method: Method::Vxlan, port: 8472 });
    let Some((Row::Network(n), _)) = rows.0.get_mut(&RowKey::Network(NetId(1))) else { panic!("a network") };
    (n.method, n.switching) = (Method::Vxlan, Some(Method::Geneve));
    let both = needs(&rows);
    assert_eq!((both.vxlan, both.geneve), (vec![4789, 8472], vec![6081]));
}

#[test]
fn a_range_is_asked_for_while_one_of_its_addresses_stands_for_one_here() {
    use tenet_compile::Row;
    use tenet_host::needs;
    use tenet_model::NetId;
    let mut rows = small(7);
    let pools = ["192.168.1.128/25", "2001:db8:1::80/121", "2001:db8:9::/64"];
    let Some((Row::Host(h), _)) = rows.0.get_mut(&RowKey::Host) else { panic!("a host") };
    h.pool = pools.map(|p| p.parse().unwrap()).to_vec();
    let mut asked = |n: u8, own: Option<&str>, alt: Option<[u8; 4]>, other: Option<&str>| {
        let Some((Row::Record(r), _)) = rows.0.get_mut(&RowKey::Record(NetId(1), ca(n))) else {
            panic!("a record")
        };
        r.rewrite_pa = own.map(|a| a.parse().unwrap());
        (r.alt_pa, r.other_rewrite_pa) = (alt.map(Into::into), other.map(|a| a.parse().unwrap()));
        needs(&rows).asked_for.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(asked(11, Some("192.168.1.130"), None, None), Vec::<String>::new(), "asked for by broadcast");
    assert_eq!(asked(12, Some("2001:db8:1::81"), None, None), Vec::<String>::new(), "another host's");
    assert_eq!(asked(11, Some("2001:db8:1::82"), None, None), ["2001:db8:1::80/121"]);
    assert_eq!(asked(11, None, None, None), Vec::<String>::new());
    // A VM of the other host is about to come.
    assert_eq!(asked(12, None, Some(OWN), Some("2001:db8:9::1")), ["2001:db8:9::/64"]);
}

#[test]
fn a_change_of_records_and_ports_alone_bears_on_no_host() {
    use tenet_compile::{PortState, Row, Rows};
    use tenet_host::bears_on_hosts;
    use tenet_model::{Method, NetId};
    let rows = small(7);
    let changed = |change: &dyn Fn(&mut Rows)| {
        let mut next = rows.clone();
        change(&mut next);
        bears_on_hosts(&rows, &rows.delta_to(7, &next, 8))
    };
    let key = RowKey::Record(NetId(1), ca(12));
    let moved = |rows: &mut Rows, rewrite: Option<&str>| {
        let Some((Row::Record(r), generation)) = rows.0.get_mut(&key) else { panic!("a record") };
        (r.pa, r.rewrite_pa, *generation) = (OWN.into(), rewrite.map(|a| a.parse().unwrap()), 8);
    };
    assert!(!changed(&|rows| moved(rows, None)));
    assert!(!changed(&|rows| drop(rows.0.remove(&key))));
    assert!(!changed(&|rows| {
        let row = port(1, 12, PortState::Prepared, None);
        rows.0.insert(row.key(), (row, 8));
    }));
    // An address for IP Rewrite may be the first of its range here, or the last.
    assert!(changed(&|rows| moved(rows, Some("2001:db8:1::82"))));
    let mut with = rows.clone();
    moved(&mut with, Some("2001:db8:1::82"));
    let mut without = with.clone();
    without.0.remove(&key);
    assert!(bears_on_hosts(&with, &with.delta_to(8, &without, 9)));
    assert!(changed(&|rows| {
        let Some((Row::Network(n), generation)) = rows.0.get_mut(&RowKey::Network(NetId(1))) else {
            panic!("a network")
        };
        (n.method, *generation) = (Method::Vxlan, 8);
    }));
    assert!(changed(&|rows| rows.0.retain(|key, _| !matches!(key, RowKey::Peer(_)))));
}
