//! The offload self-test: bursts of TCP segments with and without offloads, and what the other host saw of them.

use super::{METHODS, Report};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// Payload of a burst whose cutting is left to the kernel.
const LARGE: u32 = 60_000;
/// Frames of the other bursts.
const FEW: u32 = 4;
/// Pause before the other host is asked what it saw: the frames are there by then.
const SETTLE: Duration = Duration::from_millis(30);
/// Wait for its answer.
const PATIENCE: Duration = Duration::from_millis(300);
const ASKS: u32 = 3;
/// A burst is repeated so often before its loss counts.
const ROUNDS: u32 = 3;
/// Streams of all hosts together that are looked at at once; an older one is forgotten.
pub const LOOKED_AT: usize = 64;

/// What is left to the kernel, or to the NIC behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Shape {
    /// Nothing.
    Plain,
    /// The checksum.
    Checksum,
    /// The checksum and the cutting into segments.
    Segments,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Checksum, Self::Segments];
}

/// The byte at a place in a stream.
const fn pattern(stream: u16, offset: u32) -> u8 {
    let n = offset.wrapping_mul(0x9e37_79b1).wrapping_add(stream as u32);
    (n >> 24) as u8 ^ n as u8
}

/// A part of a stream's content.
#[must_use]
pub fn content(stream: u16, offset: u32, length: u32) -> Vec<u8> {
    (offset..offset.saturating_add(length)).map(|o| pattern(stream, o)).collect()
}

/// What was seen of the streams of other hosts.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    seen: VecDeque<((IpAddr, u16), Report)>,
}

impl Streams {
    /// A piece came.
    pub fn piece(&mut self, key: (IpAddr, u16), offset: u32, payload: &[u8], good: bool, unfinished: bool) {
        let at = match self.seen.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                if self.seen.len() == LOOKED_AT {
                    self.seen.pop_front();
                }
                self.seen.push_back((key, Report::default()));
                self.seen.len() - 1
            }
        };
        let Some((_, report)) = self.seen.get_mut(at) else { return };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let same = (offset..).zip(payload).all(|(o, byte)| pattern(key.1, o) == *byte);
        report.frames = report.frames.saturating_add(1);
        report.bytes = report.bytes.saturating_add(length);
        report.largest = report.largest.max(length);
        report.garbled = report.garbled.saturating_add(u32::from(!same));
        report.checksum = report.checksum.saturating_add(u32::from(!good));
        report.unfinished = report.unfinished.saturating_add(u32::from(unfinished));
    }

    /// What was seen of a stream.
    #[must_use]
    pub fn report(&self, key: (IpAddr, u16)) -> Report {
        self.seen.iter().find(|(k, _)| *k == key).map(|(_, r)| *r).unwrap_or_default()
    }
}

/// Something for the self-test to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Burst {
    /// Frames.
    Frames {
        /// By this `METHOD_*`.
        method: u8,
        /// So.
        shape: Shape,
        /// Under this number.
        stream: u16,
        /// This many frames.
        frames: u32,
        /// Of so much payload each; for [`Shape::Segments`] all of it in one.
        length: u32,
    },
    /// The question what was seen.
    Ask {
        /// By this `METHOD_*`.
        method: u8,
        /// Mark for the answer.
        id: u64,
        /// Of this stream.
        stream: u16,
    },
}

/// What came of a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// For each [`Shape`] how many bytes were sent and what was seen of them; `None`: no answer.
    pub seen: [Option<(u32, Report)>; 3],
}

/// The self-test against one host: one burst at a time.
#[derive(Clone, Debug)]
pub struct Bursts {
    peer: IpAddr,
    /// Payload of one segment by method, in the order of [`METHODS`].
    segments: [u16; METHODS.len()],
    /// What is still to be done, and how often it was tried in vain.
    todo: VecDeque<(usize, Shape, u32)>,
    now: Option<Current>,
    outcomes: BTreeMap<u8, Outcome>,
    ids: u64,
    streams: u16,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    method: usize,
    shape: Shape,
    stream: u16,
    sent: u32,
    rounds: u32,
    asks: u32,
    id: u64,
    due: Duration,
}

