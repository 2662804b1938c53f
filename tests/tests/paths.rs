//! The provider network carries less than the hosts think: found, told to the VMs, and healed.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::time::Duration;
use tenet_hostnet::Links;
use tenet_tests::frame::Packet;
use tenet_tests::{Fixture, THREE_HOSTS, World, until};
use tenet_wire::Icmp;

static LAB: Fixture = Fixture::new("pth", THREE_HOSTS);

/// A link that shrinks is looked for every few seconds; the rest is for busy machines.
const SHRINKS: Duration = Duration::from_secs(45);
const HEALS: Duration = Duration::from_secs(60);
const OVERHEAD: u32 = 42;

/// The router's end of the link to h2 gets another MTU; the host knows nothing of it. Put right when dropped.
struct Narrow<'a>(&'a World);

impl<'a> Narrow<'a> {
    fn new(world: &'a World, mtu: u32) -> Self {
        set_mtu(world, mtu);
        Self(world)
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        set_mtu(self.0, 1500);
    }
}

fn set_mtu(world: &World, mtu: u32) {
    let device = world.lab.host("h2").unwrap().record().router_device.clone();
    Links::in_netns(&world.lab.router().unwrap()).unwrap().set_mtu(&device, mtu).unwrap();
}

/// Smallest and largest MTU of a host's ports.
fn ports(world: &World, host: &str) -> (u32, u32) {
    let all: Vec<u32> = world.host_status(host).ports.iter().map(|p| p.mtu).collect();
    (all.iter().copied().min().unwrap_or(0), all.iter().copied().max().unwrap_or(0))
}

#[test]
fn a_link_that_carries_less_is_found_and_told_and_heals() {
    let Some(world) = LAB.world() else { return };
    let whole = (1500 - OVERHEAD, 1500 - OVERHEAD);
    for host in ["h1", "h2", "h3"] {
        until(&format!("{host} has whole ports"), SHRINKS, || (ports(&world, host) == whole).then_some(()));
    }
    until("h1 got answers from both others", SHRINKS, || {
        (world.metric("h1", "tenet_path_mtu_bytes", "peer") == 3000).then_some(())
    });

    // Towards h2 the router says so; what comes from h2 it drops without a word (past four bytes more, room for a
    // VLAN tag).
    let narrow = Narrow::new(&world, 1400);
    for (host, most) in [("h1", 1400), ("h3", 1400), ("h2", 1404)] {
        until(&format!("ports of {host} know"), SHRINKS, || {
            let (_, largest) = ports(&world, host);
            (largest >= 1400 - OVERHEAD && largest <= most - OVERHEAD).then_some(())
        });
    }
    assert_eq!(world.metric("h1", "tenet_path_mtu_bytes", "\"h3\""), 1500, "only the path to h2 shrank");
    assert_eq!(world.metric("h1", "tenet_path_mtu_bytes", "\"h2\""), 1400);

    let (sql, web) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    let packet = Packet::udp((sql.ip, 1), (web.ip, 9), &[1; 1400 - 28]).dont_fragment();
    let error = sql.error(&packet.frame(web.mac, sql.mac)).unwrap();
    assert_eq!(
        (error.ty, error.code, u32::from(error.mtu)),
        (Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED, 1400 - OVERHEAD)
    );
    // What just fits arrives.
    let payload = [2; 1400 - OVERHEAD as usize - 28];
    let watch = web.watch();
    sql.send(&Packet::udp((sql.ip, 1), (web.ip, 9), &payload).dont_fragment().frame(web.mac, sql.mac));
    assert!(watch.stop().iter().any(|f| f.ends_with(&payload)), "a packet of exactly the path's MTU arrives");

    drop(narrow);
    for host in ["h1", "h2", "h3"] {
        until(&format!("ports of {host} are whole again"), HEALS, || {
            (ports(&world, host) == whole).then_some(())
        });
    }
    world.in_sync();
    tenet_tests::check_reach(&world);
}
