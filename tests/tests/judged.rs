//! What each method puts on the wire, judged by tshark.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::Path;
use std::time::Duration;
use tenet_lab::tool::{Stream, ask};
use tenet_model::{Family, Method};
use tenet_tests::outer::outer;
use tenet_tests::{DUAL, Fixture, Setup, Watch, World, pcap, skipped, until};

static OVER_V4: Fixture = Fixture::set_up("ju4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("ju6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";
const FROM: &str = "contoso/sql";
const TO: [&str; 2] = ["contoso/web", "contoso/app"];
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn every_method_over_ipv4_is_good_to_tshark() {
    judged(&OVER_V4, Family::V4);
}

#[test]
fn every_method_over_ipv6_is_good_to_tshark() {
    judged(&OVER_V6, Family::V6);
}

fn judged(lab: &'static Fixture, outside: Family) {
    let Some(world) = lab.world() else { return };
    if !pcap::has_tshark() {
        return skipped("tshark is not installed");
    }
    world.lab.set_uplink_offloads(false).unwrap();
    let dir = pcap::TempDir::new(&format!("judged-{outside}"));
    let mut wrong = Vec::new();
    for method in Method::ALL {
        world.set_method(NETWORK, method);
        let host = world.lab.host("h1").unwrap();
        let watch = Watch::start(&world.lab.router().unwrap(), &host.record().router_device, None);
        traffic(&world);
        let theirs = |f: &Vec<u8>| outer(f).is_some_and(|o| ours(&world, method, &o));
        let frames: Vec<Vec<u8>> = watch.stop().into_iter().filter(theirs).collect();
        assert!(frames.len() > 300, "{method}: {} frames", frames.len());
        let path = dir.0.join(format!("{method}.pcap"));
        pcap::write(&path, &frames);
        let before = wrong.len();
        wrong.extend(judge(method, outside, &path, frames.len()).into_iter().take(5));
        println!("{method} over {outside}: {} frames, {} wrong", frames.len(), wrong.len() - before);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Frames of VMs, not of the hosts' own talk.
fn ours(world: &World, method: Method, o: &tenet_tests::outer::Outer) -> bool {
    let controller = world.lab.record().controller.address;
    let host = |a| world.lab.record().hosts.iter().any(|h| h.pa == a || h.other == Some(a));
    let rewritten = |a: std::net::IpAddr| {
        let multicast = a.is_multicast() || matches!(a, std::net::IpAddr::V6(a) if a.is_unicast_link_local());
        !host(a) && a != controller && !multicast
    };
    o.method == method && (method != Method::Rewrite || rewritten(o.src) && rewritten(o.dst))
}

fn traffic(world: &World) {
    let from = world.lab.vm(FROM).unwrap();
    for to in TO {
        let to = world.lab.vm(to).unwrap();
        for inside in [Family::V4, Family::V6] {
            let there = to.address_of(inside).unwrap();
            for _ in 0..20 {
                assert!(ask(from.netns(), there, PATIENCE).unwrap().is_some(), "{there}");
            }
            let mut ping = from.command("ping");
            ping.args(["-n", "-q", "-c2", "-i0.02", "-W2", "-s", "2500", &there.to_string()]);
            assert!(ping.output().unwrap().status.success(), "ping {there}");
            let stream = Stream::start(from.netns(), there, Duration::from_millis(10)).unwrap();
            let begin = std::time::Instant::now();
            until("time to pass", PATIENCE, || (begin.elapsed() > Duration::from_millis(100)).then_some(()));
            let report = stream.stop().unwrap();
            assert!(report.received.in_order && report.received.bytes == report.sent, "{report:?}");
        }
    }
}

const FIELDS: [&str; 10] = [
    "frame.protocols",
    "_ws.malformed",
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
    "ip.flags.df",
    "stt.flags.csum_partial",
    "tcp.checksum.ffff",
];

/// What tshark finds wrong.
fn judge(method: Method, outside: Family, path: &Path, count: usize) -> Vec<String> {
    let plain = ["-d", "tcp.port==7007,data", "-d", "udp.port==7007,data"];
    let stt =
        ["-o", "ip.try_heuristic_first:TRUE", "--enable-heuristic", "stt_ip", "-o", "stt.reassemble:TRUE"];
    let mut options = plain.to_vec();
    if method == Method::Stt {
        options.extend(stt);
    }
    let lines = pcap::fields_as(path, "", &FIELDS, &options);
    assert_eq!(lines.len(), count, "{method}");
    let ip = if outside == Family::V4 { "eth:ethertype:ip" } else { "eth:ethertype:ipv6" };
    let start = match method {
        Method::Nvgre => format!("{ip}:gre:eth:ethertype:"),
        Method::Vxlan => format!("{ip}:udp:vxlan:eth:ethertype:"),
        Method::Geneve => format!("{ip}:udp:geneve:eth:ethertype:"),
        Method::Stt if outside == Family::V4 => format!("{ip}:stt"),
        // tshark looks for STT in IPv4 alone; of this it judges the TCP-like header and its checksum.
        Method::Stt => format!("{ip}:tcp"),
        Method::Rewrite => "eth:ethertype:ip".to_owned(),
    };
    let mut wrong = Vec::new();
    let mut inner = 0;
    for (at, line) in lines.iter().enumerate() {
        let mut say = |what: &str| wrong.push(format!("{method}, frame {}: {what}: {line:?}", at + 1));
        if !line[1].is_empty() {
            say("malformed");
        }
        if !line[0].starts_with(&start) {
            say("not what it should be");
        }
        inner += usize::from(
            ["tcp", "udp", "icmp", "icmpv6"]
                .iter()
                .any(|p| line[0].ends_with(p) || line[0].ends_with("data")),
        );
        // An STT frame may say that the inner checksum is for the receiver's NIC to finish.
        let partial = ["1", "True"].contains(&line[8].as_str());
        for (at, status) in line[2..7].iter().enumerate() {
            if partial && (1..=2).contains(&at) {
                continue;
            }
            // The kernel writes 0xffff where 0 would be due (skb_checksum_help, CSUM_MANGLED_0). To every
            // receiver the two are one number; tshark alone calls it bad, and names it.
            if at == 1 && !line[9].is_empty() {
                continue;
            }
            // 1 is good; 2 is not checked: zero, cut short, or a part of something.
            if status.split(',').any(|s| s == "0" || s == "Bad") {
                say("wrong checksum");
            }
        }
        if method != Method::Rewrite
            && outside == Family::V4
            && !["1", "True"].contains(&line[7].split(',').next().unwrap_or_default())
        {
            say("the outer header may be fragmented");
        }
    }
    if inner == 0 {
        wrong.push(format!("{method}: tshark saw nothing inside"));
    }
    wrong
}
