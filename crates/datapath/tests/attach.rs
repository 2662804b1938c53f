//! Programs on real devices: attached, adopted, swapped under load, removed by others, taken off.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{Host, Pins, has, root};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use tenet_datapath::{Change, Datapath, Error, Hook, Role, detach_all};
use tenet_hostnet::Netns;

/// Runs a check for both hooks, each forced.
fn both(check: impl Fn(Hook)) {
    if !root() {
        return;
    }
    for hook in [Hook::Tcx, Hook::Clsact] {
        if has(hook) {
            check(hook);
        }
    }
}

fn seen(datapath: &Datapath, port: u32) -> u64 {
    datapath.drops().unwrap().iter().filter(|((ifindex, _), _)| *ifindex == port).map(|(_, n)| n).sum()
}

#[test]
fn an_attached_program_sees_every_frame() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        assert_eq!(datapath.hook(), hook);
        assert_eq!(host.run(|| datapath.attach_name("port", Role::Port)).unwrap(), Change::Created);
        host.send(100);
        assert_eq!(seen(&datapath, host.port), 100);
        datapath.clear_counters(host.port).unwrap();
        assert_eq!(seen(&datapath, host.port), 0);
        host.run(|| datapath.detach(host.port)).unwrap();
        host.send(100);
        assert_eq!(seen(&datapath, host.port), 0);
    });
}

#[test]
fn a_restarted_agent_adopts_what_is_there() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        host.run(|| datapath.attach(host.port, Role::Port)).unwrap();
        let before = host.run(|| datapath.attached()).unwrap();
        drop(datapath);
        host.send(10);
        let datapath = pins.open();
        assert_eq!(host.run(|| datapath.attach(host.port, Role::Port)).unwrap(), Change::Kept);
        assert_eq!(host.run(|| datapath.attached()).unwrap(), before);
        assert_eq!(before[0].hook(), hook);
        host.send(10);
        assert_eq!(seen(&datapath, host.port), 20, "frames were lost without an agent");
    });
}

/// The same object on other maps is another program to us, and tells where each frame went.
#[test]
fn no_frame_is_lost_while_programs_are_swapped() {
    const FRAMES: usize = 20_000;
    both(|hook| {
        let host = Host::new();
        let (a, b) = (Pins::new(&host.netns, hook), Pins::new(&host.netns, hook));
        let (one, two) = (a.open(), b.open());
        host.run(|| one.attach(host.port, Role::Port)).unwrap();
        let done = AtomicBool::new(false);
        let swaps = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                host.send(FRAMES);
                done.store(true, Ordering::Relaxed);
            });
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                let (from, to) = if swaps % 2 == 0 { (&one, &two) } else { (&two, &one) };
                if hook == Hook::Tcx {
                    let pin = format!("links/port-{}", host.port);
                    fs::rename(from.bpffs().join(&pin), to.bpffs().join(&pin)).unwrap();
                }
                let change = host.run(|| to.attach(host.port, Role::Port)).unwrap();
                assert_ne!(change, Change::Kept);
                swaps += 1;
            }
            sender.join().unwrap();
            swaps
        });
        assert_eq!(seen(&one, host.port) + seen(&two, host.port), FRAMES as u64, "after {swaps} swaps");
        assert!(swaps > 1, "too quick to tell");
    });
}

#[test]
fn another_version_is_swapped_in_place() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        // The uplink's program in the port's place stands for another version.
        if hook == Hook::Tcx {
            host.run(|| datapath.attach(host.port, Role::Uplink)).unwrap();
            let links = pins.options.bpffs.join("links");
            fs::rename(
                links.join(format!("uplink-{}", host.port)),
                links.join(format!("port-{}", host.port)),
            )
            .unwrap();
        } else {
            let name = format!("tenet port {}", pins.options.bpffs.display());
            host.links.ensure_clsact(host.port).unwrap();
            host.links.put_filter(host.port, 1, 0x7e01, &name, datapath.program_fd(Role::Uplink)).unwrap();
        }
        let wanted = [(host.port, Role::Port)];
        assert_eq!(host.run(|| datapath.verify_attached(&wanted)).unwrap(), []);
        assert_eq!(host.run(|| datapath.attach(host.port, Role::Port)).unwrap(), Change::Replaced);
        assert_eq!(host.run(|| datapath.verify_attached(&wanted)).unwrap().len(), 1);
        assert_eq!(host.run(|| datapath.attached()).unwrap().len(), 1);
    });
}

#[test]
fn a_program_removed_by_hand_is_noticed_and_put_back() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        let wanted = [(host.port, Role::Port), (host.port, Role::Uplink)];
        let there = || host.run(|| datapath.verify_attached(&wanted)).unwrap().len();
        for (ifindex, role) in wanted {
            host.run(|| datapath.attach(ifindex, role)).unwrap();
        }
        assert_eq!(there(), 2);
        if hook == Hook::Tcx {
            fs::remove_file(pins.options.bpffs.join(format!("links/port-{}", host.port))).unwrap();
        } else {
            host.links.delete_filter(host.port, 1, 0x7e01).unwrap();
        }
        assert_eq!(there(), 1);
        assert_eq!(host.run(|| datapath.attach(host.port, Role::Port)).unwrap(), Change::Created);
        assert_eq!(there(), 2);
    });
}

