//! A question every millisecond, each with its number, and what became of each: datagrams to the guest's echo, which a
//! program answers, or pings, which its kernel answers.

use super::clock::{self, Micros};
use anyhow::{Context as _, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// How long answers are waited for in all. A guest that is short of time may be behind by a second and more.
const LATEST: Duration = Duration::from_secs(10);
/// How often a question is given to the kernel: it may answer with an error that an earlier one has met (ICMP's, on a
/// connected socket), and sends nothing then.
const ATTEMPTS: usize = 3;
/// Room for answers, bytes: all that come in a burst after a pause, however late their reader is.
const ROOM: libc::c_int = 8 << 20;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// ICMP's header (RFC 792), then which probe's it is, and its number. Datagrams have the same bytes.
const SIZE: usize = 20;

/// A running probe.
pub struct Probe {
    stop: Arc<AtomicBool>,
    /// How long another answer is waited for, in milliseconds.
    late: Arc<AtomicU64>,
    /// When the last answer came.
    heard: Arc<AtomicI64>,
    /// How many questions were asked, and how many of these until the newest one that was answered.
    counts: Arc<(AtomicU64, AtomicU64)>,
    sender: JoinHandle<(Vec<Micros>, usize)>,
    receiver: JoinHandle<Vec<(u32, Micros)>>,
}

/// What became of the probes.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When each was sent, and when its first answer came.
    pub probes: Vec<(Micros, Option<Micros>)>,
    /// When answers came, also those to what was answered before: a network that floods gives the guest a question
    /// twice, once in its old place and once in its new one.
    pub answers: Vec<Micros>,
    /// Questions that our own kernel did not send. They count as lost.
    pub unsent: usize,
}

/// What a pause cost.
#[derive(Clone, PartialEq, Debug)]
pub struct Losses {
    /// Probes sent.
    pub sent: usize,
    /// Probes without an answer.
    pub lost: usize,
    /// When these were sent, counted from the pause's beginning.
    pub when: Vec<Micros>,
    /// Of these, those that the pause does not excuse, by when they were sent, counted from its end.
    pub beyond: Vec<Micros>,
    /// Probes sent before the pause that were answered only after it: not lost, but held up without need.
    pub held: usize,
    /// From the guest's first moment on the destination to the first answer from there.
    pub first_reply: Option<Micros>,
    /// Of those lost, questions that our own kernel did not send.
    pub unsent: usize,
}

