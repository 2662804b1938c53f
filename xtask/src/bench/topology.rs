//! The contestants, each with two hosts of its own on a wire of its own, so that none is in another's way:
//!
//! ```text
//!   VM ─veth─ host 1 ═══ u1 ─ veth, MTU 1600 ─ u2 ═══ host 2 ─veth or tap─ VM     VMs 1500
//! ```
//!
//! Plain redirect is a program of four instructions on either side. Tenet's two hosts carry one network per method.

mod ovs;
mod tenet;
mod wire;

use super::load::Vm;
use super::relay::Relay;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
pub use tenet::Tenet;
use wire::{Place, Side};

/// The comparison that ratios are taken to, by name.
pub const BRIDGE: &str = "bridge + vxlan";
/// The limit.
pub const PLAIN: &str = "plain redirect";
/// The other product.
pub const OVS: &str = "Open vSwitch";

const PA: [&str; 2] = ["192.168.9.1", "192.168.9.2"];

/// How wire and receiver are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// Its name in tables.
    pub name: &'static str,
    /// What it is, in words.
    pub about: &'static str,
    /// Whether the wire takes large frames whole.
    pub offloads: bool,
    /// Whether the receiving VM is on a tap that a relay drains.
    pub tap: bool,
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "S1", about: "the wire takes large frames, VMs on veths", offloads: true, tap: false },
    Scenario { name: "S2", about: "segments on the wire, VMs on veths", offloads: false, tap: false },
    Scenario { name: "S3", about: "segments on the wire, receiving VM on a tap", offloads: false, tap: true },
];

/// Who takes part, besides bridge and plain.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Tenet's methods.
    pub methods: Vec<String>,
    /// Whether Open vSwitch does.
    pub ovs: bool,
    /// Whether Tenet's two VMs are in different subnets, so that each frame between them is routed.
    pub routed: bool,
}

/// A contestant's two VMs.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// Its name in tables.
    pub name: String,
    /// Sender and receiver.
    pub vms: [Vm; 2],
}

/// The running topology; removed on drop.
pub struct Topology {
    /// Those that work, the bridge first.
    pub contestants: Vec<Contestant>,
    /// Those that do not, with the reason.
    pub refused: Vec<(String, String)>,
    /// Tenet, if one of its methods takes part.
    pub tenet: Option<Tenet>,
    // Dropped in this order: what uses the namespaces before these.
    _relays: Vec<Relay>,
    _links: Vec<std::os::fd::OwnedFd>,
    _switches: Vec<tenet_tests::ovs::Ovs>,
    _sides: Vec<Side>,
    _folder: Folder,
}

impl Topology {
    /// Builds all and waits until the VMs of each contestant reach each other; one that does not is refused aloud.
    pub fn up(tenet: &Path, scenario: Scenario, wanted: &Wanted) -> Result<Self> {
        let prefix = format!("tb{:x}{}", std::process::id(), number());
        let mut t = Self::empty(&prefix)?;
        let mut found = vec![t.bridge(&prefix, "b", BRIDGE, "", scenario)?, t.plain(&prefix, scenario)?];
        if wanted.ovs {
            match t.ovs(&prefix, scenario) {
                Ok(contestant) => found.push(contestant),
                Err(e) => t.refuse(OVS, &format!("{e:#}")),
            }
        }
        if !wanted.methods.is_empty() {
            found.extend(t.with_tenet(tenet, &prefix, scenario, wanted)?);
        }
        for contestant in found {
            match reach(&contestant.vms) {
                Ok(()) => t.contestants.push(contestant),
                Err(e) => {
                    let logs = t.tenet.as_ref().filter(|_| contestant.name.starts_with("Tenet"));
                    let logs = logs.map(Tenet::last_words).unwrap_or_default();
                    t.refuse(&contestant.name, &format!("{e:#}{logs}"));
                }
            }
        }
        anyhow::ensure!(
            t.contestants.first().is_some_and(|c| c.name == BRIDGE),
            "the bridge does not work, which all are compared with: {:?}",
            t.refused
        );
        Ok(t)
    }

    fn refuse(&mut self, name: &str, why: &str) {
        eprintln!("  {name} does not take part: {why}");
        self.refused.push((name.to_owned(), why.to_owned()));
    }

    /// Bridges with vxlan devices alone, each with options of its own for the device.
    pub fn bridges(scenario: Scenario, kinds: &[(&str, &str)]) -> Result<Self> {
        let prefix = format!("tb{:x}{}", std::process::id(), number());
        let mut t = Self::empty(&prefix)?;
        for (at, (name, options)) in kinds.iter().enumerate() {
            let contestant = t.bridge(&prefix, &format!("b{at}"), name, options, scenario)?;
            reach(&contestant.vms).with_context(|| format!("{name} does not work"))?;
            t.contestants.push(contestant);
        }
        Ok(t)
    }

