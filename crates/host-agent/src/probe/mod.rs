//! The agent's probes: paths measured, offloads tested, others' probes answered. All leave by one tap and come to it,
//! but for those by IP Rewrite, which come by [`wire`]. Decisions are [`tenet_host::paths`]' and
//! [`tenet_host::probe`]'s.

mod hints;
mod overheard;
mod report;
mod tap;
mod wire;

use hints::Hints;
use overheard::Overheard;
pub(crate) use report::methods_in_use;
use tap::Tap;
pub(crate) use tap::{never_block, open as open_tap};

use rand::Rng as _;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tenet_compile::Rows;
use tenet_host::paths::{PathState, Paths, Settings};
use tenet_host::probe::{
    Burst, Bursts, Content, Frame, METHODS, Outcome, Seen, Shape, Streams, TUNNELS, VnetHeader, content,
    offloaded, own, parse, peers, segment, write, write_tcp,
};
use tenet_model::Name;
use tenet_tables::METHOD_REWRITE;
use tokio::io::unix::AsyncFd;

/// Frames of the tap that are looked at in one go.
const AT_ONCE: usize = 256;
/// Answers to others in a second, and in one burst.
const ANSWERS: u64 = 1000;
const ANSWER_BURST: u64 = 300;
/// Between two tests of the offloads.
const TEST_EVERY: Duration = Duration::from_secs(3600);
/// The same where something was wrong.
const TEST_AGAIN: Duration = Duration::from_secs(120);

/// Figures for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Probes sent.
    pub(crate) sent: u64,
    /// Probes of others that were answered.
    pub(crate) answered: u64,
    /// Frames at the tap that were no probes, or too many.
    pub(crate) ignored: u64,
}

/// What the offload self-test found.
#[derive(Clone, Debug)]
pub(crate) struct Tested {
    pub(crate) peer: Name,
    pub(crate) outcomes: BTreeMap<u8, Outcome>,
}

/// All of it.
pub(crate) struct Prober {
    tap: Option<Tap>,
    tap_ready: Option<AsyncFd<OwnedFd>>,
    hints: Option<Hints>,
    hints_ready: Option<AsyncFd<OwnedFd>>,
    wire: Overheard,
    /// Why there is no tap, as last told.
    failure: Option<String>,
    pub(crate) paths: Paths,
    streams: Streams,
    bursts: Option<Bursts>,
    pub(crate) tested: Option<Tested>,
    test_at: Duration,
    pub(crate) own: Option<IpAddr>,
    pub(crate) names: BTreeMap<IpAddr, Name>,
    uplink_mtu: u32,
    tokens: u64,
    refilled: Duration,
    more: bool,
    pub(crate) figures: Figures,
    /// Whether a test ended since this was last asked.
    news: bool,
    /// The same, for what is done about it.
    unjudged: bool,
}