impl Probe {
    /// Asks an address from a namespace once in `step`: the echo at a port, or the kernel by pings.
    ///
    /// # Errors
    /// If that cannot be begun.
    pub fn start(netns: &Netns, who: Ipv4Addr, port: Option<u16>, step: Duration) -> Result<Self> {
        let open = || -> std::io::Result<(UdpSocket, UdpSocket)> {
            let socket = match port {
                Some(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
                None => raw_icmp()?,
            };
            socket.connect((who, port.unwrap_or(0)))?;
            set_room(&socket)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok((socket.try_clone()?, socket))
        };
        let (tx, rx) = netns.run(open)?.with_context(|| format!("open a probe of {who}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (send_stop, receive_stop) = (stop.clone(), stop.clone());
        let late = Arc::new(AtomicU64::new(0));
        let receive_late = late.clone();
        let (id, heard) = (clock::now() as u64, Arc::new(AtomicI64::new(0)));
        let tell = heard.clone();
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (asked, answered) = (counts.clone(), counts.clone());
        let name = || std::thread::Builder::new().name("probe".to_owned());
        let receiver = name().spawn(move || {
            receive(&rx, id, port.is_none(), (&tell, &answered.1), (&receive_stop, &receive_late))
        })?;
        let sender = name().spawn(move || send(&tx, id, step, &asked.0, &send_stop))?;
        Ok(Self { stop, late, heard, counts, sender, receiver })
    }

    /// Waits until no more than `most` questions are newer than the newest one that was answered, or patience is at its
    /// end; whether that is so.
    pub fn wait_kept_up(&self, most: u64, patience: Duration) -> bool {
        let begin = Instant::now();
        loop {
            let (asked, answered) =
                (self.counts.0.load(Ordering::Relaxed), self.counts.1.load(Ordering::Relaxed));
            let kept_up = answered > 0 && asked.saturating_sub(answered) <= most;
            if kept_up || begin.elapsed() > patience {
                return kept_up;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until an answer comes after a moment, or patience is at its end.
    pub fn wait_heard(&self, after: Micros, patience: Duration) {
        let begin = Instant::now();
        while self.heard.load(Ordering::Relaxed) <= after && begin.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops asking, waits for late answers, until none has come for so long, and tells.
    ///
    /// # Errors
    /// If a thread broke off.
    pub fn stop(self, late: Duration) -> Result<Seen> {
        self.late.store(late.as_millis() as u64, Ordering::Relaxed);
        self.stop.store(true, Ordering::Release);
        let broke = |_| anyhow::anyhow!("the probe broke off");
        let (sent, unsent) = self.sender.join().map_err(broke)?;
        let mut probes: Vec<_> = sent.into_iter().map(|at| (at, None)).collect();
        let heard = self.receiver.join().map_err(broke)?;
        for (number, at) in &heard {
            if let Some((_, answer @ None)) = probes.get_mut(*number as usize) {
                *answer = Some(*at);
            }
        }
        Ok(Seen { probes, answers: heard.into_iter().map(|(_, at)| at).collect(), unsent })
    }
}

impl Seen {
    /// The median time from question to answer of those asked before a moment; none without answers.
    #[must_use]
    pub fn round_trip(&self, before: Micros) -> Option<Micros> {
        let asked = self.probes.iter().filter(|(sent, _)| *sent < before);
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
        let lost = || self.probes.iter().filter(|(_, answer)| answer.is_none()).map(|(sent, _)| *sent);
        let first = self.answers.iter().copied().filter(|at| *at > resume).min();
        Losses {
            sent: self.probes.len(),
            lost: lost().count(),
            when: lost().map(|at| at - stop).collect(),
            beyond: lost().filter(|at| *at < stop - margin || *at > resume).map(|at| at - resume).collect(),
            held: self
                .probes
                .iter()
                .filter(|(at, answer)| *at < stop - margin && *answer > Some(resume))
                .count(),
            first_reply: first.map(|at| at - resume),
            unsent: self.unsent,
        }
    }
}

/// Sends by the clock, so that a late wake-up is made good and the rate holds.
fn send(
    socket: &UdpSocket,
    id: u64,
    step: Duration,
    asked: &AtomicU64,
    stop: &AtomicBool,
) -> (Vec<Micros>, usize) {
    clock::first_served();
    let (mut sent, mut unsent) = (Vec::new(), 0);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let question = question(id, sent.len() as u32);
        sent.push(clock::now());
        asked.store(sent.len() as u64, Ordering::Relaxed);
        // What cannot be sent is lost, and shows as that.
        if (0..ATTEMPTS).all(|_| socket.send(&question).is_err()) {
            unsent += 1;
        }
        due += step;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    (sent, unsent)
}

fn receive(
    socket: &UdpSocket,
    id: u64,
    raw: bool,
    (heard, answered): (&AtomicI64, &AtomicU64),
    (stop, late): (&AtomicBool, &AtomicU64),
) -> Vec<(u32, Micros)> {
    let late = || Duration::from_millis(late.load(Ordering::Relaxed));
    clock::first_served();
    let mut answers = Vec::new();
    let mut buffer = [0; 512];
    let (mut end, mut latest) = (None, None);
    while end.is_none_or(|end| Instant::now() < end) {
        if let Ok(length) = socket.recv(&mut buffer) {
            let at = clock::now();
            if let Some(number) = number(buffer.get(..length).unwrap_or_default(), id, raw) {
                answers.push((number, at));
                heard.store(at, Ordering::Relaxed);
                answered.fetch_max(u64::from(number) + 1, Ordering::Relaxed);
                // Whoever still works off what came during the pause has lost nothing of it.
                end = latest.map(|latest| (Instant::now() + late()).min(latest));
            }
        }
        if latest.is_none() && stop.load(Ordering::Acquire) {
            latest = Some(Instant::now() + LATEST);
            end = Some(Instant::now() + late());
        }
    }
    answers
}

fn question(id: u64, number: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[0] = ECHO_REQUEST;
    bytes[8..16].copy_from_slice(&id.to_be_bytes());
    bytes[16..].copy_from_slice(&number.to_be_bytes());
    let mut sum: u32 = bytes.chunks_exact(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    bytes[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// The number in an answer to us. Raw sockets get the IP header, too, and everybody's messages.
fn number(packet: &[u8], ours: u64, raw: bool) -> Option<u32> {
    let header = if raw { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let bytes: &[u8; SIZE] = packet.get(header..)?.first_chunk()?;
    let (id, number) = bytes.get(8..)?.split_first_chunk()?;
    let answer = !raw || bytes[0] == ECHO_REPLY;
    (answer && u64::from_be_bytes(*id) == ours).then_some(u32::from_be_bytes(number.try_into().ok()?))
}

/// Gives a socket room, whatever the host's limit.
fn set_room(socket: &UdpSocket) -> std::io::Result<()> {
    // A constant has no place that the kernel could read.
    let room = ROOM;
    let length = size_of_val(&room) as libc::socklen_t;
    // SAFETY: the option reads one number, which is live, and is told its length.
    let done = unsafe {
        let room = (&raw const room).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room, length)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
            7 | 15..=20 => Some(ms(21) + n),
            n => Some(ms(n) + 300),
        };
        let probes: Vec<_> = (0..30).map(|n| (ms(n), answer(n))).collect();
        let answers = probes.iter().filter_map(|(_, answer)| *answer).collect();
        let mut seen = Seen { probes, answers, unsent: 0 };
        let found = seen.losses(ms(10), ms(20), 2000);
        assert_eq!(
            found,
            Losses {
                sent: 30,
                lost: 8,
                when: lost.map(|n| ms(n) - ms(10)).to_vec(),
                beyond: vec![-16_000, 2_000],
                held: 1,
                first_reply: Some(1007),
                unsent: 0
            }
        );
        assert_eq!(seen.round_trip(ms(9)), Some(300));
        // Answered for the second time.
        seen.answers.push(ms(20) + 500);
        assert_eq!(seen.losses(ms(10), ms(20), 2000), Losses { first_reply: Some(500), ..found });
        assert_eq!(Seen::default().losses(0, 1, 0).first_reply, None);
    }

    #[test]
    fn answers_of_others_are_not_ours() {
        let bytes = question(7, 70_000);
        assert_eq!((number(&bytes, 7, false), number(&bytes, 8, false)), (Some(70_000), None));
        assert_eq!(number(&bytes[..19], 7, false), None);
        let mut packet = vec![0x45; 20];
        packet.extend(bytes);
        assert_eq!(number(&packet, 7, true), None, "a request");
        packet[20] = ECHO_REPLY;
        assert_eq!((number(&packet, 7, true), number(&packet, 8, true)), (Some(70_000), None));
        assert_eq!(number(&[], 7, true), None);
    }

    #[test]
    fn who_does_not_answer_does_not_keep_up() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let netns = Netns::current().unwrap();
        let Ok(probe) = Probe::start(&netns, Ipv4Addr::LOCALHOST, Some(port), Duration::from_millis(1))
        else {
            println!("SKIPPED: entering a namespace needs root");
            return;
        };
        let (mut buffer, patience) = ([0; 64], Duration::from_millis(50));
        assert!(!probe.wait_kept_up(0, Duration::ZERO));
        let (length, from) = silent.recv_from(&mut buffer).unwrap();
        silent.send_to(&buffer[..length], from).unwrap();
        probe.wait_heard(0, Duration::from_secs(10));
        // The first question is answered and the others, some ten by now and more to come, are not.
        while silent.recv_from(&mut buffer).unwrap().0 > 0 && u32::from(buffer[19]) < 10 {}
        assert!(!probe.wait_kept_up(5, patience));
        assert!(probe.wait_kept_up(1 << 20, patience));
        probe.stop(Duration::ZERO).unwrap();
    }

    #[test]
    fn an_echo_answers_every_probe() {
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = echo.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                echo.send_to(&buffer[..length], from).unwrap();
            }
        });
        let netns = Netns::current().unwrap();
        for port in [Some(port), None] {
            let Ok(probe) = Probe::start(&netns, Ipv4Addr::LOCALHOST, port, Duration::from_millis(1)) else {
                println!("SKIPPED: entering a namespace and raw sockets need root");
                return;
            };
            assert!(probe.wait_kept_up(5, Duration::from_secs(10)), "{port:?}");
            probe.wait_heard(clock::now() + 50_000, Duration::from_secs(10));
            let seen = probe.stop(Duration::from_millis(100)).unwrap();
            let lost = seen.probes.iter().filter(|(_, answer)| answer.is_none()).count();
            assert!(seen.probes.len() > 10 && lost == 0, "{port:?}: {lost} of {} lost", seen.probes.len());
            assert_eq!(seen.unsent, 0);
        }
    }
}
