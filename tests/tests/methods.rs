//! Networks that change their method while their VMs talk.

use std::time::{Duration, Instant};
use tenet_model::{Family, Method};
use tenet_tests::{DUAL, Fixture, Load, Setup};

static OVER_V4: Fixture = Fixture::set_up("me4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("me6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";

/// All twenty changes from one method to another, as one walk from NVGRE back to NVGRE.
fn walk() -> Vec<Method> {
    let mut left: Vec<(Method, Method)> =
        Method::ALL.iter().flat_map(|a| Method::ALL.map(|b| (*a, b))).filter(|(a, b)| a != b).collect();
    // Hierholzer's: walks until stuck, then puts detours in where there are unused ways left.
    let (mut stack, mut walk) = (vec![Method::Nvgre], Vec::new());
    while let Some(at) = stack.last().copied() {
        match left.iter().position(|(from, _)| *from == at) {
            Some(n) => stack.push(left.swap_remove(n).1),
            None => walk.extend(stack.pop()),
        }
    }
    walk.reverse();
    walk
}

#[test]
fn the_walk_makes_each_change_once() {
    let walk = walk();
    let mut changes: Vec<_> = walk.windows(2).map(|w| (w[0], w[1])).collect();
    changes.sort();
    changes.dedup();
    assert_eq!((walk.len(), changes.len()), (21, 20));
    assert!(changes.iter().all(|(a, b)| a != b));
    assert_eq!((walk[0], walk[20]), (Method::Nvgre, Method::Nvgre));
}

#[test]
fn no_frame_is_lost_through_all_changes_of_method_over_ipv4() {
    through_all_changes(&OVER_V4);
}

#[test]
fn no_frame_is_lost_through_all_changes_of_method_over_ipv6() {
    through_all_changes(&OVER_V6);
}

/// A probe of 1 kHz and a TCP stream, in one subnet and between two, of either family.
fn through_all_changes(lab: &'static Fixture) {
    let Some(world) = lab.world() else { return };
    let pairs = [("contoso/sql", "contoso/web", Family::V4), ("contoso/log", "contoso/app", Family::V6)];
    let loads: Vec<Load> =
        pairs.iter().map(|(from, to, inside)| Load::start_in(&world, from, to, *inside)).collect();
    let wait = || loads[0].run(Duration::from_millis(50));
    wait();
    for change in walk().windows(2) {
        let begin = Instant::now();
        world.set_method(NETWORK, change[1]);
        println!("{} to {}: {} ms", change[0], change[1], begin.elapsed().as_millis());
        wait();
    }
    for load in loads {
        load.stop_without_loss();
    }
}
