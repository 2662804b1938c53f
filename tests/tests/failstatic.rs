//! Forwarding goes on whoever fails, and what somebody breaks is put right.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tenet_api::rest::{CreateVm, CreateVmPort, HostStatus};
use tenet_hostnet::Links;
use tenet_lab::tool::ask;
use tenet_model::Method;
use tenet_tests::{
    Fixture, Load, SITE, Setup, World, binary, block_on, bpf, check_agent_restart, missing, skipped, until,
};

static LAB: Fixture = Fixture::new("fail", SITE);
static ANY: Fixture = Fixture::set_up("faila", SITE, Setup::ANY_METHOD);

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn agents_killed_under_load_cost_no_frame() {
    let Some(mut world) = LAB.world() else { return };
    check_agent_restart(&mut world);
}

/// Both agents at once, by each method. That STT loses nothing either is docs/stt.md's word: its own senders send nothing
/// that only an agent could put together, and this wire keeps the order.
#[test]
fn agents_killed_cost_no_frame_by_any_method() {
    let Some(mut world) = ANY.world() else { return };
    for method in Method::ALL {
        world.set_method("contoso/prod", method);
        world.in_sync();
        let repaired: Vec<_> = world.status().hosts.into_iter().map(|h| h.repaired).collect();
        let incomplete = |world: &World| ["h1", "h2"].map(|h| world.uplink_drops(h, "stt_incomplete"));
        let before = incomplete(&world);
        let begin = Instant::now();
        let (there, back) = (
            Load::start(&world, "contoso/web", "contoso/sql"),
            Load::start(&world, "contoso/app", "contoso/web"),
        );
        for host in ["h1", "h2"] {
            world.lab.kill_agent(host).unwrap();
        }
        until("the controller misses the agents", Duration::from_secs(20), || {
            world.status().hosts.iter().all(|h| !h.connected).then_some(())
        });
        there.run(Duration::from_secs(1));
        for host in ["h1", "h2"] {
            world.lab.start_agent(host).unwrap();
        }
        until("agents are back", Duration::from_secs(20), || {
            world.status().hosts.iter().all(|h| h.connected).then_some(())
        });
        world.in_sync();
        there.stop_without_loss();
        back.stop_without_loss();
        println!("{method}: {} ms", begin.elapsed().as_millis());
        let now: Vec<_> = world.status().hosts.into_iter().map(|h| h.repaired).collect();
        assert_eq!(now, repaired, "{method}: adopted, nothing to put right");
        assert_eq!(incomplete(&world), before, "{method}: nothing waited for an agent");
    }
}

#[test]
fn controller_killed_under_load_costs_no_frame_and_no_record_is_rewritten() {
    let Some(mut world) = LAB.world() else { return };
    let before = state(&world);
    let repaired: Vec<_> = world.status().hosts.into_iter().flat_map(|h| h.repaired).collect();
    let load = Load::start(&world, "contoso/web", "contoso/sql");
    for _ in 0..2 {
        world.lab.kill_controller().unwrap();
        load.run(Duration::from_millis(500));
        block_on(world.lab.start_controller()).unwrap();
        until("agents are back", Duration::from_secs(20), || {
            world.status().hosts.iter().all(|h| h.connected).then_some(())
        });
        world.in_sync();
    }
    load.stop_without_loss();
    assert_eq!(state(&world), before, "generations and digests are what they were");
    // A controller that starts anew may have forgotten older repairs.
    for told in world.status().hosts.into_iter().flat_map(|h| h.repaired) {
        assert!(repaired.contains(&told), "{told}");
    }
    create_vm(&world, "contoso/after-restart");
}

#[test]
fn controller_unreachable_for_a_minute_costs_no_frame() {
    if let Some(why) = missing() {
        return skipped(why);
    }
    // A lab of its own, so that the others' tests go on meanwhile.
    let world = World::up("cut", SITE, false);
    let (begin, before) = (Instant::now(), state(&world));
    let load = Load::start(&world, "contoso/web", "contoso/sql");
    world.lab.connect_controller(false).unwrap();
    until("the controller misses the agents", Duration::from_secs(90), || {
        let status = world.status();
        status.hosts.iter().all(|h| !h.connected).then_some(())
    });
    load.run(Duration::from_secs(60).saturating_sub(begin.elapsed()));
    tenet_tests::check_reach(&world);
    world.lab.connect_controller(true).unwrap();
    until("agents are back", Duration::from_secs(60), || {
        world.status().hosts.iter().all(|h| h.connected).then_some(())
    });
    world.in_sync();
    load.stop_without_loss();
    assert_eq!(state(&world), before, "generations and digests are what they were");
    create_vm(&world, "contoso/after-minute");
}

#[test]
fn deleted_record_is_reported_and_put_back() {
    let Some(world) = LAB.world() else { return };
    let web = world.ip("contoso/web").octets();
    drift(&world, "h1", "RECORDS", || {
        let map = world.lab.host("h1").unwrap().record().bpffs.join("maps/RECORDS");
        bpf::delete_entry(&map, |key| key[16..20] == web).unwrap();
    });
}

