//! What it costs STT when the agents, and with them the slow path, are dead: two Tenets side by side, one whose agents
//! live and one whose agents do not, while the wire loses single segments.

use super::checksum::alternate;
use super::topology::{SCENARIOS, Topology, Wanted};
use super::{Options, bpf, load, report};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::path::Path;
use tenet_hostnet::Links;

/// Segments lost of a million.
const LOSSES: [u32; 4] = [0, 100, 1000, 10_000];

/// Measures TCP by STT at several rates of loss, and writes `slow.json`.
pub fn run(tenet: &Path, out: &Path, options: &Options) -> Result<()> {
    let wanted = Wanted { methods: vec!["stt".to_owned()], ..Wanted::default() };
    // Segments on the wire, joined by the receiver: without them there would be no frame in parts.
    let scenario = SCENARIOS[1];
    let living = Topology::up(tenet, scenario, &wanted)?;
    let mut dead = Topology::up(tenet, scenario, &wanted)?;
    dead.tenet.as_mut().context("STT does not take part")?.kill_agents();
    let find = |t: &'_ Topology| t.contestants.iter().position(|c| c.name == "Tenet stt");
    let at = find(&living).zip(find(&dead)).context("STT does not take part")?;
    let mut results = Vec::new();
    for loss in LOSSES {
        let mut held = Vec::new();
        for topology in [&living, &dead] {
            let netns = topology.tenet.as_ref().context("STT does not take part")?.host(1);
            let device = Links::in_netns(netns)?.index("u2")?;
            held.push(netns.run(|| bpf::lose(device, loss))??);
        }
        let (with, without) = alternate(
            &living.contestants[at.0],
            &dead.contestants[at.1],
            |[a, b], t| load::tcp_bulk(a, b, 1, t).map(|r| r.rate),
            options,
        )?;
        let ratio = without.ratio_to(&with);
        println!(
            "{:>5} of a million lost: {:>8} Gbit/s with agents, {:>8} without: ratio {ratio:.3}",
            loss,
            report::number(with.median()),
            report::number(without.median()),
        );
        results.push(json!({ "lost_of_million": loss, "ratio": ratio, "with": with, "without": without }));
    }
    let document = json!({ "rounds": options.rounds, "scenario": scenario.name, "results": results });
    std::fs::write(out.join("slow.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}
