//! A guest under QEMU, and its monitor.

use super::clock::Micros;
use super::fabric::{Fabric, PREFIX};
use super::memory::{CAPABILITY, SharedMemory, ensure_not_copied};
use super::qmp::Qmp;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tenet_lab::guest::{Guest, GuestOptions, Image, Nic};

/// How long a guest may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// A guest's memory, in MB.
const MEMORY: u32 = 96;
/// The guest's echo, UDP and TCP.
pub const ECHO: u16 = 7;

/// How the words of a guest begin whose kernel found its memory damaged. QEMU 7.2's emulation loses a write of a page
/// now and then while it moves memory on a busy machine, whatever the network: it was seen on bridges, too.
pub const CRASHED: &str = "the guest's kernel crashed";

/// A running QEMU; it ends with its handle.
pub struct Machine {
    /// Its monitor.
    pub qmp: Qmp,
    /// The host it is on.
    pub at: usize,
    guest: Guest,
    folder: PathBuf,
    /// Its memory, if the QEMU that it moves to is to map the same.
    memory: Option<Arc<SharedMemory>>,
}

/// What QEMU says of a migration that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// When it stopped the guest, if that is known. Frames that come from then on it leaves alone; it says STOP only
    /// when the guest's processors stand still, on a busy machine up to 13 ms later. By its own count, in whole
    /// milliseconds: the end of the migration less its `downtime` (QEMU 7.2, `migration_calculate_complete`). Wrong
    /// after post-copy, whose `downtime` does not last until the end.
    pub stopped: Option<Micros>,
    /// Bytes of memory that it sent, in its own form (a page of zeros takes a few).
    pub transferred: u64,
}

