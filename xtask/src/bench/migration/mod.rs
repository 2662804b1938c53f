//! A real guest back and forth between two hosts, under a probe and a TCP stream from a third: what its migration
//! costs on Tenet and on other networks.
//!
//! Contestants take turns round by round, so that a slow minute weighs on all alike.

mod bridges;
mod clock;
mod contestant;
mod fabric;
mod machine;
mod memory;
mod ovn;
mod probe;
mod qmp;
mod result;
mod stream;
mod tenet;

use crate::packages::{self, BUSYBOX, IPROUTE2, QEMU, XZ};
use anyhow::{Context as _, Result, bail};
use contestant::{Contestant, KINDS, Kind};
use result::Results;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tenet_lab::guest::{self, Image};

/// How it is called.
pub const USAGE: &str = "\
cargo xtask bench migration [OPTIONS]: live migrations of a real guest, measured, as root, on an idle machine

  --runs N           migrations of the idle guest per network (100); half of it with shared memory, a quarter with little traffic, a tenth of each other kind
  --methods A,B      Tenet's methods (nvgre,vxlan)
  --kinds A,B        only these of idle,sparse,shared,dirtying,post-copy,ten,ten-shared
  --driven           Tenet's agent on the source has QEMU move the memory; else the bench does, as on all networks
  --ovn              OVN from Debian's packages takes part; they are installed if they are not there
  --minutes N        no new round is begun after that (13)
  --quick            a handful of migrations, into target/bench instead of docs/
  --binary FILE      measure this `tenet` instead of building one
";

/// Failures in a row after which a network takes no further part in a kind.
const ENOUGH: usize = 5;

/// What the command line asks for.
#[derive(Clone, PartialEq, Debug)]
struct Options {
    runs: usize,
    methods: Vec<String>,
    kinds: Vec<Kind>,
    driven: bool,
    ovn: bool,
    time: Duration,
    quick: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let quick = args.iter().any(|a| a == "--quick");
        let mut new = Self {
            runs: if quick { 4 } else { 100 },
            methods: vec!["nvgre".to_owned(), "vxlan".to_owned()],
            kinds: if quick { vec![KINDS[0]] } else { KINDS.to_vec() },
            driven: args.iter().any(|a| a == "--driven"),
            ovn: false,
            time: Duration::from_secs(13 * 60),
            quick,
        };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{arg} needs a value\n\n{USAGE}"));
            match arg.as_str() {
                "--quick" | "--driven" => {}
                "--ovn" => new.ovn = true,
                "--runs" => new.runs = value()?.parse().context("--runs needs a number")?,
                "--minutes" => {
                    let minutes: f64 = value()?.parse().context("--minutes needs a number")?;
                    new.time =
                        Duration::try_from_secs_f64(minutes * 60.0).context("--minutes needs a duration")?;
                }
                "--methods" => new.methods = super::list(value()?, &super::methods::METHODS)?,
                "--kinds" => new.kinds = kinds(value()?)?,
                other => bail!("`{other}` is unknown\n\n{USAGE}"),
            }
        }
        anyhow::ensure!(new.runs > 0, "no run, no figure");
        Ok(new)
    }

    /// Rounds of a kind, each one migration (or one of all at once) of every network.
    fn rounds(&self, kind: Kind) -> usize {
        match kind.at_once {
            1 if kind.sparse => self.runs.div_ceil(4),
            1 if kind.shared => self.runs.div_ceil(2),
            1 if !kind.dirtying && !kind.postcopy => self.runs,
            1 => self.runs.div_ceil(10),
            _ => self.runs.div_ceil(50).max(2),
        }
    }
}

fn kinds(text: &str) -> Result<Vec<Kind>> {
    let find = |name: &str| KINDS.into_iter().find(|k| k.option == name);
    text.split(',').map(|n| find(n).with_context(|| format!("kind `{n}` is unknown\n\n{USAGE}"))).collect()
}

