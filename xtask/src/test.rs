//! `cargo xtask test`: every test, kernel ones included.

use crate::{
    check_deps,
    packages::{self, BUSYBOX, ETHTOOL, IPROUTE2, LIBVIRTD, OPENVSWITCH, PING, QEMU, TSHARK, VIRSH, XZ},
};
use anyhow::{Context as _, Result, bail};
use std::{path::Path, process::Command};

/// Installs what is missing, checks the committed eBPF object against its sources and the crates' edges, then runs
/// all tests of the workspace. `args` go to the tests.
///
/// # Errors
/// The first thing that failed.
pub fn run(root: &Path, args: &[String]) -> Result<()> {
    packages::ensure(&[IPROUTE2, PING, TSHARK, ETHTOOL, OPENVSWITCH, QEMU, BUSYBOX, XZ, LIBVIRTD, VIRSH])?;
    crate::ebpf::check(root)?;
    check_deps::run(root)?;
    // The end-to-end tests start the real binary, which `cargo test` alone would not build.
    cargo(root, &["build", "--workspace"])?;
    let mut test = vec!["test", "--workspace", "--no-fail-fast"];
    if !args.is_empty() {
        test.push("--");
        test.extend(args.iter().map(String::as_str));
    }
    cargo(root, &test)
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new(env!("CARGO")).args(args).current_dir(root).status().context("run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}
