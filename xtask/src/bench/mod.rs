//! `cargo xtask bench`: what the project promises about speed, measured here and now.
//!
//! Contestants alternate inside each round; figures are medians over the rounds and ratios are taken inside a round,
//! because shared machines swing by a factor of two between minutes. No absolute figure fails the bench.

mod latency;
mod load;
mod report;
mod scale;
mod topology;

use crate::packages::{self, IPROUTE2, PING};
use anyhow::{Context as _, Result, bail};
use report::{Measurement, Samples};
use std::{path::Path, time::Duration};
use topology::Topology;

/// Runs the parts named in `args` (`dataplane`, `latency`, `scale`; all without), with `--quick` for one short round.
///
/// # Errors
/// If something does not work at all; a missed target is printed, not an error.
pub fn run(root: &Path, tenet: &Path, args: &[String]) -> Result<()> {
    let quick = args.iter().any(|a| a == "--quick");
    let parts: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    if let Some(unknown) = parts.iter().find(|p| !["dataplane", "latency", "scale"].contains(p)) {
        bail!("no bench is called `{unknown}`: use dataplane, latency or scale");
    }
    let wanted = |p: &str| parts.is_empty() || parts.contains(&p);
    packages::ensure(&[IPROUTE2, PING])?;
    let out = root.join(if quick { "target/bench" } else { "docs/bench" });
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    if wanted("dataplane") {
        let measured = dataplane(tenet, quick)?;
        let title = "NVGRE by Tenet against Linux bridge + vxlan device";
        print!("{}", report::table(&measured));
        std::fs::write(out.join("dataplane.json"), serde_json::to_string_pretty(&measured)?)?;
        std::fs::write(out.join("dataplane.svg"), report::svg(title, &measured))?;
    }
    if wanted("latency") {
        latency::changes(tenet, &out, if quick { 20 } else { 200 })?;
    }
    if wanted("scale") {
        scale::run(tenet, &out)?;
    }
    println!("written to {}", out.display());
    Ok(())
}

fn dataplane(tenet: &Path, quick: bool) -> Result<Vec<Measurement>> {
    let topology = Topology::up(tenet)?;
    let (rounds, time) = if quick { (1, Duration::from_millis(500)) } else { (5, Duration::from_secs(2)) };
    let pairs = [("bridge + vxlan", topology.bridge_vms()), ("tenet nvgre", topology.tenet_vms())];
    type Probe = fn(&[load::Vm; 2], Duration) -> Result<f64>;
    let probes: [(&str, Option<f64>, Probe); 4] = [
        ("TCP, 1 stream (Gbit/s)", Some(1.0), |[a, b], t| load::tcp_bulk(a, b, 1, t)),
        ("TCP, 4 streams (Gbit/s)", None, |[a, b], t| load::tcp_bulk(a, b, 4, t)),
        ("UDP, 18-byte payload (kpps received)", Some(1.5), |[a, b], t| {
            Ok(load::udp_small(a, b, 18, t)? / 1e3)
        }),
        ("TCP 1-byte round trips (per ms)", None, |[a, b], t| {
            let r = load::round_trips(a, b, t)?;
            eprintln!("    p50 {:.1} µs, p99 {:.1} µs", r.p50, r.p99);
            Ok(r.rate / 1e3)
        }),
    ];
    let mut measured: Vec<Measurement> = probes
        .iter()
        .map(|(title, target, _)| Measurement {
            title: (*title).to_owned(),
            target: *target,
            contestants: pairs.iter().map(|(n, _)| ((*n).to_owned(), Samples::default())).collect(),
        })
        .collect();
    for round in 0..rounds {
        for (m, (title, _, probe)) in measured.iter_mut().zip(&probes) {
            for ((name, samples), (_, pair)) in m.contestants.iter_mut().zip(&pairs) {
                let value = probe(pair, time).with_context(|| format!("{title} by {name}"))?;
                eprintln!("  round {} of {rounds}: {title}: {name} {value:.2}", round + 1);
                samples.0.push(value);
            }
        }
    }
    for pid in topology.agents() {
        eprintln!("  agent {pid}: {} KB resident", latency::resident_kb(pid)?);
    }
    Ok(measured)
}
