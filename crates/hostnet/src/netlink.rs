//! Just enough of netlink: build a request, send it, read the replies, walk their attributes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Flag: all objects of a kind.
pub const DUMP: u16 = 0x300;
/// Flag: create what is not there.
pub const CREATE: u16 = 0x400;
/// Flag: fail if it is there.
pub const EXCL: u16 = 0x200;
/// Flag: replace what is there.
pub const REPLACE: u16 = 0x100;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// The kernel's dumps fill at most 32 KiB per message; a single object is far smaller.
const RECEIVE: usize = 64 * 1024;
const DUMP_TRIES: usize = 10;

/// A refusal by the kernel: error number and, where it gives one, its explanation.
#[derive(Debug)]
pub struct Refusal {
    /// The error.
    pub source: io::Error,
    /// Extended acknowledgement, or empty.
    pub why: String,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, why: String::new() }
    }
}

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Request {
    buffer: Vec<u8>,
}

impl Request {
    /// Starts a request of a message type (`RTM_*`) with its fixed header.
    #[must_use]
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut buffer = vec![0; HEADER];
        let flags = flags | NLM_F_REQUEST | if flags & DUMP == DUMP { 0 } else { NLM_F_ACK };
        buffer[4..6].copy_from_slice(&kind.to_ne_bytes());
        buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        buffer.extend_from_slice(header);
        Self { buffer }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        // An attribute is shorter than 64 KiB by construction: values here are names, addresses and numbers.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a 32-bit number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a NUL-terminated string.
    #[must_use]
    pub fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds what `inside` adds, as the content of one attribute.
    #[must_use]
    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self = inside(self);
        let length = u16::try_from(self.buffer.len() - start).unwrap_or(u16::MAX);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.buffer[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    /// Adds bytes as they are: a fixed header inside an attribute.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.buffer.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    fn is_dump(&self) -> bool {
        u16::from_ne_bytes([self.buffer[6], self.buffer[7]]) & DUMP == DUMP
    }

    fn seal(&mut self, sequence: u32) {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// One message from the kernel.
#[derive(Debug, Clone)]
pub struct Message {
    /// Message type (`RTM_*`).
    pub kind: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

impl Message {
    /// The attributes behind a fixed header of `header` bytes.
    pub fn attrs(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attrs(self.payload.get(header..).unwrap_or_default())
    }

    /// A 32-bit number of the fixed header.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        self.payload.get(offset..).map_or(0, u32_of)
    }

    /// A byte of the fixed header.
    #[must_use]
    pub fn u8_at(&self, offset: usize) -> u8 {
        self.payload.get(offset).copied().unwrap_or(0)
    }
}

/// Walks attributes; stops where they no longer fit, as everything from the kernel is whole.
pub fn attrs(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first four bytes as a number; 0 if there are fewer.
#[must_use]
pub fn u32_of(bytes: &[u8]) -> u32 {
    match bytes {
        [a, b, c, d, ..] => u32::from_ne_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

/// A string up to its NUL.
#[must_use]
pub fn string_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A route netlink socket. It belongs to the namespace it was opened in, whoever uses it later.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Self { fd: socket(0)?, sequence: 0 };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // Without these (before 4.12) errors are only less well explained.
            drop(set_option(&socket.fd, libc::SOL_NETLINK, option, 1));
        }
        Ok(socket)
    }

    /// Opens a socket that hears of changes to the groups, and never blocks.
    pub fn listen(groups: u32) -> io::Result<Self> {
        let fd = socket(libc::SOCK_NONBLOCK)?;
        // A host with thousands of ports must not overrun us at start; without CAP_NET_ADMIN the default has to do.
        drop(set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20));
        bind(&fd, groups)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and collects what the kernel answers.
    pub fn request(&mut self, mut request: Request) -> std::result::Result<Vec<Message>, Refusal> {
        for _ in 0..DUMP_TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            request.seal(self.sequence);
            send(&self.fd, &request.buffer)?;
            if let Some(replies) = self.collect(request.is_dump())? {
                return Ok(replies);
            }
        }
        Err(io::Error::from(io::ErrorKind::Interrupted).into())
    }

    /// Reads messages until the request is answered; `None` if a dump was overtaken by a change.
    fn collect(&mut self, dump: bool) -> std::result::Result<Option<Vec<Message>>, Refusal> {
        let mut replies = Vec::new();
        let mut torn = false;
        loop {
            for raw in split(&receive(&self.fd)?) {
                if raw.sequence != self.sequence {
                    continue;
                }
                torn |= raw.flags & NLM_F_DUMP_INTR != 0;
                match raw.kind {
                    NLMSG_DONE => return Ok((!torn).then_some(replies)),
                    NLMSG_ERROR => {
                        let number = -u32_of(raw.payload).cast_signed();
                        if number != 0 {
                            return Err(refusal(number, raw.payload));
                        }
                        if !dump {
                            return Ok(Some(replies));
                        }
                    }
                    kind => replies.push(Message { kind, payload: raw.payload.to_vec() }),
                }
            }
        }
    }

    /// Reads the messages that wait; `WouldBlock` if none does (on a listening socket).
    pub fn read(&self) -> io::Result<Vec<Message>> {
        let buffer = receive(&self.fd)?;
        Ok(split(&buffer).map(|raw| Message { kind: raw.kind, payload: raw.payload.to_vec() }).collect())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Raw<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn split(mut rest: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = rest.first_chunk()?;
        let length = u32_of(header) as usize;
        let payload = rest.get(HEADER..length)?;
        let raw = Raw {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32_of(&header[8..]),
            payload,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(raw)
    })
}

/// Takes the explanation behind an error: error number, the request's header (capped), then attributes.
fn refusal(number: i32, payload: &[u8]) -> Refusal {
    let why = attrs(payload.get(4 + HEADER..).unwrap_or_default())
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| string_of(text))
        .unwrap_or_default();
    Refusal { source: io::Error::from_raw_os_error(number), why }
}

fn socket(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is checked and owned by us alone.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags, libc::NETLINK_ROUTE)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned to us and is open.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(fd: &OwnedFd, groups: u32) -> io::Result<()> {
    // SAFETY: `sockaddr_nl` is plain numbers, for which zero is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    let length = size_of::<libc::sockaddr_nl>() as u32;
    // SAFETY: the pointer and the length are those of a live `sockaddr_nl`.
    match unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as u32;
    // SAFETY: the pointer and the length are those of a live `i32`.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; RECEIVE];
    loop {
        // SAFETY: the pointer and the length are those of a live, writable buffer.
        let got = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if let Ok(got) = usize::try_from(got) {
            buffer.truncate(got);
            return Ok(buffer);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_nesting_and_padding() {
        let request = Request::new(16, 0, &[0; 16]).string(3, "abc").nest(18, |r| r.u32(1, 7).attr(2, &[9]));
        let message = Message { kind: 16, payload: request.buffer[HEADER..].to_vec() };
        let all: Vec<(u16, &[u8])> = message.attrs(16).collect();
        assert_eq!(all[0], (3, &b"abc\0"[..]));
        assert_eq!(all[1].0, 18);
        let inner: Vec<(u16, &[u8])> = attrs(all[1].1).collect();
        assert_eq!(inner, [(1, &7u32.to_ne_bytes()[..]), (2, &[9][..])]);
    }

    #[test]
    fn lying_lengths_end_the_walk() {
        for length in [0u16, 1, 3, 9, u16::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0, 5, 5, 5, 5]);
            assert_eq!(attrs(&bytes).count(), 0, "length {length}");
        }
    }
}
