//! The provider network is the kernel's business: any device, any route, any MTU.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tenet_hostnet::{Links, Netns};
use tenet_lab::tool::ask;
use tenet_tests::frame::Packet;
use tenet_tests::{Fixture, THREE_HOSTS, Watch, World, binary, skipped, until};
use tenet_wire::{Icmp, Mac, ProtocolNumber};

static LAB: Fixture = Fixture::new("und", THREE_HOSTS);

const PATIENCE: Duration = Duration::from_secs(10);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const H2: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 20));
const H2_GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 1));
const GATEWAY: Mac = Mac::new([0x02, b'T', b'e', b'n', b'e', b't']);

#[test]
fn uplink_may_be_a_bridge() {
    let Some(mut world) = LAB.world() else { return };
    let (host, _) = ends(&world);
    host.add_bridge("br0").unwrap();
    host.set_master("eth0", Some("br0")).unwrap();
    on_device(&mut world, "br0");
    host.set_master("eth0", None).unwrap();
    host.delete_link("br0").unwrap();
    as_before(&mut world);
}

#[test]
fn uplink_may_be_a_vlan() {
    let Some(mut world) = LAB.world() else { return };
    let (host, router) = ends(&world);
    if let Err(e) = host.add_vlan("eth0.7", "eth0", 7) {
        return skipped(format!("this kernel has no VLAN devices: {e}"));
    }
    let device = world.lab.host("h2").unwrap().record().router_device.clone();
    router.add_vlan("vlan7", &device, 7).unwrap();
    router.delete_addr(&device, H2_GATEWAY, 24).unwrap();
    router.add_addr("vlan7", H2_GATEWAY, 24).unwrap();
    router.set_up("vlan7").unwrap();
    on_device(&mut world, "eth0.7");
    host.delete_link("eth0.7").unwrap();
    router.delete_link("vlan7").unwrap();
    router.add_addr(&device, H2_GATEWAY, 24).unwrap();
    as_before(&mut world);
}

#[test]
fn uplink_may_be_a_bond() {
    let Some(mut world) = LAB.world() else { return };
    let netns = world.lab.host("h2").unwrap().netns().clone();
    let made =
        netns.command("ip").args(["link", "add", "bond0", "type", "bond", "mode", "active-backup"]).output();
    match made {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return skipped(format!("no bond here: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Err(e) => return skipped(format!("needs `ip`: {e}")),
    }
    let (host, _) = ends(&world);
    host.set_down("eth0").unwrap();
    host.set_master("eth0", Some("bond0")).unwrap();
    host.set_up("eth0").unwrap();
    on_device(&mut world, "bond0");
    host.set_master("eth0", None).unwrap();
    host.delete_link("bond0").unwrap();
    host.set_up("eth0").unwrap();
    as_before(&mut world);
}

#[test]
fn route_changes_are_followed_without_the_agent() {
    let Some(mut world) = LAB.world() else { return };
    // A second way out of the subnet of h1 and h3: a namespace that hands on to the router.
    let detour = Netns::anonymous().unwrap();
    let (detour_links, router) =
        (Links::in_netns(&detour).unwrap(), Links::in_netns(&world.lab.router().unwrap()).unwrap());
    let segment = world.lab.record().segments.iter().find(|s| s.bridge).unwrap().clone();
    let address = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 254));
    router.add_veth("to.detour", "eth0", &detour).unwrap();
    // A bridge takes its ports' lowest MAC as its own, which must not change under its neighbours.
    router.set_mac("to.detour", [0xfe, 0xff, 0xff, 0xff, 0xff, 1]).unwrap();
    router.set_master("to.detour", Some(&segment.device)).unwrap();
    router.set_up("to.detour").unwrap();
    detour_links.add_addr("eth0", address, 24).unwrap();
    detour_links.set_up("eth0").unwrap();
    detour_links.add_route(ANY, 0, Some(segment.gateway), None).unwrap();
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ] {
        detour_links.set_sysctl(path, value).unwrap();
    }
    for host in ["h1", "h2", "h3"] {
        world.lab.kill_agent(host).unwrap();
    }
    let h1 = Links::in_netns(world.lab.host("h1").unwrap().netns()).unwrap();
    assert!(through(&world, &detour).is_empty(), "the router's way");
    h1.add_route(ANY, 0, Some(address), None).unwrap();
    let seen = through(&world, &detour);
    assert!(seen.iter().any(|f| is_gre(f)), "the detour, from the next frame on");
    h1.add_route(ANY, 0, Some(segment.gateway), None).unwrap();
    assert!(!through(&world, &detour).iter().any(|f| is_gre(f)), "the router's way again");
    // Nowhere at all, and back.
    h1.delete_route(ANY, 0, Some(segment.gateway), None).unwrap();
    let sql = world.lab.vm("contoso/sql").unwrap().netns().clone();
    let web = IpAddr::V4(world.ip("contoso/web"));
    assert_eq!(ask(&sql, web, Duration::from_millis(300)).unwrap(), None, "no route, no way");
    h1.add_route(ANY, 0, Some(segment.gateway), None).unwrap();
    assert_eq!(ask(&sql, web, PATIENCE).unwrap().as_deref(), Some("contoso/web"));
    for host in ["h1", "h2", "h3"] {
        world.lab.start_agent(host).unwrap();
    }
    until("agents are back", PATIENCE, || world.status().hosts.iter().all(|h| h.connected).then_some(()));
    router.delete_link("to.detour").unwrap();
}

