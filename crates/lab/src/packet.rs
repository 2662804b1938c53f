//! A socket for whole Ethernet frames of one device.

use crate::{Error, Result};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use tenet_hostnet::{Links, Netns};

/// Frames of one device, as they are.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    device: String,
}

impl PacketSocket {
    /// A socket that only sends.
    pub fn sender(netns: &Netns, device: &str) -> Result<Self> {
        Self::open(netns, device, 0)
    }

    /// A socket that gets every frame of the device, both directions.
    pub fn receiver(netns: &Netns, device: &str) -> Result<Self> {
        Self::open(netns, device, libc::ETH_P_ALL as u16)
    }

    fn open(netns: &Netns, device: &str, protocol: u16) -> Result<Self> {
        let index = Links::in_netns(netns)?.index(device)?;
        let fd = netns
            .run(|| socket(index, protocol))?
            .map_err(Error::io(format!("open a packet socket on {device}")))?;
        Ok(Self { fd, device: device.to_owned() })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: pointer and length are those of one live slice.
        match unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) } {
            -1 => Err(Error::io(format!("send a frame on {}", self.device))(io::Error::last_os_error())),
            _ => Ok(()),
        }
    }

    /// Waits for a frame; its first bytes, as many as fit, or nothing when time is up.
    pub fn receive<'a>(&self, buffer: &'a mut [u8], patience: Duration) -> Result<Option<&'a [u8]>> {
        let failed = || Error::io(format!("receive a frame on {}", self.device))(io::Error::last_os_error());
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one live pollfd is handed over.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => return Ok(None),
            -1 => return Err(failed()),
            0 => return Ok(None),
            _ => {}
        }
        // SAFETY: pointer and length are those of one live, writable slice.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        match usize::try_from(got) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(failed()),
        }
    }
}

fn socket(index: u32, protocol: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes three numbers; a non-negative result is a new descriptor that nobody else owns.
    let fd = unsafe {
        // Protocol 0 until bound, so that no frame of another device gets in.
        let fd = libc::socket(libc::AF_PACKET, kind, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: zero is a valid `sockaddr_ll`; the address is live for the call and the length is its own.
    unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = index.cast_signed();
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        match libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) {
            0 => Ok(fd),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A gratuitous ARP: "this address is at this MAC", to all of the subnet (RFC 5227 §3).
#[must_use]
pub fn gratuitous_arp(mac: [u8; 6], address: [u8; 4]) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address);
    frame[38..42].copy_from_slice(&address);
    frame
}

/// An unsolicited neighbour advertisement: "this address is at this MAC", to all nodes (RFC 4861 §7.2.6).
#[must_use]
pub fn unsolicited_advertisement(mac: [u8; 6], address: [u8; 16]) -> Vec<u8> {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&address);
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac);
    let length = [0, message.len() as u8];
    let pseudo = [&address[..], &ALL_NODES, &[0, 0], &length, &[0, 0, 0, 58], &message].concat();
    let sum = tenet_wire::checksum::finish(tenet_wire::checksum::sum_bytes(&pseudo));
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum.to_ne_bytes());
    }
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&address);
    frame.extend_from_slice(&ALL_NODES);
    frame.extend_from_slice(&message);
    frame
}
