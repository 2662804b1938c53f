//! Migrations under way and past: listed, and one of them shown whole.

use crate::cli::{MigrationName, MigrationsArgs, MigrationsCommand, PastArgs};
use crate::command::Context;
use crate::failure::{Failure, Outcome};
use crate::print::{self, Table, micros, or_dash};
use tenet_api::rest::{MigrationView, Progress, ReceiptView};
use tenet_model::{ActivatedBy, Through};

/// Past migrations that are listed unless all are asked for.
const LAST: usize = 20;
/// Columns for a reason in a table; `migrations show` has all of it.
const REASON: usize = 48;
/// As much of an id as tells migrations apart.
const ID: usize = 8;

/// `migrations`
pub async fn migrations(context: &Context, args: MigrationsArgs) -> Outcome {
    if let Some(MigrationsCommand::Show { migration }) = &args.command {
        return show(context, migration).await;
    }
    let client = context.client()?;
    let (mut running, receipts) = (client.migrations().await?, client.receipts().await?);
    running.retain(|m| args.past.vm.as_ref().is_none_or(|vm| *vm == m.vm));
    let receipts = of(receipts, &args.past);
    if context.json() {
        return print::json(&serde_json::json!({ "running": running, "receipts": receipts }));
    }
    print::table(&table(&running), "no migration is running")?;
    print::line("")?;
    past(&receipts, args.past.all)
}

/// `receipts`
pub async fn receipts(context: &Context, args: PastArgs) -> Outcome {
    let all = of(context.client()?.receipts().await?, &args);
    context.show(&all, |all| past(all, args.all))
}

/// Those of a VM, if one is named; oldest first, as they come.
fn of(mut all: Vec<ReceiptView>, args: &PastArgs) -> Vec<ReceiptView> {
    all.retain(|r| args.vm.as_ref().is_none_or(|vm| *vm == r.vm));
    all
}

/// The last of them as a table, and what it leaves out.
fn past(receipts: &[ReceiptView], all: bool) -> Outcome {
    let first = if all { 0 } else { receipts.len().saturating_sub(LAST) };
    let shown = receipts.get(first..).unwrap_or_default();
    print::table(&receipt_table(shown), "no migration has ended yet")?;
    if first > 0 {
        print::note(&format!("{first} older ones: --all shows them"));
    }
    if let Some(cut) = shown.iter().rev().find(|r| r.reason.as_ref().is_some_and(|t| brief(t).ends_with('…')))
    {
        print::note(&format!("reasons are cut: `tenet migrations show {}` has all of it", short_id(cut)));
    }
    Ok(())
}

/// `migrations show`
async fn show(context: &Context, name: &MigrationName) -> Outcome {
    let client = context.client()?;
    let (running, receipts) = (client.migrations().await?, client.receipts().await?);
    let under_way = running.into_iter().find(|m| names(name, &m.vm, &m.id.to_string()));
    let ended = receipts.into_iter().rev().find(|r| names(name, &r.vm, &r.id.to_string()));
    match (under_way, ended) {
        // Of a VM that moves again this is what somebody wants to know.
        (Some(m), _) => context.show(&m, |m| {
            print::text(&table(std::slice::from_ref(m)).text(print::fancy()))?;
            print::line(&format!("\nits receipt is written when it ends; id {}", m.id))
        }),
        (None, Some(r)) => context.show(&r, |r| {
            receipt(r)?;
            print::line(&format!("  asked for at                 {}", print::utc(r.started_ms)))?;
            print::line(&format!("  id                           {}", r.id))?;
            if !r.moved {
                print::note(&format!("next: {}", after_rollback(r)));
            }
            Ok(())
        }),
        (None, None) => Err(Failure::new(
            format!("no migration {name} is known"),
            "`tenet migrations --all` lists those under way and those past, with their ids",
        )),
    }
}

fn names(name: &MigrationName, vm: &tenet_model::VmRef, id: &str) -> bool {
    match name {
        MigrationName::Vm(named) => named == vm,
        MigrationName::Id(begin) => id.starts_with(begin.as_str()),
    }
}

fn short_id(r: &ReceiptView) -> String {
    r.id.to_string().chars().take(ID).collect()
}

/// A reason on one line of a table, without what to do about it.
fn brief(reason: &str) -> String {
    let reason = told(reason).0;
    // Nearly all begin so; what follows is what tells them apart.
    let reason = reason.strip_prefix("the hypervisor's migration failed: ").unwrap_or(reason);
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= REASON {
        return line;
    }
    line.chars().take(REASON - 1).collect::<String>().trim_end().to_owned() + "…"
}

