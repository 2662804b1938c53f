//! The agent's shell: joins a site, holds a session with the controller, carries out what the core decides.
//!
//! Three things to know: [`run`] (the whole agent), [`Options`] and [`Kernel`] (what it asks of a kernel; the real
//! one, or [`MemoryKernel`]). All decisions are `tenet-host`'s: here are sockets, files, system calls and clocks.
//!
//! It must never stop forwarding: not when it ends, not when the controller is away, not when it starts again.
//! Only [`detach`] takes Tenet off a host.

mod agent;
mod cache;
mod convert;
mod drain;
mod figures;
mod identity;
mod keep;
mod kernel;
mod local;
mod measure;
mod metrics;
mod multicast;
mod offloads;
mod options;
mod placeholder;
mod probe;
mod qmp;
mod real;
mod receive;
mod seen;
mod session;
mod slow;
mod taps;
mod virsh;
mod vms;
mod wait;
mod wanted;

pub use agent::{AgentError, run};
pub use identity::IdentityError;
pub use kernel::{Kernel, KernelError, MemoryKernel, ReceiveReport, at_key};
pub use options::{
    BPFFS, COMPARE_EVERY, Hook, KernelPart, Libvirt, NoLibvirt, Options, QMP_DIR, monitor_path,
};
pub use taps::{Made, TapWish};
pub use tenet_datapath::{Feature, Receive, Teardown, check};

/// Makes what an agent needs that runs as a service with mounts of its own.
///
/// # Errors
/// If that is impossible; large frames are then cut up on their way into taps.
pub fn prepare(bpffs: &std::path::Path) -> Result<(), tenet_datapath::Error> {
    tenet_datapath::prepare_hub(bpffs)
}

/// Takes Tenet off this host: programs, pinned maps and links, taps, and what the agent whose state directory this is
/// had changed of the uplinks. Ports are without network from then on.
///
/// # Errors
/// If an agent is at work on these pins; all else is in [`Teardown::errors`].
pub fn detach(
    bpffs: &std::path::Path,
    state_dir: &std::path::Path,
) -> Result<Teardown, tenet_datapath::Error> {
    let options = tenet_datapath::Options { bpffs: bpffs.to_owned(), ..tenet_datapath::Options::default() };
    let mut done = tenet_datapath::detach_all(&options)?;
    match tenet_hostnet::Links::here().and_then(|links| taps::remove_all(&links)) {
        Ok((taps, open)) => (done.taps, done.open_taps) = (taps, open),
        Err(e) => done.errors.push(e.into()),
    }
    match tenet_hostnet::Links::here() {
        Ok(links) => {
            let (offloads, errors) = offloads::restore(&links, state_dir);
            done.offloads = offloads;
            done.errors.extend(errors.into_iter().map(Into::into));
            let (multicast, errors) = multicast::restore(&links, state_dir);
            done.multicast = multicast;
            done.errors.extend(errors.into_iter().map(Into::into));
        }
        Err(e) => done.errors.push(e.into()),
    }
    for removed in [remove_tap(), tenet_hostnet::Links::here().and_then(|l| l.keep_udp_gro(&[]))] {
        done.errors.extend(removed.err().map(Into::into));
    }
    Ok(done)
}

/// Removes the tap of the agent's probes.
fn remove_tap() -> Result<(), tenet_hostnet::Error> {
    let links = tenet_hostnet::Links::here()?;
    match links.find(tenet_host::probe::TAP)? {
        Some(link) if link.kind == tenet_hostnet::Kind::Tap => links.delete_link(&link.name),
        _ => Ok(()),
    }
}
