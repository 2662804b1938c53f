//! The responder: UDP and TCP, one pair of sockets in every VM, all in one process.

use crate::record::Record;
use crate::tool::{PORT, stream};
use crate::{Error, Result};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// Largest question; the answer puts the name before it.
const MOST: usize = 1400;
const STACK: usize = 128 << 10;

/// Answers for all VMs of a recorded lab until the process is ended.
pub fn respond(dir: &Path) -> Result<()> {
    let record = Record::load(dir, &dir.display().to_string())?;
    for vm in &record.vms {
        let netns = Netns::open(&vm.netns)?;
        // One socket for both families, or for IPv4 alone on a kernel without IPv6.
        let on = |any: IpAddr| {
            Ok::<_, io::Error>((UdpSocket::bind((any, PORT))?, TcpListener::bind((any, PORT))?))
        };
        let bind = || on(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| on(Ipv4Addr::UNSPECIFIED.into()));
        let (udp, tcp) = netns.run(bind)?.map_err(Error::io(format!("listen in VM {}", vm.name)))?;
        let name = vm.name.to_string();
        let copy = name.clone();
        let threads = std::thread::Builder::new().stack_size(STACK).spawn(move || datagrams(&udp, &name));
        threads.map_err(Error::io("start a thread"))?;
        let threads = std::thread::Builder::new().stack_size(STACK).spawn(move || connections(&tcp, &copy));
        threads.map_err(Error::io("start a thread"))?;
    }
    loop {
        std::thread::park();
    }
}

/// Answers each datagram with the name, a line feed and the datagram.
fn datagrams(socket: &UdpSocket, name: &str) {
    let mut question = [0; MOST];
    let mut answer = Vec::with_capacity(MOST + name.len() + 1);
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
        answer.clear();
        answer.extend_from_slice(name.as_bytes());
        answer.push(b'\n');
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

fn connections(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let name = name.to_owned();
        // One that cannot be served is closed, which its client sees.
        _ = std::thread::Builder::new().stack_size(STACK).spawn(move || stream::serve(stream, &name));
    }
}

/// Asks from a VM who is at an address; nobody, if nobody answers in time.
pub fn ask(netns: &Netns, who: IpAddr, patience: Duration) -> Result<Option<String>> {
    let failed = || format!("ask {who} from {}", netns.label());
    let socket = netns.run(|| UdpSocket::bind((super::unspecified(who), 0)))?.map_err(Error::io(failed()))?;
    let token: u64 = rand::random();
    let begin = Instant::now();
    let mut buffer = [0; MOST + 256];
    let mut wait = Duration::from_millis(50);
    while begin.elapsed() < patience {
        // Unreachable now may be reachable in a moment.
        _ = socket.send_to(&token.to_be_bytes(), (who, PORT));
        socket.set_read_timeout(Some(wait)).map_err(Error::io(failed()))?;
        wait = wait.saturating_mul(2).min(Duration::from_millis(500));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            let Ok(length) = socket.recv(&mut buffer) else { break };
            let answer = buffer.get(..length).unwrap_or_default();
            if let Some(name) = answer.strip_suffix(&token.to_be_bytes()).and_then(|a| a.strip_suffix(b"\n"))
            {
                return Ok(Some(String::from_utf8_lossy(name).into_owned()));
            }
        }
    }
    Ok(None)
}
