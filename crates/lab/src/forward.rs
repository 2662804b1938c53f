//! Lets a program outside of the lab reach the lab's controller: a listener here, connections made there.

use crate::{Error, Result};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tenet_hostnet::Netns;

/// A forwarder from a local port into a namespace; ends with its handle.
#[derive(Debug)]
pub struct Forwarder {
    local: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Forwarder {
    /// Listens on a free loopback port and connects from `netns` to `target`.
    pub fn start(netns: Netns, target: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("listen on 127.0.0.1"))?;
        let local = listener.local_addr().map_err(Error::io("listen on 127.0.0.1"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let accept = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A refused connection is the caller's to see: its stream closes.
                if let Ok(stream) = stream {
                    _ = join(&netns, target, stream);
                }
            }
        };
        let thread = std::thread::Builder::new().name("lab-forward".to_owned());
        thread.spawn(accept).map_err(Error::io("start a thread"))?;
        Ok(Self { local, stop })
    }

    /// The local port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.local.port()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees that it shall stop.
        _ = TcpStream::connect_timeout(&self.local, Duration::from_secs(1));
    }
}

fn join(netns: &Netns, target: SocketAddr, near: TcpStream) -> io::Result<()> {
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let far = netns.run(connect).map_err(io::Error::other)??;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    for (mut from, mut to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        std::thread::Builder::new().name("lab-forward".to_owned()).stack_size(128 << 10).spawn(
            move || {
                _ = io::copy(&mut from, &mut to);
                _ = to.shutdown(Shutdown::Write);
            },
        )?;
    }
    Ok(())
}

/// The controller's REST address inside of the lab.
pub fn rest(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 7443)
}
