//! What fails while a VM moves, and what is to come of it: the table of `docs/migration.md`. More in `migrate.rs`.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use futures::TryStreamExt as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tenet_api::rest::{ChangeItem, ChangesRequest, EventLine, Migrate, MigrationView, Spec};
use tenet_hostnet::Links;
use tenet_lab::tool::ask;
use tenet_model::{ActivatedBy, Through};
use tenet_tests::frame::{self, Packet};
use tenet_tests::{Cut, Fixture, Load, Nic, Paused, THREE_HOSTS, World, block_on, until};
use tenet_wire::Mac;

static LAB: Fixture = Fixture::new("fau", THREE_HOSTS);

const PATIENCE: Duration = Duration::from_secs(20);
const SQL: &str = "contoso/sql";
const PORT: &str = "contoso/sql/eth0";
/// The kernel may hold back for a second that a device lost its carrier; by that the source sees that its VM is gone.
const CARRIER: u64 = 1500;

/// Every test begins and ends with the VM on h1.
fn home(world: &mut World) {
    if world.host_of(SQL) != "h1" {
        world.migrate(SQL, "h1");
        world.in_sync();
    }
}

fn running(world: &World) -> Option<MigrationView> {
    block_on(world.client.vm(&SQL.parse().unwrap())).unwrap().migration
}

/// Waits until a VM answers another by its name.
fn answers(world: &World, from: &str) {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let answer = ask(&netns, IpAddr::V4(world.ip(SQL)), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some(SQL), "asked from {from}");
}

/// Whether it is silent towards another for a while.
fn silent(world: &World, from: &str) -> bool {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    ask(&netns, IpAddr::V4(world.ip(SQL)), Duration::from_millis(500)).unwrap().is_none()
}

/// Takes the carrier off the VM's old leg, as a hypervisor does that ends its side of the VM.
fn unplug(world: &World) {
    Links::in_netns(world.lab.vm(SQL).unwrap().netns()).unwrap().set_down("eth0").unwrap();
}

fn back(world: &mut World, host: &str) {
    world.lab.start_agent(host).unwrap();
    until("the agent is back", PATIENCE, || world.host_status(host).connected.then_some(()));
}

/// The first event of a kind that a host sent, if there is one.
fn event(world: &World, host: &str, kind: &str) -> Option<EventLine> {
    let events: Vec<EventLine> =
        block_on(async { world.client.events(false).await?.try_collect().await }).unwrap();
    events.into_iter().find(|e| e.kind == kind && e.host.as_ref().is_some_and(|h| h.as_str() == host))
}

fn drops(world: &World, host: &str, port: &str, reason: &str) -> u64 {
    world.counters(host, port).drops.get(reason).copied().unwrap_or_default()
}

#[test]
fn destination_whose_agent_dies_once_prepared_takes_the_vm_and_reports_when_it_is_back() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let loads = ["contoso/far", "contoso/web", "contoso/log"].map(|from| Load::start(&world, from, SQL));
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    world.lab.kill_agent("h2").unwrap();
    let pause = moving.switch().unwrap();
    unplug(&world);
    // The programs on h2 let the VM speak; h1 sees it gone and sends on what still comes there.
    for from in ["contoso/far", "contoso/web", "contoso/log", "contoso/app"] {
        answers(&world, from);
    }
    assert_eq!(running(&world).unwrap().phase, "prepared", "nobody could tell the controller");
    back(&mut world, "h2");
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    println!("pause {pause:?}, {:?}", moved.receipt);
    assert!(moved.receipt.moved && moved.receipt.redirected > 0, "{:?}", moved.receipt);
    world.in_sync();
    world.lives_on(SQL, "h2");
    for load in loads {
        let (probe, _) = load.stop();
        assert!(probe.lost <= pause.as_millis() as u64 + CARRIER, "{probe:?}");
    }
    home(&mut world);
}

