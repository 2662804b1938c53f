//! The measurement of paths over networks that lose, delay, shrink and heal.
#![expect(clippy::unwrap_used, reason = "a test ends there")]

use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::time::Duration;
use tenet_host::paths::{BASE, PathState, Paths, Settings};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Link {
    mtu: u16,
    rtt: Duration,
    /// Of probe and answer each, in percent.
    loss: u64,
    dead: bool,
    /// Whether a router says what it does not carry.
    talks: bool,
    /// Methods before this one are blocked.
    method: usize,
}

const GOOD: Link = Link { mtu: 1500, rtt: MS, loss: 0, dead: false, talks: false, method: 0 };

/// A network with a clock of its own.
struct World {
    paths: Paths,
    links: BTreeMap<IpAddr, Link>,
    now: Duration,
    /// Answers on their way: when (reversed, so that the first is on top), from whom, mark.
    answers: BinaryHeap<(std::cmp::Reverse<Duration>, IpAddr, u64)>,
    random: u64,
    sent: Vec<Duration>,
    changes: Vec<(Duration, BTreeMap<IpAddr, u16>)>,
}

const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 1));

impl World {
    fn new(links: impl IntoIterator<Item = (IpAddr, Link)>) -> Self {
        let mut paths = Paths::new(Settings::default(), 0x5eed, 4);
        let links: BTreeMap<IpAddr, Link> = links.into_iter().collect();
        paths.expect(Duration::ZERO, links.keys().copied(), 1500);
        let (now, answers) = (Duration::ZERO, BinaryHeap::new());
        Self { paths, links, now, answers, random: 1, sent: Vec::new(), changes: Vec::new() }
    }

    fn lost(&mut self, percent: u64) -> bool {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % 100 < percent
    }

    /// Lets time pass, until a condition holds at the latest; whether it does.
    fn until(&mut self, most: Duration, mut holds: impl FnMut(&Paths) -> bool) -> bool {
        let end = self.now + most;
        while !holds(&self.paths) {
            let poll = self.paths.next(self.now).map(|d| d.max(self.now + MS / 10));
            let answer = self.answers.peek().map(|(at, ..)| at.0);
            let Some(next) = poll.into_iter().chain(answer).min().filter(|n| *n <= end) else {
                self.now = end;
                return holds(&self.paths);
            };
            self.now = self.now.max(next);
            while let Some((_, pa, id)) = self.answers.pop_if_due(self.now) {
                self.paths.answered(self.now, pa, id);
            }
            for probe in self.paths.poll(self.now) {
                self.sent.push(self.now);
                let link = self.links[&probe.pa];
                if link.dead || probe.method < link.method || self.lost(link.loss) {
                    continue;
                }
                if probe.size > link.mtu {
                    if link.talks {
                        self.paths.hinted(self.now + link.rtt / 2, probe.pa, link.mtu, ROUTER);
                    }
                    continue;
                }
                if !self.lost(link.loss) {
                    self.answers.push((std::cmp::Reverse(self.now + link.rtt), probe.pa, probe.id));
                }
            }
            if self.paths.take_change() {
                self.changes.push((self.now, self.paths.known()));
            }
        }
        true
    }

    fn knows(&mut self, most: Duration, pa: IpAddr, mtu: u16) -> Duration {
        let begin = self.now;
        let found = self.until(most, |p| p.known().get(&pa) == Some(&mtu));
        assert!(found, "{pa} carries {mtu}: {:?}", self.paths.reports().find(|r| r.pa == pa));
        self.now - begin
    }

    fn state(&self, pa: IpAddr) -> PathState {
        self.paths.reports().find(|r| r.pa == pa).unwrap().state
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: Duration) -> Option<(std::cmp::Reverse<Duration>, IpAddr, u64)>;
}

impl PopIfDue for BinaryHeap<(std::cmp::Reverse<Duration>, IpAddr, u64)> {
    fn pop_if_due(&mut self, now: Duration) -> Option<(std::cmp::Reverse<Duration>, IpAddr, u64)> {
        if self.peek().is_some_and(|(at, ..)| at.0 <= now) { self.pop() } else { None }
    }
}