#[test]
fn deleted_macs_and_routes_are_reported_and_put_back() {
    let Some(world) = LAB.world() else { return };
    for map in ["MACS", "ROUTES", "SUBNETS", "PEERS", "FLOOD", "CONFIG"] {
        let path = world.lab.host("h1").unwrap().record().bpffs.join("maps").join(map);
        // An array's entry cannot be deleted.
        if map != "CONFIG" {
            drift(&world, "h1", map, || {
                bpf::delete_entry(&path, |_| true).unwrap();
            });
        }
    }
}

#[test]
fn deleted_port_is_reported_and_put_back() {
    let Some(world) = LAB.world() else { return };
    let port = world.lab.vm("contoso/sql").unwrap().record().ports[0].device.clone();
    let host = world.lab.host("h1").unwrap();
    let index = Links::in_netns(host.netns()).unwrap().index(&port).unwrap();
    let map = host.record().bpffs.join("maps/PORTS");
    drift(&world, "h1", "PORTS", || {
        bpf::delete_entry(&map, |key| key[..4] == index.to_ne_bytes()).unwrap();
    });
}

#[test]
fn detached_programs_are_reported_and_put_back() {
    let Some(world) = LAB.world() else { return };
    let links = world.lab.host("h1").unwrap().record().bpffs.join("links");
    let pins: Vec<PathBuf> = bpf::pins(&links);
    if pins.is_empty() {
        return skipped("this kernel has no TCX links; the clsact lab's test covers filters");
    }
    drift(&world, "h1", "all programs", || pins.iter().for_each(|pin| bpf::detach_link(pin)));
    let one = bpf::pins(&links).into_iter().find(|p| p.to_string_lossy().contains("uplink")).unwrap();
    drift(&world, "h1", "the uplink's program", || bpf::detach_link(&one));
}

#[test]
fn detach_leaves_nothing() {
    let Some(mut world) = LAB.world() else { return };
    let (netns, bpffs) = {
        let host = world.lab.host("h2").unwrap();
        (host.netns().clone(), host.record().bpffs.clone())
    };
    let links = Links::in_netns(&netns).unwrap();
    let all: Vec<u32> = links.list().unwrap().into_iter().map(|l| l.index).collect();
    let programs = || netns.run(|| all.iter().map(|i| bpf::tcx_programs(*i)).sum::<usize>()).unwrap();
    let filters = || all.iter().filter(|i| links.has_clsact(**i).unwrap()).count();
    assert!(programs() + filters() > 4, "{} programs, {} qdiscs while it runs", programs(), filters());

    world.lab.kill_agent("h2").unwrap();
    let output = netns.command(binary()).args(["agent", "--detach", "--bpffs"]).arg(&bpffs).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{text}");
    assert_eq!((programs(), filters()), (0, 0), "programs and qdiscs after it");
    assert_eq!(bpf::pins(&bpffs), Vec::<PathBuf>::new(), "pins after it");
    let again = netns.command(binary()).args(["agent", "--detach", "--bpffs"]).arg(&bpffs).output().unwrap();
    assert!(again.status.success(), "twice is no error: {}", String::from_utf8_lossy(&again.stderr));

    world.lab.start_agent("h2").unwrap();
    until("the agent is back", PATIENCE, || world.host_status("h2").connected.then_some(()));
    world.in_sync();
    tenet_tests::check_reach(&world);
}

/// Breaks something on a host: it is told (in the status and as an event) and put right within seconds.
fn drift(world: &World, host: &str, what: &str, break_it: impl FnOnce()) {
    let before = world.host_status(host).repaired;
    let begin = Instant::now();
    break_it();
    let told: Vec<String> = until(&format!("repair of {what} is told"), PATIENCE, || {
        let now = world.host_status(host).repaired;
        (now != before).then_some(now)
    });
    println!("{what}: put right and told after {} ms: {:?}", begin.elapsed().as_millis(), told.last());
    world.in_sync();
    assert_eq!(world.host_status(host).problems, Vec::<String>::new());
    tenet_tests::check_reach(world);
}

/// What each host is proven to hold, by network, and the generation of each of its records.
fn state(world: &World) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let hosts = world.status().hosts;
    let of = |host: HostStatus| {
        let networks =
            host.networks.iter().map(|n| format!("{} {:?} {}", n.network, n.proven_digest, n.rows)).collect();
        let table = block_on(world.client.table(Some(&host.name))).unwrap();
        let records =
            table.rows.iter().map(|r| format!("{} {} {} {}", r.network, r.ca, r.pa, r.generation)).collect();
        (host.name.to_string(), (networks, records))
    };
    hosts.into_iter().map(of).collect()
}

/// A change that both hosts must take, and proof in both kernels.
fn create_vm(world: &World, name: &str) {
    let port = CreateVmPort {
        name: None,
        subnet: "contoso/prod/data".parse().unwrap(),
        mac: None,
        address: None,
        addresses: Vec::new(),
        security: true,
    };
    let reply = block_on(world.client.create_vm(&CreateVm { name: name.parse().unwrap(), port: Some(port) }))
        .unwrap();
    assert!(reply.applied.is_some_and(|a| a.complete));
    world.in_sync();
    block_on(world.client.delete_vm(&name.parse().unwrap())).unwrap();
    world.in_sync();
    let netns = world.lab.vm("contoso/web").unwrap().netns().clone();
    let answer = ask(&netns, IpAddr::V4(world.ip("contoso/sql")), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some("contoso/sql"));
}
