//! `cargo xtask demo`: builds the binary and becomes its demo, so that Ctrl-C reaches whoever has to clean up.

use crate::packages::{self, BUSYBOX, PING, QEMU, XZ};
use anyhow::{Context as _, Result, bail};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Builds and runs the demo; `args` go to it.
///
/// # Errors
/// If it cannot be built or started; what the demo itself finds is its own exit code.
pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let known = ["--keep", "--clsact", "--vms", "--vms=qemu", "--vms=namespaces", "qemu", "namespaces"];
    if let Some(unknown) = args.iter().find(|a| !known.contains(&a.as_str())) {
        bail!("the demo does not know {unknown}: use --keep, --clsact, --vms qemu or nothing");
    }
    let me = std::fs::metadata("/proc/self").context("read /proc")?.uid();
    if me != 0 {
        bail!("the demo makes network namespaces and loads programs into the kernel: run it as root");
    }
    // The demo itself needs no program of the system; `ping` is what one tries next in a lab that is kept.
    if args.iter().any(|a| a == "--keep") {
        packages::ensure(&[PING])?;
    }
    if args.iter().any(|a| a.ends_with("qemu")) {
        packages::ensure(&[QEMU, BUSYBOX, XZ])?;
    }
    crate::cargo(root, &["build", "--package", "tenet"])?;
    let tenet = root.join("target/debug/tenet");
    let error = Command::new(&tenet).args(["lab", "demo"]).args(args).exec();
    Err(error).with_context(|| format!("start {}", tenet.display()))
}
