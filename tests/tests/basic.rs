//! The basic matrix: two tenants, NVGRE and VXLAN, same and other subnet, same and other host, and agents that
//! start again under traffic. On this machine's kernel, and by `cargo xtask kernel` on the kernels that users have.
//!
//! Nothing here needs a program besides `tenet`, and no pace: it passes on an emulated machine. Lines that begin with
//! `ROW` are what the task prints.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tenet_api::rest::PortCounters;
use tenet_lab::tool::{Probe, Stream, ask};
use tenet_model::Method;
use tenet_tests::frame::Packet;
use tenet_tests::outer::outer;
use tenet_tests::{BASIC, Fixture, Watch, World, check_reach, until};

static LAB: Fixture = Fixture::new("bas", BASIC);

const NETWORKS: [&str; 2] = ["contoso/prod", "fabrikam/prod"];
const METHODS: [Method; 2] = [Method::Nvgre, Method::Vxlan];
const FROM: &str = "contoso/sql";
const TO: [(&str, &str); 4] = [
    ("contoso/log", "same subnet, same host"),
    ("contoso/web", "same subnet, other host"),
    ("contoso/app", "other subnet, same host"),
    ("contoso/far", "other subnet, other host"),
];
const QUESTIONS: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(800);

/// What no frame of a healthy site is dropped for.
const NEVER: [&str; 16] = [
    "bad_tunnel_header",
    "kernel_refused",
    "loop",
    "malformed",
    "no_record",
    "no_route",
    "not_configured",
    "outer_checksum",
    "port_blocked",
    "spoofed_ca",
    "spoofed_mac",
    "truncated",
    "unknown_pa",
    "unknown_port",
    "unknown_vsid",
    "wrong_pa",
];

#[test]
fn programs_hang_where_this_kernel_has_a_hook() {
    let Some(world) = LAB.world() else { return };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let expected = if version >= (6, 6) { "tcx" } else { "clsact" };
    for host in world.status().hosts {
        println!("ROW {} | hook {}", host.name, host.hook.as_deref().unwrap_or("none"));
        assert_eq!(host.hook.as_deref(), Some(expected), "kernel {release}");
        assert!(host.problems.is_empty(), "{:?}", host.problems);
    }
}

#[test]
fn two_tenants_by_nvgre() {
    let Some(world) = LAB.world() else { return };
    carries(&world, Method::Nvgre);
}

#[test]
fn two_tenants_by_vxlan() {
    let Some(world) = LAB.world() else { return };
    carries(&world, Method::Vxlan);
}

#[test]
fn tenants_cannot_reach_each_other_and_the_counters_say_why() {
    let Some(world) = LAB.world() else { return };
    for method in METHODS {
        use_method(&world, method);
        let only_theirs = IpAddr::V4(world.ip("fabrikam/own"));
        let before = world.vm_counters(FROM);
        let answer = ask(world.lab.vm(FROM).unwrap().netns(), only_theirs, SILENCE).unwrap();
        assert_eq!(answer, None, "{FROM} asked {only_theirs}, which only the other tenant has");
        let asked = delta(&before, || world.vm_counters(FROM), |d| d.drop("no_record") > 0);
        println!("ROW {method} | unknown to the tenant | {} dropped as no_record", asked.drop("no_record"));

        // As its neighbour, and by the other tenant's MAC: neither leaves the port.
        let (sql, log, web) = (world.nic(FROM), world.nic("contoso/log"), world.nic("contoso/web"));
        let theirs = world.nic("fabrikam/web");
        let watch = theirs.watch();
        let before = world.vm_counters(FROM);
        let forged = Packet::udp((log.ip, 1), (web.ip, 9), b"forged").frame(web.mac, sql.mac);
        sql.send(&forged);
        sql.send(&Packet::udp((sql.ip, 1), (web.ip, 9), b"forged").frame(web.mac, log.mac));
        sql.send(&Packet::udp((sql.ip, 1), (theirs.ip, 9), b"forged").frame(theirs.mac, sql.mac));
        let all = |d: &Delta| ["spoofed_ca", "spoofed_mac", "unknown_mac"].iter().all(|r| d.drop(r) > 0);
        let dropped = delta(&before, || world.vm_counters(FROM), all);
        println!(
            "ROW {method} | forged frames | {} spoofed_ca, {} spoofed_mac, {} unknown_mac",
            dropped.drop("spoofed_ca"),
            dropped.drop("spoofed_mac"),
            dropped.drop("unknown_mac")
        );
        let leaked = watch.stop().into_iter().filter(|f| f.ends_with(b"forged")).count();
        assert_eq!(leaked, 0, "forged frames reached {}", theirs.name);
    }
}

