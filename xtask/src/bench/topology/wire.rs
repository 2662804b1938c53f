//! Hosts, wires and VMs.

use super::{PA, Scenario, ip, run};
use crate::bench::load::Vm;
use crate::bench::relay::Relay;
use anyhow::Result;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Mutex;
use tenet_hostnet::{Links, Netns, TapOptions};

/// What tells a VM from the others.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Last octet of its MAC.
    pub mac: u8,
    /// Whether each host's VMs are in a subnet of their own, 10.1.0.0/24 and 10.1.1.0/24, with gateways at .254.
    pub routed: bool,
}

/// Two hosts joined by a wire, and their VMs; removed on drop.
pub struct Side {
    prefix: String,
    /// The hosts' namespaces.
    pub hosts: [String; 2],
    /// All namespaces made.
    made: Mutex<Vec<String>>,
}

impl Side {
    /// The hosts and the wire between them, as the scenario has it.
    pub fn new(prefix: &str, letter: &str, scenario: Scenario) -> Result<Self> {
        let hosts = [1, 2].map(|i| format!("{prefix}-{letter}h{i}"));
        let side = Self { prefix: prefix.to_owned(), hosts, made: Mutex::default() };
        for host in &side.hosts {
            side.namespace(host)?;
        }
        let [h1, h2] = &side.hosts;
        ip(&format!("link add u1 netns {h1} type veth peer name u2 netns {h2}"))?;
        for (i, pa) in PA.iter().enumerate() {
            let (h, u) = (&side.hosts[i], format!("u{}", i + 1));
            if !scenario.offloads {
                // A NIC without offloads: segments on the wire, joined again by the receiver's software.
                ethtool(h, &u, &["tso", "off", "gso", "off", "tx", "off", "gro", "on"])?;
            }
            ip(&format!("-n {h} link set {u} mtu 1600 up"))?;
            ip(&format!("-n {h} addr add {pa}/24 dev {u}"))?;
        }
        Ok(side)
    }

    /// netlink in both hosts.
    pub fn links(&self) -> Result<[Links; 2]> {
        let [a, b] = &self.hosts;
        Ok([Links::in_netns(&Netns::open(a)?)?, Links::in_netns(&Netns::open(b)?)?])
    }

    /// A VM on a veth.
    pub fn vm(&self, host: usize, tag: &str, device: &str, place: Place) -> Result<Vm> {
        let vm = self.name(host, tag)?;
        let h = &self.hosts[host];
        ip(&format!("link add {device} netns {h} type veth peer name eth0 netns {vm}"))?;
        ip(&format!("-n {h} link set {device} mtu 1500 up"))?;
        self.awake(host, vm, place)
    }

    /// A VM on a tap, with the relay that stands for its hypervisor.
    pub fn vm_on_tap(&self, host: usize, tag: &str, device: &str, place: Place) -> Result<(Vm, Relay)> {
        let vm = self.name(host, tag)?;
        let h = &self.hosts[host];
        let at_host = Links::in_netns(&Netns::open(h)?)?;
        let inside = Links::in_netns(&Netns::open(&vm)?)?;
        let options = TapOptions::default();
        let relay = Relay::start(at_host.open_tap(device, options)?, inside.open_tap("eth0", options)?)?;
        ip(&format!("-n {h} link set {device} mtu 1500 up"))?;
        Ok((self.awake(host, vm, place)?, relay))
    }

    fn name(&self, host: usize, tag: &str) -> Result<String> {
        let vm = format!("{}-{tag}v{}", self.prefix, host + 1);
        self.namespace(&vm)?;
        Ok(vm)
    }

    fn awake(&self, host: usize, netns: String, Place { mac, routed }: Place) -> Result<Vm> {
        let subnet = if routed { host as u8 } else { 0 };
        let address = Ipv4Addr::new(10, 1, subnet, host as u8 + 1);
        ip(&format!("-n {netns} link set eth0 address 02:00:00:00:01:{mac:02x} mtu 1500 up"))?;
        ip(&format!("-n {netns} addr add {address}/24 dev eth0"))?;
        if routed {
            ip(&format!("-n {netns} route add default via 10.1.{subnet}.254"))?;
        }
        Ok(Vm { netns, address })
    }

    fn namespace(&self, name: &str) -> Result<()> {
        ip(&format!("netns add {name}"))?;
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name.to_owned());
        ip(&format!("-n {name} link set lo up"))?;
        let quiet =
            ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"];
        run(Command::new("ip").args(["netns", "exec", name]).args(quiet))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for name in self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..) {
            ip(&format!("netns del {name}")).ok();
        }
    }
}

/// Turns offloads of a device on or off.
pub fn ethtool(netns: &str, device: &str, features: &[&str]) -> Result<()> {
    run(Command::new("ip").args(["netns", "exec", netns, "ethtool", "-K", device]).args(features))
}
