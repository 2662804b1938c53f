//! The measuring ends of a probe and of a stream. The same source is compiled into the lab, which measures from VMs that
//! are namespaces, and into the program inside of guests; so it uses nothing but the standard library.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes written at a time.
const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a probe saw.
#[cfg_attr(not(inside_guest), derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
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

/// Sends by the clock, so that a late wake-up is made good and the rate holds.
pub fn probe(socket: &UdpSocket, step: Duration, stop: &AtomicBool) -> Vec<Instant> {
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

/// Collects the answers: the question's number, when it came, and whether the name is the expected one.
pub fn receive(socket: &UdpSocket, expected: &str, stop: &AtomicBool) -> Vec<(u64, Instant, bool)> {
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

/// Sums up what was asked and answered.
pub fn sum(sent: &[Instant], answers: &[(u64, Instant, bool)]) -> ProbeReport {
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

/// What the sender of a stream knows: who answered, bytes sent, the receiver's verdict in its own words (JSON), and how
/// long it ran.
pub type Sent = (String, u64, String, Duration);

/// Sends numbered words, a chunk every `pace`, until it is told to stop.
pub fn stream(mut stream: TcpStream, pace: Duration, stop: &AtomicBool) -> io::Result<Sent> {
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
    Ok((peer.trim_end().to_owned(), next * 8, verdict.trim_end().to_owned(), begin.elapsed()))
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
