//! Live migrations.

use crate::command::Context;
use crate::failure::{Failure, Outcome};
use crate::print::{self, Table, micros, or_dash};
use std::collections::BTreeMap;
use std::time::Duration;
use tenet_api::client::Client;
use tenet_api::rest::{Migrate, MigrationView, ReceiptOrMigration, ReceiptView};
use tenet_model::{HostName, Name, VmRef};

/// Time between two looks at a running migration.
const LOOK: Duration = Duration::from_millis(20);

/// `vm migrate`
pub async fn migrate(
    context: &Context,
    vm: &VmRef,
    to: HostName,
    given: Vec<(Option<Name>, String)>,
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
    let request = Migrate { to: to.clone(), devices, through: Default::default(), uri: None };
    let waiting = format!("telling all hosts that VM {vm} moves to host {to}");
    let begun = print::progress(&waiting, client.migrate(vm, &request)).await?;
    let ready = if begun.phase == "preparing" {
        print::progress(&waiting, until(&client, &begun, |m| m.phase != "preparing")).await?
    } else {
        Some(begun.clone())
    };
    // It may have ended before it was seen prepared: then only the receipt says where the VM belongs.
    let Some(migration) = ready else { return ended(context, &client, &begun).await };
    if no_wait {
        return context.show(&migration, |m| {
            print::line(&format!(
                "{}: VM {vm} may move to host {} now; its first frame there switches it",
                m.phase, m.to
            ))
        });
    }
    print::note(&format!("VM {vm} may move to host {to} now; its first frame there switches it"));
    let waiting = format!("waiting until VM {vm} runs on host {to}");
    print::progress(&waiting, until(&client, &migration, |_| false)).await?;
    ended(context, &client, &migration).await
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
    context.show(&context.client()?.migrations().await?, |all| {
        print::table(&table(all), "no migration is running")
    })
}

/// `receipts`
pub async fn receipts(context: &Context) -> Outcome {
    context.show(&context.client()?.receipts().await?, |all| {
        let mut table = Table::new([
            "VM",
            "FROM",
            "TO",
            "RESULT",
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
                frames(r, r.redirected),
                frames(r, r.lost),
                micros(r.prepare_us),
                micros(r.last_ack_us),
                or_dash(r.reason.as_ref()),
            ]);
        }
        print::table(&table, "no migration has ended yet")
    })
}

/// Running migrations as a table.
pub fn table(all: &[MigrationView]) -> Table {
    let mut table = Table::new(["VM", "FROM", "TO", "PHASE", "WAITING FOR"]);
    for m in all {
        let waiting = if m.waiting_for.is_empty() { "-".to_owned() } else { m.waiting_for.join(" ") };
        table.row([m.vm.to_string(), m.from.to_string(), m.to.to_string(), m.phase.clone(), waiting]);
    }
    table
}

/// A receipt in words.
pub fn receipt(r: &ReceiptView) -> Outcome {
    if r.moved {
        print::line(&format!("VM {} moved from host {} to host {}", r.vm, r.from, r.to))?;
    } else {
        let reason = or_dash(r.reason.as_ref());
        print::line(&format!("VM {} stays on host {}: {reason}", r.vm, r.from))?;
    }
    print::line(&format!("  prepared on all hosts in     {}", micros(r.prepare_us)))?;
    if r.moved {
        print::line(&format!("  last host knew after         {}", micros(r.last_ack_us)))?;
        for (host, us) in &r.acks_us {
            print::line(&format!("    host {host:<21} {}", micros(*us)))?;
        }
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
        format!("`tenet host show {}` shows how the destination is", found.to),
    ))
}

/// Looks at a migration until it is as wanted, or gone.
async fn until(
    client: &Client,
    migration: &MigrationView,
    wanted: impl Fn(&MigrationView) -> bool,
) -> Outcome<Option<MigrationView>> {
    loop {
        match client.vm(&migration.vm).await?.migration.filter(|m| m.id == migration.id) {
            Some(m) if !wanted(&m) => tokio::time::sleep(LOOK).await,
            other => return Ok(other),
        }
    }
}
