//! Who may have which VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use tenet_control::claim::{Claim, ClaimPort, Denied, Ended, Granted, Release, Stay, claim, release};
use tenet_model::{
    Change, Desired, Host, HostName, Migration, Network, Object, Phase, Port, Subnet, SubnetPrefix, Tenant,
    Vm, VmRef,
};
use uuid::Uuid;

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn vm(text: &str) -> VmRef {
    text.parse().unwrap()
}

fn put(site: &mut Desired, object: Object) {
    let checked = site.check(&Change::put(object)).unwrap();
    let revision = site.revision + 1;
    site.apply(checked.operations(), revision);
}

fn port(name: &str, address: &str, host: Option<&str>) -> Port {
    Port {
        name: name.parse().unwrap(),
        subnet: "a/blue/web".parse().unwrap(),
        mac: format!("52:54:00:00:00:{:02x}", address.parse::<std::net::Ipv4Addr>().unwrap().octets()[3])
            .parse()
            .unwrap(),
        addresses: vec![address.parse().unwrap()],
        host: host.map(self::name),
        device: host.map(|_| format!("dev-{}", address.len())),
        tap: false,
        queues: 1,
        security: true,
        rewrite: Default::default(),
    }
}

/// `a/sql` on h1, `a/idle` on no host, networks `a/blue` (one subnet) and `a/red` (two).
fn site() -> Desired {
    let mut site = Desired::default();
    put(&mut site, Object::Tenant(Tenant { name: name("a") }));
    for (n, host) in ["h1", "h2", "h3"].into_iter().enumerate() {
        let pa = format!("192.168.1.{}", n + 1).parse().unwrap();
        put(&mut site, Object::Host(Host { name: name(host), pa, rewrite_pool: Vec::new() }));
    }
    for (n, network) in ["a/blue", "a/red"].into_iter().enumerate() {
        let (id, rdid) = (tenet_model::NetId(n as u32 + 1), Uuid::from_u128(n as u128 + 1));
        let (name, method) = (network.parse().unwrap(), tenet_model::Method::default());
        put(&mut site, Object::Network(Network { name, rdid, id, method, switching: None }));
    }
    for (n, subnet) in ["a/blue/web", "a/red/one", "a/red/two"].into_iter().enumerate() {
        let prefix = format!("10.{n}.0.0/24").parse().unwrap();
        let prefixes = vec![SubnetPrefix { prefix, gateway: format!("10.{n}.0.1").parse().unwrap() }];
        let vsid = tenet_model::Vsid::new(5000 + n as u32).unwrap();
        put(&mut site, Object::Subnet(Subnet { name: subnet.parse().unwrap(), vsid, prefixes }));
    }
    for one in ["a/sql", "a/idle"] {
        put(&mut site, Object::Vm(Vm { name: vm(one) }));
    }
    put(&mut site, Object::Port(port("a/sql/eth0", "10.0.0.5", Some("h1"))));
    put(&mut site, Object::Port(port("a/idle/eth0", "10.0.0.6", None)));
    site
}

fn migrate(site: &mut Desired, phase: Phase) {
    let devices = [("eth0".parse().unwrap(), "d0".to_owned())].into();
    let mut migration = Migration::new(vm("a/sql"), Uuid::from_u128(9), name("h1"), name("h2"), devices);
    put(site, Object::Migration(migration.clone()));
    if phase != Phase::Preparing {
        migration.phase = phase;
        put(site, Object::Migration(migration));
    }
}

fn ask(vm: &str, incoming: bool, ports: Vec<ClaimPort>) -> Claim {
    Claim { vm: self::vm(vm), ports, incoming }
}

fn in_blue() -> ClaimPort {
    ClaimPort { network: Some("a/blue".parse().unwrap()), ..ClaimPort::default() }
}

#[test]
fn a_vm_on_no_host_or_on_the_caller_is_the_callers() {
    let site = site();
    for host in ["h1", "h2"] {
        let Ok(Granted::Attach { new_vm: false, ports }) =
            claim(&site, &name(host), &ask("a/idle", false, vec![]))
        else {
            panic!("refused");
        };
        // No device named: a tap.
        assert!(matches!(ports.as_slice(), [p] if p.name.to_string() == "a/idle/eth0" && p.device.is_none()));
    }
    let granted = claim(&site, &name("h1"), &ask("a/sql", false, vec![]));
    let Ok(Granted::Attach { ports, .. }) = granted else { panic!("{granted:?}") };
    // What it has stays.
    assert_eq!(ports[0].device, site.ports[&"a/sql/eth0".parse().unwrap()].value.device);
}

