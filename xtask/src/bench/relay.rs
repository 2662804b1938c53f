//! What stands for QEMU: carries frames between the host's tap and the tap that is the VM's NIC, with virtio headers,
//! so that large frames and open checksums cross as they do into a real guest.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// Checksums and TCP segmentation of both families, as QEMU asks for.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;

/// Two threads that stand for the hypervisor; they end with their handle.
pub struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Begins to carry frames.
    pub fn start(port: OwnedFd, nic: OwnedFd) -> Result<Self> {
        let (port, nic) = (File::from(port), File::from(nic));
        for tap in [&port, &nic] {
            // SAFETY: the request takes a number, no pointer.
            let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) };
            anyhow::ensure!(done == 0, "turn a tap's offloads on: {}", std::io::Error::last_os_error());
            // SAFETY: the command takes a number, no pointer.
            let done = unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
            anyhow::ensure!(done == 0, "make a tap non-blocking: {}", std::io::Error::last_os_error());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in [(port.try_clone()?, nic.try_clone()?), (nic, port)] {
            let stop = stop.clone();
            let carry = move || carry(from, to, &stop);
            threads
                .push(std::thread::Builder::new().name("tap".to_owned()).spawn(carry).context("a thread")?);
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Reads until there is nothing, then waits, as a hypervisor that is busy does.
fn carry(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut buffer = vec![0; 70_000];
    let mut poll = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    while !stop.load(Relaxed) {
        // SAFETY: one live `pollfd`.
        if unsafe { libc::poll(&raw mut poll, 1, 100) } <= 0 {
            continue;
        }
        while let Ok(length) = from.read(&mut buffer) {
            // A NIC that is down, or whose queue is full, loses frames as a real one does.
            _ = to.write(buffer.get(..length).unwrap_or_default());
        }
    }
}
