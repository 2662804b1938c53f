//! What a host is told, in the demo's site: rows in short form.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use tenet_compile::{RecordRow, Row, compile, digests};
use tenet_model::{
    Desired, Host, Method, Migration, Name, NetId, Network, Object, OtherPort, Phase, Port, PortRef, Route,
    Site, Subnet, SubnetPrefix, Tenant, UdpPorts, Vm, Vsid,
};
use uuid::Uuid;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn port(vm: &str, ca: &str, host: Option<&str>, security: bool) -> Object {
    let subnet = if ca.starts_with("10.1.2.") { "contoso/blue/two" } else { "contoso/blue/one" };
    let last: u8 = ca.rsplit('.').next().unwrap().parse().unwrap();
    Object::Port(Port {
        name: format!("contoso/{vm}/eth0").parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        mac: tenet_model::Mac::new([2, 0, 0, 0, 0, last]).unwrap(),
        addresses: vec![ca.parse().unwrap()],
        host: host.map(name),
        device: host.map(|_| format!("tap-{vm}")),
        tap: false,
        queues: 1,
        security,
        rewrite: BTreeMap::new(),
    })
}

/// Three hosts; h3 has nothing until something moves there. Each object has its own revision.
fn site() -> Desired {
    let route = |hop: &str, metric| {
        let (prefix, next_hop) = ("0.0.0.0/0".parse().unwrap(), hop.parse().unwrap());
        Object::Route(Route { network: "contoso/blue".parse().unwrap(), prefix, next_hop, metric })
    };
    let subnet = |text: &str, vsid, prefix: &str, gateway: &str| {
        let (prefix, gateway) = (prefix.parse().unwrap(), gateway.parse().unwrap());
        Object::Subnet(Subnet {
            name: text.parse().unwrap(),
            vsid: Vsid::new(vsid).unwrap(),
            prefixes: vec![SubnetPrefix { prefix, gateway }],
        })
    };
    let host = |n: &str, pa: &str| {
        Object::Host(Host { name: name(n), pa: pa.parse().unwrap(), rewrite_pool: vec![] })
    };
    let (network, method) = ("contoso/blue".parse().unwrap(), Default::default());
    let objects = [
        Object::Tenant(Tenant { name: name("contoso") }),
        host("h1", "192.168.1.10"),
        host("h2", "192.168.2.20"),
        host("h3", "192.168.3.30"),
        Object::Network(Network {
            name: network,
            rdid: Uuid::from_u128(1),
            id: NetId(7),
            method,
            switching: None,
        }),
        subnet("contoso/blue/one", 5001, "10.1.1.0/24", "10.1.1.1"),
        subnet("contoso/blue/two", 5002, "10.1.2.0/24", "10.1.2.1"),
        Object::Vm(Vm { name: "contoso/sql".parse().unwrap() }),
        port("sql", "10.1.1.11", Some("h1"), true),
        port("fw", "10.1.2.13", Some("h2"), false),
        port("off", "10.1.1.99", None, true),
        route("10.1.1.11", 10),
        route("10.1.2.13", 5),
        route("10.1.2.12", 5),
    ];
    let mut desired = Desired::default();
    for (object, revision) in objects.into_iter().zip(2..) {
        desired.put(object, revision);
    }
    desired
}

fn moving(phase: Phase) -> Desired {
    let mut desired = site();
    let devices = [(name("eth0"), "tap-new".to_owned())].into();
    let vm = "contoso/sql".parse().unwrap();
    let migration = Migration::new(vm, Uuid::from_u128(2), name("h1"), name("h3"), devices);
    desired.put(Object::Migration(Migration { phase, ..migration }), 50);
    desired
}

