//! OVN with Open vSwitch's userspace datapath: a central part and three chassis, as processes of our own in namespaces.
//!
//! Guests move as OVN's own documentation has it: bound to both chassis while they move, and activated on the
//! destination by its RARP (`activation-strategy=rarp`).

use super::clock::{self, Micros};
use super::fabric::{CLIENT, Fabric, Namespaces, Nic, PREFIX, move_memory, nics, run, tap};
use super::qmp::Qmp;
use crate::bench::topology::wait;
use crate::packages::{self, OPENVSWITCH, OVN_CENTRAL, OVN_HOST};
use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tenet_hostnet::{Links, Netns};
use tenet_tests::ovs::Ovs;

/// Its name in tables.
pub const NAME: &str = "OVN";
/// What Geneve with OVN's option leaves of 1500.
const MTU: u32 = 1442;
const CHASSIS: [&str; 3] = ["o1", "o2", "o3"];
const CENTRAL: Ipv4Addr = Ipv4Addr::new(10, 250, 9, 10);
const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0xb, 0, 1];

/// The running network. Fields end in this order: what uses the namespaces before these.
pub struct Ovn {
    hosts: Vec<Netns>,
    client: Netns,
    nics: Vec<Nic>,
    north: PathBuf,
    _controllers: Processes,
    switches: Vec<Ovs>,
    _central: Processes,
    _namespaces: Namespaces,
}

/// Processes that end with their handle, the last one first.
#[derive(Default)]
struct Processes(Vec<Child>);

impl Processes {
    fn start(&mut self, mut command: Command, dir: &Path) -> Result<()> {
        for name in ["OVS_RUNDIR", "OVN_RUNDIR", "OVS_LOGDIR", "OVN_LOGDIR"] {
            command.env(name, dir);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.push(command.spawn().with_context(|| format!("start {}", command.get_program().display()))?);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in self.0.iter_mut().rev() {
            _ = process.kill();
            _ = process.wait();
        }
    }
}

impl Ovn {
    /// Installs what is missing and starts all of it.
    ///
    /// # Errors
    /// What is in the way.
    pub fn up(prefix: &str, folder: &Path, guests: usize) -> Result<Self> {
        packages::ensure(&[OPENVSWITCH, OVN_CENTRAL, OVN_HOST])?;
        let all = Namespaces::new(&format!("{prefix}-o"));
        let wire = all.add("wire")?;
        let links = Links::in_netns(&wire)?;
        links.add_bridge("br0")?;
        links.set_up("br0")?;
        let plug = |netns: &Netns, name: &str| -> Result<()> {
            let inside = Links::in_netns(netns)?;
            inside.add_veth("up0", name, &wire)?;
            inside.set_up("up0")?;
            links.set_master(name, Some("br0"))?;
            Ok(links.set_up(name)?)
        };
        let centre = all.add("central")?;
        plug(&centre, "p-central")?;
        let links = Links::in_netns(&centre)?;
        links.add_addr("up0", CENTRAL.into(), 24)?;
        // Open checksums do not survive the userspace datapath.
        links.set_offloads("up0", false)?;
        let dir = folder.join("ovn");
        let central = central(&centre, &dir)?;
        let nics = nics("vm", guests, MTU);
        let (mut hosts, mut switches, mut controllers) = (Vec::new(), Vec::new(), Processes::default());
        for (at, name) in CHASSIS.iter().enumerate() {
            let host = all.add(name)?;
            plug(&host, &format!("p-{name}"))?;
            let dir = folder.join(name);
            let address = Ipv4Addr::new(10, 250, 9, at as u8 + 1);
            switches.push(switch(&host, name, address, &dir)?);
            let mut controller = host.command("ovn-controller");
            controller.arg(format!("--log-file={}", dir.join("controller.log").display()));
            controller.arg(format!("unix:{}", dir.join("db.sock").display()));
            controllers.start(controller, &dir)?;
            hosts.push(host);
        }
        let client = all.add("client")?;
        let (_namespaces, _central, _controllers) = (all, central, controllers);
        let north = dir.join("nb.sock");
        let new = Self { hosts, client, nics, north, _controllers, switches, _central, _namespaces };
        new.attach()?;
        Ok(new)
    }

    /// The logical switch, the client's port and the guests'.
    fn attach(&self) -> Result<()> {
        self.nb(&["ls-add", "net"])?;
        let links = Links::in_netns(&self.client)?;
        let third = self.hosts.get(2).context("no third host")?;
        links.add_veth("eth0", "client", third)?;
        links.set_mac("eth0", CLIENT_MAC)?;
        links.set_mtu("eth0", MTU)?;
        links.add_addr("eth0", IpAddr::V4(CLIENT), PREFIX)?;
        links.set_offloads("eth0", false)?;
        links.set_up("eth0")?;
        Links::in_netns(third)?.set_up("client")?;
        self.port("client", CLIENT_MAC, CLIENT)?;
        self.bind(2, "client", "client")?;
        for (n, nic) in self.nics.iter().enumerate() {
            self.port(&logical(n), nic.mac, nic.address)?;
            for at in 0..2 {
                tap(self.host(at), nic)?;
                self.bind(at, &nic.device, &logical(n))?;
            }
            self.reset(n)?;
        }
        self.nb(&["--wait=hv", "sync"]).map(drop)
    }