/// Measures and writes what came out, however far it got.
///
/// # Errors
/// If nothing can be measured at all.
pub fn run(root: &Path, tenet: &Path, args: &[String]) -> Result<()> {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(args)?;
    let end = Instant::now() + options.time;
    packages::ensure(&[IPROUTE2, QEMU, BUSYBOX, XZ])?;
    let folder = Folder::new()?;
    if let Some(why) = guest::missing() {
        bail!("no guest can run here: {why}");
    }
    let image = Image::build()?;
    let mut results = Results::new(root, options.quick)?;
    let guests = options.kinds.iter().map(|k| k.at_once).max().unwrap_or(1);
    let mut all = contestants(tenet, &options, guests, &image, &folder.0, &mut results);
    for kind in &options.kinds {
        measure(*kind, &options, &mut all, end, &mut results);
        results.write()?;
    }
    drop(all);
    print!("{}", results.text());
    results.write()?;
    println!("written to {}", results.place());
    results.verdict()
}

/// Those that can be built; the others are named with the reason.
fn contestants(
    tenet: &Path,
    options: &Options,
    guests: usize,
    image: &Image,
    folder: &Path,
    results: &mut Results,
) -> Vec<Contestant> {
    let prefix = format!("tm{:x}", std::process::id());
    let mut fabrics: Vec<(String, Result<Box<dyn fabric::Fabric>>)> = Vec::new();
    println!("building the networks");
    for (name, learn) in [(result::BASELINE, true), (bridges::FLOODING, false)] {
        let bridges = bridges::Bridges::up(&prefix, guests, learn);
        fabrics.push((name.to_owned(), bridges.map(|b| Box::new(b) as Box<dyn fabric::Fabric>)));
    }
    match tenet::Site::up(tenet, &options.methods, guests, options.driven) {
        Ok(site) => fabrics.extend(options.methods.iter().map(|method| {
            let new = tenet::Tenet::new(&site, method, guests);
            (format!("Tenet {method}"), new.map(|t| Box::new(t) as Box<dyn fabric::Fabric>))
        })),
        Err(e) => fabrics.push(("Tenet".to_owned(), Err(e))),
    }
    if options.ovn {
        let ovn = ovn::Ovn::up(&prefix, folder, guests).map(|o| Box::new(o) as Box<dyn fabric::Fabric>);
        fabrics.push((ovn::NAME.to_owned(), ovn));
    }
    let mut all = Vec::new();
    for (name, fabric) in fabrics {
        match fabric {
            Ok(fabric) => all.push(Contestant::new(fabric, image, folder)),
            Err(e) => results.refuse(&name, "all", &format!("{e:#}")),
        }
    }
    all
}

/// All rounds of a kind.
fn measure(kind: Kind, options: &Options, all: &mut [Contestant], end: Instant, results: &mut Results) {
    let rounds = options.rounds(kind);
    let mut failures = vec![0; all.len()];
    for round in 0..rounds {
        let part: Vec<usize> = (all.iter().zip(&failures).enumerate())
            .filter(|(_, (c, failures))| {
                **failures < ENOUGH && takes_part(c.fabric.name(), kind, options, round)
            })
            .map(|(at, _)| at)
            .collect();
        for at in order(part.len(), round).into_iter().filter_map(|place| part.get(place).copied()) {
            let (Some(contestant), Some(failures)) = (all.get_mut(at), failures.get_mut(at)) else {
                continue;
            };
            let name = contestant.fabric.name().to_owned();
            if Instant::now() > end {
                println!("time is up after {round} rounds of {}", kind.name);
                return;
            }
            let samples = contestant.ready(kind, round).map(|()| contestant.migrate(kind));
            let mut failed = false;
            for sample in samples.unwrap_or_else(|e| vec![Err(e)]) {
                let told = match sample {
                    Ok(sample) => results.add(sample),
                    Err(e) => {
                        failed = true;
                        results.failed(&name, kind.name, &format!("{e:#}"))
                    }
                };
                println!("{} {}/{rounds}  {told}", kind.name, round + 1);
            }
            *failures = if failed { *failures + 1 } else { 0 };
            if *failures == ENOUGH {
                results.refuse(&name, kind.name, "it failed again and again");
            }
        }
    }
    for contestant in all.iter_mut() {
        contestant.leave(kind);
    }
}

