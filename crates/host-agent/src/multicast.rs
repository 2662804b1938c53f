//! Uplinks that take all multicast because of this host's IPv6 rewrite addresses.
//!
//! Who looks for a rewrite address on the provider network asks in the solicited-node group of that address
//! (RFC 4861 §4.3). The host has no such address, so nobody joined the group, and a NIC drops what is for groups that
//! nobody joined before any program sees it. There may be more addresses than a NIC can filter by; so it is told to take
//! all (`ALLMULTI`), which stays so while the agent is away, as forwarding does. Which of the uplinks it was that the
//! agent told so is kept over its restarts, and undone by `--detach`; what an administrator had set stays his.

use crate::keep;
use crate::kernel::Kernel;
use ipnet::Ipv6Net;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use tenet_hostnet::Links;

const FILE: &str = "multicast.json";

/// The list of uplinks that this agent told to take all multicast.
#[derive(Clone, Debug, Default)]
pub(crate) struct Multicast {
    path: PathBuf,
    ours: BTreeSet<String>,
    /// Last failure of each device, so that a repeated one is told once.
    failures: BTreeMap<String, String>,
}

impl Multicast {
    /// What an earlier run noted in the state directory; what cannot be read is told and forgotten.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let ours = keep::load(&path).unwrap_or_else(|cause| {
            tracing::warn!(path = %path.display(), %cause, "the list of uplinks that take all multicast cannot be read");
            BTreeSet::new()
        });
        Self { path, ours, failures: BTreeMap::new() }
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
        if asked_for.is_empty() && self.ours.is_empty() {
            return again;
        }
        for device in uplinks.iter().chain(&self.ours).cloned().collect::<BTreeSet<_>>() {
            let wanted =
                uplinks.contains(&device) && asked_for.iter().any(|range| kernel.is_on_link(&device, *range));
            let ours = self.ours.contains(&device);
            // A device that is gone may come back.
            let Some(on) = kernel.all_multicast(&device) else { continue };
            match (wanted, on) {
                (true, false) => {
                    // Noted first: what is on and not noted would stay on for good.
                    self.note(&device);
                    if self.set(kernel, &device, true) {
                        if ours {
                            again.push(format!("{device} took no other multicast any more: takes all again"));
                        } else {
                            tracing::info!(
                                device,
                                "takes all multicast, for neighbours ask for rewrite addresses"
                            );
                        }
                    } else if !ours {
                        self.forget(&device);
                    }
                }
                (false, true) if ours => {
                    if self.set(kernel, &device, false) {
                        tracing::info!(device, "takes only the multicast of groups that were joined");
                        self.forget(&device);
                    }
                }
                (false, false) if ours => self.forget(&device),
                (true, true) | (false, _) => {}
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
        if self.ours.insert(device.to_owned()) {
            self.keep();
        }
    }

    fn forget(&mut self, device: &str) {
        if self.ours.remove(device) {
            self.keep();
        }
    }

    fn keep(&self) {
        if let Err(cause) = keep::save(&self.path, &self.ours) {
            tracing::error!(path = %self.path.display(), %cause, "which uplinks take all multicast cannot be kept on disk");
        }
    }
}

/// Undoes what an agent with this state directory had set: the uplinks that no longer take all multicast. What fails
/// stays noted.
pub(crate) fn restore(links: &Links, state_dir: &Path) -> (Vec<String>, Vec<tenet_hostnet::Error>) {
    let mut list = Multicast::load(state_dir);
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for device in list.ours.clone() {
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