impl Prober {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            tap: None,
            tap_ready: None,
            hints: None,
            hints_ready: None,
            wire: Overheard::default(),
            failure: None,
            paths: Paths::new(settings, rand::rng().random(), TUNNELS),
            streams: Streams::default(),
            bursts: None,
            tested: None,
            test_at: Duration::ZERO,
            own: None,
            names: BTreeMap::new(),
            uplink_mtu: 0,
            tokens: ANSWER_BURST * 1000,
            refilled: Duration::ZERO,
            more: false,
            figures: Figures::default(),
            news: false,
            unjudged: false,
        }
    }

    /// Takes a tap that was opened, or why none was; told once.
    pub(crate) fn take_tap(&mut self, tap: Result<OwnedFd, String>) {
        let opened = tap.and_then(|fd| {
            let tap = Tap::new(fd);
            let fd = tap.readable().map_err(|e| e.to_string())?;
            Ok((tap, crate::wait::register(fd).map_err(|e| e.to_string())?))
        });
        match opened {
            Ok((tap, ready)) => {
                (self.tap, self.tap_ready, self.failure) = (Some(tap), Some(ready), None);
            }
            Err(cause) => {
                if self.failure.as_ref() != Some(&cause) {
                    tracing::warn!(
                        cause,
                        "no tap for probes: paths are not measured, the uplink's MTU is used"
                    );
                }
                (self.tap, self.tap_ready, self.failure) = (None, None, Some(cause));
            }
        }
    }

    /// Whether there is a tap that can be used.
    pub(crate) const fn has_tap(&self) -> bool {
        self.tap.is_some()
    }

    pub(crate) const fn tap_ready(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.tap_ready.as_ref()
    }

    pub(crate) const fn hints_ready(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.hints_ready.as_ref()
    }

    pub(crate) fn wire_ready(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.wire.ready()
    }

    /// The hosts and the uplinks may have changed; those are `uplinks` by number, with `uplink_mtu` for all.
    pub(crate) fn expect(&mut self, now: Duration, rows: Option<&Rows>, uplink_mtu: u32, uplinks: &[u32]) {
        let Some(rows) = rows else { return };
        if self.tap.is_none() {
            return;
        }
        self.own = own(rows);
        self.names = peers(rows)
            .filter(|(_, pa)| self.own.is_some_and(|o| o.is_ipv4() == pa.is_ipv4()))
            .map(|(name, pa)| (pa, name.clone()))
            .collect();
        if self.uplink_mtu != uplink_mtu {
            self.uplink_mtu = uplink_mtu;
            self.test_at = now;
        }
        // That plain packets arrive says nothing of tunnels: it counts only for those who need no tunnel.
        let plain = methods_in_use(rows).contains("rewrite");
        self.paths.use_methods(if plain { METHODS.len() } else { TUNNELS });
        self.paths.expect(now, self.names.keys().copied(), uplink_mtu);
        if self.hints.is_none()
            && let Some(own) = self.own
        {
            self.listen(own.is_ipv6());
        }
        if let Some(own) = self.own {
            self.wire.listen(own, uplinks);
        }
    }

    /// Without these it goes slower, no worse.
    fn listen(&mut self, six: bool) {
        let opened = Hints::open(six).and_then(|h| {
            let ready = crate::wait::register(h.readable()?)?;
            Ok((h, ready))
        });
        match opened {
            Ok((hints, ready)) => (self.hints, self.hints_ready) = (Some(hints), Some(ready)),
            Err(cause) => tracing::debug!(%cause, "routers' errors are not heard"),
        }
    }

    /// Whether a report changed since this was last asked.
    pub(crate) const fn take_news(&mut self) -> bool {
        // Both are taken.
        let tested = std::mem::replace(&mut self.news, false);
        self.paths.take_news() || tested
    }

    /// The result of a test that ended since this was last asked.
    pub(crate) fn take_tested(&mut self) -> Option<&Tested> {
        std::mem::replace(&mut self.unjudged, false).then_some(self.tested.as_ref()).flatten()
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn next(&self, now: Duration) -> Option<Duration> {
        self.tap.as_ref()?;
        if self.more {
            return Some(now);
        }
        let test = match &self.bursts {
            Some(bursts) => bursts.next(now),
            None => self.test_peer().map(|_| self.test_at),
        };
        self.paths.next(now).into_iter().chain(test).chain(self.wire.paused()).min()
    }

    /// Sends what is due.
    pub(crate) fn poll(&mut self, now: Duration) {
        if self.more {
            self.receive(now);
        }
        if self.wire.paused().is_some_and(|until| now >= until) {
            self.overhear(now);
        }
        let Some(own) = self.own else { return };
        for probe in self.paths.poll(now) {
            let method = METHODS[probe.method % METHODS.len()].0;
            let content = Content::Probe { id: probe.id, size: probe.size };
            self.figures.sent += 1;
            self.send(&VnetHeader::default(), &write(&Frame { src: own, dst: probe.pa, method, content }));
        }
        self.test(now, own);
    }

    /// A host that answers, to test the offloads against.
    fn test_peer(&self) -> Option<(IpAddr, u16)> {
        self.paths.reports().filter(|r| r.state == PathState::Measured).find_map(|r| Some((r.pa, r.mtu?)))
    }

    /// Offloads were changed: the test's result is an old one.
    pub(crate) fn test_again(&mut self, now: Duration) {
        (self.bursts, self.test_at) = (None, now);
    }

    fn test(&mut self, now: Duration, own: IpAddr) {
        if self.bursts.is_none() && now >= self.test_at {
            let Some((peer, mtu)) = self.test_peer() else { return };
            let segments = METHODS.map(|(method, _)| segment(mtu, method, peer));
            self.bursts = Some(Bursts::new(peer, segments, rand::rng().random()));
        }
        let Some(bursts) = &mut self.bursts else { return };
        let peer = bursts.peer();
        let todo = bursts.poll(now);
        if bursts.done() {
            self.finish(now);
            return;
        }
        match todo {
            Some(Burst::Ask { method, id, stream }) => {
                let frame = Frame { src: own, dst: peer, method, content: Content::Ask { id, stream } };
                self.send(&VnetHeader::default(), &write(&frame));
            }
            Some(Burst::Frames { method, shape, stream, frames, length }) => {
                let mss = METHODS
                    .iter()
                    .position(|(m, _)| *m == method)
                    .map(|_| segment(self.path_mtu(peer), method, peer));
                let header = match shape {
                    Shape::Plain => VnetHeader::default(),
                    Shape::Checksum => offloaded(peer, None),
                    Shape::Segments => offloaded(peer, mss),
                };
                for offset in (0..frames).map(|n| n * length) {
                    let payload = content(stream, offset, length);
                    let plain = shape == Shape::Plain;
                    self.send(&header, &write_tcp((own, peer, method), stream, offset, &payload, plain));
                }
            }
            None => {}
        }
    }

    fn path_mtu(&self, pa: IpAddr) -> u16 {
        let measured = self.paths.reports().find(|r| r.pa == pa).and_then(|r| r.mtu);
        measured.unwrap_or_else(|| u16::try_from(self.uplink_mtu).unwrap_or(u16::MAX))
    }

    fn finish(&mut self, now: Duration) {
        let Some(bursts) = self.bursts.take() else { return };
        let Some(peer) = self.names.get(&bursts.peer()).cloned() else {
            self.test_at = now + TEST_AGAIN;
            return;
        };
        let tested = Tested { peer, outcomes: bursts.outcomes().clone() };
        let flawed = tested.outcomes.values().any(|o| Shape::ALL.iter().any(|s| o.flaw(*s).is_some()));
        self.test_at = now + if flawed { TEST_AGAIN } else { TEST_EVERY };
        self.tested = Some(tested);
        (self.news, self.unjudged) = (true, true);
    }

    /// Takes the frames at the tap.
    pub(crate) fn receive(&mut self, now: Duration) {
        self.refill(now);
        self.more = false;
        for n in 0..=AT_ONCE {
            if n == AT_ONCE {
                self.more = true;
                return;
            }
            let Some(tap) = &mut self.tap else { return };
            let answer = match tap.receive() {
                Ok(Some((header, frame))) => {
                    let Some(seen) = parse(&header, frame) else {
                        self.figures.ignored += 1;
                        continue;
                    };
                    match seen {
                        Seen::Data { src, stream, offset, payload, good, unfinished } => {
                            self.streams.piece((src, stream), offset, payload, good, unfinished);
                            continue;
                        }
                        Seen::Message(frame) => frame,
                    }
                }
                Ok(None) => return,
                Err(cause) => {
                    // The device is gone; the next compare makes another.
                    self.take_tap(Err(format!("the tap cannot be read: {cause}")));
                    return;
                }
            };
            self.heard(now, answer);
        }
    }

    /// Takes the probes by IP Rewrite: anybody on the provider network can send such, so that they must come from a host.
    pub(crate) fn overhear(&mut self, now: Duration) {
        self.refill(now);
        let mut messages = Vec::new();
        let Self { wire, names, streams, figures, .. } = self;
        wire.take(now, |header, frame| match parse(&header, frame) {
            Some(Seen::Data { src, stream, offset, payload, good, unfinished })
                if names.contains_key(&src) =>
            {
                streams.piece((src, stream), offset, payload, good, unfinished);
            }
            Some(Seen::Message(frame))
                if frame.method == METHOD_REWRITE && names.contains_key(&frame.src) =>
            {
                messages.push(frame);
            }
            _ => figures.ignored += 1,
        });
        for message in messages {
            self.heard(now, message);
        }
    }

    fn heard(&mut self, now: Duration, frame: Frame) {
        if self.own != Some(frame.dst) {
            self.figures.ignored += 1;
            return;
        }
        let content = match frame.content {
            Content::Answer { id, .. } => return self.paths.answered(now, frame.src, id),
            Content::Told { id, report } => {
                if let Some(bursts) = &mut self.bursts {
                    bursts.told(frame.src, id, report);
                }
                return;
            }
            Content::Probe { id, size } => Content::Answer { id, size },
            Content::Ask { id, stream } => {
                Content::Told { id, report: self.streams.report((frame.src, stream)) }
            }
        };
        if self.tokens < 1000 {
            self.figures.ignored += 1;
            return;
        }
        self.tokens -= 1000;
        self.figures.answered += 1;
        let answer = Frame { src: frame.dst, dst: frame.src, method: frame.method, content };
        self.send(&VnetHeader::default(), &write(&answer));
    }

    /// What routers said.
    pub(crate) fn take_hints(&mut self, now: Duration) {
        let Some(hints) = &self.hints else { return };
        for hint in hints.take() {
            if self.own == Some(hint.from) {
                self.paths.hinted(now, hint.to, hint.mtu, hint.router);
            }
        }
    }

    fn refill(&mut self, now: Duration) {
        let passed = u64::try_from(now.saturating_sub(self.refilled).as_millis()).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(passed.saturating_mul(ANSWERS)).min(ANSWER_BURST * 1000);
        self.refilled = now;
    }

    fn send(&mut self, header: &VnetHeader, frame: &[u8]) {
        // A frame that is lost here is lost like any other: the tries and rounds are for that.
        let Some(Err(cause)) = self.tap.as_mut().map(|tap| tap.send(header, frame)) else { return };
        if cause.raw_os_error() == Some(libc::EBADFD) {
            // The device is gone, which wakes nobody; the next compare makes another.
            self.take_tap(Err(format!("the tap is gone: {cause}")));
        } else {
            tracing::debug!(%cause, "a probe was not sent");
        }
    }
}
