//! The agent's figures: what its ports and uplinks counted, and its metrics.

use crate::agent::Agent;
use crate::convert;
use crate::kernel::KernelError;
use crate::metrics::Text;
use std::collections::BTreeMap;
use tenet_api::agent;
use tenet_tables::DropReason;

impl Agent {
    /// Of each port and uplink, by name.
    pub(crate) fn counters(&mut self) -> Result<Vec<agent::PortCounters>, KernelError> {
        let names = self.core.names();
        // The kernel counts from an interface's first frame on; a silent port is told of, too.
        let silent = |port: &String| agent::PortCounters { port: port.clone(), ..Default::default() };
        let mut by_name: BTreeMap<String, agent::PortCounters> =
            names.values().map(|port| (port.clone(), silent(port))).collect();
        for (ifindex, counted) in self.kernel.counters()? {
            if let Some(port) = names.get(&ifindex) {
                by_name.insert(port.clone(), convert::counters(port.clone(), counted));
            }
        }
        for (ifindex, frames) in self.kernel.unread()? {
            if let Some(counters) = names.get(&ifindex).and_then(|port| by_name.get_mut(port)) {
                counters.tap_unread = frames;
            }
        }
        for (key, frames) in self.kernel.drops()? {
            let counters = names.get(&key.ifindex).and_then(|port| by_name.get_mut(port));
            if let (Some(reason), Some(counters)) = (DropReason::from_number(key.reason), counters) {
                counters.drops.insert(reason.name().to_owned(), frames);
            }
        }
        for (port, drained) in self.drains.figures() {
            let Some(entry) = by_name.get_mut(&port.to_string()) else { continue };
            entry.drained = drained.sent;
            entry.undrained = drained.lost.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        }
        Ok(by_name.into_values().collect())
    }

    /// All of them as Prometheus takes them.
    pub(crate) fn metrics(&mut self) -> String {
        let mut text = Text::default();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            text.metric(name, kind, help);
            text.value(name, &[], value);
        };
        let stats = self.core.stats().clone();
        one(
            "tenet_agent_generation",
            "gauge",
            "Generation of the state that the agent has.",
            self.core.generation(),
        );
        one(
            "tenet_agent_session",
            "gauge",
            "1 while there is a session with a controller.",
            self.session.is_some().into(),
        );
        one("tenet_agent_changes_total", "counter", "Full states and changes taken.", stats.changes);
        one("tenet_agent_writes_total", "counter", "Writes to the kernel's tables.", self.applied);
        one(
            "tenet_agent_repairs_total",
            "counter",
            "Differences in the kernel that were put right.",
            stats.repairs,
        );
        let figures = self.prober.figures;
        one("tenet_agent_probes_total", "counter", "Probes sent to other hosts.", figures.sent);
        one(
            "tenet_agent_probes_answered_total",
            "counter",
            "Probes of other hosts answered.",
            figures.answered,
        );
        one(
            "tenet_agent_probes_ignored_total",
            "counter",
            "Frames for the agent that were no probes.",
            figures.ignored,
        );
        self.path_metrics(&mut text);
        text.metric("tenet_agent_events_total", "counter", "Events of the data plane, by kind.");
        for (kind, count) in &stats.events {
            text.value("tenet_agent_events_total", &[("kind", kind)], *count);
        }
        for (name, help, value) in self.kernel.slow_path() {
            let name = format!("tenet_stt_{name}_total");
            text.metric(&name, "counter", help);
            text.value(&name, &[], value);
        }
        match self.counters() {
            Err(cause) => tracing::warn!(%cause, "counters cannot be read"),
            Ok(ports) => port_metrics(&mut text, &ports),
        }
        text.finish()
    }
}

fn port_metrics(text: &mut Text, ports: &[agent::PortCounters]) {
    type Field = fn(&agent::PortCounters) -> u64;
    let fields: [(&str, &str, Field); 12] = [
        ("tenet_port_tx_frames_total", "Frames that the VM sent.", |c| c.tx_frames),
        ("tenet_port_tx_bytes_total", "Bytes that the VM sent.", |c| c.tx_bytes),
        ("tenet_port_rx_frames_total", "Frames delivered to the VM.", |c| c.rx_frames),
        ("tenet_port_rx_bytes_total", "Bytes delivered to the VM.", |c| c.rx_bytes),
        ("tenet_port_redirected_total", "Frames sent on because the port has moved.", |c| c.redirected),
        ("tenet_port_drained_total", "Of these, frames that a VM had left unread when it was moved.", |c| {
            c.drained
        }),
        ("tenet_port_answered_total", "ARP requests and pings answered from the table.", |c| c.answered),
        ("tenet_port_icmp_errors_total", "ICMP errors sent to the VM.", |c| c.icmp_errors),
        ("tenet_port_flooded_total", "Broadcast and multicast frames replicated.", |c| c.flooded),
        ("tenet_port_slow_total", "Frames given to the slow device of STT.", |c| c.slow),
        ("tenet_port_clamped_total", "TCP connections whose segment size was lowered to what fits.", |c| {
            c.clamped
        }),
        (
            "tenet_port_tap_unread_total",
            "Frames that the tap did not take, because no VM had it open or its queue was full.",
            |c| c.tap_unread,
        ),
    ];
    for (name, help, field) in fields {
        text.metric(name, "counter", help);
        for port in ports {
            text.value(name, &[("port", &port.port)], field(port));
        }
    }
    let name = "tenet_port_undrained_total";
    text.metric(
        name,
        "counter",
        "Frames that a moved VM left unread and that could not be sent on, by reason.",
    );
    for port in ports {
        for (reason, frames) in &port.undrained {
            text.value(name, &[("port", &port.port), ("reason", reason)], *frames);
        }
    }
    text.metric("tenet_drops_total", "counter", "Frames dropped, by where they came from and reason.");
    for port in ports {
        for (reason, frames) in &port.drops {
            text.value("tenet_drops_total", &[("port", &port.port), ("reason", reason)], *frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_programs_is_a_metric() {
        let counted = tenet_tables::Counters {
            tx_frames: 1001,
            tx_bytes: 1002,
            rx_frames: 1003,
            rx_bytes: 1004,
            redirected: 1005,
            answered: 1006,
            icmp_errors: 1007,
            flooded: 1008,
            slow: 1009,
            clamped: 1010,
        };
        let mut text = Text::default();
        port_metrics(&mut text, &[convert::counters("contoso/web/eth0".to_owned(), counted)]);
        let text = text.finish();
        for n in 1001..=1010 {
            assert!(
                text.contains(&format!("{{port=\"contoso/web/eth0\"}} {n}\n")),
                "{n} is missing:\n{text}"
            );
        }
    }
}
