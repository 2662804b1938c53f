//! The slow device: a pair of veths by which frames go that STT's fast path cannot finish in one step.
//!
//! ```text
//!  port_in ─ frame that TCP's offload cannot cut ──┐                   ┌── slow_in: as from the port, now in pieces
//!                                             tenet-slow ═══ tenet-slow-in
//!  uplink_in ─ part of an STT frame ───────────────┘                   └── the agent's packet socket
//!  uplink_in (at tenet-slow) ◄─ whole STT frame, as from the wire ◄──────── the agent
//! ```
//! The near end has no offloads, so that the kernel cuts up whatever leaves by it: that is how a bundle of UDP
//! datagrams becomes datagrams, without an agent. At the far end the agent listens, which puts the parts of STT frames
//! together and sends the whole ones back, where the uplink's own program decides about them as about any other.

mod path;
mod socket;

pub use path::SlowPath;

use crate::{Datapath, Error, Hook, Result, sys};
use tenet_hostnet::{Kind, Links};

/// Name of the near end, where frames are redirected to.
pub const SLOW: &str = "tenet-slow";
/// Name of the far end, where they come out.
pub const SLOW_IN: &str = "tenet-slow-in";
/// Pin of the program's link at the far end.
pub(crate) const LINK: &str = "slow_in";
/// As large as it gets.
const MTU: u32 = 65535;

impl Datapath {
    /// Makes the slow device, or makes the one that is there right again, and says the numbers of its ends: near, far.
    ///
    /// # Errors
    /// If this kernel or this host's settings do not allow it; STT then does without.
    pub fn ensure_slow(&self) -> Result<(u32, u32)> {
        if self.hook() != Hook::Tcx {
            return Err(Error::NoHub { why: "without TCX there is no slow device for STT" });
        }
        let Some(slow_in) = &self.slow_in else {
            return Err(Error::Incomplete { what: "program slow_in".to_owned() });
        };
        let links = Self::links()?;
        let (near, far) = make_pair(&links)?;
        // Programs first: a link that is up without them would speak to the host's stack.
        for name in [SLOW, SLOW_IN] {
            links.quiet(name)?;
        }
        self.hang(slow_in, LINK, far, sys::TCX_INGRESS)?;
        self.hang(&self.uplink_in, "slow_back", near, sys::TCX_INGRESS)?;
        links.set_offloads(SLOW, false)?;
        links.set_up(SLOW_IN)?;
        links.set_up(SLOW)?;
        Ok((near, far))
    }
}

/// Finds both ends, or makes them; their numbers.
fn make_pair(links: &Links) -> Result<(u32, u32)> {
    let (near, far) = (links.find(SLOW)?, links.find(SLOW_IN)?);
    if let (Some(near), Some(far)) = (&near, &far)
        && near.kind == Kind::Veth
        && !near.lower_elsewhere
        && near.lower == Some(far.index)
    {
        return Ok((near.index, far.index));
    }
    remove(links)?;
    links.add_veth(SLOW, SLOW_IN, links.netns())?;
    for name in [SLOW, SLOW_IN] {
        links.set_mtu(name, MTU)?;
    }
    Ok((links.index(SLOW)?, links.index(SLOW_IN)?))
}

/// Removes the slow device.
pub(crate) fn remove(links: &Links) -> Result<()> {
    for name in [SLOW, SLOW_IN] {
        if links.find(name)?.is_some() {
            links.delete_link(name)?;
        }
    }
    Ok(())
}
