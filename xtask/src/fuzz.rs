//! `cargo xtask fuzz [TARGET…] [--seconds N]`: libFuzzer over the targets in `fuzz/`, on the stable compiler.
//!
//! New inputs go to `fuzz/target/corpus/TARGET`, not into the repository; a finding is left in
//! `fuzz/target/findings/` and becomes a named file of the target's corpus once it is understood.

use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Coverage for libFuzzer without a nightly compiler, and the checks of a debug build.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on --cfg fuzzing";
/// With a target named, a build lands in its folder, and build scripts do without [`FLAGS`].
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const DEFAULT_SECONDS: u32 = 60;
/// Bytes; a frame with headers of all kinds is far shorter.
const LONGEST_INPUT: u32 = 4096;

/// Runs all targets, or those named, one after the other, each for some seconds of one processor.
///
/// # Errors
/// If a target does not build, an argument is wrong, or an input made a target panic.
pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let mut seconds = DEFAULT_SECONDS;
    let mut named = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let value = args.next().context("--seconds needs a number")?;
                seconds = value.parse().with_context(|| format!("--seconds {value}: not a number"))?;
            }
            name => named.push(name.to_owned()),
        }
    }
    let fuzz = root.join("fuzz");
    let all = targets(&fuzz)?;
    if let Some(unknown) = named.iter().find(|n| !all.contains(n)) {
        bail!("there is no fuzz target {unknown}: there are {}", all.join(", "));
    }
    let chosen = if named.is_empty() { all } else { named };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--target", TRIPLE])
        .current_dir(&fuzz)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", fuzz.join("target"))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    let mut failed = Vec::new();
    for target in &chosen {
        if !one(&fuzz, target, seconds)? {
            failed.push(target.as_str());
        }
    }
    ensure!(
        failed.is_empty(),
        "inputs in fuzz/target/findings make these targets panic: {}; put them into the corpus by a telling name, and mend the cause",
        failed.join(", ")
    );
    Ok(())
}

/// The targets, by their files.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(fuzz.join("fuzz_targets")).context("read fuzz/fuzz_targets")? {
        let path = entry.context("read fuzz/fuzz_targets")?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Runs one target; false if it found something.
fn one(fuzz: &Path, target: &str, seconds: u32) -> Result<bool> {
    let grown = fuzz.join("target/corpus").join(target);
    let findings = fuzz.join("target/findings").join(target);
    let seeds = fuzz.join("corpus").join(target);
    for folder in [&grown, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    println!("{target}: {seconds} s");
    let mut command = Command::new(fuzz.join("target").join(TRIPLE).join("release").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .arg(&grown);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    let status = command.status().with_context(|| format!("run the fuzz target {target}"))?;
    Ok(status.success())
}
