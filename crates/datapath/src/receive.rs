//! How frames get from the uplink into taps: the ways that there are, which of them work here, and what each costs.
//!
//! A tunnel that a program takes off a bundle of segments stays noted at the bundle, and a tap, which knows no
//! tunnels, then gets it cut up. The kernel may forget the tunnel when asked to ([`Receive::Kernel`]), or the frames
//! go by way of the [hub](crate::hub) ([`Receive::Hub`]). Devices that are no taps take bundles as they are.

use crate::{Datapath, Error, Hook, Options, Result, Role, check, hub};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{
    Addr, Config, DEVICE_TAP, GATEWAY_MAC, GENEVE_PORT, LAYOUT_VERSION, METHOD_NVGRE, Mac, MacEntry, MacKey,
    PORT_ACTIVE, Peer, PeerKey, Port, Record, RecordKey, Subnet, VXLAN_PORT,
};

/// A way from the uplink into taps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub enum Receive {
    /// The best that works.
    #[default]
    Auto,
    /// The tunnel is taken off in tc; large frames reach taps cut up.
    Plain,
    /// By way of the hub, where SRv6 End.DX2 takes the tunnel off.
    Hub,
    /// The tunnel is taken off in tc and the kernel forgets it.
    Kernel,
}

impl Receive {
    /// All but [`Receive::Auto`].
    pub const WAYS: [Self; 3] = [Self::Plain, Self::Hub, Self::Kernel];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Plain => "plain",
            Self::Hub => "hub",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for Receive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Receive {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [Self::Auto, Self::Plain, Self::Hub, Self::Kernel];
        let found = all.into_iter().find(|r| r.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of auto, plain, hub, kernel"))
    }
}

/// What a way costs, as measured on devices that were made for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Frames that a bundle of [`BUNDLE`] bytes is in the tap.
    pub frames: u32,
    /// Nanoseconds from one tap to the other, for such a bundle.
    pub nanoseconds: u64,
}

/// Payload of a bundle that is measured with.
pub const BUNDLE: usize = 60_000;

/// A way, and why it does not work here, if it does not.
pub(crate) type Tried = (Receive, Option<String>);

/// Chooses a way; with it for each why it does not work here, if it does not.
pub(crate) fn choose(wanted: Receive, tcx: bool) -> Result<(Receive, Vec<Tried>)> {
    let kernel = check::forgets_tunnels().err().map(|e| match e.raw_os_error() {
        Some(libc::EINVAL) => "this kernel's adjust_room has no flag for it".to_owned(),
        _ => e.to_string(),
    });
    // Two namespaces are made for the trial: not where it does not matter.
    let hub = match (wanted, &kernel) {
        _ if !tcx => Some("without TCX there is no hub".to_owned()),
        _ if check::turns_versions().is_err() => {
            Some("the kernel is older than 6.4 and makes no frame IPv6 in place".to_owned())
        }
        (Receive::Auto, None) | (Receive::Plain | Receive::Kernel, _) => None,
        (Receive::Auto, Some(_)) | (Receive::Hub, _) => hub::try_route().err().map(|e| e.to_string()),
    };
    let ways = vec![(Receive::Plain, None), (Receive::Hub, hub.clone()), (Receive::Kernel, kernel.clone())];
    let refused = |way: Receive, why: Option<String>| match why {
        None => Ok(way),
        Some(why) => Err(Error::Receive { way: way.name(), why }),
    };
    let chosen = match wanted {
        Receive::Auto if kernel.is_none() => Receive::Kernel,
        Receive::Auto if hub.is_none() => Receive::Hub,
        Receive::Auto | Receive::Plain => Receive::Plain,
        Receive::Hub => refused(Receive::Hub, hub)?,
        Receive::Kernel => refused(Receive::Kernel, kernel)?,
    };
    Ok((chosen, ways))
}

const PAS: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 2]];
const CAS: [[u8; 4]; 2] = [[198, 51, 100, 1], [198, 51, 100, 2]];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const NET: u32 = 1;
const VSID: u32 = 4096;
const MTU: u16 = 1458;
const ROUNDS: usize = 60;
const PATIENCE: Duration = Duration::from_millis(200);
const VNET: usize = 10;
const HEADERS: usize = 14 + 20 + 20;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const OFFLOADS: libc::c_ulong = 1 | 2 | 4 | 8;

