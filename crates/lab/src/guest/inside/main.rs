//! What runs inside of a lab's guests, beside busybox: runs the lab's commands, answers its probes.
//!
//! Compiled by the lab's build script into a static program of its own, as a guest has no libraries; therefore it
//! uses nothing but the standard library.

mod exec;
mod frame;
#[path = "../../tool/measure.rs"]
mod measure;
#[path = "../../tool/serve.rs"]
mod serve;

use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io, thread};

/// The port of the echo service (RFC 862).
const ECHO: u16 = 7;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match *words {
        ["serve", name] => run(name),
        ["ask", address] => return ask(address),
        ["probe", address, name, rate] => probe(address, name, rate),
        ["stream", address, pace_us] => stream(address, pace_us),
        _ => Err(io::Error::other("use: tenet-guest serve NAME | ask ADDRESS | probe ADDRESS NAME RATE | stream ADDRESS PACE_US")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tenet-guest: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> io::Result<()> {
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let (udp, tcp) = (UdpSocket::bind((any, serve::PORT))?, TcpListener::bind((any, serve::PORT))?);
    let (name, copy) = (name.to_owned(), name.to_owned());
    thread::spawn(move || serve::datagrams(&udp, &name));
    thread::spawn(move || serve::connections(&tcp, &copy));
    let (udp, tcp) = (UdpSocket::bind((any, ECHO))?, TcpListener::bind((any, ECHO))?);
    thread::spawn(move || serve::answer(&udp, &[]));
    thread::spawn(move || echo(&tcp));
    // Last: the lab takes an answer on these ports for "the guest is up".
    exec::serve_all()?;
    loop {
        thread::park();
    }
}

/// Sends back what comes, on each connection.
fn echo(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        thread::spawn(move || {
            _ = io::copy(&mut &stream, &mut &stream);
            _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Asks at a rate until the input ends, then says what became of it.
fn probe(address: &str, name: &str, rate: &str) -> io::Result<()> {
    let who: IpAddr = address.parse().map_err(io::Error::other)?;
    let rate: u32 = rate.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((serve::unspecified(who), 0))?;
    socket.connect((who, serve::PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (copy, stop) = (socket.try_clone()?, until_input_ends());
    let (stopped, name) = (stop.clone(), name.to_owned());
    let receiver = thread::spawn(move || measure::receive(&copy, &name, &stopped));
    let sent = measure::probe(&socket, Duration::from_secs(1) / rate.max(1), &stop);
    let answers = receiver.join().map_err(|_| io::Error::other("the receiver broke off"))?;
    let r = measure::sum(&sent, &answers);
    println!(
        r#"{{"sent":{},"answered":{},"lost":{},"duplicates":{},"reordered":{},"strangers":{},"longest_gap_us":{},"median_us":{}}}"#,
        r.sent, r.answered, r.lost, r.duplicates, r.reordered, r.strangers, r.longest_gap_us, r.median_us
    );
    Ok(())
}

/// Sends a checked stream until the input ends, then says what became of it.
fn stream(address: &str, pace_us: &str) -> io::Result<()> {
    let who: IpAddr = address.parse().map_err(io::Error::other)?;
    let pace = Duration::from_micros(pace_us.parse().map_err(io::Error::other)?);
    let to = TcpStream::connect_timeout(&SocketAddr::new(who, serve::PORT), Duration::from_secs(5))?;
    let (peer, sent, verdict, took) = measure::stream(to, pace, &until_input_ends())?;
    println!(r#"{{"peer":"{peer}","sent":{sent},"received":{verdict},"millis":{}}}"#, took.as_millis());
    Ok(())
}

/// Becomes true when the input ends.
fn until_input_ends() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let copy = stop.clone();
    thread::spawn(move || {
        // Whatever it holds; an error is an end too.
        _ = io::copy(&mut io::stdin(), &mut io::sink());
        copy.store(true, Ordering::Relaxed);
    });
    stop
}

/// Says who answers at an address; fails if nobody does within two seconds.
fn ask(address: &str) -> ExitCode {
    let asked = address.parse::<IpAddr>().map_err(io::Error::other).and_then(|who| {
        let socket = UdpSocket::bind((serve::unspecified(who), 0))?;
        let token = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        serve::ask(&socket, who, Duration::from_secs(2), token)
    });
    match asked {
        Ok(Some(name)) => {
            println!("{name}");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("nobody answers at {address}");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("ask {address}: {e}");
            ExitCode::FAILURE
        }
    }
}
