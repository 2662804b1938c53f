//! Domains of real libvirt daemons on the hosts h1 and h2 of a lab, and what is asked of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tenet_api::rest::ReceiptView;
use tenet_hostnet::Links;
use tenet_lab::Process;
use tenet_lab::guest::{Guest, GuestRecord, Image};
use tenet_lab::tool::{ProbeReport, ask};
use tenet_model::tap_name;

use crate::guest::{Consoles, Ear};
use crate::libvirt::Libvirt;
use crate::{World, binary, block_on, until};

/// The VM of the domain with a guest.
pub const VM: &str = "contoso/lv";
/// Its address.
pub const ADDRESS: &str = "10.1.1.77";
/// By which a guest takes commands.
const CHANNEL: &str = "tenet.exec.0";
/// The guest's boot, emulated, on a machine that has much to do.
const BOOT: Duration = Duration::from_secs(60);

/// Both hosts' daemons.
#[derive(Debug)]
pub struct Hosts {
    _ear: Ear,
    /// Where the guest's console is written to, on whichever host, and its commands come from.
    dir: PathBuf,
    /// h1's.
    pub one: Libvirt,
    /// h2's.
    pub two: Libvirt,
    /// Where their agents listen.
    pub sockets: [String; 2],
}

impl Hosts {
    /// Starts them, with Tenet's hook. Their guest's console is listened to.
    ///
    /// # Panics
    /// If one does not start.
    #[must_use]
    pub fn start(world: &World, consoles: &Consoles) -> Self {
        let socket =
            |host: &str| world.lab.host(host).unwrap().record().socket().to_str().unwrap().to_owned();
        let start = |host: &str, number| {
            Libvirt::start(&world.lab.host(host).unwrap(), number, |dir| {
                let dir = dir.to_str().unwrap();
                let said = tenet(&["libvirt", "install-hook", "--dir", dir, "--socket", &socket(host)]);
                assert!(said.contains("installed") && said.contains("restart libvirtd"), "{said}");
            })
        };
        let (one, two) = (start("h1", 1), start("h2", 2));
        one.knows(&two);
        two.knows(&one);
        let dir = world.lab.host("h1").unwrap().record().state_dir.join("domain");
        std::fs::create_dir(&dir).unwrap();
        let hosts = Self { _ear: consoles.ear(), dir, one, two, sockets: [socket("h1"), socket("h2")] };
        consoles.hear_log(hosts.console());
        hosts
    }
}

/// Runs `tenet`; what it printed.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn tenet(args: &[&str]) -> String {
    let output = Command::new(binary()).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "tenet {}: {said}", args.join(" "));
    print!("{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A domain without a system: the firmware finds nothing to start and waits. With ACPI, by which NICs are plugged in.
#[must_use]
pub fn plain(name: &str, devices: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}<memballoon model='none'/></devices></domain>"
    )
}

/// A NIC of the VM [`VM`].
#[derive(Clone, Copy, Debug)]
pub struct Nic {
    /// The port.
    pub port: &'static str,
    /// Its MAC.
    pub mac: &'static str,
    /// The network and the subnet that the port is made in.
    pub subnet: (&'static str, &'static str),
    /// Its address; the prefix has 24 bits.
    pub address: &'static str,
    /// The subnet's gateway.
    pub gateway: &'static str,
}

impl Nic {
    /// The tap that the agents make for it.
    #[must_use]
    pub fn tap(&self) -> String {
        tap_name(&format!("{VM}/{}", self.port).parse().unwrap())
    }
}

/// The first NIC of the VM, and the only one of most.
pub const ETH0: Nic = Nic {
    port: "eth0",
    mac: "52:54:00:00:00:77",
    subnet: ("contoso/prod", "data"),
    address: ADDRESS,
    gateway: "10.1.1.1",
};

impl Hosts {
    /// A domain with a guest that answers, has these NICs and takes commands ([`Self::guest`]).
    #[must_use]
    pub fn domain(&self, name: &str, nics: &[Nic], image: &Image) -> String {
        let all = |part: &dyn Fn(&Nic) -> String| nics.iter().map(part).collect::<String>();
        let ports = all(&|nic| {
            let Nic { port, mac, subnet: (network, subnet), address, .. } = nic;
            format!(
                "<tenet:port name='{port}' mac='{mac}' network='{network}' subnet='{subnet}' address='{address}'/>"
            )
        });
        let words = all(&|nic| format!(" tenet.nic={}|{}/24|{}", nic.port, nic.address, nic.gateway));
        let interfaces = all(&|nic| {
            format!(
                "<interface type='ethernet'><mac address='{}'/><target dev='{}' managed='no'/>\
                 <model type='virtio'/><mtu size='1458'/><rom enabled='no'/></interface>",
                nic.mac,
                nic.tap()
            )
        });
        format!(
            "<domain type='qemu'><name>{name}</name>\
             <metadata><tenet:vm xmlns:tenet='urn:tenet:libvirt:1' name='{VM}'>{ports}</tenet:vm></metadata>\
             <memory unit='MiB'>96</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type>\
             <kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tenet.name={VM}{words}</cmdline></os>\
             <features><acpi/><apic/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{interfaces}\
             <serial type='file'><source path='{}' append='on'/></serial>\
             <channel type='unix'><target type='virtio' name='{CHANNEL}'/></channel>\
             <memballoon model='none'/></devices></domain>",
            image.kernel().display(),
            image.initrd().display(),
            self.console().display(),
        )
    }

