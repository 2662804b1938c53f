//! Queues of a tap that another process has open, and the frames that wait in them.
//!
//! QEMU stops reading its tap when it stops its VM, and what waits there is lost when it ends. Whoever may look into
//! the process gets at the same queue by a copy of its descriptor.
//!
//! Such a copy is the queue itself: what it reads its owner never sees, and as long as it is open the tap has carrier.

use crate::device::ifreq;
use crate::{Error, Netns, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// Length of the virtio header that [`Waiting`] has: what every length of it begins with.
pub const VNET_HEADER: usize = 10;

/// Bytes before a frame of a tap that was not opened with `IFF_NO_PI`.
const PACKET_INFO: usize = 4;
/// Larger frames no tap gives; its own header is longer than ours in newer kernels.
const LARGEST: usize = 66_000 + 64;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNGETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
/// Kernel 5.10.
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// A descriptor of a tap that a process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// The descriptor's number in it.
    pub fd: i32,
}

/// Who has taps open.
#[derive(Debug, Default)]
pub struct Holders {
    /// By the tap's name, in whichever namespace that is.
    pub by_tap: BTreeMap<String, Vec<Holder>>,
    /// Why a process could not be looked into, if there was one.
    pub denied: Option<io::Error>,
}

impl Holders {
    /// Looks through the descriptors of some processes, or of all, for taps of these names. With many processes it takes
    /// a while.
    #[must_use]
    pub fn find(taps: &BTreeSet<String>, pids: Option<&BTreeSet<u32>>) -> Self {
        let mut holders = Self::default();
        if let Some(pids) = pids {
            pids.iter().for_each(|pid| holders.look_into(*pid, taps));
            return holders;
        }
        let Ok(entries) = fs::read_dir("/proc") else { return holders };
        for entry in entries.flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                holders.look_into(pid, taps);
            }
        }
        holders
    }

    fn look_into(&mut self, pid: u32, taps: &BTreeSet<String>) {
        if let Err(e) = self.descriptors(pid, taps) {
            // Most that is not there has just ended.
            if e.kind() == ErrorKind::PermissionDenied {
                self.denied.get_or_insert(e);
            }
        }
    }

    fn descriptors(&mut self, pid: u32, taps: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            if !is_tun(&target) {
                continue;
            }
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            if let Some(tap) = device_in(&info).and_then(|name| taps.get(name)) {
                self.by_tap.entry(tap.clone()).or_default().push(Holder { pid, fd });
            }
        }
        Ok(())
    }
}

/// Whether a descriptor's target is the device of taps, under whatever root its process sees it.
fn is_tun(target: &Path) -> bool {
    target.ends_with("net/tun")
}

/// The device that the kernel names in a descriptor's `fdinfo`; none while it is detached.
fn device_in(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("iff:")).map(str::trim).filter(|name| !name.is_empty())
}

/// A frame that waited, with the virtio header that says what is left to do to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// In the byte order of the machine, as the tap has it.
    pub header: [u8; VNET_HEADER],
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

impl Waiting {
    /// Takes apart what a tap gave that puts so many bytes before its frames, of which the last `header` are its virtio
    /// header.
    fn split(bytes: &[u8], before: usize, header: usize) -> Option<Self> {
        let (head, frame) = bytes.split_at_checked(before)?;
        let mut own = [0; VNET_HEADER];
        if header > 0 {
            own.copy_from_slice(head.get(before.checked_sub(header)?..)?.get(..VNET_HEADER)?);
        }
        Some(Self { header: own, frame: frame.to_vec() })
    }
}

/// A copy of a descriptor of a tap that another process has open.
#[derive(Debug)]
pub struct Queue {
    file: File,
    /// Bytes before each frame, and how many of them are the virtio header.
    before: usize,
    header: usize,
    buffer: Vec<u8>,
}

impl Queue {
    /// Copies a holder's descriptor, if it still is one of the tap of that name in that namespace; else nothing.
    ///
    /// # Errors
    /// If the process may not be looked into (`CAP_SYS_PTRACE`), or the kernel is older than 5.10.
    pub fn of(holder: Holder, tap: &str, netns: &Netns) -> Result<Option<Self>> {
        let failed = |source| Error::System { action: copying(holder, tap), source };
        let Some(fd) = copy(holder).map_err(failed)? else { return Ok(None) };
        Self::checked(fd, tap, netns).map_err(failed)
    }

