//! What is done about an offload that the self-test found wrong: it is turned off, and tested again.

use super::{METHODS, Outcome, Shape};
use std::collections::{BTreeMap, BTreeSet};
use tenet_tables::{METHOD_NVGRE, METHOD_REWRITE, METHOD_STT};

/// An offload of an uplink, by the name that `ethtool -k` has for it.
pub type Feature = &'static str;

/// The offloads that a method needs to be right for frames of a shape.
#[must_use]
pub const fn features(method: u8, shape: Shape) -> &'static [Feature] {
    match (shape, method) {
        (Shape::Plain, _) => &[],
        // What has no tunnel around it a NIC may sum up by offloads of its own for either family.
        (Shape::Checksum, METHOD_REWRITE) => {
            &["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"]
        }
        (Shape::Checksum, _) => &["tx-checksum-ip-generic"],
        (Shape::Segments, METHOD_NVGRE) => &["tx-gre-segmentation", "tx-gre-csum-segmentation"],
        // The kernel cuts what is TCP on the wire; also the host's own, which is the price.
        (Shape::Segments, METHOD_STT | METHOD_REWRITE) => &["tx-tcp-segmentation", "tx-tcp6-segmentation"],
        (Shape::Segments, _) => &["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"],
    }
}

/// So many tests in a row must find fault before what was turned off in vain is tried once more: at two minutes
/// between tests, an hour. What hid that it helps (a lossy wire, say) may be over by then.
const ONCE_MORE: u8 = 30;

