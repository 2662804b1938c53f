//! UDP ports of the site that change while VMs talk.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::time::{Duration, Instant};
use tenet_api::rest::SettingsSpec;
use tenet_model::{Family, Method};
use tenet_tests::{DUAL, Fixture, Load, Setup, World, block_on, until};

static OVER_V4: Fixture = Fixture::set_up("po4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("po6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";

/// Asks for ports and waits until all hosts send to them.
fn set(world: &World, vxlan: Option<u16>, geneve: Option<u16>) {
    let begin = Instant::now();
    let spec = SettingsSpec { vxlan_port: vxlan, geneve_port: geneve, hosts_begin_migrations: None };
    let reply = block_on(world.client.set_settings(&spec)).unwrap();
    assert!(reply.applied.as_ref().is_some_and(|a| a.complete), "{reply:?}");
    let now = block_on(world.client.settings()).unwrap();
    assert_eq!((now.next_vxlan_port, now.next_geneve_port), (None, None));
    assert!(vxlan.is_none_or(|p| p == now.vxlan_port) && geneve.is_none_or(|p| p == now.geneve_port));
    println!("VXLAN {vxlan:?}, Geneve {geneve:?}: {} ms", begin.elapsed().as_millis());
}

#[test]
fn no_frame_is_lost_through_changes_of_udp_ports_over_ipv4() {
    through_changes(&OVER_V4);
}

#[test]
fn no_frame_is_lost_through_changes_of_udp_ports_over_ipv6() {
    through_changes(&OVER_V6);
}

/// A probe of 1 kHz and a TCP stream, in one subnet and between two, of either family.
fn through_changes(lab: &'static Fixture) {
    let Some(world) = lab.world() else { return };
    world.set_method(NETWORK, Method::Vxlan);
    let pairs = [("contoso/sql", "contoso/web", Family::V4), ("contoso/log", "contoso/app", Family::V6)];
    let loads: Vec<Load> =
        pairs.iter().map(|(from, to, inside)| Load::start_in(&world, from, to, *inside)).collect();
    let wait = || loads[0].run(Duration::from_millis(50));
    wait();
    for port in [8472, 9000, 4789, 8472] {
        set(&world, Some(port), None);
        wait();
    }
    world.set_method(NETWORK, Method::Geneve);
    for port in [7000, 6082, 6081] {
        set(&world, None, Some(port));
        wait();
    }
    // Both, of which one is in use.
    set(&world, Some(4789), Some(7000));
    wait();
    // The sockets of ports that are no more are let go of.
    let host = world.lab.host("h1").unwrap();
    let links = tenet_hostnet::Links::in_netns(host.netns()).unwrap();
    until("only the socket in use is left", Duration::from_secs(10), || {
        let held = links.list().unwrap().into_iter().filter(|l| l.name.starts_with("tenet-gro"));
        (held.map(|l| l.name).collect::<Vec<_>>() == ["tenet-gro7000"]).then_some(())
    });
    for load in loads {
        load.stop_without_loss();
    }
    world.in_sync();
}
