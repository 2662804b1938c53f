//! Taking everything off the host: also when no object can be loaded or the maps are of another version.

use crate::attach::{remove_filter, remove_link};
use crate::bpffs::{self, Pins, unpin};
use crate::{Datapath, Error, Options, Result, Role, hub, slow};
use std::fs;
use std::io;
use std::path::Path;

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub struct Teardown {
    /// TCX links.
    pub links: usize,
    /// cls_bpf filters.
    pub filters: usize,
    /// clsact qdiscs that had become empty.
    pub qdiscs: usize,
    /// Pinned maps.
    pub maps: usize,
    /// Taps that the agent had made for ports.
    pub taps: usize,
    /// Ports whose taps VMs had open: those VMs are without network until they are started again.
    pub open_taps: Vec<String>,
    /// Offloads that the agent had turned off and that are on again, as `DEVICE FEATURE`.
    pub offloads: Vec<String>,
    /// Uplinks that the agent had told to take all multicast, and that no longer do.
    pub multicast: Vec<String>,
    /// What went wrong; the rest was removed nevertheless.
    pub errors: Vec<Error>,
}

/// Removes all that [`Datapath::attach`] and [`Datapath::open`] left in the kernel: programs off the devices of
/// the calling thread's namespace, pins, directories. What others put on the devices stays.
///
/// # Errors
/// Only if an agent is at work on these pins; all else is in [`Teardown::errors`].
pub fn detach_all(options: &Options) -> Result<Teardown> {
    let _lock = bpffs::lock(&options.bpffs, options.lock.as_deref())?;
    let pins = Pins::new(&options.bpffs);
    let mut done = Teardown::default();
    if let Err(e) = hub::remove(&pins.root) {
        done.errors.push(e);
    }
    // Not ours without our program at its end.
    if pins.links().join(slow::LINK).exists()
        && let Err(e) = Datapath::links().and_then(|links| slow::remove(&links))
    {
        done.errors.push(e);
    }
    remove_links(&pins, &mut done);
    remove_filters(&pins, &mut done);
    remove_maps(&pins, &mut done);
    for directory in [pins.links(), pins.maps(), pins.root.clone()] {
        match fs::remove_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                done.errors
                    .push(Error::System { action: format!("remove {}", directory.display()), source: e });
            }
            _ => {}
        }
    }
    Ok(done)
}

/// Removes whatever is pinned, also what an interrupted start or another version left there.
fn remove_links(pins: &Pins, done: &mut Teardown) {
    each_in(&pins.links(), done, |done, path| {
        remove_link(path)?;
        done.links += 1;
        Ok(())
    });
}

fn remove_maps(pins: &Pins, done: &mut Teardown) {
    each_in(&pins.maps(), done, |done, path| {
        unpin(path)?;
        done.maps += 1;
        Ok(())
    });
}

fn each_in(directory: &Path, done: &mut Teardown, remove: impl Fn(&mut Teardown, &Path) -> Result<()>) {
    match bpffs::list(directory) {
        Err(e) => done.errors.push(e),
        Ok(names) => {
            for name in names {
                if let Err(e) = remove(done, &directory.join(name)) {
                    done.errors.push(e);
                }
            }
        }
    }
}

fn remove_filters(pins: &Pins, done: &mut Teardown) {
    let found = Datapath::links().and_then(|links| Ok((links.list()?, links)));
    let (list, links) = match found {
        Ok(found) => found,
        Err(e) => return done.errors.push(e),
    };
    for link in list {
        for role in Role::ALL {
            match remove_filter(&links, &pins.root, link.index, role) {
                Ok((filter, qdisc)) => {
                    done.filters += usize::from(filter);
                    done.qdiscs += usize::from(qdisc);
                }
                Err(e) => done.errors.push(e),
            }
        }
    }
}
