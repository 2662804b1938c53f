//! One network's guests, and one migration measured.

use super::clock::{self, Micros};
use super::fabric::{Fabric, Settled};
use super::machine::{ECHO, Machine};
use super::probe::{Losses, Probe};
use super::stream::{Flow, Stream};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;
use tenet_lab::guest::Image;

/// Probes before the migration begins, which show what the network is like at rest.
const BEFORE: Duration = Duration::from_millis(150);
/// How long after the guest's first moment on the destination is looked at.
const AFTER: Duration = Duration::from_millis(400);
/// How long the guest may be silent after that.
const SILENCE: Duration = Duration::from_secs(5);
/// A probe that was sent less than this before QEMU stopped the guest may have been under way then, or in the tap until
/// QEMU read it: on plain bridges, which lose all of these, up to 4.0 ms were seen on a slow machine. QEMU counts in whole
/// milliseconds, besides.
const MARGIN: Micros = 5_000;
/// How long a guest that has just booted may take until it keeps up with what it is asked. Its code is yet to be
/// translated by the emulator: until that is done it is some hundred milliseconds behind.
const WARM: Duration = Duration::from_secs(10);
/// How long a guest's memory may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a guest is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Its name in tables.
    pub name: &'static str,
    /// Its name on the command line.
    pub option: &'static str,
    /// Whether the guest writes memory all the time.
    pub dirtying: bool,
    /// Whether it runs on the destination before its memory is there.
    pub postcopy: bool,
    /// Whether both hosts map its memory, so that the emulator has none to copy, nor to lose.
    pub shared: bool,
    /// How many guests move at once.
    pub at_once: usize,
    /// Whether the client has little to say: a datagram and a ping every 20 ms, and nothing on its TCP connection.
    pub sparse: bool,
}

/// All ways.
pub const KINDS: [Kind; 7] = [
    IDLE,
    Kind { name: "sparse", option: "sparse", sparse: true, ..IDLE },
    Kind { name: "shared memory", option: "shared", shared: true, ..IDLE },
    Kind { name: "dirtying", option: "dirtying", dirtying: true, ..IDLE },
    Kind { name: "post-copy", option: "post-copy", postcopy: true, ..IDLE },
    Kind { name: "ten at once", option: "ten", at_once: 10, ..IDLE },
    Kind { name: "ten at once, shared memory", option: "ten-shared", shared: true, at_once: 10, ..IDLE },
];

impl Kind {
    /// Time from one question to the next.
    #[must_use]
    pub fn step(self) -> Duration {
        // Ten guests at once have a probe each; ten of them at full rate would be a load of their own.
        Duration::from_millis(match self {
            Self { sparse: true, .. } => 20,
            Self { at_once: 2.., .. } => 10,
            _ => 1,
        })
    }
}

const IDLE: Kind = Kind {
    name: "idle",
    option: "idle",
    dirtying: false,
    postcopy: false,
    shared: false,
    at_once: 1,
    sparse: false,
};

/// What one migration cost; times in milliseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Sample {
    /// The network.
    pub network: String,
    /// How it was moved.
    pub kind: String,
    /// The host it went to, 0 or 1.
    pub to: usize,
    /// When it ran on the destination (RESUME), microseconds since 1970.
    pub resumed: Micros,
    /// From STOP on the source to RESUME on the destination.
    pub pause: f64,
    /// From when QEMU stopped the guest, by its own count, until it said STOP.
    pub stopping: f64,
    /// From the request until QEMU was done.
    pub total: f64,
    /// Bytes of memory that QEMU sent.
    pub transferred: u64,
    /// Median round trip of the probes before it.
    pub round_trip: Option<f64>,
    /// Probes sent.
    pub probes: usize,
    /// Probes lost.
    pub lost: usize,
    /// When the first of these, and of the pings lost, were sent, counted from when QEMU stopped the guest.
    pub lost_at: [Vec<f64>; 2],
    /// Probes lost that the pause does not excuse.
    pub beyond: usize,
    /// Probes sent before the pause that were answered only after it.
    pub held: usize,
    /// When the first of those lost beyond the pause were sent, counted from RESUME.
    pub strays: Vec<f64>,
    /// From RESUME to the first answer of the guest's kernel, to a ping.
    pub first_reply: Option<f64>,
    /// From RESUME to the first answer of the guest's program, to a probe.
    pub first_answer: Option<f64>,
    /// Pings sent.
    pub pings: usize,
    /// Pings lost.
    pub pings_lost: usize,
    /// Pings lost that the pause does not excuse.
    pub pings_beyond: usize,
    /// Probes and pings lost that the client's own kernel did not send.
    pub unsent: usize,
    /// TCP bytes sent.
    pub tcp_sent: u64,
    /// TCP bytes that never came back.
    pub tcp_lost: u64,
    /// Longest time without TCP.
    pub tcp_gap: f64,
    /// Whether the TCP connection still stands.
    pub tcp_intact: bool,
    /// Frames that the old host sent on.
    pub redirected: Option<u64>,
    /// From the switch to the last acknowledgement.
    pub last_ack: Option<f64>,
    /// Records that point elsewhere after that, on all hosts together.
    pub stale: Option<u64>,
}

