//! Network namespaces, as `ip netns` knows them: a bind mount of the namespace in `/run/netns`.

use crate::{Error, Result};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const DIRECTORY: &str = "/run/netns";
/// `_IO(0xb7, 3)` (linux/nsfs.h).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A handle to a network namespace. Cheap to clone; keeps the namespace alive while it exists.
#[derive(Debug, Clone)]
pub struct Netns {
    name: Option<String>,
    label: String,
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Creates a namespace that `ip netns` lists; it lives until [`Netns::delete`].
    pub fn create(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        prepare_directory().map_err(Error::system(format!("prepare {DIRECTORY}")))?;
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => drop(file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NetnsExists { name: name.to_owned() });
            }
            Err(source) => {
                return Err(Error::System { action: format!("create {}", path.display()), source });
            }
        }
        let made = in_thread(|| {
            unshare_net()?;
            mount(Some(Path::new(CURRENT)), &path, libc::MS_BIND)?;
            open(Path::new(CURRENT))
        });
        match made {
            Ok(fd) => Ok(Self::named(name, fd)),
            Err(source) => {
                // Nothing was mounted, so that the empty file is ours alone.
                drop(fs::remove_file(&path));
                Err(Error::System { action: format!("create network namespace {name:?}"), source })
            }
        }
    }

    fn named(name: &str, fd: OwnedFd) -> Self {
        Self { name: Some(name.to_owned()), label: format!("namespace {name:?}"), fd: Arc::new(fd) }
    }

    /// Creates a namespace without a name; it vanishes with its last handle, socket and process.
    pub fn anonymous() -> Result<Self> {
        let fd = in_thread(|| {
            unshare_net()?;
            open(Path::new(CURRENT))
        })
        .map_err(Error::system("create a network namespace"))?;
        Ok(Self { name: None, label: "an unnamed namespace".to_owned(), fd: Arc::new(fd) })
    }

    /// Opens a namespace by its `ip netns` name.
    pub fn open(name: &str) -> Result<Self> {
        match open(&path_of(name)?) {
            Ok(fd) => Ok(Self::named(name, fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoSuchNetns { name: name.to_owned() })
            }
            Err(source) => Err(Error::System { action: format!("open network namespace {name:?}"), source }),
        }
    }

    /// Opens a namespace by a path, as `/proc/1/ns/net` or where a container's runtime keeps it.
    pub fn at(path: &Path) -> Result<Self> {
        let action = || format!("open network namespace {}", path.display());
        let fd = open(path).map_err(Error::system(action()))?;
        // SAFETY: asks what kind of namespace the live descriptor is, without memory of ours.
        let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no network namespace");
            return Err(Error::System { action: action(), source });
        }
        Ok(Self { name: None, label: format!("namespace {}", path.display()), fd: Arc::new(fd) })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self> {
        let fd = open(Path::new(CURRENT)).map_err(Error::system("open the current network namespace"))?;
        Ok(Self { name: None, label: "the current namespace".to_owned(), fd: Arc::new(fd) })
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let fd = open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
            .map_err(Error::system(format!("open the network namespace of process {pid}")))?;
        Ok(Self { name: None, label: format!("the namespace of process {pid}"), fd: Arc::new(fd) })
    }

    /// Names of all named namespaces, sorted.
    pub fn list() -> Result<Vec<String>> {
        let entries = match fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::System { action: format!("list {DIRECTORY}"), source }),
        };
        let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a namespace's name; the namespace itself goes with its last process and handle.
    pub fn delete(name: &str) -> Result<()> {
        let path = path_of(name)?;
        let c = c_path(&path);
        // SAFETY: `c` is a live NUL-terminated string.
        if unsafe { libc::umount2(c.as_ptr(), libc::MNT_DETACH) } != 0 {
            let source = io::Error::last_os_error();
            // EINVAL: the file is there without a mount, left by somebody who was killed half-way.
            if source.raw_os_error() != Some(libc::EINVAL) && source.kind() != io::ErrorKind::NotFound {
                return Err(Error::System { action: format!("unmount network namespace {name:?}"), source });
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoSuchNetns { name: name.to_owned() })
            }
            Err(source) => Err(Error::System { action: format!("remove {}", path.display()), source }),
        }
    }

    /// Name, if it was created or opened by name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Text for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Runs a closure in the namespace, on a thread of its own, and hands its result back.
    ///
    /// Only the network namespace differs: mounts stay as they are, so that `/sys/fs/bpf` and files
    /// are those of the caller. Beware that `/sys/class/net` therefore shows the caller's devices;
    /// `/proc/sys/net` shows the namespace's.
    ///
    /// # Panics
    /// Passes a panic of the closure on.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            set_netns(self.fd.as_fd())?;
            Ok(f())
        })
        .map_err(Error::system(format!("enter {}", self.label())))
    }

    /// Moves the calling thread into the namespace for good; for threads that were started for it.
    pub fn enter(&self) -> Result<()> {
        set_netns(self.fd.as_fd()).map_err(Error::system(format!("enter {}", self.label())))
    }

    /// A command that will run in the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.run_command_inside(&mut command);
        command
    }

    /// Makes an already built command run in the namespace.
    pub fn run_command_inside(&self, command: &mut Command) {
        let fd = Arc::clone(&self.fd);
        // SAFETY: between fork and exec the closure makes one async-signal-safe system call and allocates nothing.
        unsafe { command.pre_exec(move || set_netns(fd.as_fd())) };
    }

    /// Processes in the namespace, by what `/proc` shows now.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let about = || format!("find the processes of {}", self.label());
        let file = File::from(self.fd.try_clone().map_err(Error::system(about()))?);
        let own = file.metadata().map_err(Error::system(about()))?;
        let entries = fs::read_dir("/proc").map_err(Error::system(about()))?;
        let inside = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|m| m.ino() == own.ino() && m.dev() == own.dev())
        };
        Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter(inside).collect())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn path_of(name: &str) -> Result<PathBuf> {
    let bad = |rule| Err(Error::BadName { what: "network namespace", name: name.to_owned(), rule });
    if name.is_empty() || name == "." || name == ".." || name.len() > 255 {
        return bad("it must have 1 to 255 characters and not be a dot or two");
    }
    if name.contains(['/', '\0']) {
        return bad("it must have no slash and no NUL");
    }
    Ok(Path::new(DIRECTORY).join(name))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    File::open(path).map(OwnedFd::from)
}

/// Makes the directory a shared mount, as `ip netns` does, so that namespaces show up in mount
/// namespaces that were made before; under the same lock as `ip netns`.
fn prepare_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    let lock = File::open(directory)?;
    lock.lock()?;
    match mount(None, directory, libc::MS_SHARED | libc::MS_REC) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            mount(Some(directory), directory, libc::MS_BIND | libc::MS_REC)?;
            mount(None, directory, libc::MS_SHARED | libc::MS_REC)
        }
        other => other,
    }
}

/// Runs a closure on a thread of its own, so that the namespace it enters ends with it.
fn in_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn set_netns(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; the call changes only the calling thread.
    match unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unshare_net() -> io::Result<()> {
    // SAFETY: no pointers; the call changes only the calling thread.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount(source: Option<&Path>, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let source = c_path(source.unwrap_or(Path::new("none")));
    let target = c_path(target);
    // SAFETY: both strings are NUL-terminated and live; type and data may be null for these flags.
    match unsafe { libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) }
    {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn c_path(path: &Path) -> CString {
    // `path_of` lets no NUL through and the other paths are constants; an empty path makes the call fail.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
