//! A packet socket with virtio headers, which takes and gives frames of any size in batches.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use tenet_hostnet::Netns;

/// Frames taken by one call.
const BATCH: usize = 32;
/// Room for one: the slow device's near end cuts up what is larger than the uplink's segments.
const FRAME: usize = 66_000;
/// What may wait in the socket.
const BUFFER: libc::c_int = 8 << 20;

/// A socket that sees what comes out of a device, and sends into it.
pub(super) struct Socket {
    fd: OwnedFd,
    ifindex: i32,
    buffers: Vec<Vec<u8>>,
    lengths: Vec<usize>,
}

impl Socket {
    /// Opens one on a device of a namespace.
    pub(super) fn open(netns: &Netns, ifindex: u32) -> io::Result<Self> {
        netns.run(|| open(ifindex)).map_err(io::Error::other)?
    }

    /// Waits for frames and takes as many as there are, up to a batch; how many.
    pub(super) fn receive(&mut self, patience: Duration) -> io::Result<usize> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one live `pollfd`.
        match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
            0 => return Ok(0),
            n if n < 0 => return interrupted(io::Error::last_os_error()),
            _ => {}
        }
        let mut vectors: Vec<libc::iovec> = self
            .buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors.iter_mut().map(message).collect();
        let count = messages.len() as u32;
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: each message points to one live buffer by one live vector; both outlive the call.
        let taken = unsafe {
            libc::recvmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, flags, std::ptr::null_mut())
        };
        let Ok(taken) = usize::try_from(taken) else { return interrupted(io::Error::last_os_error()) };
        self.lengths.clear();
        self.lengths.extend(messages.iter().take(taken).map(|m| m.msg_len as usize));
        Ok(taken)
    }

    /// What [`Self::receive`] took: virtio header and frame.
    pub(super) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().zip(&self.lengths).filter_map(|(b, len)| b.get(..*len))
    }

    /// Frames that came while there was no room for them, since the last call.
    pub(super) fn missed(&self) -> io::Result<u64> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as u32;
        // SAFETY: the value is live and as long as said.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if result != 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops.into()) }
    }

    /// Sends a frame behind its virtio header out of the device. `protocol`: the link header's type.
    pub(super) fn send(&self, frame: &[u8], protocol: u16) -> io::Result<()> {
        let to = address(self.ifindex, protocol);
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: frame and address are live and as long as said.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const to).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Nothing taken, if the error says no more than that.
fn interrupted(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(0),
        _ => Err(error),
    }
}

fn message(vector: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: plain numbers and pointers, for which zero is valid.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = vector;
    message.msg_hdr.msg_iovlen = 1;
    message
}

fn address(ifindex: i32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: plain numbers, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex;
    address.sll_halen = 6;
    address
}

fn open(ifindex: u32) -> io::Result<Socket> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers. With protocol 0 nothing comes before the socket is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: ours, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    // More than the host's limit needs a privilege that a container may lack; less memory is no failure.
    if set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER).is_err() {
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER)?;
    }
    let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let to = address(ifindex, libc::ETH_P_ALL as u16);
    let length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address is live and as long as said.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const to).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Socket { fd, ifindex, buffers: vec![vec![0; FRAME]; BATCH], lengths: Vec::with_capacity(BATCH) })
}

fn set(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as u32;
    // SAFETY: the value is live and as long as said.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_hostnet::Links;

    /// More than there is room for: what was not taken is counted, and once.
    #[test]
    fn what_overflows_is_counted() {
        // SAFETY: no arguments, no effects.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: needs root to create network namespaces");
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let links = Links::in_netns(&netns).unwrap();
        links.add_veth("near", "far", &netns).unwrap();
        for name in ["near", "far"] {
            // No frames but ours.
            links.quiet(name).unwrap();
            links.set_up(name).unwrap();
        }
        let near = Socket::open(&netns, links.index("near").unwrap()).unwrap();
        let mut far = Socket::open(&netns, links.index("far").unwrap()).unwrap();
        // A virtio header without a word, and a frame.
        let frame = vec![0; 10 + 1400];
        let mut sent = 0;
        while sent < 40_000 {
            match near.send(&frame, 0x88b5) {
                Ok(()) => sent += 1,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{e}"),
            }
        }
        let (mut received, mut missed) = (0, 0);
        loop {
            let taken = far.receive(Duration::from_millis(50)).unwrap() as u64;
            missed += far.missed().unwrap();
            if taken == 0 {
                break;
            }
            received += taken;
        }
        println!("{received} received, {missed} missed");
        // A kernel that is behind may lose some before the socket; none is counted twice.
        assert!(received > 0 && missed > 0 && received + missed <= sent, "{received} and {missed} of {sent}");
    }
}