fn host(n: u16) -> IpAddr {
    let [a, b] = n.to_be_bytes();
    [10, 0, a, b].into()
}

#[test]
fn the_whole_mtu_is_known_after_one_answer() {
    let mut world = World::new([(host(1), GOOD)]);
    assert!(world.knows(SECOND, host(1), 1500) < 20 * MS);
    assert_eq!(world.sent.len(), 1);
    assert_eq!(world.state(host(1)), PathState::Measured);
}

#[test]
fn a_smaller_path_is_found_to_the_byte() {
    for mtu in [BASE, BASE + 1, 1279, 1280, 1399, 1400, 1450, 1499] {
        let mut world = World::new([(host(1), Link { mtu, ..GOOD })]);
        let silent = world.knows(15 * SECOND, host(1), mtu);
        let mut world = World::new([(host(1), Link { mtu, talks: true, ..GOOD })]);
        let told = world.knows(5 * SECOND, host(1), mtu);
        assert!(told <= silent, "{mtu}: {told:?} with a router that talks, {silent:?} without");
        assert_eq!(world.paths.reports().next().unwrap().limited_by, Some(ROUTER));
    }
}

#[test]
fn a_link_that_shrinks_is_noticed_within_seconds_and_one_that_heals_too() {
    for talks in [false, true] {
        let mut world = World::new([(host(1), GOOD), (host(2), GOOD)]);
        world.knows(SECOND, host(1), 1500);
        world.until(20 * SECOND, |_| false);
        world.links.insert(host(1), Link { mtu: 1400, talks, ..GOOD });
        let took = world.knows(20 * SECOND, host(1), 1400);
        assert!(took < if talks { 9 * SECOND } else { 14 * SECOND }, "{took:?}");
        assert_eq!(world.paths.known()[&host(2)], 1500);
        world.links.insert(host(1), GOOD);
        let took = world.knows(60 * SECOND, host(1), 1500);
        assert!(took < 25 * SECOND, "{took:?}");
        assert_eq!(world.paths.reports().next().unwrap().limited_by, None);
    }
}

#[test]
fn a_link_that_heals_in_part_is_found_by_and_by() {
    let mut world = World::new([(host(1), Link { mtu: 1300, ..GOOD })]);
    world.knows(15 * SECOND, host(1), 1300);
    world.links.insert(host(1), Link { mtu: 1450, ..GOOD });
    world.knows(200 * SECOND, host(1), 1450);
}

#[test]
fn loss_does_not_make_a_value_flap() {
    for loss in [2, 5, 10] {
        let mut world = World::new((1..=20).map(|n| (host(n), Link { loss, rtt: 20 * MS, ..GOOD })));
        world.until(60 * SECOND, |p| p.known().len() == 20 && p.known().values().all(|m| *m == 1500));
        let before = world.changes.len();
        // Twenty hosts for half an hour.
        world.until(1800 * SECOND, |_| false);
        assert_eq!(world.changes.len(), before, "{loss} %: {:?}", world.changes.last());
    }
}

#[test]
fn a_host_that_goes_silent_says_nothing_of_the_path() {
    let mut world =
        World::new([(host(1), Link { mtu: 1400, ..GOOD }), (host(2), Link { dead: true, ..GOOD })]);
    world.knows(15 * SECOND, host(1), 1400);
    assert_eq!(world.state(host(2)), PathState::Silent);
    assert_eq!(world.paths.known().get(&host(2)), None, "unknown, not small");
    world.links.insert(host(1), Link { dead: true, ..GOOD });
    assert!(world.until(60 * SECOND, |p| p.reports().next().unwrap().state == PathState::Silent));
    assert_eq!(world.paths.known()[&host(1)], 1400, "what was known stays");
    world.links.insert(host(1), GOOD);
    world.links.insert(host(2), GOOD);
    world.knows(60 * SECOND, host(1), 1500);
    world.knows(60 * SECOND, host(2), 1500);
}

#[test]
fn a_method_that_is_blocked_on_the_way_gives_way_to_the_next() {
    let mut world = World::new([(host(1), Link { method: 2, ..GOOD })]);
    world.knows(30 * SECOND, host(1), 1500);
    assert_eq!(world.paths.reports().next().unwrap().method, 2);
}

