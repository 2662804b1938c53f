//! Tenet as contestants: the real controller, two real agents, one network per method.

use super::wire::Side;
use super::{PA, Scenario, wait};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tenet_hostnet::Netns;

/// Running controller and agents; ended on drop.
pub struct Tenet {
    binary: PathBuf,
    folder: PathBuf,
    hosts: [Netns; 2],
    prefix: String,
    processes: Vec<Child>,
    /// The site's networks and VMs so far: method and its number.
    methods: Vec<(usize, String)>,
    /// Whether the VMs of a network are in two subnets.
    routed: bool,
}

impl Tenet {
    /// Starts controller and agents; the site is empty.
    pub fn start(binary: &Path, folder: &Path, side: &Side, routed: bool) -> Result<Self> {
        let [a, b] = &side.hosts;
        let mut t = Self {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            hosts: [Netns::open(a)?, Netns::open(b)?],
            prefix: format!("tenet-bench-{a}"),
            processes: Vec::new(),
            methods: Vec::new(),
            routed,
        };
        let state = folder.join("controller");
        let text = state.display().to_string();
        t.spawn(0, "controller", &["controller", "--state-dir", &text, "--address", PA[0]])?;
        wait(Duration::from_secs(20), "the controller to write admin.json", || {
            Ok(state.join("admin.json").exists())
        })?;
        let controller = format!("https://{}:7443", PA[0]);
        for (i, pa) in PA.iter().enumerate() {
            let name = format!("h{}", i + 1);
            let token = t.cli(&["host", "token", &name, "--pa", pa])?;
            let (state, bpffs) = (folder.join(&name).display().to_string(), t.bpffs(i).display().to_string());
            let uplink = format!("u{}", i + 1);
            let args = ["agent", "--state-dir", &state, "--controller", &controller];
            let more = ["--join", token.trim(), "--uplink", &uplink, "--bpffs", &bpffs];
            t.spawn(i, &name, &[&args[..], &more].concat())?;
        }
        Ok(t)
    }

    /// Adds a network with this method and its two VMs.
    ///
    /// # Errors
    /// What controller or CLI says to it; the site then stays as it was.
    pub fn add(&mut self, at: usize, method: &str, scenario: Scenario) -> Result<()> {
        self.methods.push((at, method.to_owned()));
        let file = self.folder.join("site.yaml");
        std::fs::write(&file, site(&self.methods, self.routed))?;
        let applied = self.cli(&["apply", "-f", &file.display().to_string(), "--yes"]);
        if applied.is_err() {
            self.methods.pop();
        }
        applied.with_context(|| format!("in {}", scenario.name)).map(drop)
    }

    /// Where a host's maps and links are pinned.
    #[must_use]
    pub fn bpffs(&self, host: usize) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.prefix).join(format!("h{}", host + 1))
    }

    /// Process ids of the agents.
    #[must_use]
    pub fn agents(&self) -> Vec<u32> {
        self.processes.iter().skip(1).map(Child::id).collect()
    }

    /// A host's namespace.
    #[must_use]
    pub fn host(&self, host: usize) -> &Netns {
        &self.hosts[host]
    }

    /// The last lines that the agents wrote, for somebody who wonders why nothing works.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for i in 1..=self.hosts.len() {
            let log = std::fs::read_to_string(self.folder.join(format!("h{i}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default();
            _ = write!(text, "\n    agent {i}: {}", tail.join("\n      "));
        }
        text
    }

    /// Ends the agents by force, which leaves the programs at work and the maps alone.
    pub fn kill_agents(&mut self) {
        for agent in self.processes.iter_mut().skip(1) {
            agent.kill().ok();
            agent.wait().ok();
        }
    }

    /// Runs the CLI in the controller's namespace; its standard output.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = self.hosts[0].command(&self.binary);
        command.args(args).env("TENET_ADMIN_FILE", self.folder.join("controller/admin.json"));
        let output = command.output().context("run tenet")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            let secret = args.iter().any(|a| a.starts_with("tenet1."));
            bail!("tenet {} failed: {said}", if secret { "agent" } else { args[0] });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn spawn(&mut self, host: usize, name: &str, args: &[&str]) -> Result<()> {
        let log = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
        let mut command: Command = self.hosts[host].command(&self.binary);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.processes.push(command.spawn().context("start tenet")?);
        Ok(())
    }
}

impl Drop for Tenet {
    fn drop(&mut self) {
        for p in &mut self.processes {
            p.kill().ok();
            p.wait().ok();
        }
        for i in 0..self.hosts.len() {
            let bpffs = self.bpffs(i);
            let mut detach = self.hosts[i].command(&self.binary);
            detach.args(["agent", "--detach", "--bpffs"]).arg(bpffs).output().ok();
        }
        std::fs::remove_dir(Path::new("/sys/fs/bpf").join(&self.prefix)).ok();
    }
}

/// The site with one network per method; only one that rewrites needs pools.
fn site(methods: &[(usize, String)], routed: bool) -> String {
    let rewrite = methods.iter().any(|(_, m)| m == "rewrite");
    let mut text = "hosts:\n".to_owned();
    for (i, pa) in PA.iter().enumerate() {
        let pool = format!(", rewrite_pool: [192.168.9.{}/26]", 64 * (i + 1));
        let pool = if rewrite { pool.as_str() } else { "" };
        _ = writeln!(text, "  h{}: {{ pa: {pa}{pool} }}", i + 1);
    }
    text.push_str("tenants:\n  bench:\n    networks:\n");
    for (at, method) in methods {
        _ = writeln!(text, "      {method}:\n        method: {method}\n        subnets:");
        for i in 0..=usize::from(routed) {
            let vsid = 5001 + 2 * at + i;
            let (prefix, gateway) = (format!("10.1.{i}.0/24"), format!("10.1.{i}.254"));
            _ = writeln!(text, "          s{i}: {{ prefix: {prefix}, vsid: {vsid}, gateway: {gateway} }}");
        }
    }
    text.push_str("    vms:\n");
    for (at, method) in methods {
        for i in 1..=2 {
            let mac = format!("02:00:00:00:01:{:02x}", 2 * at + i);
            let subnet = if routed { i - 1 } else { 0 };
            let port = format!(
                "subnet: {method}/s{subnet}, mac: \"{mac}\", address: 10.1.{subnet}.{i}, host: h{i}, device: vm-{method}"
            );
            _ = writeln!(text, "      {method}{i}: {{ ports: {{ eth0: {{ {port} }} }} }}");
        }
    }
    text
}
