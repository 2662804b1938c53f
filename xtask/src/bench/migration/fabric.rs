//! What a network under test must be able to do, and what all of them share.

use super::clock::Micros;
use super::qmp::Qmp;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use tenet_hostnet::{Links, Netns, TapOptions};

/// The client's address, on the third host.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Length of the guests' subnet.
pub const PREFIX: u8 = 24;

/// A guest's NIC: a tap of the same name on either host.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The tap.
    pub device: String,
    /// The guest's MAC.
    pub mac: [u8; 6],
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's MTU.
    pub mtu: u32,
}

/// What a network tells about a migration when it is over.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Settled {
    /// Frames that the old host sent on.
    pub redirected: Option<u64>,
    /// From the switch until the last host had acknowledged.
    pub last_ack: Option<Micros>,
    /// Records on any host that still point elsewhere after that.
    pub stale: Option<u64>,
}

/// A network with a client on a third host and guests on two others.
pub trait Fabric: Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &str;
    /// One of the two hosts between which guests move.
    fn host(&self, at: usize) -> &Netns;
    /// Where the client is.
    fn client(&self) -> &Netns;
    /// The guests' NICs.
    fn nics(&self) -> &[Nic];

    /// What the guest's network card needs besides.
    fn card_properties(&self) -> &'static [&'static str] {
        &[]
    }

    /// Where the fabric wants a monitor of its own to the guest's QEMU.
    fn monitor(&self, _nic: usize, _at: usize) -> Option<PathBuf> {
        None
    }

    /// Prepares the destination and has the guest's memory moved; returns when that has begun.
    ///
    /// # Errors
    /// If the network or QEMU refuses.
    fn migrate(&self, nic: usize, to: usize, uri: &str, source: &mut Qmp) -> Result<()>;

    /// Called as soon as the guest runs on the destination, for a network that its mover has to tell; how long it took
    /// all hosts to acknowledge that.
    ///
    /// # Errors
    /// If the network does not take it.
    fn arrived(&self, _nic: usize, _to: usize) -> Result<Option<Micros>> {
        Ok(None)
    }

    /// Called when the guest has answered, or has had its time; returns when the network is done with the move. Asking
    /// for what it tells takes the processors' time, and must not keep the guest from answering.
    ///
    /// # Errors
    /// If it does not get done.
    fn settle(&self, _nic: usize, _to: usize) -> Result<Settled> {
        Ok(Settled::default())
    }

    /// After a failure: the guest will be started anew on the first host.
    ///
    /// # Errors
    /// If the network cannot go back.
    fn reset(&self, nic: usize) -> Result<()>;
}

/// Has QEMU move the guest's memory.
///
/// # Errors
/// What QEMU says.
pub fn move_memory(source: &mut Qmp, uri: &str) -> Result<()> {
    source.command("migrate", &json!({ "uri": uri })).map(drop)
}

/// The NICs of `count` guests; two networks may have the very same ones.
#[must_use]
pub fn nics(tag: &str, count: usize, mtu: u32) -> Vec<Nic> {
    let number = |n: usize| u8::try_from(n + 11).unwrap_or(u8::MAX);
    let nic = |n: usize| Nic {
        device: format!("{tag}-{n}"),
        mac: [0x52, 0x54, 0, 0xb, 0, number(n)],
        address: Ipv4Addr::new(10, 1, 0, number(n)),
        mtu,
    };
    (0..count).map(nic).collect()
}

/// Makes a guest's tap on a host.
///
/// # Errors
/// What the kernel says.
pub fn tap(host: &Netns, nic: &Nic) -> Result<()> {
    let links = Links::in_netns(host)?;
    links.add_tap(&nic.device, TapOptions::default())?;
    links.quiet(&nic.device)?;
    links.set_mtu(&nic.device, nic.mtu)?;
    // Frames wait here while the guest stands still; 1000 of them would be enough for a second.
    run(host.command("ip").args(["link", "set", &nic.device, "txqueuelen", "10000"]))?;
    Ok(links.set_up(&nic.device)?)
}

/// Namespaces that go with their handle.
pub struct Namespaces {
    prefix: String,
    made: Mutex<Vec<String>>,
}

impl Namespaces {
    /// None yet; all names will begin with `prefix`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), made: Mutex::default() }
    }

    /// A new one with loopback up and IPv6 off, so that nothing but what is measured is on the wire.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, name: &str) -> Result<Netns> {
        let name = format!("{}-{name}", self.prefix);
        let netns = Netns::create(&name)?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        let links = Links::in_netns(&netns)?;
        for path in ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
            links.set_sysctl(path, "1")?;
        }
        links.set_up("lo")?;
        Ok(netns)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.made.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            _ = Netns::delete(&name);
        }
    }
}

/// Runs a command; its output.
///
/// # Errors
/// What it says.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
