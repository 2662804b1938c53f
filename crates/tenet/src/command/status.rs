//! Desired, applied, proven.

use crate::command::{Context, migrations, not_in_sync, object, paths};
use crate::failure::Outcome;
use crate::print::{self, Table, or_dash, yes};
use tenet_api::rest::{HostStatus, OffloadTest, PortStatusView, Status, Uplink};

/// `status`
pub async fn status(context: &Context) -> Outcome {
    let status = context.client()?.status().await?;
    context.show(&status, people)?;
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
        "hosts repair themselves within seconds, and a port begins to work as soon as its device is there; \
         `tenet host show NAME` tells what is wrong with one",
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
    uplinks(&status.hosts)?;
    problems(&status.hosts)?;
    if !status.switching.is_empty() {
        print::line("")?;
        for n in &status.switching {
            print::line(&format!("network {}: method {}", n.name, object::method(n)))?;
        }
    }
    if !status.paths.is_empty() {
        print::line("")?;
        paths::findings(&status.paths)?;
    }
    if !status.migrations.is_empty() {
        print::line("")?;
        print::text(&migrations::table(&status.migrations).text(print::fancy()))?;
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

/// How each uplink receives, and what the self-test of each method came to.
fn uplinks(hosts: &[HostStatus]) -> Outcome {
    let mut table = Table::new(["HOST", "UPLINK", "MTU", "RECEIVES", "SELF-TEST", "MERGES UDP"]);
    let mut lines = Vec::new();
    for h in hosts {
        for u in &h.measured {
            table.row([
                h.name.to_string(),
                u.device.clone(),
                u.mtu.to_string(),
                if u.receive.is_empty() { "-".to_owned() } else { u.receive.clone() },
                outcomes(&u.tests),
                merges(u),
            ]);
            let place = format!("host {}, uplink {}", h.name, u.device);
            if !u.receive_reason.is_empty() {
                lines.push(format!("{place}: receives by {}: {}", u.receive, u.receive_reason));
            }
            lines.extend(u.tests.iter().filter_map(failing).map(|text| format!("{place}: {text}")));
            lines.extend(u.hints.iter().map(|hint| format!("{place}: {hint}")));
        }
    }
    if table.is_empty() {
        return Ok(());
    }
    print::line("")?;
    print::text(&table.text(print::fancy()))?;
    if lines.is_empty() { Ok(()) } else { print::text(&(lines.join("\n") + "\n")) }
}

/// `all ok`, or what is not: `stt degraded, vxlan untested`.
fn outcomes(tests: &[OffloadTest]) -> String {
    let odd: Vec<String> =
        tests.iter().filter(|t| t.outcome != "ok").map(|t| format!("{} {}", t.method, t.outcome)).collect();
    match (tests.len(), odd.len()) {
        (0, _) => "-".to_owned(),
        (_, 0) => "all ok".to_owned(),
        (all, odd) if all == odd && tests.iter().all(|t| t.outcome == "untested") => "untested".to_owned(),
        _ => odd.join(", "),
    }
}

/// UDP ports whose frames the kernel merges.
fn merges(uplink: &Uplink) -> String {
    let ports: Vec<String> = uplink.tunnels.iter().filter(|t| t.merges).map(|t| t.port.to_string()).collect();
    if ports.is_empty() { "-".to_owned() } else { ports.join(" ") }
}

/// What of a self-test did not go well, and why.
fn failing(test: &OffloadTest) -> Option<String> {
    if test.outcome == "ok" || test.outcome == "untested" && test.detail.is_empty() {
        return None;
    }
    let parts = [("plain", &test.plain), ("checksums", &test.checksum), ("segments", &test.segments)];
    let wrong = parts.iter().filter(|(_, text)| !text.is_empty() && *text != "ok");
    let mut wrong: Vec<String> = wrong.map(|(what, text)| format!("{what}: {text}")).collect();
    wrong.extend((!test.detail.is_empty()).then(|| test.detail.clone()));
    let peer = if test.peer.is_empty() { String::new() } else { format!(" with {}", test.peer) };
    Some(format!("self-test of {}{peer} is {}: {}", test.method, test.outcome, wrong.join("; ")))
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
            if as_desired(p) && !p.detail.is_empty() {
                lines.push(format!("host {name}: port {} ({}): {}", p.port, p.device, p.detail));
            } else if !as_desired(p) {
                let detail = if p.detail.is_empty() { "no detail" } else { &p.detail };
                lines.push(format!(
                    "host {name}: port {} ({}) is {state}, should be {}: {detail}",
                    p.port, p.device, p.desired_state
                ));
            } else if !p.carrier && p.desired_state != "prepared" {
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

/// The ways of receiving that were tried, and the self-test in full.
fn ways(h: &HostStatus) -> Outcome {
    let mut ways =
        Table::new(["UPLINK", "RECEIVES BY", "WORKS", "PIECES PER 64 KB", "TIME PER 64 KB", "DETAIL"]);
    let mut tests =
        Table::new(["UPLINK", "METHOD", "WITH", "OUTCOME", "PLAIN", "CHECKSUMS", "SEGMENTS", "LARGEST"]);
    for u in &h.measured {
        for w in &u.ways {
            ways.row([
                u.device.clone(),
                w.name.clone(),
                yes(w.works),
                or_dash((w.frames != 0).then_some(w.frames)),
                or_dash((w.nanoseconds != 0).then(|| print::micros(w.nanoseconds.div_ceil(1000)))),
                w.detail.clone(),
            ]);
        }
        for t in &u.tests {
            let word = |text: &String| or_dash((!text.is_empty()).then_some(text));
            tests.row([
                u.device.clone(),
                t.method.clone(),
                word(&t.peer),
                t.outcome.clone(),
                word(&t.plain),
                word(&t.checksum),
                word(&t.segments),
                or_dash((t.largest != 0).then_some(t.largest)),
            ]);
        }
    }
    for table in [ways, tests].iter().filter(|t| !t.is_empty()) {
        print::line("")?;
        print::text(&table.text(print::fancy()))?;
    }
    Ok(())
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
    if !h.pool.is_empty() {
        let ranges: Vec<String> = h.pool.ranges.iter().map(ToString::to_string).collect();
        print::line(&format!("  rewrite pool {}: {}", ranges.join(" "), object::pool_use(&h.pool)))?;
    }
    networks(std::slice::from_ref(h))?;
    uplinks(std::slice::from_ref(h))?;
    ways(h)?;
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