impl Machine {
    /// Starts a guest, on memory that its next QEMU can share or not, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn boot(image: &Image, fabric: &dyn Fabric, nic: usize, folder: &Path, shared: bool) -> Result<Self> {
        let memory = shared.then(|| SharedMemory::new(MEMORY)).transpose()?.map(Arc::new);
        let new = Self::start(image, fabric, nic, 0, folder, None, memory)?;
        new.guest.wait_up(BOOT)?;
        Ok(new)
    }

    /// Starts a QEMU on the other host that waits for a guest.
    ///
    /// # Errors
    /// If QEMU does not start.
    pub fn incoming(
        image: &Image,
        fabric: &dyn Fabric,
        nic: usize,
        source: &Self,
        folder: &Path,
    ) -> Result<Self> {
        let (uri, memory) = (uri(folder), source.memory.clone());
        Self::start(image, fabric, nic, 1 - source.at, folder, Some(uri), memory)
    }

    fn start(
        image: &Image,
        fabric: &dyn Fabric,
        nic: usize,
        at: usize,
        folder: &Path,
        incoming: Option<String>,
        memory: Option<Arc<SharedMemory>>,
    ) -> Result<Self> {
        let card = fabric.nics().get(nic).context("no such guest")?;
        let mac: Vec<String> = card.mac.iter().map(|b| format!("{b:02x}")).collect();
        let mut link = Nic::new(&card.device, mac.join(":").parse()?, card.mtu);
        link.addresses = vec![(card.address.into(), PREFIX)];
        let mut options = GuestOptions::new(&format!("guest-{nic}"), folder);
        options.memory_mb = MEMORY;
        options.nics.push(link);
        options.incoming = incoming;
        options.monitor = fabric.monitor(nic, at);
        for property in fabric.card_properties() {
            options.extra.extend(["-global".into(), format!("virtio-net-pci.{property}").into()]);
        }
        options.extra.extend(memory.iter().flat_map(|m| m.arguments()).map(Into::into));
        let guest = Guest::boot(image, fabric.host(at), options)?;
        let qmp = Qmp::connect(&guest.qmp_path(), Duration::from_secs(20))?;
        Ok(Self { qmp, at, guest, folder: folder.to_owned(), memory })
    }

    /// Where this QEMU takes a guest's memory from.
    #[must_use]
    pub fn uri(&self) -> String {
        uri(&self.folder)
    }

    /// Whether the QEMU that it moves to is to map its memory.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.memory.is_some()
    }

    /// Turns on what the next migration needs, and nothing else: events, post-copy, leaving out memory that both sides
    /// share. Both sides must agree.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn agree(&mut self, postcopy: bool) -> Result<()> {
        let set = |name: &str, on: bool| json!({ "capability": name, "state": on });
        let all = [set("events", true), set("postcopy-ram", postcopy), set(CAPABILITY, self.shares())];
        self.qmp.command("migrate-set-capabilities", &json!({ "capabilities": all })).map(drop)
    }

    /// What QEMU says of the migration that began after a mark and is over.
    ///
    /// # Errors
    /// If it does not, or if it copied memory that both sides share.
    pub fn told(&mut self, mark: usize) -> Result<Told> {
        let begun = self.qmp.wait(mark, Duration::ZERO, "MIGRATION", Some("setup"))?.at;
        let told = told(begun, &self.qmp.command("query-migrate", &json!({}))?)?;
        if self.shares() {
            ensure_not_copied(told.transferred)?;
        }
        Ok(told)
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

    /// What keeps a guest that says nothing: where its processor is, how far the queues of its card are, and what its
    /// kernel wrote into its log without having got it to the console.
    #[must_use]
    pub fn state(&mut self) -> String {
        if !self.guest.runs() {
            return "nothing is left to look at".to_owned();
        }
        let mut said = vec![self.processor()];
        std::thread::sleep(Duration::from_millis(100));
        said.push(self.processor());
        said.extend((0..2).map(|n| self.queue(n).unwrap_or_else(|e| format!("queue {n}: {e:#}"))));
        said.push(self.log().unwrap_or_else(|e| format!("its memory: {e:#}")));
        said.join("; ")
    }

    /// Where the processor is, and whether it waits for an interrupt (`HLT=1`).
    fn processor(&mut self) -> String {
        let answer = self.qmp.command("human-monitor-command", &json!({ "command-line": "info registers" }));
        let text = answer.map_or_else(|e| format!("{e:#}"), |a| a.as_str().unwrap_or_default().to_owned());
        let of =
            |name: &str| text.split_whitespace().find(|w| w.starts_with(name)).unwrap_or(name).to_owned();
        format!("processor at {} {} {}", of("RIP="), of("RFL="), of("HLT="))
    }

    /// A queue of the network card as QEMU has it: 0 is what the guest receives, 1 what it sends.
    fn queue(&mut self, number: usize) -> Result<String> {
        let all = self.qmp.command("x-query-virtio", &json!({}))?;
        let card = all.as_array().into_iter().flatten().find(|d| d["name"] == "virtio-net");
        let path = &card.context("QEMU knows no virtio-net")?["path"];
        let queue = json!({ "path": path, "queue": number });
        let state = self.qmp.command("x-query-virtio-queue-status", &queue)?;
        let of = |name: &str| state[name].to_string();
        Ok(format!(
            "queue {number}: taken {}, done {}, last told {} (valid {}), in use {}",
            of("last-avail-idx"),
            of("used-idx"),
            of("signalled-used"),
            of("signalled-used-valid"),
            of("inuse"),
        ))
    }

    /// The first complaint in the kernel's log, looked up in the guest's memory.
    fn log(&mut self) -> Result<String> {
        let file = self.folder.join("dump");
        let size = self.qmp.command("query-memory-size-summary", &json!({}))?;
        self.qmp.command("pmemsave", &json!({ "val": 0, "size": size["base-memory"], "filename": file }))?;
        let memory = std::fs::read(&file).context("read the guest's memory");
        _ = std::fs::remove_file(&file);
        let memory = memory?;
        let complaints =
            ["BUG: ", "Oops: ", "general protection fault", "Kernel panic - ", "rcu: INFO: ", "watchdog: "];
        let found: Vec<String> = complaints.iter().filter_map(|c| complaint(&memory, c)).collect();
        Ok(if found.is_empty() {
            "its kernel complains of nothing".to_owned()
        } else {
            format!("{CRASHED}: {}", found.join(" / "))
        })
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

/// A line in memory that begins like this, and is not the pattern that it was made from.
fn complaint(memory: &[u8], begin: &str) -> Option<String> {
    let at =
        memory.windows(begin.len()).enumerate().filter(|(_, w)| *w == begin.as_bytes()).map(|(at, _)| at);
    let line = |at: usize| {
        let rest = memory.get(at..)?.iter().take(120);
        Some(rest.take_while(|b| (b' '..=b'~').contains(*b)).map(|b| char::from(*b)).collect::<String>())
    };
    at.filter_map(line).find(|l| l.len() > begin.len() && !l.contains('%'))
}

fn told(begun: Micros, told: &Value) -> Result<Told> {
    let figure = |name: &str| told.get(name).and_then(Value::as_i64);
    let standing = figure("total-time").zip(figure("downtime"));
    let transferred = told["ram"]["transferred"].as_u64().context("QEMU does not say what it sent")?;
    Ok(Told { stopped: standing.map(|(total, down)| begun + (total - down) * 1000), transferred })
}

fn uri(folder: &Path) -> String {
    format!("unix:{}", folder.join("memory").display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_begins_by_qemus_own_count() {
        // Begun at 5 s, over 400 ms later, the last 30 of them a pause.
        let said = json!({ "total-time": 400, "downtime": 30, "ram": { "transferred": 700, "total": 900 } });
        let wanted = Told { stopped: Some(5_370_250), transferred: 700 };
        assert_eq!(told(5_000_250, &said).unwrap(), wanted);
        let under_way = json!({ "status": "active", "total-time": 400, "ram": { "transferred": 1 } });
        assert_eq!(told(0, &under_way).unwrap().stopped, None);
        assert!(told(0, &json!({ "status": "completed" })).is_err());
    }
}