    /// What the guest says, on whichever host. Its kernel crashes in slow moves now and then, on plain bridges as well
    /// (docs/migration.md).
    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What came while the guest stood still waited for it on its new host. Without, at least as many probes would be
    /// lost as the pause has milliseconds; QEMU leaves a few unread before it stops.
    ///
    /// # Panics
    /// If more was lost.
    pub fn waited_for(&self, receipt: &ReceiptView, probe: &ProbeReport) {
        let pause =
            receipt.pause_us.unwrap_or_else(|| panic!("both libvirts were heard: {receipt:?}")) / 1000;
        assert!(receipt.redirected > 0, "{receipt:?}");
        let said = std::fs::read_to_string(self.console()).unwrap_or_default();
        let said = said.get(said.len().saturating_sub(2000)..).unwrap_or(&said);
        assert!(
            probe.lost <= pause / 2 + 10,
            "{} lost in a pause of {pause} ms: {receipt:?}\n{said}",
            probe.lost
        );
    }

    /// The guest of a domain on a host, to run commands in.
    ///
    /// # Panics
    /// If the domain does not run there.
    #[must_use]
    pub fn guest(&self, at: &Libvirt, domain: &str) -> Guest {
        let socket = self.dir.join("exec0.sock");
        _ = std::fs::remove_file(&socket);
        std::os::unix::fs::symlink(at.channel(domain, CHANNEL), socket).unwrap();
        let process = Process::of(at.pid(domain)).unwrap();
        Guest::open(GuestRecord { name: VM.to_owned(), dir: self.dir.clone(), process })
    }
}

/// Whether a host has a device.
///
/// # Panics
/// If there is no such host.
#[must_use]
pub fn has_link(world: &World, host: &str, name: &str) -> bool {
    Links::in_netns(world.lab.host(host).unwrap().netns()).unwrap().find(name).unwrap().is_some()
}

/// Where the site has a port.
#[must_use]
pub fn host_of(world: &World, port: &str) -> Option<String> {
    let vms = block_on(world.client.vms()).unwrap();
    let port = vms.into_iter().flat_map(|v| v.ports).find(|p| p.name.to_string() == port);
    port.and_then(|p| p.host).map(|h| h.to_string())
}

/// The guest answers a VM.
///
/// # Panics
/// If it does not within a while.
pub fn answers(world: &World, from: &str) {
    answers_at(world, from, ADDRESS);
}

/// It does at one of its addresses.
///
/// # Panics
/// As above.
pub fn answers_at(world: &World, from: &str, address: &str) {
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let address: IpAddr = address.parse().unwrap();
    until(&format!("{VM} answers {from} at {address}"), BOOT, || {
        let answer = ask(&netns, address, Duration::from_secs(1)).unwrap();
        answer.inspect(|who| assert_eq!(who, VM)).map(drop)
    });
}

/// The virsh processes by which a host's agent hears events.
///
/// # Panics
/// If the host's agent was never started.
#[must_use]
pub fn listening(world: &World, host: &str) -> Vec<Process> {
    let agent = world.lab.host(host).unwrap().record().process.unwrap();
    let file =
        |pid: u32, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let events = all.filter(|pid: &u32| {
        let stat = file(*pid, "stat");
        // The parent stands behind the name, which may hold anything, and the state.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(agent.pid) && file(*pid, "cmdline").contains("qemu-monitor-event")
    });
    events.filter_map(|pid| Process::of(pid).ok()).collect()
}

/// The VM's last receipt.
///
/// # Panics
/// If it has none.
#[must_use]
pub fn newest(world: &World) -> ReceiptView {
    let vm = VM.parse().unwrap();
    let receipts = block_on(world.client.receipts()).unwrap();
    receipts.into_iter().filter(|r| r.vm == vm).max_by_key(|r| r.started_ms).unwrap()
}