    fn empty(prefix: &str) -> Result<Self> {
        let folder = Folder(std::env::temp_dir().join(format!("tenet-bench-{prefix}")));
        std::fs::create_dir_all(&folder.0).with_context(|| format!("create {}", folder.0.display()))?;
        Ok(Self {
            contestants: Vec::new(),
            refused: Vec::new(),
            tenet: None,
            _relays: Vec::new(),
            _links: Vec::new(),
            _switches: Vec::new(),
            _sides: Vec::new(),
            _folder: folder,
        })
    }

    /// A Linux bridge with a vxlan device on either side.
    fn bridge(
        &mut self,
        prefix: &str,
        letter: &str,
        name: &str,
        options: &str,
        scenario: Scenario,
    ) -> Result<Contestant> {
        let side = Side::new(prefix, letter, scenario)?;
        let vms = self.pair(&side, letter, "vm", [1, 2], scenario, false)?;
        for (i, pa) in PA.iter().enumerate() {
            let (h, u, other) = (&side.hosts[i], i + 1, PA[1 - i]);
            ip(&format!(
                "-n {h} link add vx type vxlan id 5002 remote {other} local {pa} dstport 4789 dev u{u} {options}"
            ))?;
            ip(&format!("-n {h} link add br0 type bridge"))?;
            ip(&format!("-n {h} link set vx mtu 1500 master br0 up"))?;
            ip(&format!("-n {h} link set vm mtu 1500 master br0 up"))?;
            ip(&format!("-n {h} link set br0 up"))?;
        }
        self._sides.push(side);
        Ok(Contestant { name: name.to_owned(), vms })
    }

    fn plain(&mut self, prefix: &str, scenario: Scenario) -> Result<Contestant> {
        let side = Side::new(prefix, "p", scenario)?;
        let vms = self.pair(&side, "p", "vm", [1, 2], scenario, false)?;
        for (i, links) in side.links()?.iter().enumerate() {
            let (port, uplink) = (links.index("vm")?, links.index(&format!("u{}", i + 1))?);
            for (from, to) in [(port, uplink), (uplink, port)] {
                self._links.push(links.netns().run(|| super::bpf::redirect(from, to))??);
            }
        }
        self._sides.push(side);
        Ok(Contestant { name: PLAIN.to_owned(), vms })
    }

    fn ovs(&mut self, prefix: &str, scenario: Scenario) -> Result<Contestant> {
        let side = Side::new(prefix, "o", scenario)?;
        let vms = self.pair(&side, "o", "vm", [1, 2], scenario, false)?;
        let switches = ovs::start(&side, &self._folder.0, &vms);
        self._sides.push(side);
        self._switches = switches?;
        Ok(Contestant { name: OVS.to_owned(), vms })
    }

    /// Tenet with one network per method; a method that controller or CLI refuses is left out with the reason.
    fn with_tenet(
        &mut self,
        binary: &Path,
        prefix: &str,
        scenario: Scenario,
        wanted: &Wanted,
    ) -> Result<Vec<Contestant>> {
        let side = Side::new(prefix, "t", scenario)?;
        let mut contestants = Vec::new();
        for (at, method) in wanted.methods.iter().enumerate() {
            let macs = [2 * at as u8 + 1, 2 * at as u8 + 2];
            let device = format!("vm-{method}");
            let vms = self.pair(&side, &format!("t{at}"), &device, macs, scenario, wanted.routed)?;
            contestants.push((method.clone(), Contestant { name: format!("Tenet {method}"), vms }));
        }
        let mut tenet = Tenet::start(binary, &self._folder.0, &side, wanted.routed)?;
        self._sides.push(side);
        let mut taken = Vec::new();
        for (at, (method, contestant)) in contestants.into_iter().enumerate() {
            match tenet.add(at, &method, scenario) {
                Ok(()) => taken.push(contestant),
                Err(e) => self.refuse(&contestant.name, &format!("{e:#}")),
            }
        }
        self.tenet = Some(tenet);
        Ok(taken)
    }

    /// Two VMs, one on each host, with 10.1.0.1 and .2 (routed: 10.1.0.1 and 10.1.1.2); in the tap scenario the
    /// second is on a tap.
    fn pair(
        &mut self,
        side: &Side,
        tag: &str,
        device: &str,
        macs: [u8; 2],
        scenario: Scenario,
        routed: bool,
    ) -> Result<[Vm; 2]> {
        let [one, two] = macs.map(|mac| Place { mac, routed });
        let first = side.vm(0, tag, device, one)?;
        if !scenario.tap {
            return Ok([first, side.vm(1, tag, device, two)?]);
        }
        let (second, relay) = side.vm_on_tap(1, tag, device, two)?;
        self._relays.push(relay);
        Ok([first, second])
    }
}

/// A folder that ends with its handle.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("TENET_BENCH_KEEP").is_none() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

/// Tells the topologies of one process apart.
fn number() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn reach([a, b]: &[Vm; 2]) -> Result<()> {
    let answers = || {
        let ping = ["-c1", "-W1", "-q", &b.address.to_string()].map(str::to_owned);
        let done = Command::new("ip").args(["netns", "exec", &a.netns, "ping"]).args(ping).output()?;
        Ok(done.status.success())
    };
    wait(Duration::from_secs(15), "its VMs to reach each other", answers)
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
