//! Table, events and counters.

use crate::cli::{CountersArgs, EventsArgs, TableArgs};
use crate::command::{Context, not_in_sync};
use crate::failure::Outcome;
use crate::print::{self, Table, or_dash, yes};
use futures::StreamExt as _;
use tenet_api::rest::{EventLine, PortCounters, TableRow};

/// `table`
pub async fn table(context: &Context, args: TableArgs) -> Outcome {
    let mut found = context.client()?.table(args.host.as_ref()).await?;
    if let Some(network) = &args.network {
        found.rows.retain(|r| r.network == *network);
    }
    context.show(&found, |t| print::table(&lookup(&t.rows), "no lookup records"))?;
    let bad: Vec<_> = found.rows.iter().filter(|r| !r.in_sync).collect();
    // Programs find it in the rows.
    for row in bad.iter().filter(|_| !context.json()) {
        let detail = if row.detail.is_empty() { "not as desired" } else { &row.detail };
        print::note(&format!("{} {}: {detail}", row.network, row.ca));
    }
    match bad.len() {
        0 => Ok(()),
        n => Err(not_in_sync(
            format!("{n} records are not in sync"),
            "`tenet status` shows which hosts differ",
        )),
    }
}

/// The lookup table as HNV printed it, and whose each record is.
pub fn lookup(rows: &[TableRow]) -> Table {
    let headings = ["NETWORK", "CA", "MAC", "VSID", "PA", "METHOD", "TYPE", "PORT", "GENERATION", "IN SYNC"];
    let mut table = Table::new(headings);
    let rewritten = rows.iter().any(|r| r.rewrite_pa.is_some());
    if rewritten {
        table.heading("REWRITTEN TO");
    }
    for r in rows {
        table.row([
            r.network.to_string(),
            r.ca.to_string(),
            r.mac.to_string(),
            r.vsid.to_string(),
            r.alt_pa.map_or_else(|| r.pa.to_string(), |alt| format!("{} ({alt})", r.pa)),
            r.method.to_string(),
            r.kind.clone(),
            or_dash(r.port.as_ref()),
            r.generation.to_string(),
            yes(r.in_sync),
        ]);
        if rewritten {
            table.cell(or_dash(r.rewrite_pa));
        }
    }
    table
}

/// `events`
pub async fn events(context: &Context, args: EventsArgs) -> Outcome {
    let client = context.client()?;
    let events = client.events(args.follow).await?;
    let mut events = std::pin::pin!(events);
    let mut any = false;
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(event) = next.transpose()? else { break };
        any = true;
        if context.json() {
            // One object a line, so that a reader can follow.
            print::line(&serde_json::to_string(&event).unwrap_or_default())?;
        } else {
            print::line(&event_line(&event))?;
        }
    }
    if any || context.json() { Ok(()) } else { print::line("nothing happened yet") }
}

fn event_line(event: &EventLine) -> String {
    let place = event.host.as_ref().map_or_else(String::new, |h| format!(" {h}"));
    let port = event.port.as_ref().map_or_else(String::new, |p| format!(" {p}"));
    format!("{} {:<20}{place}{port}  {}", clock(event.time_ms), event.kind, event.text)
}

/// A time of day in UTC.
fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

/// `counters`
pub async fn counters(context: &Context, args: CountersArgs) -> Outcome {
    let found = context.client()?.counters(args.host.as_ref()).await?;
    context.show(&found, |c| print::table(&counted(&c.ports), "no ports"))?;
    if found.missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = found.missing.iter().map(|(h, why)| format!("{h} ({why})")).collect();
    Err(not_in_sync(
        format!("could not ask host {}", missing.join(", ")),
        "`tenet status` shows which hosts are connected",
    ))
}

fn counted(ports: &[PortCounters]) -> Table {
    let mut table = Table::new([
        "HOST",
        "PORT",
        "SENT",
        "BYTES",
        "RECEIVED",
        "BYTES",
        "ANSWERED",
        "ICMP ERRORS",
        "REDIRECTED",
        "DRAINED",
        "FLOODED",
        "SLOW",
        "CLAMPED",
        "DROPS",
    ]);
    for p in ports {
        let reasons = p.drops.iter().map(|(reason, n)| (reason.as_str(), *n));
        let drops = reasons.chain([("tap_unread", p.tap_unread)]).filter(|(_, n)| *n > 0);
        let drops = drops.map(|(reason, n)| format!("{reason} {n}"));
        let undrained = p.undrained.iter().filter(|(_, n)| **n > 0);
        let drops: Vec<_> = drops.chain(undrained.map(|(why, n)| format!("undrained ({why}) {n}"))).collect();
        table.row([
            p.host.to_string(),
            p.port.clone(),
            p.tx_frames.to_string(),
            p.tx_bytes.to_string(),
            p.rx_frames.to_string(),
            p.rx_bytes.to_string(),
            p.answered.to_string(),
            p.icmp_errors.to_string(),
            p.redirected.to_string(),
            p.drained.to_string(),
            p.flooded.to_string(),
            p.slow.to_string(),
            p.clamped.to_string(),
            if drops.is_empty() { "-".to_owned() } else { drops.join(", ") },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_day() {
        assert_eq!(clock(1_700_000_000_123), "22:13:20.123Z");
    }

    #[test]
    fn every_counter_is_shown() {
        let port = PortCounters {
            host: "h1".parse().unwrap(),
            port: "contoso/web/eth0".to_owned(),
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
            tap_unread: 1012,
            drops: [("loop".to_owned(), 1011)].into(),
            drained: 1013,
            undrained: [("broadcast".to_owned(), 1014)].into(),
        };
        let text = counted(&[port]).text(false);
        for n in 1001..=1014 {
            assert!(text.contains(&n.to_string()), "{n} is missing:\n{text}");
        }
    }
}
