//! Changes of links as they happen.

use crate::link::{RTM_DELLINK, RTM_NEWLINK};
use crate::netlink::Socket;
use crate::{Error, Link, Netns, Result};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A link appeared or changed; this is how it is now.
    Changed(Link),
    /// A link is gone: deleted, or moved to another namespace.
    Gone {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
    },
    /// An address of a link came or went.
    Addresses {
        /// Number of the link.
        index: u32,
    },
    /// More happened than the socket could hold: list everything again.
    Overrun,
}

/// A stream of [`LinkEvent`]s of one namespace.
///
/// It is a file descriptor that becomes readable; wrap it into a runtime's (tokio: `AsyncFd`) and
/// call [`LinkWatch::try_next`], or use [`LinkWatch::wait`] on a plain thread.
///
/// Events come within a millisecond, with one exception of the kernel's: after a loss of carrier it
/// holds back further losses in the namespace for up to a second (`linkwatch`; not for bond members). Who
/// cannot wait that long, as during a migration, asks [`Links::by_index`](crate::Links::by_index)
/// now and then: its `carrier` is always that of this moment.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Starts watching the calling thread's namespace.
    pub fn here() -> Result<Self> {
        let socket = Socket::listen(GROUPS).map_err(Error::system("watch links"))?;
        Ok(Self { socket })
    }

    /// Starts watching another namespace.
    pub fn in_netns(netns: &Netns) -> Result<Self> {
        netns.run(Self::here)?
    }

    /// Takes what has happened since the last call, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has.
    pub fn try_next(&self) -> io::Result<Vec<LinkEvent>> {
        match self.socket.read() {
            Ok(messages) => Ok(messages.iter().filter_map(event).collect()),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![LinkEvent::Overrun]),
            Err(e) => Err(e),
        }
    }

    /// Waits until something happens; empty after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<LinkEvent>> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.try_next() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(events) if events.is_empty() => {}
                other => return other,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            poll(self.socket.as_fd(), left)?;
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

fn event(message: &crate::netlink::Message) -> Option<LinkEvent> {
    const AF_UNSPEC: u8 = 0;
    match message.kind {
        // Bridges announce their ports with a family of their own and half of the attributes.
        RTM_NEWLINK if message.u8_at(0) == AF_UNSPEC => Some(LinkEvent::Changed(Link::parse(message))),
        RTM_DELLINK if message.u8_at(0) == AF_UNSPEC => {
            let link = Link::parse(message);
            Some(LinkEvent::Gone { index: link.index, name: link.name })
        }
        RTM_NEWADDR | RTM_DELADDR => Some(LinkEvent::Addresses { index: message.u32_at(4) }),
        _ => None,
    }
}

fn poll(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
    // SAFETY: the pointer is to one live `pollfd` and the count says one.
    if unsafe { libc::poll(&raw mut poll, 1, ms) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
