//! How long the programs themselves run with few and with many records: by the kernel's clock around one run, many
//! thousand times, in turns. A busy machine disturbs some runs and no median.

use super::super::bpf::Runner;
use super::super::report::Samples;
use super::super::topology::Topology;
use anyhow::{Context as _, Result};
use serde::Serialize;
use tenet_hostnet::{Links, Netns};
use tenet_tests::frame::{IPV4, Packet};

/// Runs in a turn.
const TURN: usize = 100;
/// `TC_ACT_REDIRECT`: the program knew where the frame belongs.
const REDIRECT: u32 = 7;

/// Heads the rows.
pub const HEADING: &str = "\
Time of the programs alone for a datagram of 18 bytes, by `BPF_PROG_TEST_RUN`, one run at a time, in turns:\n\n\
| | few records (ns) | many (ns) | ratio |\n| --- | --- | --- | --- |\n";

/// One program of one method with either table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    method: String,
    program: &'static str,
    runs: usize,
    /// Medians, nanoseconds.
    few: f64,
    many: f64,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.many / self.few
    }

    /// For the terminal.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { method, program, runs, few, many } = self;
        let ratio = self.ratio();
        let verdict = if (ratio - 1.0).abs() <= 0.05 { "" } else { "   (wanted: within 5 %)" };
        format!(
            "{method:<8} {program:<10} alone: {few:>5.0} ns with few records, {many:>5.0} ns with many: ratio {ratio:.3}, {runs} runs each{verdict}"
        )
    }

    /// For the page.
    #[must_use]
    pub fn markdown(&self) -> String {
        format!(
            "| {}, `{}` | {:.0} | {:.0} | {:.3} |",
            self.method,
            self.program,
            self.few,
            self.many,
            self.ratio()
        )
    }
}

/// A program, where it runs, and a frame that it carries.
struct Case {
    name: &'static str,
    runner: Runner,
    netns: Netns,
    ifindex: u32,
    frame: Vec<u8>,
}

/// The two programs that a datagram from the first VM to the second passes.
pub struct Programs {
    method: String,
    cases: [Case; 2],
}

impl Programs {
    /// Finds them and makes the frames.
    ///
    /// # Errors
    /// If a program is not there or does not carry its frame.
    pub fn of(topology: &Topology, method: &str) -> Result<Self> {
        let tenet = topology.tenet.as_ref().context("Tenet does not take part")?;
        let contestant = topology.contestants.iter().find(|c| c.name.strip_prefix("Tenet ") == Some(method));
        let vms = &contestant.with_context(|| format!("{method} does not take part"))?.vms;
        let mac = |links: &Links, name: &str| -> Result<[u8; 6]> {
            links.get(name)?.mac.with_context(|| format!("{name} has no MAC"))
        };
        let mut macs = Vec::new();
        for vm in vms {
            macs.push(mac(&Links::in_netns(&Netns::open(&vm.netns)?)?, "eth0")?);
        }
        let packet = Packet::udp((vms[0].address, 7000), (vms[1].address, 7000), &[0; 18]);
        let frame = [&macs[1][..], &macs[0], &IPV4.to_be_bytes(), &packet.bytes()].concat();
        let case = |host: usize, name, device: &str, frame| -> Result<Case> {
            let netns = tenet.host(host).clone();
            let ifindex = Links::in_netns(&netns)?.index(device)?;
            Ok(Case {
                name,
                runner: Runner::find(&tenet.bpffs(host).join("links"), name)?,
                netns,
                ifindex,
                frame,
            })
        };
        let port = case(0, "port_in", &format!("vm-{method}"), frame)?;
        // What the first program makes of the frame is what the wire brings to the second.
        let mut outer = port.once()?;
        let uplink = mac(&Links::in_netns(tenet.host(1))?, "u2")?;
        outer.get_mut(..6).context("a frame without a header")?.copy_from_slice(&uplink);
        let uplink = case(1, "uplink_in", "u2", outer)?;
        uplink.once()?;
        Ok(Self { method: method.to_owned(), cases: [port, uplink] })
    }
}

impl Case {
    /// One run; the frame after it.
    fn once(&self) -> Result<Vec<u8>> {
        let (verdict, frame, _) = self.netns.run(|| self.runner.run(&self.frame, self.ifindex))??;
        anyhow::ensure!(verdict == REDIRECT, "`{}` does not carry the frame: verdict {verdict}", self.name);
        Ok(frame)
    }

    /// A turn; how long each run took, in nanoseconds.
    fn turn(&self) -> Result<Vec<f64>> {
        self.netns.run(|| {
            (0..TURN)
                .map(|_| {
                    let (verdict, _, took) = self.runner.run(&self.frame, self.ifindex)?;
                    anyhow::ensure!(
                        verdict == REDIRECT,
                        "`{}` dropped a frame: verdict {verdict}",
                        self.name
                    );
                    Ok(f64::from(took))
                })
                .collect()
        })?
    }
}

/// Runs the same programs with either table in turns.
///
/// # Errors
/// If a program ceases to carry its frame.
pub fn compare(few: &Programs, many: &Programs, turns: usize) -> Result<Vec<Row>> {
    few.cases
        .iter()
        .zip(&many.cases)
        .map(|(a, b)| {
            let mut took = [Samples::default(), Samples::default()];
            for turn in 0..turns {
                // Who begins alternates.
                for which in [turn % 2, 1 - turn % 2] {
                    took[which].0.extend([a, b][which].turn()?);
                }
            }
            let [x, y] = &took;
            Ok(Row {
                method: few.method.clone(),
                program: a.name,
                runs: x.0.len(),
                few: x.median(),
                many: y.median(),
            })
        })
        .collect()
}