fn receipt_table(all: &[ReceiptView]) -> Table {
    let mut table = Table::new([
        "STARTED",
        "ID",
        "VM",
        "FROM",
        "TO",
        "RESULT",
        "THROUGH",
        "PAUSE",
        "FIRST FRAME",
        "REDIRECTED",
        "LOST",
        "PREPARED IN",
        "LAST HOST AFTER",
        "REASON",
    ]);
    for r in all {
        table.row([
            print::utc(r.started_ms),
            short_id(r),
            r.vm.to_string(),
            r.from.to_string(),
            r.to.to_string(),
            if r.moved { "moved" } else { "rolled back" }.to_owned(),
            by(r.through, r.post_copy),
            or_dash(r.pause_us.map(micros)),
            or_dash(r.first_frame_us.map(micros)),
            frames(r, r.redirected),
            frames(r, r.lost),
            micros(r.prepare_us),
            micros(r.last_ack_us),
            or_dash(r.reason.as_deref().map(brief)),
        ]);
    }
    table
}

/// Running migrations as a table.
pub fn table(all: &[MigrationView]) -> Table {
    let mut table = Table::new(["STARTED", "VM", "FROM", "TO", "PHASE", "THROUGH", "MOVED", "WAITING FOR"]);
    for m in all {
        table.row([
            print::utc(m.started_ms),
            m.vm.to_string(),
            m.from.to_string(),
            m.to.to_string(),
            m.phase.clone(),
            by(m.through, m.post_copy),
            or_dash(m.progress.as_ref().map(progress)),
            or_dash(waiting_for(m)),
        ]);
    }
    table
}

/// `qmp, post-copy`
fn by(through: Through, post_copy: bool) -> String {
    format!("{}{}", through.name(), if post_copy { ", post-copy" } else { "" })
}

/// `active, 12.0 of 96.0 MiB`
fn progress(p: &Progress) -> String {
    if p.total == 0 {
        return p.status.clone();
    }
    format!("{}, {} of {} MiB", p.status, print::mib(p.transferred), print::mib(p.total))
}

/// The hosts that a migration waits for, if it waits for any.
pub fn waiting_for(m: &MigrationView) -> Option<String> {
    (!m.waiting_for.is_empty()).then(|| m.waiting_for.join(" "))
}

/// A receipt in words.
pub fn receipt(r: &ReceiptView) -> Outcome {
    if r.moved {
        print::line(&format!("VM {} moved from host {} to host {}", r.vm, r.from, r.to))?;
    } else {
        let reason = or_dash(r.reason.as_deref().map(|r| told(r).0));
        print::line(&format!("VM {} stays on host {}: {reason}", r.vm, r.from))?;
    }
    let activated = match r.activated_by {
        Some(ActivatedBy::Frame) => ", switched by its first frame",
        Some(ActivatedBy::Resume) => ", switched by its hypervisor's word",
        Some(ActivatedBy::Operator) => ", switched by an operator",
        None => "",
    };
    let through = match r.through {
        Through::SwitchOnly | Through::Other => "another tool",
        Through::Qmp => "the agent, by QMP",
        Through::Libvirt => "the agent, by libvirt",
    };
    let post_copy = if r.post_copy { ", in post-copy" } else { "" };
    print::line(&format!("  moved by                     {through}{post_copy}{activated}"))?;
    if !r.ports.is_empty() {
        let ports: Vec<&str> = r.ports.iter().map(tenet_model::Name::as_str).collect();
        print::line(&format!("  ports                        {}", ports.join(" ")))?;
    }
    for (name, us) in [
        ("VM paused                  ", r.pause_us),
        ("  by QEMU's own clock      ", r.downtime_us),
        ("first frame after RESUME   ", r.first_frame_us),
    ] {
        if let Some(us) = us {
            print::line(&format!("  {name}  {}", micros(us)))?;
        }
    }
    print::line(&format!("  prepared on all hosts in     {}", micros(r.prepare_us)))?;
    if r.moved {
        print::line(&format!("  last host knew after         {}", micros(r.last_ack_us)))?;
        for (host, us) in &r.acks_us {
            print::line(&format!("    host {host:<21} {}", micros(*us)))?;
        }
    }
    for host in &r.behind {
        print::line(&format!(
            "    host {host:<21} has NOT heard: VMs there do not reach it until its agent is back"
        ))?;
    }
    print::line(&format!("  frames sent on (redirected)  {}", frames(r, r.redirected)))?;
    if r.drained > 0 {
        print::line(&format!("    left unread at STOP        {}", r.drained))?;
    }
    print::line(&format!("  frames lost                  {}", frames(r, r.lost)))?;
    if r.moved && !r.exact {
        print::line("  (a host's counters are missing, so that the numbers of frames are not exact)")?;
    }
    Ok(())
}

