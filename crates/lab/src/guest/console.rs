//! A guest's serial console on our terminal.

use crate::guest::Guest;
use crate::{Error, Result};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

/// Leaves the console: Ctrl-].
const LEAVE: u8 = 0x1d;

/// Connects our terminal with the guest's console until Ctrl-] or the end of either. Without a terminal it sends what
/// it reads and ends when the guest has taken all of it.
///
/// # Errors
/// [`Error::Io`] if the console cannot be reached or the terminal does not obey.
pub fn attach(guest: &Guest) -> Result<()> {
    let about = || format!("use the console of guest {}", guest.name());
    let mut socket = UnixStream::connect(guest.console_path()).map_err(Error::io(about()))?;
    let raw = Raw::begin().map_err(Error::io(about()))?;
    let done = copy(&mut socket);
    drop(raw);
    done.map_err(Error::io(about()))
}

fn copy(socket: &mut UnixStream) -> io::Result<()> {
    let mut stdin = io::stdin().as_raw_fd();
    let mut buffer = [0; 4096];
    loop {
        let mut both = [poll_for(stdin), poll_for(socket.as_raw_fd())];
        // SAFETY: two live pollfds are handed over.
        if unsafe { libc::poll(both.as_mut_ptr(), 2, -1) } < 0 {
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        }
        let [input, console] = both;
        if console.revents != 0 {
            let got = socket.read(&mut buffer)?;
            if got == 0 {
                return Ok(());
            }
            let mut out = io::stdout();
            out.write_all(buffer.get(..got).unwrap_or_default())?;
            out.flush()?;
        }
        if input.revents != 0 {
            let got = io::stdin().lock().read(&mut buffer)?;
            let typed = buffer.get(..got).unwrap_or_default();
            let leave = typed.iter().position(|b| *b == LEAVE);
            socket.write_all(typed.get(..leave.unwrap_or(got)).unwrap_or_default())?;
            if leave.is_some() {
                return Ok(());
            }
            if got == 0 {
                // A serial line takes a few bytes at a time. QEMU hangs up once it has seen the end; if we did, it
                // would drop what the guest has not read.
                socket.shutdown(Shutdown::Write)?;
                stdin = -1;
            }
        }
    }
}

fn poll_for(fd: i32) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Our terminal hands on each key as it is until this is dropped.
struct Raw(Option<libc::termios>);

impl Raw {
    fn begin() -> io::Result<Self> {
        let stdin = io::stdin().as_raw_fd();
        // SAFETY: `termios` is plain numbers, for which zero is valid.
        let mut old: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: a live termios is filled in.
        if unsafe { libc::tcgetattr(stdin, &raw mut old) } != 0 {
            // No terminal.
            return Ok(Self(None));
        }
        let mut new = old;
        // SAFETY: a live termios is changed, then read.
        let set = unsafe {
            libc::cfmakeraw(&raw mut new);
            libc::tcsetattr(stdin, libc::TCSANOW, &raw const new)
        };
        if set == 0 { Ok(Self(Some(old))) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            // SAFETY: a live termios is read.
            unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, old) };
        }
    }
}