/// Measures every way that works: two hosts on namespaces that nobody sees, with maps of their own beside those of
/// `options`.
///
/// Takes a second or two, and as much memory as an empty host's tables twice.
///
/// # Errors
/// If the namespaces or the programs cannot be made; a way that fails alone is left out.
pub fn measure(options: &Options) -> Result<Vec<(Receive, Cost)>> {
    let mut sender = Host::new(options, 0, Receive::Plain)?;
    let mut costs = Vec::new();
    let mut receiver = Host::new(options, 1, Receive::Plain)?;
    connect(&mut sender, &mut receiver)?;
    costs.extend(cost(&mut sender, &mut receiver).map(|c| (Receive::Plain, c)));
    if let Ok(Ok(hub)) = receiver.netns.run(|| receiver.plane.ensure_hub()) {
        let config = Config { hub, ..receiver.image.config.unwrap_or_default() };
        receiver.plane.apply(&[Operation::Configure(config)])?;
        costs.extend(cost(&mut sender, &mut receiver).map(|c| (Receive::Hub, c)));
    }
    drop(receiver);
    if check::forgets_tunnels().is_ok() {
        let mut receiver = Host::new(options, 1, Receive::Kernel)?;
        connect(&mut sender, &mut receiver)?;
        costs.extend(cost(&mut sender, &mut receiver).map(|c| (Receive::Kernel, c)));
    }
    Ok(costs)
}

/// One of the two hosts.
struct Host {
    netns: Netns,
    links: Links,
    plane: Datapath,
    image: Image,
    tap: File,
    which: usize,
    options: Options,
}

impl Host {
    fn new(options: &Options, which: usize, receive: Receive) -> Result<Self> {
        let netns = Netns::anonymous()?;
        let links = Links::in_netns(&netns)?;
        let tap = links.open_tap("port", TapOptions::default())?;
        links.quiet("port")?;
        prepare(&tap).map_err(Error::system("set up a tap to measure with"))?;
        let scratch = beside(&options.bpffs, which);
        let lock = Some(std::env::temp_dir().join(format!("tenet-try-{}-{which}.lock", std::process::id())));
        let options = Options { bpffs: scratch, hook: Hook::Auto, receive, lock, ..options.clone() };
        let plane = netns.run(|| Datapath::open(&options))??;
        let mut host = Self { netns, links, plane, image: Image::default(), tap: tap.into(), which, options };
        host.image = host.image()?;
        Ok(host)
    }

    fn image(&self) -> Result<Image> {
        let mut image = Image::default();
        let port = self.links.index("port")?;
        image.subnets.insert(VSID, Subnet { net: NET, method: u32::from(METHOD_NVGRE), ..Subnet::default() });
        for (i, ((pa, ca), mac)) in PAS.into_iter().zip(CAS).zip(MACS).enumerate() {
            let (pa, mac) = (Addr::v4(pa), Mac::new(mac));
            let ifindex = if i == self.which { port } else { 0 };
            let record = Record { pa, mac, method: METHOD_NVGRE, vsid: VSID, ifindex, ..Record::default() };
            image.records.insert(RecordKey { net: NET, ca: Addr::v4(ca) }, record);
            let entry = MacEntry { pa, ifindex, method: u32::from(METHOD_NVGRE) };
            image.macs.insert(MacKey { vsid: VSID, mac, reserved: 0 }, entry);
            if i != self.which {
                image.peers.insert(PeerKey { net: 0, pa }, Peer::default());
            }
        }
        let mac = Mac::new(MACS[self.which]);
        let (state, device) = (PORT_ACTIVE, DEVICE_TAP);
        image
            .ports
            .insert(port, Port { net: NET, vsid: VSID, mac, mtu: MTU, state, device, ..Port::default() });
        Ok(image)
    }