/// A guest with the connection to it.
#[derive(Default)]
pub struct Guest {
    machine: Option<Machine>,
    stream: Option<Stream>,
}

/// A network and its guests.
pub struct Contestant {
    /// The network.
    pub fabric: Box<dyn Fabric>,
    guests: Vec<Guest>,
    image: Image,
    folder: PathBuf,
}

impl Contestant {
    /// With no guest booted.
    #[must_use]
    pub fn new(fabric: Box<dyn Fabric>, image: &Image, folder: &Path) -> Self {
        let guests = fabric.nics().iter().map(|_| Guest::default()).collect();
        let folder = folder.join(fabric.name().replace(' ', "-"));
        Self { fabric, guests, image: image.clone(), folder }
    }

    /// Boots those of a kind's guests that do not run, and ends all others.
    fn have(&mut self, kind: Kind) -> Result<()> {
        for (nic, guest) in self.guests.iter_mut().enumerate() {
            let other = guest.machine.as_ref().is_some_and(|m| m.shares() != kind.shared);
            if nic >= kind.at_once || other {
                *guest = Guest::default();
            }
        }
        let (fabric, image, folder) = (&*self.fabric, &self.image, &self.folder);
        let guests = self.guests.iter_mut().take(kind.at_once).enumerate();
        let missing = guests.filter(|(_, g)| g.machine.is_none());
        std::thread::scope(|scope| {
            let boots: Vec<_> = missing
                .map(|(nic, guest)| {
                    scope.spawn(move || {
                        fabric.reset(nic)?;
                        let folder = folder_of(folder, nic);
                        guest.machine = Some(Machine::boot(image, fabric, nic, &folder, kind.shared)?);
                        warm(fabric, nic, guest, kind)
                    })
                })
                .collect();
            boots.into_iter().try_for_each(|boot| joined(boot.join()))
        })
    }

    /// Moves as many guests as the kind says to the other host, all at once; what each cost.
    pub fn migrate(&mut self, kind: Kind) -> Vec<Result<Sample>> {
        let (fabric, image, folder) = (&*self.fabric, &self.image, &self.folder);
        let samples: Vec<Result<Sample>> = std::thread::scope(|scope| {
            let guests = self.guests.iter_mut().enumerate().take(kind.at_once);
            let moves: Vec<_> = guests
                .map(|(nic, guest)| {
                    scope.spawn(move || measure(fabric, image, nic, guest, kind, &folder_of(folder, nic)))
                })
                .collect();
            moves.into_iter().map(|m| joined(m.join())).collect()
        });
        for (guest, sample) in self.guests.iter_mut().zip(&samples) {
            if sample.is_err() {
                // It is in nobody knows what state: the next round boots it anew.
                *guest = Guest::default();
            }
        }
        samples
    }

    /// Has the guests that a kind needs, in the state that it needs them in.
    ///
    /// # Errors
    /// If one does not boot or cannot be told.
    pub fn ready(&mut self, kind: Kind, round: usize) -> Result<()> {
        let fresh = self.guests.iter().take(kind.at_once).any(|g| g.machine.is_none());
        if fresh || round == 0 {
            self.have(kind)?;
            if kind.dirtying {
                self.dirty(true)?;
            }
        }
        Ok(())
    }

    /// Ends what a kind needed and others do not.
    pub fn leave(&mut self, kind: Kind) {
        if kind.dirtying && self.dirty(false).is_err() {
            self.guests.iter_mut().for_each(|g| *g = Guest::default());
        }
    }

