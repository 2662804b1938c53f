//! Path MTUs, measured: what the provider network really carries to each of the other hosts.
//!
//! One type to know: [`Paths`], a state machine that is told of peers, answers and time, and says which probes to
//! send. A probe is a packet of an exact size that goes the way of the VMs' frames; the other agent answers with a
//! small one, so that each direction is measured by itself. What gets through is proof; what does not is only a
//! suspicion, which has to stand several tries, an answer to a small probe, and all of it a second time before a
//! value that held is lowered. A host that answers nothing at all says nothing of the path: what is known stays.
//!
//! Pure: no I/O and no clock. Must never send more than [`Settings::per_second`] probes, however many hosts there are.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// Smallest outer packet that is looked for: every IPv4 link of the last decades carries it.
pub const BASE: u16 = 576;
/// Answers that may still come are remembered for so long.
const MEMORY: Duration = Duration::from_secs(5);

/// How the measurement goes about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Between two looks whether a value still holds.
    pub confirm: Duration,
    /// Between two tries of the uplink's own MTU where the path carries less.
    pub upward: Duration,
    /// Between two full searches where the path carries less than the uplink.
    pub search: Duration,
    /// Most probes in a second, to all hosts together.
    pub per_second: u32,
    /// Probes of one size before it counts as lost.
    pub tries: u32,
    /// Shortest wait for an answer.
    pub patience: Duration,
    /// Longest pause between two tries of a silent host.
    pub silent: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            confirm: Duration::from_secs(5),
            upward: Duration::from_secs(15),
            search: Duration::from_secs(120),
            per_second: 100,
            tries: 4,
            patience: Duration::from_millis(200),
            silent: Duration::from_secs(20),
        }
    }
}

/// A probe to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// To this host.
    pub pa: IpAddr,
    /// Its mark, which the answer carries.
    pub id: u64,
    /// Size of the outer IP packet.
    pub size: u16,
    /// Place in the list of methods that the sender has.
    pub method: usize,
}

/// How far a path's measurement is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// The value holds.
    Measured,
    /// It is looked for.
    Searching,
    /// The host does not answer.
    Silent,
}

/// What is known of one path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathReport {
    /// The host.
    pub pa: IpAddr,
    /// Largest packet that got through, if known.
    pub mtu: Option<u16>,
    /// How far the measurement is.
    pub state: PathState,
    /// Round trip of the last answered probe.
    pub rtt: Option<Duration>,
    /// When the value was last confirmed.
    pub confirmed: Option<Duration>,
    /// Method by which the probes go.
    pub method: usize,
    /// Router that said that larger packets do not pass.
    pub limited_by: Option<IpAddr>,
}

/// What a path's probes are to find out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aim {
    /// Whether the uplink's MTU passes.
    Top,
    /// Whether the host answers at all, after the top did not pass.
    Base,
    /// Where between these the limit is: the first passed, the second did not.
    Search(u16, u16),
    /// Nothing for now.
    Rest,
    /// Whether the known value still passes.
    Confirm,
    /// Whether the host answers at all, after the known value did not pass.
    Alive,
    /// Whether the known value really is gone.
    Verify,
    /// Whether the uplink's MTU passes again.
    Up,
    /// Whether the host answers again.
    Silent,
}

#[derive(Clone, Debug)]
struct Path {
    aim: Aim,
    /// Probes sent for this aim (in a search: for this size).
    sent: u32,
    /// Their size.
    size: u16,
    /// When the next thing is to be done.
    due: Duration,
    known: Option<u16>,
    confirmed: Option<Duration>,
    rtt: Option<Duration>,
    method: usize,
    rounds: u32,
    next_up: Duration,
    next_search: Duration,
    hint: Option<(IpAddr, u16)>,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Paths {
    settings: Settings,
    top: u16,
    methods: usize,
    paths: BTreeMap<IpAddr, Path>,
    /// Probes under way: mark, host, size, when.
    open: VecDeque<(u64, IpAddr, u16, Duration)>,
    seed: u64,
    count: u64,
    /// Thousandths of a probe that may be sent now, and when that was so.
    tokens: u64,
    refilled: Duration,
    /// Whether [`Self::known`] changed since that was last asked.
    changed: bool,
    /// Whether a report changed since that was last asked.
    news: bool,
}

impl Paths {
    /// Nothing known; `seed` is a random number that nobody else knows, `methods` how many ways a probe can go.
    #[must_use]
    pub fn new(settings: Settings, seed: u64, methods: usize) -> Self {
        Self {
            settings,
            top: 0,
            methods: methods.max(1),
            paths: BTreeMap::new(),
            open: VecDeque::new(),
            seed,
            count: 0,
            tokens: 0,
            refilled: Duration::ZERO,
            changed: false,
            news: false,
        }
    }

