//! `cargo xtask bench`: what the project promises about speed, measured here and now.
//!
//! Contestants alternate inside each round; figures are medians over the rounds and ratios are taken inside a round,
//! because shared machines swing by a factor of two between minutes. No absolute figure fails the bench.

mod bpf;
mod chart;
mod checksum;
mod latency;
mod load;
mod methods;
mod migration;
mod relay;
mod report;
mod scale;
mod size;
mod slow;
mod topology;

use crate::packages::{self, ETHTOOL, IPROUTE2, OPENVSWITCH, PING};
use anyhow::{Context as _, Result, bail};
use methods::METHODS;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use topology::SCENARIOS;

const PARTS: [&str; 7] = ["methods", "routed", "table", "latency", "scale", "checksum", "slow"];
const USAGE: &str = "\
cargo xtask bench [PART ...] [OPTIONS]: measure, as root, on an otherwise idle machine

  methods   every method, plain redirect, bridge + vxlan and Open vSwitch in the scenarios S1, S2, S3
  routed    the same with Tenet's VMs in two subnets each
  table     10 against 500,000 lookup records, and the memory of a record
  latency   from an API call to the kernel's maps
  scale     a hundred hosts
  checksum  vxlan devices that compute outer UDP checksums against such that do not (docs/adr/0006)
  slow      STT with and without agents while frames are lost (docs/stt.md)
without PART: all of them

  migration          live migrations of real guests; has options of its own: `migration --help`

  --quick            a short round, into target/bench instead of docs/bench
  --rounds N         rounds (5)
  --seconds S        seconds of a TCP measurement (1.2); others take 0.6 of it
  --methods A,B      only these of nvgre,vxlan,geneve,stt,rewrite
  --scenarios A,B    only these of S1,S2,S3
  --binary FILE      measure this `tenet` instead of building one
  --ovs              install Open vSwitch if it is not there (else it is left out)
  --no-ovs           leave Open vSwitch out
";

/// What the command line asks for.
#[derive(Clone, PartialEq, Debug)]
struct Options {
    parts: Vec<String>,
    quick: bool,
    rounds: usize,
    time: Duration,
    methods: Vec<String>,
    scenarios: Vec<String>,
    ovs: bool,
    install_ovs: bool,
    /// The page that gets the tables, if the figures are to be kept.
    page: Option<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut new = Self {
            parts: Vec::new(),
            quick: args.iter().any(|a| a == "--quick"),
            rounds: 5,
            time: Duration::from_millis(1200),
            methods: METHODS.map(str::to_owned).to_vec(),
            scenarios: SCENARIOS.map(|s| s.name.to_owned()).to_vec(),
            ovs: tenet_tests::ovs::missing().is_none(),
            install_ovs: false,
            page: None,
        };
        if new.quick {
            (new.rounds, new.time) = (1, Duration::from_millis(300));
        }
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{arg} needs a value\n\n{USAGE}"));
            match arg.as_str() {
                "--quick" => {}
                "--rounds" => new.rounds = value()?.parse().context("--rounds needs a number")?,
                "--seconds" => {
                    let seconds: f64 = value()?.parse().context("--seconds needs a number")?;
                    new.time = Duration::try_from_secs_f64(seconds).context("--seconds needs a duration")?;
                }
                "--methods" => new.methods = list(value()?, &METHODS)?,
                "--scenarios" => new.scenarios = list(value()?, &SCENARIOS.map(|s| s.name))?,
                "--ovs" => (new.ovs, new.install_ovs) = (true, true),
                "--no-ovs" => new.ovs = false,
                part if PARTS.contains(&part) => new.parts.push(part.to_owned()),
                other => bail!("`{other}` is unknown\n\n{USAGE}"),
            }
        }
        anyhow::ensure!(new.rounds > 0 && !new.time.is_zero(), "no round, no figure");
        Ok(new)
    }
}

fn list(text: &str, known: &[&str]) -> Result<Vec<String>> {
    let list: Vec<String> = text.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect();
    if let Some(unknown) = list.iter().find(|t| !known.contains(&t.as_str())) {
        bail!("`{unknown}` is unknown: use {}", known.join(","));
    }
    Ok(list)
}

/// Runs what `args` ask for.
///
/// # Errors
/// If something does not work at all; a missed target is printed, not an error.
pub fn run(root: &Path, tenet: &Path, args: &[String]) -> Result<()> {
    if args.first().is_some_and(|a| a == "migration") {
        return migration::run(root, tenet, args.get(1..).unwrap_or_default());
    }
    if args.iter().any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return Ok(());
    }
    let mut options = Options::parse(args)?;
    options.page = (!options.quick).then(|| root.join("docs/bench.md"));
    let wanted = |p: &str| options.parts.is_empty() || options.parts.iter().any(|part| part == p);
    packages::ensure(&[IPROUTE2, PING, ETHTOOL])?;
    if options.install_ovs {
        packages::ensure(&[OPENVSWITCH])?;
    }
    let out = root.join(if options.quick { "target/bench" } else { "docs/bench" });
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    if wanted("methods") {
        methods::run(tenet, &out, &options, false)?;
    }
    if wanted("routed") {
        methods::run(tenet, &out, &options, true)?;
    }
    if wanted("table") {
        size::run(tenet, &out, &options)?;
    }
    if wanted("latency") {
        latency::changes(tenet, &out, if options.quick { 20 } else { 200 })?;
    }
    if wanted("scale") {
        scale::run(tenet, &out)?;
    }
    if wanted("checksum") {
        checksum::run(&out, &options)?;
    }
    if wanted("slow") {
        slow::run(tenet, &out, &options)?;
    }
    println!("written to {}", out.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_says_what_is_measured() {
        let options =
            parse(&["methods", "--rounds", "7", "--methods", "stt,rewrite", "--scenarios", "S3"]).unwrap();
        assert_eq!((options.rounds, options.quick), (7, false));
        assert_eq!(
            (options.methods, options.scenarios),
            (vec!["stt".into(), "rewrite".into()], vec!["S3".into()])
        );
        assert_eq!(parse(&["--quick"]).unwrap().rounds, 1);
        assert_eq!(parse(&["--rounds", "3", "--quick"]).unwrap().rounds, 3);
        for wrong in [&["--methods", "gre"][..], &["dataplan"], &["--rounds"], &["--rounds", "0"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
