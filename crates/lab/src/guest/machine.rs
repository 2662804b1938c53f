//! One running guest.

use crate::error::Tail;
use crate::guest::arguments::{self, GuestOptions};
use crate::guest::exec::{Channel, Output, Said};
use crate::guest::image::Image;
use crate::guest::qmp::Qmp;
use crate::guest::{QEMU, kernel};
use crate::process::Process;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

/// How long QEMU itself may take to start; the machine is slow when many start.
const START: Duration = Duration::from_secs(20);
/// How long a command may take that is not given a time.
const COMMAND: Duration = Duration::from_secs(60);
/// How long an emulator may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lines of the console in an error.
const LINES: usize = 25;

/// What another process needs to use a guest that runs already.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestRecord {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Its emulator.
    pub process: Process,
}

/// A running guest. One that was booted by this handle ends with it, unless [`Guest::keep`] was called.
#[derive(Debug)]
pub struct Guest {
    record: GuestRecord,
    owned: bool,
}

impl Guest {
    /// Starts a guest in a namespace, where its taps must be. Returns when QEMU runs; see [`Guest::wait_up`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no QEMU; [`Error::Guest`] with QEMU's own words if it does not start.
    pub fn boot(image: &Image, netns: &Netns, options: GuestOptions) -> Result<Self> {
        Self::start(image, netns, options, None)
    }

