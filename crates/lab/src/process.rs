//! Processes that outlive us: known by number and start time, so that we never end a stranger.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::{fs, io, time::Duration};

/// A process that we started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot: tells it from a later process of that number.
    pub started: u64,
}

impl Process {
    /// A process that runs now.
    pub fn of(pid: u32) -> Result<Self> {
        let started = started(pid)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
            .map_err(Error::io(format!("find process {pid}, which ended at once")))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn runs(self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Ends it: politely first, by force after `patience`. An ended process is no error.
    pub fn end(self, patience: Duration) -> Result<()> {
        self.signal_and_wait(libc::SIGTERM, patience)?;
        self.kill()
    }

    /// Ends it by SIGKILL and waits until it is gone.
    pub fn kill(self) -> Result<()> {
        self.signal_and_wait(libc::SIGKILL, Duration::from_secs(10))
    }

    fn signal_and_wait(self, signal: i32, patience: Duration) -> Result<()> {
        let act = || {
            let fd = match pidfd_open(self.pid) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                other => other?,
            };
            // The number cannot be given away again while we hold the handle, so the check holds from here on.
            if self.runs() {
                match pidfd_signal(&fd, signal) {
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
                wait_readable(&fd, patience)?;
            }
            reap(self.pid);
            Ok(())
        };
        act().map_err(Error::io(format!("end process {}", self.pid)))
    }
}

/// Start time of a process that has not ended (proc_pid_stat(5), fields 3 and 22).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; a non-negative result is a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn pidfd_signal(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is open; a null siginfo asks for that of kill(2).
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process handle becomes readable when the process ends.
fn wait_readable(fd: &OwnedFd, patience: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd is handed over.
    match unsafe { libc::poll(&raw mut poll, 1, millis) } {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
            Err(io::Error::last_os_error())
        }
        _ => Ok(()),
    }
}

/// Takes an ended child off the process table; for others' children it does nothing.
fn reap(pid: u32) {
    // SAFETY: a null status pointer is allowed; the pid is a positive number, so no other child is meant.
    unsafe { libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), libc::WNOHANG) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn ends_what_it_knows_and_spares_strangers() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let stranger = Process { started: process.started + 1, ..process };
        stranger.kill().unwrap();
        assert!(process.runs() && !stranger.runs());
        process.end(Duration::from_secs(10)).unwrap();
        assert!(!process.runs());
        process.end(Duration::from_secs(10)).unwrap();
        // Reaped already, which is what the call is for.
        assert!(child.wait().is_err());
    }
}