/// A number of frames as far as it is known; a move that was rolled back was not counted.
fn frames(r: &ReceiptView, number: u64) -> String {
    match (r.exact, r.moved) {
        (true, _) => number.to_string(),
        (false, true) => format!("about {number}"),
        (false, false) => "-".to_owned(),
    }
}

/// A reason, and what to do about it where whoever gave it said so.
pub fn told(reason: &str) -> (&str, Option<&str>) {
    reason.rsplit_once(tenet_model::NEXT).map_or((reason, None), |(reason, next)| (reason, Some(next)))
}

/// Where to look for the cause of a rollback, by what its reason is about.
pub fn after_rollback(r: &ReceiptView) -> String {
    let (vm, from, to) = (&r.vm, &r.from, &r.to);
    let (reason, next) = told(r.reason.as_deref().unwrap_or_default());
    if let (Some(next), true) = (next, reason.starts_with(&format!("host {to} "))) {
        return format!("on host {to}: {next}; then again: `tenet vm migrate {vm} --to {to}`");
    }
    if let Some(next) = next {
        return format!("on host {from}: {next}; then again: `tenet vm migrate {vm} --to {to}`");
    }
    if reason.starts_with("the hypervisor's migration") {
        let log = match r.through {
            Through::Libvirt => "`journalctl -u libvirtd` (or `virtqemud`)",
            Through::Qmp | Through::SwitchOnly | Through::Other => "QEMU's own log",
        };
        return format!(
            "read {log} on host {from}, then on host {to}; then again: `tenet vm migrate {vm} --to {to}`"
        );
    }
    for host in [to, from] {
        if reason.contains(&format!("host {host} ")) {
            return format!("`tenet host show {host}` shows how that host is");
        }
    }
    format!("`tenet vm show {vm}` shows where it is; begin again with `tenet vm migrate {vm} --to {to}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rollback_one_looks_where_the_cause_is() {
        let hint = |through, reason: &str| {
            after_rollback(&ReceiptView {
                through,
                reason: Some(reason.to_owned()),
                ..serde_json::from_str(RECEIPT).unwrap()
            })
        };
        let failed = "the hypervisor's migration failed: Unable to write to socket";
        let libvirt = hint(Through::Libvirt, failed);
        assert!(libvirt.contains("libvirtd` (or `virtqemud`) on host h1"), "{libvirt}");
        assert!(hint(Through::Qmp, failed).contains("QEMU's own log on host h1"));
        let silent = "host h2 did not answer within 10 s: check that its agent runs";
        assert!(hint(Through::Qmp, silent).contains("tenet host show h2"));
        assert!(hint(Through::Qmp, "host h1 says that it failed").contains("tenet host show h1"));
        // Who gave the reason knows better than its kind where to look.
        let told = format!("{failed}{}start the agent with --libvirt", tenet_model::NEXT);
        let told = hint(Through::Libvirt, &told);
        assert_eq!(
            told,
            "on host h1: start the agent with --libvirt; then again: `tenet vm migrate a/sql --to h2`"
        );
        let there = format!("host h2 is not ready for post-copy: no{}start QEMU anew", tenet_model::NEXT);
        assert!(hint(Through::Qmp, &there).starts_with("on host h2: start QEMU anew"));
        assert!(hint(Through::Qmp, "asked for").contains("tenet vm migrate a/sql --to h2"));
    }

    #[test]
    fn a_table_of_receipts_has_times_ids_and_short_reasons() {
        let long = "the hypervisor's migration failed: Unable\n  to write to socket: Bad file descriptor at the other end";
        let rolled = ReceiptView {
            reason: Some(long.to_owned()),
            started_ms: 1_774_000_000_000,
            ..serde_json::from_str(RECEIPT).unwrap()
        };
        let text = receipt_table(&[rolled]).text(false);
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("2026-03-20T09:46:40Z  00000000  a/sql"), "{row}");
        assert_eq!(text.lines().count(), 2, "{text}");
        let reason = row.rsplit("  ").next().unwrap();
        assert!(reason.starts_with("Unable to write to socket: Bad file"), "{reason}");
        assert!(reason.ends_with('…') && reason.chars().count() <= REASON, "{reason}");
        assert_eq!(brief("it was cancelled"), "it was cancelled");
    }

    const RECEIPT: &str = r#"{"vm": "a/sql", "id": "00000000-0000-0000-0000-000000000009", "from": "h1", "to": "h2",
        "moved": false, "reason": null, "redirected": 0, "lost": 0, "started_ms": 1, "prepare_us": 1,
        "last_ack_us": 0, "acks_us": {}}"#;
}
