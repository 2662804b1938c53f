//! An uplink whose offload is broken: the agent's self-test finds it, turns it off, and says so.

use std::time::Duration;
use tenet_hostnet::Links;
use tenet_tests::{Fixture, THREE_HOSTS, World, binary, bpf, skipped, until};

static LAB: Fixture = Fixture::new("off", THREE_HOSTS);

const TESTED: Duration = Duration::from_secs(60);
const FEATURE: &str = "tx-gre-segmentation";

/// The self-test's word on NVGRE, and what the agent tells about the uplink.
fn told(world: &World) -> (String, Vec<String>) {
    let host = world.host_status("h1");
    let uplink = host.measured.first();
    let test = uplink.and_then(|u| u.tests.iter().find(|t| t.method == "nvgre"));
    (test.map(|t| t.outcome.clone()).unwrap_or_default(), uplink.map(|u| u.hints.clone()).unwrap_or_default())
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
    let lossy = match router.run(|| bpf::lose_large_gre(ifindex)).unwrap() {
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
