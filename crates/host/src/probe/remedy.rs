//! What is done about an offload that the self-test found wrong: it is turned off, and tested again.

use super::{METHODS, Outcome, Shape};
use std::collections::{BTreeMap, BTreeSet};
use tenet_tables::{METHOD_NVGRE, METHOD_STT};

/// An offload of an uplink, by the name that `ethtool -k` has for it.
pub type Feature = &'static str;

/// The offloads that a method needs to be right for frames of a shape.
#[must_use]
pub const fn features(method: u8, shape: Shape) -> &'static [Feature] {
    match (shape, method) {
        (Shape::Plain, _) => &[],
        (Shape::Checksum, _) => &["tx-checksum-ip-generic"],
        (Shape::Segments, METHOD_NVGRE) => &["tx-gre-segmentation", "tx-gre-csum-segmentation"],
        // The kernel cuts the outer TCP; also the host's own, which is the price.
        (Shape::Segments, METHOD_STT) => &["tx-tcp-segmentation", "tx-tcp6-segmentation"],
        (Shape::Segments, _) => &["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"],
    }
}

/// How far an offload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tried {
    /// Turned off; nothing tested since.
    Waiting,
    /// Turned off, and that helped.
    Helps,
    /// Turned off in vain, and on again.
    InVain,
}

/// An offload to be turned off or on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Which.
    pub feature: Feature,
    /// How it shall be.
    pub on: bool,
}

/// What was turned off.
#[derive(Clone, Debug, Default)]
pub struct Remedies {
    tried: BTreeMap<Feature, Tried>,
    /// Methods by which frames came right only without an offload.
    because: BTreeMap<Feature, BTreeSet<&'static str>>,
}

impl Remedies {
    /// Judges a finished test. Methods that no network uses change nothing: an offload is turned off for a reason only.
    pub fn judge(&mut self, outcomes: &BTreeMap<u8, Outcome>, used: &BTreeSet<&str>) -> Vec<Turn> {
        let mut flawed: BTreeMap<Feature, BTreeSet<&'static str>> = BTreeMap::new();
        let mut right: BTreeSet<Feature> = BTreeSet::new();
        for (method, name) in METHODS.into_iter().filter(|(_, name)| used.contains(name)) {
            // What does not even arrive without offloads is no offload's fault.
            let Some(outcome) = outcomes.get(&method).filter(|o| o.flaw(Shape::Plain).is_none()) else {
                continue;
            };
            // A wrong checksum shows in segments, too: one thing at a time.
            let wrong = [Shape::Checksum, Shape::Segments].into_iter().find(|s| outcome.flaw(*s).is_some());
            for shape in [Shape::Checksum, Shape::Segments] {
                for feature in features(method, shape) {
                    if wrong == Some(shape) {
                        flawed.entry(feature).or_default().insert(name);
                    } else if wrong.is_none() {
                        right.insert(feature);
                    }
                }
            }
        }
        let mut turns = Vec::new();
        for (feature, names) in flawed {
            match self.tried.get(feature) {
                None => {
                    self.because.insert(feature, names);
                    self.tried.insert(feature, Tried::Waiting);
                    turns.push(Turn { feature, on: false });
                }
                // It is wrong without it, too: whatever is broken, it is not this.
                Some(Tried::Waiting | Tried::Helps) => {
                    self.tried.insert(feature, Tried::InVain);
                    turns.push(Turn { feature, on: true });
                }
                Some(Tried::InVain) => {}
            }
        }
        for feature in right {
            if let Some(tried) = self.tried.get_mut(feature).filter(|t| **t == Tried::Waiting) {
                *tried = Tried::Helps;
            }
        }
        turns
    }

    /// The offload was off already, or cannot be turned off here.
    pub fn cannot(&mut self, feature: Feature) {
        self.tried.insert(feature, Tried::InVain);
    }

    /// Offloads that are off because of us, with the methods that need it so.
    pub fn off(&self) -> impl Iterator<Item = (Feature, &BTreeSet<&'static str>)> {
        let off = self.tried.iter().filter(|(_, tried)| **tried == Tried::Helps);
        off.filter_map(|(feature, _)| Some((*feature, self.because.get(feature)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::*;
    use tenet_tables::{METHOD_GENEVE, METHOD_VXLAN};

    fn outcome(checksum: bool, segments: bool) -> Outcome {
        let seen = |good: bool| {
            let report = Report { bytes: 100, frames: 1, checksum: u32::from(!good), ..Report::default() };
            Some((100, report))
        };
        Outcome { seen: [seen(true), seen(checksum), seen(segments)] }
    }

    const GRE: [Turn; 2] = [
        Turn { feature: "tx-gre-csum-segmentation", on: false },
        Turn { feature: "tx-gre-segmentation", on: false },
    ];

    #[test]
    fn what_helps_stays_off_and_says_why() {
        let mut remedies = Remedies::default();
        let used = BTreeSet::from(["nvgre", "vxlan"]);
        let broken =
            BTreeMap::from([(METHOD_NVGRE, outcome(true, false)), (METHOD_VXLAN, outcome(true, true))]);
        assert_eq!(remedies.judge(&broken, &used), GRE);
        assert_eq!(remedies.off().count(), 0);
        let mended = BTreeMap::from([(METHOD_NVGRE, outcome(true, true))]);
        assert_eq!(remedies.judge(&mended, &used), []);
        let off: Vec<_> =
            remedies.off().map(|(f, names)| (f, names.iter().copied().collect::<Vec<_>>())).collect();
        assert_eq!(off, GRE.map(|t| (t.feature, vec!["nvgre"])));
    }

    #[test]
    fn what_does_not_help_is_turned_on_again_once() {
        let mut remedies = Remedies::default();
        let used = BTreeSet::from(["nvgre"]);
        let broken = BTreeMap::from([(METHOD_NVGRE, outcome(true, false))]);
        assert_eq!(remedies.judge(&broken, &used), GRE);
        assert_eq!(remedies.judge(&broken, &used), GRE.map(|t| Turn { on: true, ..t }));
        assert_eq!(remedies.judge(&broken, &used), []);
        assert_eq!(remedies.off().count(), 0);
    }

    #[test]
    fn checksums_come_before_segments_and_unused_methods_change_nothing() {
        let mut remedies = Remedies::default();
        let broken = BTreeMap::from([(METHOD_GENEVE, outcome(false, false))]);
        assert_eq!(remedies.judge(&broken, &BTreeSet::from(["vxlan"])), []);
        let turns = remedies.judge(&broken, &BTreeSet::from(["geneve"]));
        assert_eq!(turns, [Turn { feature: "tx-checksum-ip-generic", on: false }]);
        // Segments are looked at once the checksums are right.
        let turns = remedies
            .judge(&BTreeMap::from([(METHOD_GENEVE, outcome(true, false))]), &BTreeSet::from(["geneve"]));
        assert_eq!(
            turns.iter().map(|t| t.feature).collect::<Vec<_>>(),
            features(METHOD_VXLAN, Shape::Segments).iter().rev().copied().collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_never_arrives_is_no_offloads_fault() {
        let nothing = BTreeMap::from([(METHOD_NVGRE, Outcome::default())]);
        assert_eq!(Remedies::default().judge(&nothing, &BTreeSet::from(["nvgre"])), []);
    }
}
