//! What came out: a line a migration, a table a kind.

use super::contestant::{KINDS, Sample};
use super::machine::CRASHED;
use crate::bench::report::{Samples, splice};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The network that the others are compared with.
pub const BASELINE: &str = "Linux bridges";

/// All samples so far, and who failed.
pub struct Results {
    samples: Vec<Sample>,
    failures: Vec<Failure>,
    /// Where the samples go.
    json: PathBuf,
    /// The page that gets the tables, if the figures are to be kept.
    page: Option<PathBuf>,
}

/// A migration that did not come to its end, or a network that takes no part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Failure {
    network: String,
    kind: String,
    why: String,
    /// Whether the network took no further part.
    out: bool,
}

impl Failure {
    /// Whether it was the guest's own, and the emulator's: no network has a part in it. Where the emulator had no
    /// memory to copy, a crash is a failure like others.
    fn crashed(&self) -> bool {
        let shared = KINDS.iter().any(|k| k.name == self.kind && k.shared);
        self.why.contains(CRASHED) && !shared
    }
}

impl Results {
    /// None yet; `quick` ones stay out of docs/.
    ///
    /// # Errors
    /// If there is no place for them.
    pub fn new(root: &Path, quick: bool) -> Result<Self> {
        let folder = root.join(if quick { "target/bench" } else { "docs/bench" });
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let page = (!quick).then(|| root.join("docs/migration.md"));
        Ok(Self { samples: Vec::new(), failures: Vec::new(), json: folder.join("migration.json"), page })
    }

    /// Takes a sample; it in one line.
    pub fn add(&mut self, sample: Sample) -> String {
        let opt = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
        let count = |v: Option<u64>| v.map_or_else(|| "–".to_owned(), |v| v.to_string());
        let strays = match (sample.strays.first(), sample.strays.last()) {
            (Some(first), Some(last)) => format!(" (at {first:.1} to {last:.1} ms)"),
            (Some(_) | None, _) => String::new(),
        };
        let line = format!(
            "{:<14} pause {:.1} ms, lost {} of {}, beyond {}{strays}, pings lost {} beyond {}, first reply {} ms (program's {}), TCP lost {} of {} (gap {:.0} ms), redirected {}, held {}, last ack {} ms, stale {}; {:.0} ms and {:.1} MB in all, round trip {} ms",
            sample.network,
            sample.pause,
            sample.lost,
            sample.probes,
            sample.beyond,
            sample.pings_lost,
            sample.pings_beyond,
            opt(sample.first_reply),
            opt(sample.first_answer),
            sample.tcp_lost,
            sample.tcp_sent,
            sample.tcp_gap,
            count(sample.redirected),
            sample.held,
            opt(sample.last_ack),
            count(sample.stale),
            sample.total,
            sample.transferred as f64 / 1e6,
            opt(sample.round_trip),
        );
        let unsent = match sample.unsent {
            0 => String::new(),
            n => format!("; {n} of those lost were not sent by the client's own kernel"),
        };
        self.samples.push(sample);
        line + &unsent
    }

    /// Takes a failure; it in one line.
    pub fn failed(&mut self, network: &str, kind: &str, why: &str) -> String {
        self.note(network, kind, why, false);
        format!("{network:<14} FAILED: {why}")
    }

    /// A network that takes no (further) part.
    pub fn refuse(&mut self, network: &str, kind: &str, why: &str) {
        eprintln!("  {network} takes no part in {kind}: {why}");
        self.note(network, kind, why, true);
    }

    fn note(&mut self, network: &str, kind: &str, why: &str, out: bool) {
        let (network, kind, why) = (network.to_owned(), kind.to_owned(), why.to_owned());
        self.failures.push(Failure { network, kind, why, out });
    }

    /// Where they are written.
    #[must_use]
    pub fn place(&self) -> String {
        let page = self.page.as_ref().map_or_else(String::new, |p| format!(" and {}", p.display()));
        format!("{}{page}", self.json.display())
    }

