//! VMs move while they talk.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::{Duration, Instant};
use tenet_api::rest::{Migrate, ReceiptView};
use tenet_hostnet::Links;
use tenet_lab::tool::ask;
use tenet_tests::{Fixture, Load, Paused, THREE_HOSTS, World, block_on, check_moves, until};

static LAB: Fixture = Fixture::new("mig", THREE_HOSTS);

const PATIENCE: Duration = Duration::from_secs(15);
const SQL: &str = "contoso/sql";

/// Every test begins and ends with the VM on h1.
fn home(world: &mut World) {
    if world.host_of(SQL) != "h1" {
        world.migrate(SQL, "h1");
        world.in_sync();
    }
}

#[test]
fn moves_there_and_back_cost_only_the_vms_own_pause() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let askers = ["contoso/web", "contoso/log", "contoso/far", "contoso/app"];
    check_moves(&mut world, &askers, SQL, &["h2", "h1", "h2", "h3", "h1"]);
    tenet_tests::check_reach(&world);
}

#[test]
fn frames_of_a_host_that_has_not_heard_are_redirected() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let load = Load::start(&world, "contoso/far", SQL);
    load.run(Duration::from_millis(100));
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    let deaf = Paused::new(&world, "h3");
    let pause = moving.switch().unwrap();
    until("redirected frames", PATIENCE, || {
        (world.counters("h1", "contoso/sql/eth0").redirected > 100).then_some(())
    });
    drop(deaf);
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    world.in_sync();
    world.lives_on(SQL, "h2");
    let (probe, _) = load.stop();
    println!("{probe:?}, {:?}", moved.receipt);
    assert!(moved.receipt.redirected > 100, "{:?}", moved.receipt);
    assert!(moved.receipt.acks_us.contains_key(&"h3".parse().unwrap()), "{:?}", moved.receipt);
    assert!(probe.lost <= pause.as_millis() as u64 + 3, "{probe:?}");
    home(&mut world);
}

#[test]
fn second_migration_of_a_vm_is_refused_and_the_first_can_be_cancelled() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let load = Load::start(&world, "contoso/web", SQL);
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    let id = moving.migration.id;
    let vm = SQL.parse().unwrap();
    for to in ["h3", "h2", "h1"] {
        let again = Migrate {
            to: to.parse().unwrap(),
            devices: Default::default(),
            through: Default::default(),
            uri: None,
            post_copy: false,
        };
        let error = block_on(world.client.migrate(&vm, &again)).unwrap_err();
        println!("{error} / {}", error.hint());
        let all = format!("{:?}", error.api().unwrap());
        assert!(
            all.contains(SQL) && all.contains("already being moved") && !error.hint().is_empty(),
            "{all}"
        );
        // Where it is already is a second reason.
        if to != "h1" {
            assert_eq!(error.status(), Some(409), "{error}");
        }
    }
    assert_eq!(block_on(world.client.migrations()).unwrap().len(), 1);
    let receipt = block_on(world.client.migrate_cancel(&vm)).unwrap();
    assert!(receipt.id == id && !receipt.moved && receipt.reason.is_some(), "{receipt:?}");
    block_on(moving.give_up()).unwrap();
    until("no migration runs", PATIENCE, || {
        block_on(world.client.migrations()).unwrap().is_empty().then_some(())
    });
    world.in_sync();
    world.lives_on(SQL, "h1");
    let (probe, _) = load.stop();
    // Giving up puts the VM's old leg back, which costs a moment.
    assert!(probe.lost <= 50, "{probe:?}");
    let error = block_on(world.client.migrate_cancel(&vm)).unwrap_err();
    assert!(error.status().is_some_and(|s| s == 404 || s == 409), "nothing to cancel: {error}");
    let nowhere = Migrate {
        to: "h9".parse().unwrap(),
        devices: Default::default(),
        through: Default::default(),
        uri: None,
        post_copy: false,
    };
    let error = block_on(world.client.migrate(&vm, &nowhere)).unwrap_err();
    assert!(error.to_string().contains("h9"), "{error}");
}

