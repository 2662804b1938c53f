//! Who reaches whom in [`crate::SITE`] and sites like it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tenet_lab::{patience, tool::ask};

use crate::World;

/// How long an answer may take, and how long silence is listened to.
const ANSWER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);

/// Asks from every VM every address of the site: its own tenant's VM of that address must answer by its name, and
/// nobody if its tenant has none.
///
/// # Panics
/// With all that is not so.
pub fn check_reach(world: &World) {
    let vms = world.vms();
    let addresses: BTreeSet<Ipv4Addr> = vms.iter().map(|vm| world.ip(vm)).collect();
    let tenant = |vm: &str| vm.split('/').next().unwrap_or_default().to_owned();
    let owners: BTreeMap<(String, Ipv4Addr), String> =
        vms.iter().map(|vm| ((tenant(vm), world.ip(vm)), vm.clone())).collect();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let asked = vms.iter().map(|vm| {
            let netns = world.lab.vm(vm).unwrap().netns().clone();
            let (owners, addresses, own) = (&owners, &addresses, world.ip(vm));
            scope.spawn(move || {
                let mut wrong = Vec::new();
                for address in addresses.iter().filter(|a| **a != own) {
                    let expected = owners.get(&(tenant(vm), *address)).cloned();
                    let patience = if expected.is_some() { patience(ANSWER) } else { SILENCE };
                    let got = ask(&netns, IpAddr::V4(*address), patience).unwrap();
                    if got != expected {
                        wrong.push(format!("{vm} asked {address}: {got:?} answered, not {expected:?}"));
                    }
                }
                wrong
            })
        });
        let asked: Vec<_> = asked.collect();
        asked.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
