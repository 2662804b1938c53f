//! Uplinks that take all multicast because of this host's IPv6 rewrite addresses.
//!
//! Who looks for a rewrite address on the provider network asks in the solicited-node group of that address
//! (RFC 4861 §4.3). The host has no such address, so nobody joined the group, and a NIC drops what is for groups that
//! nobody joined before any program sees it. There may be more addresses than a NIC can filter by; so it is told to take
//! all (`ALLMULTI`), which stays so while the agent is away, as forwarding does. Which of the uplinks it was that the
//! agent told so is kept over its restarts, and undone by `--detach`; what an administrator had set before stays his. One
//! that he sets later as well goes with the agent's: to the kernel both are the same bit (`gflags`).

use crate::keep::Kept;
use crate::kernel::Kernel;
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use tenet_hostnet::Links;

const FILE: &str = "multicast.json";
/// Another one at each start of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What this agent has told uplinks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Multicast {
    kept: Kept<Told>,
    /// Last failure of each device, so that a repeated one is told once.
    failures: BTreeMap<String, String>,
}

/// Uplinks that were told to take all multicast since the kernel started: it has forgotten what it was told before.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Told {
    boot: String,
    uplinks: BTreeSet<String>,
}

/// What is to be done about an uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// It is to take all; `again`: somebody has undone it.
    On { again: bool },
    /// It need not any more.
    Off,
    /// Somebody has undone what is not needed any more.
    Forget,
    /// It is as it should be, or an administrator's.
    Leave,
}

impl Multicast {
    /// What an earlier run noted in the state directory.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self::load_since(state_dir, boot.trim())
    }

    fn load_since(state_dir: &Path, boot: &str) -> Self {
        let mut kept: Kept<Told> = Kept::load(state_dir.join(FILE), "uplinks that take all multicast");
        if kept.list().boot != boot {
            let old = !kept.list().uplinks.is_empty();
            kept.change(|told| {
                *told = Told { boot: boot.to_owned(), uplinks: BTreeSet::new() };
                old
            });
        }
        Self { kept, failures: BTreeMap::new() }
    }

    fn ours(&self) -> &BTreeSet<String> {
        &self.kept.list().uplinks
    }

    /// Brings the uplinks in line with the ranges whose addresses neighbours may ask for; what somebody had undone, in
    /// plain words.
    pub(crate) fn settle(
        &mut self,
        kernel: &mut dyn Kernel,
        uplinks: &[String],
        asked_for: &BTreeSet<Ipv6Net>,
    ) -> Vec<String> {
        let mut again = Vec::new();
        if asked_for.is_empty() && self.ours().is_empty() {
            return again;
        }
        for device in uplinks.iter().chain(self.ours()).cloned().collect::<BTreeSet<_>>() {
            let wanted = if uplinks.contains(&device) {
                any(asked_for.iter().map(|range| kernel.is_on_link(&device, *range)))
            } else {
                Some(false)
            };
            // A device that is gone may come back.
            let Some(on) = kernel.all_multicast(&device) else { continue };
            match turn(wanted, on, self.ours().contains(&device)) {
                Turn::On { again: undone } => {
                    // Noted first: what is on and not noted would stay on for good.
                    self.note(&device);
                    match (self.set(kernel, &device, true), undone) {
                        (true, true) => {
                            again.push(format!("{device} took no other multicast any more: takes all again"));
                        }
                        (true, false) => {
                            let why = "neighbours ask for rewrite addresses";
                            tracing::info!(device, why, "takes all multicast");
                        }
                        (false, true) => {}
                        // An administrator who does it by hand does it for himself.
                        (false, false) => self.forget(&device),
                    }
                }
                Turn::Off => {
                    if self.set(kernel, &device, false) {
                        tracing::info!(device, "takes only the multicast of groups that were joined");
                        self.forget(&device);
                    }
                }
                Turn::Forget => self.forget(&device),
                Turn::Leave => {}
            }
        }
        again
    }

    fn set(&mut self, kernel: &mut dyn Kernel, device: &str, on: bool) -> bool {
        match kernel.set_all_multicast(device, on) {
            Ok(()) => {
                self.failures.remove(device);
                true
            }
            Err(cause) => {
                let cause = cause.to_string();
                if self.failures.get(device) != Some(&cause) {
                    tracing::error!(
                        device,
                        cause,
                        on,
                        "which multicast the uplink takes cannot be changed; IPv6 rewrite addresses need all of it: \
                         `ip link set {device} allmulticast on`"
                    );
                    self.failures.insert(device.to_owned(), cause);
                }
                false
            }
        }
    }

    fn note(&mut self, device: &str) {
        self.kept.change(|told| told.uplinks.insert(device.to_owned()));
    }

    fn forget(&mut self, device: &str) {
        self.kept.change(|told| told.uplinks.remove(device));
    }
}