#[test]
fn destination_whose_agent_dies_after_the_switch_is_not_waited_for() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let loads = ["contoso/far", "contoso/log"].map(|from| Load::start(&world, from, SQL));
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    // Somebody who has not acknowledged keeps the migration from being done before the agent dies.
    let deaf = Paused::new(&world, "h3");
    let pause = moving.switch().unwrap();
    until("the switch is stored", PATIENCE, || {
        running(&world).is_some_and(|m| m.phase == "switched").then_some(())
    });
    world.lab.kill_agent("h2").unwrap();
    drop(deaf);
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    println!("pause {pause:?}, {:?}", moved.receipt);
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    answers(&world, "contoso/app");
    for load in loads {
        load.run(Duration::from_millis(200));
        let (probe, _) = load.stop();
        assert!(probe.lost <= pause.as_millis() as u64 + 5, "{probe:?}");
    }
    back(&mut world, "h2");
    world.in_sync();
    world.lives_on(SQL, "h2");
    home(&mut world);
}

#[test]
fn third_host_whose_agent_dies_before_the_switch_reaches_the_vm_by_way_of_the_source() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    world.lab.kill_agent("h3").unwrap();
    let pause = moving.switch().unwrap();
    unplug(&world);
    until("the switch is stored", PATIENCE, || {
        running(&world).is_some_and(|m| m.phase == "switched").then_some(())
    });
    // More than the five seconds that an end of the VM is waited for.
    let far = Load::start(&world, "contoso/far", SQL);
    answers(&world, "contoso/far");
    far.run(Duration::from_secs(7));
    assert_eq!(running(&world).unwrap().waiting_for, ["h3"], "the source sends on for it");
    back(&mut world, "h3");
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    println!("pause {pause:?}, {:?}", moved.receipt);
    assert!(moved.receipt.moved && moved.receipt.behind.is_empty(), "{:?}", moved.receipt);
    assert!(moved.receipt.redirected > 5000, "{:?}", moved.receipt);
    far.stop_without_loss();
    world.in_sync();
    home(&mut world);
}

#[test]
fn hosts_that_cannot_reach_each_other_do_not_keep_the_vm_from_the_others() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let far = Load::start(&world, "contoso/far", SQL);
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    let cut = Cut::new(&world, "h1", "h2");
    let pause = moving.switch().unwrap();
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    println!("pause {pause:?}, {:?}", moved.receipt);
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    world.in_sync();
    answers(&world, "contoso/far");
    answers(&world, "contoso/web");
    assert!(silent(&world, "contoso/log"), "there is no way from h1 to h2");
    drop(cut);
    answers(&world, "contoso/log");
    world.lives_on(SQL, "h2");
    let (probe, _) = far.stop();
    // What h1 would have sent on until h3 heard of the move is lost with the wire: some milliseconds.
    assert!(probe.lost <= pause.as_millis() as u64 + 200, "{probe:?}");
    home(&mut world);
}

#[test]
fn copy_that_was_left_behind_is_heard_by_nobody_and_told_to_be_quiet() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let web = Load::start(&world, "contoso/web", SQL);
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    // h1 hears of nothing any more; what runs there goes on as if the VM were its own.
    world.lab.kill_agent("h1").unwrap();
    let pause = moving.switch().unwrap();
    let id = moving.migration.id;
    until("the move is done without h1", PATIENCE, || {
        block_on(world.client.receipts()).unwrap().iter().any(|r| r.id == id && r.moved).then_some(())
    });
    let copy = world.nic(SQL);
    let far = world.nic("contoso/far");
    let ping = || Packet::echo(copy.ip, far.ip, 7, b"copy").frame(far.mac, copy.mac);
    let before = world.uplink_drops("h3", "wrong_pa");
    until("h3 refuses the copy's frames", PATIENCE, || {
        copy.send(&ping());
        (world.uplink_drops("h3", "wrong_pa") > before).then_some(())
    });
    let seen = event(&world, "h3", "moved_address").expect("h3 says so");
    assert!(seen.text.contains(&copy.ip.to_string()), "{seen:?}");
    assert!(event(&world, "h1", "superseded").is_none());

    back(&mut world, "h1");
    let told = until("h1 says that its copy is the older", PATIENCE, || event(&world, "h1", "superseded"));
    println!("{}", told.text);
    assert_eq!(told.port.as_deref(), Some(PORT));
    assert!(told.text.contains("it lives on host h2") && told.text.contains("generation"), "{}", told.text);
    world.in_sync();
    // And h1 lets it out no more: nothing of it comes to h3.
    let before = world.uplink_drops("h3", "wrong_pa");
    let watch = far.watch();
    for _ in 0..20 {
        copy.send(&ping());
    }
    answers(&world, "contoso/far");
    assert_eq!(world.uplink_drops("h3", "wrong_pa"), before);
    assert!(!watch.stop().iter().any(|f| f.windows(4).any(|w| w == b"copy")));

    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    let (probe, _) = web.stop();
    assert!(probe.lost <= pause.as_millis() as u64 + 5, "{probe:?}");
    world.lives_on(SQL, "h2");
    home(&mut world);
}

