//! The other end of the tunnel is somebody else's: the kernel's vxlan device, and Open vSwitch's userspace datapath.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;
use tenet_api::rest::NetworkPatch;
use tenet_hostnet::Links;
use tenet_lab::tool::{Stream, ask};
use tenet_model::{Family, Method};
use tenet_tests::ovs::{self, Ovs};
use tenet_tests::pcap::TempDir;
use tenet_tests::{DUAL, Fixture, Setup, World, block_on, skipped, until};

static OVER_V4: Fixture = Fixture::set_up("io4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("io6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";
/// Tenet's, on h1, and the foreign switch's, on h2; both in the subnet with VSID 5001.
const OURS: &str = "contoso/sql";
const THEIRS: &str = "contoso/web";
const VSID: u32 = 5001;
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn others_tunnels_over_ipv4() {
    with_others(&OVER_V4);
}

#[test]
fn others_tunnels_over_ipv6() {
    with_others(&OVER_V6);
}

fn with_others(lab: &'static Fixture) {
    let Some(mut world) = lab.world() else { return };
    world.lab.set_uplink_offloads(false).unwrap();
    // What crosses by a packet socket must have its checksums whole.
    run(world.lab.vm(THEIRS).unwrap().command("ethtool").args(["-K", "eth0", "tx", "off"]));
    know_ours(&world);
    leave_h2_to_others(&mut world);
    kernels_vxlan(&world);
    match ovs::missing() {
        Some(why) => skipped(why),
        None => open_vswitch(&world),
    }
}

/// A host takes no broadcast ARP from the wire, since Tenet's hosts answer where it is asked: others need a table of
/// their own, as this entry is. (Neighbour solicitations, being multicast IPv6, come through.)
fn know_ours(world: &World) {
    let ours = world.lab.vm(OURS).unwrap();
    let mac = ours.record().ports[0].mac.unwrap();
    let address = ours.address_of(Family::V4).unwrap();
    let entry = format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent");
    run(world.lab.vm(THEIRS).unwrap().command("ip").args(entry.split_whitespace()));
}

/// Tenet goes from h2; its VM's device and its provider address stay.
fn leave_h2_to_others(world: &mut World) {
    world.lab.kill_agent("h2").unwrap();
    let host = world.lab.host("h2").unwrap();
    let bpffs = host.record().bpffs.display().to_string();
    run(host.command(tenet_tests::binary()).args(["agent", "--detach", "--bpffs", &bpffs]));
    // The agent's sockets for joining segments, if it had them, hold the ports that the others need.
    let links = Links::in_netns(host.netns()).unwrap();
    for link in links.list().unwrap().into_iter().filter(|l| l.name.starts_with("tenet-gro")) {
        links.delete_link(&link.name).unwrap();
    }
    until("the controller misses h2", PATIENCE, || (!world.host_status("h2").connected).then_some(()));
}

/// Changes the method; h2 is away and is not waited for.
fn change(world: &World, method: Method) {
    let network = NETWORK.parse().unwrap();
    block_on(world.client.set_network(&network, &NetworkPatch { method: Some(method) })).unwrap();
    until(&format!("h1 sends by {method}"), PATIENCE, || {
        let now = block_on(world.client.network(&network)).unwrap();
        let changed = (now.method, now.switching) == (method, None);
        (changed && world.host_status("h1").in_sync).then_some(())
    });
}

fn kernels_vxlan(world: &World) {
    change(world, Method::Vxlan);
    let [h1, h2] = pas(world);
    let device = device(world);
    for checksum in ["noudpcsum noudp6zerocsumtx udp6zerocsumrx", "udpcsum noudp6zerocsumtx udp6zerocsumrx"] {
        ip(
            world,
            &format!(
                "link add vx type vxlan id {VSID} local {h2} remote {h1} dstport 4789 dev eth0 {checksum}"
            ),
        );
        ip(world, "link add br0 type bridge");
        ip(world, "link set vx mtu 1408 master br0 up");
        ip(world, &format!("link set {device} master br0"));
        ip(world, "link set br0 up");
        talk(world, &format!("the kernel's vxlan, {checksum}"));
        ip(world, "link del br0");
        ip(world, "link del vx");
    }
}

fn open_vswitch(world: &World) {
    let [h1, h2] = pas(world);
    let device = device(world);
    let dir = TempDir::new(&format!("ovs-{}", Family::of(&h1)));
    let host = world.lab.host("h2").unwrap();
    let ovs = Ovs::start(host.netns(), &dir.0).unwrap();
    let (length, gateway) = match h2 {
        IpAddr::V4(_) => (24, "0.0.0.0/0"),
        IpAddr::V6(_) => (64, "::/0"),
    };
    let segment = &world.lab.record().segments[host.record().segment];
    ip(world, &format!("addr del {h2}/{length} dev eth0"));
    ovs.add_bridge("br-phy", &["eth0"]).unwrap();
    // The neighbours know the address by the wire's MAC.
    let mac = Links::in_netns(host.netns()).unwrap().get("eth0").unwrap().mac.unwrap();
    let mac = tenet_model::Mac::new(mac).unwrap();
    ovs.vsctl(&["set", "bridge", "br-phy", &format!("other_config:hwaddr=\"{mac}\"")]).unwrap();
    for setting in ["accept_dad=0", "disable_ipv6=0"] {
        run(host.command("sysctl").arg("-qw").arg(format!("net.ipv6.conf.br-phy.{setting}")));
    }
    ip(world, "link set br-phy mtu 1500 up");
    ip(world, &format!("addr add {h2}/{length} dev br-phy"));
    ip(world, &format!("route replace {gateway} via {} dev br-phy", segment.gateway));
    // It sizes its buffers by the MTU, which the agent had set to the largest there is.
    ip(world, &format!("link set {device} mtu 1500"));
    ovs.add_bridge("br-int", &[&device]).unwrap();
    let remote = format!("options:remote_ip={h1}");
    let key = format!("options:key={VSID}");
    for method in [Method::Vxlan, Method::Geneve] {
        change(world, method);
        ovs.add_tunnel("br-int", "tun", method.name(), &[&remote, &key]).unwrap();
        talk(world, &format!("Open vSwitch's {method}"));
        ovs.vsctl(&["del-port", "br-int", "tun"]).unwrap();
    }
    // A key of GRE's is VSID and FlowID together: any flow's comes in, and one goes out.
    change(world, Method::Nvgre);
    ovs.add_tunnel("br-int", "tun", "gre", &[&remote, "options:key=flow"]).unwrap();
    let out = format!("in_port={device},actions=set_field:{:#x}->tun_id,output:tun", VSID << 8 | 7);
    let mask = format!("in_port=tun,tun_id={:#x}/0xffffff00,actions=output:{device}", VSID << 8);
    ovs.ofctl("del-flows", "br-int", &[]).unwrap();
    for flow in [out, mask] {
        ovs.ofctl("add-flow", "br-int", &[&flow]).unwrap();
    }
    talk(world, "Open vSwitch's GRE with a key");
}

/// Both ask, ping and stream to the other, in both families.
fn talk(world: &World, with: &str) {
    let vm = |name: &str| world.lab.vm(name).unwrap();
    for (from, to) in [(OURS, THEIRS), (THEIRS, OURS)] {
        for family in [Family::V4, Family::V6] {
            let what = format!("{with}: {from} to {to}, {family}");
            let there = vm(to).address_of(family).unwrap();
            let answer = ask(vm(from).netns(), there, PATIENCE).unwrap();
            assert_eq!(answer.as_deref(), Some(to), "{what}");
            for size in ["56", "1300", "3000"] {
                let mut ping = vm(from).command("ping");
                ping.args(["-n", "-q", "-c3", "-i0.05", "-W2", "-s", size, &there.to_string()]);
                let output = ping.output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains(" 0% packet loss"), "{what}, {size} bytes: {text}");
            }
            let stream = Stream::start(vm(from).netns(), there, Duration::from_millis(1));
            let stream = stream.unwrap_or_else(|e| panic!("{what}: {e}"));
            let begin = std::time::Instant::now();
            until("time to pass", PATIENCE, || (begin.elapsed() > Duration::from_millis(150)).then_some(()));
            let report = stream.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
            let good = report.received.in_order && report.received.bytes == report.sent;
            assert!(good && report.sent > 100_000 && report.peer == to, "{what}: {report:?}");
        }
    }
    println!("{with}: both ways, both families");
}

fn pas(world: &World) -> [IpAddr; 2] {
    ["h1", "h2"].map(|h| world.lab.host(h).unwrap().record().pa)
}

/// The VM's device on h2.
fn device(world: &World) -> String {
    world.lab.vm(THEIRS).unwrap().record().ports[0].device.clone()
}

/// `ip` on h2.
fn ip(world: &World, args: &str) {
    run(world.lab.host("h2").unwrap().command("ip").args(args.split_whitespace()));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