    fn port(&self, name: &str, mac: [u8; 6], address: Ipv4Addr) -> Result<()> {
        let mac: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
        let addresses = format!("{} {address}", mac.join(":"));
        self.nb(&["lsp-add", "net", name, "--", "lsp-set-addresses", name, &addresses]).map(drop)
    }

    fn bind(&self, at: usize, device: &str, port: &str) -> Result<()> {
        let switch = self.switches.get(at).context("no such chassis")?;
        let id = format!("external_ids:iface-id={port}");
        switch.vsctl(&["add-port", "br-int", device, "--", "set", "interface", device, &id])?;
        Ok(())
    }

    fn nb(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ovn-nbctl");
        run(command.arg(format!("--db=unix:{}", self.north.display())).arg("--timeout=20").args(args))
    }
}

impl Fabric for Ovn {
    fn name(&self) -> &'static str {
        NAME
    }

    fn host(&self, at: usize) -> &Netns {
        &self.hosts[at]
    }

    fn client(&self) -> &Netns {
        &self.client
    }

    fn nics(&self) -> &[Nic] {
        &self.nics
    }

    fn card_properties(&self) -> &'static [&'static str] {
        // The userspace datapath cannot finish open checksums nor cut large frames, so the guest must.
        &["csum=off", "gso=off"]
    }

    fn migrate(&self, nic: usize, to: usize, uri: &str, source: &mut Qmp) -> Result<()> {
        let both = format!("requested-chassis={},{}", CHASSIS[1 - to], CHASSIS[to]);
        self.nb(&["--wait=hv", "lsp-set-options", &logical(nic), &both, "activation-strategy=rarp"])?;
        move_memory(source, uri)
    }

    fn arrived(&self, nic: usize, to: usize) -> Result<Option<Micros>> {
        let begin = clock::now();
        let new = format!("requested-chassis={}", CHASSIS[to]);
        self.nb(&["--wait=hv", "lsp-set-options", &logical(nic), &new])?;
        Ok(Some(clock::now() - begin))
    }

    fn reset(&self, nic: usize) -> Result<()> {
        self.nb(&["lsp-set-options", &logical(nic), &format!("requested-chassis={}", CHASSIS[0])]).map(drop)
    }
}

fn logical(nic: usize) -> String {
    format!("guest-{nic}")
}

/// Both databases and the daemon between them.
fn central(netns: &Netns, dir: &Path) -> Result<Processes> {
    std::fs::create_dir_all(dir)?;
    let mut all = Processes::default();
    for (name, port) in [("nb", 6641), ("sb", 6642)] {
        let at = |end: &str| dir.join(format!("{name}.{end}"));
        run(Command::new("ovsdb-tool")
            .arg("create")
            .arg(at("db"))
            .arg(format!("/usr/share/ovn/ovn-{name}.ovsschema")))?;
        let mut server = netns.command("ovsdb-server");
        server.arg(format!("--log-file={}", at("log").display()));
        server.arg(format!("--unixctl={}", at("ctl").display()));
        server.arg(format!("--remote=punix:{}", at("sock").display())).arg(format!("--remote=ptcp:{port}"));
        all.start(
            {
                server.arg(at("db"));
                server
            },
            dir,
        )?;
        wait(Duration::from_secs(10), "OVN's databases", || Ok(at("sock").exists()))?;
    }
    let mut north = netns.command("ovn-northd");
    north.arg(format!("--log-file={}", dir.join("northd.log").display()));
    north.arg(format!("--unixctl={}", dir.join("northd.ctl").display()));
    for name in ["nb", "sb"] {
        north.arg(format!("--ovn{name}-db=unix:{}", dir.join(format!("{name}.sock")).display()));
    }
    all.start(north, dir)?;
    Ok(all)
}

/// A chassis' switch, with its address on a bridge that has the wire.
fn switch(host: &Netns, name: &str, address: Ipv4Addr, dir: &Path) -> Result<Ovs> {
    let ovs = Ovs::start(host, dir)?;
    let ids = [
        format!("system-id={name}"),
        format!("hostname={name}"),
        format!("ovn-remote=tcp:{CENTRAL}:6642"),
        "ovn-encap-type=geneve".to_owned(),
        format!("ovn-encap-ip={address}"),
        "ovn-bridge-datapath-type=netdev".to_owned(),
    ];
    let ids = ids.map(|id| format!("external-ids:{id}"));
    let set = ["set", "open", "."].into_iter().chain(ids.iter().map(String::as_str));
    ovs.vsctl(&set.collect::<Vec<_>>())?;
    ovs.add_bridge("br-phys", &["up0"])?;
    let links = Links::in_netns(host)?;
    links.add_addr("br-phys", address.into(), 24)?;
    links.set_up("br-phys")?;
    links.set_offloads("br-phys", false)?;
    ovs.vsctl(&[
        "add-br",
        "br-int",
        "--",
        "set",
        "bridge",
        "br-int",
        "datapath_type=netdev",
        "fail_mode=secure",
    ])?;
    Ok(ovs)
}
