//! A VM's tap, as a hypervisor holds it: frames with virtio headers, to and from a tap that is the VM's NIC.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// Checksums and TCP segmentation of both families, as QEMU asks for.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
const VIRTIO_HEADER: usize = 10;
/// What is kept of frames that are not TCP.
const KEPT: usize = 10_000;

/// What went through, large frames apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Frames over 100 bytes into the VM.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames over 100 bytes from the VM.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

impl Seen {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            frames_in: self.frames_in - before.frames_in,
            bytes_in: self.bytes_in - before.bytes_in,
            frames_out: self.frames_out - before.frames_out,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }
    pub fn mean_in(&self) -> u64 {
        self.bytes_in / self.frames_in.max(1)
    }
    pub fn mean_out(&self) -> u64 {
        self.bytes_out / self.frames_out.max(1)
    }
}

#[derive(Default)]
struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    small: Mutex<Vec<Vec<u8>>>,
}

/// Two threads that stand for the hypervisor.
pub struct Relay {
    stop: Arc<AtomicBool>,
    ways: [Arc<Direction>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    pub fn start(port: OwnedFd, nic: OwnedFd) -> Self {
        let (port, nic) = (File::from(port), File::from(nic));
        for tap in [&port, &nic] {
            // SAFETY: the request takes a number, no pointer.
            let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ways: [Arc<Direction>; 2] = Default::default();
        let clone = |f: &File| f.try_clone().unwrap();
        let pairs = [(clone(&port), clone(&nic)), (nic, port)];
        let threads = pairs.into_iter().zip(&ways).map(|((from, to), way)| {
            let (stop, way) = (stop.clone(), way.clone());
            std::thread::spawn(move || carry(from, to, &way, &stop))
        });
        let threads = threads.collect();
        Self { stop, ways, threads }
    }

    pub fn seen(&self) -> Seen {
        let [inward, outward] = &self.ways;
        Seen {
            frames_in: inward.frames.load(Relaxed),
            bytes_in: inward.bytes.load(Relaxed),
            frames_out: outward.frames.load(Relaxed),
            bytes_out: outward.bytes.load(Relaxed),
        }
    }

    /// Whether a small frame into the VM held these bytes.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        self.ways[0].small.lock().unwrap().iter().any(|f| f.windows(bytes.len()).any(|w| w == bytes))
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

fn carry(mut from: File, mut to: File, way: &Direction, stop: &AtomicBool) {
    let mut buffer = vec![0; 70_000];
    let mut poll = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    while !stop.load(Relaxed) {
        // SAFETY: one live `pollfd`.
        if unsafe { libc::poll(&raw mut poll, 1, 50) } <= 0 {
            continue;
        }
        let Ok(length) = from.read(&mut buffer) else { continue };
        let frame = length.saturating_sub(VIRTIO_HEADER);
        if frame > 100 {
            way.frames.fetch_add(1, Relaxed);
            way.bytes.fetch_add(frame as u64, Relaxed);
        } else {
            let mut small = way.small.lock().unwrap();
            if small.len() < KEPT {
                small.push(buffer[..length].to_vec());
            }
        }
        // A NIC that is down, or whose queue is full, loses frames as a real one does.
        drop(to.write(&buffer[..length]));
    }
}

/// Sends a frame out of a device, several times.
pub fn send_raw(index: u32, frame: &[u8], times: usize) {
    // SAFETY: no pointers; the descriptor is closed below.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: `sockaddr_ll` is plain numbers, for which zero is valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_halen = 6;
    for _ in 0..times {
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: frame and address are live and as long as said.
        let sent = unsafe {
            libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), length)
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
    // SAFETY: ours, and not used after.
    unsafe { libc::close(fd) };
}
