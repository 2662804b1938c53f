//! Several libvirt daemons on one machine: each in a host's network namespace, with mounts and a name of its own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tenet_lab::Host;

use crate::until;

/// What is needed and where it comes from.
const TOOLS: [(&str, &str); 3] = [
    ("libvirtd", "libvirt-daemon-system"),
    ("virsh", "libvirt-clients"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

/// How long a daemon may take to answer the first time: it asks the emulator what it can do, emulated.
const START: Duration = Duration::from_secs(60);

/// What keeps libvirt from running here, if anything does.
#[must_use]
pub fn missing() -> Option<String> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let (tool, package) =
        TOOLS.into_iter().find(|(tool, _)| !folders.iter().any(|f| Path::new(f).join(tool).exists()))?;
    Some(format!("there is no {tool} here (Debian: apt-get install {package})"))
}

/// A libvirt daemon of a host of a lab; ended, and its guests with it, when dropped.
#[derive(Debug)]
pub struct Libvirt {
    dir: PathBuf,
    daemon: Child,
    /// Its mount namespace, which no other gets the number of as long as this is open.
    mounts: Option<fs::File>,
    /// What tells the emulators' events, independently of Tenet.
    events: Option<Child>,
    /// Its URI.
    pub uri: String,
    /// Its host's name as it knows it, and address, as a line of `/etc/hosts`.
    itself: String,
}

impl Libvirt {
    /// Starts one; `hooks` fills its folder of hooks first, which it reads when it starts.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(host: &Host<'_>, number: u8, hooks: impl FnOnce(&Path)) -> Self {
        // Short, as paths of sockets are.
        let dir = PathBuf::from(format!("/tmp/tnlv{}-{number}", std::process::id()));
        let sockets = host.record().libvirt_dir();
        fs::create_dir_all(&sockets).unwrap();
        for part in ["etc/hooks", "run/libvirt", "lib", "cache", "log"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let at = dir.display();
        // Two daemons with one id would not let a guest move between them.
        let daemon_conf = format!(
            "host_uuid = \"{number}1111111-1111-4111-8111-{:012x}\"\nauth_unix_rw = \"none\"\n\
             unix_sock_dir = \"{}\"\nlog_outputs = \"3:file:{at}/libvirtd.log\"\n",
            std::process::id(),
            sockets.display()
        );
        fs::write(dir.join("etc/libvirtd.conf"), daemon_conf).unwrap();
        let qemu_conf = "security_driver = \"none\"\nuser = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n\
                         remember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";
        fs::write(dir.join("etc/qemu.conf"), qemu_conf).unwrap();
        // It asks for its own name at every step; in a lab nobody answers, which costs five seconds each time.
        let name = format!("tnlv{}-{number}", std::process::id());
        let address = host.record().pa;
        fs::write(dir.join("hosts"), format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
        hooks(&dir.join("etc/hooks"));
        let script = format!(
            "set -e; mount --make-rprivate /; hostname {name}; mount --bind {at}/hosts /etc/hosts\n\
             mount --bind {at}/etc /etc/libvirt; mount --bind {at}/lib /var/lib/libvirt\n\
             mkdir -p /var/cache/libvirt /var/log/libvirt\n\
             mount --bind {at}/cache /var/cache/libvirt; mount --bind {at}/log /var/log/libvirt\n\
             mkdir -p {at}/run/tenet-lab; mount --bind /run/tenet-lab {at}/run/tenet-lab\n\
             mount --rbind {at}/run /run\n\
             exec libvirtd --pid-file {at}/run/libvirtd.pid"
        );
        let log = fs::File::create(dir.join("out.log")).unwrap();
        let mut command = host.command("unshare");
        command.args(["--mount", "--uts", "bash", "-c", &script]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let daemon = command.spawn().unwrap();
        let uri = host.record().libvirt_uri();
        let mut started =
            Self { dir, daemon, mounts: None, events: None, uri, itself: format!("{address} {name}\n") };
        until("libvirtd answers", START, || {
            let ended = started.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "libvirtd ended: {}", started.log());
            started.try_virsh(&["list"]).status.success().then_some(())
        });
        started.mounts = Some(fs::File::open(mounts(started.daemon.id())).unwrap());
        let said = fs::File::create(started.dir.join("events")).unwrap();
        let mut listen = started.command(&["qemu-monitor-event", "--loop", "--timestamp"]);
        started.events = Some(listen.stdout(said).spawn().unwrap());
        started
    }

    /// Makes another daemon's host known by name, as that one names itself to whoever sends it a domain.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn knows(&self, other: &Self) {
        // In place, for the daemon sees this very file.
        let mut hosts = fs::OpenOptions::new().append(true).open(self.dir.join("hosts")).unwrap();
        hosts.write_all(other.itself.as_bytes()).unwrap();
    }

    /// Runs virsh; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn virsh(&self, args: &[&str]) -> String {
        let output = self.try_virsh(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "virsh {}: {said}\n{}", args.join(" "), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs virsh, which must fail; what it said.
    ///
    /// # Panics
    /// If it does not fail.
    #[must_use]
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.try_virsh(args);
        assert!(!output.status.success(), "virsh {} did not fail", args.join(" "));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn try_virsh(&self, args: &[&str]) -> Output {
        let begin = Instant::now();
        let output = self.command(args).output().unwrap();
        if begin.elapsed() > Duration::from_millis(200) {
            println!("virsh {} took {} ms", args.join(" "), begin.elapsed().as_millis());
        }
        output
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri]).args(args).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// When an emulator last said this of a domain, in milliseconds of the day.
    #[must_use]
    pub fn event_ms(&self, domain: &str, event: &str) -> Option<i64> {
        let said = fs::read_to_string(self.dir.join("events")).unwrap_or_default();
        let line = said.lines().rfind(|l| l.contains(&format!(": event {event} for domain '{domain}'")))?;
        // 2026-11-23 07:36:27.341+0000
        let time = line.split_once(' ')?.1.split_once('+')?.0;
        let parts: Vec<f64> = time.split(':').filter_map(|p| p.parse().ok()).collect();
        let [hours, minutes, seconds] = parts[..] else { return None };
        Some((((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0).round() as i64)
    }

    /// Stores a domain.
    ///
    /// # Panics
    /// If libvirt does not take it.
    pub fn define(&self, xml: &str) {
        let file = self.dir.join("domain.xml");
        fs::write(&file, xml).unwrap();
        _ = self.virsh(&["define", file.to_str().unwrap()]);
    }

    /// The process of a domain's emulator.
    ///
    /// # Panics
    /// If the domain does not run here.
    #[must_use]
    pub fn pid(&self, domain: &str) -> u32 {
        let file = self.dir.join(format!("run/libvirt/qemu/{domain}.pid"));
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// Says of a process that it is the emulator of a domain here, as a file does that was left behind.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn leave_pid(&self, domain: &str, pid: u32) {
        fs::write(self.dir.join(format!("run/libvirt/qemu/{domain}.pid")), pid.to_string()).unwrap();
    }

    /// The socket that libvirt makes for a channel of a domain that runs here.
    #[must_use]
    pub fn channel(&self, domain: &str, channel: &str) -> PathBuf {
        let id = self.virsh(&["domid", domain]);
        self.dir.join(format!("lib/qemu/channel/target/domain-{}-{domain}/{channel}", id.trim()))
    }

    /// What the daemon and its emulators have said.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        let logs = self.dir.join("log/qemu");
        let more = fs::read_dir(logs).into_iter().flatten().flatten().map(|e| e.path());
        for file in [self.dir.join("libvirtd.log"), self.dir.join("out.log")].into_iter().chain(more) {
            let all = fs::read_to_string(&file).unwrap_or_default();
            let from = all.len().saturating_sub(3000);
            text += &format!("== {}\n{}\n", file.display(), all.get(from..).unwrap_or(&all));
        }
        text
    }

    /// Ends the guests that are left; those of libvirt outlive it, in the mount namespace that only its processes are in.
    fn end_guests(&self) {
        let pids = fs::read_dir(self.dir.join("run/libvirt/qemu")).into_iter().flatten().flatten();
        for file in pids.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "pid")) {
            let pid: Option<u32> = fs::read_to_string(file).ok().and_then(|t| t.trim().parse().ok());
            // The file may be old and the number another's by now.
            let ours = |pid: &u32| self.mounts.as_ref().is_some_and(|m| is_in(*pid, m));
            if let Some(pid) = pid.filter(ours) {
                // SAFETY: the call takes numbers and touches no memory of ours.
                unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
            }
        }
    }
}

/// Where a process's mount namespace is opened.
fn mounts(pid: u32) -> String {
    format!("/proc/{pid}/ns/mnt")
}

/// Whether a process is in this mount namespace.
fn is_in(pid: u32, space: &fs::File) -> bool {
    let its = fs::metadata(mounts(pid)).map(|m| (m.dev(), m.ino()));
    its.is_ok_and(|its| space.metadata().is_ok_and(|m| its == (m.dev(), m.ino())))
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // The daemon first, so that it starts nothing any more and calls no hook of a lab that goes.
        let pid = i32::try_from(self.daemon.id()).unwrap_or_default();
        if pid > 0 {
            // SAFETY: the call takes numbers and touches no memory of ours; the child is not yet reaped, so that the
            // number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(5) && matches!(self.daemon.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        _ = self.daemon.kill();
        _ = self.daemon.wait();
        if let Some(events) = &mut self.events {
            _ = events.kill();
            _ = events.wait();
        }
        self.end_guests();
        if std::thread::panicking() {
            println!("{}", self.log());
        }
        _ = fs::remove_dir_all(&self.dir);
    }
}