/// How far an offload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tried {
    /// Turned off; no test has ended well since.
    Waiting,
    /// Turned off, and that helped.
    Helps {
        /// The last test found fault again. One lost frame does that, on any network: alone it means nothing.
        doubtful: bool,
    },
    /// Turned off in vain, and on again; so many tests found fault since.
    InVain(u8),
    /// It was off already, or cannot be turned off here.
    Cannot,
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
                Some(Tried::Waiting) => {
                    self.tried.insert(feature, Tried::InVain(0));
                    turns.push(Turn { feature, on: true });
                }
                Some(Tried::Helps { doubtful: false }) => {
                    self.tried.insert(feature, Tried::Helps { doubtful: true });
                }
                // It stays off until the next test has the last word.
                Some(Tried::Helps { doubtful: true }) => {
                    self.tried.insert(feature, Tried::Waiting);
                }
                Some(Tried::InVain(tests)) if tests.saturating_add(1) < ONCE_MORE => {
                    self.tried.insert(feature, Tried::InVain(tests.saturating_add(1)));
                }
                Some(Tried::InVain(_)) => {
                    self.because.insert(feature, names);
                    self.tried.insert(feature, Tried::Waiting);
                    turns.push(Turn { feature, on: false });
                }
                Some(Tried::Cannot) => {}
            }
        }
        for feature in right {
            match self.tried.get(feature) {
                Some(Tried::Waiting | Tried::Helps { .. }) => {
                    self.tried.insert(feature, Tried::Helps { doubtful: false });
                }
                // Right with it on: whatever was wrong is over, and the next fault is a new one.
                Some(Tried::InVain(_)) => drop(self.tried.remove(feature)),
                Some(Tried::Cannot) | None => {}
            }
        }
        turns
    }

    /// An earlier run turned this off, because of these methods, and it still is; whether it is one of ours.
    pub fn resume<'a>(&mut self, feature: &str, methods: impl IntoIterator<Item = &'a str>) -> bool {
        let shapes = [Shape::Checksum, Shape::Segments];
        let all = METHODS.iter().flat_map(|(method, _)| shapes.map(|shape| features(*method, shape)));
        let Some(feature) = all.flatten().copied().find(|f| *f == feature) else { return false };
        let methods: BTreeSet<&str> = methods.into_iter().collect();
        let names = METHODS.into_iter().map(|(_, name)| name).filter(|name| methods.contains(name));
        self.because.insert(feature, names.collect());
        self.tried.insert(feature, Tried::Helps { doubtful: false });
        true
    }

    /// The methods because of which an offload was turned off.
    pub fn because(&self, feature: &str) -> impl Iterator<Item = &'static str> {
        self.because.get(feature).into_iter().flatten().copied()
    }

    /// The offload was off already, or cannot be turned off here.
    pub fn cannot(&mut self, feature: Feature) {
        self.tried.insert(feature, Tried::Cannot);
    }

    /// Offloads that are off because of us, with the methods that need it so.
    pub fn off(&self) -> impl Iterator<Item = (Feature, &BTreeSet<&'static str>)> {
        let off = self.tried.iter().filter(|(_, tried)| matches!(tried, Tried::Helps { .. }));
        off.filter_map(|(feature, _)| Some((*feature, self.because.get(feature)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::*;
    use tenet_tables::{METHOD_GENEVE, METHOD_REWRITE, METHOD_VXLAN};

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
    fn one_lost_frame_does_not_turn_a_broken_offload_on() {
        let mut remedies = Remedies::default();
        let used = BTreeSet::from(["nvgre"]);
        let broken = BTreeMap::from([(METHOD_NVGRE, outcome(true, false))]);
        let well = BTreeMap::from([(METHOD_NVGRE, outcome(true, true))]);
        assert_eq!(remedies.judge(&broken, &used), GRE);
        for _ in 0..3 {
            assert_eq!(remedies.judge(&well, &used), []);
            assert_eq!(remedies.judge(&broken, &used), []);
            assert_eq!(remedies.off().count(), 2, "still off, and still said so");
        }
        // Two in a row: in doubt, still off, and a good test clears it.
        assert_eq!(remedies.judge(&broken, &used), []);
        assert_eq!(remedies.off().count(), 0);
        assert_eq!(remedies.judge(&well, &used), []);
        assert_eq!(remedies.off().count(), 2);
        // Three in a row: it is not the offload, or not alone.
        assert_eq!(remedies.judge(&broken, &used), []);
        assert_eq!(remedies.judge(&broken, &used), []);
        assert_eq!(remedies.judge(&broken, &used), GRE.map(|t| Turn { on: true, ..t }));
    }

    #[test]
    fn what_was_in_vain_is_tried_again_after_a_good_test_or_a_long_time() {
        let mut remedies = Remedies::default();
        let used = BTreeSet::from(["nvgre"]);
        let broken = BTreeMap::from([(METHOD_NVGRE, outcome(true, false))]);
        let well = BTreeMap::from([(METHOD_NVGRE, outcome(true, true))]);
        let on = GRE.map(|t| Turn { on: true, ..t });
        for _ in 0..2 {
            assert_eq!(remedies.judge(&broken, &used), GRE);
            assert_eq!(remedies.judge(&broken, &used), on);
            assert_eq!(remedies.judge(&broken, &used), []);
            assert_eq!(remedies.judge(&well, &used), []);
        }
        assert_eq!(remedies.judge(&broken, &used), GRE);
        assert_eq!(remedies.judge(&broken, &used), on);
        for _ in 1..ONCE_MORE {
            assert_eq!(remedies.judge(&broken, &used), []);
        }
        assert_eq!(remedies.judge(&broken, &used), GRE);
        assert_eq!(remedies.judge(&well, &used), []);
        assert_eq!(remedies.off().count(), 2, "now it was seen to help");
        // What cannot be changed is left alone for good.
        let mut remedies = Remedies::default();
        GRE.iter().for_each(|t| remedies.cannot(t.feature));
        for _ in 0..=ONCE_MORE {
            assert_eq!(remedies.judge(&broken, &used), []);
        }
    }

    #[test]
    fn a_restarted_agent_knows_what_it_had_turned_off() {
        let mut remedies = Remedies::default();
        assert!(remedies.resume("tx-gre-segmentation", ["nvgre", "unheard-of"]));
        assert!(!remedies.resume("rx-all", ["nvgre"]), "never one of ours");
        let off: Vec<_> = remedies.off().map(|(f, names)| (f, names.len())).collect();
        assert_eq!(off, [("tx-gre-segmentation", 1)]);
        assert_eq!(remedies.because("tx-gre-segmentation").collect::<Vec<_>>(), ["nvgre"]);
        // It is judged on like any other: three bad tests in a row turn it on.
        let used = BTreeSet::from(["nvgre"]);
        let broken = BTreeMap::from([(METHOD_NVGRE, outcome(true, false))]);
        let turns: Vec<_> = (0..3).flat_map(|_| remedies.judge(&broken, &used)).collect();
        assert!(turns.contains(&Turn { feature: "tx-gre-segmentation", on: true }), "{turns:?}");
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
    fn what_rewrite_needs_is_the_hosts_own_tcp_offload() {
        let mut remedies = Remedies::default();
        let broken = BTreeMap::from([(METHOD_REWRITE, outcome(true, false))]);
        assert_eq!(remedies.judge(&broken, &BTreeSet::from(["nvgre"])), []);
        let turns = remedies.judge(&broken, &BTreeSet::from(["rewrite"]));
        let names: Vec<_> = turns.iter().map(|t| (t.feature, t.on)).collect();
        assert_eq!(names, [("tx-tcp-segmentation", false), ("tx-tcp6-segmentation", false)]);
        let mut remedies = Remedies::default();
        let broken = BTreeMap::from([(METHOD_REWRITE, outcome(false, true))]);
        let turns = remedies.judge(&broken, &BTreeSet::from(["rewrite"]));
        assert!(turns.iter().any(|t| t.feature == "tx-checksum-ipv4" && !t.on), "{turns:?}");
    }

    #[test]
    fn what_never_arrives_is_no_offloads_fault() {
        let nothing = BTreeMap::from([(METHOD_NVGRE, Outcome::default())]);
        assert_eq!(Remedies::default().judge(&nothing, &BTreeSet::from(["nvgre"])), []);
    }
}
