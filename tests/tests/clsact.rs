//! The same where the kernel has no TCX: programs as clsact filters, forced here.

use std::time::{Duration, Instant};
use tenet_hostnet::Links;
use tenet_tests::{Fixture, THREE_HOSTS, bpf, check_agent_restart, check_moves, check_reach, until};

static LAB: Fixture = Fixture::with_clsact("cls", THREE_HOSTS);

#[test]
fn programs_are_filters() {
    let Some(world) = LAB.world() else { return };
    for host in world.status().hosts {
        assert_eq!(host.hook.as_deref(), Some("clsact"));
        let handle = world.lab.host(host.name.as_str()).unwrap();
        let links = Links::in_netns(handle.netns()).unwrap();
        let uplink = links.index(&handle.record().uplink).unwrap();
        assert_eq!(links.filters(uplink, true).unwrap().len(), 1);
        assert_eq!(handle.netns().run(|| bpf::tcx_programs(uplink)).unwrap(), 0);
    }
}

#[test]
fn every_vm_reaches_its_own_tenants_vms_and_none_of_the_others() {
    let Some(world) = LAB.world() else { return };
    check_reach(&world);
}

#[test]
fn moves_there_and_back_cost_only_the_vms_own_pause() {
    let Some(mut world) = LAB.world() else { return };
    let home = world.host_of("contoso/sql");
    check_moves(&mut world, &["contoso/web", "contoso/far"], "contoso/sql", &["h2", &home]);
    check_reach(&world);
}

#[test]
fn agents_killed_under_load_cost_no_frame() {
    let Some(mut world) = LAB.world() else { return };
    check_agent_restart(&mut world);
}

#[test]
fn deleted_filter_is_reported_and_put_back() {
    let Some(world) = LAB.world() else { return };
    let (links, uplink) = {
        let host = world.lab.host("h1").unwrap();
        let links = Links::in_netns(host.netns()).unwrap();
        let uplink = links.index(&host.record().uplink).unwrap();
        (links, uplink)
    };
    let before = world.host_status("h1").repaired;
    let begin = Instant::now();
    for filter in links.filters(uplink, true).unwrap() {
        links.delete_filter(uplink, filter.priority, filter.handle).unwrap();
    }
    until("the repair is told", Duration::from_secs(10), || {
        (world.host_status("h1").repaired != before).then_some(())
    });
    println!("put right and told after {} ms", begin.elapsed().as_millis());
    world.in_sync();
    assert_eq!(links.filters(uplink, true).unwrap().len(), 1);
    check_reach(&world);
}
