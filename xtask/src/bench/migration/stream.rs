//! One TCP connection to the guest's echo, kept through all its migrations: what comes back is compared byte for byte.

use super::clock::{self, Micros};
use anyhow::{Context as _, Result};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// Bytes at a time, and how often: one megabyte a second.
const CHUNK: usize = 4096;
const STEP: Duration = Duration::from_millis(4);
/// How long all that was sent may take to come back.
const DRAIN: Duration = Duration::from_secs(10);

/// The connection; it ends with its handle.
pub struct Stream {
    shared: Arc<Shared>,
    socket: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Chunks are sent this many times as seldom as usual; 0 is not at all.
    running: AtomicU64,
    ended: AtomicBool,
    /// The connection is gone, or something else came back than was sent.
    broken: AtomicBool,
    sent: AtomicU64,
    back: AtomicU64,
    last: AtomicI64,
    gap: AtomicI64,
}

/// What the stream did during one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Bytes sent.
    pub sent: u64,
    /// Of these, those that never came back, or not unharmed.
    pub lost: u64,
    /// Longest time between two arrivals.
    pub gap: Micros,
    /// Whether the connection still stands.
    pub intact: bool,
}

impl Stream {
    /// Connects; nothing is sent until [`Stream::run`].
    pub fn connect(netns: &Netns, who: Ipv4Addr, port: u16) -> Result<Self> {
        let to = SocketAddr::from((who, port));
        let socket = netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        let socket = socket.with_context(|| format!("connect to {to}"))?;
        Self::over(socket)
    }

    fn over(socket: TcpStream) -> Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.set_write_timeout(Some(DRAIN))?;
        let shared = Arc::new(Shared::default());
        let mut new = Self { shared, socket, threads: Vec::new() };
        let (shared, socket) = (new.shared.clone(), new.socket.try_clone()?);
        let name = || std::thread::Builder::new().name("stream".to_owned());
        new.threads.push(name().spawn(move || write(socket, &shared))?);
        let (shared, socket) = (new.shared.clone(), new.socket.try_clone()?);
        new.threads.push(name().spawn(move || read(socket, &shared))?);
        Ok(new)
    }

    /// Begins to send, `slower` times as slow as at full rate.
    pub fn run(&self, slower: u64) {
        self.shared.last.store(0, SeqCst);
        self.shared.gap.store(0, SeqCst);
        self.shared.running.store(slower.max(1), SeqCst);
    }

    /// Stops sending and waits until all is back; `before` is what [`Stream::sent`] said before the run.
    #[must_use]
    pub fn pause(&self, before: u64) -> Flow {
        let s = &self.shared;
        s.running.store(0, SeqCst);
        let begin = Instant::now();
        // The writer may be in the midst of a chunk: it counts as sent when it is written.
        let mut sent = s.sent.load(SeqCst);
        while begin.elapsed() < DRAIN && !s.broken.load(SeqCst) {
            std::thread::sleep(STEP);
            let now = s.sent.load(SeqCst);
            if now == sent && s.back.load(SeqCst) == sent {
                break;
            }
            sent = now;
        }
        let intact = !s.broken.load(SeqCst);
        Flow {
            sent: sent - before,
            lost: sent - s.back.load(SeqCst).min(sent),
            gap: s.gap.load(SeqCst),
            intact,
        }
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(SeqCst)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        _ = self.socket.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            _ = thread.join();
        }
    }
}

/// The stream's bytes: numbered words, so that what is missing, twice or elsewhere shows.
fn fill(from: u64, chunk: &mut [u8]) {
    for (at, byte) in (from..).zip(chunk) {
        *byte = (at / 8).to_be_bytes()[(at % 8) as usize];
    }
}

fn write(mut socket: TcpStream, s: &Shared) {
    let mut chunk = vec![0; CHUNK];
    let mut due = Instant::now();
    while !s.ended.load(SeqCst) && !s.broken.load(SeqCst) {
        let slower = s.running.load(SeqCst);
        if slower > 0 {
            let sent = s.sent.load(SeqCst);
            fill(sent, &mut chunk);
            // Counted before it is written, as it may be back before this thread goes on.
            s.sent.store(sent + CHUNK as u64, SeqCst);
            if socket.write_all(&chunk).is_err() {
                s.broken.store(true, SeqCst);
            }
        }
        due = (due + STEP * u32::try_from(slower.max(1)).unwrap_or(1)).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn read(mut socket: TcpStream, s: &Shared) {
    let (mut got, mut want) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    while !s.ended.load(SeqCst) {
        let length = match socket.read(&mut got) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let now = clock::now();
        let last = s.last.swap(now, SeqCst);
        if last > 0 {
            s.gap.fetch_max(now - last, SeqCst);
        }
        let back = s.back.load(SeqCst);
        let want = want.get_mut(..length).unwrap_or_default();
        fill(back, want);
        if got.get(..length) != Some(&*want) {
            break;
        }
        s.back.store(back + length as u64, SeqCst);
    }
    s.broken.store(true, SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A stream whose peer gives back what `change` makes of the bytes.
    fn with_peer(change: fn(u64, &mut Vec<u8>)) -> Stream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let (mut buffer, mut total) = (vec![0; 1000], 0);
            while let Ok(length @ 1..) = peer.read(&mut buffer) {
                let mut bytes = buffer[..length].to_vec();
                change(total, &mut bytes);
                total += length as u64;
                if peer.write_all(&bytes).is_err() {
                    break;
                }
            }
        });
        Stream::over(socket).unwrap()
    }

    fn flow(stream: &Stream) -> Flow {
        let before = stream.sent();
        stream.run(1);
        let begin = Instant::now();
        while stream.sent() < before + 10 * CHUNK as u64 && begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(STEP);
        }
        stream.pause(before)
    }

    #[test]
    fn an_echo_loses_nothing_run_after_run() {
        let stream = with_peer(|_, _| ());
        for _ in 0..2 {
            let flow = flow(&stream);
            assert!(flow.sent >= 10 * CHUNK as u64 && flow.lost == 0 && flow.intact, "{flow:?}");
        }
    }

    #[test]
    fn a_byte_that_is_swallowed_is_missed() {
        let stream = with_peer(|total, bytes| {
            if total >= 20_000 {
                bytes.pop();
            }
        });
        let flow = flow(&stream);
        assert!(!flow.intact && flow.lost > 0, "{flow:?}");
    }
}
