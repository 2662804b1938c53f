//! A guest under QEMU, and its monitor.

use super::fabric::{Fabric, PREFIX};
use super::qmp::Qmp;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tenet_lab::guest::{Guest, GuestOptions, Image, Nic};

/// How long a guest may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// The guest's echo, UDP and TCP.
pub const ECHO: u16 = 7;

/// How the words of a guest begin whose kernel found its memory damaged. QEMU 7.2's emulation loses a write of a page
/// now and then while it moves memory on a busy machine, whatever the network.
pub const CRASHED: &str = "the guest's kernel crashed";

/// A running QEMU; it ends with its handle.
pub struct Machine {
    /// Its monitor.
    pub qmp: Qmp,
    /// The host it is on.
    pub at: usize,
    guest: Guest,
    folder: PathBuf,
}

impl Machine {
    /// Starts a guest and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn boot(image: &Image, fabric: &dyn Fabric, nic: usize, folder: &Path) -> Result<Self> {
        let new = Self::start(image, fabric, nic, 0, folder, None)?;
        new.guest.wait_up(BOOT)?;
        Ok(new)
    }

    /// Starts a QEMU that waits for a guest from elsewhere.
    ///
    /// # Errors
    /// If QEMU does not start.
    pub fn incoming(
        image: &Image,
        fabric: &dyn Fabric,
        nic: usize,
        at: usize,
        folder: &Path,
    ) -> Result<Self> {
        let uri = uri(folder);
        Self::start(image, fabric, nic, at, folder, Some(uri))
    }

    fn start(
        image: &Image,
        fabric: &dyn Fabric,
        nic: usize,
        at: usize,
        folder: &Path,
        incoming: Option<String>,
    ) -> Result<Self> {
        let card = fabric.nics().get(nic).context("no such guest")?;
        let mac: Vec<String> = card.mac.iter().map(|b| format!("{b:02x}")).collect();
        let mut link = Nic::new(&card.device, mac.join(":").parse()?, card.mtu);
        link.addresses = vec![(card.address.into(), PREFIX)];
        let mut options = GuestOptions::new(&format!("guest-{nic}"), folder);
        options.nics.push(link);
        options.incoming = incoming;
        options.monitor = fabric.monitor(nic, at);
        for property in fabric.card_properties() {
            options.extra.extend(["-global".into(), format!("virtio-net-pci.{property}").into()]);
        }
        let guest = Guest::boot(image, fabric.host(at), options)?;
        let qmp = Qmp::connect(&guest.qmp_path(), Duration::from_secs(20))?;
        Ok(Self { qmp, at, guest, folder: folder.to_owned() })
    }

    /// Where this QEMU takes a guest's memory from.
    #[must_use]
    pub fn uri(&self) -> String {
        uri(&self.folder)
    }

    /// Turns events, and post-copy or not, on for the next migration; both sides must agree.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn agree(&mut self, postcopy: bool) -> Result<()> {
        let set = |name: &str, on: bool| json!({ "capability": name, "state": on });
        let all = json!({ "capabilities": [set("events", true), set("postcopy-ram", postcopy)] });
        self.qmp.command("migrate-set-capabilities", &all).map(drop)
    }

    /// What the guest's console and its QEMU say when nothing else does.
    #[must_use]
    pub fn last_words(&self) -> String {
        let console = self.guest.console_log();
        let bad = ["BUG", "Oops", "panic", "fault", "RIP:", "Call Trace"];
        let lines: Vec<&str> = console.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let ill = lines.iter().position(|l| bad.iter().any(|b| l.contains(b)));
        let from = ill.unwrap_or(lines.len().saturating_sub(4));
        let tail: Vec<&str> = lines.get(from..).unwrap_or_default().iter().take(4).copied().collect();
        let said = tail.join(" / ");
        match (ill, self.guest.runs()) {
            (Some(_), _) => format!("{CRASHED}: {said}"),
            (None, true) => format!("QEMU runs; console: {said}"),
            (None, false) => format!("QEMU has ended; console: {said}"),
        }
    }

    /// Has a shell in the guest carry out a line.
    ///
    /// # Errors
    /// If the guest does not answer or the line fails.
    pub fn shell(&self, line: &str) -> Result<()> {
        let output = self.guest.exec(["sh", "-c", line])?;
        anyhow::ensure!(output.code == 0, "`{line}` in the guest: {}", output.stderr());
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The guest is still to end, which removes what it made and leaves its logs.
        if std::env::var_os("TENET_BENCH_KEEP").is_none() {
            _ = std::fs::remove_file(self.folder.join("memory"));
        }
    }
}

fn uri(folder: &Path) -> String {
    format!("unix:{}", folder.join("memory").display())
}