#[test]
fn agents_that_start_again_under_traffic_flush_nothing() {
    let Some(mut world) = LAB.world() else { return };
    for method in METHODS {
        use_method(&world, method);
        restart(&mut world, method);
    }
}

/// Who should answer answers, nobody else, and the counters and the wire say how it came about.
fn carries(world: &World, method: Method) {
    use_method(world, method);
    check_reach(world);
    let uplinks = || ["h1", "h2"].map(|h| world.uplink_counters(h));
    for (to, kind) in TO {
        let from = world.lab.vm(FROM).unwrap();
        let (home, there) = (world.host_of(FROM), world.host_of(to));
        let crosses = home != there;
        let address = IpAddr::V4(world.ip(to));
        let (mine, theirs, wires) = (world.vm_counters(FROM), world.vm_counters(to), uplinks());
        let device = world.lab.host(&home).unwrap().record().router_device.clone();
        let watch = Watch::start(&world.lab.router().unwrap(), &device, None);
        for _ in 0..QUESTIONS {
            let answer = ask(from.netns(), address, tenet_lab::patience(PATIENCE)).unwrap();
            assert_eq!(answer.as_deref(), Some(to), "{method}, {kind}: {FROM} asked {address}");
        }
        let frames = watch.stop();
        let sent = delta(&mine, || world.vm_counters(FROM), |d| d.tx >= QUESTIONS && d.rx >= QUESTIONS);
        let got = delta(&theirs, || world.vm_counters(to), |d| d.rx >= QUESTIONS && d.tx >= QUESTIONS);
        let (bytes, back) = (stream(world, FROM, to), stream(world, to, FROM));
        // The tunnel between the two hosts, and no other.
        let (a, b) =
            (world.lab.host(&home).unwrap().record().pa, world.lab.host(&there).unwrap().record().pa);
        let between = frames.iter().filter_map(|f| outer(f)).filter(|o| o.method == method);
        let tunnelled =
            between.filter(|o| crosses && [(a, b), (b, a)].contains(&(o.src, o.dst))).count() as u64;
        assert!(!crosses || tunnelled >= 2 * QUESTIONS, "{method}, {kind}: {tunnelled} frames on the wire");
        let wrong: BTreeMap<String, u64> = std::iter::once(Delta::between(&mine, &world.vm_counters(FROM)))
            .chain(std::iter::once(Delta::between(&theirs, &world.vm_counters(to))))
            .chain(wires.iter().zip(uplinks()).map(|(before, after)| Delta::between(before, &after)))
            .flat_map(|d| d.drops)
            .filter(|(reason, _)| NEVER.contains(&&**reason))
            .collect();
        assert!(wrong.is_empty(), "{method}, {kind}: drops {wrong:?}");
        println!(
            "ROW {method} | {kind} | {QUESTIONS} of {QUESTIONS} answered | port sent {} got {}, theirs got {} | \
             {tunnelled} on the wire | TCP {} kB there, {} kB back, 0 lost",
            sent.tx,
            sent.rx,
            got.rx,
            bytes / 1000,
            back / 1000
        );
    }
}

