//! How a guest shall be, and QEMU's arguments for it.

use crate::guest::image::Image;
use crate::{Error, Result};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use tenet_model::Mac;

/// Channels for commands: so many commands can run in a guest at a time.
pub const CHANNELS: usize = 4;
/// The kernel's name of a link has at most so many bytes.
const LINK_MOST: usize = 15;
/// Longest path of a Unix socket (unix(7): 108 with the NUL).
const SOCKET_MOST: usize = 107;
/// Longest command line of the kernel (COMMAND_LINE_SIZE on x86).
const APPEND_MOST: usize = 2047;

/// A network card of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// The tap; it must be there.
    pub tap: String,
    /// The card's MAC.
    pub mac: Mac,
    /// The largest packet that the card lets the guest send.
    pub mtu: u32,
    /// The link's name inside of the guest.
    pub link: String,
    /// The guest's addresses on it, with the length of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default gateways; only those of the first card are used.
    pub gateways: Vec<IpAddr>,
}

impl Nic {
    /// A card without addresses, called `eth0` in the guest.
    #[must_use]
    pub fn new(tap: &str, mac: Mac, mtu: u32) -> Self {
        Self {
            tap: tap.to_owned(),
            mac,
            mtu,
            link: "eth0".to_owned(),
            addresses: Vec::new(),
            gateways: Vec::new(),
        }
    }

    fn append(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(|(ip, length)| format!("{ip}/{length}")).collect();
        let gateways: Vec<_> = self.gateways.iter().map(ToString::to_string).collect();
        format!("tenet.nic={}|{}|{}", self.link, addresses.join(","), gateways.join(","))
    }
}

/// How a guest shall be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestOptions {
    /// Its name, with which it answers ([`crate::tool`]).
    pub name: String,
    /// Its folder: sockets, logs. Made if it is not there; two guests must not share one.
    pub dir: PathBuf,
    /// Its memory in MB. 96 is enough for Debian's kernel, 64 is not.
    pub memory_mb: u32,
    /// Its cards.
    pub nics: Vec<Nic>,
    /// Another monitor's socket, besides ours: where an agent looks for it (`TENANT.VM.sock` in its `--qmp-dir`).
    pub monitor: Option<PathBuf>,
    /// Waits for a guest that comes from elsewhere, at this URI (`tcp:0.0.0.0:4444`, `unix:/path`, or `defer`), instead
    /// of starting one. Name, memory and cards must be the same there and here.
    pub incoming: Option<String>,
    /// More arguments for QEMU.
    pub extra: Vec<OsString>,
}

impl GuestOptions {
    /// A guest of 96 MB without cards.
    #[must_use]
    pub fn new(name: &str, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            dir: dir.into(),
            memory_mb: 96,
            nics: Vec::new(),
            monitor: None,
            incoming: None,
            extra: Vec::new(),
        }
    }

    pub(super) fn arguments(&self, image: &Image) -> Result<Vec<OsString>> {
        let mut all: Vec<OsString> = Vec::new();
        let mut add = |key: &str, value: String| {
            all.push(key.into());
            if !value.is_empty() {
                all.push(value.into());
            }
        };
        add("-name", format!("guest={}", escape(&self.name)));
        // Never `kvm:tcg`: nested, KVM is often there and hangs.
        for (key, value) in [
            ("-machine", "pc"),
            ("-accel", "tcg,thread=multi,tb-size=32"),
            ("-cpu", "qemu64"),
            ("-nodefaults", ""),
            ("-no-user-config", ""),
            ("-no-reboot", ""),
            ("-display", "none"),
            ("-device", "virtio-serial-pci,id=channels"),
            ("-serial", "chardev:console"),
        ] {
            add(key, value.to_owned());
        }
        add("-m", format!("{}M", self.memory_mb));
        add(
            "-chardev",
            format!(
                "socket,id=console,path={},server=on,wait=off,logfile={}",
                socket(&console(&self.dir))?,
                escape(&path(&console_log(&self.dir))?)
            ),
        );
        for at in 0..CHANNELS {
            let path = socket(&channel(&self.dir, at))?;
            add("-chardev", format!("socket,id=channel{at},path={path},server=on,wait=off"));
            add("-device", format!("virtserialport,chardev=channel{at},name=tenet.exec.{at}"));
        }
        for monitor in [Some(&qmp(&self.dir)), self.monitor.as_ref()].into_iter().flatten() {
            add("-qmp", format!("unix:{},server=on,wait=off", socket(monitor)?));
        }
        for (at, nic) in self.nics.iter().enumerate() {
            link_name(&nic.tap)?;
            link_name(&nic.link)?;
            add("-netdev", format!("tap,id=net{at},ifname={},script=no,downscript=no", nic.tap));
            let Nic { mac, mtu, .. } = nic;
            let device = format!("virtio-net-pci,netdev=net{at},mac={mac},host_mtu={mtu},romfile=");
            add("-device", device);
        }
        add("-kernel", path(image.kernel())?);
        add("-initrd", path(image.initrd())?);
        add("-append", self.append()?);
        if let Some(uri) = &self.incoming {
            add("-incoming", uri.clone());
        }
        all.extend(self.extra.iter().cloned());
        Ok(all)
    }

    fn append(&self) -> Result<String> {
        let quiet = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check";
        let mut all = format!("{quiet} tenet.name={}", self.name);
        for nic in &self.nics {
            all.push(' ');
            all.push_str(&nic.append());
        }
        // Words of the kernel's command line end at white space, and quotes join them.
        if self.name.is_empty() || self.name.contains(|c: char| c.is_whitespace() || c == '"') {
            return Err(Error::Plan(format!(
                "{:?} is no name for a guest: use neither spaces nor quotes",
                self.name
            )));
        }
        if all.len() > APPEND_MOST {
            return Err(Error::Plan(format!(
                "guest {} has too many addresses: its kernel's command line would have {} of at most {APPEND_MOST} bytes",
                self.name,
                all.len()
            )));
        }
        Ok(all)
    }
}

/// The socket of a channel for commands.
pub fn channel(dir: &Path, at: usize) -> PathBuf {
    dir.join(format!("exec{at}.sock"))
}

/// The socket of our monitor.
pub fn qmp(dir: &Path) -> PathBuf {
    dir.join("qmp.sock")
}

/// The socket of the console.
pub fn console(dir: &Path) -> PathBuf {
    dir.join("console.sock")
}

/// What the console has shown.
pub fn console_log(dir: &Path) -> PathBuf {
    dir.join("console.log")
}

/// What QEMU itself says.
pub fn log(dir: &Path) -> PathBuf {
    dir.join("qemu.log")
}

/// A comma ends a value unless it is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn path(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::Plan(format!("{} is no path for a guest: it must be text (UTF-8)", path.display()))
    })
}

fn socket(at: &Path) -> Result<String> {
    let text = path(at)?;
    if text.len() > SOCKET_MOST {
        return Err(Error::Plan(format!(
            "{text} is too long for a socket: at most {SOCKET_MOST} bytes; give the guest another folder"
        )));
    }
    Ok(escape(&text))
}

fn link_name(name: &str) -> Result<()> {
    if name.is_empty()
        || name.len() > LINK_MOST
        || name.contains(|c: char| c.is_whitespace() || ",|/\"".contains(c))
    {
        return Err(Error::Plan(format!("{name:?} is no name for a link of a guest")));
    }
    Ok(())
}
