//! The tap of the agent's probes, as a descriptor.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use tenet_host::probe::{TAP, VnetHeader};
use tenet_hostnet::{Error, Kind, Links, TapOptions};

/// Largest frame with its header: more than 64 KB no tap gives.
const LARGEST: usize = VnetHeader::LEN + 14 + 65_536;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// `TUN_F_{CSUM,TSO4,TSO6,TSO_ECN}`: what QEMU asks for, too.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4 | 8;

/// The tap.
#[derive(Debug)]
pub(crate) struct Tap {
    file: File,
    buffer: Vec<u8>,
}

impl Tap {
    /// A tap that [`open`] gave, or something like it.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), buffer: vec![0; LARGEST] }
    }

    /// A descriptor of its own that becomes readable with the tap.
    pub(crate) fn readable(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Writes a frame. Where the kernel has no room, the frame is lost, as on any link.
    pub(crate) fn send(&mut self, header: &VnetHeader, frame: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(VnetHeader::LEN + frame.len());
        bytes.extend(header.bytes());
        bytes.extend(frame);
        self.file.write(&bytes).map(drop)
    }

    /// The next frame, if there is one.
    pub(crate) fn receive(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>> {
        match self.file.read(&mut self.buffer) {
            Ok(length) => Ok(VnetHeader::split(&self.buffer[..length])),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Opens the tap; makes it if it is not there. It outlives the agent, so that a restarted one finds its number in the
/// tables.
pub(crate) fn open(links: &Links) -> Result<OwnedFd, Error> {
    let options = TapOptions { vnet_hdr: true, multi_queue: false };
    match links.find(TAP)? {
        None => links.add_tap(TAP, options)?,
        Some(link) if link.kind == Kind::Tap => {}
        Some(_) => {
            return Err(Error::Exists {
                what: format!("link {TAP:?}, which is not the agent's tap"),
                netns: links.netns().label().to_owned(),
            });
        }
    }
    let tap = links.open_tap(TAP, options)?;
    let failed = |source| Error::System { action: format!("set up tap {TAP:?}"), source };
    take_offloads(&tap).and_then(|()| never_block(&tap)).map_err(failed)?;
    Ok(tap)
}

/// Lets large frames, and such without finished checksums, come as they are.
fn take_offloads(tap: &OwnedFd) -> io::Result<()> {
    // SAFETY: the request takes a number, no pointer.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has reads of an empty tap say so at once.
pub(crate) fn never_block(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: these requests take and give flags, no pointer.
    let done = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
