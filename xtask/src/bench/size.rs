//! Whether the size of the table costs speed, and what a record takes.

use super::topology::{Contestant, SCENARIOS, Tenet, Topology, Wanted};
use super::{Options, bpf, load, report};
use anyhow::{Context as _, Result};
use report::Samples;
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;

mod time;

/// Lookup records of the large table.
pub const RECORDS: u32 = 500_000;
/// Turns of each program with either table.
const BLOCKS: usize = 200;

/// Measures two Tenets side by side, one with the records of two VMs, one with half a million more in the kernel's
/// maps, and writes `table.json`.
pub fn run(tenet: &Path, out: &Path, options: &Options) -> Result<()> {
    let wanted = Wanted { methods: options.methods.clone(), ..Wanted::default() };
    let records = if options.quick { RECORDS / 10 } else { RECORDS };
    let mut small = Topology::up(tenet, SCENARIOS[0], &wanted)?;
    let mut large = Topology::up(tenet, SCENARIOS[0], &wanted)?;
    // Agents would take strange records out again; the programs go on without them.
    for topology in [&mut small, &mut large] {
        topology.tenet.as_mut().context("no method of Tenet takes part")?.kill_agents();
    }
    let memory = match &large.tenet {
        Some(t) => [fill(t, 0, records)?, fill(t, 1, records)?],
        None => Default::default(),
    };
    let pairs: Vec<(&Contestant, &Contestant)> = small
        .contestants
        .iter()
        .filter(|c| c.name.starts_with("Tenet"))
        .filter_map(|c| Some((c, large.contestants.iter().find(|l| l.name == c.name)?)))
        .collect();
    let (mut results, mut times) = (Vec::new(), Vec::new());
    let mut text = format!("| | few records | {records} more | ratio |\n| --- | --- | --- | --- |\n");
    for (few, many) in pairs {
        type Probe = fn(&[load::Vm; 2], std::time::Duration) -> Result<f64>;
        let probes: [(&str, Probe); 3] = [
            ("TCP ×1 (Gbit/s)", |[a, b], t| load::tcp_bulk(a, b, 1, t).map(|r| r.rate)),
            ("UDP 18 B (kpps)", |[a, b], t| load::udp_small(a, b, 18, t).map(|r| r / 1e3)),
            ("TCP RR (k/s)", |[a, b], t| load::round_trips(a, b, t).map(|r| r.rate / 1e3)),
        ];
        for (title, probe) in probes {
            let (mut of_few, mut of_many) = (Samples::default(), Samples::default());
            for round in 0..options.rounds {
                // Who begins alternates, as the second always finds a warmer machine.
                let mut turns = [(&mut of_few, few), (&mut of_many, many)];
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (samples, contestant) in turns {
                    let value = probe(&contestant.vms, options.time.mul_f64(0.6));
                    samples.0.push(value.with_context(|| format!("{title} by {}", contestant.name))?);
                }
            }
            let ratio = of_many.ratio_to(&of_few);
            println!(
                "{:<14} {title:<16} {:>8} with {} records, {:>8} with {records}: ratio {ratio:.3}{}",
                few.name,
                report::number(of_few.median()),
                2 * wanted.methods.len(),
                report::number(of_many.median()),
                if (ratio - 1.0).abs() <= 0.05 { "" } else { "   (wanted: within 5 %)" },
            );
            _ = writeln!(
                text,
                "| {}, {title} | {} | {} | {ratio:.3} |",
                few.name,
                report::number(of_few.median()),
                report::number(of_many.median())
            );
            results.push(json!({
                "contestant": few.name, "quantity": title, "ratio": ratio, "few": of_few, "many": of_many,
            }));
        }
    }
    let runs = if options.quick { BLOCKS / 10 } else { BLOCKS };
    _ = write!(text, "\n{}", time::HEADING);
    for method in &wanted.methods {
        let both = [&small, &large].map(|t| time::Programs::of(t, method));
        let [few, many] = both;
        for row in time::compare(&few?, &many?, runs)? {
            println!("{}", row.line());
            _ = writeln!(text, "{}", row.markdown());
            times.push(row);
        }
    }
    for (name, bytes) in &memory[0] {
        println!("a record's entry in {name} takes {bytes:.0} B of kernel memory");
    }
    let per_record: f64 = memory[0].iter().map(|(_, bytes)| bytes).sum();
    println!(
        "together {per_record:.0} B a lookup record, {:.0} MB for {records}",
        per_record * f64::from(records) / 1e6
    );
    _ = writeln!(text, "\nA lookup record takes {per_record:.0} B of kernel memory in all maps together:");
    for (name, bytes) in &memory[0] {
        _ = writeln!(text, "* `{name}`: {bytes:.0} B an entry");
    }
    if let Some(page) = &options.page {
        report::splice(page, "table", &text)?;
    }
    let document =
        json!({ "records": records, "bytes_per_record": memory[0], "results": results, "programs": times });
    std::fs::write(out.join("table.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

/// Puts so many records of a network that nobody uses into a host's maps; each map's bytes per entry.
fn fill(tenet: &Tenet, host: usize, records: u32) -> Result<Vec<(String, f64)>> {
    let maps = tenet.bpffs(host).join("maps");
    let mut taken = Vec::new();
    for name in ["RECORDS", "MACS", "REWRITES"] {
        let map = bpf::Map::open(&maps.join(name))?;
        // Only networks that rewrite have entries there.
        let Ok((key, value)) = map.first() else { continue };
        let before = map.memory()?;
        for number in 0..records {
            map.set(&strange(name, &key, number), &value)?;
        }
        let bytes = map.memory()?.saturating_sub(before);
        taken.push((name.to_owned(), bytes as f64 / f64::from(records)));
    }
    Ok(taken)
}

/// A key of a network, subnet or address range that the site does not have.
fn strange(map: &str, like: &[u8], number: u32) -> Vec<u8> {
    let mut key = like.to_vec();
    let spread = number.wrapping_mul(2_654_435_761).to_ne_bytes();
    // RECORDS: network, then the address; MACS: subnet, then the MAC; REWRITES: the address alone.
    let at = match map {
        "RECORDS" => 16,
        "MACS" => 6,
        _ => 12,
    };
    if map != "REWRITES" {
        key[..4].copy_from_slice(&0x00ee_0000_u32.to_ne_bytes());
    } else {
        key[..4].copy_from_slice(&[0xfd, 0xee, 0, 0]);
    }
    key[at..at + 4].copy_from_slice(&spread);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn strange_keys_are_all_different() {
        for (map, length) in [("RECORDS", 20), ("MACS", 12), ("REWRITES", 16)] {
            let keys: BTreeSet<_> = (0..5000).map(|n| strange(map, &vec![1; length], n)).collect();
            assert_eq!(keys.len(), 5000, "{map}");
            assert!(keys.iter().all(|k| k.len() == length));
        }
    }
}