fn short(row: &Row) -> String {
    let pa = |pa: &Option<IpAddr>| pa.map_or_else(|| "-".to_owned(), |pa| pa.to_string());
    match row {
        Row::Host(r) => format!("host {} {}", r.name, r.pa),
        Row::Peer(r) => format!(
            "peer {} {} any-source {:?}",
            r.name,
            r.pa,
            r.any_source.iter().map(|n| n.0).collect::<Vec<_>>()
        ),
        Row::Network(r) => format!("network {} {}", r.id.0, r.name),
        Row::Subnet(r) => format!("subnet {} {} {}", r.vsid, r.prefixes[0].prefix, r.prefixes[0].gateway),
        Row::Record(r) => format!("record {} {} {} pa {} alt {}", r.ca, r.mac, r.vsid, r.pa, pa(&r.alt_pa)),
        Row::Route(r) => format!("route {} via {} metric {}", r.prefix, pa(&r.next_hop), r.metric),
        Row::Port(r) => format!("port {} {} {:?} peer {}", r.name, r.device, r.state, pa(&r.peer_pa)),
    }
}

#[track_caller]
fn check(desired: &Desired, host: &str, blocked: &[&str], expected: &str) {
    let blocked: BTreeSet<PortRef> = blocked.iter().map(|b| b.parse().unwrap()).collect();
    let rows = compile(desired, &name(host), &blocked);
    let found: Vec<String> = rows.0.values().map(|(row, g)| format!("{} @{g}", short(row))).collect();
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(found, expected, "{host}");
}

#[test]
fn a_host_gets_its_networks_and_no_more() {
    let rows = "
        host h1 192.168.1.10 @3
        peer h2 192.168.2.20 any-source [7] @11
        network 7 contoso/blue @6
        subnet 5001 10.1.1.0/24 10.1.1.1 @7
        subnet 5002 10.1.2.0/24 10.1.2.1 @8
        record 10.1.1.11 02:00:00:00:00:0b 5001 pa 192.168.1.10 alt - @10
        record 10.1.2.13 02:00:00:00:00:0d 5002 pa 192.168.2.20 alt - @11
        route 0.0.0.0/0 via 10.1.2.12 metric 5 @15
        route 10.1.1.0/24 via - metric 0 @7
        route 10.1.2.0/24 via - metric 0 @8
        port contoso/sql/eth0 tap-sql Active peer - @10
    ";
    check(&site(), "h1", &[], rows);
    check(&site(), "h1", &["contoso/sql/eth0"], &rows.replace("Active", "Blocked"));
    check(&site(), "h1", &["contoso/fw/eth0"], rows);
    check(&site(), "h3", &[], "host h3 192.168.3.30 @5");
    check(&site(), "h9", &[], "");
}

/// The rows of one kind of word on a host.
fn only(desired: &Desired, host: &str, words: &[&str]) -> Vec<String> {
    let rows = compile(desired, &name(host), &BTreeSet::new());
    let all = rows.0.values().map(|(row, g)| format!("{} @{g}", short(row)));
    all.filter(|row| words.iter().any(|w| row.starts_with(w))).collect()
}

#[test]
fn a_destination_is_prepared_and_everybody_knows_both_addresses() {
    for phase in [Phase::Preparing, Phase::Prepared] {
        let desired = moving(phase);
        let record = "record 10.1.1.11 02:00:00:00:00:0b 5001 pa 192.168.1.10 alt 192.168.3.30 @50";
        for host in ["h1", "h2", "h3"] {
            assert_eq!(only(&desired, host, &["record 10.1.1.11"]), [record], "{host}");
        }
        let source = "port contoso/sql/eth0 tap-sql Active peer 192.168.3.30 @50";
        assert_eq!(only(&desired, "h1", &["port"]), [source]);
        let destination = "port contoso/sql/eth0 tap-new Prepared peer 192.168.1.10 @50";
        assert_eq!(only(&desired, "h3", &["port"]), [destination]);
        let peers = ["peer h1 192.168.1.10 any-source [] @3", "peer h2 192.168.2.20 any-source [7] @11"];
        assert_eq!(only(&desired, "h3", &["peer"]), peers);
        assert_eq!(only(&desired, "h1", &["peer h3"]), ["peer h3 192.168.3.30 any-source [] @5"]);
    }
}

