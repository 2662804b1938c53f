//! Live migrations.

use crate::command::Context;
use crate::failure::{Failure, Outcome};
use crate::print::{self, Table, micros, or_dash};
use std::collections::BTreeMap;
use std::time::Duration;
use tenet_api::client::Client;
use tenet_api::rest::{Migrate, MigrationView, Progress, ReceiptOrMigration, ReceiptView, Wait};
use tenet_model::{ActivatedBy, HostName, Name, Through, VmRef};
use tokio::signal::unix::{SignalKind, signal};

/// Time between two looks at a running migration.
const LOOK: Duration = Duration::from_millis(20);

/// `vm migrate`
pub async fn migrate(
    context: &Context,
    vm: &VmRef,
    to: HostName,
    given: Vec<(Option<Name>, String)>,
    (through, uri): (Through, Option<String>),
    no_wait: bool,
) -> Outcome {
    let client = context.client()?;
    let view = client.vm(vm).await?;
    let mut attached = view.ports.iter().filter(|p| p.host.is_some()).map(|p| p.name.port.clone());
    let mut devices = BTreeMap::new();
    for (port, device) in given {
        let port = port.or_else(|| attached.next()).ok_or_else(|| {
            Failure::new(
                format!("VM {vm} has no attached port for device {device}"),
                format!("`tenet vm show {vm}` shows its ports"),
            )
        })?;
        devices.insert(port, device);
    }
    let request = Migrate { to: to.clone(), devices, through, uri };
    // Known before it is prepared, so that Ctrl-C has something to give up.
    let begun = client.clone().with_wait(Wait::Stored, None).migrate(vm, &request).await?;
    let mut interrupted = signal(SignalKind::interrupt())
        .map_err(|e| Failure::of(&e, "check the limits on open files and processes"))?;
    let followed = async {
        let waiting = format!("telling all hosts that VM {vm} moves to host {to}");
        let prepared = until(&client, &begun, |m| m.phase != "preparing");
        // It may have ended before it was seen prepared: then only the receipt says where the VM belongs.
        let Some(migration) = print::progress(&waiting, prepared).await? else { return Ok(None) };
        if no_wait {
            return Ok(Some(migration));
        }
        if !through.driven() {
            print::note(&format!("VM {vm} may move to host {to} now; its first frame there switches it"));
        }
        moving(&client, &migration).await.map(|()| None)
    };
    tokio::select! {
        followed = followed => match followed? {
            None => ended(context, &client, &begun).await,
            Some(migration) => context.show(&migration, |m| {
                let next = if m.through.driven() { "is being moved" } else { "may move" };
                print::line(&format!("{}: VM {vm} {next} to host {} now; its first frame there switches it", m.phase, m.to))
            }),
        },
        _ = interrupted.recv() => {
            print::note("\ngiving it up");
            match client.migrate_cancel(vm).await {
                Ok(receipt) => finished(context, &receipt),
                // It was switched in this very moment: there is no way back, and none is needed.
                Err(refused) => {
                    print::note(&format!("{refused}"));
                    until(&client, &begun, |_| false).await?;
                    ended(context, &client, &begun).await
                }
            }
        }
    }
}

/// Shows how far a migration is, until it is over.
async fn moving(client: &Client, migration: &MigrationView) -> Outcome {
    let mut bar = print::Bar::default();
    let gone = until(client, migration, |m| {
        bar.show(&stage(m), m.progress.as_ref().map_or((0, 0), |p| (p.transferred, p.total)));
        false
    })
    .await;
    bar.end();
    gone.map(drop)
}

/// What a migration does at the moment.
fn stage(m: &MigrationView) -> String {
    match (m.phase.as_str(), &m.progress) {
        ("switched", _) => format!("runs on {}, waiting for {}", m.to, waiting_for(m)),
        (_, Some(p)) if p.status == "waiting" => format!(
            "waiting for a QEMU on {}: start it there with what `tenet vm run-args {} --host {}` prints, and -incoming",
            m.to, m.vm, m.to
        ),
        (_, Some(p)) => p.status.clone(),
        (phase, None) => phase.to_owned(),
    }
}

/// Shows the receipt of a migration that is over.
async fn ended(context: &Context, client: &Client, migration: &MigrationView) -> Outcome {
    let vm = &migration.vm;
    let receipts = client.receipts().await?;
    match receipts.into_iter().rev().find(|r| r.id == migration.id) {
        Some(found) => finished(context, &found),
        None => Err(Failure::new(
            format!("the migration of VM {vm} ended without a receipt"),
            format!("`tenet vm show {vm}` shows where it is"),
        )),
    }
}