    /// Has the first guest begin or end writing memory.
    fn dirty(&self, on: bool) -> Result<()> {
        let begin = "(while :; do dd if=/dev/urandom of=/tmp/x bs=64k count=256 conv=notrunc; done) >/dev/null 2>&1 </dev/null & echo $! >/tmp/pid";
        let end = "kill $(cat /tmp/pid); rm -f /tmp/x";
        let guest = self.guests.first().and_then(|g| g.machine.as_ref()).context("the guest does not run")?;
        guest.shell(if on { begin } else { end })
    }
}

fn folder_of(folder: &Path, nic: usize) -> PathBuf {
    folder.join(format!("{nic}"))
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the bench broke off")))
}

/// What a client has to do with a guest.
struct Traffic<'a> {
    stream: &'a Stream,
    /// What it had sent before.
    sent: u64,
    probe: Probe,
    ping: Probe,
}

/// Begins it, with a connection if there is none.
fn traffic<'a>(
    fabric: &dyn Fabric,
    nic: usize,
    stream: &'a mut Option<Stream>,
    kind: Kind,
) -> Result<Traffic<'a>> {
    let address = fabric.nics().get(nic).context("no such guest")?.address;
    let stream = match stream.take() {
        Some(known) => stream.insert(known),
        None => stream.insert(Stream::connect(fabric.client(), address, ECHO)?),
    };
    let probe = Probe::start(fabric.client(), address, Some(ECHO), kind.step())?;
    let ping = Probe::start(fabric.client(), address, None, kind.step())?;
    let sent = stream.sent();
    // Ten guests at once share the processors with their streams.
    if !kind.sparse {
        stream.run(if kind.at_once > 1 { 10 } else { 1 });
    }
    Ok(Traffic { stream, sent, probe, ping })
}

/// Has a guest that has just booted do what it will have to do while it is measured, until it keeps up. One that does
/// not, on a busy machine, is measured all the same: its round trip tells.
fn warm(fabric: &dyn Fabric, nic: usize, guest: &mut Guest, kind: Kind) -> Result<()> {
    let Traffic { stream, sent, probe, ping } = traffic(fabric, nic, &mut guest.stream, kind)?;
    let behind = u64::try_from(Duration::from_millis(5).as_micros() / kind.step().as_micros())?.max(1);
    let end = Instant::now() + WARM;
    for asking in [&probe, &ping] {
        asking.wait_kept_up(behind, end.saturating_duration_since(Instant::now()));
    }
    probe.stop(Duration::ZERO)?;
    ping.stop(Duration::ZERO)?;
    anyhow::ensure!(
        stream.pause(sent).intact,
        "the guest does not keep a TCP connection although it stands still"
    );
    Ok(())
}