    /// How many ways a probe can go from now on: the first so many of the sender's list.
    pub fn use_methods(&mut self, methods: usize) {
        self.methods = methods.max(1);
        for path in self.paths.values_mut().filter(|p| p.method >= methods) {
            path.method = 0;
        }
    }

    /// The hosts that there are now, and the uplink's MTU (0: there is no uplink, nothing is measured).
    pub fn expect(&mut self, now: Duration, peers: impl IntoIterator<Item = IpAddr>, uplink_mtu: u32) {
        let top = u16::try_from(uplink_mtu).unwrap_or(u16::MAX);
        let mut old = std::mem::take(&mut self.paths);
        for pa in peers {
            let path = old.remove(&pa).unwrap_or_else(|| {
                self.news = true;
                Path::new(now)
            });
            self.paths.insert(pa, path);
        }
        self.changed |= old.values().any(|p| p.known.is_some());
        self.news |= !old.is_empty();
        if self.top == top {
            return;
        }
        for path in self.paths.values_mut() {
            path.known = path.known.map(|k| k.min(top));
            path.turn(Aim::Top, now);
        }
        self.top = top;
        self.changed = true;
    }

    /// An answer came: its mark and who sent it. What is no answer to a probe of ours is ignored.
    pub fn answered(&mut self, now: Duration, pa: IpAddr, id: u64) {
        let Some(at) = self.open.iter().position(|(i, p, ..)| *i == id && *p == pa) else { return };
        let Some((_, _, size, sent)) = self.open.remove(at) else { return };
        let settings = self.pace();
        let Some(path) = self.paths.get_mut(&pa) else { return };
        let rtt = now.saturating_sub(sent);
        path.rtt = Some(path.rtt.map_or(rtt, |old| (old * 3 + rtt) / 4));
        let before = (path.known, state(path.aim));
        path.passed(now, size, self.top, &settings);
        self.changed |= before.0 != path.known;
        self.news |= before != (path.known, state(path.aim));
    }

    /// A router says that packets of more than `mtu` bytes to a host do not pass. Never believed, only looked into.
    pub fn hinted(&mut self, now: Duration, pa: IpAddr, mtu: u16, router: IpAddr) {
        let Some(path) = self.paths.get_mut(&pa) else { return };
        if mtu < BASE || mtu >= self.top {
            return;
        }
        self.news |= path.hint != Some((router, mtu));
        path.hint = Some((router, mtu));
        let fresh = path.confirmed.is_some_and(|c| now.saturating_sub(c) < Duration::from_millis(500));
        if path.aim == Aim::Rest && path.known.is_some_and(|k| k > mtu) && !fresh {
            path.turn(Aim::Confirm, now);
        }
    }

    /// The probes that are due.
    pub fn poll(&mut self, now: Duration) -> Vec<Probe> {
        let mut probes = Vec::new();
        if self.top < BASE {
            return probes;
        }
        self.refill(now);
        while self.open.front().is_some_and(|(.., at)| now.saturating_sub(*at) > MEMORY) {
            self.open.pop_front();
        }
        let settings = self.pace();
        let mut due: Vec<(Duration, IpAddr)> =
            self.paths.iter().filter(|(_, p)| p.due <= now).map(|(pa, p)| (p.due, *pa)).collect();
        due.sort_unstable();
        for (_, pa) in due {
            if self.tokens < 1000 {
                break;
            }
            let Some(path) = self.paths.get_mut(&pa) else { continue };
            let before = (path.known, state(path.aim));
            let size = path.next(now, self.top, self.methods, &settings);
            self.changed |= before.0 != path.known;
            self.news |= before != (path.known, state(path.aim));
            let Some(size) = size else { continue };
            path.sent += 1;
            path.due = now + path.patience(&settings);
            let method = path.method;
            self.tokens -= 1000;
            self.count += 1;
            let id = mix(self.seed.wrapping_add(self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            self.open.push_back((id, pa, size, now));
            probes.push(Probe { pa, id, size, method });
        }
        probes
    }

    /// When [`Self::poll`] has something to do next.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<Duration> {
        if self.top < BASE {
            return None;
        }
        let due = self.paths.values().map(|p| p.due).min()?;
        let token = 1000 / u64::from(self.settings.per_second.max(1));
        let ready = if self.tokens < 1000 { now + Duration::from_millis(token.max(1)) } else { now };
        Some(due.max(ready))
    }

    /// What each path carries, as far as known.
    #[must_use]
    pub fn known(&self) -> BTreeMap<IpAddr, u16> {
        self.paths.iter().filter_map(|(pa, p)| Some((*pa, p.known?))).collect()
    }

    /// Whether [`Self::known`] changed since this was last asked.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// Whether a report changed since this was last asked.
    pub const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.news, false)
    }