#[test]
fn a_vm_of_another_host_comes_by_a_migration_only() {
    let mut site = site();
    let (h1, h2, h3) = (name("h1"), name("h2"), name("h3"));
    let denied = claim(&site, &h2, &ask("a/sql", false, vec![])).unwrap_err();
    assert_eq!(denied, Denied::Elsewhere { vm: vm("a/sql"), on: h1.clone(), host: h2.clone() });
    assert!(denied.to_string().contains("h1") && denied.hint().contains("--to h2") && denied.is_conflict());
    let device = ClaimPort { device: Some("tap7".into()), ..ClaimPort::default() };
    let granted = claim(&site, &h2, &ask("a/sql", true, vec![device])).unwrap();
    let devices = [("eth0".parse().unwrap(), "tap7".to_owned())].into();
    assert_eq!(granted, Granted::Migrate { from: h1.clone(), devices });
    for phase in [Phase::Preparing, Phase::Prepared, Phase::Switched] {
        let mut moving = site.clone();
        migrate(&mut moving, phase);
        for incoming in [false, true] {
            let joined = claim(&moving, &h2, &ask("a/sql", incoming, vec![]));
            assert_eq!(joined, Ok(Granted::Join(Uuid::from_u128(9))));
            for other in [&h1, &h3] {
                let answer = claim(&moving, other, &ask("a/sql", incoming, vec![]));
                // It is there: from there it may go on, or back, in a moment.
                let later = incoming && phase == Phase::Switched;
                match answer {
                    Ok(Granted::Later(id)) if later => assert_eq!(id, Uuid::from_u128(9)),
                    Err(Denied::Moving { .. }) if !later => {}
                    other => panic!("{phase:?} {incoming} {other:?}"),
                }
            }
        }
    }
    // What nobody has comes without one.
    put(&mut site, Object::Vm(Vm { name: vm("a/new") }));
    let granted = claim(&site, &h2, &ask("a/new", true, vec![in_blue()]));
    assert!(matches!(granted, Ok(Granted::Attach { new_vm: false, .. })), "{granted:?}");
}

#[test]
fn a_host_begins_no_migration_where_the_site_forbids_it() {
    let mut site = site();
    let (h1, h2) = (name("h1"), name("h2"));
    let settings = tenet_model::Site { hosts_begin_migrations: false, ..Default::default() };
    put(&mut site, Object::Site(settings));
    let denied = claim(&site, &h2, &ask("a/sql", true, vec![])).unwrap_err();
    assert_eq!(denied, Denied::NotAsked { vm: vm("a/sql"), on: h1.clone(), host: h2.clone() });
    assert!(denied.hint().contains("tenet vm migrate a/sql --to h2 --switch-only") && denied.is_conflict());
    let plain = claim(&site, &h2, &ask("a/sql", false, vec![])).unwrap_err();
    assert!(matches!(plain, Denied::Elsewhere { .. }), "{plain:?}");
    // What is its own, or nobody's, needs no migration.
    assert!(matches!(claim(&site, &h1, &ask("a/sql", true, vec![])), Ok(Granted::Attach { .. })));
    assert!(matches!(claim(&site, &h2, &ask("a/idle", true, vec![])), Ok(Granted::Attach { .. })));
    // One that was asked for is joined, by its destination alone.
    migrate(&mut site, Phase::Prepared);
    assert_eq!(claim(&site, &h2, &ask("a/sql", true, vec![])), Ok(Granted::Join(Uuid::from_u128(9))));
    assert!(claim(&site, &name("h3"), &ask("a/sql", true, vec![])).is_err());
}

#[test]
fn what_is_new_is_made_in_subnets_that_exist() {
    let site = site();
    let h1 = name("h1");
    let two = vec![in_blue(), ClaimPort { mac: Some("52:54:00:00:01:01".parse().unwrap()), ..in_blue() }];
    let Ok(Granted::Attach { new_vm: true, ports }) = claim(&site, &h1, &ask("a/new", false, two)) else {
        panic!("refused");
    };
    let names: Vec<_> = ports.iter().map(|p| (p.name.to_string(), p.subnet.to_string())).collect();
    let blue = "a/blue/web".to_owned();
    assert_eq!(names, [("a/new/eth0".to_owned(), blue.clone()), ("a/new/eth1".to_owned(), blue)]);
    let refused = |port: ClaimPort| claim(&site, &h1, &ask("a/new", false, vec![port])).unwrap_err();
    assert_eq!(refused(ClaimPort::default()), Denied::NoVm(vm("a/new")));
    let in_net = |network: &str, subnet: Option<&str>| ClaimPort {
        network: Some(network.parse().unwrap()),
        subnet: subnet.map(|s| s.parse().unwrap()),
        ..ClaimPort::default()
    };
    assert!(matches!(refused(in_net("a/green", None)), Denied::Unknown(_)));
    assert!(matches!(refused(in_net("a/blue", Some("db"))), Denied::Unknown(_)));
    assert!(matches!(refused(in_net("a/red", None)), Denied::WhichSubnet(_)));
    let twice = vec![in_blue(), in_blue()].into_iter().map(|p| ClaimPort { port: Some(name("eth0")), ..p });
    let denied = claim(&site, &h1, &ask("a/new", false, twice.collect())).unwrap_err();
    assert!(matches!(denied, Denied::Twice(_)));
}

