//! Every method against the peers, in three scenarios.

use super::load::{self, Vm};
use super::report::{self, Line, Measurement};
use super::topology::{BRIDGE, Contestant, OVS, PLAIN, SCENARIOS, Scenario, Topology, Wanted};
use super::{Options, bpf, chart, latency};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// All that Tenet offers.
pub const METHODS: [&str; 5] = ["nvgre", "vxlan", "geneve", "stt", "rewrite"];
/// How often a contestant may fail in a scenario before it is left out.
const FAILURES: usize = 3;

/// What is measured: name, unit, whether less is better.
const QUANTITIES: [(&str, &str, bool); 7] = [
    (TCP1, "Gbit/s", false),
    ("TCP ×4", "Gbit/s", false),
    (UDP, "kpps", false),
    (RR, "k/s", false),
    ("RR p50", "µs", true),
    ("RR p99", "µs", true),
    ("CPU", "s/GB", true),
];
const TCP1: &str = "TCP ×1";
const UDP: &str = "UDP 18 B";
const RR: &str = "TCP RR";

/// The ratios to the bridge that the project wants.
fn target(scenario: &str, quantity: &str, method: &str) -> Option<f64> {
    let row = match method {
        "nvgre" | "vxlan" | "geneve" => [1.05, 1.6, 1.03, 1.0, 1.1],
        "rewrite" => [1.0, 1.6, 1.05, 1.0, 1.05],
        "stt" => [1.05, 1.5, 1.0, 0.9, 0.9],
        _ => return None,
    };
    let column = match (scenario, quantity) {
        ("S1", TCP1) => 0,
        ("S1", UDP) => 1,
        ("S1", RR) => 2,
        ("S2", TCP1) => 3,
        ("S3", TCP1) => 4,
        _ => return None,
    };
    row.get(column).copied()
}

/// A program's size, and its time per run while a method carried bulk TCP and small datagrams.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    method: String,
    scenario: String,
    host: usize,
    program: String,
    verified: u32,
    instructions: u32,
    machine_code: u32,
    runs: u64,
    ns_per_run: f64,
}

