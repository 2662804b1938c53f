//! Probes by IP Rewrite as they come from the wire: plain packets between provider addresses.
//!
//! No rewrite address is in them, so that `uplink_in` lets them pass to the host's stack; a packet socket hears them
//! there, as they are: with what is still to be done about their checksums, and before a firewall. A filter in the
//! kernel takes nothing but packets to the probes' port of this host's provider address, by its uplinks.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use tenet_host::probe::PORT;

/// Room for what comes at once: a burst in segments, each in a page of its own.
const BUFFER: libc::c_int = 1 << 20;

// Instructions of a socket filter (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// What is asked of the packet rather than of its bytes (`SKF_AD_OFF` with `SKF_AD_PKTTYPE`, `SKF_AD_IFINDEX`).
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
const IFINDEX: u32 = 0xffff_f000 + 8;
/// `PACKET_HOST`: for this machine.
const FOR_US: u32 = 0;
const WHOLE: u32 = u32::MAX;

/// A socket that hears probes by IP Rewrite to this address on the devices of these numbers: frames with virtio headers,
/// as from a tap.
pub(crate) fn open(own: IpAddr, uplinks: &[u32]) -> io::Result<OwnedFd> {
    let ty = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Of no protocol at first: it hears nothing before its filter is in place.
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, ty, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on)?;
    // With less room it works as well where a burst comes in larger pieces.
    let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER);
    let mut program = filter(own, uplinks);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    listen(&socket, own)?;
    Ok(socket)
}

/// Hears packets of the address' family of all devices; which ones is the filter's to say, so that a device that is
/// replaced costs no socket.
fn listen(socket: &OwnedFd, own: IpAddr) -> io::Result<()> {
    let protocol = if own.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(0),
        sll_protocol: u16::try_from(protocol).unwrap_or(0).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let pointer: *const libc::sockaddr_ll = &raw const address;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: the address is live and as long as said.
    match unsafe { libc::bind(socket.as_raw_fd(), pointer.cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let value: *const T = value;
    // SAFETY: the option's value is live and as long as said, and what it points to outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One test of the filter: what is loaded, and what it must be.
enum Test {
    Equal(u16, u32, u32),
    OneOf(u16, u32, Vec<u32>),
    NoBit(u16, u32, u32),
}

/// The filter, for frames with a link header. Packets with IP options or extension headers are no probes.
fn filter(own: IpAddr, uplinks: &[u32]) -> Vec<libc::sock_filter> {
    let mut tests =
        vec![Test::Equal(LOAD_WORD, PACKET_TYPE, FOR_US), Test::OneOf(LOAD_WORD, IFINDEX, uplinks.to_vec())];
    let protocols = vec![6, 17];
    match own {
        IpAddr::V4(own) => tests.extend([
            Test::Equal(LOAD_BYTE, 14, 0x45),
            Test::NoBit(LOAD_HALF, 14 + 6, 0x3fff),
            Test::OneOf(LOAD_BYTE, 14 + 9, protocols),
            Test::Equal(LOAD_WORD, 14 + 16, own.to_bits()),
            Test::Equal(LOAD_HALF, 14 + 20 + 2, PORT.into()),
        ]),
        IpAddr::V6(own) => {
            tests.push(Test::OneOf(LOAD_BYTE, 14 + 6, protocols));
            for (at, word) in (14 + 24..).step_by(4).zip(own.octets().as_chunks::<4>().0) {
                tests.push(Test::Equal(LOAD_WORD, at, u32::from_be_bytes(*word)));
            }
            tests.push(Test::Equal(LOAD_HALF, 14 + 40 + 2, PORT.into()));
        }
    }
    let mut program = Vec::new();
    for test in tests {
        let (load, at) = match &test {
            Test::Equal(load, at, _) | Test::OneOf(load, at, _) | Test::NoBit(load, at, _) => (*load, *at),
        };
        program.push(word(load, 0, 0, at));
        // What passes jumps over the refusal.
        match test {
            Test::Equal(.., value) => program.push(word(IF_EQUAL, 1, 0, value)),
            Test::NoBit(.., bits) => program.push(word(IF_ANY_BIT, 0, 1, bits)),
            Test::OneOf(.., values) => {
                for (left, value) in (0..values.len()).rev().zip(values) {
                    program.push(word(IF_EQUAL, u8::try_from(left + 1).unwrap_or(u8::MAX), 0, value));
                }
            }
        }
        program.push(word(RETURN, 0, 0, 0));
    }
    program.push(word(RETURN, 0, 0, WHOLE));
    program
}

const fn word(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use tenet_host::probe::{Content, Frame, write_tcp};

    /// Runs a filter over a frame, as the kernel does; whether it is taken.
    fn taken(program: &[libc::sock_filter], ifindex: u32, ty: u32, frame: &[u8]) -> bool {
        let (mut a, mut at) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let from = |length: usize| {
                let start = i.k as usize;
                frame.get(start..start + length).map(|b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
            };
            let loaded = match (i.code, i.k) {
                (LOAD_WORD, PACKET_TYPE) => Some(ty),
                (LOAD_WORD, IFINDEX) => Some(ifindex),
                (LOAD_WORD, _) => from(4),
                (LOAD_HALF, _) => from(2),
                (LOAD_BYTE, _) => from(1),
                (IF_EQUAL, value) => {
                    at += usize::from(if a == value { i.jt } else { i.jf });
                    continue;
                }
                (IF_ANY_BIT, bits) => {
                    at += usize::from(if a & bits != 0 { i.jt } else { i.jf });
                    continue;
                }
                (RETURN, value) => return value != 0,
                other => panic!("{other:?}"),
            };
            match loaded {
                Some(value) => a = value,
                // The kernel takes nothing of a frame that ends before.
                None => return false,
            }
        }
    }

    #[test]
    fn probes_are_heard_and_nothing_else_is() {
        let four = |n| IpAddr::from(Ipv4Addr::new(172, 16, 0, n));
        let six = |n| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n));
        for (own, other, peer) in [(four(1), four(2), four(3)), (six(1), six(2), six(3))] {
            let program = filter(own, &[4, 5, 6]);
            // By a tunnel's method the addresses are the hosts' own, as they are on the wire by rewrite.
            let segment = write_tcp((peer, own, 1), 9, 0, &[0; 9], true);
            let question =
                Frame { src: peer, dst: own, method: 1, content: Content::Ask { id: 1, stream: 1 } };
            let question = tenet_host::probe::write(&question);
            for frame in [&segment, &question] {
                for uplink in [4, 5, 6] {
                    assert!(taken(&program, uplink, FOR_US, frame));
                }
                assert!(!taken(&program, 7, FOR_US, frame), "another device");
                assert!(!taken(&program, 4, 3, frame), "another machine's");
                assert!((0..37).all(|n| !taken(&program, 4, FOR_US, &frame[..n])), "cut off");
            }
            assert!(!taken(&program, 4, FOR_US, &write_tcp((peer, other, 1), 9, 0, &[0; 9], true)));
            let port = segment.len() - 9 - 18;
            let mut bad = segment.clone();
            bad[port + 1] ^= 1;
            assert!(!taken(&program, 4, FOR_US, &bad), "another port");
            assert!(!taken(&filter(own, &[]), 4, FOR_US, &segment), "no uplink");
        }
    }

    #[test]
    fn the_kernel_takes_the_filter() {
        for own in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            match open(own, &[1, 2]) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return eprintln!("SKIPPED: needs root to open a packet socket: {e}");
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}
