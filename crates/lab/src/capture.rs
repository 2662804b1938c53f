//! Records frames of one device while something happens.

use crate::packet::PacketSocket;
use crate::{Error, Result};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// Frames beyond this are not kept, so that a capture under load stays small.
const MOST: usize = 50_000;
/// Bytes kept of each frame.
const SNAP: usize = 512;

/// A frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Time since the capture began.
    pub after: Duration,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Captured>>>>,
}

impl Capture {
    /// Begins to capture.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let socket = PacketSocket::receiver(netns, device)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || capture(&socket, &stopped))
            .map_err(Error::io("start a thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it and hands out what it got.
    pub fn stop(mut self) -> Result<Vec<Captured>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(frames)) => frames,
            Some(Err(_)) | None => Err(Error::io("capture frames")(io::Error::other("the thread broke off"))),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Ends only when the device has been silent for a moment after the request to stop, so that nothing queued is missed.
fn capture(socket: &PacketSocket, stop: &AtomicBool) -> Result<Vec<Captured>> {
    let begin = Instant::now();
    let mut frames = Vec::new();
    let mut buffer = [0; SNAP];
    let mut last = None;
    loop {
        let got = socket.receive(&mut buffer, Duration::from_millis(20))?;
        if let Some(bytes) = got
            && frames.len() < MOST
        {
            frames.push(Captured { after: begin.elapsed(), bytes: bytes.to_vec() });
        }
        if stop.load(Ordering::Relaxed) {
            let last = *last.get_or_insert_with(Instant::now);
            if got.is_none() || last.elapsed() > Duration::from_millis(200) {
                return Ok(frames);
            }
        }
    }
}