#[test]
fn smaller_uplink_mtu_makes_smaller_ports() {
    let Some(world) = LAB.world() else { return };
    let (host, router) = ends(&world);
    let device = world.lab.host("h2").unwrap().record().router_device.clone();
    let set = |mtu| {
        host.set_mtu("eth0", mtu).unwrap();
        router.set_mtu(&device, mtu).unwrap();
        until(&format!("ports of h2 have {} bytes", mtu - 42), PATIENCE, || {
            let ports = world.host_status("h2").ports;
            (!ports.is_empty() && ports.iter().all(|p| p.mtu == mtu - 42)).then_some(())
        });
    };
    set(1400);
    let (web, sql) = (world.nic("contoso/web"), world.nic("contoso/sql"));
    let packet = Packet::udp((web.ip, 1), (sql.ip, 9), &[1; 1372]).dont_fragment();
    let error = web.error(&packet.frame(GATEWAY, web.mac)).unwrap();
    assert_eq!((error.ty, error.code, error.mtu), (Icmp::UNREACHABLE, Icmp::FRAGMENTATION_NEEDED, 1358));
    set(1500);
    world.in_sync();
    tenet_tests::check_reach(&world);
}

/// What a namespace's eth0 sees while a VM of h1 talks to one of h2, of tunnels.
fn through(world: &World, detour: &Netns) -> Vec<Vec<u8>> {
    let watch = Watch::start(detour, "eth0", None);
    let sql = world.lab.vm("contoso/sql").unwrap().netns().clone();
    let got = ask(&sql, IpAddr::V4(world.ip("contoso/web")), PATIENCE).unwrap();
    assert_eq!(got.as_deref(), Some("contoso/web"));
    watch.stop().into_iter().filter(|f| is_gre(f)).collect()
}

fn is_gre(frame: &[u8]) -> bool {
    tenet_tests::ipv4(frame).is_some_and(|(header, _)| header.protocol == ProtocolNumber::GRE)
}

/// h2's namespace and the router's, whose devices face each other.
fn ends(world: &World) -> (Links, Links) {
    let host = Links::in_netns(world.lab.host("h2").unwrap().netns()).unwrap();
    (host, Links::in_netns(&world.lab.router().unwrap()).unwrap())
}

/// An agent that is not the lab's own.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Runs h2 with its provider address and uplink on another device.
fn on_device(world: &mut World, device: &str) {
    world.lab.kill_agent("h2").unwrap();
    let (host, _) = ends(world);
    host.delete_addr("eth0", H2, 24).unwrap();
    host.add_addr(device, H2, 24).unwrap();
    host.set_up(device).unwrap();
    host.add_route(ANY, 0, Some(H2_GATEWAY), None).unwrap();
    let agent = Agent(agent_command(world, device).spawn().unwrap());
    until("the agent is there with the other uplink", PATIENCE, || {
        let status = world.host_status("h2");
        (status.connected && status.uplinks == [device]).then_some(())
    });
    world.in_sync();
    tenet_tests::check_reach(world);
    let index = host.index("eth0").unwrap();
    let left = world.lab.host("h2").unwrap().netns().run(|| tenet_tests::bpf::tcx_programs(index)).unwrap();
    assert_eq!(left, 0, "the device that is no longer ticked carries no program");
    drop(agent);
    host.delete_addr(device, H2, 24).unwrap();
}

fn agent_command(world: &World, device: &str) -> Command {
    let host = world.lab.host("h2").unwrap();
    let record = host.record();
    let url = format!("https://{}:7443", world.lab.record().controller.address);
    let mut command = host.command(binary());
    command.args(["agent", "--uplink", device, "--controller", &url]);
    command.arg("--state-dir").arg(&record.state_dir).arg("--bpffs").arg(&record.bpffs);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// h2 on its own device again.
fn as_before(world: &mut World) {
    let (host, _) = ends(world);
    host.add_addr("eth0", H2, 24).unwrap();
    host.add_route(ANY, 0, Some(H2_GATEWAY), None).unwrap();
    world.lab.start_agent("h2").unwrap();
    until("the agent is back", PATIENCE, || {
        let status = world.host_status("h2");
        (status.connected && status.uplinks == ["eth0"]).then_some(())
    });
    world.in_sync();
    tenet_tests::check_reach(world);
}
