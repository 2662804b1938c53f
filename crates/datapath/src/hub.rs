//! The hub: where the kernel itself takes the tunnel off frames for taps, so that they stay whole.
//!
//! A network namespace with nothing in it but the inner end of a veth pair and one SRv6 route. Its outer end is on
//! the host. `uplink_in` puts frames into the inner end, the route takes their outer header off and sends them back
//! out of it, `hub_out` passes them, and `hub_in` at the outer end gives them to their tap (see `ebpf/src/hub.rs`).
//! In a namespace of its own the route is out of reach for everybody else, and neither the host's firewall nor its
//! IPv6 settings touch what passes.

use crate::attach::remove_link;
use crate::datapath::Program;
use crate::{Datapath, Error, Hook, Result, check, sys};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use tenet_forward::HubFrame;
use tenet_hostnet::{Error as NetError, Kind, Links, Netns};

/// Name of the hub's outer end.
pub const HUB: &str = "tenet-hub";
/// Name of its inner end.
const INNER: &str = "inner";
/// As large as it gets: the route drops what is larger than the link.
const MTU: u32 = 65535;

impl Datapath {
    /// Whether frames for taps have to go by a hub to stay whole.
    #[must_use]
    pub fn needs_hub(&self) -> bool {
        self.receive == crate::Receive::Hub
    }

    /// Makes the hub, or makes the one that is there right again, and says the number of its outer end.
    ///
    /// # Errors
    /// If this kernel or this host's settings do not allow it; frames then go into taps cut up.
    pub fn ensure_hub(&self) -> Result<u32> {
        if self.hook() != Hook::Tcx {
            return Err(Error::NoHub { why: "without TCX there is no hub" });
        }
        if !self.turns {
            return Err(Error::NoHub {
                why: "the kernel is older than 6.4 and makes no frame IPv6 in place",
            });
        }
        let links = Self::links()?;
        let netns = namespace(&self.pins.root)?;
        let inside = Links::in_netns(&netns)?;
        let (outer, inner) = make_pair(&links, &inside, &netns)?;
        // Programs first: a link that is up without them would speak to somebody.
        links.quiet(HUB)?;
        self.hang(&self.hub_in, "hub_in", outer, sys::TCX_INGRESS)?;
        netns.run(|| self.hang(&self.hub_out, "hub_out", inner, sys::TCX_EGRESS))??;
        links.set_up(HUB)?;
        make_route(&inside)?;
        Ok(outer)
    }

    /// Puts a program on a link of the calling thread's namespace, or swaps the one there for ours.
    pub(crate) fn hang(&self, program: &Program, name: &str, ifindex: u32, hook: u32) -> Result<()> {
        let pin = self.hub_pin(name);
        let failed = |source| Error::System { action: format!("attach {name} to the hub"), source };
        match sys::obj_get(&pin) {
            Ok(link) => {
                let info = sys::tcx_info_at(link.as_fd(), hook).map_err(failed)?;
                if info.is_some_and(|i| i.ifindex == ifindex)
                    && sys::link_update(link.as_fd(), program.fd.as_fd()).is_ok()
                {
                    return Ok(());
                }
                remove_link(&pin)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let link = sys::tcx_attach_at(program.fd.as_fd(), ifindex, hook).map_err(failed)?;
        sys::obj_pin(link.as_fd(), &pin).map_err(failed)
    }

    fn hub_pin(&self, name: &str) -> PathBuf {
        self.pins.links().join(name)
    }
}

/// Makes the hub's namespace if this kernel needs a hub, for an agent whose own mount namespace ends with it.
///
/// # Errors
/// If the namespace cannot be made, or would not outlive the process.
pub fn prepare_hub(bpffs: &Path) -> Result<()> {
    if check::forgets_tunnels().is_ok() { Ok(()) } else { namespace(bpffs).map(drop) }
}

/// The hub's namespace, made if it is not there.
fn namespace(bpffs: &Path) -> Result<Netns> {
    let name = netns_name(bpffs);
    match Netns::open(&name) {
        Err(NetError::NoSuchNetns { .. }) if mounts_end_with_us() => Err(Error::NoHub {
            why: "the hub would end with this service: run `tenet agent --prepare` before it, as the unit in packaging/ does",
        }),
        Err(NetError::NoSuchNetns { .. }) => Ok(Netns::create(&name)?),
        other => Ok(other?),
    }
}

/// Whether our mounts are a copy of the host's, as services with `ProtectSystem=` get one: a namespace's name is a
/// mount, and forwarding must outlive the agent.
fn mounts_end_with_us() -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/thread-self/mountinfo") else { return false };
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    root.is_some_and(|line| line.contains(" master:"))
}

/// Finds both ends, or makes them; their numbers.
fn make_pair(links: &Links, inside: &Links, netns: &Netns) -> Result<(u32, u32)> {
    let outer = links.find(HUB)?;
    let inner = inside.find(INNER)?;
    if let (Some(outer), Some(inner)) = (&outer, &inner)
        && outer.kind == Kind::Veth
        && outer.lower_elsewhere
        && outer.lower == Some(inner.index)
        && inner.lower == Some(outer.index)
    {
        return Ok((outer.index, inner.index));
    }
    if inner.is_some() {
        // Its other end is not on this host's side, or has another name.
        inside.delete_link(INNER)?;
    }
    links.add_veth(HUB, INNER, netns)?;
    links.set_mtu(HUB, MTU)?;
    inside.set_mtu(INNER, MTU)?;
    Ok((links.index(HUB)?, inside.index(INNER)?))
}

/// Sets the inner end up with its route, whatever the host's defaults for new devices are.
fn make_route(inside: &Links) -> Result<()> {
    for (path, value) in [
        ("ipv6/conf/inner/addr_gen_mode", "1"),
        ("ipv6/conf/inner/accept_ra", "0"),
        ("ipv6/conf/inner/accept_dad", "0"),
        ("ipv6/conf/inner/disable_ipv6", "0"),
    ] {
        inside.set_sysctl(path, value)?;
    }
    inside.set_up(INNER)?;
    Ok(inside.add_decapsulating_route(HubFrame::SID, INNER)?)
}

/// Tries the route in a namespace that nobody sees.
pub(crate) fn try_route() -> Result<()> {
    let (netns, far) = (Netns::anonymous()?, Netns::anonymous()?);
    let inside = Links::in_netns(&netns)?;
    inside.add_veth(INNER, HUB, &far)?;
    make_route(&inside)
}

/// Removes the hub with all that is in it.
pub(crate) fn remove(bpffs: &Path) -> Result<()> {
    let name = netns_name(bpffs);
    let netns = match Netns::open(&name) {
        Err(NetError::NoSuchNetns { .. }) => return Ok(()),
        other => other?,
    };
    let inside = Links::in_netns(&netns)?;
    if inside.find(INNER)?.is_some() {
        // The outer end goes with it at once; a namespace that ends takes its time.
        inside.delete_link(INNER)?;
    }
    Ok(Netns::delete(&name)?)
}

/// One hub for each directory of pins.
fn netns_name(bpffs: &Path) -> String {
    let path = bpffs.to_string_lossy();
    let path = path.strip_prefix("/sys/fs/bpf/").unwrap_or(&path);
    format!("{}-hub", path.trim_matches('/').replace('/', "-"))
}
