//! The way from the uplink into taps: chosen at the start, measured beside the work, told with the reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use tenet_api::agent::ReceiveWay;
use tenet_datapath::{BUNDLE, Cost, Datapath, Options, Receive, measure_receive};

/// Where what was measured is kept until the next boot: another agent on this kernel need not measure again.
const KEPT: &str = "/run/tenet";

/// What is known of the ways.
#[derive(Debug)]
pub(crate) struct Ways {
    wanted: Receive,
    pub(crate) chosen: Receive,
    /// Each way, with why it does not work here.
    tried: Vec<(Receive, Option<String>)>,
    costs: Vec<(Receive, Cost)>,
    /// Measurement under way.
    coming: Option<Receiver<Vec<(Receive, Cost)>>>,
}

impl Ways {
    /// Takes what the data plane chose, and begins to measure.
    pub(crate) fn new(datapath: &Datapath, options: &Options) -> Self {
        let kept = kept();
        let costs = kept.as_deref().and_then(load).unwrap_or_default();
        let mut ways = Self {
            wanted: options.receive,
            chosen: datapath.receive(),
            tried: datapath.ways().to_vec(),
            coming: None,
            costs,
        };
        if ways.costs.is_empty() {
            ways.coming = begin(options.clone(), kept);
        }
        ways.choose();
        ways
    }

    /// Whether a measurement has come in.
    pub(crate) fn look(&mut self) -> bool {
        match self.coming.as_ref().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => false,
            Some(Err(TryRecvError::Disconnected)) => {
                self.coming = None;
                false
            }
            Some(Ok(costs)) => {
                (self.costs, self.coming) = (costs, None);
                self.choose();
                true
            }
        }
    }

    /// The hub must be worth its detour; between the other ways the data plane has decided for good.
    fn choose(&mut self) {
        if self.wanted == Receive::Auto
            && self.chosen == Receive::Hub
            && let (Some(hub), Some(plain)) = (self.cost(Receive::Hub), self.cost(Receive::Plain))
            && hub.nanoseconds > plain.nanoseconds
            && hub.frames >= plain.frames
        {
            self.chosen = Receive::Plain;
        }
    }

    fn cost(&self, way: Receive) -> Option<Cost> {
        self.costs.iter().find(|(w, _)| *w == way).map(|(_, c)| *c)
    }

    /// Why this way, in plain words. `trouble`: why the hub cannot be used after all.
    pub(crate) fn reason(&self, trouble: Option<&str>) -> String {
        let told = match (self.wanted, self.chosen, trouble) {
            (_, Receive::Hub, Some(why)) => format!("the hub does not work: {why}"),
            (Receive::Auto, Receive::Kernel, _) => {
                "the kernel forgets the tunnel that is taken off, nothing is in between".to_owned()
            }
            (Receive::Auto, Receive::Hub, _) => "frames for taps stay whole".to_owned(),
            (Receive::Auto, _, _) if self.trouble(Receive::Hub).is_none() => {
                "the hub was measured and is no gain here".to_owned()
            }
            (Receive::Auto, _, _) => "neither of the ways that keep frames whole works here".to_owned(),
            (wanted, _, _) => format!("asked for with --receive {wanted}"),
        };
        let figures = match (self.cost(self.chosen), self.cost(Receive::Plain)) {
            (Some(c), Some(p)) if self.chosen != Receive::Plain => format!(
                ": {} of {} kB each against {}, {} against {} µs for {} kB",
                count(c.frames),
                BUNDLE / 1000 / (c.frames.max(1) as usize),
                p.frames,
                c.nanoseconds / 1000,
                p.nanoseconds / 1000,
                BUNDLE / 1000,
            ),
            (Some(c), _) => {
                format!(": {} and {} µs for {} kB", count(c.frames), c.nanoseconds / 1000, BUNDLE / 1000)
            }
            (None, _) if self.coming.is_some() => "; being measured".to_owned(),
            (None, _) => "; not measured".to_owned(),
        };
        told + &figures
    }

    fn trouble(&self, way: Receive) -> Option<&str> {
        self.tried.iter().find(|(w, _)| *w == way).and_then(|(_, why)| why.as_deref())
    }

    /// All ways for the report.
    pub(crate) fn reports(&self) -> Vec<ReceiveWay> {
        let one = |way: Receive| {
            let cost = self.cost(way);
            ReceiveWay {
                name: way.name().to_owned(),
                works: self.trouble(way).is_none(),
                frames: cost.map_or(0, |c| c.frames),
                nanoseconds: cost.map_or(0, |c| c.nanoseconds),
                detail: self.trouble(way).unwrap_or_default().to_owned(),
            }
        };
        Receive::WAYS.map(one).to_vec()
    }
}

