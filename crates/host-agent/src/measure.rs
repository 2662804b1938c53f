//! What the loop does about measuring: probes sent and taken, what they show told to core and controller.

use crate::agent::Agent;
use crate::convert;
use crate::kernel::ReceiveReport;
use crate::metrics::Text;
use crate::multicast::Multicast;
use crate::offloads::Offloads;
use crate::probe::methods_in_use;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tenet_api::agent::{self, agent_message};
use tenet_host::probe::{Remedies, Turn};
use tenet_host::{Alarm, Input, Lately, Needs, bears_on_hosts, needs};
use tenet_tables::{DropKey, DropReason};

/// What changes within this time is told at once.
const GATHER: Duration = Duration::from_millis(300);
/// Values are told anew so often, so that their age is seen.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// What is owed to the controller, and what was seen of the uplinks.
#[derive(Debug, Default)]
pub(crate) struct Measuring {
    /// When the report is due; `None`: nobody is there to take it.
    report_at: Option<Instant>,
    /// Frames that came in pieces, by uplink device.
    fragments: BTreeMap<String, Pieces>,
    /// Frames that were dropped for their marks of congestion, by uplink.
    congested: BTreeMap<u32, Alarm>,
    receive: ReceiveReport,
    needs: Needs,
    tunnels: Vec<agent::UdpTunnel>,
    remedies: Remedies,
    offloads: Offloads,
    multicast: Multicast,
}

/// Frames that came in pieces.
#[derive(Debug, Default)]
struct Pieces {
    total: u64,
    lately: Lately,
    /// Of the total, those of the last minute.
    new: u64,
}

impl Measuring {
    /// With what an earlier run left in the state directory.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let (offloads, multicast) = (Offloads::load(state_dir), Multicast::load(state_dir));
        Self { offloads, multicast, ..Self::default() }
    }

    /// Something changed.
    pub(crate) fn report_soon(&mut self) {
        let soon = Instant::now() + GATHER;
        self.report_at = Some(self.report_at.map_or(soon, |at| at.min(soon)));
    }
}

impl Agent {
    /// Opens the tap for probes if there is none (any more).
    pub(crate) fn open_tap(&mut self) {
        if self.prober.has_tap() {
            return;
        }
        if let Some(tap) = self.kernel.probe_tap() {
            self.prober.take_tap(tap.map_err(|e| e.0));
        }
    }

    /// Whether an input can change which hosts there are, and what they need.
    pub(crate) fn bears_on_hosts(&self, input: &Input) -> bool {
        match (input, self.core.rows()) {
            (Input::Delta(delta), Some(rows)) => bears_on_hosts(rows, delta),
            (Input::Delta(_) | Input::Full { .. } | Input::Cached { .. }, _) => true,
            _ => false,
        }
    }

    /// The uplinks as far as probes and needs go by them: the packets that they carry, and each one's number.
    pub(crate) fn underlay(&self) -> (u32, Vec<u32>) {
        let mtu = self.core.uplink().map_or(0, |u| u.mtu);
        (mtu, self.uplinks.iter().filter_map(|u| self.core.device_index(u)).collect())
    }

    /// Hosts, networks or uplinks may have changed.
    pub(crate) fn expect_hosts(&mut self) {
        let (mtu, uplinks) = self.underlay();
        self.prober.expect(self.since.elapsed(), self.core.rows(), mtu, &uplinks);
        let needs = self.core.rows().map(needs).unwrap_or_default();
        if needs != self.measured.needs {
            self.measured.needs = needs;
            self.provide();
        }
        self.hear_neighbours();
        self.conclude();
    }

    /// Makes and mends what the networks need.
    fn provide(&mut self) {
        let tunnels = self.kernel.provide(&self.measured.needs);
        if tunnels != self.measured.tunnels {
            for tunnel in tunnels.iter().filter(|t| !t.merges) {
                tracing::warn!(
                    tunnel.method,
                    tunnel.port,
                    tunnel.detail,
                    "segments of a tunnel are not joined"
                );
            }
            self.measured.tunnels = tunnels;
            self.measured.report_soon();
        }
    }