/// `vm switch`
pub async fn switch(context: &Context, vm: &VmRef) -> Outcome {
    match context.client()?.migrate_switch(vm).await? {
        ReceiptOrMigration::Receipt(receipt) => finished(context, &receipt),
        ReceiptOrMigration::Migration(m) => context
            .show(&m, |m| print::line(&format!("{}: waiting for {}", m.phase, m.waiting_for.join(", ")))),
    }
}

/// `migrations`
pub async fn migrations(context: &Context) -> Outcome {
    let client = context.client()?;
    let (running, receipts) = (client.migrations().await?, client.receipts().await?);
    if context.json() {
        return print::json(&serde_json::json!({ "running": running, "receipts": receipts }));
    }
    print::table(&table(&running), "no migration is running")?;
    print::line("")?;
    print::table(&receipt_table(&receipts), "no migration has ended yet")
}

/// `receipts`
pub async fn receipts(context: &Context) -> Outcome {
    context.show(&context.client()?.receipts().await?, |all| {
        print::table(&receipt_table(all), "no migration has ended yet")
    })
}

fn receipt_table(all: &[ReceiptView]) -> Table {
    let mut table = Table::new([
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
            r.vm.to_string(),
            r.from.to_string(),
            r.to.to_string(),
            if r.moved { "moved" } else { "rolled back" }.to_owned(),
            r.through.name().to_owned(),
            or_dash(r.pause_us.map(micros)),
            or_dash(r.first_frame_us.map(micros)),
            frames(r, r.redirected),
            frames(r, r.lost),
            micros(r.prepare_us),
            micros(r.last_ack_us),
            or_dash(r.reason.as_ref()),
        ]);
    }
    table
}

/// Running migrations as a table.
pub fn table(all: &[MigrationView]) -> Table {
    let mut table = Table::new(["VM", "FROM", "TO", "PHASE", "THROUGH", "MOVED", "WAITING FOR"]);
    for m in all {
        table.row([
            m.vm.to_string(),
            m.from.to_string(),
            m.to.to_string(),
            m.phase.clone(),
            m.through.name().to_owned(),
            or_dash(m.progress.as_ref().map(progress)),
            waiting_for(m),
        ]);
    }
    table
}

/// `active, 12.0 of 96.0 MiB`
fn progress(p: &Progress) -> String {
    if p.total == 0 {
        return p.status.clone();
    }
    format!("{}, {} of {} MiB", p.status, print::mib(p.transferred), print::mib(p.total))
}

fn waiting_for(m: &MigrationView) -> String {
    if m.waiting_for.is_empty() { "-".to_owned() } else { m.waiting_for.join(" ") }
}

/// A receipt in words.
pub fn receipt(r: &ReceiptView) -> Outcome {
    if r.moved {
        print::line(&format!("VM {} moved from host {} to host {}", r.vm, r.from, r.to))?;
    } else {
        let reason = or_dash(r.reason.as_ref());
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
    print::line(&format!("  moved by                     {through}{activated}"))?;
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

fn finished(context: &Context, found: &ReceiptView) -> Outcome {
    context.show(found, receipt)?;
    if found.moved {
        return Ok(());
    }
    Err(Failure::new(
        format!("VM {} was rolled back to host {}", found.vm, found.from),
        after_rollback(found),
    ))
}

/// Where to look for the cause of a rollback, by what its reason is about.
fn after_rollback(r: &ReceiptView) -> String {
    let (vm, from, to) = (&r.vm, &r.from, &r.to);
    let reason = r.reason.as_deref().unwrap_or_default();
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

/// Looks at a migration until it is as wanted, or gone.
async fn until(
    client: &Client,
    migration: &MigrationView,
    mut wanted: impl FnMut(&MigrationView) -> bool,
) -> Outcome<Option<MigrationView>> {
    loop {
        match client.vm(&migration.vm).await?.migration.filter(|m| m.id == migration.id) {
            Some(m) if !wanted(&m) => tokio::time::sleep(LOOK).await,
            other => return Ok(other),
        }
    }
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
        assert!(hint(Through::Qmp, "asked for").contains("tenet vm migrate a/sql --to h2"));
    }

    const RECEIPT: &str = r#"{"vm": "a/sql", "id": "00000000-0000-0000-0000-000000000009", "from": "h1", "to": "h2",
        "moved": false, "reason": null, "redirected": 0, "lost": 0, "started_ms": 1, "prepare_us": 1,
        "last_ack_us": 0, "acks_us": {}}"#;
}