    /// All that is known.
    pub fn reports(&self) -> impl Iterator<Item = PathReport> {
        self.paths.iter().map(|(pa, p)| PathReport {
            pa: *pa,
            mtu: p.known,
            state: state(p.aim),
            rtt: p.rtt,
            confirmed: p.confirmed,
            method: p.method,
            limited_by: p.hint.filter(|(_, m)| p.known.is_some_and(|k| k <= *m)).map(|(router, _)| router),
        })
    }

    /// The settings, slowed down where there are so many hosts that the probes would not be enough.
    fn pace(&self) -> Settings {
        let share = Duration::from_millis(
            2000 * self.paths.len() as u64 / u64::from(self.settings.per_second.max(1)),
        );
        Settings {
            confirm: self.settings.confirm.max(share),
            upward: self.settings.upward.max(share * 3),
            search: self.settings.search.max(share * 24),
            silent: self.settings.silent.max(share),
            ..self.settings
        }
    }

    fn refill(&mut self, now: Duration) {
        let rate = u64::from(self.settings.per_second);
        let passed = u64::try_from(now.saturating_sub(self.refilled).as_millis()).unwrap_or(u64::MAX);
        // A burst of a fifth of a second.
        let most = (rate * 1000 / 5).max(1000);
        self.tokens = self.tokens.saturating_add(passed.saturating_mul(rate)).min(most);
        self.refilled = now;
    }
}

impl Path {
    const fn new(now: Duration) -> Self {
        Self {
            aim: Aim::Top,
            sent: 0,
            size: 0,
            due: now,
            known: None,
            confirmed: None,
            rtt: None,
            method: 0,
            rounds: 0,
            next_up: now,
            next_search: now,
            hint: None,
        }
    }

    const fn turn(&mut self, aim: Aim, due: Duration) {
        self.aim = aim;
        self.sent = 0;
        self.due = due;
    }

    /// Rests until the next look; each host at another moment.
    fn rest(&mut self, now: Duration, settings: &Settings) {
        let spread = mix(u64::try_from(now.as_nanos()).unwrap_or(0)) % 512;
        let pause = settings.confirm.mul_f64(0.75 + spread as f64 / 1024.0);
        self.rounds = 0;
        self.turn(Aim::Rest, now + pause);
    }

    fn patience(&self, settings: &Settings) -> Duration {
        self.rtt.map_or(settings.patience * 2, |rtt| rtt * 4).clamp(settings.patience, settings.patience * 10)
    }

    /// The size that the next probe shall have, after what was waited for in vain is drawn the conclusion from.
    fn next(&mut self, now: Duration, top: u16, methods: usize, settings: &Settings) -> Option<u16> {
        if self.aim == Aim::Rest {
            self.wake(now, top);
        }
        let tries = match self.aim {
            Aim::Up | Aim::Silent => 2,
            _ => settings.tries,
        };
        if self.sent >= tries {
            self.lost(now, top, methods, settings);
            if self.due > now {
                return None;
            }
        }
        if self.sent > 0 {
            return Some(self.size);
        }
        self.size = match self.aim {
            Aim::Top | Aim::Up => top,
            Aim::Base | Aim::Alive | Aim::Silent => BASE,
            Aim::Search(low, high) => self.between(low, high, top),
            Aim::Confirm | Aim::Verify => self.known.unwrap_or(top),
            Aim::Rest => return None,
        };
        Some(self.size)
    }