#[test]
fn a_source_sends_on_after_the_switch() {
    let desired = moving(Phase::Switched);
    let record = "record 10.1.1.11 02:00:00:00:00:0b 5001 pa 192.168.3.30 alt 192.168.1.10 @50";
    for host in ["h1", "h2", "h3"] {
        assert_eq!(only(&desired, host, &["record 10.1.1.11"]), [record], "{host}");
    }
    let source = "port contoso/sql/eth0 tap-sql Moved peer 192.168.3.30 @50";
    assert_eq!(only(&desired, "h1", &["port"]), [source]);
    let destination = "port contoso/sql/eth0 tap-new Active peer 192.168.1.10 @50";
    assert_eq!(only(&desired, "h3", &["port"]), [destination]);
}

#[test]
fn a_host_without_ports_left_forgets_the_network() {
    let mut desired = site();
    desired.put(port("sql", "10.1.1.11", Some("h3"), true), 60);
    assert_eq!(only(&desired, "h1", &[""]), ["host h1 192.168.1.10 @3"]);
    assert_eq!(only(&desired, "h2", &["peer"]), ["peer h3 192.168.3.30 any-source [] @5"]);
}

/// The site with a second family and a method.
fn rewriting(mut desired: Desired, method: Method, switching: Option<Method>) -> Desired {
    let put = |desired: &mut Desired, text: &str| {
        let object = desired.get(&text.parse().unwrap()).unwrap();
        let object = match object.value {
            Object::Network(n) => Object::Network(Network { method, switching, ..n }),
            Object::Subnet(mut s) => {
                let (prefix, gateway) = ("fd00:1::/64".parse().unwrap(), "fd00:1::1".parse().unwrap());
                s.prefixes.insert(0, SubnetPrefix { prefix, gateway });
                Object::Subnet(s)
            }
            Object::Host(h) => {
                let pool = format!("192.168.{}.128/25", h.pa.to_string().split('.').nth(2).unwrap());
                Object::Host(Host { rewrite_pool: vec![pool.parse().unwrap()], ..h })
            }
            Object::Migration(mut m) => {
                m.rewrite = [(name("eth0"), pair("10.1.1.11", "192.168.3.129"))].into();
                Object::Migration(m)
            }
            Object::Port(mut p) => {
                p.rewrite = pair("10.1.1.11", "192.168.1.129");
                Object::Port(p)
            }
            other => other,
        };
        desired.put(object, 60);
    };
    let all =
        ["network/contoso/blue", "subnet/contoso/blue/one", "host/h1", "host/h3", "port/contoso/sql/eth0"];
    all.into_iter().for_each(|text| put(&mut desired, text));
    if desired.migrations.is_empty() {
        return desired;
    }
    put(&mut desired, "migration/contoso/sql");
    desired
}

fn pair(ca: &str, pa: &str) -> BTreeMap<IpAddr, IpAddr> {
    [(ca.parse().unwrap(), pa.parse().unwrap())].into()
}

fn record(desired: &Desired, host: &str) -> (Option<String>, Option<String>, Method) {
    let rows = compile(desired, &name(host), &BTreeSet::new());
    let found = rows.0.values().find_map(|(row, _)| match row {
        Row::Record(r) if r.ca == IpAddr::from([10, 1, 1, 11]) => Some(r.clone()),
        _ => None,
    });
    let r = found.unwrap();
    (r.rewrite_pa.map(|a| a.to_string()), r.other_rewrite_pa.map(|a| a.to_string()), r.method)
}

#[test]
fn rewrite_addresses_are_in_the_records_before_during_and_after_the_method() {
    use Method::{Nvgre, Rewrite, Vxlan};
    let here = Some("192.168.1.129".to_owned());
    for (method, switching) in
        [(Nvgre, Some(Rewrite)), (Rewrite, None), (Rewrite, Some(Vxlan)), (Vxlan, None)]
    {
        let desired = rewriting(site(), method, switching);
        for host in ["h1", "h2"] {
            assert_eq!(record(&desired, host), (here.clone(), None, method), "{host} {switching:?}");
            let rows = compile(&desired, &name(host), &BTreeSet::new());
            let network = rows.0.values().find_map(|(row, generation)| match row {
                Row::Network(n) => Some((n.method, n.switching, *generation)),
                _ => None,
            });
            assert_eq!(network, Some((method, switching, 60)));
        }
    }
}

