//! Forwarding without an agent.

use std::time::Duration;
use tenet_lab::Process;
use tenet_lab::tool::{Probe, ProbeReport, Stream, StreamReport};
use tenet_model::Family;

use crate::{World, until};

/// A probe of 1 kHz and a stream of some megabytes a second between two VMs, judged when stopped.
#[derive(Debug)]
pub struct Load {
    probe: Probe,
    stream: Stream,
    begin: std::time::Instant,
}

impl Load {
    /// Begins.
    ///
    /// # Panics
    /// If the VMs do not reach each other.
    #[must_use]
    pub fn start(world: &World, from: &str, to: &str) -> Self {
        Self::start_in(world, from, to, Family::V4)
    }

    /// The same in packets of a family.
    ///
    /// # Panics
    /// If the VMs do not reach each other.
    #[must_use]
    pub fn start_in(world: &World, from: &str, to: &str, family: Family) -> Self {
        let netns = world.lab.vm(from).unwrap().netns().clone();
        let address = world.lab.vm(to).unwrap().address_of(family).unwrap();
        let stream = Stream::start(&netns, address, Duration::from_millis(5)).unwrap();
        let probe = Probe::start(&netns, address, to, 1000).unwrap();
        Self { probe, stream, begin: std::time::Instant::now() }
    }

    /// Lets it run on for so long.
    pub fn run(&self, time: Duration) {
        let begin = std::time::Instant::now();
        until("time to pass", time * 2 + Duration::from_secs(5), || (begin.elapsed() >= time).then_some(()));
    }

    /// Stops; the stream must be intact.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn stop(self) -> (ProbeReport, StreamReport) {
        let millis = self.begin.elapsed().as_millis();
        let (probe, stream) = (self.probe.stop().unwrap(), self.stream.stop().unwrap());
        println!("{millis} ms under load: {probe:?}, {stream:?}");
        assert!(
            stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0,
            "{stream:?}"
        );
        assert_eq!(probe.strangers, 0, "{probe:?}");
        assert!(u128::from(probe.sent) * 2 > millis, "the probe kept its pace: {probe:?} in {millis} ms");
        (probe, stream)
    }

    /// Stops; no frame may be lost either.
    ///
    /// # Panics
    /// If one was.
    pub fn stop_without_loss(self) {
        let (probe, _) = self.stop();
        assert_eq!((probe.lost, probe.duplicates), (0, 0), "{probe:?}");
    }
}

/// Kills both hosts' agents with SIGKILL under load and starts them again: no frame is lost, none is rewritten.
///
/// # Panics
/// If one is.
pub fn check_agent_restart(world: &mut World) {
    let (same, other) =
        (Load::start(world, "contoso/log", "contoso/sql"), Load::start(world, "contoso/web", "contoso/sql"));
    let repaired = |world: &World| world.status().hosts.into_iter().map(|h| h.repaired).collect::<Vec<_>>();
    let before = repaired(world);
    let hosts: Vec<String> = world.lab.record().hosts.iter().map(|h| h.name.to_string()).collect();
    for host in &hosts {
        world.lab.kill_agent(host).unwrap();
        until("the controller misses the agent", Duration::from_secs(20), || {
            (!world.host_status(host).connected).then_some(())
        });
        other.run(Duration::from_millis(300));
        world.lab.start_agent(host).unwrap();
        world.in_sync();
    }
    for host in &hosts {
        world.lab.kill_agent(host).unwrap();
    }
    other.run(Duration::from_secs(1));
    for host in &hosts {
        world.lab.start_agent(host).unwrap();
    }
    until("agents are back", Duration::from_secs(20), || {
        world.status().hosts.iter().all(|h| h.connected).then_some(())
    });
    world.in_sync();
    other.run(Duration::from_millis(300));
    same.stop_without_loss();
    other.stop_without_loss();
    assert_eq!(repaired(world), before, "adopted, nothing to put right");
}

/// An agent that is stopped by SIGSTOP until dropped: it hears of nothing and says nothing, and its host forwards.
#[derive(Debug)]
pub struct Paused(Process);

impl Paused {
    /// Stops a host's agent.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn new(world: &World, host: &str) -> Self {
        let process = world.lab.host(host).unwrap().record().process.expect("a running agent");
        // SAFETY: the number is that of a process that we started and that runs.
        assert_eq!(unsafe { libc::kill(process.pid.cast_signed(), libc::SIGSTOP) }, 0);
        Self(process)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0.pid.cast_signed(), libc::SIGCONT) };
    }
}
