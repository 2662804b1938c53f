//! `cargo xtask TASK`: everything that is done with this repository besides `cargo build`.

#[cfg(feature = "bench")]
mod bench;
mod check_deps;
mod demo;
mod ebpf;
mod elf;
mod failures;
mod fuzz;
mod kernel;
mod packages;
mod skips;
mod test;

use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask TASK

  demo [--keep] [--clsact] [--vms qemu]   build, then show on this machine what Tenet does (as root)
  test [--no-skips] [--may-skip TEXT] [--again N] [ARGS]
                             every test, kernel ones included (as root), and at the end what was SKIPPED; ARGS go to
                             the tests
  ebpf [--check] [--out F]   rebuild the eBPF object in the repository, or check that it belongs to its sources
  bench [PART] [OPTIONS]     measure (as root, `--help` tells more): methods, table, latency, scale, migration
  kernel [--version V]       the basic matrix on a kernel that users have (Debian's 6.1), in an emulated machine
  fuzz [TARGET] [--seconds N] look for inputs that make a parser panic, a minute each
  check-deps                 the pure crates name nothing impure
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let root = root();
    let done = match task.as_str() {
        "demo" => demo::run(&root, rest),
        "test" => test::run(&root, rest),
        "ebpf" => {
            let out = rest.iter().skip_while(|a| *a != "--out").nth(1).map(PathBuf::from);
            ebpf::run(&root, rest.iter().any(|a| a == "--check"), out.as_deref())
        }
        "bench" => run_bench(&root, rest),
        "kernel" => kernel::run(&root, rest),
        "fuzz" => fuzz::run(&root, rest),
        "check-deps" => check_deps::run(&root),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => {
            eprint!("there is no task {other}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root: the folder above this package.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Builds the release binary and measures it, or measures another that is named.
#[cfg(feature = "bench")]
fn run_bench(root: &Path, args: &[String]) -> Result<()> {
    if let Some(at) = args.iter().position(|a| a == "--binary") {
        let binary = args.get(at + 1).context("--binary needs a path")?;
        let rest = [args.get(..at).unwrap_or_default(), args.get(at + 2..).unwrap_or_default()].concat();
        return bench::run(root, Path::new(binary), &rest);
    }
    cargo(root, &["build", "--release", "--package", "tenet"])?;
    bench::run(root, &root.join("target/release/tenet"), args)
}

/// Starts this program again, optimised and with the part that measures.
#[cfg(not(feature = "bench"))]
fn run_bench(root: &Path, args: &[String]) -> Result<()> {
    let mut command =
        vec!["run", "--quiet", "--release", "--package", "xtask", "--features", "bench", "--", "bench"];
    command.extend(args.iter().map(String::as_str));
    cargo(root, &command)
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new(env!("CARGO")).args(args).current_dir(root).status().context("run cargo")?;
    anyhow::ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}
