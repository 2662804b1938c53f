//! The socket that hears probes by IP Rewrite: kept open, and never listened to more than there is time for.

use super::tap::Tap;
use super::wire;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tenet_host::probe::VnetHeader;
use tokio::io::unix::AsyncFd;

/// Frames that are looked at in a second, and at once. Anybody who reaches the provider address can send some.
const RATE: u64 = 4000;
const BURST: u64 = 1000;
/// Pause once that is used up.
const PAUSE: Duration = Duration::from_millis(20);

/// What is heard beside the host's stack.
#[derive(Default)]
pub(super) struct Overheard {
    socket: Option<(Tap, AsyncFd<OwnedFd>)>,
    /// What the socket listens for.
    place: Option<(IpAddr, Vec<u32>)>,
    /// Whether it is told that there is no socket.
    told: bool,
    /// Thousandths of frames that have been looked at and are not yet made up for.
    debt: u64,
    since: Duration,
    paused: Option<Duration>,
}

impl Overheard {
    /// Listens for probes to this address on the devices of these numbers.
    pub(super) fn listen(&mut self, own: IpAddr, uplinks: &[u32]) {
        let same = self.place.as_ref().is_some_and(|(pa, on)| *pa == own && on == uplinks);
        if same && self.socket.is_some() {
            return;
        }
        let opened = wire::open(own, uplinks).and_then(|fd| {
            let tap = Tap::new(fd);
            let ready = crate::wait::register(tap.readable()?)?;
            Ok((tap, ready))
        });
        match opened {
            Ok(socket) => {
                (self.socket, self.place, self.told) = (Some(socket), Some((own, uplinks.to_vec())), false);
            }
            Err(cause) => {
                self.socket = None;
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(%cause, "probes by rewrite are not heard: other hosts' self-tests will call it broken");
                }
            }
        }
    }

    /// What to wait for, unless there was too much.
    pub(super) fn ready(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.socket.as_ref().filter(|_| self.paused.is_none()).map(|(_, ready)| ready)
    }

    /// Until when nothing is looked at.
    pub(super) const fn paused(&self) -> Option<Duration> {
        self.paused
    }

    /// Gives the frames that have come to `each`, as many as there is time for.
    pub(super) fn take(&mut self, now: Duration, mut each: impl FnMut(VnetHeader, &[u8])) {
        let passed = u64::try_from(now.saturating_sub(self.since).as_millis()).unwrap_or(u64::MAX);
        (self.debt, self.since) = (self.debt.saturating_sub(passed.saturating_mul(RATE)), now);
        self.paused = None;
        while let Some((socket, _)) = &mut self.socket {
            if self.debt >= BURST * 1000 {
                self.paused = Some(now + PAUSE);
                return;
            }
            match socket.receive() {
                Ok(Some((header, frame))) => each(header, frame),
                Ok(None) => return,
                Err(cause) => {
                    // The next compare opens another.
                    tracing::debug!(%cause, "probes by rewrite cannot be read");
                    self.socket = None;
                }
            }
            self.debt += 1000;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::os::unix::net::UnixDatagram;

    #[tokio::test]
    async fn a_flood_is_looked_at_in_measure() {
        let (to, from) = UnixDatagram::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let tap = Tap::new(from.into());
        let ready = crate::wait::register(tap.readable().unwrap()).unwrap();
        let place = Some((Ipv4Addr::LOCALHOST.into(), vec![1]));
        let mut wire = Overheard { socket: Some((tap, ready)), place, ..Overheard::default() };
        let mut now = Duration::ZERO;
        let mut seen = 0;
        // Ten seconds of a flood that is always ahead.
        while now < Duration::from_secs(10) {
            to.set_nonblocking(true).unwrap();
            while to.send(&[0; 64]).is_ok() {}
            wire.take(now, |_, _| seen += 1);
            match wire.paused() {
                Some(until) => {
                    assert!(wire.ready().is_none(), "it does not wake the agent in between");
                    now = until;
                }
                None => now += Duration::from_micros(100),
            }
        }
        let most = BURST + 10 * RATE;
        assert!(seen <= most && seen > most * 9 / 10, "{seen}");
        // And quiet again.
        loop {
            now += Duration::from_secs(1);
            wire.take(now, |_, _| ());
            if wire.paused().is_none() {
                break;
            }
        }
        assert!(wire.ready().is_some());
    }
}
