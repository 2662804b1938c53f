//! Path MTUs and the self-test where the provider network is IPv6.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;
use tenet_api::rest::Paths;
use tenet_hostnet::Links;
use tenet_model::Family;
use tenet_tests::{DUAL, Fixture, Setup, World, binary, block_on, until};

static LAB: Fixture = Fixture::set_up("pt6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::PLAIN });

const SHRINKS: Duration = Duration::from_secs(45);
const HEALS: Duration = Duration::from_secs(60);
/// What was lost on a busy machine is tested again after two minutes.
const TESTED: Duration = Duration::from_secs(180);
/// NVGRE over IPv6.
const OVERHEAD: u32 = 62;

fn paths(world: &World) -> Paths {
    block_on(world.client.paths(None)).unwrap()
}

/// What the one pair's ways carry, there and back.
fn carried(world: &World) -> Option<(u32, u32)> {
    let paths = paths(world);
    let [pair] = paths.pairs.as_slice() else { return None };
    Some((pair.there.as_ref()?.mtu?.into(), pair.back.as_ref()?.mtu?.into()))
}

/// Exit code and output of a command.
fn cli(world: &World, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary());
    let output = command.args(args).env("TENET_LAB", world.lab.record().name.as_str()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn set_mtu(world: &World, mtu: u32) {
    let device = world.lab.host("h2").unwrap().record().router_device.clone();
    Links::in_netns(&world.lab.router().unwrap()).unwrap().set_mtu(&device, mtu).unwrap();
}

/// The router's address on the link of a host.
fn gateway(world: &World, host: &str) -> IpAddr {
    let IpAddr::V6(pa) = world.host_status(host).pa else { panic!("{host} has no IPv6 provider address") };
    let segments = &world.lab.record().segments;
    assert!(segments.iter().all(|s| s.other_gateway.is_none()), "no IPv4 on this provider network");
    let on_link =
        |gateway: &IpAddr| matches!(gateway, IpAddr::V6(g) if g.segments()[..4] == pa.segments()[..4]);
    segments.iter().map(|s| s.gateway).find(on_link).unwrap()
}

/// The MTU that all ports of a host have.
fn port_mtu(world: &World, host: &str) -> Option<u32> {
    let ports = world.host_status(host).ports;
    let first = ports.first()?.mtu;
    ports.iter().all(|p| p.mtu == first).then_some(first)
}

/// Waits until each host's self-test has ended well; with the link as it should be, whatever test comes first.
fn tested(world: &World) {
    for host in world.status().hosts {
        assert!(host.pa.is_ipv6(), "{}", host.pa);
        let name = host.name.as_str();
        until(&format!("{name}: all methods end well"), TESTED, || {
            let host = world.host_status(name);
            let tests = &host.measured.first()?.tests;
            (tests.len() == 5 && tests.iter().all(|t| t.outcome == "ok")).then_some(())
        });
    }
}

#[test]
fn all_methods_are_tested() {
    let Some(world) = LAB.world() else { return };
    tested(&world);
    let (code, text) = cli(&world, &["status"]);
    assert!(code == 0 && text.contains("all ok"), "{text}");
    let (_, text) = cli(&world, &["host", "show", "h1"]);
    for method in ["nvgre", "vxlan", "geneve", "stt", "rewrite"] {
        let line = text.lines().find(|l| l.split_whitespace().nth(1) == Some(method));
        assert!(line.is_some_and(|l| l.contains("h2") && l.contains("ok")), "{method}: {text}");
    }
}

#[test]
fn a_link_that_carries_less_is_found_and_named() {
    let Some(world) = LAB.world() else { return };
    tested(&world);
    until("both ways are measured", SHRINKS, || (carried(&world)? == (1500, 1500)).then_some(()));
    let (code, text) = cli(&world, &["paths"]);
    assert!(code == 0 && text.contains("1500") && text.contains("good"), "{text}");

    set_mtu(&world, 1400);
    // Towards h2 the router says so; what comes from h2 it drops without a word, past room for a VLAN tag.
    let there = until("both ways are known to carry less", SHRINKS, || {
        let (there, back) = carried(&world)?;
        (there == 1400 && (1400..=1404).contains(&back)).then_some(there)
    });
    for host in ["h1", "h2"] {
        until(&format!("ports of {host} know"), SHRINKS, || {
            (port_mtu(&world, host)? <= there + 4 - OVERHEAD).then_some(())
        });
    }
    let gateway = gateway(&world, "h1");
    until("the router is named", SHRINKS, || {
        let paths = paths(&world);
        let router = paths.findings.iter().find(|f| f.kind == "router")?;
        router.text.contains(&format!("router {gateway} passes 1400 bytes only on h1→h2")).then_some(())
    });
    let (code, text) = cli(&world, &["paths"]);
    assert!(code == 5 && text.contains("1400") && text.contains(&gateway.to_string()), "{text}");
    let back = paths(&world).findings.into_iter().find(|f| f.kind == "pair").unwrap();
    assert!(back.hint.contains("-s 1452"), "what IPv6 leaves for a ping: {back:?}");
    assert!(!back.text.contains("as it should be"), "the other way is narrow, too: {back:?}");

    set_mtu(&world, 1500);
    until("both ways are whole again", HEALS, || (carried(&world)? == (1500, 1500)).then_some(()));
    for host in ["h1", "h2"] {
        until(&format!("ports of {host} are whole again"), HEALS, || {
            (port_mtu(&world, host)? == 1500 - OVERHEAD).then_some(())
        });
    }
    world.in_sync();
    tenet_tests::check_reach(&world);
}
