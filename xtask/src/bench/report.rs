//! Medians, ratios and their picture.

use serde::Serialize;
use std::fmt::Write as _;

/// Samples of one measurement over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The middle sample (the mean of the two middle ones for an even number); 0 without samples.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut s = self.0.clone();
        s.sort_by(f64::total_cmp);
        match s.len() {
            0 => 0.0,
            n if n % 2 == 1 => s[n / 2],
            n => f64::midpoint(s[n / 2 - 1], s[n / 2]),
        }
    }

    /// The smallest and largest sample.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), s| (a.min(*s), b.max(*s)))
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
    /// What, with its unit: `TCP, 1 stream (Gbit/s)`.
    pub title: String,
    /// Ratio to the first contestant that the project promises, if it does.
    pub target: Option<f64>,
    /// Name and samples; the first is the one that the others are compared with.
    pub contestants: Vec<(String, Samples)>,
}

impl Measurement {
    /// Ratio of contestant `i` to the first.
    #[must_use]
    pub fn ratio(&self, i: usize) -> f64 {
        match (self.contestants.get(i), self.contestants.first()) {
            (Some((_, s)), Some((_, base))) => s.ratio_to(base),
            _ => 0.0,
        }
    }
}

/// The table for people.
#[must_use]
pub fn table(measurements: &[Measurement]) -> String {
    let mut out = String::new();
    for m in measurements {
        let target = m.target.map_or_else(String::new, |t| format!("   (promised: {t:.2})"));
        let _ = writeln!(out, "{}{target}", m.title);
        for (i, (name, s)) in m.contestants.iter().enumerate() {
            let (min, max) = s.range();
            let _ = writeln!(
                out,
                "  {name:<24} median {:>10.2}   min {min:>10.2}   max {max:>10.2}   ratio {:>5.2}",
                s.median(),
                m.ratio(i)
            );
        }
    }
    out
}

/// A bar chart of the ratios as SVG.
#[must_use]
pub fn svg(title: &str, measurements: &[Measurement]) -> String {
    const WIDTH: f64 = 760.0;
    const LEFT: f64 = 250.0;
    const BAR: f64 = 18.0;
    let highest = measurements
        .iter()
        .flat_map(|m| (0..m.contestants.len()).map(|i| m.ratio(i)))
        .fold(1.0_f64, f64::max);
    let scale = (WIDTH - LEFT - 90.0) / highest;
    let mut body = String::new();
    let mut y = 50.0;
    for m in measurements {
        let _ = writeln!(body, r#"<text x="10" y="{:.0}" class="t">{}</text>"#, y + 4.0, m.title);
        y += 14.0;
        for (i, (name, s)) in m.contestants.iter().enumerate() {
            let ratio = m.ratio(i);
            let colour = if i == 0 { "#9aa5b1" } else { "#2563eb" };
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{name}</text><rect x="{LEFT}" y="{y:.0}" width="{:.0}" height="{BAR}" rx="3" fill="{colour}"/><text x="{:.0}" y="{:.0}">×{ratio:.2}  ({:.1})</text>"#,
                LEFT - 8.0,
                y + 13.0,
                ratio * scale,
                LEFT + ratio * scale + 6.0,
                y + 13.0,
                s.median(),
            );
            y += BAR + 4.0;
        }
        y += 18.0;
    }
    let one = LEFT + scale;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0}" viewBox="0 0 {WIDTH} {y:.0}" font-family="system-ui, sans-serif" font-size="12">
<style>.t{{font-weight:600}}</style>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="24" font-size="15" font-weight="600">{title}</text>
<line x1="{one:.0}" y1="40" x2="{one:.0}" y2="{y:.0}" stroke="#d0d7de" stroke-dasharray="4 4"/>
{body}</svg>
"##
    )
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
}
