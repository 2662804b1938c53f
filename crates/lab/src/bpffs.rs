//! The BPF file system that all hosts of a lab share, each with a folder of its own.

use crate::{Error, Result};
use std::{ffi::CStr, fs, io, path::Path};

/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_C: &CStr = c"/sys/fs/bpf";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Mounts the BPF file system if nobody has.
pub fn mount() -> Result<()> {
    let mount = || if is_bpffs()? { Ok(()) } else { mount_bpffs() };
    mount().map_err(Error::io(format!("mount the BPF file system on {BPFFS}")))
}

/// Removes a folder with all that is pinned in it; a missing one is no error.
pub fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", dir.display()))(e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_bpffs() -> io::Result<bool> {
    // SAFETY: zero is a valid `statfs`; the path is NUL-terminated and the result buffer is live.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        match libc::statfs(BPFFS_C.as_ptr(), &raw mut stat) {
            0 => Ok(stat.f_type == BPF_FS_MAGIC),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn mount_bpffs() -> io::Result<()> {
    let kind = c"bpf".as_ptr();
    // SAFETY: all strings are NUL-terminated constants; the BPF file system needs no data.
    match unsafe { libc::mount(kind, BPFFS_C.as_ptr(), kind, 0, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
