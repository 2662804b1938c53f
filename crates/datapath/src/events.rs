//! What the programs tell: the ring `EVENTS`.

use crate::{Datapath, Error, Result};
use aya::maps::{Map, MapData, RingBuf};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};
use tenet_tables::Event;
use zerocopy::FromBytes;

/// Reads events. A file descriptor that becomes readable: wrap it into a runtime's (tokio: `AsyncFd`)
/// and call [`Events::next`] until it is `None`; or use [`Events::wait`] on a plain thread.
///
/// There can be one reader at a time; what it has read is gone, also for an agent that starts later.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Datapath {
    /// Opens the ring of events.
    pub fn events(&self) -> Result<Events> {
        let failed = |e: aya::maps::MapError| Error::System {
            action: "open the ring of events".to_owned(),
            source: io::Error::other(e),
        };
        let data = MapData::from_pin(self.pins.maps().join("EVENTS")).map_err(failed)?;
        let map = Map::from_map_data(data).map_err(failed)?;
        Ok(Events { ring: RingBuf::try_from(map).map_err(failed)? })
    }
}

impl Events {
    /// Takes the next event, if there is one.
    #[expect(clippy::should_implement_trait, reason = "not the end of a sequence: more may come after None")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            // Shorter entries would come from a newer program; they are skipped, not misread.
            if let Ok((event, _)) = Event::read_from_prefix(&item) {
                return Some(event);
            }
        }
    }

    /// Waits for an event; `None` after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<Event>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.next() {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            poll(self.as_fd(), left)?;
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
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
