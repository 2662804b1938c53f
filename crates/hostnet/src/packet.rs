//! Frames that are handed to a device as they are.

use crate::{Error, Result};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Sends a frame out of a device of the calling thread's network namespace: out of a tap, that is to whoever has it
/// open. It does not pass programs on the device's ingress.
///
/// # Errors
/// What the kernel says: the device is gone or down, its queue is full, or the caller lacks `CAP_NET_RAW`.
pub fn send_frame(ifindex: u32, frame: &[u8]) -> Result<()> {
    send(ifindex, frame)
        .map_err(|source| Error::System { action: format!("send a frame out of device {ifindex}"), source })
}

fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: no pointers. With protocol 0 nothing is received.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: ours, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
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