    /// Lets uplinks hear the questions for this host's IPv6 rewrite addresses, as long as there are any.
    fn hear_neighbours(&mut self) {
        // Without rows nothing is known of what is needed.
        if self.core.rows().is_none() {
            return;
        }
        let Measuring { needs, multicast, .. } = &mut self.measured;
        let again = multicast.settle(self.kernel.as_mut(), &self.uplinks, &needs.asked_for);
        if !again.is_empty() {
            self.feed(Input::Restored(again));
        }
    }

    /// When [`Self::measure`] has something to do.
    pub(crate) fn measure_at(&self) -> Option<Instant> {
        let probe = self.prober.next(self.since.elapsed()).map(|at| self.since + at);
        let report = self.measured.report_at.filter(|_| self.session.is_some());
        probe.into_iter().chain(report).min()
    }

    /// Does what is due.
    pub(crate) fn measure(&mut self) {
        self.prober.poll(self.since.elapsed());
        self.conclude();
        if self.session.is_some() && self.measured.report_at.is_some_and(|at| at <= Instant::now()) {
            self.measured.report_at = Some(Instant::now() + REPORT_EVERY);
            let report = self.report();
            self.send(convert::wrap(agent_message::Message::Measured(report)));
        }
    }

    /// The tap has frames.
    pub(crate) fn probed(&mut self) {
        self.prober.receive(self.since.elapsed());
        self.conclude();
    }

    /// Probes by IP Rewrite have come.
    pub(crate) fn overheard(&mut self) {
        self.prober.overhear(self.since.elapsed());
        self.conclude();
    }

    /// Routers said something.
    pub(crate) fn hinted(&mut self) {
        self.prober.take_hints(self.since.elapsed());
        self.conclude();
    }

    /// Tells the core what the paths carry, if that changed.
    fn conclude(&mut self) {
        if self.prober.paths.take_change() {
            let known = self.prober.paths.known();
            let uplink = self.core.uplink().map_or(0, |u| u.mtu);
            for (pa, mtu) in known.iter().filter(|(_, mtu)| u32::from(**mtu) < uplink) {
                tracing::warn!(%pa, mtu, uplink, "the path to a host carries less than the uplink");
            }
            self.feed(Input::Paths(known));
        }
        self.remedy();
        if self.prober.take_news() {
            self.measured.report_soon();
        }
    }

    /// What an earlier run turned off is this one's to judge and to turn on again, unless somebody else has.
    pub(crate) fn resume_offloads(&mut self) {
        let Measuring { remedies, offloads, .. } = &mut self.measured;
        let mut over = Vec::new();
        for (device, feature, methods) in offloads.all() {
            match self.kernel.feature(device, feature) {
                Some(false) => {
                    let known = remedies.resume(feature, methods.iter().map(String::as_str));
                    tracing::info!(device, feature, known, "an earlier run of the agent turned this off");
                }
                Some(true) => over.push((device.to_owned(), feature.to_owned())),
                // The device may come yet.
                None => {}
            }
        }
        for (device, feature) in over {
            offloads.forget(&device, &feature);
        }
    }

    /// Turns off what a finished self-test found wrong, and tests again.
    fn remedy(&mut self) {
        if self.keep_offloads {
            return;
        }
        let Some(tested) = self.prober.take_tested() else { return };
        let used = self.core.rows().map(methods_in_use).unwrap_or_default();
        let turns = self.measured.remedies.judge(&tested.outcomes, &used);
        let mut changed = false;
        for Turn { feature, on } in turns {
            let mut done = false;
            for device in &self.uplinks {
                let Measuring { remedies, offloads, .. } = &mut self.measured;
                if !on && self.kernel.feature(device, feature) == Some(true) {
                    // Noted first: what is off and not noted would stay off without anybody knowing why.
                    offloads.note(device, feature, remedies.because(feature));
                }
                match self.kernel.set_feature(device, feature, on) {
                    Ok(turned) => done |= turned,
                    Err(cause) => tracing::warn!(device, feature, %cause, "an offload cannot be changed"),
                }
                if self.kernel.feature(device, feature) == Some(true) {
                    offloads.forget(device, feature);
                }
            }
            if !done {
                self.measured.remedies.cannot(feature);
            } else if on {
                tracing::warn!(feature, "turned on again: without it frames arrive no better");
            } else {
                tracing::warn!(feature, "turned off: the self-test's frames did not survive it");
            }
            changed |= done;
        }
        if changed {
            self.prober.test_again(self.since.elapsed());
        }
    }

