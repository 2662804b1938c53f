//! Open vSwitch with its userspace datapath, as a process of our own in a namespace: no service of the machine is
//! touched, and all that it writes is in one folder.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long its processes may take to start, and a command to be carried out.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running Open vSwitch; it ends with its handle.
#[derive(Debug)]
pub struct Ovs {
    dir: PathBuf,
    processes: Vec<Child>,
}

/// What is missing for one, if anything is.
#[must_use]
pub fn missing() -> Option<String> {
    let there = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
    };
    let programs = ["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"];
    let lacking = programs.iter().find(|p| !there(p));
    lacking.map(|p| format!("{p} is not installed (Debian: apt-get install openvswitch-switch)"))
}

impl Ovs {
    /// Starts one in a namespace; `dir` is made and holds its database, sockets and logs.
    ///
    /// # Errors
    /// If a part of it does not start; the message has the end of its log.
    pub fn start(netns: &Netns, dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut new = Self { dir: dir.to_owned(), processes: Vec::new() };
        let database = dir.join("conf.db");
        run(new.env(Command::new("ovsdb-tool")).arg("create").arg(&database).arg(SCHEMA))?;
        let mut server = new.env(netns.command("ovsdb-server"));
        server.arg(&database).arg(format!("--remote=punix:{}", new.socket().display()));
        new.spawn(server, "db")?;
        new.wait("its database", |ovs| ovs.socket().exists())?;
        new.vsctl(&["--no-wait", "init"])?;
        let mut switch = new.env(netns.command("ovs-vswitchd"));
        switch.arg(format!("unix:{}", new.socket().display()));
        new.spawn(switch, "switch")?;
        Ok(new)
    }

    /// Runs `ovs-vsctl` and waits until the switch has done it.
    ///
    /// # Errors
    /// What it says.
    pub fn vsctl(&self, args: &[&str]) -> io::Result<String> {
        let mut command = self.env(Command::new("ovs-vsctl"));
        command.arg(format!("--db=unix:{}", self.socket().display()));
        command.arg(format!("--timeout={}", PATIENCE.as_secs())).args(args);
        run(&mut command)
    }

    /// Runs `ovs-ofctl` on a bridge: `ofctl("add-flow", "br-int", &["actions=drop"])`.
    ///
    /// # Errors
    /// What it says.
    pub fn ofctl(&self, verb: &str, bridge: &str, args: &[&str]) -> io::Result<String> {
        run(self.env(Command::new("ovs-ofctl")).arg(verb).arg(bridge).args(args))
    }

    /// Runs `ovs-appctl` on the switch.
    ///
    /// # Errors
    /// What it says.
    pub fn appctl(&self, args: &[&str]) -> io::Result<String> {
        let mut command = self.env(Command::new("ovs-appctl"));
        run(command.arg("-t").arg(self.dir.join("switch.ctl")).args(args))
    }

    /// Makes a bridge of the userspace datapath with these devices as ports.
    ///
    /// # Errors
    /// What the switch says.
    pub fn add_bridge(&self, name: &str, devices: &[&str]) -> io::Result<()> {
        let mut args = vec!["add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"];
        for device in devices {
            args.extend(["--", "add-port", name, device]);
        }
        self.vsctl(&args).map(drop)
    }

    /// Adds a tunnel port: `kind` as `vxlan`, `options` as `options:key=5001`.
    ///
    /// # Errors
    /// What the switch says.
    pub fn add_tunnel(&self, bridge: &str, name: &str, kind: &str, options: &[&str]) -> io::Result<()> {
        let kind = format!("type={kind}");
        let mut args = vec!["add-port", bridge, name, "--", "set", "interface", name, &kind];
        args.extend(options);
        self.vsctl(&args).map(drop)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    /// A command that looks for everything in our folder.
    fn env(&self, mut command: Command) -> Command {
        for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(name, &self.dir);
        }
        command.stdin(Stdio::null());
        command
    }

    fn spawn(&mut self, mut command: Command, name: &str) -> io::Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        command.arg(format!("--unixctl={}", self.dir.join(format!("{name}.ctl")).display()));
        command.arg(format!("--log-file={}", log.display())).stdout(Stdio::null()).stderr(Stdio::null());
        self.processes.push(command.spawn()?);
        Ok(())
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) -> io::Result<()> {
        let begin = Instant::now();
        while !condition(self) {
            if begin.elapsed() > PATIENCE {
                let text = format!("Open vSwitch did not start: {what}; see {}", self.dir.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            _ = process.kill();
            _ = process.wait();
        }
    }
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let program = command.get_program().display().to_string();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program} failed: {said}")))
}
