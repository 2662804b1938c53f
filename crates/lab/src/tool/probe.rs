//! A steady stream of small UDP questions, and what became of them.

use crate::tool::PORT;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// What a probe saw.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Questions sent.
    pub sent: u64,
    /// Questions answered.
    pub answered: u64,
    /// Questions never answered.
    pub lost: u64,
    /// Answers beyond the first to a question.
    pub duplicates: u64,
    /// Answers that came after that to a later question.
    pub reordered: u64,
    /// Answers by somebody else than expected.
    pub strangers: u64,
    /// Longest time between two answers, in microseconds.
    pub longest_gap_us: u64,
    /// Median time from question to answer, in microseconds.
    pub median_us: u64,
}

/// A running probe.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<Instant>>>,
    receiver: Option<JoinHandle<Vec<(u64, Instant, bool)>>>,
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
        let sender = thread("probe-send", move || send(&tx, step, &send_stop))?;
        let receiver = thread("probe-receive", move || receive(&rx, &expected, &receive_stop))?;
        Ok(Self { stop, sender: Some(sender), receiver: Some(receiver) })
    }

    /// Stops asking, waits a moment for late answers and sums up.
    pub fn stop(mut self) -> Result<ProbeReport> {
        self.stop.store(true, Ordering::Relaxed);
        let broke = |_| Error::io("probe")(std::io::Error::other("the thread broke off"));
        let sent = self.sender.take().map_or(Ok(Vec::new()), JoinHandle::join).map_err(broke)?;
        let answers = self.receiver.take().map_or(Ok(Vec::new()), JoinHandle::join).map_err(broke)?;
        Ok(sum(&sent, &answers))
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

/// Sends by the clock, so that a late wake-up is made good and the rate holds.
fn send(socket: &UdpSocket, step: Duration, stop: &AtomicBool) -> Vec<Instant> {
    let mut sent = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(Instant::now());
        // What cannot be sent is lost, and shows as that.
        _ = socket.send(&number.to_be_bytes());
        due += step;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, expected: &str, stop: &AtomicBool) -> Vec<(u64, Instant, bool)> {
    let mut answers = Vec::new();
    let mut buffer = [0; 512];
    let mut quiet_after_stop = 0;
    while quiet_after_stop < 6 {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let at = Instant::now();
                let answer = buffer.get(..length).unwrap_or_default();
                if let Some((name, number)) =
                    answer.split_last_chunk::<8>().map(|(n, c)| (n, u64::from_be_bytes(*c)))
                {
                    answers.push((number, at, name.strip_suffix(b"\n") == Some(expected.as_bytes())));
                }
            }
            Err(_) if stop.load(Ordering::Relaxed) => quiet_after_stop += 1,
            Err(_) => {}
        }
    }
    answers
}

fn sum(sent: &[Instant], answers: &[(u64, Instant, bool)]) -> ProbeReport {
    let mut seen = vec![false; sent.len()];
    let mut report = ProbeReport { sent: sent.len() as u64, ..ProbeReport::default() };
    let mut times = Vec::with_capacity(answers.len());
    let mut newest = 0;
    let mut last: Option<Instant> = None;
    for (number, at, right) in answers {
        let index = usize::try_from(*number).unwrap_or(usize::MAX);
        let (Some(seen), Some(asked)) = (seen.get_mut(index), sent.get(index)) else {
            report.strangers += 1;
            continue;
        };
        report.strangers += u64::from(!right);
        if std::mem::replace(seen, true) {
            report.duplicates += 1;
            continue;
        }
        report.answered += 1;
        report.reordered += u64::from(*number < newest);
        newest = newest.max(*number);
        times.push(at.saturating_duration_since(*asked));
        if let Some(last) = last {
            let gap = at.saturating_duration_since(last).as_micros() as u64;
            report.longest_gap_us = report.longest_gap_us.max(gap);
        }
        last = Some(*at);
    }
    report.lost = report.sent - report.answered;
    times.sort();
    report.median_us = times.get(times.len() / 2).map_or(0, |t| t.as_micros() as u64);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lost_duplicate_reordered_and_foreign_answers() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let sent: Vec<_> = (0..6).map(at).collect();
        let answers = [
            (0, at(1), true),
            (2, at(3), true),
            (1, at(4), true),
            (2, at(5), true),
            (5, at(25), false),
            (9, at(26), true),
        ];
        let report = sum(&sent, &answers);
        let expected = ProbeReport {
            sent: 6,
            answered: 4,
            lost: 2,
            duplicates: 1,
            reordered: 1,
            strangers: 2,
            longest_gap_us: 21_000,
            median_us: 3_000,
        };
        assert_eq!(report, expected);
    }
}