    /// Looks at how frames come in, and at what must be told of those that were dropped.
    pub(crate) fn look_at_uplinks(&mut self) {
        self.provide();
        let Ok(drops) = self.kernel.drops() else { return };
        let now = self.since.elapsed();
        let of = |ifindex, reason| {
            let key = DropKey { ifindex, reason: reason as u32 };
            drops.get(&key).copied().unwrap_or_default()
        };
        let mut changed = false;
        for device in self.uplinks.clone() {
            let Some(ifindex) = self.core.device_index(&device) else { continue };
            let total = of(ifindex, DropReason::OuterFragment);
            let pieces = self.measured.fragments.entry(device).or_default();
            let new = pieces.lately.look(now, total);
            changed |= (pieces.total, pieces.new) != (total, new);
            (pieces.total, pieces.new) = (total, new);
            let alarm = self.measured.congested.entry(ifindex).or_default();
            if let Some(frames) = alarm.look(now, of(ifindex, DropReason::EcnMismatch)) {
                self.feed(Input::Congested { ifindex, frames });
            }
        }
        let receive = self.kernel.receive();
        if receive.way != self.measured.receive.way || receive.reason != self.measured.receive.reason {
            tracing::info!(way = receive.way, reason = receive.reason, "frames for taps");
        }
        if changed || receive != self.measured.receive {
            self.measured.receive = receive;
            self.measured.report_soon();
        }
    }

    fn report(&self) -> agent::Measured {
        let now = self.since.elapsed();
        let mut uplinks = Vec::new();
        for (n, device) in self.uplinks.iter().enumerate() {
            let Some(mtu) = self.core.device_mtu(device) else { continue };
            let mut report = agent::UplinkReport {
                device: device.clone(),
                mtu,
                outer_fragments: self.measured.fragments.get(device).map_or(0, |pieces| pieces.total),
                receive: self.measured.receive.way.clone(),
                receive_reason: self.measured.receive.reason.clone(),
                ways: self.measured.receive.ways.clone(),
                tunnels: self.measured.tunnels.clone(),
                ..agent::UplinkReport::default()
            };
            // The kernel's routes choose the uplink: what was tested is the way that frames take.
            if n == 0 {
                report.tests = self.prober.test_reports(device);
            }
            report.hints = self.hints(&report);
            uplinks.push(report);
        }
        agent::Measured { paths: self.prober.path_reports(now), uplinks }
    }

    fn hints(&self, report: &agent::UplinkReport) -> Vec<String> {
        let mut hints: Vec<String> = report
            .tunnels
            .iter()
            .filter(|t| !t.merges)
            .map(|t| format!("{}: {}", t.method, t.detail))
            .collect();
        let used = self.core.rows().map(methods_in_use).unwrap_or_default();
        for test in &report.tests {
            if matches!(test.outcome.as_str(), "broken" | "degraded") && used.contains(test.method.as_str()) {
                hints.push(test.detail.clone());
            }
        }
        for (feature, methods) in self.measured.remedies.off() {
            let methods: Vec<&str> = methods.iter().copied().collect();
            let (methods, device) = (methods.join(", "), &report.device);
            hints.push(format!(
                "turned {feature} off: frames by {methods} did not survive it, without it they do; the kernel does its \
                 work now. Once the cause is mended: `ethtool -K {device} {feature} on`"
            ));
        }
        let new = self.measured.fragments.get(&report.device).map_or(0, |pieces| pieces.new);
        if new > 0 {
            hints.push(format!(
                "{new} pieces of frames arrived on {} in the last minute and were dropped: something on the way cuts \
                 packets up; make its MTU as large as the hosts', see `tenet paths`",
                report.device
            ));
        }
        hints
    }

    pub(crate) fn path_metrics(&self, text: &mut Text) {
        text.metric("tenet_path_mtu_bytes", "gauge", "Largest packet that the path to a host carries.");
        for path in self.prober.path_reports(self.since.elapsed()) {
            if path.mtu > 0 {
                text.value("tenet_path_mtu_bytes", &[("peer", &path.peer)], path.mtu.into());
            }
        }
    }
}
