//! Debian's cloud kernel: fetched as a package, unpacked without being installed, its ELF image and a few modules kept.

use crate::{Error, Result};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The package that depends on the current kernel's.
const META: &str = "linux-image-cloud-amd64";
/// In the order in which they load; a kernel that has one built in has no file for it.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "lib/dim/dimlib",
    "lib/math/dimlib",
    "drivers/net/virtio_net",
    "drivers/char/virtio_console",
];
const ORDER: &str = "order";
const IMAGE: &str = "vmlinux";

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// The newest in the cache, else the distribution's current one.
    pub fn get(cache: &Path) -> Result<Self> {
        if let Some(kernel) = Self::cached(cache)? {
            return Ok(kernel);
        }
        Self::fetch(cache)
    }

    fn cached(cache: &Path) -> Result<Option<Self>> {
        let entries = fs::read_dir(cache).map_err(Error::io(format!("read {}", cache.display())))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kernel-")))
            .collect();
        found.sort();
        Ok(found.pop().map(|dir| Self { dir }))
    }

    fn fetch(cache: &Path) -> Result<Self> {
        let work = cache.join("work");
        _ = fs::remove_dir_all(&work);
        let root = work.join("root");
        make(&root)?;
        let package = package().or_else(|_| {
            // A fresh machine has no lists of packages yet.
            run(Command::new("apt-get").args(["update", "-qq"]), "bring apt's lists up to date")?;
            package()
        })?;
        let fetch = format!("fetch the package {package}, the guests' kernel");
        run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(&work), &fetch)?;
        let deb = only(&work, |name| name.ends_with(".deb"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root), "unpack the guests' kernel")?;
        let vmlinuz = only(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        // On systems with a merged /usr, packages may carry their modules there.
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
        let modules = modules.iter().find(|m| m.exists()).unwrap_or(&modules[0]);
        let modules = only(modules, |_| true)?;

        let ready = work.join("ready");
        make(&ready)?;
        write(&ready.join(IMAGE), &unpack(&vmlinuz)?)?;
        let mut order = Vec::new();
        for module in MODULES {
            let name = module.rsplit('/').next().unwrap_or(module);
            let path = modules.join("kernel").join(format!("{module}.ko"));
            let content = if path.exists() {
                read(&path)?
            } else if path.with_extension("ko.xz").exists() {
                xz(&read(&path.with_extension("ko.xz"))?, "unpack a module")?
            } else {
                continue;
            };
            write(&ready.join(format!("{name}.ko")), &content)?;
            order.push(name);
        }
        write(&ready.join(ORDER), order.join("\n").as_bytes())?;
        let version = package.trim_start_matches("linux-image-");
        let dir = cache.join(format!("kernel-{version}"));
        fs::rename(&ready, &dir).map_err(Error::io(format!("keep {}", dir.display())))?;
        _ = fs::remove_dir_all(&work);
        Ok(Self { dir })
    }

    /// The ELF image, which QEMU starts directly: without unpacking under emulation it is up a second earlier.
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// Name and content of its modules, in the order in which they load.
    pub fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let order = read(&self.dir.join(ORDER))?;
        let order = String::from_utf8_lossy(&order).into_owned();
        order.lines().map(|m| Ok((m.to_owned(), read(&self.dir.join(format!("{m}.ko")))?))).collect()
    }
}

/// The name of the current kernel's package.
fn package() -> Result<String> {
    let action = format!("ask apt for the package {META} (guests need Debian's)");
    let output = run(Command::new("apt-cache").args(["depends", META]), &action)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().find_map(|l| l.trim().strip_prefix("Depends: ")).map(str::to_owned);
    found.ok_or_else(|| Error::io(action)(io::Error::other("it depends on nothing")))
}

/// The kernel's ELF image out of its compressed one: where it is stands in the header (x86/boot.rst of the kernel).
fn unpack(vmlinuz: &Path) -> Result<Vec<u8>> {
    let bytes = read(vmlinuz)?;
    let action = format!("unpack {}", vmlinuz.display());
    let failed = |why: &str| Error::io(action.clone())(io::Error::other(why.to_owned()));
    let word = |at: usize| -> Option<usize> {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(four) as usize)
    };
    let payload = || {
        let setup = usize::from(*bytes.get(0x1f1)?);
        let start = (setup.max(4) + 1) * 512 + word(0x248)?;
        bytes.get(start..start + word(0x24c)?)
    };
    let payload = payload().ok_or_else(|| failed("it is too short for a kernel"))?;
    // The last four bytes are the unpacked size, which each tool takes for what follows the stream.
    let stream = payload.get(..payload.len().saturating_sub(4)).unwrap_or_default();
    let image = match payload {
        [0xfd, b'7', b'z', ..] => xz(stream, &action)?,
        [0x1f, 0x8b, ..] => filter(Command::new("gzip").arg("-dc"), stream, &action)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => filter(Command::new("zstd").arg("-dc"), stream, &action)?,
        [0x02, 0x21, 0x4c, 0x18, ..] => filter(Command::new("lz4").arg("-dc"), stream, &action)?,
        _ => return Err(failed("it is compressed in a way that we do not know")),
    };
    if image.starts_with(b"\x7fELF") { Ok(image) } else { Err(failed("what it holds is no ELF image")) }
}

fn xz(stream: &[u8], action: &str) -> Result<Vec<u8>> {
    filter(Command::new("xz").args(["-dc", "--single-stream"]), stream, action)
}

fn filter(command: &mut Command, input: &[u8], action: &str) -> Result<Vec<u8>> {
    let about = format!("{action} by {}", command.get_program().to_string_lossy());
    let mut work = || {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let mut out = Vec::new();
        std::thread::scope(|scope| {
            // A tool that has enough closes its end; whether it was enough shows below.
            scope.spawn(move || to.map(|mut to| to.write_all(input)));
            from.map_or(Ok(0), |mut from| from.read_to_end(&mut out))
        })?;
        let output = child.wait_with_output()?;
        if output.status.success() { Ok(out) } else { Err(said(&output)) }
    };
    work().map_err(Error::io(about))
}

pub(super) fn run(command: &mut Command, action: &str) -> Result<Output> {
    let mut work = || {
        let output = command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output()?;
        if output.status.success() { Ok(output) } else { Err(said(&output)) }
    };
    work().map_err(Error::io(action))
}

fn said(output: &Output) -> io::Error {
    let text = String::from_utf8_lossy(&output.stderr);
    io::Error::other(format!("{}: {}", output.status, text.trim()))
}

fn only(dir: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let action = || format!("find the kernel in {}", dir.display());
    let entries = fs::read_dir(dir).map_err(Error::io(action()))?;
    let mut entries = entries.filter_map(|e| Some(e.ok()?.path()));
    let found = entries.find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(&fits));
    found.ok_or_else(|| Error::io(action())(io::ErrorKind::NotFound.into()))
}

pub(super) fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(format!("make {}", dir.display())))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(format!("read {}", path.display())))
}

pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(Error::io(format!("write {}", path.display())))
}