/// Measures, writes `methods.json` and `methods.svg` into `out`, and the tables into the page. `routed`: the same
/// where each of Tenet's frames goes from one subnet into another; the files' and the tables' name is `routed` then.
pub fn run(tenet: &Path, out: &Path, options: &Options, routed: bool) -> Result<()> {
    let name = if routed { "routed" } else { "methods" };
    let begin = Instant::now();
    let wanted = Wanted { methods: options.methods.clone(), ovs: options.ovs && !routed, routed };
    let (mut measured, mut refused, mut costs, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for scenario in SCENARIOS.into_iter().filter(|s| options.scenarios.iter().any(|n| n == s.name)) {
        eprintln!("{}: {}", scenario.name, scenario.about);
        let topology = Topology::up(tenet, scenario, &wanted)?;
        measured.extend(rounds(&topology, scenario, options));
        if let Some(t) = &topology.tenet {
            for pid in t.agents() {
                // One that has ended has no memory; what it could not do is said above.
                memory.extend(latency::resident_kb(pid));
            }
        }
        costs.extend(costs_of(&topology, scenario, options.time)?);
        refused.extend(topology.refused.iter().map(|(n, why)| format!("{}: {n}: {why}", scenario.name)));
    }
    print!("{}", report::table(&measured));
    println!("programs, while they carried bulk TCP and small datagrams:");
    for c in &costs {
        println!(
            "  {} {:<8} host {} {:<16} verified {:>7}, {:>6} instructions, {:>6} B machine code, {:>9} runs of {:>6.0} ns",
            c.scenario,
            c.method,
            c.host,
            c.program,
            c.verified,
            c.instructions,
            c.machine_code,
            c.runs,
            c.ns_per_run
        );
    }
    for line in &refused {
        println!("NOT MEASURED: {line}");
    }
    let missed: Vec<String> = measured
        .iter()
        .flat_map(|m| m.contestants.iter().map(move |l| (m, l)))
        .filter(|(_, l)| l.reached() == Some(false))
        .map(|(m, l)| format!("{} {} {}: ×{:.2}", m.scenario, m.title, l.name, l.to_bridge))
        .collect();
    println!("targets missed: {}", if missed.is_empty() { "none".to_owned() } else { missed.join("; ") });
    let document = json!({
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "rounds": options.rounds,
        "seconds_per_measurement": options.time.as_secs_f64(),
        "agents_resident_kb": memory,
        "measurements": measured,
        "programs": costs,
        "not_measured": refused,
    });
    std::fs::write(out.join(format!("{name}.json")), serde_json::to_string_pretty(&document)?)?;
    let title = "Ratios to Linux bridge + vxlan device";
    let title = if routed { format!("{title}, Tenet routing") } else { title.to_owned() };
    std::fs::write(out.join(format!("{name}.svg")), chart::svg(&title, &measured))?;
    if let Some(page) = &options.page {
        // One list of programs is enough for a page.
        let costs = if routed { &[] } else { &costs[..] };
        report::splice(page, name, &text(&measured, costs, &refused, &missed, options))?;
    }
    println!("{name} took {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// What the page says.
fn text(
    measured: &[Measurement],
    costs: &[Cost],
    refused: &[String],
    missed: &[String],
    options: &Options,
) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mut out = format!(
        "{} rounds, {} s a TCP measurement, {cpus} CPUs, kernel {}.\n",
        options.rounds,
        options.time.as_secs_f64(),
        kernel.trim()
    );
    out.push_str(&report::markdown(measured));
    let missed = if missed.is_empty() { "none".to_owned() } else { missed.join("; ") };
    _ = write!(out, "\nTargets missed: {missed}.\n");
    for line in refused {
        _ = write!(out, "\nNot measured: {line}.\n");
    }
    if costs.is_empty() {
        return out;
    }
    out.push_str(
        "\nThe programs, as the kernel describes them, and their time per run while bulk TCP and small datagrams \
         crossed (statistics on, which costs some nanoseconds a run itself):\n\n\
         | | host | program | instructions verified | instructions | machine code (B) | ns a run |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for c in costs {
        _ = writeln!(
            out,
            "| {} {} | {} | `{}` | {} | {} | {} | {:.0} |",
            c.scenario, c.method, c.host, c.program, c.verified, c.instructions, c.machine_code, c.ns_per_run
        );
    }
    out
}

/// All rounds of a scenario; within a round the contestants alternate, and each round begins with another.
fn rounds(topology: &Topology, scenario: Scenario, options: &Options) -> Vec<Measurement> {
    let contestants = &topology.contestants;
    let line = |c: &Contestant, quantity| {
        let method = c.name.strip_prefix("Tenet ").unwrap_or_default();
        Line::new(&c.name, target(scenario.name, quantity, method))
    };
    let mut measured: Vec<Measurement> = QUANTITIES
        .iter()
        .map(|(title, unit, less)| Measurement {
            scenario: scenario.name.to_owned(),
            title: (*title).to_owned(),
            unit: (*unit).to_owned(),
            less_is_better: *less,
            contestants: contestants.iter().map(|c| line(c, title)).collect(),
        })
        .collect();
    let mut failures = vec![0; contestants.len()];
    for round in 0..options.rounds {
        for (probe, (quantities, probe_of)) in PROBES.iter().enumerate() {
            for turn in 0..contestants.len() {
                let at = (turn + round) % contestants.len();
                let (c, failed) = (&contestants[at], &mut failures[at]);
                let mut got = vec![f64::NAN; quantities.len()];
                if *failed < FAILURES {
                    match probe_of(&c.vms, options.time) {
                        Ok(values) => got = values,
                        Err(e) => {
                            *failed += 1;
                            eprintln!("  round {}: {} failed: {e:#}", round + 1, c.name);
                        }
                    }
                }
                let shown: Vec<String> = got.iter().map(|n| report::number(*n)).collect();
                eprintln!(
                    "  {} round {} of {}: {}: {} {}",
                    scenario.name,
                    round + 1,
                    options.rounds,
                    QUANTITIES[PROBES[probe].0[0]].0,
                    c.name,
                    shown.join(" ")
                );
                for (quantity, value) in quantities.iter().zip(got) {
                    measured[*quantity].contestants[at].samples.0.push(value);
                }
            }
        }
    }
    for m in &mut measured {
        m.finish(BRIDGE, PLAIN);
    }
    measured
}

type Probe = fn(&[Vm; 2], Duration) -> Result<Vec<f64>>;

/// Each with the numbers of the quantities that it gives.
const PROBES: [(&[usize], Probe); 4] = [
    (&[0, 6], |[a, b], t| load::tcp_bulk(a, b, 1, t).map(|r| vec![r.rate, r.cpu_per_gb])),
    (&[1], |[a, b], t| load::tcp_bulk(a, b, 4, t).map(|r| vec![r.rate])),
    (&[2], |[a, b], t| load::udp_small(a, b, 18, t.mul_f64(0.6)).map(|r| vec![r / 1e3])),
    (&[3, 4, 5], |[a, b], t| {
        load::round_trips(a, b, t.mul_f64(0.6)).map(|r| vec![r.rate / 1e3, r.p50, r.p99])
    }),
];

/// What the programs cost by the kernel's own statistics, method by method; these are off in the rounds above, for
/// they cost time themselves.
fn costs_of(topology: &Topology, scenario: Scenario, time: Duration) -> Result<Vec<Cost>> {
    let Some(tenet) = &topology.tenet else { return Ok(Vec::new()) };
    let all = || -> Result<Vec<Vec<bpf::Program>>> {
        (0..2).map(|host| bpf::programs(&tenet.bpffs(host).join("links"))).collect()
    };
    let _counting = bpf::count_run_time()?;
    let mut costs = Vec::new();
    for c in topology.contestants.iter().filter(|c| c.name != BRIDGE && c.name != PLAIN && c.name != OVS) {
        let method = c.name.strip_prefix("Tenet ").unwrap_or(&c.name);
        let before = all()?;
        let [a, b] = &c.vms;
        let carried = load::tcp_bulk(a, b, 1, time / 2).and_then(|_| load::udp_small(a, b, 18, time / 2));
        if let Err(e) = carried.context("run statistics") {
            eprintln!("  {}: {e:#}", c.name);
            continue;
        }
        for (host, (before, after)) in before.into_iter().zip(all()?).enumerate() {
            for (old, new) in before.iter().zip(&after) {
                let runs = new.runs.saturating_sub(old.runs);
                if runs == 0 {
                    continue;
                }
                costs.push(Cost {
                    method: method.to_owned(),
                    scenario: scenario.name.to_owned(),
                    host: host + 1,
                    program: new.name.clone(),
                    verified: new.verified,
                    instructions: new.instructions,
                    machine_code: new.machine_code,
                    runs,
                    ns_per_run: new.run_ns.saturating_sub(old.run_ns) as f64 / runs as f64,
                });
            }
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_promised() {
        assert_eq!(target("S1", TCP1, "nvgre"), Some(1.05));
        assert_eq!(target("S3", TCP1, "stt"), Some(0.9));
        assert_eq!(target("S1", UDP, "rewrite"), Some(1.6));
        assert_eq!(target("S2", UDP, "nvgre"), None);
        assert_eq!(target("S1", TCP1, ""), None);
    }
}