fn count(frames: u32) -> String {
    if frames == 1 { "1 frame".to_owned() } else { format!("{frames} frames") }
}

/// Measures on a thread of its own: the programs are loaded once more for it, which takes its time.
fn begin(options: Options, keep: Option<PathBuf>) -> Option<Receiver<Vec<(Receive, Cost)>>> {
    let (tell, coming) = channel();
    let work = move || match measure_receive(&options) {
        Ok(costs) => {
            if let Some(path) = keep {
                save(&path, &costs);
            }
            // Nobody there to hear it: the agent ends.
            let _ = tell.send(costs);
        }
        Err(cause) => {
            tracing::info!(cause = crate::session::chain(&cause), "the ways into taps are not measured")
        }
    };
    std::thread::Builder::new().name("measure".to_owned()).spawn(work).ok().map(|_| coming)
}

/// The file for this kernel and this version of the programs, on this boot.
fn kept() -> Option<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let version = env!("CARGO_PKG_VERSION");
    Some(Path::new(KEPT).join(format!(
        "receive-{}-{version}-{}",
        release.trim(),
        tenet_tables::LAYOUT_VERSION
    )))
}

fn save(path: &Path, costs: &[(Receive, Cost)]) {
    let lines: String =
        costs.iter().map(|(w, c)| format!("{} {} {}\n", w.name(), c.frames, c.nanoseconds)).collect();
    // Another agent may write the same at this moment; a failure costs a measurement.
    let draft = path.with_extension(std::process::id().to_string());
    if fs::write(&draft, lines).is_ok() {
        let _ = fs::rename(&draft, path);
    }
}

fn load(path: &Path) -> Option<Vec<(Receive, Cost)>> {
    let text = fs::read_to_string(path).ok()?;
    parse(&text)
}

fn parse(text: &str) -> Option<Vec<(Receive, Cost)>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let way: Receive = words.next()?.parse().ok()?;
        let cost = Cost { frames: words.next()?.parse().ok()?, nanoseconds: words.next()?.parse().ok()? };
        Some((way, cost))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(wanted: Receive, chosen: Receive, costs: &[(Receive, u32, u64)]) -> Ways {
        let costs =
            costs.iter().map(|(w, frames, us)| (*w, Cost { frames: *frames, nanoseconds: us * 1000 }));
        let why = Some("no flag".to_owned());
        let tried = vec![(Receive::Plain, None), (Receive::Hub, None), (Receive::Kernel, why)];
        let mut ways = Ways { wanted, chosen, tried, costs: costs.collect(), coming: None };
        ways.choose();
        ways
    }

    #[test]
    fn the_hub_is_taken_where_it_is_a_gain() {
        let good = [(Receive::Plain, 43, 120), (Receive::Hub, 1, 40)];
        let chosen = ways(Receive::Auto, Receive::Hub, &good);
        assert_eq!(chosen.chosen, Receive::Hub);
        assert_eq!(
            chosen.reason(None),
            "frames for taps stay whole: 1 frame of 60 kB each against 43, 40 against 120 µs for 60 kB"
        );
        assert!(chosen.reports().iter().any(|w| w.name == "kernel" && !w.works && w.detail == "no flag"));
        let bad = [(Receive::Plain, 1, 30), (Receive::Hub, 1, 40)];
        let chosen = ways(Receive::Auto, Receive::Hub, &bad);
        assert_eq!(chosen.chosen, Receive::Plain);
        assert!(chosen.reason(None).contains("no gain"), "{}", chosen.reason(None));
        // Who asks for it gets it.
        assert_eq!(ways(Receive::Hub, Receive::Hub, &bad).chosen, Receive::Hub);
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let all = vec![(Receive::Plain, Cost { frames: 43, nanoseconds: 1 })];
        assert_eq!(parse("plain 43 1\n"), Some(all));
        assert_eq!(parse("plain x 1\n"), None);
        assert_eq!(parse("fast 43 1\n"), None);
    }
}