    fn wake(&mut self, now: Duration, top: u16) {
        let small = self.known.is_some_and(|k| k < top);
        let overdue = self.confirmed.is_none_or(|c| c < now.saturating_sub(Duration::from_secs(60)));
        let aim = if small && now >= self.next_up && !overdue { Aim::Up } else { Aim::Confirm };
        self.turn(aim, now);
    }

    /// The next size of a search: what a router said, what held before, all of the uplink's, else the middle.
    fn between(&self, low: u16, high: u16, top: u16) -> u16 {
        let said = self.hint.map(|(_, mtu)| mtu).into_iter().chain(self.known);
        let likely = said.flat_map(|v| [v, v.saturating_add(1)]).find(|v| *v > low && *v < high);
        likely.unwrap_or(if high > top && low < top { top } else { low + (high - low) / 2 })
    }

    /// A packet of this size got through.
    fn passed(&mut self, now: Duration, size: u16, top: u16, settings: &Settings) {
        if size > top {
            return;
        }
        match self.aim {
            Aim::Top | Aim::Up if size == top => self.found(now, top, settings),
            Aim::Confirm | Aim::Verify | Aim::Alive if self.known == Some(size) => {
                self.confirmed = Some(now);
                self.rest(now, settings);
            }
            Aim::Base if size == top => self.found(now, top, settings),
            // The top once more: that it did not pass may be because the host was not there yet.
            Aim::Base => self.turn(Aim::Search(size, top.saturating_add(1)), now),
            Aim::Search(low, high) if size >= high => {
                // What seemed lost was only late.
                if size == top {
                    self.found(now, top, settings);
                } else {
                    self.turn(Aim::Search(size.max(low), top), now);
                }
            }
            Aim::Search(low, high) if size > low => self.narrow(now, size, high, settings),
            // The host is there, the value that held is not: once more, to be sure.
            Aim::Alive => self.turn(Aim::Verify, now),
            Aim::Silent => {
                self.rounds = 0;
                self.turn(if self.known.is_some() { Aim::Confirm } else { Aim::Top }, now);
            }
            _ => {}
        }
    }

    /// All tries were lost.
    fn lost(&mut self, now: Duration, top: u16, methods: usize, settings: &Settings) {
        match self.aim {
            Aim::Top => self.turn(Aim::Base, now),
            Aim::Confirm => self.turn(Aim::Alive, now),
            Aim::Verify => {
                let failed = self.known.unwrap_or(top);
                self.turn(Aim::Search(BASE, failed.max(BASE + 1)), now);
            }
            Aim::Search(low, _) => self.narrow(now, low, self.size, settings),
            Aim::Up => {
                self.next_up = now + settings.upward;
                if now >= self.next_search
                    && let Some(known) = self.known
                {
                    self.next_search = now + settings.search;
                    self.turn(Aim::Search(known, top), now);
                    self.narrow(now, known, top, settings);
                } else {
                    self.rest(now, settings);
                }
            }
            Aim::Base | Aim::Alive | Aim::Silent => {
                self.method = (self.method + 1) % methods;
                let pause = Duration::from_millis(500) * 2u32.saturating_pow(self.rounds.min(8));
                // All methods get a turn before the pauses grow.
                if self.method == 0 {
                    self.rounds += 1;
                }
                self.turn(Aim::Silent, now + pause.min(settings.silent));
            }
            Aim::Rest => {}
        }
    }

    fn narrow(&mut self, now: Duration, low: u16, high: u16, settings: &Settings) {
        if high - low <= 1 {
            self.found(now, low, settings);
        } else {
            self.turn(Aim::Search(low, high), now);
        }
    }

    fn found(&mut self, now: Duration, value: u16, settings: &Settings) {
        if self.known != Some(value) {
            self.next_search = now + settings.search;
        }
        self.known = Some(value);
        self.confirmed = Some(now);
        self.next_up = now + settings.upward;
        self.hint = self.hint.filter(|(_, mtu)| value <= *mtu);
        self.rest(now, settings);
    }
}

const fn state(aim: Aim) -> PathState {
    match aim {
        Aim::Top | Aim::Base | Aim::Search(..) | Aim::Verify => PathState::Searching,
        Aim::Rest | Aim::Confirm | Aim::Alive | Aim::Up => PathState::Measured,
        Aim::Silent => PathState::Silent,
    }
}

/// A number that looks random, one for each input (the finalizer of splitmix64).
const fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
