//! Desired, applied, proven.

use crate::command::{Context, migrate, not_in_sync};
use crate::failure::Outcome;
use crate::print::{self, Table, or_dash, yes};
use tenet_api::rest::{HostStatus, PortStatusView, Status};

/// `status`
pub async fn status(context: &Context) -> Outcome {
    let status = context.client()?.status().await?;
    context.show(&status, people)?;
    let wrong = status.hosts.iter().flat_map(|h| &h.ports).filter(|p| !as_desired(p)).count();
    if status.in_sync && wrong > 0 {
        return Err(not_in_sync(
            format!("{wrong} ports are not as desired"),
            "the lines above say what each lacks; a port begins to work as soon as its device is there",
        ));
    }
    if status.in_sync {
        return Ok(());
    }
    let hosts: Vec<_> = status.hosts.iter().filter(|h| !h.in_sync).map(|h| h.name.to_string()).collect();
    let text = match hosts.as_slice() {
        [] => "the site is not in sync".to_owned(),
        names => format!("not in sync: host {}", names.join(", ")),
    };
    Err(not_in_sync(
        text,
        "hosts repair themselves within seconds; `tenet host show NAME` tells what is wrong with one",
    ))
}

fn people(status: &Status) -> Outcome {
    print::line(&format!(
        "site revision {}, controller {}: {}",
        status.revision,
        status.version,
        if status.in_sync { "every host is proven to hold what is desired" } else { "not in sync" }
    ))?;
    print::line("")?;
    let mut hosts =
        Table::new(["HOST", "PA", "CONNECTED", "DESIRED", "APPLIED", "PROVEN", "AGE", "PORTS", "IN SYNC"]);
    for h in &status.hosts {
        hosts.row([
            h.name.to_string(),
            h.pa.to_string(),
            yes(h.connected),
            h.desired_generation.to_string(),
            or_dash(h.applied_generation),
            or_dash(h.proven_generation),
            h.proven_age_ms.map_or_else(|| "-".to_owned(), |ms| print::micros(ms.saturating_mul(1000))),
            h.ports.len().to_string(),
            yes(h.in_sync),
        ]);
    }
    print::table(&hosts, "no hosts; let one join: tenet host token NAME --pa ADDRESS")?;
    networks(&status.hosts)?;
    problems(&status.hosts)?;
    if !status.migrations.is_empty() {
        print::line("")?;
        print::text(&migrate::table(&status.migrations).text(print::fancy()))?;
    }
    Ok(())
}

fn networks(hosts: &[HostStatus]) -> Outcome {
    let mut table = Table::new([
        "HOST",
        "NETWORK",
        "DESIRED",
        "APPLIED",
        "PROVEN",
        "ROWS",
        "DIGEST DESIRED",
        "DIGEST PROVEN",
        "IN SYNC",
    ]);
    for h in hosts {
        for n in &h.networks {
            table.row([
                h.name.to_string(),
                n.network.to_string(),
                n.desired_generation.to_string(),
                or_dash(n.applied_generation),
                or_dash(n.proven_generation),
                n.rows.to_string(),
                n.desired_digest.clone(),
                or_dash(n.proven_digest.as_ref()),
                yes(n.in_sync),
            ]);
        }
    }
    if table.is_empty() {
        return Ok(());
    }
    print::line("")?;
    print::text(&table.text(print::fancy()))
}

/// Whether a port's device is there and does what it should.
fn as_desired(port: &PortStatusView) -> bool {
    port.present && port.state.as_deref() == Some(port.desired_state.as_str())
}

/// Ports that are not as desired, and what the agents say.
fn problems(hosts: &[HostStatus]) -> Outcome {
    let mut lines = Vec::new();
    for h in hosts {
        let name = &h.name;
        if !h.connected {
            lines.push(format!(
                "host {name}: its agent is not connected; forwarding goes on with what it has"
            ));
        }
        lines.extend(h.error.iter().map(|e| format!("host {name}: refused its last state: {e}")));
        for p in &h.ports {
            let state = p.state.as_deref().filter(|s| !s.is_empty()).unwrap_or("not there");
            if !as_desired(p) || !p.detail.is_empty() {
                let detail = if p.detail.is_empty() { "no detail" } else { &p.detail };
                lines.push(format!(
                    "host {name}: port {} ({}) is {state}, should be {}: {detail}",
                    p.port, p.device, p.desired_state
                ));
            } else if !p.carrier {
                lines.push(format!(
                    "host {name}: port {} ({}) has no carrier: is its VM running?",
                    p.port, p.device
                ));
            }
        }
        lines.extend(h.problems.iter().map(|p| format!("host {name}: {p}")));
        lines.extend(h.repaired.iter().map(|p| format!("host {name}: repaired: {p}")));
    }
    if lines.is_empty() {
        return Ok(());
    }
    print::line("")?;
    print::text(&(lines.join("\n") + "\n"))
}

/// `host show`
pub fn host(h: &HostStatus) -> Outcome {
    let state = if h.connected { "connected" } else { "not connected" };
    print::line(&format!("host {}: provider address {}, {state}", h.name, h.pa))?;
    print::line(&format!(
        "  agent {}, kernel {}, programs by {}, uplink {} (MTU {})",
        or_dash(h.version.as_ref()),
        or_dash(h.kernel.as_ref()),
        or_dash(h.hook.as_ref()),
        if h.uplinks.is_empty() { "-".to_owned() } else { h.uplinks.join(" ") },
        or_dash(h.uplink_mtu),
    ))?;
    print::line(&format!(
        "  desired {}, applied {}, proven {}, in sync: {}",
        h.desired_generation,
        or_dash(h.applied_generation),
        or_dash(h.proven_generation),
        yes(h.in_sync),
    ))?;
    networks(std::slice::from_ref(h))?;
    let mut ports = Table::new(["PORT", "DEVICE", "DESIRED", "STATE", "CARRIER", "MTU", "DETAIL"]);
    for p in &h.ports {
        ports.row([
            p.port.to_string(),
            p.device.clone(),
            p.desired_state.clone(),
            or_dash(p.state.as_ref().filter(|s| !s.is_empty())),
            yes(p.carrier),
            p.mtu.to_string(),
            p.detail.clone(),
        ]);
    }
    print::line("")?;
    print::table(&ports, "no ports")?;
    problems(std::slice::from_ref(h))
}