    /// Writes the tables and attaches, once the wire is there.
    fn start(&mut self) -> Result<()> {
        self.links.set_up("up")?;
        self.links.add_addr("up", PAS[self.which].into(), 24)?;
        self.image.config = Some(Config {
            layout: LAYOUT_VERSION,
            uplink: self.links.index("up")?,
            pa: Addr::v4(PAS[self.which]),
            gateway_mac: GATEWAY_MAC,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            ..Config::default()
        });
        self.plane.apply(&Image::default().operations_to(&self.image))?;
        self.netns.run(|| self.plane.attach_name("port", Role::Port))??;
        self.netns.run(|| self.plane.attach_name("up", Role::Uplink))??;
        Ok(self.links.set_up("port")?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing else knows of these pins; what cannot be removed now holds a little memory until the next boot.
        drop(self.netns.run(|| remove(&self.options)));
    }
}

fn remove(options: &Options) {
    for directory in [options.bpffs.join("links"), options.bpffs.join("maps")] {
        for name in crate::bpffs::list(&directory).unwrap_or_default() {
            drop(crate::bpffs::unpin(&directory.join(name)));
        }
        drop(std::fs::remove_dir(directory));
    }
    drop(hub::remove(&options.bpffs));
    drop(std::fs::remove_dir(&options.bpffs));
    if let Some(lock) = &options.lock {
        drop(std::fs::remove_file(lock));
    }
}

fn beside(bpffs: &Path, which: usize) -> PathBuf {
    let mut name = bpffs.as_os_str().to_owned();
    name.push(format!("-try-{}-{which}", std::process::id()));
    name.into()
}

fn connect(sender: &mut Host, receiver: &mut Host) -> Result<()> {
    if sender.links.find("up")?.is_some() {
        sender.links.delete_link("up")?;
    }
    sender.links.add_veth("up", "up", &receiver.netns)?;
    sender.start()?;
    receiver.start()
}

/// The median of some bundles; none if one gets lost for good.
fn cost(sender: &mut Host, receiver: &mut Host) -> Option<Cost> {
    let frame = bundle();
    let mut all = Vec::new();
    let mut buffer = vec![0; 70_000];
    // The first looks for the neighbour, and may be lost for that.
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        sender.tap.write_all(&frame).ok()?;
        let (mut bytes, mut frames) = (0, 0);
        while bytes < BUNDLE && begin.elapsed() < PATIENCE {
            match receiver.tap.read(&mut buffer) {
                Ok(length) => {
                    bytes += length.saturating_sub(VNET + HEADERS);
                    frames += 1;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&receiver.tap),
                Err(_) => return None,
            }
        }
        if bytes >= BUNDLE {
            all.push((u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX), frames));
        }
    }
    all.sort_unstable();
    let (nanoseconds, frames) = all.get(all.len() / 2).copied().filter(|_| all.len() > ROUNDS / 2)?;
    Some(Cost { frames, nanoseconds })
}

/// A bundle of TCP segments as a VM writes it.
fn bundle() -> Vec<u8> {
    let mss = MTU - 40;
    let mut bytes = vec![1, 1];
    for word in [54, mss, 34, 16] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(MACS[1]);
    bytes.extend(MACS[0]);
    bytes.extend([8, 0, 0x45, 0]);
    let total = u16::try_from(40 + BUNDLE).unwrap_or(u16::MAX);
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(CAS[0]);
    bytes.extend(CAS[1]);
    let header = sum(&bytes[VNET + 14..]);
    bytes[VNET + 24..VNET + 26].copy_from_slice(&(!header).to_be_bytes());
    let pseudo = [&CAS[0][..], &CAS[1], &[0, 6], &(total - 20).to_be_bytes()].concat();
    bytes.extend([0x1f, 0x90, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    bytes.extend(sum(&pseudo).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.resize(VNET + HEADERS + BUNDLE, 7);
    bytes
}

fn sum(bytes: &[u8]) -> u16 {
    let all: u32 = bytes.chunks_exact(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    let folded = (all & 0xffff) + (all >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

fn wait(tap: &File) {
    let mut poll = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, live as long as the call.
    unsafe { libc::poll(&raw mut poll, 1, 20) };
}

/// Bundles may come whole, and reading never blocks.
fn prepare(tap: &OwnedFd) -> io::Result<()> {
    // SAFETY: these requests take and give numbers, no pointer.
    let done = unsafe {
        if libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) < 0 {
            -1
        } else {
            let flags = libc::fcntl(tap.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
