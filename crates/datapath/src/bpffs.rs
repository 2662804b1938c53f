//! The directory of the pins: mounted, made, locked.

use crate::{Error, Result, Role};
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/bpf";
const LOCKS: &str = "/run/tenet";
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// Where the pins are.
#[derive(Debug, Clone)]
pub struct Pins {
    pub root: PathBuf,
}

impl Pins {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn link(&self, role: Role, ifindex: u32) -> PathBuf {
        self.links().join(format!("{role}-{ifindex}"))
    }

    /// Mounts the bpffs if need be and makes the directories, for root only.
    pub fn prepare(&self) -> Result<()> {
        if self.root.starts_with(ROOT) && !is_bpffs(Path::new(ROOT)) {
            mount().map_err(Error::system(format!("mount a BPF file system on {ROOT}")))?;
        }
        for directory in [self.maps(), self.links()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(Error::system(format!("create {}", directory.display())))?;
            if !is_bpffs(&directory) {
                return Err(Error::NotBpffs { path: self.root.clone() });
            }
        }
        Ok(())
    }

    /// The links that are pinned, whatever has become of them.
    pub fn list_links(&self) -> Result<Vec<(Role, u32)>> {
        let names = list(&self.links())?;
        let parse = |name: String| {
            let (role, ifindex) = name.split_once('-')?;
            Some((Role::from_name(role)?, ifindex.parse().ok()?))
        };
        Ok(names.into_iter().filter_map(parse).collect())
    }
}

/// Names in a directory; none if it is not there.
pub fn list(directory: &Path) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::System { action: format!("list {}", directory.display()), source }),
    }
}

/// Removes a pin; that it is gone already is no error.
pub fn unpin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::System { action: format!("remove {}", path.display()), source: e })
        }
        _ => Ok(()),
    }
}

/// Takes the lock that says who works on these pins. A bpffs holds no plain files, so it lies elsewhere.
///
/// The lock goes with the process; the file stays, since removing it would let two in.
pub fn lock(bpffs: &Path, path: Option<&Path>) -> Result<File> {
    let path = path.map_or_else(|| default_lock(bpffs), Path::to_owned);
    let opened = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| File::options().create(true).truncate(false).write(true).open(&path));
    let file = opened.map_err(Error::system(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { bpffs: bpffs.to_owned(), lock: path }),
        Err(TryLockError::Error(source)) => {
            Err(Error::System { action: format!("lock {}", path.display()), source })
        }
    }
}

fn default_lock(bpffs: &Path) -> PathBuf {
    let name = bpffs.to_string_lossy().trim_matches('/').replace('/', "-");
    Path::new(LOCKS).join(format!("{name}.lock"))
}

/// Whether a path is on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `statfs` is plain numbers, for which zero is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is live and NUL-terminated, the buffer live and of the right type.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut found) };
    // The field's width differs between architectures; the magic number has 32 bits on all.
    result == 0 && found.f_type as u32 == BPF_FS_MAGIC
}

fn mount() -> io::Result<()> {
    let (source, target) = (c"bpf", c"/sys/fs/bpf");
    // SAFETY: all strings are static and NUL-terminated.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), source.as_ptr(), 0, c"mode=0700".as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