/// Whether one of them is; none if none is that can be told, and of some it cannot.
fn any(answers: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut told = Some(false);
    for answer in answers {
        told = match (told, answer) {
            (Some(true), _) | (_, Some(true)) => return Some(true),
            (None, _) | (_, None) => None,
            (Some(false), Some(false)) => Some(false),
        };
    }
    told
}

/// `wanted`: whether neighbours may ask there for rewrite addresses, if that can be told; `on`: whether it takes all;
/// `ours`: whether this agent told it so.
const fn turn(wanted: Option<bool>, on: bool, ours: bool) -> Turn {
    match (wanted, on) {
        (Some(true), false) => Turn::On { again: ours },
        (Some(false), true) if ours => Turn::Off,
        (Some(false), false) if ours => Turn::Forget,
        (Some(true), true) | (Some(false), _) | (None, _) => Turn::Leave,
    }
}

/// Undoes what an agent with this state directory had set: the uplinks that no longer take all multicast. What fails
/// stays noted.
pub(crate) fn restore(links: &Links, state_dir: &Path) -> (Vec<String>, Vec<tenet_hostnet::Error>) {
    let mut list = Multicast::load(state_dir);
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for device in list.ours().clone() {
        match links.find(&device) {
            Ok(Some(link)) if link.all_multicast => match links.set_all_multicast(&device, false) {
                Ok(()) => done.push(device.clone()),
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            },
            Ok(Some(_)) => {}
            // It may come back, as it was.
            Ok(None) => continue,
            Err(e) => {
                errors.push(e);
                continue;
            }
        }
        list.forget(&device);
    }
    (done, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_undone_and_nothing_by_a_guess() {
        let (yes, no) = (Some(true), Some(false));
        for ours in [false, true] {
            assert_eq!(turn(yes, false, ours), Turn::On { again: ours });
            assert_eq!(turn(yes, true, ours), Turn::Leave, "on, by whomever");
            // A list of addresses that could not be read says nothing.
            assert_eq!((turn(None, true, ours), turn(None, false, ours)), (Turn::Leave, Turn::Leave));
        }
        assert_eq!((turn(no, true, true), turn(no, false, true)), (Turn::Off, Turn::Forget));
        assert_eq!((turn(no, true, false), turn(no, false, false)), (Turn::Leave, Turn::Leave));
        let any = |answers: &[Option<bool>]| any(answers.iter().copied());
        assert_eq!((any(&[]), any(&[no, no]), any(&[no, None])), (no, no, None));
        assert_eq!((any(&[None, yes]), any(&[yes, None, no])), (yes, yes));
    }

    #[test]
    fn what_was_told_before_the_kernel_started_is_nobodys() {
        let dir = std::env::temp_dir().join(format!("tenet-multicast-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let load = |boot| Multicast::load_since(&dir, boot).ours().iter().cloned().collect::<Vec<_>>();
        let mut first = Multicast::load_since(&dir, "first");
        first.note("eth0");
        assert_eq!(load("first"), ["eth0"]);
        // It takes all there as well: by an administrator's hand, then.
        assert_eq!(load("second"), [""; 0]);
        assert_eq!(load("first"), [""; 0], "for good");
        fs::remove_dir_all(&dir).unwrap();
    }
}