#[test]
fn a_new_device_with_an_old_number_is_not_taken_for_the_old_one() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        host.run(|| datapath.attach(host.port, Role::Port)).unwrap();
        host.links.delete_link("port").unwrap();
        assert_eq!(host.run(|| datapath.attached()).unwrap(), []);
        assert_eq!(host.run(|| datapath.verify_attached(&[(host.port, Role::Port)])).unwrap(), []);
        assert!(matches!(host.run(|| datapath.attach(host.port, Role::Port)), Err(Error::Net(_))));
        // Another namespace gives the same number to its first device.
        let other = Host::new();
        assert_eq!(other.port, host.port);
        assert_eq!(other.run(|| datapath.attach(other.port, Role::Port)).unwrap(), Change::Created);
        assert_eq!(other.run(|| datapath.attached()).unwrap().len(), 1);
        other.run(|| datapath.detach(other.port)).unwrap();
    });
}

#[test]
fn changing_the_hook_leaves_one_program() {
    if !root() || !has(Hook::Tcx) {
        return;
    }
    let host = Host::new();
    let mut pins = Pins::new(&host.netns, Hook::Clsact);
    for hook in [Hook::Clsact, Hook::Tcx, Hook::Clsact] {
        pins.options.hook = hook;
        let datapath = pins.open();
        host.run(|| datapath.attach(host.port, Role::Port)).unwrap();
        let attached = host.run(|| datapath.attached()).unwrap();
        assert_eq!(attached.iter().map(|a| a.hook()).collect::<Vec<_>>(), [hook]);
        assert_eq!(host.links.has_clsact(host.port).unwrap(), hook == Hook::Clsact);
    }
}

#[test]
fn what_is_not_ours_reaches_the_filters_of_others() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        host.run(|| datapath.attach(host.port, Role::Uplink)).unwrap();
        // The port's program counts what it drops, and so stands for a filter of somebody else.
        host.links.ensure_clsact(host.port).unwrap();
        host.links.put_filter(host.port, 50_000, 1, "somebody", datapath.program_fd(Role::Port)).unwrap();
        host.send(100);
        assert_eq!(seen(&datapath, host.port), 100);
    });
}

#[test]
fn an_ingress_qdisc_of_somebody_else_is_used_and_left() {
    if !root() {
        return;
    }
    let host = Host::new();
    let added = host.netns.command("tc").args(["qdisc", "add", "dev", "port", "ingress"]).status();
    if !added.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: needs tc, which makes the qdisc");
    }
    let pins = Pins::new(&host.netns, Hook::Clsact);
    let datapath = pins.open();
    assert_eq!(host.run(|| datapath.attach(host.port, Role::Port)).unwrap(), Change::Created);
    host.send(10);
    assert_eq!(seen(&datapath, host.port), 10);
    host.run(|| datapath.detach(host.port)).unwrap();
    assert_eq!(host.run(|| datapath.attached()).unwrap(), []);
    assert!(host.links.has_clsact(host.port).unwrap());
}

#[test]
fn a_second_agent_is_refused() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    assert!(matches!(pins.try_open(), Err(Error::Busy { .. })));
    assert!(matches!(detach_all(&pins.options), Err(Error::Busy { .. })));
    drop(datapath);
    pins.open();
}

#[test]
fn detaching_leaves_nothing_but_what_others_put() {
    both(|hook| {
        let host = Host::new();
        let pins = Pins::new(&host.netns, hook);
        let datapath = pins.open();
        host.links.add_bridge("uplink").unwrap();
        host.links.add_bridge("shared").unwrap();
        let (uplink, shared) = (host.links.index("uplink").unwrap(), host.links.index("shared").unwrap());
        host.links.ensure_clsact(shared).unwrap();
        host.links.put_filter(shared, 7, 7, "somebody", datapath.program_fd(Role::Port)).unwrap();
        for (ifindex, role) in [(host.port, Role::Port), (uplink, Role::Uplink), (shared, Role::Uplink)] {
            host.run(|| datapath.attach(ifindex, role)).unwrap();
        }
        drop(datapath);
        // An object that cannot be loaded must not hinder the way out.
        let mut options = pins.options.clone();
        options.object = Some("/nonexistent".into());
        let done = host.run(|| detach_all(&options)).unwrap();
        assert!(done.errors.is_empty(), "{:?}", done.errors);
        let expected = if hook == Hook::Tcx { (3, 0, 0) } else { (0, 3, 2) };
        assert_eq!((done.links, done.filters, done.qdiscs), expected);
        assert_eq!(done.maps, 15);
        assert!(!pins.options.bpffs.exists());
        for ifindex in [host.port, uplink] {
            assert!(!host.links.has_clsact(ifindex).unwrap());
        }
        let left = host.links.filters(shared, true).unwrap();
        assert_eq!(left.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["somebody"]);
        let again = host.run(|| detach_all(&options)).unwrap();
        assert!(again.errors.is_empty() && again.maps == 0);
    });
}

#[test]
fn the_check_finds_this_kernel_fit() {
    if !root() {
        return;
    }
    let features = tenet_datapath::check();
    for f in &features {
        eprintln!("{:28} {:5} {} ({})", f.name, f.ok, f.detail, f.needed_for);
    }
    assert!(features.iter().all(|f| f.ok || !f.required), "{features:?}");
}
