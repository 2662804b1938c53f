//! From an API call to the kernel's maps, read back: on two real hosts, and on a hundred without kernels.

use super::report::Samples;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::{path::Path, time::Instant};
use tenet_api::rest::RouteSpec;
use tenet_lab::{Lab, LabOptions};

/// Resident memory of a process, in KB (`VmRSS` of proc(5)).
pub fn resident_kb(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok())
        .with_context(|| format!("no VmRSS in {path}"))
}

/// Changes a customer route `rounds` times in a lab of two hosts and measures until both have proven it.
pub fn changes(tenet: &Path, out: &Path, rounds: usize) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let lab = Lab::up(LabOptions::new(&format!("bench{}", std::process::id()), tenet)?).await?;
        let client = lab.client()?;
        let mut times = Samples::default();
        for i in 0..rounds {
            let route = RouteSpec {
                network: "contoso/prod".parse()?,
                prefix: format!("172.16.{}.0/24", i % 256).parse()?,
                next_hop: "10.1.1.12".parse()?,
                metric: 0,
            };
            let begin = Instant::now();
            let reply = client.create_route(&route).await?;
            times.0.push(begin.elapsed().as_secs_f64() * 1e3);
            let applied = reply.applied.as_ref().is_some_and(|a| a.complete);
            anyhow::ensure!(applied, "change {i} was not applied: {reply:?}");
        }
        let (min, max) = times.range();
        println!(
            "API change until both hosts applied it and read it back: median {:.1} ms, min {min:.1}, max {max:.1}, n {rounds}   (promised: under 20 ms)",
            times.median()
        );
        std::fs::write(
            out.join("latency.json"),
            serde_json::to_string_pretty(&json!({ "unit": "ms", "median": times.median(), "samples": times.0 }))?,
        )?;
        lab.down()?;
        Ok(())
    })
}
