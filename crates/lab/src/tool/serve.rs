//! Who answers in a VM, and how it is asked. The same source is compiled into the lab, which answers for VMs that are
//! namespaces, and into the program inside of guests; so it uses nothing but the standard library.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The port on which every VM's responder listens, UDP and TCP.
pub const PORT: u16 = 7007;
/// Largest question; the answer puts the name before it.
const MOST: usize = 1400;
const STACK: usize = 128 << 10;
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// The address that stands for all of its family.
pub const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Answers each datagram with the name, a line feed and the datagram.
pub fn datagrams(socket: &UdpSocket, name: &str) {
    answer(socket, format!("{name}\n").as_bytes());
}

/// Answers each datagram with some bytes and the datagram.
pub fn answer(socket: &UdpSocket, before: &[u8]) {
    let mut question = [0; MOST];
    let mut answer = Vec::with_capacity(MOST + before.len());
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
        answer.clear();
        answer.extend_from_slice(before);
        answer.extend_from_slice(question.get(..length).unwrap_or_default());
        let begin = Instant::now();
        // A VM between two hosts has no route for a moment; a guest would be paused and answer afterwards.
        while let Err(e) = socket.send_to(&answer, from) {
            if !matches!(e.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable)
                || begin.elapsed() > Duration::from_millis(100)
            {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Checks each stream that comes, on its own thread.
pub fn connections(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let name = name.to_owned();
        // One that cannot be served is closed, which its client sees.
        _ = Builder::new().stack_size(STACK).spawn(move || check(stream, &name));
    }
}

/// The receiver: says its name, checks what comes, says what it found.
pub fn check(mut stream: TcpStream, name: &str) -> io::Result<()> {
    writeln!(stream, "{name}")?;
    let (mut bytes, mut in_order, mut longest_gap_us) = (0_u64, true, 0_u64);
    let mut buffer = vec![0; CHUNK];
    let mut kept = 0;
    let mut next = 0_u64;
    let mut last: Option<Instant> = None;
    loop {
        let free = buffer.get_mut(kept..).unwrap_or_default();
        let got = stream.read(free)?;
        if got == 0 {
            break;
        }
        let now = Instant::now();
        if let Some(last) = last {
            let gap = now.saturating_duration_since(last).as_micros() as u64;
            longest_gap_us = longest_gap_us.max(gap);
        }
        last = Some(now);
        bytes += got as u64;
        let filled = kept + got;
        let words = buffer.get(..filled).unwrap_or_default().chunks_exact(8);
        for word in words {
            in_order &= word == next.to_be_bytes();
            next += 1;
        }
        kept = filled % 8;
        buffer.copy_within(filled - kept..filled, 0);
    }
    in_order &= kept == 0;
    // The verdict, as the sender reads it.
    writeln!(stream, r#"{{"bytes":{bytes},"in_order":{in_order},"longest_gap_us":{longest_gap_us}}}"#)
}

/// Asks who is at an address; nobody, if nobody answers in time. The token tells our answers from others'.
pub fn ask(socket: &UdpSocket, who: IpAddr, patience: Duration, token: u64) -> io::Result<Option<String>> {
    let begin = Instant::now();
    let mut buffer = [0; MOST + 256];
    let mut wait = Duration::from_millis(50);
    while begin.elapsed() < patience {
        // Unreachable now may be reachable in a moment.
        _ = socket.send_to(&token.to_be_bytes(), (who, PORT));
        socket.set_read_timeout(Some(wait))?;
        wait = wait.saturating_mul(2).min(Duration::from_millis(500));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            let Ok(length) = socket.recv(&mut buffer) else { break };
            let answer = buffer.get(..length).unwrap_or_default();
            let name = answer.strip_suffix(&token.to_be_bytes()).and_then(|a| a.strip_suffix(b"\n"));
            if let Some(name) = name {
                return Ok(Some(String::from_utf8_lossy(name).into_owned()));
            }
        }
    }
    Ok(None)
}
