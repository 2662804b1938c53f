//! What can go wrong, and what to do about it.

use crate::Role;
use std::io;
use std::path::PathBuf;

/// Why the data plane could not be opened, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent works on the same pins.
    #[error("another agent works on {} (it holds {}); stop it, or give this one a bpffs directory of its own", bpffs.display(), lock.display())]
    Busy {
        /// Directory of the pins.
        bpffs: PathBuf,
        /// The lock.
        lock: PathBuf,
    },
    /// The pinned maps were written by a version of Tenet with other layouts.
    #[error("the maps in {} have layout {found}, this version needs {ours}; run `tenet agent --detach` and start again (its ports are without network until then)", bpffs.display())]
    ForeignLayout {
        /// Layout of the pinned maps.
        found: u32,
        /// Layout of this version.
        ours: u32,
        /// Directory of the pins.
        bpffs: PathBuf,
    },
    /// A pinned map is not of the shape that this version uses under the same name.
    #[error("pinned map {map} in {} is {found}, this version needs {ours}; run `tenet agent --detach` and start again", bpffs.display())]
    ForeignMap {
        /// Name of the map.
        map: &'static str,
        /// Its type and sizes.
        found: String,
        /// What they should be.
        ours: String,
        /// Directory of the pins.
        bpffs: PathBuf,
    },
    /// The directory for the pins is not on a bpffs.
    #[error("{} is not on a BPF file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or choose a directory below /sys/fs/bpf", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// The object file does not have what we need.
    #[error("the BPF object has no {what}")]
    Incomplete {
        /// Map or program.
        what: String,
    },
    /// The object cannot be loaded.
    #[error("cannot load the BPF object {from}; `tenet agent --check` says what this kernel lacks")]
    Object {
        /// Built in, or the path.
        from: String,
        /// Why.
        source: Box<aya::EbpfError>,
    },
    /// The verifier or the kernel refuses a program.
    #[error(
        "the kernel refuses program {name}; `tenet agent --check` says what this kernel lacks{}",
        last_words(log)
    )]
    Program {
        /// Its name.
        name: &'static str,
        /// What the verifier said, in full; may be megabytes.
        log: String,
        /// Why.
        source: io::Error,
    },
    /// A map has no room.
    #[error("map {map} is full ({capacity} entries): cannot add {key}")]
    MapFull {
        /// Its name.
        map: &'static str,
        /// The key in full.
        key: String,
        /// How many entries it can hold.
        capacity: u32,
    },
    /// A map cannot be read or written.
    #[error("cannot {action} map {map}, key {key}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Its name.
        map: &'static str,
        /// The key in full, or empty for the whole map.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// A program cannot be put on a device.
    #[error("cannot attach the {role} program to device #{ifindex}")]
    Attach {
        /// The device.
        ifindex: u32,
        /// Which program.
        role: Role,
        /// Why.
        source: io::Error,
    },
    /// TCX was asked for by name, and this kernel does not have it.
    #[error("this kernel has no TCX (it came with 6.6); use clsact or let the agent choose")]
    NoTcx,
    /// There is no way to keep large frames for taps whole.
    #[error(
        "{why}; frames for taps are cut into segments, which costs two thirds of a VM's receive throughput"
    )]
    NoHub {
        /// What is missing.
        why: &'static str,
    },
    /// A way into taps was asked for that does not work here.
    #[error("frames cannot reach taps by the way {way:?}: {why}; let the agent choose with --receive auto")]
    Receive {
        /// The way.
        way: &'static str,
        /// Why not.
        why: String,
    },
    /// Links, qdiscs or filters.
    #[error(transparent)]
    Net(#[from] tenet_hostnet::Error),
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }
}

/// The end of the verifier's log, where it says what it does not like.
fn last_words(log: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = &lines[lines.len().saturating_sub(LINES)..];
    if end.is_empty() {
        String::new()
    } else {
        format!("\nthe verifier's last words:\n  {}", end.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_end_of_the_log_alone() {
        let log: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let error =
            Error::Program { name: "port_in", log, source: io::Error::from_raw_os_error(libc::EINVAL) };
        let text = error.to_string();
        assert!(text.contains("line 999") && !text.contains("line 991\n"), "{text}");
    }
}
