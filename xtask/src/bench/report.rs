//! Medians, ratios, and their tables.

use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Samples of one measurement over the rounds; one that failed is not a number.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The middle sample (the mean of the two middle ones for an even number); not a number without samples.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut s: Vec<f64> = self.0.iter().copied().filter(|s| s.is_finite()).collect();
        s.sort_by(f64::total_cmp);
        match s.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => s[n / 2],
            n => f64::midpoint(s[n / 2 - 1], s[n / 2]),
        }
    }

    /// The smallest and largest sample.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        let good = self.0.iter().filter(|s| s.is_finite());
        good.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), s| (a.min(*s), b.max(*s)))
    }

    /// Median of the ratios to `base`, taken round by round, so that a slow minute weighs on both alike.
    #[must_use]
    pub fn ratio_to(&self, base: &Self) -> f64 {
        Self(self.0.iter().zip(&base.0).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect()).median()
    }
}

/// One measured quantity for every contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Where it was measured: `S1`.
    pub scenario: String,
    /// Its name: `TCP ×1`.
    pub title: String,
    /// Its unit: `Gbit/s`.
    pub unit: String,
    /// Whether less is better.
    pub less_is_better: bool,
    /// What each gave.
    pub contestants: Vec<Line>,
}

/// One contestant's samples.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// One per round.
    pub samples: Samples,
    /// The median.
    pub median: f64,
    /// The ratio to the bridge.
    pub to_bridge: f64,
    /// The ratio to plain redirect.
    pub to_plain: f64,
    /// The ratio to the bridge that the project wants.
    pub target: Option<f64>,
}

impl Line {
    /// A contestant that has no samples yet.
    #[must_use]
    pub fn new(name: &str, target: Option<f64>) -> Self {
        let none = f64::NAN;
        Self {
            name: name.to_owned(),
            samples: Samples::default(),
            median: none,
            to_bridge: none,
            to_plain: none,
            target,
        }
    }

    /// Whether the target is reached; `None` without one.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        self.target.map(|t| self.to_bridge >= t)
    }
}

impl Measurement {
    /// Works out medians and ratios when all samples are there.
    pub fn finish(&mut self, bridge: &str, plain: &str) {
        let of = |name: &str| self.contestants.iter().find(|c| c.name == name).map(|c| c.samples.clone());
        let (bridge, plain) = (of(bridge).unwrap_or_default(), of(plain).unwrap_or_default());
        for line in &mut self.contestants {
            line.median = line.samples.median();
            line.to_bridge = line.samples.ratio_to(&bridge);
            line.to_plain = line.samples.ratio_to(&plain);
        }
    }

    /// Title with unit.
    #[must_use]
    pub fn heading(&self) -> String {
        let less = if self.less_is_better { ", less is better" } else { "" };
        format!("{}, {} ({}{less})", self.scenario, self.title, self.unit)
    }
}

/// The tables for a terminal.
#[must_use]
pub fn table(measurements: &[Measurement]) -> String {
    let mut out = String::new();
    for m in measurements {
        _ = writeln!(out, "{}", m.heading());
        _ = writeln!(
            out,
            "  {:<18} {:>10} {:>10} {:>10} {:>8} {:>8}   target",
            "", "median", "min", "max", "/bridge", "/plain"
        );
        for line in &m.contestants {
            let (min, max) = line.samples.range();
            _ = writeln!(
                out,
                "  {:<18} {:>10} {:>10} {:>10} {:>8} {:>8}   {}",
                line.name,
                number(line.median),
                number(min),
                number(max),
                ratio(line.to_bridge),
                ratio(line.to_plain),
                verdict(line),
            );
        }
    }
    out
}

