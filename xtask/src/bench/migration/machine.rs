//! A guest under QEMU. Never with KVM, which is not to be had on every machine and would not be the same on two.

use super::fabric::{Fabric, Nic};
use super::qmp::Qmp;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long a guest may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// The guest's TCP echo.
pub const ECHO: u16 = 7;
const SHELL: u16 = 23;

/// Kernel and initramfs.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel, as an ELF file.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// A running QEMU; it ends with its handle.
pub struct Machine {
    /// Its monitor.
    pub qmp: Qmp,
    /// The host it is on.
    pub at: usize,
    child: Child,
    folder: PathBuf,
}

impl Machine {
    /// Starts a guest and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn boot(image: &Image, fabric: &dyn Fabric, nic: usize, folder: &Path) -> Result<Self> {
        let new = Self::start(image, fabric, nic, 0, folder, None)?;
        let address = fabric.nics().get(nic).context("no such guest")?.address;
        let begin = Instant::now();
        loop {
            let try_it =
                || TcpStream::connect_timeout(&SocketAddr::from((address, ECHO)), Duration::from_secs(1));
            match fabric.client().run(try_it)? {
                Ok(_) => return Ok(new),
                Err(e) if begin.elapsed() > BOOT => {
                    let log = std::fs::read_to_string(new.folder.join("console")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(3).collect();
                    return Err(e)
                        .with_context(|| format!("guest {address} does not serve; it said: {tail:?}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
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
        let uri = format!("unix:{}", folder.join("memory").display());
        Self::start(image, fabric, nic, at, folder, Some(&uri))
    }

    fn start(
        image: &Image,
        fabric: &dyn Fabric,
        nic: usize,
        at: usize,
        folder: &Path,
        incoming: Option<&str>,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let card = fabric.nics().get(nic).context("no such guest")?;
        let monitor = folder.join("qmp");
        let console = folder.join("console");
        _ = std::fs::remove_file(&monitor);
        let mut command = fabric.host(at).command("qemu-system-x86_64");
        command.args(["-M", "pc", "-accel", "tcg,thread=multi,tb-size=32", "-cpu", "qemu64", "-m", "96"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"]);
        command.arg(format!("file:{}", console.display()));
        command.args(["-netdev", &format!("tap,id=n0,ifname={},script=no,downscript=no", card.device)]);
        command.args(["-device", &device(card, fabric.device_options())]);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
        command.args(["-append", &words(card)]);
        command.args(["-qmp", &format!("unix:{},server,nowait", monitor.display())]);
        if let Some(own) = fabric.monitor(nic, at) {
            _ = std::fs::remove_file(&own);
            command.args(["-qmp", &format!("unix:{},server,nowait", own.display())]);
        }
        command.args(incoming.map(|uri| ["-incoming", uri]).into_iter().flatten());
        let log = std::fs::File::create(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("start qemu-system-x86_64")?;
        match Qmp::connect(&monitor, Duration::from_secs(20)) {
            Ok(qmp) => Ok(Self { qmp, at, child, folder: folder.to_owned() }),
            Err(e) => {
                _ = child.kill();
                _ = child.wait();
                let said = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                Err(e.context(format!("QEMU does not answer; it said: {}", said.trim())))
            }
        }
    }

    /// Where this QEMU takes a guest's memory from.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("unix:{}", self.folder.join("memory").display())
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
}

impl Drop for Machine {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Has a shell in the guest run a line.
///
/// # Errors
/// If the guest cannot be reached.
pub fn shell(fabric: &dyn Fabric, nic: usize, line: &str) -> Result<()> {
    use std::io::Write as _;
    let address = fabric.nics().get(nic).context("no such guest")?.address;
    let to = SocketAddr::from((address, SHELL));
    let socket = fabric.client().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let mut socket = socket.with_context(|| format!("connect to {to}"))?;
    writeln!(socket, "{line}; exit")?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The shell ends when it has carried the line out.
    std::io::copy(&mut socket, &mut std::io::sink())?;
    Ok(())
}

fn device(nic: &Nic, options: &str) -> String {
    let mac: Vec<String> = nic.mac.iter().map(|b| format!("{b:02x}")).collect();
    format!("virtio-net-pci,netdev=n0,mac={},romfile={options}", mac.join(":"))
}

fn words(nic: &Nic) -> String {
    let (address, mtu, prefix) = (nic.address, nic.mtu, super::fabric::PREFIX);
    format!(
        "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check vm.ip={address}/{prefix} vm.mtu={mtu}"
    )
}
