//! The life of rewrite addresses, from the switch to the method to the one away from it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use tenet_model::{
    Change, Desired, Host, Method, NetId, Network, NetworkRef, Object, Operation, Port, Subnet, SubnetPrefix,
    Tenant, Vm, Vsid,
};

fn blue() -> NetworkRef {
    "a/blue".parse().unwrap()
}

fn port(name: &str, last: u8, host: Option<&str>) -> Object {
    Object::Port(Port {
        name: format!("a/{name}/eth0").parse().unwrap(),
        subnet: "a/blue/s".parse().unwrap(),
        mac: tenet_model::Mac::new([2, 0, 0, 0, 0, last]).unwrap(),
        addresses: vec![[10, 1, 1, last].into()],
        host: host.map(|h| h.parse().unwrap()),
        device: host.map(|_| format!("tap-{name}")),
        tap: false,
        queues: 1,
        security: true,
        rewrite: BTreeMap::new(),
    })
}

fn commit(site: &mut Desired, change: &Change) -> usize {
    let checked = site.check(change).unwrap();
    let revision = site.revision + 1;
    site.apply(checked.operations(), revision);
    checked.operations().len()
}

fn start() -> Desired {
    let host = |name: &str, pa: &str, pool: &str| {
        let rewrite_pool = vec![pool.parse().unwrap()];
        Object::Host(Host { name: name.parse().unwrap(), pa: pa.parse().unwrap(), rewrite_pool })
    };
    let prefixes =
        vec![SubnetPrefix { prefix: "10.1.1.0/24".parse().unwrap(), gateway: [10, 1, 1, 1].into() }];
    let (rdid, method) = (uuid::Uuid::from_u128(1), Method::Nvgre);
    let objects = [
        Object::Tenant(Tenant { name: "a".parse().unwrap() }),
        host("h1", "192.168.1.10", "192.168.1.128/28"),
        host("h2", "192.168.2.20", "192.168.2.128/28"),
        Object::Network(Network { name: blue(), rdid, id: NetId(1), method, switching: None }),
        Object::Subnet(Subnet { name: "a/blue/s".parse().unwrap(), vsid: Vsid::MIN, prefixes }),
        Object::Vm(Vm { name: "a/one".parse().unwrap() }),
        Object::Vm(Vm { name: "a/two".parse().unwrap() }),
        port("one", 11, Some("h1")),
        port("two", 12, Some("h2")),
    ];
    let mut site = Desired::default();
    commit(&mut site, &objects.into_iter().map(Operation::Put).collect());
    site
}

fn addresses(site: &Desired) -> Vec<String> {
    site.ports.values().flat_map(|p| p.value.rewrite.values()).map(ToString::to_string).collect()
}

/// Both steps of a change of method.
fn switch(site: &mut Desired, method: Method) {
    let begun = site.with_method(&blue(), method).unwrap();
    assert_eq!(begun.switching, Some(method));
    commit(site, &Change::put(Object::Network(begun.clone())));
    let done = Network { method, switching: None, ..begun };
    commit(site, &Change::put(Object::Network(done)));
}

#[test]
fn addresses_come_before_the_method_and_go_after_it() {
    let mut site = start();
    assert_eq!(addresses(&site), [""; 0]);
    let begun = site.with_method(&blue(), Method::Rewrite).unwrap();
    assert_eq!((begun.method, begun.switching), (Method::Nvgre, Some(Method::Rewrite)));
    assert_eq!(
        commit(&mut site, &Change::put(Object::Network(begun.clone()))),
        3,
        "the network and both ports"
    );
    let given = ["192.168.1.129", "192.168.2.129"];
    assert_eq!(addresses(&site), given);
    // Asked again, nothing is left to do.
    assert_eq!(site.with_method(&blue(), Method::Rewrite), Some(begun.clone()));
    let done = Network { method: Method::Rewrite, switching: None, ..begun };
    assert_eq!(commit(&mut site, &Change::put(Object::Network(done))), 1);
    assert_eq!((addresses(&site), site.unreleased().len()), (given.map(str::to_owned).to_vec(), 0));

    switch(&mut site, Method::Vxlan);
    assert_eq!(addresses(&site), given, "hosts may not have heard of the new method yet");
    assert_eq!(site.unreleased(), [blue()].into());
    // Not even a repeated attach takes them away, a detach does.
    let same = Object::Port(site.ports.values().next().unwrap().value.clone());
    assert_eq!(commit(&mut site, &Change::put(same)), 0);
    commit(&mut site, &Change::put(port("two", 12, None)));
    assert_eq!(addresses(&site), given[..1]);
    let release = site.release(&blue());
    assert_eq!(commit(&mut site, &release), 1);
    assert_eq!((addresses(&site).len(), site.unreleased().len()), (0, 0));
    assert_eq!(site.release(&blue()), Change::default());
}

#[test]
fn a_network_in_use_is_not_released_and_one_without_ports_changes_at_once() {
    let mut site = start();
    switch(&mut site, Method::Rewrite);
    assert_eq!(site.release(&blue()), Change::default());
    for (name, last) in [("one", 11), ("two", 12)] {
        commit(&mut site, &Change::put(port(name, last, None)));
    }
    assert_eq!(addresses(&site), [""; 0]);
    let at_once = site.with_method(&blue(), Method::Stt).unwrap();
    assert_eq!((at_once.method, at_once.switching), (Method::Stt, None));
    commit(&mut site, &Change::put(Object::Network(at_once)));
    assert_eq!(site.with_method(&"a/red".parse().unwrap(), Method::Stt), None);
}

#[test]
fn a_switch_can_be_taken_back() {
    let mut site = start();
    let begun = site.with_method(&blue(), Method::Rewrite).unwrap();
    commit(&mut site, &Change::put(Object::Network(begun)));
    let back = site.with_method(&blue(), Method::Nvgre).unwrap();
    assert_eq!((back.method, back.switching), (Method::Nvgre, None));
    commit(&mut site, &Change::put(Object::Network(back)));
    assert_eq!((addresses(&site).len(), site.unreleased()), (2, [blue()].into()));
    let release = site.release(&blue());
    commit(&mut site, &release);
    assert_eq!(addresses(&site), [""; 0]);
}

/// A port that gets addresses by the way is judged by all of the change.
#[test]
fn what_else_the_change_does_must_suit_the_ports_that_get_addresses() {
    let site = start();
    let begun = site.with_method(&blue(), Method::Rewrite).unwrap();
    let subnet = site.subnets.values().next().unwrap().value.clone();
    let prefixes =
        vec![SubnetPrefix { prefix: "10.9.9.0/24".parse().unwrap(), gateway: [10, 9, 9, 1].into() }];
    let moved = Operation::Put(Object::Subnet(Subnet { prefixes, ..subnet.clone() }));
    let gone = Operation::Delete(Object::Subnet(subnet).key());
    for (other, why) in [(moved, "10.1.1.12 is outside of 10.9.9.0/24"), (gone, "a/blue/s")] {
        let change = [Operation::Put(Object::Network(begun.clone())), other].into_iter().collect();
        let problems = site.check(&change).unwrap_err();
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|t| t.starts_with("port a/two/eth0: ") && t.contains(why)), "{texts:?}");
    }
}
