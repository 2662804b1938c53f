//! The guests' image: a kernel and an initial file system, built once, kept in a cache.

use crate::guest::cpio::Archive;
use crate::guest::kernel::{self, Kernel};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where images are kept.
pub const CACHE: &str = "/var/cache/tenet-lab";
/// What runs inside of guests, beside busybox; empty if it could not be built.
pub(super) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tenet-guest"));
const START: &str = include_str!("init.sh");
/// For busybox's init, which runs as process 1 and takes ended processes off the table.
const INITTAB: &str = "\
::sysinit:/etc/start
::respawn:/bin/tenet-guest-service
ttyS0::respawn:-/bin/sh
::ctrlaltdel:/bin/poweroff -f
";
const SERVICE: &str = "#!/bin/sh\nexec /bin/tenet-guest serve \"$(cat /etc/name)\"\n";
const PROFILE: &str =
    "export PATH=/bin PS1=\"$(cat /etc/name) # \" HOME=/\necho \"The console of guest $(cat /etc/name).\"\n";
/// Initial file systems that nobody used for so long are removed.
const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// A kernel and an initial file system for guests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Image {
    /// The image of the cache [`CACHE`]; built, if it is not there: the first one fetches Debian's kernel.
    ///
    /// # Errors
    /// [`Error::Io`] with what could not be done: fetch the kernel's package, unpack it, or write to the cache.
    pub fn build() -> Result<Self> {
        Self::build_in(Path::new(CACHE))
    }

    /// The same with a cache elsewhere. Several processes may build at once: one works and the others wait for it.
    pub fn build_in(cache: &Path) -> Result<Self> {
        if PROGRAM.is_empty() {
            let why = super::missing().unwrap_or_default();
            return Err(Error::io("build an image for guests")(std::io::Error::other(why)));
        }
        kernel::make(cache)?;
        let _lock = lock(cache)?;
        let kernel = Kernel::get(cache)?;
        let archive = archive(&kernel)?;
        let mut hasher = DefaultHasher::new();
        archive.hash(&mut hasher);
        let initrd = cache.join(format!("initrd-{:016x}.cpio", hasher.finish()));
        if initrd.exists() {
            // Says that it is in use still.
            if let Ok(file) = File::open(&initrd) {
                _ = file.set_modified(SystemTime::now());
            }
        } else {
            let new = cache.join("initrd.new");
            kernel::write(&new, &archive)?;
            fs::rename(&new, &initrd).map_err(Error::io(format!("keep {}", initrd.display())))?;
        }
        sweep(cache);
        Ok(Self { kernel: kernel.image(), initrd })
    }

    /// The kernel, an ELF image.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The initial file system.
    #[must_use]
    pub fn initrd(&self) -> &Path {
        &self.initrd
    }
}

fn lock(cache: &Path) -> Result<File> {
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(cache.join("lock"))?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(Error::io(format!("lock {}", cache.display())))
}

fn archive(kernel: &Kernel) -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let applets =
        kernel::run(std::process::Command::new("busybox").arg("--list"), "list busybox's commands")?;
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "lib", "proc", "root", "sbin", "sys", "tmp"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
    for applet in applets.lines().filter(|a| !a.is_empty() && *a != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.link("init", "bin/busybox");
    archive.file("bin/tenet-guest", 0o755, PROGRAM);
    archive.file("bin/tenet-guest-service", 0o755, SERVICE.as_bytes());
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes());
    archive.file("etc/start", 0o755, START.as_bytes());
    archive.file("etc/profile", 0o644, PROFILE.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/:/bin/sh\n");
    let mut order = String::new();
    for (module, content) in kernel.modules()? {
        archive.file(&format!("lib/{module}.ko"), 0o644, &content);
        order.push_str(&module);
        order.push('\n');
    }
    archive.file("lib/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// The busybox of this machine, if it can run without libraries.
fn busybox() -> Result<Vec<u8>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|d| d.join("busybox")).find(|p| p.is_file());
    let install = "install busybox-static: apt-get install busybox-static";
    let missing = |why: &str| {
        Error::io("put busybox into the guests' image")(std::io::Error::other(format!("{why}; {install}")))
    };
    let bytes = kernel::read(&found.ok_or_else(|| missing("there is none"))?)?;
    if is_static(&bytes) {
        Ok(bytes)
    } else {
        Err(missing("the one here needs libraries, which guests have not"))
    }
}

/// Whether a 64-bit ELF program names no interpreter (elf(5): program headers, PT_INTERP).
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let check = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|at| number(start.checked_add(at * size)?, 4)).collect::<Option<Vec<_>>>()
    };
    elf.starts_with(b"\x7fELF") && check().is_some_and(|kinds| !kinds.contains(&3))
}

fn sweep(cache: &Path) {
    let old = |p: &PathBuf| {
        let age = fs::metadata(p).and_then(|m| m.modified()).map(|m| m.elapsed().unwrap_or_default());
        p.extension().is_some_and(|e| e == "cpio") && age.is_ok_and(|a| a > KEPT)
    };
    let entries = fs::read_dir(cache).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    for path in entries.filter(old) {
        // What cannot be removed only takes room.
        _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_program_is_there_and_needs_no_library_and_the_test_itself_does() {
        assert!(is_static(PROGRAM), "{} bytes", PROGRAM.len());
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own) && !is_static(b"") && !is_static(b"\x7fELF"));
    }
}
