//! What an outer UDP checksum costs: the kernel's own vxlan device with and without.

use super::load::{self, Vm};
use super::report::{self, Samples};
use super::topology::{SCENARIOS, Topology};
use super::{Options, topology::Contestant};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Name, and the options of the vxlan device: what ratios are taken to comes first.
const KINDS: [(&str, &str); 2] = [("zero", "noudpcsum"), ("computed", "udpcsum")];

type Probe = fn(&[Vm; 2], Duration) -> Result<f64>;

const PROBES: [(&str, Probe); 4] = [
    ("TCP ×1 (Gbit/s)", |[a, b], t| load::tcp_bulk(a, b, 1, t).map(|r| r.rate)),
    ("CPU (s/GB)", |[a, b], t| load::tcp_bulk(a, b, 1, t).map(|r| r.cpu_per_gb)),
    ("UDP 18 B (kpps)", |[a, b], t| load::udp_small(a, b, 18, t).map(|r| r / 1e3)),
    ("TCP RR (k/s)", |[a, b], t| load::round_trips(a, b, t).map(|r| r.rate / 1e3)),
];

/// Measures both side by side, interleaved, with and without offloads on the wire, and writes `checksum.json`.
pub fn run(out: &Path, options: &Options) -> Result<()> {
    let mut results = Vec::new();
    for scenario in SCENARIOS.into_iter().filter(|s| !s.tap && options.scenarios.iter().any(|n| n == s.name))
    {
        let topology = Topology::bridges(scenario, &KINDS)?;
        let [zero, computed] = &topology.contestants[..] else { anyhow::bail!("two take part") };
        for (title, probe) in PROBES {
            let (of_zero, of_computed) = alternate(zero, computed, probe, options).context(title)?;
            let ratio = of_computed.ratio_to(&of_zero);
            println!(
                "{} {title:<16} zero {:>8}, computed {:>8}: ratio {ratio:.3}",
                scenario.name,
                report::number(of_zero.median()),
                report::number(of_computed.median()),
            );
            results.push(json!({
                "scenario": scenario.name, "quantity": title, "ratio": ratio,
                "zero": of_zero, "computed": of_computed,
            }));
        }
    }
    let document = json!({ "rounds": options.rounds, "results": results });
    std::fs::write(out.join("checksum.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

/// Samples of both; who begins alternates, as the second always finds a warmer machine.
pub fn alternate(
    a: &Contestant,
    b: &Contestant,
    probe: Probe,
    options: &Options,
) -> Result<(Samples, Samples)> {
    let (mut of_a, mut of_b) = (Samples::default(), Samples::default());
    for round in 0..options.rounds {
        let mut turns = [(&mut of_a, a), (&mut of_b, b)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (samples, contestant) in turns {
            samples.0.push(probe(&contestant.vms, options.time).with_context(|| contestant.name.clone())?);
        }
    }
    Ok((of_a, of_b))
}