impl Bursts {
    /// A test against a host; `seed` is a random number.
    #[must_use]
    pub fn new(peer: IpAddr, segments: [u16; METHODS.len()], seed: u64) -> Self {
        let all = (0..METHODS.len()).flat_map(|method| Shape::ALL.map(|shape| (method, shape, 0)));
        // The numbers of an earlier test are not used again at once.
        let streams = u16::try_from(seed >> 48).unwrap_or(0);
        Self { peer, segments, todo: all.collect(), now: None, outcomes: BTreeMap::new(), ids: seed, streams }
    }

    /// The host.
    #[must_use]
    pub const fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether all is done.
    #[must_use]
    pub fn done(&self) -> bool {
        self.todo.is_empty() && self.now.is_none()
    }

    /// What came of each `METHOD_*`.
    #[must_use]
    pub const fn outcomes(&self) -> &BTreeMap<u8, Outcome> {
        &self.outcomes
    }

    /// When [`Self::poll`] has something to do.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<Duration> {
        self.now.map(|c| c.due).or_else(|| (!self.todo.is_empty()).then_some(now))
    }

    /// What is to be sent now.
    pub fn poll(&mut self, now: Duration) -> Option<Burst> {
        if let Some(mut current) = self.now {
            if now < current.due {
                return None;
            }
            if current.asks < ASKS {
                current.asks += 1;
                current.due = now + PATIENCE;
                self.now = Some(current);
                let method = METHODS[current.method].0;
                return Some(Burst::Ask { method, id: current.id, stream: current.stream });
            }
            self.settle(current, None);
        }
        let (method, shape, rounds) = self.todo.pop_front()?;
        self.streams = self.streams.wrapping_add(1);
        self.ids = self.ids.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let segment = u32::from(self.segments[method]);
        let (frames, length) = match shape {
            Shape::Plain | Shape::Checksum => (FEW, segment),
            Shape::Segments => (1, LARGE),
        };
        self.now = Some(Current {
            method,
            shape,
            stream: self.streams,
            sent: frames * length,
            rounds,
            asks: 0,
            id: self.ids,
            due: now + SETTLE,
        });
        Some(Burst::Frames { method: METHODS[method].0, shape, stream: self.streams, frames, length })
    }

    /// A host answered; what answers no question of ours is ignored.
    pub fn told(&mut self, pa: IpAddr, id: u64, report: Report) {
        if let Some(current) = self.now.filter(|c| c.id == id && c.asks > 0 && pa == self.peer) {
            self.settle(current, Some(report));
        }
    }

    fn settle(&mut self, current: Current, report: Option<Report>) {
        self.now = None;
        let good = report.is_some_and(|r| flaw(current.sent, &r).is_none());
        if !good && current.rounds + 1 < ROUNDS {
            self.todo.push_front((current.method, current.shape, current.rounds + 1));
            return;
        }
        let outcome = self.outcomes.entry(METHODS[current.method].0).or_default();
        outcome.seen[current.shape as usize] = report.map(|r| (current.sent, r));
        if current.shape == Shape::Plain && report.is_none() {
            // Not even that: the rest would only take time.
            self.todo.retain(|(method, ..)| *method != current.method);
        }
    }
}

/// What is wrong with what was seen of `sent` bytes.
fn flaw(sent: u32, seen: &Report) -> Option<String> {
    if seen.checksum > 0 {
        return Some(format!("{} of {} frames had a wrong checksum", seen.checksum, seen.frames));
    }
    if seen.garbled > 0 {
        return Some(format!("{} of {} frames had other content", seen.garbled, seen.frames));
    }
    if seen.bytes < sent {
        return Some(format!("{} of {sent} bytes arrived", seen.bytes));
    }
    (seen.bytes > sent).then(|| format!("{} bytes arrived of {sent}", seen.bytes))
}

/// How a method fares as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grade {
    /// With and without offloads.
    Ok,
    /// Only with offloads off.
    Degraded,
    /// Not at all.
    Broken,
}

impl Grade {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
        }
    }
}

