//! The slow path of STT: puts together the frames that the data plane cannot deliver part by part.
//!
//! Parts come out of the slow device's far end, whole frames go back into it; there the uplink's program takes them as
//! if the wire had brought them whole. So the agent decides nothing: not who may send, not who receives. Without it the
//! fast path goes on, and only what needs this one is lost (docs/stt.md).

use super::socket::Socket;
use std::io;
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

/// How often the thread looks whether it is to end, and lets frames expire.
const ROUND: Duration = Duration::from_millis(200);

/// Figures of the slow path.
#[derive(Debug, Default)]
struct Figures {
    failed: AtomicU64,
    received: AtomicU64,
    unreadable: AtomicU64,
    checksum: AtomicU64,
    unsent: AtomicU64,
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
    /// Starts one at the far end of the slow device.
    ///
    /// # Errors
    /// If there is no such device, or no right to listen there.
    pub fn start(netns: &Netns, far: u32) -> io::Result<Self> {
        let socket = Socket::open(netns, far)?;
        let (stop, figures) = (Arc::new(AtomicBool::new(false)), Arc::new(Figures::default()));
        let (theirs, told) = (stop.clone(), figures.clone());
        let thread = std::thread::Builder::new()
            .name("stt".to_owned())
            .spawn(move || Joiner::new(socket, &told).run(&theirs))?;
        Ok(Self { stop, figures, thread: Some(thread) })
    }

    /// Name, explanation and figure of all counters.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let f = &self.figures;
        let mut all = vec![
            ("failed", "Times that the slow device could not be read.", f.failed.load(Relaxed)),
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

/// What the thread works with.
struct Joiner<'a> {
    socket: Socket,
    figures: &'a Figures,
    reassembly: Reassembly,
    out: Vec<u8>,
    began: Instant,
}

impl<'a> Joiner<'a> {
    fn new(socket: Socket, figures: &'a Figures) -> Self {
        let reassembly = Reassembly::new(Limits::default());
        Self { socket, figures, reassembly, out: Vec::new(), began: Instant::now() }
    }

    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            match self.socket.receive(ROUND) {
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