    /// Writes what there is so far.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self) -> Result<()> {
        let text = format!(
            "{{\n  \"unit\": \"ms\",\n  \"samples\": {},\n  \"failures\": {}\n}}\n",
            lines(&self.samples)?,
            lines(&self.failures)?
        );
        std::fs::write(&self.json, text).with_context(|| format!("write {}", self.json.display()))?;
        match &self.page {
            Some(page) => splice(page, "bench-migration", &self.text()),
            None => Ok(()),
        }
    }

    fn of<'a>(&'a self, network: &'a str, kind: &'a str) -> impl Iterator<Item = &'a Sample> + Clone {
        self.samples.iter().filter(move |s| s.network == network && s.kind == kind)
    }

    fn networks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !names.contains(&sample.network.as_str()) {
                names.push(&sample.network);
            }
        }
        names
    }

    /// The tables, as Markdown.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} migrations on {} CPUs, kernel {}; medians (least to most), times in milliseconds.\n",
            self.samples.len(),
            std::thread::available_parallelism().map_or(0, usize::from),
            std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        );
        for kind in KINDS {
            let rows: Vec<String> =
                self.networks().into_iter().filter_map(|n| self.row(n, kind.name)).collect();
            if rows.is_empty() {
                continue;
            }
            let head = "runs | pause | probes lost | beyond the pause | TCP bytes lost | first reply after RESUME | program's first answer | frames redirected | last ack | stale records";
            _ = writeln!(out, "\n| {} | {head} |\n|{}", kind.name, " --- |".repeat(11));
            out.push_str(&rows.concat());
        }
        for (network, kind, count) in self.crashes() {
            _ = writeln!(
                out,
                "\n{network}, {kind}: after {count} more migrations the guest's kernel crashed on damaged memory; those are not counted. (Emulated guests do so now and then when they are moved on a busy machine, on OVN and on bridges that flood as on Tenet.)"
            );
        }
        for f in self.failures.iter().filter(|f| !f.crashed()) {
            let what = if f.out { "took no further part" } else { "failed once" };
            _ = writeln!(out, "\n{} {what} ({}): {}.", f.network, f.kind, f.why.replace('\n', " "));
        }
        for line in self.targets() {
            _ = write!(out, "\n* {line}");
        }
        out.push('\n');
        out
    }

    /// How often guests crashed, by network and kind.
    fn crashes(&self) -> Vec<(&str, &str, usize)> {
        let mut all: Vec<(&str, &str, usize)> = Vec::new();
        for f in self.failures.iter().filter(|f| f.crashed()) {
            match all.iter_mut().find(|(network, kind, _)| (*network, *kind) == (&f.network, &f.kind)) {
                Some((_, _, count)) => *count += 1,
                None => all.push((&f.network, &f.kind, 1)),
            }
        }
        all
    }

    fn row(&self, network: &str, kind: &str) -> Option<String> {
        let all = self.of(network, kind);
        let runs = all.clone().count();
        if runs == 0 {
            return None;
        }
        let spread = |values: Vec<f64>| {
            if values.is_empty() {
                return "–".to_owned();
            }
            let samples = Samples(values);
            let (min, max) = samples.range();
            format!("{} ({} to {})", short(samples.median()), short(min), short(max))
        };
        let of = |f: fn(&Sample) -> Option<f64>| spread(all.clone().filter_map(f).collect());
        let sum = |f: fn(&Sample) -> Option<u64>| {
            let values: Vec<u64> = all.clone().filter_map(f).collect();
            if values.is_empty() { "–".to_owned() } else { values.iter().sum::<u64>().to_string() }
        };
        Some(format!(
            "| {network} | {runs} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            of(|s| Some(s.pause)),
            of(|s| Some(s.lost as f64)),
            sum(|s| Some((s.beyond + s.pings_beyond) as u64)),
            sum(|s| Some(s.tcp_lost)),
            of(|s| s.first_reply),
            of(|s| s.first_answer),
            of(|s| s.redirected.map(|r| r as f64)),
            of(|s| s.last_ack),
            sum(|s| s.stale),
        ))
    }

    /// What the project promises of Tenet, each with whether it holds.
    fn targets(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let word = |good: bool| if good { "reached" } else { "**MISSED**" };
        for network in self.networks().into_iter().filter(|n| n.starts_with("Tenet")) {
            let all = self.samples.iter().filter(|s| s.network == network);
            let sum = |f: fn(&Sample) -> u64| all.clone().map(f).sum::<u64>();
            let (beyond, tcp) = (sum(|s| (s.beyond + s.pings_beyond) as u64), sum(|s| s.tcp_lost));
            let (stale, broken) = (sum(|s| s.stale.unwrap_or(0)), sum(|s| u64::from(!s.tcp_intact)));
            let failed =
                self.failures.iter().filter(|f| f.network == network && !f.out && !f.crashed()).count();
            let good = beyond + tcp + stale + broken == 0 && failed == 0;
            lines.push(format!(
                "{network}: {beyond} probes and pings lost beyond the pause, {tcp} TCP bytes lost, {broken} connections broken, {stale} stale records, {failed} migrations failed, wanted 0 in {} migrations: {}",
                all.count(),
                word(good)
            ));
            for kind in KINDS.iter().filter(|k| !k.dirtying && !k.postcopy && k.at_once == 1) {
                let median =
                    |n: &str| Samples(self.of(n, kind.name).filter_map(|s| s.first_reply).collect()).median();
                let (ours, theirs) = (median(network), median(BASELINE));
                if ours.is_finite() && theirs.is_finite() {
                    lines.push(format!(
                        "{network}, {}: first reply {ours:.1} ms after RESUME (median), wanted no later than the bridges' {theirs:.1}: {}",
                        kind.name,
                        word(ours <= theirs)
                    ));
                }
            }
        }
        lines
    }

    /// An error if there is not one sample.
    ///
    /// # Errors
    /// As said.
    pub fn verdict(&self) -> Result<()> {
        anyhow::ensure!(!self.samples.is_empty(), "not one migration came to its end");
        Ok(())
    }
}