fn measure(
    fabric: &dyn Fabric,
    image: &Image,
    nic: usize,
    guest: &mut Guest,
    kind: Kind,
    folder: &Path,
) -> Result<Sample> {
    let source = guest.machine.as_mut().context("the guest does not run")?;
    let device = fabric.nics().get(nic).context("no such guest")?.device.clone();
    let to = 1 - source.at;
    let begun = clock::now();
    let mut target = Machine::incoming(image, fabric, nic, source, &folder.join(begun.to_string()))?;
    source.agree(kind.postcopy)?;
    target.agree(kind.postcopy)?;
    let Traffic { stream, sent, probe, ping } = traffic(fabric, nic, &mut guest.stream, kind)?;
    std::thread::sleep(BEFORE);

    let (marks, uri) = ((source.qmp.mark(), target.qmp.mark()), target.uri());
    let asked = clock::now();
    fabric.migrate(nic, to, &uri, &mut source.qmp)?;
    if kind.postcopy {
        source.qmp.wait(marks.0, PATIENCE, "MIGRATION", Some("active"))?;
        source.qmp.command("migrate-start-postcopy", &json!({}))?;
    }
    let resume = target.qmp.wait(marks.1, PATIENCE, "RESUME", None)?;
    let arrived = fabric.arrived(nic, to)?;
    target.qmp.wait(marks.1, PATIENCE, "MIGRATION", Some("completed"))?;
    let done = source.qmp.wait(marks.0, PATIENCE, "MIGRATION", Some("completed"))?;
    let stop = source.qmp.wait(marks.0, PATIENCE, "STOP", None)?;
    let told = source.told(marks.0)?;
    let stopped = told.stopped.filter(|_| !kind.postcopy).map_or(stop.at, |at| at.min(stop.at));
    probe.wait_heard(resume.at, SILENCE);
    ping.wait_heard(resume.at, SILENCE);
    let settled = fabric.settle(nic, to)?;
    let settled = Settled { last_ack: settled.last_ack.or(arrived), ..settled };
    let over = resume.at + AFTER.as_micros() as Micros;
    std::thread::sleep(Duration::from_micros((over - clock::now()).max(0) as u64));

    // Ten guests on few processors fall silent for longer than one.
    let late = Duration::from_millis(if kind.at_once > 1 { 2000 } else { 250 });
    let (seen, pings) = (probe.stop(late)?, ping.stop(late)?);
    let times = Times { asked, stopped, stop: stop.at, resume: resume.at, done: done.at.max(resume.at) };
    let losses = seen.losses(times.stopped, times.resume, MARGIN);
    let pings = pings.losses(times.stopped, times.resume, MARGIN);
    if losses.first_reply.is_none() {
        let card = card(fabric.host(to), &device);
        let kernel =
            if pings.first_reply.is_some() { "its kernel answers pings" } else { "nor does its kernel" };
        let (words, state) = (target.last_words(), target.state());
        bail!(
            "the guest is silent for {} s after RESUME, {kernel}; {card}; {words}; {state}",
            SILENCE.as_secs()
        );
    }
    let flow = stream.pause(sent);
    if !flow.intact {
        guest.stream = None;
    }
    // The old QEMU ends here.
    guest.machine = Some(target);
    let round_trip = seen.round_trip(asked).map(clock::millis);
    Ok(sample(fabric.name(), kind, to, times, told.transferred, round_trip, (losses, pings), flow, settled))
}

/// What a guest's card was given and sent in its life on this host, as the host's kernel counts it: whether a silent
/// guest hears anything.
fn card(host: &Netns, device: &str) -> String {
    let mut command = host.command("ip");
    command.args(["-s", "-j", "link", "show", device]);
    let told =
        command.output().ok().and_then(|o| serde_json::from_slice::<serde_json::Value>(&o.stdout).ok());
    let count = |path: &str| {
        told.as_ref().and_then(|t| t.pointer(&format!("/0/stats64/{path}"))?.as_u64()).unwrap_or_default()
    };
    let (given, lost, sent) = (count("tx/packets"), count("tx/dropped"), count("rx/packets"));
    format!("its card was given {given} frames, {lost} more did not fit, and sent {sent}")
}

struct Times {
    asked: Micros,
    stopped: Micros,
    stop: Micros,
    resume: Micros,
    done: Micros,
}

#[expect(clippy::too_many_arguments, reason = "a sample is made of just these")]
fn sample(
    network: &str,
    kind: Kind,
    to: usize,
    times: Times,
    transferred: u64,
    round_trip: Option<f64>,
    (losses, pings): (Losses, Losses),
    flow: Flow,
    settled: Settled,
) -> Sample {
    Sample {
        network: network.to_owned(),
        kind: kind.name.to_owned(),
        to,
        resumed: times.resume,
        pause: clock::millis(times.resume - times.stop),
        stopping: clock::millis(times.stop - times.stopped),
        total: clock::millis(times.done - times.asked),
        transferred,
        round_trip,
        probes: losses.sent,
        lost: losses.lost,
        lost_at: [&losses, &pings].map(|l| l.when.iter().take(20).map(|at| clock::millis(*at)).collect()),
        beyond: losses.beyond.len(),
        held: losses.held,
        strays: losses.beyond.iter().take(20).map(|at| clock::millis(*at)).collect(),
        first_reply: pings.first_reply.map(clock::millis),
        first_answer: losses.first_reply.map(clock::millis),
        pings: pings.sent,
        pings_lost: pings.lost,
        pings_beyond: pings.beyond.len(),
        unsent: losses.unsent + pings.unsent,
        tcp_sent: flow.sent,
        tcp_lost: flow.lost,
        tcp_gap: clock::millis(flow.gap),
        tcp_intact: flow.intact,
        redirected: settled.redirected,
        last_ack: settled.last_ack.map(clock::millis),
        stale: settled.stale,
    }
}
