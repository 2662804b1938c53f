//! `cargo xtask test`: every test, kernel ones included, and at the end what of them was skipped.

use crate::failures::Failures;
use crate::skips::Skips;
use crate::{
    check_deps,
    packages::{
        self, BUSYBOX, CPIO, ETHTOOL, IPROUTE2, LIBVIRTD, OPENVSWITCH, PING, QEMU, TSHARK, VIRSH, XZ,
    },
};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead, BufReader, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::{path::Path, process::Command, time::Duration};

/// How long what the tests said last may be on its way.
const AFTER: Duration = Duration::from_secs(1);

/// What the command line asks for.
#[derive(PartialEq, Eq, Debug, Default)]
struct Options {
    /// Whether a skip that is not known is a failure.
    no_skips: bool,
    /// How many tests that failed may be tried once more.
    again: usize,
    /// Parts of what may be skipped.
    known: Vec<String>,
    /// For the tests.
    rest: Vec<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut new = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--no-skips" => new.no_skips = true,
                "--again" => {
                    let number = args.next().and_then(|n| n.parse().ok());
                    new.again = number.context("--again needs how many tests may be tried once more")?;
                }
                "--may-skip" => {
                    let known = args.next().filter(|k| !k.is_empty());
                    new.known
                        .push(known.context("--may-skip needs a part of the reason or the name")?.clone());
                }
                _ => new.rest.push(arg.clone()),
            }
        }
        Ok(new)
    }
}

/// Installs what is missing, checks the committed eBPF object against its sources and the crates' edges, then runs
/// all tests of the workspace and lists what was skipped. `args` go to the tests, but for `--no-skips` (a skip is a
/// failure), `--may-skip TEXT` (one whose line has this in it is not) and `--again N` (if no more than N tests failed,
/// these run once more, and are told as `FLAKY` if they pass then: real kernels and guests on a busy machine).
///
/// # Errors
/// The first thing that failed.
pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    packages::ensure(&[
        IPROUTE2,
        PING,
        TSHARK,
        ETHTOOL,
        OPENVSWITCH,
        QEMU,
        BUSYBOX,
        XZ,
        CPIO,
        LIBVIRTD,
        VIRSH,
    ])?;
    crate::ebpf::check(root)?;
    check_deps::run(root)?;
    // The end-to-end tests start the real binary, which `cargo test` alone would not build.
    crate::cargo(root, &["build", "--workspace"])?;
    // Compiled first, so that cargo can show its progress.
    crate::cargo(root, &["test", "--workspace", "--no-run"])?;
    let mut skips = Skips::default();
    let mut failures = Failures::default();
    let mut passed = tests(root, &options.rest, &mut skips, &mut failures)?;
    if let Some(names) = failures.worth_another(options.again).filter(|_| !passed) {
        println!("\n{} failed, and run once more: {}", names.len(), names.join(", "));
        let flags = options.rest.iter().filter(|a| a.starts_with("--"));
        let args: Vec<String> = ["--exact".to_owned()].iter().chain(flags).chain(&names).cloned().collect();
        let mut second = Failures::default();
        passed = tests(root, &args, &mut skips, &mut second)? && second.missing(&names).is_empty();
        if passed {
            println!("\nFLAKY: failed once and passed then: {}", names.join(", "));
        }
    }
    print!("\n{}", skips.list(&options.known));
    if !passed {
        bail!("cargo test failed");
    }
    match skips.unknown(&options.known) {
        n if options.no_skips && n > 0 => bail!(
            "{n} of what was SKIPPED should have run: mend what is missing, or allow it by --may-skip with a part of its line"
        ),
        _ => Ok(()),
    }
}

/// Runs the tests and passes on what they say; whether all of them passed. Tests' output is captured unless they fail,
/// and so are most of the words by which they say that they skip something: the runner shows all of it, and we leave
/// out what nobody wants to read.
fn tests(root: &Path, args: &[String], skips: &mut Skips, failures: &mut Failures) -> Result<bool> {
    // One pipe for both, so that lines stay in their order.
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]).args(args);
    command.current_dir(root).stdout(writer.try_clone().context("make a pipe")?).stderr(writer);
    let mut child = command.spawn().context("run cargo")?;
    // Ours of the pipe's ends must be closed for it to end with the tests.
    drop(command);
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || read(BufReader::new(reader), &to));
    let mut out = std::io::stdout();
    loop {
        match lines.recv_timeout(AFTER) {
            Ok(bytes) => {
                let line = String::from_utf8_lossy(&bytes);
                failures.hear(&line);
                if skips.hear(line.trim_end_matches(['\n', '\r'])) {
                    // Whoever listens may have gone; the tests go on.
                    _ = out.write_all(&bytes).and_then(|()| out.flush());
                }
            }
            // A process that a test has left behind may hold the pipe for ever.
            Err(RecvTimeoutError::Timeout) if child.try_wait().context("run cargo")?.is_none() => {}
            Err(_) => return Ok(child.wait().context("run cargo")?.success()),
        }
    }
}

/// Hands on lines until there are no more.
fn read(mut from: impl BufRead, to: &mpsc::Sender<Vec<u8>>) {
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0)
        && to.send(std::mem::take(&mut bytes)).is_ok()
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_us_goes_to_the_tests() {
        let parse = |line: &str| Options::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let options = parse("--no-skips taps --may-skip ../shared --again 2 --test-threads=1").unwrap();
        let rest = vec!["taps".to_owned(), "--test-threads=1".to_owned()];
        assert_eq!(options, Options { no_skips: true, again: 2, known: vec!["../shared".to_owned()], rest });
        assert!(parse("--may-skip").is_err() && parse("--again few").is_err());
    }
}
