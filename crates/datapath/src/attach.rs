//! Programs on devices: put, adopted, swapped without a gap, taken off, looked after.
//!
//! We run before all others on a device. On a port nobody else has a say: every frame is decided by
//! us. On an uplink we take what is ours, and let all else pass with "next" (`TC_ACT_UNSPEC`), so that
//! programs and filters of others see exactly what they saw before. Their programs stay where they
//! are; who later puts one before ours sees encapsulated frames first, which is harmless.

use crate::bpffs::unpin;
use crate::sys::{self, LinkInfo};
use crate::{Datapath, Error, Result};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use tenet_hostnet::{Error as NetError, Links};

/// Runs before any filter with a priority of its own.
const PRIORITY: u16 = 1;
/// Ours among filters of the same priority; the role is added.
const HANDLE: u32 = 0x7e01;

/// Where programs hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// Links at TCX ingress (kernel 6.6).
    Tcx,
    /// cls_bpf filters at clsact ingress.
    Clsact,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What a device is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A VM's NIC: program `port_in`.
    Port,
    /// Carries the provider network: program `uplink_in`.
    Uplink,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 2] = [Self::Port, Self::Uplink];

    /// Name of its program in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Port => "port_in",
            Self::Uplink => "uplink_in",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Uplink => "uplink",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    const fn handle(self) -> u32 {
        match self {
            Self::Port => HANDLE,
            Self::Uplink => HANDLE + 1,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program of ours on a device, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The device.
    pub ifindex: u32,
    /// Which program.
    pub role: Role,
    /// Whether it hangs on TCX (else on clsact).
    pub tcx: bool,
    /// The kernel's number of the program.
    pub program_id: u32,
}

impl Attachment {
    /// Where it hangs.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        if self.tcx { Hook::Tcx } else { Hook::Clsact }
    }
}

/// What [`Datapath::attach`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The very same program on the very same maps was there: adopted.
    Kept,
    /// Another version was there: swapped in one step.
    Replaced,
    /// Nothing was there.
    Created,
}

impl Datapath {
    /// Makes a device carry our program, whatever is there now; frames that pass meanwhile are not lost.
    pub fn attach(&self, ifindex: u32, role: Role) -> Result<Change> {
        let links = Self::links()?;
        if links.by_index(ifindex)?.is_none() {
            let missing = links.netns().label().to_owned();
            return Err(NetError::NoSuchLink { link: format!("#{ifindex}"), netns: missing }.into());
        }
        let change = if self.hook() == Hook::Tcx {
            let change = self.attach_tcx(ifindex, role)?;
            remove_filter(&links, &self.pins.root, ifindex, role)?;
            change
        } else {
            let change = self.attach_clsact(&links, ifindex, role)?;
            remove_link(&self.pins.link(role, ifindex))?;
            change
        };
        Ok(change)
    }

    /// Makes a device carry our program, by the device's name.
    pub fn attach_name(&self, name: &str, role: Role) -> Result<Change> {
        self.attach(Self::links()?.index(name)?, role)
    }