#[test]
fn a_method_that_is_for_some_networks_only_is_used_as_long_as_they_are_there() {
    let mut world = World::new([(host(1), Link { method: 4, ..GOOD })]);
    world.until(30 * SECOND, |_| false);
    assert_eq!(
        world.paths.reports().next().unwrap().state,
        PathState::Silent,
        "by the first four nothing comes"
    );
    world.paths.use_methods(5);
    world.knows(90 * SECOND, host(1), 1500);
    assert_eq!(world.paths.reports().next().unwrap().method, 4);
    world.paths.use_methods(4);
    world.until(150 * SECOND, |_| false);
    let report = world.paths.reports().next().unwrap();
    assert_eq!((report.state, report.mtu), (PathState::Silent, Some(1500)));
    assert!(report.method < 4);
}

#[test]
fn a_host_that_comes_in_the_middle_of_the_first_tries_is_not_held_narrow() {
    for late in [100, 300, 500, 900, 1500, 1700, 2500] {
        let mut world = World::new([(host(1), Link { dead: true, ..GOOD })]);
        world.until(late * MS, |_| false);
        world.links.insert(host(1), GOOD);
        world.until(30 * SECOND, |p| !p.known().is_empty());
        assert_eq!(world.paths.known().get(&host(1)), Some(&1500), "after {late} ms");
    }
}

#[test]
fn late_answers_count() {
    // Half a second is longer than what is waited for at first.
    let mut world = World::new([(host(1), Link { rtt: 500 * MS, ..GOOD })]);
    world.knows(5 * SECOND, host(1), 1500);
    let before = world.changes.len();
    world.until(300 * SECOND, |_| false);
    assert_eq!(world.changes.len(), before);
    assert_eq!(world.state(host(1)), PathState::Measured);
}

#[test]
fn another_uplink_mtu_is_measured_anew() {
    let mut world = World::new([(host(1), Link { mtu: 9000, ..GOOD })]);
    world.knows(SECOND, host(1), 1500);
    let now = world.now;
    world.paths.expect(now, [host(1)], 1400);
    assert_eq!(world.paths.known()[&host(1)], 1400, "at once: more cannot leave");
    world.paths.expect(now, [host(1)], 9000);
    world.knows(SECOND, host(1), 9000);
    world.paths.expect(now, [], 9000);
    assert!(world.paths.take_change());
    assert!(world.paths.known().is_empty());
}

#[test]
fn a_thousand_hosts_do_not_make_a_storm() {
    let mut world = World::new((0..1000).map(|n| (host(n), Link { rtt: 2 * MS, ..GOOD })));
    assert!(world.until(15 * SECOND, |p| p.known().len() == 1000), "{}", world.paths.known().len());
    world.until(300 * SECOND, |_| false);
    let seconds = world.now.as_secs() as usize;
    let mut per_second = vec![0u32; seconds + 2];
    for at in &world.sent {
        per_second[at.as_secs() as usize] += 1;
    }
    assert!(per_second.iter().all(|n| *n <= 125), "{:?}", per_second.iter().max());
    let confirmed = world.paths.reports().map(|r| world.now - r.confirmed.unwrap()).max().unwrap();
    assert!(confirmed < 45 * SECOND, "{confirmed:?}");
    assert!(world.paths.reports().all(|r| r.state == PathState::Measured));
}

#[test]
fn forged_answers_and_hints_change_nothing() {
    let mut world = World::new([(host(1), GOOD), (host(2), Link { mtu: 1400, ..GOOD })]);
    world.until(30 * SECOND, |p| p.known().len() == 2);
    let (now, known) = (world.now, world.paths.known());
    for id in 0..10_000 {
        world.paths.answered(now, host(2), id);
        world.paths.answered(now, host(77), id);
    }
    for mtu in [0, 68, BASE, 1000, 1499, 1500, 9000, u16::MAX] {
        world.paths.hinted(now, host(1), mtu, ROUTER);
        world.until(10 * SECOND, |_| false);
        assert_eq!(world.paths.known(), known, "{mtu}");
    }
}
