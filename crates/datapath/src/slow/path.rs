//! The slow path of STT: puts together the frames that the data plane cannot deliver part by part.
//!
//! Parts come out of the slow device's far end, whole frames go back into it; there the uplink's program takes them as
//! if the wire had brought them whole. So the agent decides nothing: not who may send, not who receives. Without it the
//! fast path goes on, and only what needs this one is lost (docs/stt.md): the thread tells the programs that it is there,
//! and once it is silent they drop what it would have taken, by name.

use super::socket::Socket;
use crate::bpffs::Pins;
use crate::table::{JOINER, Table};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;
use tenet_stt::{
    Counters, FrameId, Limits, Reassembly, Segment, Trust, Unreadable, VirtioHeader, Way, Whole,
};
use tenet_wire::{EtherType, SttHeader};
use zerocopy::FromBytes as _;

/// How often the thread looks whether it is to end, lets frames expire and tells the programs that it is there.
const ROUND: Duration = Duration::from_millis(200);

/// Figures of the slow path.
#[derive(Debug, Default)]
struct Figures {
    failed: AtomicU64,
    received: AtomicU64,
    unreadable: AtomicU64,
    checksum: AtomicU64,
    unsent: AtomicU64,
    missed: AtomicU64,
    reassembly: Mutex<Counters>,
}

/// The thread that puts frames together; ends when dropped.
#[derive(Debug)]
pub struct SlowPath {
    stop: Arc<AtomicBool>,
    figures: Arc<Figures>,
    thread: Option<JoinHandle<()>>,
}

impl SlowPath {
    /// Starts one at the far end of the slow device. `bpffs`: where the programs' maps are pinned.
    ///
    /// # Errors
    /// If there is no such device, no right to listen there, or no map of these programs.
    pub fn start(netns: &Netns, far: u32, bpffs: &Path) -> io::Result<Self> {
        let socket = Socket::open(netns, far)?;
        let presence = Presence::open(bpffs)?;
        let (stop, figures) = (Arc::new(AtomicBool::new(false)), Arc::new(Figures::default()));
        let (theirs, told) = (stop.clone(), figures.clone());
        let thread = std::thread::Builder::new()
            .name("stt".to_owned())
            .spawn(move || Joiner::new(socket, presence, &told).run(&theirs))?;
        Ok(Self { stop, figures, thread: Some(thread) })
    }

    /// Name, explanation and figure of all counters.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let f = &self.figures;
        let mut all = vec![
            (
                "failed",
                "Times that the slow device could not be read, or the programs not told that somebody reads it.",
                f.failed.load(Relaxed),
            ),
            ("missed", "Frames for which the queue to the agent had no room.", f.missed.load(Relaxed)),
            ("received", "Frames taken from the data plane.", f.received.load(Relaxed)),
            ("unreadable", "Frames that were no segment of STT.", f.unreadable.load(Relaxed)),
            ("checksum", "Segments with a wrong checksum.", f.checksum.load(Relaxed)),
            ("unsent", "Completed frames that the data plane did not take back.", f.unsent.load(Relaxed)),
        ];
        all.extend(f.reassembly.lock().unwrap_or_else(PoisonError::into_inner).named());
        all
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing to give back.
            drop(thread.join());
        }
    }
}

/// What the programs know of the thread.
struct Presence {
    map: Table<u32, u64>,
    told: Option<Instant>,
}

impl Presence {
    fn open(bpffs: &Path) -> io::Result<Self> {
        let map = Table::open(&Pins::new(bpffs).maps(), JOINER).map_err(io::Error::other)?;
        let mut presence = Self { map, told: None };
        // At once, so that nothing is dropped that comes before the thread's first round.
        presence.tell()?;
        Ok(presence)
    }

    /// Says that somebody is there, a few times a second.
    fn tell(&mut self) -> io::Result<bool> {
        if self.told.is_some_and(|told| told.elapsed() < ROUND) {
            return Ok(false);
        }
        self.map.put(&0, &monotonic()?).map_err(io::Error::other)?;
        self.told = Some(Instant::now());
        Ok(true)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // If that fails, the programs find out a little later.
        drop(self.map.put(&0, &0));
    }
}

/// The clock that the programs read, in nanoseconds.
fn monotonic() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the value is live.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    Ok(u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
}

/// What the thread works with.
struct Joiner<'a> {
    socket: Socket,
    presence: Presence,
    figures: &'a Figures,
    reassembly: Reassembly,
    out: Vec<u8>,
    began: Instant,
}

impl<'a> Joiner<'a> {
    fn new(socket: Socket, presence: Presence, figures: &'a Figures) -> Self {
        let reassembly = Reassembly::new(Limits::default());
        Self { socket, presence, figures, reassembly, out: Vec::new(), began: Instant::now() }
    }

    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            match self.round() {
                Ok(0) => self.reassembly.expire(self.now()),
                Ok(taken) => self.take(taken),
                Err(_) => {
                    // The device is down or gone; whoever started us makes a new one and starts us anew.
                    self.figures.failed.fetch_add(1, Relaxed);
                    std::thread::sleep(ROUND);
                }
            }
            *self.figures.reassembly.lock().unwrap_or_else(PoisonError::into_inner) =
                self.reassembly.counters();
        }
    }

    /// Waits for frames; how many were taken.
    fn round(&mut self) -> io::Result<usize> {
        if self.presence.tell()? {
            self.figures.missed.fetch_add(self.socket.missed()?, Relaxed);
        }
        self.socket.receive(ROUND)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, taken: usize) {
        let now = self.now();
        self.figures.received.fetch_add(taken as u64, Relaxed);
        let Self { socket, figures, reassembly, out, .. } = self;
        for frame in socket.frames() {
            let Ok((virtio, frame)) = VirtioHeader::read_from_prefix(frame) else { continue };
            let trust = if virtio.is_checked() { Trust::Checked } else { Trust::Unchecked };
            match Segment::read(frame, trust) {
                // What a segment is refused for is counted by name.
                Ok(segment) => {
                    if let Ok(Some(whole)) = reassembly.add(&segment, now) {
                        give_back(socket, figures, &whole, out);
                        reassembly.recycle(whole.bytes);
                    }
                }
                Err(Unreadable::Checksum) => drop(figures.checksum.fetch_add(1, Relaxed)),
                Err(Unreadable::Other | Unreadable::Malformed | Unreadable::Fragment) => {
                    figures.unreadable.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// Gives a whole frame to the data plane.
fn give_back(socket: &Socket, figures: &Figures, whole: &Whole, out: &mut Vec<u8>) {
    let way = Way { frame: FrameId { ..whole.frame }, outer: whole.outer };
    // A frame that stands for several TCP segments is told to be cut at these again.
    let mss = SttHeader::read_from_prefix(&whole.bytes).map_or(0, |(header, _)| header.mss.get());
    let protocol = if whole.frame.src.is_ipv6() { EtherType::IPV6 } else { EtherType::IPV4 }.get();
    let sent = way.whole(&whole.bytes, mss, out).is_ok() && socket.send(out, protocol).is_ok();
    if !sent {
        figures.unsent.fetch_add(1, Relaxed);
    }
}