impl Outcome {
    /// What is wrong with a shape, if anything is.
    #[must_use]
    pub fn flaw(&self, shape: Shape) -> Option<String> {
        match &self.seen[shape as usize] {
            None => Some("nothing came back".to_owned()),
            Some((sent, report)) => flaw(*sent, report),
        }
    }

    /// How the method fares.
    #[must_use]
    pub fn grade(&self) -> Grade {
        if self.flaw(Shape::Plain).is_some() {
            Grade::Broken
        } else if Shape::ALL.iter().any(|s| self.flaw(*s).is_some()) {
            Grade::Degraded
        } else {
            Grade::Ok
        }
    }

    /// Payload of the largest frame that arrived.
    #[must_use]
    pub fn largest(&self) -> u32 {
        self.seen.iter().flatten().map(|(_, r)| r.largest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 2, 2));
    const US: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 1, 2));

    /// Runs a test over a network that does with each burst what `network` says.
    fn run(mut network: impl FnMut(u8, Shape, &mut Streams, u16, Vec<u8>)) -> BTreeMap<u8, Outcome> {
        let mut bursts = Bursts::new(PEER, [1400; METHODS.len()], 0x1234_5678_9abc_def0);
        let mut streams = Streams::default();
        let mut now = Duration::ZERO;
        while !bursts.done() {
            now = now.max(bursts.next(now).unwrap());
            assert!(now < Duration::from_secs(60), "the test ends");
            match bursts.poll(now) {
                Some(Burst::Frames { method, shape, stream, frames, length }) => {
                    network(method, shape, &mut streams, stream, content(stream, 0, frames * length));
                }
                Some(Burst::Ask { method, id, stream }) if method != 3 => {
                    bursts.told(PEER, id.wrapping_add(1), Report::default());
                    bursts.told(US, id, Report::default());
                    bursts.told(PEER, id, streams.report((US, stream)));
                }
                // Method 3 is lost on the way.
                Some(Burst::Ask { .. }) | None => {}
            }
        }
        bursts.outcomes().clone()
    }

    #[test]
    fn each_method_gets_its_grade() {
        let mut seen = 0;
        let outcomes = run(|method, shape, streams, stream, bytes| {
            // Method 2 loses the first try of everything, and cannot cut.
            seen += 1;
            if method == 2 && (shape == Shape::Segments || seen % 2 == 0) {
                return;
            }
            for (offset, piece) in (0..).step_by(1400).zip(bytes.chunks(1400)) {
                let good = !(method == 4 && shape == Shape::Checksum);
                streams.piece((US, stream), offset, piece, good, false);
            }
        });
        let grade = |m: u8| outcomes[&m].grade();
        assert_eq!(grade(1), Grade::Ok);
        assert_eq!(outcomes[&1].largest(), 1400);
        assert_eq!(grade(2), Grade::Degraded);
        assert_eq!(outcomes[&2].flaw(Shape::Segments).unwrap(), "0 of 60000 bytes arrived");
        assert_eq!(grade(3), Grade::Broken);
        assert_eq!(outcomes[&3].flaw(Shape::Plain).unwrap(), "nothing came back");
        assert_eq!(grade(4), Grade::Degraded);
        assert_eq!(outcomes[&4].flaw(Shape::Checksum).unwrap(), "4 of 4 frames had a wrong checksum");
    }

    #[test]
    fn other_content_is_noticed() {
        let outcomes = run(|_, _, streams, stream, mut bytes| {
            *bytes.last_mut().unwrap() ^= 1;
            streams.piece((US, stream), 0, &bytes, true, true);
        });
        assert_eq!(outcomes[&1].flaw(Shape::Plain).unwrap(), "1 of 1 frames had other content");
    }

    #[test]
    fn streams_that_nobody_asks_for_are_forgotten() {
        let mut streams = Streams::default();
        for stream in 0..1000 {
            streams.piece((PEER, stream), 0, &content(stream, 0, 10), true, false);
        }
        assert_eq!(streams.seen.len(), LOOKED_AT);
        assert_eq!(streams.report((PEER, 999)).bytes, 10);
        assert_eq!(streams.report((PEER, 1)), Report::default());
    }
}
