//! The picture: ratios to the bridge, a column a scenario, a row a quantity.

use super::report::{Measurement, number, ratio};
use std::fmt::Write as _;

const LABEL: f64 = 118.0;
const CELL: f64 = 250.0;
const BAR: f64 = 13.0;
const STEP: f64 = 17.0;
const HEAD: f64 = 22.0;
const TOP: f64 = 64.0;

/// The chart as SVG.
#[must_use]
pub fn svg(title: &str, measurements: &[Measurement]) -> String {
    let mut scenarios: Vec<&str> = Vec::new();
    let mut titles: Vec<&str> = Vec::new();
    for m in measurements {
        if !scenarios.contains(&m.scenario.as_str()) {
            scenarios.push(&m.scenario);
        }
        if !titles.contains(&m.title.as_str()) {
            titles.push(&m.title);
        }
    }
    let width = 20.0 + scenarios.len() as f64 * (LABEL + CELL);
    let mut body = String::new();
    let mut y = TOP;
    for (x, scenario) in scenarios.iter().enumerate() {
        let left = 10.0 + x as f64 * (LABEL + CELL);
        _ = writeln!(body, r#"<text x="{left:.0}" y="52" class="t">{scenario}</text>"#);
    }
    for title in titles {
        let row: Vec<(usize, &Measurement)> = scenarios
            .iter()
            .enumerate()
            .filter_map(|(x, s)| {
                let found = measurements.iter().find(|m| m.title == title && m.scenario == *s);
                found.map(|m| (x, m))
            })
            .collect();
        let lines = row.iter().map(|(_, m)| m.contestants.len()).max().unwrap_or_default();
        for (x, m) in row {
            cell(&mut body, m, 10.0 + x as f64 * (LABEL + CELL), y);
        }
        y += HEAD + lines as f64 * STEP + 12.0;
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{y:.0}" viewBox="0 0 {width:.0} {y:.0}" font-family="system-ui, sans-serif" font-size="11">
<style>.t{{font-weight:600}}.e{{text-anchor:end}}</style>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="26" font-size="15" class="t">{title}</text>
{body}</svg>
"##
    )
}

/// One quantity in one scenario: a bar per contestant, a line where the bridge is, a tick where the target is.
fn cell(body: &mut String, m: &Measurement, left: f64, top: f64) {
    let less = if m.less_is_better { ", less is better" } else { "" };
    _ = writeln!(body, r#"<text x="{left:.0}" y="{:.0}" class="t">{}{less}</text>"#, top + 12.0, m.title);
    let highest = m.contestants.iter().map(|l| l.to_bridge).filter(|r| r.is_finite()).fold(1.0, f64::max);
    // One that is far beyond all others must not flatten them.
    let highest = highest.min(4.0);
    let scale = (CELL - 100.0) / highest;
    let zero = left + LABEL;
    for (at, line) in m.contestants.iter().enumerate() {
        let y = top + HEAD + at as f64 * STEP;
        let shown = if line.to_bridge.is_finite() { line.to_bridge.min(highest) } else { 0.0 };
        let colour = match line.reached() {
            Some(true) => "#15803d",
            Some(false) => "#b91c1c",
            None if line.name.starts_with("Tenet") => "#2563eb",
            None => "#9aa5b1",
        };
        _ = writeln!(
            body,
            r#"<text x="{:.0}" y="{:.0}" class="e">{}</text><rect x="{zero:.0}" y="{y:.0}" width="{:.1}" height="{BAR}" rx="2" fill="{colour}"/><text x="{:.0}" y="{:.0}">×{} ({} {})</text>"#,
            zero - 6.0,
            y + 10.0,
            line.name,
            shown * scale,
            zero + shown * scale + 5.0,
            y + 10.0,
            ratio(line.to_bridge),
            number(line.median),
            m.unit,
        );
        if let Some(target) = line.target {
            let x = zero + target * scale;
            _ = writeln!(
                body,
                r##"<line x1="{x:.1}" y1="{:.0}" x2="{x:.1}" y2="{:.0}" stroke="#111827" stroke-width="2"/>"##,
                y - 1.0,
                y + BAR + 1.0
            );
        }
    }
    let (one, bottom) = (zero + scale, top + HEAD + m.contestants.len() as f64 * STEP);
    _ = writeln!(
        body,
        r##"<line x1="{one:.1}" y1="{:.0}" x2="{one:.1}" y2="{bottom:.0}" stroke="#6b7280" stroke-dasharray="3 3"/>"##,
        top + HEAD - 3.0
    );
}