    fn attach_tcx(&self, ifindex: u32, role: Role) -> Result<Change> {
        let failed = |source| Error::Attach { ifindex, role, source };
        let pin = self.pins.link(role, ifindex);
        let program = self.program(role).fd.as_fd();
        match sys::obj_get(&pin) {
            Ok(link) => {
                let live = sys::tcx_info(link.as_fd()).map_err(failed)?.filter(|l| is_live(l, ifindex));
                if let Some(info) = live {
                    if self.is_ours(info.program_id, role) {
                        return Ok(Change::Kept);
                    }
                    sys::link_update(link.as_fd(), program).map_err(failed)?;
                    return Ok(Change::Replaced);
                }
                // A device that is gone, or a link that somebody detached by hand.
                remove_link(&pin)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let link = self.new_link(ifindex, role).map_err(failed)?;
        sys::obj_pin(link.as_fd(), &pin).map_err(Error::system(format!("pin {}", pin.display())))?;
        Ok(Change::Created)
    }

    /// Creates a link, or takes the one that is without its pin: if somebody removes a pin, the kernel ends the link
    /// some milliseconds later, and until then refuses a second one with the same program.
    fn new_link(&self, ifindex: u32, role: Role) -> io::Result<OwnedFd> {
        const PAUSE: Duration = Duration::from_millis(5);
        let program = self.program(role);
        for _ in 0..400 {
            let there = sys::tcx_query(ifindex)?;
            match there.into_iter().find(|(id, _)| *id == program.info.id) {
                None => match sys::tcx_attach(program.fd.as_fd(), ifindex) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    other => return other,
                },
                Some((_, link)) => match sys::link_by_id(link) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    other => return other,
                },
            }
            std::thread::sleep(PAUSE);
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    fn attach_clsact(&self, links: &Links, ifindex: u32, role: Role) -> Result<Change> {
        links.ensure_clsact(ifindex)?;
        let name = filter_name(&self.pins.root, role);
        let change = match find_filter(links, &self.pins.root, ifindex, role)? {
            Some(id) if self.is_ours(id, role) => return Ok(Change::Kept),
            Some(_) => Change::Replaced,
            None => Change::Created,
        };
        links.put_filter(ifindex, PRIORITY, role.handle(), &name, self.program(role).fd.as_fd())?;
        Ok(change)
    }

    /// Takes our programs from a device; that there are none, or no device, is no error.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        let links = Self::links()?;
        for role in Role::ALL {
            remove_link(&self.pins.link(role, ifindex))?;
            remove_filter(&links, &self.pins.root, ifindex, role)?;
        }
        Ok(())
    }

    /// All our programs on devices, as the kernel has them now, whichever version they are.
    pub fn attached(&self) -> Result<Vec<Attachment>> {
        let links = Self::links()?;
        let mut found = Vec::new();
        for (role, ifindex) in self.pins.list_links()? {
            let Ok(link) = sys::obj_get(&self.pins.link(role, ifindex)) else { continue };
            let info = sys::tcx_info(link.as_fd()).map_err(Error::system("read a pinned link"))?;
            if let Some(info) = info.filter(|l| is_live(l, ifindex)) {
                found.push(Attachment { ifindex, role, tcx: true, program_id: info.program_id });
            }
        }
        for link in links.list()? {
            for role in Role::ALL {
                if let Some(program_id) = find_filter(&links, &self.pins.root, link.index, role)? {
                    found.push(Attachment { ifindex: link.index, role, tcx: false, program_id });
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Which of the wanted programs really are on their devices: our version, on our maps, in the kernel now.
    ///
    /// What is missing from the answer was removed by hand, or its device is gone: attach it again.
    pub fn verify_attached(&self, wanted: &[(u32, Role)]) -> Result<Vec<Attachment>> {
        let links = Self::links()?;
        let mut there = Vec::new();
        for &(ifindex, role) in wanted {
            let found = if self.hook() == Hook::Tcx {
                // Without its pin a link is about to go. A missing device is EINVAL or ENODEV, depending on the kernel.
                let pinned = self.pins.link(role, ifindex).exists();
                let programs = if pinned { sys::tcx_query(ifindex).unwrap_or_default() } else { Vec::new() };
                programs.into_iter().map(|(program, _)| program).find(|id| self.is_ours(*id, role))
            } else {
                find_filter(&links, &self.pins.root, ifindex, role)?.filter(|id| self.is_ours(*id, role))
            };
            if let Some(program_id) = found {
                let tcx = self.hook() == Hook::Tcx;
                there.push(Attachment { ifindex, role, tcx, program_id });
            }
        }
        Ok(there)
    }

    /// Whether a program is what we would attach: the same instructions on the same maps.
    ///
    /// The kernel's tag leaves out which maps the instructions use, and the constants: those lie in a map of
    /// each load's own.
    fn is_ours(&self, program_id: u32, role: Role) -> bool {
        let ours = &self.program(role).info;
        if program_id == ours.id {
            return true;
        }
        let theirs = sys::program_by_id(program_id).and_then(|fd| sys::program_info(fd.as_fd()));
        let Ok(theirs) = theirs else { return false };
        let (our_tables, our_constants) = self.split_maps(&ours.map_ids);
        let (their_tables, their_constants) = self.split_maps(&theirs.map_ids);
        theirs.tag == ours.tag
            && our_tables == their_tables
            && matches!((constants(&our_constants), constants(&their_constants)), (Ok(a), Ok(b)) if a == b)
    }

    /// Parts a program's maps into pinned ones and the rest.
    fn split_maps(&self, ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
        ids.iter().copied().partition(|id| self.pinned.contains(id))
    }
}

/// Contents of those maps that hold a program's constants; the others are scratch space.
fn constants(ids: &[u32]) -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for id in ids {
        let map = sys::RawMap::new(sys::map_by_id(*id)?)?;
        if map.info().constants {
            all.push(map.lookup(&[0; 4])?.unwrap_or_default());
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Whether a pinned link still is at this device of this namespace.
fn is_live(link: &LinkInfo, ifindex: u32) -> bool {
    link.ifindex == ifindex
        && sys::tcx_query(ifindex).is_ok_and(|all| all.iter().any(|(_, id)| *id == link.id))
}

/// Detaches a pinned link and removes its pin.
pub(crate) fn remove_link(pin: &Path) -> Result<()> {
    match sys::obj_get(pin) {
        Ok(link) => {
            // Fails for a link whose device is gone. The unpinning ends the link anyway if nobody else holds it.
            drop(sys::link_detach(link.as_fd()));
            unpin(pin)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::System { action: format!("open {}", pin.display()), source }),
    }
}

/// Removes our filter from a device, and the qdisc if nothing else is on it; says what it removed.
pub(crate) fn remove_filter(links: &Links, bpffs: &Path, ifindex: u32, role: Role) -> Result<(bool, bool)> {
    if find_filter(links, bpffs, ifindex, role)?.is_none() {
        return Ok((false, false));
    }
    links.delete_filter(ifindex, PRIORITY, role.handle())?;
    Ok((true, links.delete_clsact_if_empty(ifindex)?))
}

/// The program behind our filter on a device. The name tells ours from those of an agent on other pins.
fn find_filter(links: &Links, bpffs: &Path, ifindex: u32, role: Role) -> Result<Option<u32>> {
    let name = filter_name(bpffs, role);
    let filters = links.filters(ifindex, true)?;
    Ok(filters
        .into_iter()
        .find(|f| f.priority == PRIORITY && f.handle == role.handle() && f.name == name)
        .map(|f| {
            // 0 is no program's number: kernels before 4.13 do not tell, and we then put the filter again.
            f.program_id.unwrap_or(0)
        }))
}

fn filter_name(bpffs: &Path, role: Role) -> String {
    format!("tenet {role} {}", bpffs.display())
}
