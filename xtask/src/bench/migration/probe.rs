//! A ping every millisecond, each with its number, and what became of each.
//!
//! The guest's kernel answers, so that the network is measured and no program in the guest.

use super::clock::{self, Micros};
use anyhow::{Context as _, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// How long answers are waited for after the last question.
const LATE: Duration = Duration::from_millis(250);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// ICMP's header, then the probe's number.
const PING: usize = 16;

/// A running probe.
pub struct Probe {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Micros>>,
    receiver: JoinHandle<Vec<(u32, Micros)>>,
}

/// When each probe was sent, and when its answer came.
#[derive(Clone, Debug, Default)]
pub struct Seen(pub Vec<(Micros, Option<Micros>)>);

/// What a pause cost.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Losses {
    /// Probes sent.
    pub sent: usize,
    /// Probes without an answer.
    pub lost: usize,
    /// Of these, those that the pause does not excuse.
    pub beyond: usize,
    /// From the guest's first moment on the destination to the first answer from there.
    pub first_reply: Option<Micros>,
}

impl Probe {
    /// Asks `who` from a namespace once in `step`.
    pub fn start(netns: &Netns, who: Ipv4Addr, step: Duration) -> Result<Self> {
        let open = || -> std::io::Result<(UdpSocket, UdpSocket)> {
            let socket = raw_icmp()?;
            socket.connect((who, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok((socket.try_clone()?, socket))
        };
        let (tx, rx) = netns.run(open)?.with_context(|| format!("open a probe of {who}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (send_stop, receive_stop) = (stop.clone(), stop.clone());
        let id = (clock::now() & 0xffff) as u16;
        let name = || std::thread::Builder::new().name("probe".to_owned());
        let receiver = name().spawn(move || receive(&rx, id, &receive_stop))?;
        let sender = name().spawn(move || send(&tx, id, step, &send_stop))?;
        Ok(Self { stop, sender, receiver })
    }

    /// Stops asking, waits for late answers and tells.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let broke = |_| anyhow::anyhow!("the probe broke off");
        let sent = self.sender.join().map_err(broke)?;
        let mut seen: Vec<_> = sent.into_iter().map(|at| (at, None)).collect();
        for (number, at) in self.receiver.join().map_err(broke)? {
            if let Some((_, answer @ None)) = seen.get_mut(number as usize) {
                *answer = Some(at);
            }
        }
        Ok(Seen(seen))
    }
}

impl Seen {
    /// The median time from question to answer of those asked before a moment; none without answers.
    #[must_use]
    pub fn round_trip(&self, before: Micros) -> Option<Micros> {
        let asked = self.0.iter().filter(|(sent, _)| *sent < before);
        let mut times: Vec<Micros> = asked.filter_map(|(sent, answer)| Some((*answer)? - sent)).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// What a pause from `stop` to `resume` cost.
    ///
    /// The pause excuses a probe that could not have been answered before it or after it: one sent less than `margin`
    /// before the guest stood still, or before it ran again.
    #[must_use]
    pub fn losses(&self, stop: Micros, resume: Micros, margin: Micros) -> Losses {
        let lost = || self.0.iter().filter(|(_, answer)| answer.is_none()).map(|(sent, _)| *sent);
        let first = self.0.iter().filter_map(|(_, answer)| *answer).filter(|at| *at > resume).min();
        Losses {
            sent: self.0.len(),
            lost: lost().count(),
            beyond: lost().filter(|at| *at < stop - margin || *at > resume).count(),
            first_reply: first.map(|at| at - resume),
        }
    }
}

/// Sends by the clock, so that a late wake-up is made good and the rate holds.
fn send(socket: &UdpSocket, id: u16, step: Duration, stop: &AtomicBool) -> Vec<Micros> {
    clock::first_served();
    let mut sent = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let ping = request(id, sent.len() as u32);
        sent.push(clock::now());
        // What cannot be sent is lost, and shows as that.
        _ = socket.send(&ping);
        due += step;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, id: u16, stop: &AtomicBool) -> Vec<(u32, Micros)> {
    clock::first_served();
    let mut answers = Vec::new();
    let mut buffer = [0; 512];
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        if let Ok(length) = socket.recv(&mut buffer) {
            let at = clock::now();
            answers.extend(number(buffer.get(..length).unwrap_or_default(), id).map(|n| (n, at)));
        }
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now() + LATE);
        }
    }
    answers
}

/// An echo request (RFC 792) that carries its number twice: in 16 bits where everybody looks, and in full.
fn request(id: u16, number: u32) -> [u8; PING] {
    let mut ping = [0; PING];
    ping[0] = ECHO_REQUEST;
    ping[4..6].copy_from_slice(&id.to_be_bytes());
    ping[6..8].copy_from_slice(&(number as u16).to_be_bytes());
    ping[8..12].copy_from_slice(&number.to_be_bytes());
    let mut sum: u32 = ping.chunks_exact(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    ping[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    ping
}

/// The number in an answer to us; raw sockets get the IP header, too.
fn number(packet: &[u8], id: u16) -> Option<u32> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp: &[u8; 12] = packet.get(header..)?.first_chunk()?;
    let [ty, _, _, _, i0, i1, _, _, n @ ..] = *icmp;
    (ty == ECHO_REPLY && u16::from_be_bytes([i0, i1]) == id).then(|| u32::from_be_bytes(n))
}

fn raw_icmp() -> std::io::Result<UdpSocket> {
    // SAFETY: the call takes three numbers; a non-negative result is a new descriptor that nobody else owns.
    let socket = unsafe {
        match libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) {
            fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
            _ => return Err(std::io::Error::last_os_error()),
        }
    };
    // Connecting, sending and receiving are the same system calls for every kind of datagram socket.
    Ok(UdpSocket::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_excuses_what_was_asked_during_it_and_nothing_else() {
        let ms = |n: i64| n * 1000;
        // One a millisecond; the guest stands still from 10 to 20. Lost: 4 (nobody's fault but the network's), 9 (was
        // under way when it stopped), 10 to 14, and 22 (went to the old host). 15 to 19 were kept and answered late.
        let lost = [4, 9, 10, 11, 12, 13, 14, 22];
        let answer = |n: i64| match n {
            n if lost.contains(&n) => None,
            15..=20 => Some(ms(21) + n),
            n => Some(ms(n) + 300),
        };
        let seen = Seen((0..30).map(|n| (ms(n), answer(n))).collect());
        let found = seen.losses(ms(10), ms(20), 2000);
        assert_eq!(found, Losses { sent: 30, lost: 8, beyond: 2, first_reply: Some(1015) });
        assert_eq!(seen.round_trip(ms(9)), Some(300));
        assert_eq!(Seen::default().losses(0, 1, 0).first_reply, None);
    }

    #[test]
    fn answers_of_others_are_not_ours() {
        let mut packet = vec![0x45; 20];
        packet.extend(request(7, 70_000));
        assert_eq!(number(&packet, 7), None, "a request");
        packet[20] = ECHO_REPLY;
        assert_eq!((number(&packet, 7), number(&packet, 8)), (Some(70_000), None));
        assert_eq!(number(&packet[..25], 7), None);
        assert_eq!(number(&[], 7), None);
    }

    #[test]
    fn loopback_answers_every_probe() {
        let netns = Netns::current().unwrap();
        let Ok(probe) = Probe::start(&netns, Ipv4Addr::LOCALHOST, Duration::from_millis(1)) else {
            println!("SKIPPED: raw sockets need root");
            return;
        };
        std::thread::sleep(Duration::from_millis(50));
        let seen = probe.stop().unwrap();
        let lost = seen.0.iter().filter(|(_, answer)| answer.is_none()).count();
        assert!(seen.0.len() > 10 && lost == 0, "{lost} of {} lost", seen.0.len());
    }
}