#[test]
fn guest_that_changes_its_mac_or_address_while_it_moves_gets_no_further_by_it() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let far = world.nic("contoso/far");
    let old = world.nic(SQL);
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    // The guest's NIC on the destination.
    let netns = world.lab.vm(SQL).unwrap().netns().clone();
    let new = Nic::open(&netns, SQL, "leg.0", old.mac, old.ip, old.gateway);
    let watch = far.watch();

    // On the source, before the switch.
    let strange_mac = Mac::new([2, 0, 0, 0xba, 0xd0, 1]);
    let strange_ca = Ipv4Addr::new(10, 1, 1, 99);
    let before = drops(&world, "h1", PORT, "spoofed_ca");
    old.send(&Packet::echo(strange_ca, far.ip, 9, b"strange").frame(far.mac, old.mac));
    until("the source refuses a foreign address", PATIENCE, || {
        (drops(&world, "h1", PORT, "spoofed_ca") > before).then_some(())
    });

    // A foreign MAC at the destination is not the VM: it activates nothing.
    new.send(&frame::arp(Mac::BROADCAST, strange_mac, true, (strange_mac, old.ip), (Mac::default(), far.ip)));
    new.send(&Packet::echo(old.ip, far.ip, 9, b"strange").frame(far.mac, strange_mac));
    until("the destination refuses a foreign MAC", PATIENCE, || {
        (drops(&world, "h2", PORT, "spoofed_mac") >= 2).then_some(())
    });
    assert_eq!(running(&world).unwrap().phase, "prepared");
    answers(&world, "contoso/far");

    // Its own MAC with a foreign address is the VM, but the frame goes nowhere.
    let pause = moving.switch().unwrap();
    new.send(&Packet::echo(strange_ca, far.ip, 9, b"strange").frame(far.mac, old.mac));
    until("the destination refuses a foreign address", PATIENCE, || {
        (drops(&world, "h2", PORT, "spoofed_ca") > 0).then_some(())
    });
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    world.in_sync();
    world.lives_on(SQL, "h2");
    answers(&world, "contoso/far");
    assert!(!watch.stop().iter().any(|f| f.windows(7).any(|w| w == b"strange")));
    home(&mut world);
}