    fn checked(fd: OwnedFd, tap: &str, netns: &Netns) -> io::Result<Option<Self>> {
        // Nothing else understands what comes now.
        if !is_tun(&fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?) {
            return Ok(None);
        }
        let mut request = ifreq("");
        // SAFETY: `TUNGETIFF` writes one `ifreq`, which is live and whole.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) } != 0 {
            let error = io::Error::last_os_error();
            // A descriptor that is attached to no device.
            return if error.raw_os_error() == Some(libc::EBADFD) { Ok(None) } else { Err(error) };
        }
        let name: Vec<u8> =
            request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        if name != tap.as_bytes() || !is_in(&fd, netns)? {
            return Ok(None);
        }
        // SAFETY: `TUNGETIFF` wrote the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let header = if flags & libc::IFF_VNET_HDR == 0 { 0 } else { header_length(&fd)? };
        let before = header + if flags & libc::IFF_NO_PI == 0 { PACKET_INFO } else { 0 };
        Ok(Some(Self { file: fd.into(), before, header, buffer: vec![0; LARGEST] }))
    }

    /// The next frame that waits; nothing if there is none now.
    ///
    /// # Errors
    /// If there will never be one: the device is gone, or the queue was taken off it.
    pub fn take(&mut self) -> io::Result<Option<Waiting>> {
        loop {
            // The descriptor is its owner's, who may have it block.
            if !wait(std::slice::from_ref(self), Duration::ZERO)? {
                return Ok(None);
            }
            match self.file.read(&mut self.buffer) {
                Ok(length) => {
                    if let Some(waiting) = Waiting::split(&self.buffer[..length], self.before, self.header) {
                        return Ok(Some(waiting));
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Waits until a frame comes to one of the queues, or that long; whether one has come.
///
/// # Errors
/// If none can come any more.
pub fn wait(queues: &[Queue], longest: Duration) -> io::Result<bool> {
    let mut polled: Vec<libc::pollfd> = (queues.iter())
        .map(|q| libc::pollfd { fd: q.file.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let (count, longest) =
        (polled.len() as libc::nfds_t, i32::try_from(longest.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the list is live and as long as said.
    match unsafe { libc::poll(polled.as_mut_ptr(), count, longest) } {
        0.. if polled.iter().any(|p| p.revents & libc::POLLIN != 0) => Ok(true),
        0.. if polled.iter().any(|p| p.revents & (libc::POLLERR | libc::POLLNVAL) != 0) => {
            Err(io::Error::from_raw_os_error(libc::EBADFD))
        }
        0.. => Ok(false),
        _ => match io::Error::last_os_error() {
            e if e.kind() == ErrorKind::Interrupted => Ok(false),
            e => Err(e),
        },
    }
}

fn copying(holder: Holder, tap: &str) -> String {
    format!("copy descriptor {} of process {}, which has tap {tap:?} open", holder.fd, holder.pid)
}

/// A copy of the descriptor; nothing if the process or the descriptor is gone.
fn copy(Holder { pid, fd }: Holder) -> io::Result<Option<OwnedFd>> {
    let call = |result: libc::c_long| -> io::Result<Option<OwnedFd>> {
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH | libc::EBADF) => Ok(None),
                _ => Err(error),
            };
        }
        let fd = i32::try_from(result).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor; nobody else has it.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    // SAFETY: the call takes numbers only.
    let Some(process) = call(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? else {
        return Ok(None);
    };
    // SAFETY: as above; the descriptor of the process is live.
    call(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

fn header_length(fd: &OwnedFd) -> io::Result<usize> {
    let mut length: libc::c_int = 0;
    // SAFETY: `TUNGETVNETHDRSZ` writes one number, which is live.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETVNETHDRSZ, &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(length)
        .ok()
        .filter(|l| *l >= VNET_HEADER)
        .ok_or_else(|| io::Error::other("no virtio header"))
}

/// Whether a tap is in the namespace now, wherever its user is: two namespaces may have taps of one name.
fn is_in(fd: &OwnedFd, netns: &Netns) -> io::Result<bool> {
    // SAFETY: the call takes and gives numbers only.
    let own = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else has it.
    let own = File::from(unsafe { OwnedFd::from_raw_fd(own) }).metadata()?;
    let wanted = File::from(netns.as_fd().try_clone_to_owned()?).metadata()?;
    Ok((own.dev(), own.ino()) == (wanted.dev(), wanted.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_names_the_device_unless_it_is_detached() {
        let info = |name: &str| format!("pos:\t0\nflags:\t0104002\nmnt_id:\t15\nino:\t9\niff:\t{name}\n");
        assert_eq!(device_in(&info("tn1234")), Some("tn1234"));
        assert_eq!(device_in(&info("")), None);
        assert_eq!(device_in("pos:\t0\nflags:\t02\n"), None);
        // In its own mount namespace a process sees the file under another root.
        for path in ["/dev/net/tun", "/net/tun", "/newroot/dev/net/tun"] {
            assert!(is_tun(Path::new(path)), "{path}");
        }
        for path in ["/dev/tun", "/dev/net/tuna", "/tmp/tun", "socket:[9]"] {
            assert!(!is_tun(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_frame_is_told_from_what_the_tap_puts_before_it() {
        let bytes: Vec<u8> = (0..40).collect();
        let split = |before, header| Waiting::split(&bytes, before, header).map(|w| (w.header, w.frame));
        let first: [u8; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(split(0, 0), Some(([0; 10], bytes.clone())));
        assert_eq!(split(10, 10), Some((first, bytes[10..].to_vec())));
        // QEMU has twelve bytes, of which the last two count buffers.
        assert_eq!(split(12, 12), Some((first, bytes[12..].to_vec())));
        assert_eq!(split(16, 12), Some(([4, 5, 6, 7, 8, 9, 10, 11, 12, 13], bytes[16..].to_vec())));
        assert_eq!(split(4, 0), Some(([0; 10], bytes[4..].to_vec())));
        assert_eq!(split(41, 10), None);
        assert_eq!(split(12, 13), None);
    }
}
