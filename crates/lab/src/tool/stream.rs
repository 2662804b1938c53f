//! A TCP stream of numbered words, checked word for word by the receiver.

use crate::tool::PORT;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// Bytes written at a time.
const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// What the receiver of a stream found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Bytes received.
    pub bytes: u64,
    /// Whether every word was the next one.
    pub in_order: bool,
    /// Longest time between two reads, in microseconds.
    pub longest_gap_us: u64,
}

/// What a stream did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StreamReport {
    /// Who answered.
    pub peer: String,
    /// Bytes sent.
    pub sent: u64,
    /// What the receiver found.
    pub received: Verdict,
    /// How long it ran, in milliseconds.
    pub millis: u64,
}

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<StreamReport>>>,
}

impl Stream {
    /// Connects to the responder at an address and sends a chunk of 64 KB every `pace`.
    pub fn start(netns: &Netns, who: IpAddr, pace: Duration) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(who, PORT), Duration::from_secs(5));
        let stream =
            netns.run(connect)?.map_err(Error::io(format!("connect to {who} from {}", netns.label())))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("stream".to_owned());
        let thread =
            thread.spawn(move || send(stream, pace, &stopped)).map_err(Error::io("start a thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops sending and asks the receiver what it found.
    pub fn stop(mut self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.thread.take().map(JoinHandle::join);
        let broke = || io::Error::other("the thread broke off");
        report
            .and_then(std::result::Result::ok)
            .unwrap_or_else(|| Err(broke()))
            .map_err(Error::io("keep a TCP stream"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(mut stream: TcpStream, pace: Duration, stop: &AtomicBool) -> io::Result<StreamReport> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut peer = String::new();
    lines.read_line(&mut peer)?;
    let begin = Instant::now();
    let mut due = begin;
    let mut next = 0_u64;
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&next.to_be_bytes());
            next += 1;
        }
        stream.write_all(&chunk)?;
        due = (due + pace).max(begin);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    stream.shutdown(Shutdown::Write)?;
    let mut verdict = String::new();
    lines.read_line(&mut verdict)?;
    let received = serde_json::from_str(&verdict).map_err(io::Error::other)?;
    let millis = begin.elapsed().as_millis() as u64;
    Ok(StreamReport { peer: peer.trim_end().to_owned(), sent: next * 8, received, millis })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::serve::check as serve;
    use std::io::Read as _;
    use std::net::TcpListener;

    #[test]
    fn an_intact_stream_is_called_so_and_a_torn_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                serve(stream.unwrap(), "contoso/sql").unwrap();
            }
        });
        let stop = AtomicBool::new(true);
        let stream = TcpStream::connect(address).unwrap();
        let report = send(stream, Duration::ZERO, &stop).unwrap();
        assert_eq!(
            (report.peer.as_str(), report.received.in_order, report.received.bytes),
            ("contoso/sql", true, 0)
        );

        let mut stream = TcpStream::connect(address).unwrap();
        for number in [0_u64, 1, 3] {
            stream.write_all(&number.to_be_bytes()).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("\"in_order\":false") && text.contains("\"bytes\":24"), "{text}");
        server.join().unwrap();
    }
}