/// The same as Markdown: one table a scenario, a column a quantity.
#[must_use]
pub fn markdown(measurements: &[Measurement]) -> String {
    let mut out = String::new();
    let mut scenarios: Vec<&str> = measurements.iter().map(|m| m.scenario.as_str()).collect();
    scenarios.dedup();
    for scenario in scenarios {
        let of: Vec<&Measurement> = measurements.iter().filter(|m| m.scenario == scenario).collect();
        _ = write!(out, "\n| {scenario} |");
        for m in &of {
            _ = write!(out, " {} ({}) |", m.title, m.unit);
        }
        _ = writeln!(out, "\n| --- |{}", " --- |".repeat(of.len()));
        let names = of.first().map(|m| &m.contestants[..]).unwrap_or_default();
        for (at, line) in names.iter().enumerate() {
            _ = write!(out, "| {} |", line.name);
            for line in of.iter().filter_map(|m| m.contestants.get(at)) {
                let bold = if line.reached() == Some(true) { "**" } else { "" };
                let target = line.target.map_or_else(String::new, |t| format!(" (≥ {t:.2})"));
                _ = write!(out, " {} ×{bold}{}{bold}{target} |", number(line.median), ratio(line.to_bridge));
            }
            out.push('\n');
        }
    }
    out
}

/// Puts a text between the marks `<!-- name -->` and `<!-- /name -->` of a page, instead of what is there.
///
/// # Errors
/// If the page cannot be read or written, or lacks the marks.
pub fn splice(page: &Path, name: &str, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let marks = old.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) = marks.with_context(|| format!("{} has no {begin} … {end}", page.display()))?;
    let new = format!("{head}{begin}\n{}\n{end}{tail}", text.trim());
    std::fs::write(page, new).with_context(|| format!("write {}", page.display()))
}

fn verdict(line: &Line) -> String {
    match (line.target, line.reached()) {
        (Some(t), Some(true)) => format!("≥ {t:.2} reached"),
        (Some(t), _) => format!("≥ {t:.2} MISSED"),
        (None, _) => String::new(),
    }
}

/// A figure in as many digits as it deserves.
#[must_use]
pub fn number(n: f64) -> String {
    match n {
        n if !n.is_finite() => "–".to_owned(),
        n if n.abs() >= 100.0 => format!("{n:.0}"),
        n if n.abs() >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// A ratio.
#[must_use]
pub fn ratio(n: f64) -> String {
    if n.is_finite() { format!("{n:.2}") } else { "–".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_taken_inside_each_round() {
        let base = Samples(vec![1.0, 10.0, 2.0]);
        let twice = Samples(vec![2.0, 20.0, 4.0]);
        assert!((twice.ratio_to(&base) - 2.0).abs() < 1e-9);
        assert!((Samples(vec![4.0, 1.0]).median() - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_failed_round_counts_for_nobody() {
        let base = Samples(vec![1.0, f64::NAN, 2.0]);
        let other = Samples(vec![3.0, 9.0, f64::NAN]);
        assert!((other.ratio_to(&base) - 3.0).abs() < 1e-9);
        assert!((other.median() - 6.0).abs() < 1e-9);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn a_page_gets_its_new_table_and_keeps_the_rest() {
        let page = std::env::temp_dir().join(format!("tenet-splice-{}.md", std::process::id()));
        std::fs::write(&page, "a\n<!-- t -->\nold\n<!-- /t -->\nb\n").unwrap();
        splice(&page, "t", "new\n").unwrap();
        let missing = splice(&page, "u", "x");
        let text = std::fs::read_to_string(&page).unwrap();
        std::fs::remove_file(&page).unwrap();
        assert_eq!(text, "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n");
        assert!(missing.is_err());
    }

    #[test]
    fn a_missed_target_is_called_so() {
        let line = |name: &str, samples: Vec<f64>, target| Line {
            samples: Samples(samples),
            ..Line::new(name, target)
        };
        let mut m = Measurement {
            scenario: "S1".into(),
            title: "TCP ×1".into(),
            unit: "Gbit/s".into(),
            less_is_better: false,
            contestants: vec![
                line("bridge", vec![10.0, 12.0], None),
                line("good", vec![11.0, 13.2], Some(1.05)),
                line("bad", vec![9.0, 10.8], Some(1.05)),
                line("gone", vec![f64::NAN, f64::NAN], Some(1.0)),
            ],
        };
        m.finish("bridge", "plain");
        let reached: Vec<_> = m.contestants.iter().map(Line::reached).collect();
        assert_eq!(reached, [None, Some(true), Some(false), Some(false)]);
        let text = table(&[m.clone()]);
        assert_eq!((text.matches("reached").count(), text.matches("MISSED").count()), (1, 2), "{text}");
        assert!(markdown(&[m]).contains("×**1.10** (≥ 1.05)"));
    }
}
