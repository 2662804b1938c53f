//! Frames that are handed to a device as they are.

use crate::{Error, Netns, Result};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A socket by which whole Ethernet frames leave by devices of one network namespace (packet(7)); it receives nothing.
///
/// To be kept: when it is closed, the kernel waits until nobody can be looking at it any more (`packet_release`), which
/// takes some ten milliseconds.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// Opens one in a namespace.
    ///
    /// # Errors
    /// What the kernel says: the caller lacks `CAP_NET_RAW`, say.
    pub fn in_netns(netns: &Netns) -> Result<Self> {
        netns.run(open)?.map(Self).map_err(Error::system("open a socket for frames"))
    }

    /// Sends a frame out of a device: out of a tap, that is to whoever has it open. It does not pass programs on the
    /// device's ingress.
    ///
    /// # Errors
    /// What the kernel says: the device is gone or down, or its queue is full.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> Result<()> {
        send(&self.0, ifindex, frame).map_err(|source| Error::System {
            action: format!("send a frame out of device {ifindex}"),
            source,
        })
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers. With protocol 0 nothing is received.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: ours, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(fd: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: frame and address are live and as long as said.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
