//! What routers say of packets that were too large for them.
//!
//! A hint saves a search and names the router; it is never believed (anyone can forge one), only looked into.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const ICMP_FILTER: i32 = 1;
const ICMP6_FILTER: i32 = 1;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
/// Hints taken in one go.
const AT_ONCE: usize = 64;

/// A packet to `to` that was larger than `mtu` did not pass `router`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hint {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) mtu: u16,
    pub(crate) router: IpAddr,
}

/// A socket that hears them.
#[derive(Debug)]
pub(crate) struct Hints {
    socket: OwnedFd,
    six: bool,
}

impl Hints {
    /// Listens for errors about packets of this family.
    pub(crate) fn open(six: bool) -> io::Result<Self> {
        let (domain, protocol) =
            if six { (libc::AF_INET6, libc::IPPROTO_ICMPV6) } else { (libc::AF_INET, libc::IPPROTO_ICMP) };
        let ty = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::socket(domain, ty, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if six {
            // A set bit blocks a type.
            let mut filter = [u32::MAX; 8];
            filter[0] &= !(1 << PACKET_TOO_BIG);
            set(&socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)?;
        } else {
            let filter = !(1u32 << UNREACHABLE);
            set(&socket, libc::SOL_RAW, ICMP_FILTER, &filter)?;
        }
        Ok(Self { socket, six })
    }

    pub(crate) fn readable(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// What was said since the last call.
    pub(crate) fn take(&self) -> Vec<Hint> {
        let mut hints = Vec::new();
        let mut buffer = [0; 1500];
        for _ in 0..AT_ONCE {
            let Ok((length, router)) = receive(&self.socket, &mut buffer) else { break };
            let Some(message) = buffer.get(..length) else { break };
            hints.extend(if self.six { too_big(message, router) } else { needs_fragments(message) });
        }
        hints
    }
}

/// An IPv4 packet with ICMP "fragmentation needed" (RFC 1191 §4).
fn needs_fragments(packet: &[u8]) -> Option<Hint> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    if *icmp.first()? != UNREACHABLE || *icmp.get(1)? != FRAGMENTATION_NEEDED {
        return None;
    }
    let address = |bytes: &[u8], at: usize| {
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into())
    };
    let quoted = icmp.get(8..)?;
    Some(Hint {
        from: address(quoted, 12)?,
        to: address(quoted, 16)?,
        mtu: u16::from_be_bytes([*icmp.get(6)?, *icmp.get(7)?]),
        router: address(packet, 12)?,
    })
}

/// ICMPv6 "packet too big" (RFC 4443 §3.2).
fn too_big(icmp: &[u8], router: Option<IpAddr>) -> Option<Hint> {
    if *icmp.first()? != PACKET_TOO_BIG {
        return None;
    }
    let quoted = icmp.get(8..)?;
    let address =
        |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(quoted.get(at..at + 16)?).ok()?).into());
    let mtu = u32::from_be_bytes(icmp.get(4..8)?.try_into().ok()?);
    Some(Hint {
        from: address(8)?,
        to: address(24)?,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        router: router?,
    })
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let value: *const T = value;
    // SAFETY: the option's value is live and as long as said.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A packet and, for IPv6, who sent it.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<IpAddr>)> {
    // SAFETY: an address of zeros is a valid value.
    let mut address: libc::sockaddr_in6 = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in6>()).unwrap_or(0);
    // SAFETY: buffer and address are live and as long as said.
    let got = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let six = i32::from(address.sin6_family) == libc::AF_INET6;
    Ok((got, six.then(|| Ipv6Addr::from(address.sin6_addr.s6_addr).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_read_and_garbage_is_not() {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 172, 16, 1, 1, 172, 16, 1, 2];
        packet.extend([3, 4, 0, 0, 0, 0, 0x05, 0x78]);
        packet.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 47, 0, 0, 172, 16, 1, 2, 172, 16, 2, 2]);
        let hint = Hint {
            from: [172, 16, 1, 2].into(),
            to: [172, 16, 2, 2].into(),
            mtu: 1400,
            router: [172, 16, 1, 1].into(),
        };
        assert_eq!(needs_fragments(&packet), Some(hint));
        for length in 0..packet.len() {
            assert_eq!(needs_fragments(&packet[..length]), None, "{length}");
        }
        packet[21] = 1;
        assert_eq!(needs_fragments(&packet), None);

        let mut icmp = vec![2, 0, 0, 0, 0, 0, 5, 0x78];
        icmp.extend([0x60, 0, 0, 0, 0, 0, 47, 64]);
        icmp.extend(Ipv6Addr::LOCALHOST.octets());
        icmp.extend([0xfd; 16]);
        let router = Some(IpAddr::from([0xfe; 16]));
        let hint = too_big(&icmp, router).unwrap_or_else(|| panic!("no hint"));
        assert_eq!((hint.mtu, hint.to, Some(hint.router)), (1400, [0xfd; 16].into(), router));
        for length in 0..icmp.len() {
            assert_eq!(too_big(&icmp[..length], router), None, "{length}");
        }
    }
}
