//! Large frames for a VM that has moved away: sent on whole, or part by part where the wire has cut them.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;
use tenet_lab::tool::Stream;
use tenet_model::Method;
use tenet_tests::{Fixture, Load, Paused, Setup, THREE_HOSTS, block_on, until};

static LAB: Fixture = Fixture::set_up("mvd", THREE_HOSTS, Setup::ANY_METHOD);

const SQL: &str = "contoso/sql";
const FAR: &str = "contoso/far";

#[test]
fn large_frames_by_stt_follow_a_vm_that_has_moved() {
    follow(Method::Stt);
}

#[test]
fn large_frames_by_vxlan_follow_a_vm_that_has_moved() {
    follow(Method::Vxlan);
}

/// Moves the VM while the third host hears of nothing: all that its VM sends comes by way of the old host. With
/// offloads on the wire frames are large, without them they are segments, of which the old host joins what it can.
fn follow(method: Method) {
    let Some(mut world) = LAB.world() else { return };
    world.set_method("contoso/prod", method);
    for offloads in [false, true] {
        world.lab.set_uplink_offloads(offloads).unwrap();
        for (from, to) in [("h1", "h2"), ("h2", "h1")] {
            let probe = Load::start(&world, FAR, SQL);
            let moving = block_on(world.lab.prepare_move(SQL, to)).unwrap();
            let deaf = Paused::new(&world, "h3");
            let pause = moving.switch().unwrap();
            until("the old host redirects", Duration::from_secs(15), || {
                (world.counters(from, "contoso/sql/eth0").redirected > 0).then_some(())
            });
            let before = world.counters(from, "contoso/sql/eth0").redirected;
            let netns = world.lab.vm(FAR).unwrap().netns().clone();
            let bulk = Stream::start(&netns, IpAddr::V4(world.ip(SQL)), Duration::from_millis(2));
            let bulk = bulk.unwrap_or_else(|e| {
                panic!("{method}, offloads {offloads}, {to} drops {:?}: {e}", world.uplink_counters(to).drops)
            });
            probe.run(Duration::from_millis(400));
            let report = bulk.stop().unwrap();
            let frames = world.counters(from, "contoso/sql/eth0").redirected - before;
            println!("{method}, offloads {offloads}, {from} to {to}: {frames} frames for {report:?}");
            assert!(report.received.in_order && report.received.bytes == report.sent, "{report:?}");
            assert!(report.sent >= 1 << 17, "{report:?}");
            drop(deaf);
            let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
            assert!(moved.receipt.moved && moved.receipt.redirected >= frames, "{:?}", moved.receipt);
            world.in_sync();
            let (probe, _) = probe.stop();
            assert!(probe.lost <= pause.as_millis() as u64 + 3, "{probe:?}");
        }
    }
    world.lab.set_uplink_offloads(true).unwrap();
}