#[test]
fn a_migration_has_rewrite_addresses_on_both_hosts() {
    let (from, to) = (Some("192.168.1.129".to_owned()), Some("192.168.3.129".to_owned()));
    for (phase, expected) in [
        (Phase::Preparing, (from.clone(), to.clone())),
        (Phase::Prepared, (from.clone(), to.clone())),
        (Phase::Switched, (to, from)),
    ] {
        let desired = rewriting(moving(phase), Method::Rewrite, None);
        for host in ["h1", "h2", "h3"] {
            let (first, second, _) = record(&desired, host);
            assert_eq!((first, second), expected, "{host} {phase:?}");
        }
    }
}

#[test]
fn subnets_of_two_families_have_ipv4_first_and_a_route_for_each() {
    let desired = rewriting(site(), Method::Nvgre, None);
    let rows = compile(&desired, &name("h2"), &BTreeSet::new());
    let subnet = rows.0.values().find_map(|(row, _)| match row {
        Row::Subnet(s) if s.vsid.number() == 5001 => Some(s.prefixes.clone()),
        _ => None,
    });
    let gateways: Vec<String> = subnet.unwrap().iter().map(|p| p.gateway.to_string()).collect();
    assert_eq!(gateways, ["10.1.1.1", "fd00:1::1"]);
    assert_eq!(
        only(&desired, "h2", &["route"]),
        [
            "route 0.0.0.0/0 via 10.1.2.12 metric 5 @15",
            "route 10.1.1.0/24 via - metric 0 @60",
            "route 10.1.2.0/24 via - metric 0 @8",
            "route fd00:1::/64 via - metric 0 @60",
        ]
    );
}

#[test]
fn hosts_are_told_their_pool_and_the_sites_ports() {
    let mut desired = rewriting(site(), Method::Nvgre, None);
    desired.put(Object::Site(Site { vxlan_port: 8472, geneve_port: 6082, ..Site::default() }), 70);
    for (host, pool) in [("h1", "192.168.1.128/25"), ("h2", "")] {
        let rows = compile(&desired, &name(host), &BTreeSet::new());
        let Some((Row::Host(own), 70)) = rows.0.values().next() else {
            panic!("{host} has no row of its own")
        };
        let pools: Vec<String> = own.pool.iter().map(ToString::to_string).collect();
        assert_eq!((own.vxlan_port, own.geneve_port, pools.join(" ")), (8472, 6082, pool.to_owned()));
        assert_eq!(own.other_port, None);
    }
    let changing = desired.with_udp_ports(UdpPorts { vxlan: 4790, geneve: 6082 });
    desired.put(Object::Site(changing), 71);
    let rows = compile(&desired, &name("h1"), &BTreeSet::new());
    let Some((Row::Host(own), 71)) = rows.0.values().next() else { panic!("h1 has no row of its own") };
    let other = OtherPort { method: Method::Vxlan, port: 4790 };
    assert_eq!((own.vxlan_port, own.other_port), (8472, Some(other)));
}

/// Each thing that a host can read back from its maps is in the digest.
#[test]
fn digests_tell_rewrite_addresses_and_prefixes_apart() {
    let desired = rewriting(moving(Phase::Preparing), Method::Rewrite, None);
    let rows = compile(&desired, &name("h1"), &BTreeSet::new());
    let good = digests(&rows);
    let mut seen = 0;
    for key in rows.0.keys() {
        let mut variants = Vec::new();
        match &rows.0[key].0 {
            Row::Record(r) => {
                variants.push(Row::Record(RecordRow { rewrite_pa: Some([9, 9, 9, 9].into()), ..r.clone() }));
                variants.push(Row::Record(RecordRow {
                    other_rewrite_pa: Some([9, 9, 9, 9].into()),
                    ..r.clone()
                }));
                variants.push(Row::Record(RecordRow { method: Method::Stt, ..r.clone() }));
            }
            Row::Subnet(s) => {
                let mut fewer = s.clone();
                fewer.prefixes.pop();
                variants.push(Row::Subnet(fewer));
            }
            _ => {}
        }
        for variant in variants {
            let mut bad = rows.clone();
            bad.0.get_mut(key).unwrap().0 = variant;
            assert_ne!(digests(&bad), good, "{key:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 3 * 2 + 2);
}
