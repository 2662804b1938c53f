//! An uplink whose offload is broken: the agent's self-test finds it, turns it off, and says so.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::process::Command;
use std::time::Duration;
use tenet_api::rest::OffloadTest;
use tenet_hostnet::Links;
use tenet_model::Method;
use tenet_tests::{Fixture, Setup, THREE_HOSTS, World, binary, bpf, skipped, until};

static LAB: Fixture = Fixture::new("off", THREE_HOSTS);
static REWRITE: Fixture = Fixture::set_up("ofr", THREE_HOSTS, Setup::ANY_METHOD);

const TESTED: Duration = Duration::from_secs(60);
const FEATURE: &str = "tx-gre-segmentation";
const GRE: u8 = 47;
const TCP: u8 = 6;

/// The self-test's word on NVGRE, and what the agent tells about the uplink.
fn told(world: &World) -> (String, Vec<String>) {
    let (test, hints) = tested(world, "nvgre");
    (test.map(|t| t.outcome).unwrap_or_default(), hints)
}

fn tested(world: &World, method: &str) -> (Option<OffloadTest>, Vec<String>) {
    let host = world.host_status("h1");
    let uplink = host.measured.first();
    let test = uplink.and_then(|u| u.tests.iter().find(|t| t.method == method).cloned());
    (test, uplink.map(|u| u.hints.clone()).unwrap_or_default())
}

/// What `tenet status` prints.
fn status(world: &World) -> String {
    let mut command = Command::new(binary());
    command.arg("status").env("TENET_LAB", world.lab.record().name.as_str());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn an_offload_that_loses_frames_is_turned_off_and_told() {
    let Some(mut world) = LAB.world() else { return };
    until("the first self-test ends well", TESTED, || (told(&world).0 == "ok").then_some(()));
    let host = world.lab.host("h1").unwrap();
    let (device, uplink) = (host.record().router_device.clone(), host.record().uplink.clone());
    let links = Links::in_netns(host.netns()).unwrap();
    assert_eq!(links.feature(&uplink, FEATURE).unwrap(), Some(true), "the offload is on at first");

    let router = world.lab.router().unwrap();
    let ifindex = Links::in_netns(&router).unwrap().index(&device).unwrap();
    let lossy = match router.run(|| bpf::lose_large(ifindex, GRE, 0)).unwrap() {
        Ok(link) => link,
        Err(e) => return skipped(format!("this kernel attaches no program by TCX: {e}")),
    };
    world.lab.kill_agent("h1").unwrap();
    world.lab.start_agent("h1").unwrap();
    until("the agent turns the offload off", TESTED, || {
        (links.feature(&uplink, FEATURE).unwrap() == Some(false)).then_some(())
    });
    until("the self-test ends well again, and the agent says why", TESTED, || {
        let (outcome, hints) = told(&world);
        let said = hints.iter().any(|h| h.contains(&format!("turned {FEATURE} off")) && h.contains("nvgre"));
        (outcome == "ok" && said).then_some(())
    });
    let stt = links.feature(&uplink, "tx-tcp-segmentation").unwrap();
    assert_eq!(stt, Some(true), "what nobody uses, and what works, is left alone");
    drop(lossy);

    world.lab.kill_agent("h1").unwrap();
    world.lab.start_agent("h1").unwrap();
    until("the restarted agent knows what it turned off", TESTED, || {
        told(&world).1.iter().any(|h| h.contains(&format!("turned {FEATURE} off"))).then_some(())
    });
    assert_eq!(links.feature(&uplink, FEATURE).unwrap(), Some(false));
    world.in_sync();

    let host = world.lab.host("h1").unwrap();
    let mut detach = host.netns().command(binary());
    detach.args(["agent", "--detach", "--bpffs"]).arg(&host.record().bpffs);
    detach.arg("--state-dir").arg(&host.record().state_dir);
    world.lab.kill_agent("h1").unwrap();
    let output = detach.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(FEATURE), "{output:?}");
    assert_eq!(links.feature(&uplink, FEATURE).unwrap(), Some(true));
}

#[test]
fn plain_packets_of_ip_rewrite_are_tested_like_any_tunnel() {
    const SEGMENTS: &str = "tx-tcp-segmentation";
    let Some(mut world) = REWRITE.world() else { return };
    until("all methods end well", TESTED, || {
        let host = world.host_status("h1");
        let tests = &host.measured.first()?.tests;
        let names: Vec<&str> =
            tests.iter().filter(|t| t.outcome == "ok").map(|t| t.method.as_str()).collect();
        (names == ["nvgre", "vxlan", "geneve", "stt", "rewrite"]).then_some(())
    });
    let (good, _) = tested(&world, "rewrite");
    assert!(good.unwrap().largest > 30_000, "large frames go out and arrive whole on this network");
    assert!(status(&world).contains("all ok"), "{}", status(&world));

    let host = world.lab.host("h1").unwrap();
    let (device, uplink) = (host.record().router_device.clone(), host.record().uplink.clone());
    let links = Links::in_netns(host.netns()).unwrap();
    let router = world.lab.router().unwrap();
    let ifindex = Links::in_netns(&router).unwrap().index(&device).unwrap();
    // What agent and controller say to each other is smaller.
    let lossy = match router.run(|| bpf::lose_large(ifindex, TCP, 30_000)).unwrap() {
        Ok(link) => link,
        Err(e) => return skipped(format!("this kernel attaches no program by TCX: {e}")),
    };
    world.lab.kill_agent("h1").unwrap();
    world.lab.start_agent("h1").unwrap();
    let test = until("large packets are missed", TESTED, || {
        tested(&world, "rewrite").0.filter(|t| t.outcome == "degraded")
    });
    assert_eq!((test.plain.as_str(), test.checksum.as_str()), ("ok", "ok"));
    assert_eq!(test.segments, "0 of 60000 bytes arrived");
    let text = status(&world);
    assert!(text.contains("rewrite degraded") && text.contains("self-test of rewrite with h"), "{text}");
    assert_eq!(
        links.feature(&uplink, SEGMENTS).unwrap(),
        Some(true),
        "no network uses it: nothing is turned off"
    );

    world.set_method("contoso/prod", Method::Rewrite);
    world.lab.kill_agent("h1").unwrap();
    world.lab.start_agent("h1").unwrap();
    until("the offload is off, that helps, and the agent says why", TESTED, || {
        let (test, hints) = tested(&world, "rewrite");
        let said =
            hints.iter().any(|h| h.contains(&format!("turned {SEGMENTS} off")) && h.contains("rewrite"));
        (test?.outcome == "ok" && said).then_some(())
    });
    assert_eq!(links.feature(&uplink, SEGMENTS).unwrap(), Some(false));
    drop(lossy);
    world.in_sync();
    tenet_tests::check_reach(&world);
}