#[test]
fn announcement_of_the_new_place_is_enough_to_switch() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let old = world.nic(SQL);
    let watch = world.nic("contoso/log").watch();
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    let netns = world.lab.vm(SQL).unwrap().netns().clone();
    let new = Nic::open(&netns, SQL, "leg.0", old.mac, old.ip, old.gateway);
    let before = drops(&world, "h2", PORT, "arp_suppressed");
    // What QEMU sends for a guest that it has just let run (`qemu_announce_self`): a RARP request (RFC 903), to all.
    let mac = old.mac.octets();
    let body = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &mac, &[0; 4], &mac, &[0; 22]].concat();
    new.send(&frame::ethernet(Mac::BROADCAST, old.mac, 0x8035, &body));
    until("the switch is stored", PATIENCE, || {
        running(&world).is_none_or(|m| m.phase == "switched").then_some(())
    });
    let pause = moving.switch().unwrap();
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    assert_eq!(moved.receipt.activated_by, Some(ActivatedBy::Frame), "{:?}", moved.receipt);
    world.lives_on(SQL, "h2");
    answers(&world, "contoso/far");
    // No other VM is to believe it: where a VM is, the table says.
    assert!(drops(&world, "h2", PORT, "arp_suppressed") > before);
    assert!(!watch.stop().iter().any(|f| f.get(12..14) == Some(&[0x80, 0x35])));
    home(&mut world);
}

#[test]
fn host_without_a_rewrite_pool_is_refused_before_anything_moves() {
    let Some(world) = LAB.world() else { return };
    let put = |objects: serde_json::Value| {
        let specs: Vec<Spec> = serde_json::from_value(objects).unwrap();
        let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
        block_on(world.client.changes(&ChangesRequest { changes, ..Default::default() })).unwrap();
    };
    put(serde_json::json!([
        {"kind": "host", "name": "h1", "pa": "192.168.1.10", "rewrite_pool": ["192.168.1.128/28"]},
        {"kind": "network", "name": "contoso/nat", "method": "rewrite"},
        {"kind": "subnet", "name": "contoso/nat/all", "prefix": "10.9.0.0/24"},
        {"kind": "vm", "name": "contoso/nat"},
        {"kind": "port", "name": "contoso/nat/eth0", "subnet": "contoso/nat/all", "host": "h1", "device": "nat0"},
    ]));
    let vm = "contoso/nat".parse().unwrap();
    let to_h2 = to("h2");
    let error = block_on(world.client.migrate(&vm, &to_h2)).unwrap_err();
    let all = format!("{error} / {:?}", error.api());
    println!("{all}");
    assert_eq!(error.status(), Some(422), "{all}");
    assert!(all.contains("host h2 has no IPv4 rewrite pool") && all.contains("tenet host set h2"), "{all}");
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    block_on(world.client.delete_vm(&vm)).unwrap();
    block_on(world.client.delete_subnet(&"contoso/nat/all".parse().unwrap())).unwrap();
    block_on(world.client.delete_network(&"contoso/nat".parse().unwrap())).unwrap();
    put(serde_json::json!([{"kind": "host", "name": "h1", "pa": "192.168.1.10", "rewrite_pool": []}]));
    world.in_sync();
}

#[test]
fn host_with_a_smaller_mtu_is_refused_before_anything_moves() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let load = Load::start(&world, "contoso/far", SQL);
    world.lab.set_uplink_mtu("h2", 1400).unwrap();
    let vm = SQL.parse().unwrap();
    // The controller hears of the MTU from the agent; until then the move would be taken up.
    let error =
        until("the move is refused", PATIENCE, || match block_on(world.client.migrate(&vm, &to("h2"))) {
            Ok(_) => {
                _ = block_on(world.client.migrate_cancel(&vm));
                None
            }
            Err(e) => Some(e),
        });
    let all = format!("{error} / {}", error.hint());
    println!("{all}");
    assert!(all.contains("h2") && all.contains("1400") && all.contains(PORT), "{all}");
    assert!(block_on(world.client.migrations()).unwrap().is_empty());
    world.lab.set_uplink_mtu("h2", 1500).unwrap();
    world.in_sync();
    load.stop_without_loss();
    world.lives_on(SQL, "h1");
    until("the move is taken up again", PATIENCE, || block_on(world.lab.migrate(SQL, "h2")).ok());
    home(&mut world);
}

fn to(host: &str) -> Migrate {
    let (to, devices) = (host.parse().unwrap(), std::collections::BTreeMap::new());
    Migrate { to, devices, through: Through::SwitchOnly, uri: None, post_copy: false }
}
