//! Which offloads of the uplinks this agent has turned off: kept over its restarts, and undone by `--detach`.

use crate::keep::Kept;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tenet_hostnet::Links;

const FILE: &str = "offloads.json";

/// By device and feature, the methods because of which it is off.
type Off = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The list of what is off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offloads(Kept<Off>);

impl Offloads {
    /// What an earlier run noted in the state directory.
    pub(crate) fn load(state_dir: &Path) -> Self {
        Self(Kept::load(state_dir.join(FILE), "offloads that were turned off"))
    }

    /// Device, feature and methods of each.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str, &BTreeSet<String>)> {
        self.0.list().iter().flat_map(|(device, features)| {
            features.iter().map(|(feature, methods)| (device.as_str(), feature.as_str(), methods))
        })
    }

    /// Notes one that is about to be turned off.
    pub(crate) fn note(&mut self, device: &str, feature: &str, methods: impl Iterator<Item = &'static str>) {
        self.0.change(|off| {
            let features = off.entry(device.to_owned()).or_default();
            features.insert(feature.to_owned(), methods.map(str::to_owned).collect());
            true
        });
    }

    /// It is on again, or no longer ours.
    pub(crate) fn forget(&mut self, device: &str, feature: &str) {
        self.0.change(|off| {
            let removed = off.get_mut(device).is_some_and(|features| features.remove(feature).is_some());
            off.retain(|_, features| !features.is_empty());
            removed
        });
    }
}

/// Turns on what an agent with this state directory had turned off: what is on again, as `DEVICE FEATURE`. What fails
/// stays noted.
pub(crate) fn restore(links: &Links, state_dir: &Path) -> (Vec<String>, Vec<tenet_hostnet::Error>) {
    let mut list = Offloads::load(state_dir);
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for (device, features) in list.0.list().clone() {
        for feature in features.keys() {
            match links.feature(&device, feature) {
                Ok(Some(false)) => match links.set_feature(&device, feature, true) {
                    Ok(true) => done.push(format!("{device} {feature}")),
                    // The driver says nothing and does nothing: there is nothing more to be tried.
                    Ok(false) => {}
                    Err(e) => {
                        errors.push(e);
                        continue;
                    }
                },
                // On by somebody else's hand.
                Ok(_) => {}
                // It may come back, with the offload as it was.
                Err(e) if e.is_missing() => continue,
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            }
            list.forget(&device, feature);
        }
    }
    (done, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};
    use tenet_hostnet::Netns;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tenet-offloads-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn what_is_off_outlives_the_agent() {
        let dir = folder("list");
        let mut list = Offloads::load(&dir);
        list.note("eth0", "tx-gre-segmentation", ["nvgre"].into_iter());
        list.note("eth1", "tx-checksum-ip-generic", ["vxlan", "geneve"].into_iter());
        list.forget("eth0", "never");
        let again = Offloads::load(&dir);
        let all: Vec<_> = again.all().map(|(d, f, m)| (d, f, m.len())).collect();
        assert_eq!(all, [("eth0", "tx-gre-segmentation", 1), ("eth1", "tx-checksum-ip-generic", 2)]);
        list.forget("eth0", "tx-gre-segmentation");
        assert_eq!(Offloads::load(&dir).all().count(), 1);
        fs::write(dir.join(FILE), "nonsense").unwrap();
        assert_eq!(Offloads::load(&dir).all().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_the_agent_turned_off_is_turned_on_and_nothing_else() {
        let (netns, links) = match Netns::anonymous().and_then(|n| Links::in_netns(&n).map(|l| (n, l))) {
            Ok(both) => both,
            Err(e) => return eprintln!("SKIPPED: needs root to create network namespaces: {e}"),
        };
        let dir = folder("restore");
        links.add_veth("up0", "up1", &netns).unwrap();
        let (ours, others) = ("tx-gre-segmentation", "tx-udp_tnl-segmentation");
        for feature in [ours, others] {
            assert!(links.set_feature("up0", feature, false).unwrap(), "{feature}");
        }
        let mut list = Offloads::load(&dir);
        list.note("up0", ours, ["nvgre"].into_iter());
        list.note("gone", ours, ["nvgre"].into_iter());
        let (done, errors) = restore(&links, &dir);
        assert_eq!((done, errors.len()), (vec![format!("up0 {ours}")], 0), "{errors:?}");
        assert_eq!(links.feature("up0", ours).unwrap(), Some(true));
        assert_eq!(links.feature("up0", others).unwrap(), Some(false), "somebody else's doing");
        let left: Vec<_> = Offloads::load(&dir).all().map(|(device, ..)| device.to_owned()).collect();
        assert_eq!(left, ["gone"], "it may come back");
        fs::remove_dir_all(&dir).unwrap();
    }
}
