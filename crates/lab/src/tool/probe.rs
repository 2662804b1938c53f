//! A steady stream of small UDP questions, and what became of them.

use crate::guest::Guest;
use crate::tool::remote::Remote;
use crate::tool::{PORT, measure};
use crate::{Error, Result};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// A running probe.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<Instant>>>,
    receiver: Option<JoinHandle<Vec<(u64, Instant, bool)>>>,
    remote: Option<Remote>,
}

impl Probe {
    /// Asks the responder at an address `per_second` times a second; `expected` is the name it should answer with.
    pub fn start(netns: &Netns, who: IpAddr, expected: &str, per_second: u32) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind((super::serve::unspecified(who), 0))?;
            socket.connect((who, PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok::<_, std::io::Error>((socket.try_clone()?, socket))
        };
        let (tx, rx) = netns.run(open)?.map_err(Error::io(format!("probe {who} from {}", netns.label())))?;
        let stop = Arc::new(AtomicBool::new(false));
        let step = Duration::from_secs(1) / per_second.max(1);
        let (send_stop, receive_stop) = (stop.clone(), stop.clone());
        let expected = expected.to_owned();
        let sender = thread("probe-send", move || measure::probe(&tx, step, &send_stop))?;
        let receiver = thread("probe-receive", move || measure::receive(&rx, &expected, &receive_stop))?;
        Ok(Self { stop, sender: Some(sender), receiver: Some(receiver), remote: None })
    }

    /// The same from inside of a guest.
    pub fn start_in(guest: &Guest, who: IpAddr, expected: &str, per_second: u32) -> Result<Self> {
        let words = ["tenet-guest", "probe", &who.to_string(), expected, &per_second.to_string()];
        let remote = Some(Remote::start(guest, &words)?);
        Ok(Self { stop: Arc::default(), sender: None, receiver: None, remote })
    }

    /// Stops asking, waits a moment for late answers and sums up.
    pub fn stop(mut self) -> Result<measure::ProbeReport> {
        if let Some(remote) = self.remote.take() {
            return remote.stop();
        }
        self.stop.store(true, Ordering::Relaxed);
        let broke = |_| Error::io("probe")(std::io::Error::other("the thread broke off"));
        let sent = self.sender.take().map_or(Ok(Vec::new()), JoinHandle::join).map_err(broke)?;
        let answers = self.receiver.take().map_or(Ok(Vec::new()), JoinHandle::join).map_err(broke)?;
        Ok(measure::sum(&sent, &answers))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn thread<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(f).map_err(Error::io("start a thread"))
}
