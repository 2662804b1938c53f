//! A TCP stream of numbered words, checked word for word by the receiver.

use crate::guest::Guest;
use crate::tool::remote::Remote;
use crate::tool::{PORT, measure};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tenet_hostnet::Netns;

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
    remote: Option<Remote>,
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
        Ok(Self { stop, thread: Some(thread), remote: None })
    }

    /// The same from inside of a guest.
    pub fn start_in(guest: &Guest, who: IpAddr, pace: Duration) -> Result<Self> {
        let words = ["tenet-guest", "stream", &who.to_string(), &pace.as_micros().to_string()];
        Ok(Self { stop: Arc::default(), thread: None, remote: Some(Remote::start(guest, &words)?) })
    }

    /// Stops sending and asks the receiver what it found.
    pub fn stop(mut self) -> Result<StreamReport> {
        if let Some(remote) = self.remote.take() {
            return remote.stop();
        }
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

fn send(stream: TcpStream, pace: Duration, stop: &AtomicBool) -> io::Result<StreamReport> {
    let (peer, sent, verdict, took) = measure::stream(stream, pace, stop)?;
    let received = serde_json::from_str(&verdict).map_err(io::Error::other)?;
    Ok(StreamReport { peer, sent, received, millis: took.as_millis() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::serve::check as serve;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener};

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
