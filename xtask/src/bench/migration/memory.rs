//! A guest's memory that the QEMUs of both hosts map, so that none of it is copied when the guest moves.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

/// The migration capability by which QEMU leaves out what both sides map (QEMU 4.0).
pub const CAPABILITY: &str = "x-ignore-shared";
/// Most bytes that QEMU still has to send then: ROMs and tables, which it keeps by itself.
const REST: u64 = 4 << 20;
/// Its name in QEMU, the same on both sides.
const ID: &str = "ram";

/// Memory of a guest. It has no name in any file system, so that it goes with its last user, whatever happens before.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    megabytes: u32,
}

impl SharedMemory {
    /// Makes it, filled with zeros.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(megabytes: u32) -> Result<Self> {
        // SAFETY: the name ends with a NUL and is only read.
        let fd = unsafe { libc::memfd_create(c"tenet-bench-guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("make memory for a guest");
        }
        // SAFETY: the kernel has just made this descriptor, and nothing else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(u64::from(megabytes) << 20).context("size a guest's memory")?;
        Ok(Self { file, megabytes })
    }

    /// QEMU's arguments by which a guest of that size has this memory. They hold as long as this process has it.
    #[must_use]
    pub fn arguments(&self) -> [String; 4] {
        let (size, path) = (self.megabytes, self.path());
        let object = format!("memory-backend-file,id={ID},size={size}M,mem-path={path},share=on");
        ["-object".to_owned(), object, "-machine".to_owned(), format!("memory-backend={ID}")]
    }

    /// Where another process finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// Fails if memory was copied that both sides map; `transferred` is what QEMU says of the migration.
///
/// # Errors
/// As said.
pub fn ensure_not_copied(transferred: u64) -> Result<()> {
    anyhow::ensure!(
        transferred <= REST,
        "QEMU copied the memory although both sides share it: {transferred} bytes of it crossed"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let memory = SharedMemory::new(96).unwrap();
        let of = |side: &SharedMemory| File::options().read(true).write(true).open(side.path());
        let (source, target) = (of(&memory).unwrap(), of(&memory).unwrap());
        let last = (96 << 20) - 5;
        source.write_all_at(b"stack", last).unwrap();
        let mut seen = [0; 5];
        target.read_exact_at(&mut seen, last).unwrap();
        assert_eq!((&seen, target.metadata().unwrap().len()), (b"stack", 96 << 20));
        assert!(memory.arguments()[1].contains(&format!("size=96M,mem-path={}", memory.path())));
    }

    #[test]
    fn copied_memory_is_told() {
        ensure_not_copied(700_000).unwrap();
        let error = ensure_not_copied(37 << 20).unwrap_err().to_string();
        assert!(error.contains("38797312 bytes"), "{error}");
    }
}
