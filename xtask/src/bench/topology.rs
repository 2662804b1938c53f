//! Two hosts on one wire, and on each of them one VM per contestant.
//!
//! ```text
//!   tenet-a ─veth─┐                         ┌─veth─ tenet-b      by Tenet: the real controller and agents
//!                 h1 ═══ u1 ─ veth ─ u2 ═══ h2
//!  bridge-a ─veth─┘   MTU 1600, VMs 1500    └─veth─ bridge-b     by a Linux bridge and a vxlan device
//! ```
//!
//! Both contestants live side by side on the same wire in the same run, so that rounds can alternate.

use super::load::Vm;
use anyhow::{Context as _, Result, bail};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PA: [&str; 2] = ["192.168.9.1", "192.168.9.2"];

/// The running topology; removed on drop.
pub struct Topology {
    prefix: String,
    folder: PathBuf,
    tenet: PathBuf,
    processes: Vec<Child>,
}

impl Topology {
    /// Builds the networks, starts controller and agents from the binary `tenet`, and waits until all VMs answer.
    pub fn up(tenet: &Path) -> Result<Self> {
        let prefix = format!("tb{:x}", std::process::id());
        let folder = std::env::temp_dir().join(format!("tenet-bench-{prefix}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut t = Self { prefix, folder, tenet: tenet.to_owned(), processes: Vec::new() };
        t.wire()?;
        t.bridges()?;
        t.tenet_side()?;
        for pair in [t.tenet_vms(), t.bridge_vms()] {
            t.wait_ping(&pair)?;
        }
        Ok(t)
    }

    /// The two VMs joined by Tenet.
    #[must_use]
    pub fn tenet_vms(&self) -> [Vm; 2] {
        self.vms("t")
    }

    /// The two VMs joined by a bridge and a vxlan device.
    #[must_use]
    pub fn bridge_vms(&self) -> [Vm; 2] {
        self.vms("b")
    }

    /// Process ids of the agents.
    #[must_use]
    pub fn agents(&self) -> Vec<u32> {
        self.processes.iter().skip(1).map(Child::id).collect()
    }

    fn vms(&self, side: &str) -> [Vm; 2] {
        [1, 2].map(|i| Vm { netns: self.ns(&format!("{side}{i}")), address: Ipv4Addr::new(10, 1, 0, i) })
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn wire(&self) -> Result<()> {
        for name in ["h1", "h2", "t1", "t2", "b1", "b2"] {
            let ns = self.ns(name);
            ip(&format!("netns add {ns}"))?;
            ip(&format!("-n {ns} link set lo up"))?;
            run(Command::new("ip").args([
                "netns",
                "exec",
                &ns,
                "sysctl",
                "-qw",
                "net.ipv6.conf.all.disable_ipv6=1",
            ]))?;
        }
        let (h1, h2) = (self.ns("h1"), self.ns("h2"));
        ip(&format!("link add u1 netns {h1} type veth peer name u2 netns {h2}"))?;
        for (i, pa) in PA.iter().enumerate() {
            let h = self.ns(&format!("h{}", i + 1));
            ip(&format!("-n {h} link set u{} mtu 1600 up", i + 1))?;
            ip(&format!("-n {h} addr add {pa}/24 dev u{}", i + 1))?;
            for side in ["t", "b"] {
                let vm = self.ns(&format!("{side}{}", i + 1));
                ip(&format!("link add {side}vm netns {h} type veth peer name eth0 netns {vm}"))?;
                ip(&format!("-n {vm} link set eth0 address 02:00:00:00:01:0{} mtu 1500 up", i + 1))?;
                ip(&format!("-n {vm} addr add 10.1.0.{}/24 dev eth0", i + 1))?;
                ip(&format!("-n {h} link set {side}vm up"))?;
            }
        }
        Ok(())
    }

    fn bridges(&self) -> Result<()> {
        for (i, pa) in PA.iter().enumerate() {
            let (h, u, other) = (self.ns(&format!("h{}", i + 1)), i + 1, PA[1 - i]);
            ip(&format!(
                "-n {h} link add vx type vxlan id 5002 remote {other} local {pa} dstport 4789 dev u{u}"
            ))?;
            ip(&format!("-n {h} link add br0 type bridge"))?;
            ip(&format!("-n {h} link set vx mtu 1500 master br0 up"))?;
            ip(&format!("-n {h} link set bvm mtu 1500 master br0 up"))?;
            ip(&format!("-n {h} link set br0 up"))?;
        }
        Ok(())
    }

    fn tenet_side(&mut self) -> Result<()> {
        let state = self.folder.join("controller");
        let (h1, state_text) = (self.ns("h1"), state.display().to_string());
        self.spawn(&h1, &["controller", "--state-dir", &state_text, "--address", PA[0]])?;
        wait(Duration::from_secs(20), "the controller to write admin.json", || {
            Ok(state.join("admin.json").exists())
        })?;
        let site = self.folder.join("site.yaml");
        std::fs::write(
            &site,
            format!(
                "hosts:\n  h1: {{ pa: {} }}\n  h2: {{ pa: {} }}\ntenants:\n  bench:\n    networks:\n      blue:\n        \
                 subnets:\n          all: {{ prefix: 10.1.0.0/24, vsid: 5001, gateway: 10.1.0.254 }}\n    vms:\n      \
                 a: {{ ports: {{ eth0: {{ subnet: blue/all, mac: \"02:00:00:00:01:01\", address: 10.1.0.1, host: h1, device: tvm }} }} }}\n      \
                 b: {{ ports: {{ eth0: {{ subnet: blue/all, mac: \"02:00:00:00:01:02\", address: 10.1.0.2, host: h2, device: tvm }} }} }}\n",
                PA[0], PA[1]
            ),
        )?;
        for (i, _) in PA.iter().enumerate() {
            let name = format!("h{}", i + 1);
            let h = self.ns(&name);
            let token = self.cli(&["host", "token", &name, "--pa", PA[i]])?;
            let folder = self.folder.join(&name).display().to_string();
            let bpffs = format!("/sys/fs/bpf/tenet-bench-{}/{name}", self.prefix);
            let uplink = format!("u{}", i + 1);
            let controller = format!("https://{}:7443", PA[0]);
            self.spawn(
                &h,
                &[
                    "agent",
                    "--state-dir",
                    &folder,
                    "--controller",
                    &controller,
                    "--join",
                    token.trim(),
                    "--uplink",
                    &uplink,
                    "--bpffs",
                    &bpffs,
                ],
            )?;
        }
        self.cli(&["apply", "-f", &site.display().to_string(), "--yes"])?;
        Ok(())
    }

    /// Runs the CLI in the controller's namespace; its standard output.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let admin = self.folder.join("controller/admin.json");
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.ns("h1")))
            .arg(&self.tenet)
            .args(args)
            .env("TENET_ADMIN_FILE", admin)
            .output()
            .context("run tenet")?;
        if !output.status.success() {
            bail!("tenet {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn spawn(&mut self, netns: &str, args: &[&str]) -> Result<()> {
        let log = std::fs::File::create(self.folder.join(format!("{}-{}.log", netns, args[0])))?;
        // nsenter changes the network namespace only, so that /sys/fs/bpf stays the host's.
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .arg(&self.tenet)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start tenet")?;
        self.processes.push(child);
        Ok(())
    }

    fn wait_ping(&self, [a, b]: &[Vm; 2]) -> Result<()> {
        wait(
            Duration::from_secs(20),
            &format!("{} to reach {} (logs in {})", a.netns, b.address, self.folder.display()),
            || {
                Ok(Command::new("ip")
                    .args(["netns", "exec", &a.netns, "ping", "-c1", "-W1", "-q", &b.address.to_string()])
                    .output()?
                    .status
                    .success())
            },
        )
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for p in &mut self.processes {
            p.kill().ok();
            p.wait().ok();
        }
        for (i, _) in PA.iter().enumerate() {
            let bpffs = format!("/sys/fs/bpf/tenet-bench-{}/h{}", self.prefix, i + 1);
            let h = format!("--net=/run/netns/{}", self.ns(&format!("h{}", i + 1)));
            Command::new("nsenter")
                .arg(h)
                .arg(&self.tenet)
                .args(["agent", "--detach", "--bpffs", &bpffs])
                .output()
                .ok();
        }
        for name in ["h1", "h2", "t1", "t2", "b1", "b2"] {
            ip(&format!("netns del {}", self.ns(name))).ok();
        }
        std::fs::remove_dir(format!("/sys/fs/bpf/tenet-bench-{}", self.prefix)).ok();
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.folder).ok();
        }
    }
}

fn ip(args: &str) -> Result<()> {
    run(Command::new("ip").args(args.split_whitespace()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Waits for a condition with a deadline.
pub fn wait(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !condition()? {
        if Instant::now() > end {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
