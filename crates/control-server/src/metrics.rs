//! Metrics in Prometheus' text format (version 0.0.4).

use crate::engine::Engine;
use std::{
    fmt::Write as _,
    sync::{PoisonError, atomic::Ordering},
};

/// All metrics.
pub(crate) fn text(engine: &Engine) -> String {
    let mut out = String::new();
    let (revision, sessions, hosts, migrations, lags) = {
        let core = engine.core();
        let desired = core.desired();
        (desired.revision, core.sessions(), desired.hosts.len(), desired.migrations.len(), core.lags())
    };
    let figures = &engine.figures;
    let n = |v: usize| u64::try_from(v).unwrap_or(u64::MAX);
    one(&mut out, "tenet_controller_revision", "gauge", "Revision of the desired state.", revision);
    one(&mut out, "tenet_controller_hosts", "gauge", "Hosts of the site.", n(hosts));
    one(&mut out, "tenet_controller_sessions", "gauge", "Agents with a session.", n(sessions));
    one(&mut out, "tenet_controller_migrations", "gauge", "Running migrations.", n(migrations));
    head(&mut out, "tenet_controller_migrations_total", "counter", "Finished migrations by result.");
    for (result, count) in [("moved", &figures.migrations_moved), ("rolled_back", &figures.migrations_back)] {
        let count = count.load(Ordering::Relaxed);
        line(&mut out, "tenet_controller_migrations_total", &[("result", result)], count);
    }
    let changes = figures.changes.load(Ordering::Relaxed);
    one(&mut out, "tenet_controller_changes_total", "counter", "Changes of the desired state seen.", changes);
    let messages = figures.messages.load(Ordering::Relaxed);
    one(&mut out, "tenet_controller_messages_total", "counter", "Full states and deltas sent.", messages);
    let events = engine.events.count();
    one(&mut out, "tenet_controller_events_total", "counter", "Events seen.", events);
    let name = "tenet_controller_generation_lag";
    head(
        &mut out,
        name,
        "gauge",
        "Revisions by which a host's acknowledged state lies behind its desired one.",
    );
    for (host, _, lag) in &lags {
        line(&mut out, name, &[("host", host.as_str())], *lag);
    }
    let name = "tenet_controller_host_connected";
    head(&mut out, name, "gauge", "Whether a host's agent has a session.");
    for (host, connected, _) in &lags {
        line(&mut out, name, &[("host", host.as_str())], u64::from(*connected));
    }
    let name = "tenet_controller_requests_total";
    head(&mut out, name, "counter", "REST requests by route and status.");
    for ((route, status), count) in &*figures.requests.lock().unwrap_or_else(PoisonError::into_inner) {
        line(&mut out, name, &[("route", route), ("status", &status.to_string())], *count);
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    line(out, name, &[], value);
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let labels = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect::<Vec<_>>().join(",");
    let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
    let _ = writeln!(out, "{name}{labels} {value}");
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
