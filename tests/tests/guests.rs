//! A real guest moves between hosts, idle and while it writes its memory, as a VM on a third host talks to it.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::time::Duration;
use tenet_hostnet::Links;
use tenet_lab::Lab;
use tenet_lab::tool::{Probe, Stream};
use tenet_model::{Family, Through, tap_name};
use tenet_tests::guest::{RESTLESS, with_guests};
use tenet_tests::{APART, Setup, block_on, until};

const SQL: &str = "contoso/sql";
const FAR: &str = "contoso/far";
/// 64 KB each: what a guest under emulation takes without effort.
const PACE: Duration = Duration::from_millis(20);
/// Questions that QEMU leaves unread when it stops the guest, and what a busy machine adds. Half of the pause is far
/// less than what would be lost if nothing waited for the guest on its new host.
const EDGES: u64 = 10;
/// Where it moves, whether it writes its memory meanwhile, and how often a second it is asked: while it writes it has
/// little left for answers.
const ASKED: [(&str, bool, u32); 3] = [("h2", false, 1000), ("h1", false, 1000), ("h2", true, 200)];
/// Whether they are others a moment later.
const WRITES: &str = "[ \"$(md5sum </tmp/x)\" != \"$(md5sum </tmp/x)\" ]";
/// The guest that moves has both families; who talks to it looks on from a third host.
const TENANTS: &str = "
tenants:
  contoso:
    networks:
      prod:
        subnets:
          data: { prefixes: [10.1.1.0/24, 'fd00:1::/64'], vsid: 5001 }
    vms:
      sql: { ports: { eth0: { subnet: prod/data, address: [10.1.1.11, 'fd00:1::11'], host: h1 } } }
      far: { ports: { eth0: { subnet: prod/data, address: [10.1.1.14, 'fd00:1::14'], host: h3 } } }
";

#[test]
fn a_real_guest_moves_there_and_back_and_only_its_pause_costs_frames() {
    let setup = Setup { guests: &[SQL], ..Setup::PLAIN };
    let mut last = None;
    with_guests("guest", &(APART.to_owned() + TENANTS), setup, |world, _, _| {
        there_and_back(&mut world.lab);
        last = world.lab.vm_record(SQL).unwrap().guest.clone();
    });
    // All of it ends with the lab.
    if let Some(last) = last {
        assert!(!last.process.runs() && !last.dir.exists());
    }
}

/// The tap is the agent's own, on the guest's host and nowhere else.
fn on_the_agents_tap(lab: &Lab, at: &str) {
    let tap = tap_name(&format!("{SQL}/eth0").parse().unwrap());
    for host in ["h1", "h2"] {
        let links = Links::in_netns(lab.host(host).unwrap().netns()).unwrap();
        let there = || links.find(&tap).unwrap();
        if host == at {
            let link = there().unwrap();
            assert_eq!(link.alias, Some(format!("tenet:{SQL}/eth0")), "{host}: {link:?}");
        } else {
            // Its agent removes it once QEMU has let go.
            until(&format!("no tap on {host}"), Duration::from_secs(10), || there().is_none().then_some(()));
        }
    }
}

fn there_and_back(lab: &mut Lab) {
    on_the_agents_tap(lab, "h1");

    // It is a guest, and the lab's commands reach into it.
    let said = lab.guest(SQL).unwrap().exec(["sh", "-c", "cat /proc/uptime; ip -6 addr; exit 3"]).unwrap();
    assert_eq!(said.code, 3);
    assert!(said.stdout().contains("fd00:1::11/64"), "{}", said.stdout());
    let patience = Duration::from_secs(20);
    for family in [Family::V4, Family::V6] {
        let (sql, far) = (lab.vm_record(SQL).unwrap(), lab.vm_record(FAR).unwrap());
        let (sql, far) = (sql.address_of(family).unwrap(), far.address_of(family).unwrap());
        assert_eq!(lab.ask_from(FAR, sql, patience).unwrap().as_deref(), Some(SQL), "{family:?}");
        assert_eq!(lab.ask_from(SQL, far, patience).unwrap().as_deref(), Some(FAR), "{family:?}");
    }
    let error = lab.vm(SQL).unwrap_err().to_string();
    assert!(error.contains("is a real guest"), "{error}");

    // Something that only this guest's memory holds.
    lab.guest(SQL).unwrap().exec(["sh", "-c", "echo remember >/tmp/memory"]).unwrap();
    let address = lab.vm_record(SQL).unwrap().address().unwrap();
    let far = lab.vm(FAR).unwrap().netns().clone();
    for (to, restless, asked) in ASKED {
        if restless {
            assert_eq!(lab.guest(SQL).unwrap().exec(["sh", "-c", RESTLESS]).unwrap().code, 0);
        }
        let old = lab.vm_record(SQL).unwrap().guest.clone().unwrap();
        let probe = Probe::start(&far, address, SQL, asked).unwrap();
        let stream = Stream::start(&far, address, PACE).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let moved = block_on(lab.migrate(SQL, to))
            .unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        // Late frames and retransmissions.
        std::thread::sleep(Duration::from_millis(1500));
        let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
        let pause = moved.pause.as_millis() as u64;
        println!("to {to}: pause {pause} ms, {probe:?}, {stream:?}, {:?}", moved.receipt);
        assert!(moved.receipt.moved, "{:?}", moved.receipt);
        let receipt = &moved.receipt;
        assert_eq!(receipt.through, Through::Qmp, "{receipt:?}");
        assert!(receipt.pause_us.is_some() && receipt.activated_by.is_some(), "{receipt:?}");
        // What came while the guest stood still waited for it on its new host.
        assert!(receipt.redirected > 0, "{receipt:?}");
        assert!(
            stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0,
            "TCP lost bytes: {stream:?}"
        );
        assert_eq!((probe.strangers, stream.peer.as_str()), (0, SQL));
        let fair = pause * u64::from(asked) / 1000 / 2 + EDGES;
        assert!(probe.lost <= fair, "{} lost in a pause of {pause} ms: {probe:?}", probe.lost);
        if restless {
            let writes = lab.guest(SQL).unwrap().exec(["sh", "-c", WRITES]).unwrap();
            assert_eq!(writes.code, 0, "it has written its memory all the time: {writes:?}");
        }
        assert!(!old.process.runs(), "the emptied QEMU is ended");
        assert_eq!(lab.vm_record(SQL).unwrap().host().unwrap().as_str(), to);
        block_on(lab.in_sync(patience)).unwrap();
        on_the_agents_tap(lab, to);
        let memory = lab.guest(SQL).unwrap().exec(["cat", "/tmp/memory"]).unwrap();
        assert_eq!(memory.stdout(), "remember\n");
    }
}
