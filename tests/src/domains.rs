//! Domains of real libvirt daemons on the hosts h1 and h2 of a lab, and what is asked of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tenet_api::rest::ReceiptView;
use tenet_hostnet::Links;
use tenet_lab::Process;
use tenet_lab::guest::Image;
use tenet_lab::tool::{ProbeReport, ask};
use tenet_model::tap_name;

use crate::libvirt::Libvirt;
use crate::{World, binary, block_on, until};

/// The VM of the domain with a guest.
pub const VM: &str = "contoso/lv";
/// Its address.
pub const ADDRESS: &str = "10.1.1.77";
/// The guest's boot, emulated, on a machine that has much to do.
const BOOT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:00:77";

/// Both hosts' daemons.
#[derive(Debug)]
pub struct Hosts {
    /// h1's.
    pub one: Libvirt,
    /// h2's.
    pub two: Libvirt,
    /// Where their agents listen.
    pub sockets: [String; 2],
}

impl Hosts {
    /// Starts them, with Tenet's hook.
    ///
    /// # Panics
    /// If one does not start.
    #[must_use]
    pub fn start(world: &World) -> Self {
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
        Self { one, two, sockets: [socket("h1"), socket("h2")] }
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

/// A domain with a guest that answers.
#[must_use]
pub fn ours(name: &str, network: &str, image: &Image) -> String {
    let tap = tap_name(&format!("{VM}/eth0").parse().unwrap());
    format!(
        "<domain type='qemu'><name>{name}</name>\
         <metadata><tenet:vm xmlns:tenet='urn:tenet:libvirt:1' name='{VM}'>\
         <tenet:port name='eth0' mac='{MAC}' network='{network}' subnet='data' address='{ADDRESS}'/>\
         </tenet:vm></metadata>\
         <memory unit='MiB'>96</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type>\
         <kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tenet.name={VM} \
         tenet.nic=eth0|{ADDRESS}/24|10.1.1.1</cmdline></os>\
         <features><acpi/><apic/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <interface type='ethernet'><mac address='{MAC}'/><target dev='{tap}' managed='no'/>\
         <model type='virtio'/><mtu size='1458'/><rom enabled='no'/></interface>\
         <serial type='file'><source path='{}' append='on'/></serial>\
         <memballoon model='none'/></devices></domain>",
        image.kernel().display(),
        image.initrd().display(),
        console().display()
    )
}

/// What the guest says, on whichever host. Without a console its kernel crashes in slow moves now and then, on plain
/// bridges as well (docs/migration.md).
#[must_use]
pub fn console() -> PathBuf {
    std::env::temp_dir().join(format!("tenet-lv-console-{}.log", std::process::id()))
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
    let netns = world.lab.vm(from).unwrap().netns().clone();
    let address: IpAddr = ADDRESS.parse().unwrap();
    until(&format!("{VM} answers {from}"), BOOT, || {
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

/// What came while the guest stood still waited for it on its new host. Without, at least as many probes would be lost
/// as the pause has milliseconds; QEMU leaves a few unread before it stops.
///
/// # Panics
/// If more was lost.
pub fn waited_for(receipt: &ReceiptView, probe: &ProbeReport) {
    let pause = receipt.pause_us.unwrap_or_else(|| panic!("both libvirts were heard: {receipt:?}")) / 1000;
    assert!(receipt.redirected > 0, "{receipt:?}");
    let said = std::fs::read_to_string(console()).unwrap_or_default();
    let said = said.get(said.len().saturating_sub(2000)..).unwrap_or(&said);
    assert!(
        probe.lost <= pause / 2 + 10,
        "{} lost in a pause of {pause} ms: {receipt:?}\n{said}",
        probe.lost
    );
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