/// Sends for a moment, checked word for word.
fn stream(world: &World, from: &str, to: &str) -> u64 {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let stream = Stream::start(&netns, IpAddr::V4(world.ip(to)), Duration::from_millis(10)).unwrap();
    let begin = Instant::now();
    until("a moment to pass", PATIENCE, || {
        (begin.elapsed() > tenet_lab::patience(Duration::from_millis(150))).then_some(())
    });
    let report = stream.stop().unwrap();
    let received = &report.received;
    assert!(
        report.peer == to && received.in_order && received.bytes == report.sent && report.sent > 100_000,
        "{from} to {to}: {report:?}"
    );
    report.sent
}

/// Both agents are killed, one after the other and then together, while a VM asks another and a stream runs.
fn restart(world: &mut World, method: Method) {
    const PER_SECOND: u32 = 50;
    let to = "contoso/far";
    let address = IpAddr::V4(world.ip(to));
    let netns = world.lab.vm(FROM).unwrap().netns().clone();
    let repaired = |world: &World| world.status().hosts.into_iter().map(|h| h.repaired).collect::<Vec<_>>();
    let (before, told) = (world.vm_counters(to), repaired(world));
    let probe = Probe::start(&netns, address, to, PER_SECOND).unwrap();
    let stream = Stream::start(&netns, address, Duration::from_millis(40)).unwrap();
    for hosts in [&["h1"][..], &["h2"], &["h1", "h2"]] {
        for host in hosts {
            world.lab.kill_agent(host).unwrap();
        }
        until("the controller misses the agents", Duration::from_secs(20), || {
            hosts.iter().all(|h| !world.host_status(h).connected).then_some(())
        });
        for host in hosts {
            world.lab.start_agent(host).unwrap();
        }
        until("the agents are back", Duration::from_secs(20), || {
            hosts.iter().all(|h| world.host_status(h).connected).then_some(())
        });
        world.in_sync();
    }
    let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
    let counted = delta(&before, || world.vm_counters(to), |d| d.rx >= probe.answered);
    let figures = format!("{probe:?}\n{stream:?}\n{counted:?}");
    assert!(probe.sent > u64::from(PER_SECOND), "{figures}");
    assert_eq!((probe.lost, probe.strangers, probe.duplicates), (0, 0, 0), "{figures}");
    let intact = stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0;
    assert!(intact && stream.peer == to, "{figures}");
    // Flushed tables would have begun to count anew, or would have had to be put right.
    assert!(counted.rx >= probe.answered, "the counters went on: {figures}");
    assert_eq!(repaired(world), told, "adopted, nothing to put right");
    println!(
        "ROW {method} | 4 agents killed and started again | {} asked, {} lost | TCP {} kB, {} lost | nothing flushed",
        probe.sent,
        probe.lost,
        stream.sent / 1000,
        stream.sent - stream.received.bytes
    );
}

fn use_method(world: &World, method: Method) {
    for network in NETWORKS {
        world.set_method(network, method);
    }
    world.in_sync();
}

/// What counters rose by.
#[derive(Debug, Default)]
struct Delta {
    tx: u64,
    rx: u64,
    drops: BTreeMap<String, u64>,
}

impl Delta {
    fn between(before: &PortCounters, after: &PortCounters) -> Self {
        let rose = |what: &str, a: u64, b: u64| {
            b.checked_sub(a).unwrap_or_else(|| panic!("{what} fell from {a} to {b}: counters were flushed"))
        };
        let drops = after.drops.iter().map(|(reason, n)| {
            (reason.clone(), rose(reason, before.drops.get(reason).copied().unwrap_or_default(), *n))
        });
        Self {
            tx: rose("tx_frames", before.tx_frames, after.tx_frames),
            rx: rose("rx_frames", before.rx_frames, after.rx_frames),
            drops: drops.filter(|(_, n)| *n > 0).collect(),
        }
    }

    fn drop(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }
}

/// Waits until the counters have risen as they should.
fn delta(before: &PortCounters, now: impl Fn() -> PortCounters, enough: impl Fn(&Delta) -> bool) -> Delta {
    let begin = Instant::now();
    loop {
        let delta = Delta::between(before, &now());
        if enough(&delta) {
            return delta;
        }
        assert!(begin.elapsed() < tenet_lab::patience(PATIENCE), "the counters do not show it: {delta:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