    /// Takes in a guest that comes from elsewhere, by a connection that its QEMU has made there already. Name, memory
    /// and cards must be the same there and here.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn receive(
        image: &Image,
        netns: &Netns,
        mut options: GuestOptions,
        from: impl Into<OwnedFd>,
    ) -> Result<Self> {
        let from = from.into();
        options.incoming = Some(format!("fd:{}", from.as_raw_fd()));
        Self::start(image, netns, options, Some(from))
    }

    fn start(image: &Image, netns: &Netns, options: GuestOptions, inherits: Option<OwnedFd>) -> Result<Self> {
        let arguments = options.arguments(image)?;
        kernel::make(&options.dir)?;
        let log = arguments::log(&options.dir);
        let out = File::create(&log).map_err(Error::io(format!("write {}", log.display())))?;
        let err = out.try_clone().map_err(Error::io(format!("write {}", log.display())))?;
        let mut command = netns.command(QEMU);
        // A group of its own: Ctrl-C is for us, and we end our guests ourselves.
        command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        if let Some(fd) = inherits {
            // SAFETY: between fork and exec the closure makes one async-signal-safe system call on a descriptor that
            // it owns, and allocates nothing.
            unsafe { command.pre_exec(move || inherit(&fd)) };
        }
        let child = command.spawn().map_err(|e| {
            let hint = super::missing().unwrap_or_else(|| "is it installed?".to_owned());
            Error::io(format!("start {QEMU} ({hint})"))(e)
        })?;
        let process = Process::of(child.id())?;
        let guest =
            Self { record: GuestRecord { name: options.name, dir: options.dir, process }, owned: true };
        guest.started()?;
        Ok(guest)
    }

    /// A guest that somebody else booted; it stays when the handle goes.
    #[must_use]
    pub fn open(record: GuestRecord) -> Self {
        Self { record, owned: false }
    }

    fn started(&self) -> Result<()> {
        let begin = Instant::now();
        while UnixStream::connect(arguments::qmp(&self.record.dir)).is_err() {
            if !self.runs() {
                return Err(self.record.fault("did not start".to_owned()));
            }
            if begin.elapsed() > START {
                return Err(self.record.fault(format!("did not start within {} s", START.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What another process needs to use it.
    #[must_use]
    pub fn record(&self) -> &GuestRecord {
        &self.record
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Whether its emulator runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.record.process.runs()
    }

    /// Leaves it running when the handle is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    /// Waits until the guest's system is up: its network is set up and it runs commands.
    ///
    /// # Errors
    /// [`Error::Guest`] with the end of its console, if it ended or takes longer than `patience`.
    pub fn wait_up(&self, patience: Duration) -> Result<()> {
        Channel::open(&self.record, patience).map(drop)
    }

    /// Runs a command in the guest, without input and for at most a minute. There is no shell in between.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such command; [`Error::Guest`] with the end of the console, if the guest does not
    /// answer or the command does not end. An exit code that is not 0 is no error.
    pub fn exec<W: Into<String>>(&self, words: impl IntoIterator<Item = W>) -> Result<Output> {
        self.exec_within(words, COMMAND)
    }

    /// The same with a time of its own, after which the command is ended.
    pub fn exec_within<W: Into<String>>(
        &self,
        words: impl IntoIterator<Item = W>,
        patience: Duration,
    ) -> Result<Output> {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        let mut all = Output::default();
        let mut channel = Channel::open(&self.record, patience)?;
        let code = channel.run(&self.record, &words, None, Some(patience), |said| match said {
            Said::Output(bytes) => all.out.write_all(bytes),
            Said::Error(bytes) => all.err.write_all(bytes),
        })?;
        all.code = code;
        Ok(all)
    }

    /// Starts a command that works until its input ends ([`Running::finish`]).
    ///
    /// # Errors
    /// As [`Guest::exec`]; what the command itself meets shows at its end.
    pub fn spawn<W: Into<String>>(&self, words: impl IntoIterator<Item = W>) -> Result<Running> {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        let (input, end) = UnixStream::pair().map_err(Error::io("make a socket"))?;
        let mut channel = Channel::open(&self.record, COMMAND)?;
        let record = self.record.clone();
        let work = move || {
            let mut all = Output::default();
            all.code = channel.run(&record, &words, Some(Box::new(input)), None, |said| match said {
                Said::Output(bytes) => all.out.write_all(bytes),
                Said::Error(bytes) => all.err.write_all(bytes),
            })?;
            Ok(all)
        };
        let thread = std::thread::Builder::new().name("guest-command".to_owned()).spawn(work);
        Ok(Running { end, thread: thread.map_err(Error::io("start a thread"))? })
    }

    /// Runs a command in the guest with what this process reads and writes as its own streams, for as long as it takes.
    /// Returns its exit code.
    ///
    /// # Errors
    /// As [`Guest::exec`], or if our own output fails.
    pub fn exec_attached<W: Into<String>>(&self, words: impl IntoIterator<Item = W>) -> Result<i32> {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        let input: Box<dyn Read + Send> = Box::new(io::stdin());
        let mut channel = Channel::open(&self.record, COMMAND)?;
        channel.run(&self.record, &words, Some(input), None, |said| match said {
            Said::Output(bytes) => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Said::Error(bytes) => io::stderr().write_all(bytes),
        })
    }

    /// A connection to QEMU's monitor. There is one at a time: a second waits until the first is dropped.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.qmp_path())
    }

    /// The monitor's socket.
    #[must_use]
    pub fn qmp_path(&self) -> PathBuf {
        arguments::qmp(&self.record.dir)
    }

    /// The serial console's socket: a shell.
    #[must_use]
    pub fn console_path(&self) -> PathBuf {
        arguments::console(&self.record.dir)
    }

    /// All that the serial console has shown.
    #[must_use]
    pub fn console_log(&self) -> String {
        text(&arguments::console_log(&self.record.dir))
    }

    /// Ends it, as pulling the plug does, and removes its sockets; its logs stay.
    pub fn stop(mut self) -> Result<()> {
        self.owned = false;
        self.record.end()
    }
}

/// A command that runs in a guest. Dropped, its input ends and nobody hears what it says.
#[derive(Debug)]
pub struct Running {
    end: UnixStream,
    thread: JoinHandle<Result<Output>>,
}

impl Running {
    /// Ends the command's input and waits for what it says to that.
    pub fn finish(self) -> Result<Output> {
        drop(self.end);
        let broke = |_| Error::io("run a command in a guest")(io::Error::other("the thread broke off"));
        self.thread.join().map_err(broke)?
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.owned {
            // What cannot be ended by force cannot be ended by us.
            _ = self.record.end();
        }
    }
}

impl GuestRecord {
    /// Ends it, as pulling the plug does, and removes its sockets; its logs stay. An ended guest is no error.
    pub fn end(&self) -> Result<()> {
        self.process.end(PATIENCE)?;
        for at in 0..arguments::CHANNELS {
            let path = arguments::channel(&self.dir, at);
            for path in [path.with_extension("lock"), path] {
                _ = fs::remove_file(path);
            }
        }
        for path in [arguments::qmp(&self.dir), arguments::console(&self.dir)] {
            _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// An error about this guest, with what it and its emulator said last.
    pub(super) fn fault(&self, what: String) -> Error {
        let mut said = tail(&arguments::log(&self.dir));
        let console = tail(&arguments::console_log(&self.dir));
        if !said.is_empty() && !console.is_empty() {
            said.push('\n');
        }
        said.push_str(&console);
        Error::Guest { name: self.name.clone(), what, dir: self.dir.clone(), said: Tail(said) }
    }
}

/// Has a program that is about to be executed keep a descriptor.
fn inherit(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed; flag 0 is the absence of FD_CLOEXEC.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn tail(path: &Path) -> String {
    let text = text(path);
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