#[test]
fn a_claim_alters_no_port() {
    let site = site();
    let differs = |port: ClaimPort| {
        let denied = claim(&site, &name("h1"), &ask("a/idle", false, vec![port])).unwrap_err();
        let Denied::Differs { what, .. } = denied else { panic!("{denied:?}") };
        what
    };
    let mac = Some("52:54:00:00:00:99".parse().unwrap());
    assert_eq!(differs(ClaimPort { mac, ..ClaimPort::default() }), "MAC");
    let (network, subnet) = (Some("a/red".parse().unwrap()), Some(name("one")));
    assert_eq!(differs(ClaimPort { network, subnet, ..ClaimPort::default() }), "subnet");
    let addresses = vec!["10.0.0.77".parse().unwrap()];
    assert_eq!(differs(ClaimPort { addresses, ..in_blue() }), "address");
    let same = ClaimPort { addresses: vec!["10.0.0.6".parse().unwrap()], ..in_blue() };
    assert!(claim(&site, &name("h1"), &ask("a/idle", false, vec![same])).is_ok());
}

/// h1 says that a VM has stopped there.
fn let_go_of(site: &Desired, vm: &str, ports: &[HostName]) -> Release {
    release(site, &name("h1"), &self::vm(vm), (Ended::Stopped, Stay::Here), ports)
}

#[test]
fn letting_go_is_for_whoever_has_it_and_may_be_repeated() {
    let mut site = site();
    let let_go = |site: &Desired, host: &str, ended| {
        release(site, &name(host), &vm("a/sql"), (ended, Stay::Unsaid), &[])
    };
    let port = "a/sql/eth0".parse().unwrap();
    assert_eq!(let_go(&site, "h1", Ended::Stopped), Release::Detach(vec![port]));
    for (host, ended) in [("h2", Ended::Stopped), ("h2", Ended::Failed), ("h1", Ended::Moved)] {
        assert!(matches!(let_go(&site, host, ended), Release::Nothing(_)), "{host} {ended:?}");
    }
    assert!(matches!(let_go_of(&site, "a/none", &[]), Release::Nothing(_)));
    let other = let_go_of(&site, "a/sql", &[name("eth7")]);
    assert!(matches!(other, Release::Nothing(_)));
    migrate(&mut site, Phase::Prepared);
    // The source's guest has stopped, as it does when it has moved: that alone gives nothing up.
    assert!(matches!(let_go(&site, "h1", Ended::Stopped), Release::Nothing(_)));
    assert_eq!(let_go(&site, "h1", Ended::Failed), Release::Cancel);
    assert_eq!(let_go(&site, "h2", Ended::Failed), Release::Cancel);
    assert_eq!(let_go(&site, "h2", Ended::Stopped), Release::Cancel);
    assert!(matches!(let_go(&site, "h3", Ended::Failed), Release::Nothing(_)));
    let mut switched = site.clone();
    let mut migration = switched.migrations[&vm("a/sql")].value.clone();
    migration.phase = Phase::Switched;
    put(&mut switched, Object::Migration(migration));
    assert_eq!(let_go(&switched, "h2", Ended::Stopped), Release::Later(Uuid::from_u128(9)));
    assert!(matches!(let_go(&switched, "h1", Ended::Failed), Release::Nothing(_)));
}

#[test]
fn the_end_of_an_earlier_stay_that_is_heard_late_gives_up_no_move_back() {
    let h2 = name("h2");
    let said = |phase, ended, stay| {
        let mut site = site();
        migrate(&mut site, phase);
        release(&site, &h2, &vm("a/sql"), (ended, stay), &[])
    };
    for phase in [Phase::Preparing, Phase::Prepared] {
        for stay in [Stay::Here, Stay::Away] {
            let nothing = said(phase, Ended::Stopped, stay);
            assert!(matches!(&nothing, Release::Nothing(why) if why.contains("comes back")), "{nothing:?}");
        }
        // What ends on its way here ends the move, and a host that does not say is believed.
        assert_eq!(said(phase, Ended::Stopped, Stay::Arriving), Release::Cancel);
        assert_eq!(said(phase, Ended::Stopped, Stay::Unsaid), Release::Cancel);
        // A start that failed is none of a VM that was here.
        assert_eq!(said(phase, Ended::Failed, Stay::Away), Release::Cancel);
    }
    assert!(matches!(said(Phase::Switched, Ended::Stopped, Stay::Away), Release::Nothing(_)));
    for stay in [Stay::Here, Stay::Arriving, Stay::Unsaid] {
        assert!(matches!(said(Phase::Switched, Ended::Stopped, stay), Release::Later(_)), "{stay:?}");
    }
}