/// Who is there for comparison takes part in every fourth round of a long run.
fn takes_part(name: &str, kind: Kind, options: &Options, round: usize) -> bool {
    let seldom = [ovn::NAME, bridges::FLOODING].contains(&name);
    // Ten guests on bridges that flood would only be a load.
    let out = name == bridges::FLOODING && kind.at_once > 1;
    !(out || seldom && kind.at_once == 1 && !round.is_multiple_of(4) && options.runs > 20)
}

/// In which order `n` take their turns in a round.
///
/// Whoever comes right after another one meets the machine as that one left it (processor caches, agents that have
/// just been at work). So everybody follows everybody else equally often: rows of a Latin square that is balanced for
/// such carry-over (E. J. Williams, 1949), and for odd `n` their mirror images, too. Simply going round would have
/// everybody follow the same one each time.
fn order(n: usize, round: usize) -> Vec<usize> {
    if n == 0 {
        return Vec::new();
    }
    // The rounds in which the same ones take part may be every fourth only: their shifts must differ all the same.
    let shift = round + round / n;
    let mut row: Vec<usize> = (0..n)
        .map(|i| if i % 2 == 0 { i / 2 } else { n - i.div_ceil(2) })
        .map(|place| (place + shift) % n)
        .collect();
    if n % 2 == 1 && (round / n) % 2 == 1 {
        row.reverse();
    }
    row
}

/// A folder that ends with its handle.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tenet-bench-migration-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("TENET_BENCH_KEEP").is_none() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn everybody_follows_everybody_else_about_equally_often() {
        for n in 1..=6 {
            let mut follows = vec![vec![0; n]; n];
            let rounds = 2 * n * n;
            for round in 0..rounds {
                let row = order(n, round);
                assert_eq!(row.iter().collect::<std::collections::BTreeSet<_>>().len(), n, "{row:?}");
                for pair in row.windows(2) {
                    follows[pair[0]][pair[1]] += 1;
                }
            }
            for (a, row) in follows.iter().enumerate() {
                let others = row.iter().enumerate().filter(|(b, _)| *b != a);
                let (min, max) = others.fold((rounds, 0), |(min, max), (_, n)| (min.min(*n), max.max(*n)));
                assert!(n == 1 || max == min, "{n}: {a} is followed {row:?} times");
            }
        }
        // Only in every fourth round four take part: each has each place in it.
        let firsts: std::collections::BTreeSet<_> = (0..16).step_by(4).map(|r| order(4, r)[0]).collect();
        assert_eq!(firsts.len(), 4);
        assert!(order(0, 3).is_empty());
    }

    #[test]
    fn the_full_run_has_a_hundred_of_each_method_and_fewer_of_the_rest() {
        let options = parse(&[]).unwrap();
        assert_eq!(KINDS.map(|k| options.rounds(k)), [100, 25, 50, 10, 10, 2, 2]);
        let options =
            parse(&["--quick", "--kinds", "ten-shared,idle,ten,shared", "--methods", "stt"]).unwrap();
        let of = |name: &str| KINDS.into_iter().find(|k| k.name == name).unwrap();
        let wanted = ["ten at once, shared memory", "idle", "ten at once", "shared memory"].map(of);
        assert_eq!(options.kinds, wanted);
        assert!(USAGE.contains(&format!("only these of {}\n", KINDS.map(|k| k.option).join(","))));
        // QEMU refuses the two together.
        assert!(!KINDS.iter().any(|k| k.shared && k.postcopy));
        assert_eq!((options.methods, options.runs), (vec!["stt".to_owned()], 4));
        for wrong in [&["--kinds", "eleven"][..], &["--methods", "gre"], &["--runs", "0"], &["nvgre"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