#[test]
fn dead_destination_rolls_back_with_a_reason_and_costs_nothing() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let load = Load::start(&world, "contoso/far", SQL);
    world.lab.kill_agent("h2").unwrap();
    let begin = Instant::now();
    let error = block_on(world.lab.migrate(SQL, "h2")).unwrap_err();
    println!("after {:?}: {error}", begin.elapsed());
    until("no migration runs", PATIENCE, || {
        block_on(world.client.migrations()).unwrap().is_empty().then_some(())
    });
    let told = error.to_string() + &last_receipt(&world).and_then(|r| r.reason).unwrap_or_default();
    assert!(told.contains("h2"), "the reason names the host: {told}");
    load.run(Duration::from_millis(200));
    load.stop_without_loss();
    world.lab.start_agent("h2").unwrap();
    until("the agent is back", PATIENCE, || world.host_status("h2").connected.then_some(()));
    world.in_sync();
    world.lives_on(SQL, "h1");
    world.migrate(SQL, "h2");
    home(&mut world);
}

#[test]
fn dead_source_agent_does_not_keep_the_vm_from_moving() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let (far, web) = (Load::start(&world, "contoso/far", SQL), Load::start(&world, "contoso/web", SQL));
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    world.lab.kill_agent("h1").unwrap();
    let pause = moving.switch().unwrap();
    // The hosts whose agents live follow at once.
    let netns = world.lab.vm("contoso/web").unwrap().netns().clone();
    let answer = ask(&netns, IpAddr::V4(world.ip(SQL)), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some(SQL));
    until("the others' records", PATIENCE, || {
        let row = world
            .table("h3")
            .rows
            .into_iter()
            .find(|r| r.port.as_ref().is_some_and(|p| p.to_string() == "contoso/sql/eth0"))?;
        (row.pa == world.lab.host("h2").unwrap().record().pa).then_some(())
    });
    far.run(Duration::from_millis(300));
    world.lab.start_agent("h1").unwrap();
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    world.in_sync();
    world.lives_on(SQL, "h2");
    for load in [far, web] {
        let (probe, _) = load.stop();
        // The third host's frames were lost until it heard, as nobody was there to redirect them.
        assert!(probe.lost <= pause.as_millis() as u64 + 200, "{probe:?}");
    }
    tenet_tests::check_reach(&world);
    home(&mut world);
}

#[test]
fn controller_killed_between_prepare_and_switch_finishes_when_it_is_back() {
    let Some(mut world) = LAB.world() else { return };
    home(&mut world);
    let (far, web) = (Load::start(&world, "contoso/far", SQL), Load::start(&world, "contoso/log", SQL));
    let moving = block_on(world.lab.prepare_move(SQL, "h2")).unwrap();
    let redirected = |world: &World| world.metric("h1", "tenet_port_redirected_total", "contoso/sql/eth0");
    let before = redirected(&world);
    world.lab.kill_controller().unwrap();
    let pause = moving.switch().unwrap();
    // The lab's VM listens on its old leg until it is told that all is done. Here it must not: the source's agent
    // sees the carrier go (the kernel may hold that back for a second) and redirects without a word from anybody.
    let netns = world.lab.vm(SQL).unwrap().netns().clone();
    Links::in_netns(&netns).unwrap().set_down("eth0").unwrap();
    let after = until("frames follow without a controller", PATIENCE, || {
        let now = redirected(&world);
        (now > before + 100).then_some(now)
    });
    let answer =
        ask(world.lab.vm("contoso/app").unwrap().netns(), IpAddr::V4(world.ip(SQL)), PATIENCE).unwrap();
    assert_eq!(answer.as_deref(), Some(SQL));
    block_on(world.lab.start_controller()).unwrap();
    let moved = block_on(world.lab.finish_move(moving, pause)).unwrap();
    // What the old controller had measured is lost with it, so the receipt's figures are a lower bound.
    println!("{} redirected, {:?}", after - before, moved.receipt);
    assert!(moved.receipt.moved, "{:?}", moved.receipt);
    world.in_sync();
    world.lives_on(SQL, "h2");
    for load in [far, web] {
        let (probe, _) = load.stop();
        assert!(probe.lost <= pause.as_millis() as u64 + 1500, "{probe:?}");
    }
    home(&mut world);
}

fn last_receipt(world: &World) -> Option<ReceiptView> {
    block_on(world.client.receipts()).unwrap().pop()
}
