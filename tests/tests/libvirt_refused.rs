//! `virsh migrate` that Tenet refuses: virsh shows why and what to do, and the guest runs on as if nobody had asked.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use tenet_api::rest::SettingsSpec;
use tenet_lab::tool::Probe;
use tenet_model::{Through, tap_name};
use tenet_tests::domains::{ADDRESS, ETH0, Hosts, VM, answers, has_link, host_of, newest, tenet};
use tenet_tests::guest::with_guests;
use tenet_tests::{Setup, World, block_on, libvirt, skipped, until};

/// The network is on h1 alone at first: so it has packets as large as h1's uplink allows, whatever h2's does.
const SITE: &str = "
hosts:
  h1: { pa: 192.168.1.10 }
  h2: { pa: 192.168.2.20 }
tenants:
  contoso:
    networks:
      prod: { subnets: { data: { prefix: 10.1.1.0/24, vsid: 5001 } } }
    vms:
      near: { ports: { eth0: { subnet: prod/data, address: 10.1.1.12, host: h1 } } }
";

const PATIENCE: Duration = Duration::from_secs(30);
const NEAR: &str = "contoso/near";
const DOMAIN: &str = "lv-1";

#[test]
fn a_guest_whose_move_is_refused_runs_on() {
    if let Some(why) = libvirt::missing() {
        return skipped(why);
    }
    // A process of somebody else, to be left alone when the hosts' guests are ended.
    let mut other = Command::new("cat")
        .arg0("qemu-system-x86_64")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let number = other.id();
    with_guests("lvr", SITE, Setup::PLAIN, |world, image, consoles| {
        let site = Hosts::start(world, consoles);
        site.one.define(&site.domain(DOMAIN, &[ETH0], image));
        _ = site.one.virsh(&["start", DOMAIN]);
        answers(world, NEAR);
        a_destination_with_smaller_packets_is_refused(&site, world);
        nobody_asked_where_somebody_must(&site, world);
        asked_for_it_moves(&site, world);
        _ = site.two.virsh(&["destroy", DOMAIN]);
        site.one.leave_pid("gone", number);
    });
    assert!(other.try_wait().unwrap().is_none(), "it was ended");
    other.kill().unwrap();
    _ = other.wait();
}

fn a_destination_with_smaller_packets_is_refused(site: &Hosts, world: &World) {
    let uplink = |mtu: u32| {
        world.lab.set_uplink_mtu("h2", mtu).unwrap();
        until("the controller knows of h2's MTU", PATIENCE, || {
            let known = block_on(world.client.paths(None)).unwrap().uplinks;
            known.into_iter().find(|(host, has)| host.as_str() == "h2" && *has == mtu).map(drop)
        });
    };
    uplink(1400);
    let said = refused(site, world);
    assert!(said.contains("tenet: host h2 has room for packets of 1358 bytes"), "{said}");
    assert!(said.contains("its uplink's MTU is 1400") && said.contains("uses 1458 on h1"), "{said}");
    assert!(said.contains("raise the MTU of the provider network at h2"), "what to do: {said}");
    uplink(1500);
}

fn nobody_asked_where_somebody_must(site: &Hosts, world: &World) {
    let forbidden = SettingsSpec { hosts_begin_migrations: Some(false), ..SettingsSpec::default() };
    block_on(world.client.set_settings(&forbidden)).unwrap();
    let said = refused(site, world);
    assert!(said.contains("tenet: VM contoso/lv is on host h1"), "{said}");
    assert!(said.contains(&format!("`{}`", ask().join(" "))), "the command to run: {said}");
}

/// The command that the refusal names.
fn ask() -> [&'static str; 8] {
    ["tenet", "vm", "migrate", VM, "--to", "h2", "--switch-only", "--no-wait"]
}

/// What the refusal says helps: asked for first, the same command moves it.
fn asked_for_it_moves(site: &Hosts, world: &World) {
    let lab = world.lab.record().name.clone();
    println!("{}", tenet(&[&["--lab", lab.as_str()], &ask()[1..]].concat()));
    _ = site.one.virsh(&moving(site));
    let receipt = until("the receipt", PATIENCE, || {
        (!block_on(world.client.receipts()).unwrap().is_empty()).then(|| newest(world))
    });
    println!("{receipt:?}");
    assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
    assert_eq!(
        (receipt.from.as_str(), receipt.to.as_str(), receipt.through),
        ("h1", "h2", Through::SwitchOnly)
    );
    assert_eq!(host_of(world, &port()).as_deref(), Some("h2"));
    answers(world, NEAR);
    world.in_sync();
}

/// virsh is refused, and nothing comes of it: the guest answers every question meanwhile, and no host knows of a move.
fn refused(site: &Hosts, world: &World) -> String {
    let near = world.lab.vm(NEAR).unwrap().netns().clone();
    let probe = Probe::start(&near, ADDRESS.parse().unwrap(), VM, 1000).unwrap();
    let said = site.one.refused(&moving(site));
    println!("{said}");
    assert_eq!(site.one.virsh(&["domstate", DOMAIN]).trim(), "running");
    assert!(!site.two.virsh(&["list", "--all", "--name"]).contains(DOMAIN));
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    assert!(block_on(world.client.receipts()).unwrap().is_empty());
    assert_eq!(host_of(world, &port()).as_deref(), Some("h1"));
    assert!(!has_link(world, "h2", &tap_name(&port().parse().unwrap())));
    answers(world, NEAR);
    let probe = probe.stop().unwrap();
    println!("{probe:?}");
    assert_eq!((probe.lost, probe.strangers, probe.duplicates), (0, 0, 0), "{probe:?}");
    world.in_sync();
    said
}

fn moving(site: &Hosts) -> [&str; 7] {
    ["migrate", "--live", "--p2p", "--persistent", "--undefinesource", DOMAIN, &site.two.uri]
}

fn port() -> String {
    format!("{VM}/eth0")
}
