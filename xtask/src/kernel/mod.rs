//! `cargo xtask kernel`: Tenet on a kernel that users have, in an emulated machine.
//!
//! The guest is that kernel, its modules, the `tenet` binary and tests of this repository, all in memory. It brings a
//! lab up (hosts and VMs as namespaces of the guest) and runs the basic matrix and the parity of the programs with
//! their reference. Nothing of this machine is touched but the cache.

mod archive;
mod guest;
mod package;
mod verdict;

use crate::packages::{self, BUSYBOX, QEMU, XZ};
use anyhow::{Context as _, Result, bail, ensure};
use archive::Archive;
use package::Kernel;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use verdict::Verdict;

const INIT: &str = include_str!("init.sh");
const DEFAULT: &str = "6.1";
const LIMIT: Duration = Duration::from_secs(900);
/// What hosts and VMs as namespaces need of a kernel, and what Tenet needs.
const MODULES: [&str; 7] = ["veth", "bridge", "tun", "vxlan", "geneve", "cls_bpf", "sch_ingress"];
/// Programs of busybox that the guest's first process calls.
const COMMANDS: [&str; 12] =
    ["sh", "cat", "dmesg", "grep", "insmod", "ip", "mount", "mkdir", "poweroff", "sed", "sleep", "uname"];
/// Tests that run in the guest, with their arguments.
const SUITES: [(&str, &str); 2] = [("parity", "kernel_and_user_space"), ("basic", "")];
/// The emulated machine is slow: labs wait longer, and fewer frames are compared.
const ENVIRONMENT: &str = "export TENET_PATIENCE=20 TENET_PARITY_FRAMES=10000\n";

const USAGE: &str = "\
cargo xtask kernel [--version VERSION|PACKAGE] [--object FILE] [--seconds N]

  --version   a version of Debian's cloud kernel (6.1, 6.12), or the name of a package; 6.1 without it
  --object    the eBPF object that is tried, instead of the one in the repository
  --seconds   the longest that the machine may run; 900 without it";

/// Runs the matrix on a kernel and prints what came out.
///
/// # Errors
/// If something failed there, or it could not be tried.
pub fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    ensure!(std::env::consts::ARCH == "x86_64", "the kernels tried are those for x86-64");
    packages::ensure(&[QEMU, BUSYBOX, XZ])?;
    let cache = root.join("target/kernel");
    let kernel = Kernel::get(&cache, &options.version)?;
    let binaries = build(root)?;
    let files = cache.join(format!("{}-{}.cpio", kernel.release, std::process::id()));
    let content = contents(root, &kernel, &binaries, options.object.as_deref())?;
    fs::write(&files, content).with_context(|| format!("write {}", files.display()))?;
    let log = cache.join(format!("{}.log", kernel.release));

    println!("{} in an emulated machine with two processors", kernel.package);
    let (begin, mut verdict) = (Instant::now(), Verdict::default());
    let booted = guest::boot(&kernel.image()?, &files, &log, options.limit, |line| {
        if let Some(news) = verdict.hear(line) {
            println!("  {:5.0} s  {news}", begin.elapsed().as_secs_f64());
        }
    });
    drop(fs::remove_file(&files));
    report(&kernel, &mut verdict, begin.elapsed(), &log)?;
    booted
}

struct Options {
    version: String,
    object: Option<PathBuf>,
    limit: Duration,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { version: DEFAULT.to_owned(), object: None, limit: LIMIT };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value\n\n{USAGE}"));
            match word.as_str() {
                "--version" => options.version = value()?.clone(),
                "--object" => options.object = Some(value()?.into()),
                "--seconds" => options.limit = Duration::from_secs(value()?.parse().context("--seconds")?),
                other => bail!("`kernel` does not know {other}\n\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

/// Builds the tests with what they start; where each is.
fn build(root: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    // With the features of the workspace, as the tests have been built.
    crate::cargo(root, &["build", "--workspace", "--bin", "tenet"])?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    for (suite, _) in SUITES {
        command.args(["--test", suite]);
    }
    let output = command.current_dir(root).stderr(Stdio::inherit()).output().context("run cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let path = |suite: &str| {
        let is = |a: &&serde_json::Value| a["target"]["name"] == suite && a["executable"].is_string();
        artifacts.iter().find(is).and_then(|a| Some(PathBuf::from(a["executable"].as_str()?)))
    };
    SUITES
        .iter()
        .map(|(suite, _)| Ok((*suite, path(suite).with_context(|| format!("cargo built no {suite}"))?)))
        .collect()
}

/// The guest's files.
fn contents(
    root: &Path,
    kernel: &Kernel,
    binaries: &[(&str, PathBuf)],
    object: Option<&Path>,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/var/lib"] {
        archive.directory(directory);
    }
    archive.script("/init", INIT.as_bytes());
    archive.program("/bin/busybox", Path::new("/bin/busybox"))?;
    for command in COMMANDS {
        archive.link(&format!("/bin/{command}"), "busybox");
    }
    let modules = kernel.modules(&MODULES)?;
    let mut order = String::new();
    for (name, content) in &modules {
        archive.file(&format!("/modules/{name}.ko"), content);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("/modules/order", order.as_bytes());
    let mut environment = ENVIRONMENT.to_owned();
    if let Some(object) = object {
        let content = fs::read(object).with_context(|| format!("read {}", object.display()))?;
        archive.file("/tenet.bpf.o", &content);
        environment.push_str("export TENET_BPF_OBJECT=/tenet.bpf.o\n");
    }
    archive.file("/environment", environment.as_bytes());
    // As in the folder of a build, where tests look for the binary beside them.
    archive.program("/target/debug/tenet", &root.join("target/debug/tenet"))?;
    for (suite, path) in binaries {
        archive.program(&format!("/target/debug/deps/{suite}"), path)?;
    }
    let suites: String = SUITES.iter().map(|(suite, words)| format!("{suite} {words}\n")).collect();
    archive.file("/suites", suites.as_bytes());
    Ok(archive.finish())
}

/// Prints the figures and what the kernel lacks.
fn report(kernel: &Kernel, verdict: &mut Verdict, took: Duration, log: &Path) -> Result<()> {
    if !verdict.lacks.is_empty() {
        println!("\n{} lacks", kernel.release);
        for what in &verdict.lacks {
            println!("  {what}");
        }
    }
    if !verdict.rows.is_empty() {
        println!("\nwhat the tests counted");
        for row in &verdict.rows {
            println!("  {row}");
        }
    }
    let passed = verdict.tests.iter().filter(|(_, result)| result == "ok").count();
    let suites = SUITES.map(|(suite, _)| suite);
    let wrong = verdict.finish(&kernel.release, &suites);
    println!();
    if !wrong.is_empty() {
        let list = wrong.join("\n  ");
        bail!("on {}:\n  {list}\nwhat the machine said is in {}", kernel.release, log.display());
    }
    println!("{}: {passed} tests passed, {:.0} s", kernel.release, took.as_secs_f64());
    Ok(())
}