/// A JSON array with a line an element, so that two runs can be compared.
fn lines(of: &[impl Serialize]) -> Result<String> {
    let lines = of.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("[\n    {}\n  ]", lines.join(",\n    ")))
}

fn short(n: f64) -> String {
    if n.fract() == 0.0 { format!("{n:.0}") } else { format!("{n:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(network: &str, first_reply: f64, lost: (usize, usize), stale: Option<u64>) -> Sample {
        Sample {
            network: network.into(),
            kind: "idle".into(),
            to: 1,
            resumed: 1,
            pause: 100.5,
            stopping: 0.5,
            total: 400.0,
            transferred: 30_000_000,
            round_trip: Some(0.4),
            probes: 900,
            lost: lost.0,
            lost_at: Default::default(),
            beyond: lost.1,
            held: 0,
            strays: vec![5.0; lost.1],
            first_reply: Some(first_reply),
            first_answer: None,
            pings: 900,
            pings_lost: 0,
            pings_beyond: 0,
            unsent: 0,
            tcp_sent: 1000,
            tcp_lost: 0,
            tcp_gap: 120.0,
            tcp_intact: true,
            redirected: None,
            last_ack: None,
            stale,
        }
    }

    #[test]
    fn tables_tell_medians_and_targets_who_misses_them() {
        let folder = std::env::temp_dir().join(format!("tenet-results-{}", std::process::id()));
        let mut results = Results::new(&folder, true).unwrap();
        for at in [30.0, 20.0, 40.0] {
            results.add(sample(BASELINE, at, (100, 20), None));
            results.add(sample("Tenet nvgre", at - 5.0, (10, 0), Some(0)));
            results.add(sample("Tenet vxlan", at + 5.0, (10, 1), Some(0)));
        }
        results.failed("OVN", "idle", "no memory");
        for _ in 0..2 {
            results.failed("Tenet nvgre", "idle", &format!("the guest is silent; {CRASHED}: BUG"));
        }
        // Not the emulator's: it had nothing to copy.
        results.failed("Tenet vxlan", "shared memory", &format!("the guest is silent; {CRASHED}: Oops"));
        let text = results.text();
        assert!(text.contains("| Linux bridges | 3 | 100.5 (100.5 to 100.5) | 100 (100 to 100) | 60 | 0 | 30 (20 to 40) | – | – | – | – |"), "{text}");
        assert!(text.contains("OVN failed once (idle): no memory."), "{text}");
        assert!(
            text.contains("Tenet nvgre, idle: after 2 more migrations the guest's kernel crashed"),
            "{text}"
        );
        assert!(text.contains("Tenet vxlan failed once (shared memory): the guest is silent; "), "{text}");
        assert!(text.contains("1 migrations failed, wanted 0 in 3 migrations"), "{text}");
        let missed: Vec<&str> = text.lines().filter(|l| l.contains("MISSED")).collect();
        assert!(missed.len() == 2 && missed.iter().all(|l| l.contains("vxlan")), "{text}");
        results.write().unwrap();
        let json: serde_json::Value = serde_json::from_str(
            &std::fs::read_to_string(folder.join("target/bench/migration.json")).unwrap(),
        )
        .unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            (json["samples"].as_array().unwrap().len(), &json["failures"][0]["why"]),
            (9, &"no memory".into())
        );
        assert!(results.verdict().is_ok());
    }
}
