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

/// Runs all targets, or those named, one after the other, each for some seconds of one processor's time: on a machine
/// that does other things too it takes longer.
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
    println!("{target}: {seconds} s of a processor");
    let (mut used, mut inputs) = (0.0, 0_u64);
    while used < f64::from(seconds) {
        let before = children()?;
        let mut command = Command::new(fuzz.join("target").join(TRIPLE).join("release").join(target));
        command
            .arg(format!("-max_total_time={}", (f64::from(seconds) - used).ceil()))
            .arg(format!("-max_len={LONGEST_INPUT}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-verbosity=0"])
            .arg(&grown);
        if seeds.is_dir() {
            command.arg(&seeds);
        }
        let output = command.output().with_context(|| format!("run the fuzz target {target}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        inputs += executed(&said);
        used += children()? - before;
        if !output.status.success() {
            eprintln!("{said}");
            println!("{target}: a finding after {inputs} inputs in {used:.0} s");
            return Ok(false);
        }
        ensure!(used > 0.0, "{target} ends at once: {said}");
    }
    println!("{target}: {inputs} inputs in {used:.0} s, no finding");
    Ok(true)
}

/// Seconds of processor time that ended children have used (`cutime` and `cstime`, in hundredths).
fn children() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    // The program's name comes second and may hold spaces.
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(13).take(2).filter_map(|t| t.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / 100.0)
}

/// How many inputs libFuzzer says it has run.
fn executed(said: &str) -> u64 {
    let line = said.lines().find_map(|l| l.trim().strip_prefix("stat::number_of_executed_units:"));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        assert_eq!(executed("x\nstat::number_of_executed_units: 1234\nstat::y: 1\n"), 1234);
        assert_eq!(executed(""), 0);
    }

    #[test]
    fn processor_time_of_children_counts() {
        let before = children().unwrap();
        let busy = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
        while children().unwrap() - before < 0.05 {
            assert!(Command::new("sh").args(["-c", busy]).status().unwrap().success());
        }
    }
}
