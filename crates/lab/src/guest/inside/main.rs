//! What runs inside of a lab's guests, beside busybox: runs the lab's commands, answers its probes.
//!
//! Compiled by the lab's build script into a static program of its own, as a guest has no libraries; therefore it
//! uses nothing but the standard library.

mod exec;
mod frame;
#[path = "../../tool/serve.rs"]
mod serve;

use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpListener, UdpSocket};
use std::process::ExitCode;
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
        _ => Err(io::Error::other("use: tenet-guest serve NAME | tenet-guest ask ADDRESS")),
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
