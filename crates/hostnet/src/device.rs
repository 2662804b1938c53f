//! What netlink cannot do: taps, sysctls and offloads.

use crate::links::check_name;
use crate::{Error, Links, Result};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_S{RXCSUM,TXCSUM,SG,TSO,GSO,GRO}`.
const OFFLOADS: [u32; 6] = [0x15, 0x17, 0x19, 0x1f, 0x24, 0x2c];

/// How long a tap with one queue that seems to be in use is asked for again. A process that was forked a moment ago has
/// a copy of every descriptor of its parent until it executes its program, so that a tap which the parent has closed is
/// not free yet.
const FORK_TO_EXEC: Duration = Duration::from_millis(500);

/// How a tap is made. Whoever opens it must agree about several queues, or the kernel refuses (`EINVAL`); with or
/// without virtio headers is each user's own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOptions {
    /// Frames carry a virtio header, so that 64 KB frames cross whole (QEMU wants it).
    pub vnet_hdr: bool,
    /// Several queues, one per virtual CPU.
    pub multi_queue: bool,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { vnet_hdr: true, multi_queue: false }
    }
}

impl Links {
    /// Creates a tap that stays until [`Links::delete_link`].
    pub fn add_tap(&self, name: &str, options: TapOptions) -> Result<()> {
        if self.find(name)?.is_some() {
            return Err(Error::Exists {
                what: format!("link {name:?}"),
                netns: self.netns().label().to_owned(),
            });
        }
        let tap = self.open_tap(name, options)?;
        ioctl_number(&tap, TUNSETPERSIST, 1).map_err(Error::system(format!("keep tap {name:?}")))
    }

    /// Creates a tap that stays until [`Links::delete_link`], with a note on it and room for packets that wait. It
    /// stays only once it is marked, so that a maker who is stopped half-way leaves none behind.
    pub fn make_tap(&self, name: &str, options: TapOptions, alias: &str, queue_len: u32) -> Result<()> {
        if self.find(name)?.is_some() {
            return Err(Error::Exists {
                what: format!("link {name:?}"),
                netns: self.netns().label().to_owned(),
            });
        }
        let tap = self.open_tap(name, options)?;
        self.set_alias(name, alias)?;
        self.set_queue_len(name, queue_len)?;
        ioctl_number(&tap, TUNSETPERSIST, 1).map_err(Error::system(format!("keep tap {name:?}")))
    }

    /// Opens a tap (a new queue of it, if it has several) as its user does; creates it if it is not there.
    ///
    /// The tap has carrier while somebody holds it open. Without [`Links::add_tap`] it ends with its user.
    ///
    /// # Errors
    /// `EBUSY` if it has one queue and somebody uses that, after half a second: a copy of its descriptor in a process
    /// that has just been forked ends by itself.
    pub fn open_tap(&self, name: &str, options: TapOptions) -> Result<OwnedFd> {
        check_name(name)?;
        let action = format!("open tap {name:?} in {}", self.netns().label());
        let deadline = Instant::now() + FORK_TO_EXEC;
        let open = || loop {
            match open_tap(name, options) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        };
        self.netns().run(open)?.map_err(Error::system(action))
    }

    /// Keeps the host's own stack silent on a port's device: no IPv6 (and so no link-local address, no router
    /// solicitation or advertisement), no ARP answer for the host's other addresses, no source-routed packets.
    pub fn quiet(&self, name: &str) -> Result<()> {
        self.index(name)?;
        for (path, value) in [
            ("ipv6/conf/{}/disable_ipv6", "1"),
            ("ipv6/conf/{}/accept_ra", "0"),
            ("ipv6/conf/{}/accept_redirects", "0"),
            ("ipv6/conf/{}/autoconf", "0"),
            ("ipv4/conf/{}/accept_redirects", "0"),
            ("ipv4/conf/{}/accept_source_route", "0"),
            ("ipv4/conf/{}/send_redirects", "0"),
            ("ipv4/conf/{}/arp_ignore", "8"),
        ] {
            self.set_sysctl(&path.replace("{}", name), value)?;
        }
        Ok(())
    }

    /// Writes a sysctl under `net/` in the namespace; a file that this kernel lacks (IPv6 off) is no error.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/net/{path}");
        match self.netns().run(|| fs::write(&file, value))? {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => {
                other.map_err(Error::system(format!("write {value} to {file} in {}", self.netns().label())))
            }
        }
    }

    /// Turns all checksum and segmentation offloads of a link on or off, as `ethtool -K` does.
    pub fn set_offloads(&self, name: &str, on: bool) -> Result<()> {
        check_name(name)?;
        let action = format!("set offloads of link {name:?} in {}", self.netns().label());
        self.netns().run(|| set_offloads(name, on))?.map_err(Error::system(action))
    }
}

fn open_tap(name: &str, options: TapOptions) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut flags = IFF_TAP | IFF_NO_PI;
    if options.vnet_hdr {
        flags |= IFF_VNET_HDR;
    }
    if options.multi_queue {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: `TUNSETIFF` reads and writes one `ifreq`, which is live and whole.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

fn ioctl_number(fd: &OwnedFd, request: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the request takes a number, no pointer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_offloads(name: &str, on: bool) -> io::Result<()> {
    for command in OFFLOADS {
        match ethtool_set(name, command, on.into()) {
            // A device need not have every offload.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

fn ethtool_set(name: &str, command: u32, value: u32) -> io::Result<()> {
    ethtool(name, &mut [command, value])
}

/// One of ethtool's commands on a link of the calling thread's namespace. `data` begins with the command and is as large
/// as the command's structure with what its own counts say.
pub(crate) fn ethtool(name: &str, data: &mut [u32]) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: `SIOCETHTOOL` reads and writes the command's structure, which outlives the call and is as large as its
    // counts say (see above).
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain bytes and numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // `check_name` keeps it under 16 bytes, so that the NUL stays.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    request
}
