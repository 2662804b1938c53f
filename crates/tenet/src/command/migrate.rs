//! Live migrations.

use crate::command::Context;
use crate::command::migrations::{after_rollback, receipt, waiting_for};
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use std::time::{Duration, Instant};
use tenet_api::client::{Client, ClientError};
use tenet_api::rest::{Migrate, MigrationView, ReceiptOrMigration, ReceiptView, Wait};
use tenet_model::{Name, VmRef, in_post_copy};
use tokio::signal::unix::{SignalKind, signal};

/// Time between two looks at a running migration.
const LOOK: Duration = Duration::from_millis(20);
/// How long a controller may be away before following is given up; it may be started again meanwhile.
const AWAY: Duration = Duration::from_secs(60);
/// Time between two attempts to reach it.
const AGAIN: Duration = Duration::from_millis(250);

/// `vm migrate`
pub async fn migrate(
    context: &Context,
    vm: &VmRef,
    mut request: Migrate,
    given: Vec<(Option<Name>, String)>,
    no_wait: bool,
) -> Outcome {
    let (to, through) = (request.to.clone(), request.through);
    if request.post_copy && !through.driven() {
        return Err(Failure::new(
            "--post-copy needs --qmp URI or --libvirt: the source's agent has the hypervisor switch to it",
            format!(
                "`tenet vm migrate {vm} --to {to} --libvirt --post-copy`; a move that another tool makes in post-copy \
                 (`virsh migrate --postcopy`) is followed without it"
            ),
        )
        .code(Code::Usage));
    }
    let client = context.client()?;
    let view = client.vm(vm).await?;
    let mut attached = view.ports.iter().filter(|p| p.host.is_some()).map(|p| p.name.port.clone());
    for (port, device) in given {
        let port = port.or_else(|| attached.next()).ok_or_else(|| {
            Failure::new(
                format!("VM {vm} has no attached port for device {device}"),
                format!("`tenet vm show {vm}` shows its ports"),
            )
        })?;
        request.devices.insert(port, device);
    }
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
            None => ended(context, &client, &begun, request.post_copy).await,
            Some(migration) => context.show(&migration, |m| {
                let next = if m.through.driven() { "is being moved" } else { "may move" };
                print::line(&format!("{}: VM {vm} {next} to host {} now; its first frame there switches it", m.phase, m.to))
            }),
        },
        _ = interrupted.recv() => {
            print::note("\ngiving it up");
            match client.migrate_cancel(vm).await {
                Ok(receipt) => finished(context, &receipt, request.post_copy),
                Err(away @ ClientError::Unreachable { .. }) => {
                    let mut failure = Failure::from(away);
                    failure.hint = format!(
                        "the move goes on; `tenet vm cancel {vm}` gives it up once the controller answers, \
                         `tenet migrations {vm}` shows how far it is"
                    );
                    Err(failure)
                }
                // It was switched in this very moment: there is no way back, and none is needed.
                Err(refused) => {
                    print::note(&format!("{refused}"));
                    until(&client, &begun, |_| false).await?;
                    ended(context, &client, &begun, request.post_copy).await
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
        ("switched", Some(p)) if in_post_copy(&p.status) => {
            format!("runs on {}, its memory follows ({})", m.to, p.status)
        }
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
async fn ended(context: &Context, client: &Client, migration: &MigrationView, post_copy: bool) -> Outcome {
    let vm = &migration.vm;
    let receipts = patiently(vm, AWAY, async || client.receipts().await).await?;
    match receipts.into_iter().rev().find(|r| r.id == migration.id) {
        Some(found) => finished(context, &found, post_copy),
        None => Err(Failure::new(
            format!("the migration of VM {vm} ended without a receipt"),
            format!("`tenet vm show {vm}` shows where it is"),
        )),
    }
}

/// `vm switch`
pub async fn switch(context: &Context, vm: &VmRef) -> Outcome {
    match context.client()?.migrate_switch(vm).await? {
        ReceiptOrMigration::Receipt(receipt) => finished(context, &receipt, false),
        ReceiptOrMigration::Migration(m) => context
            .show(&m, |m| print::line(&format!("{}: waiting for {}", m.phase, m.waiting_for.join(", ")))),
    }
}

fn finished(context: &Context, found: &ReceiptView, post_copy: bool) -> Outcome {
    context.show(found, receipt)?;
    if found.moved {
        if post_copy && !found.post_copy {
            print::aside("post-copy was not needed: all memory had been moved before the VM ran there");
        }
        return Ok(());
    }
    Err(Failure::new(
        format!("VM {} was rolled back to host {}", found.vm, found.from),
        after_rollback(found),
    ))
}

/// Looks at a migration until it is as wanted, or gone.
async fn until(
    client: &Client,
    migration: &MigrationView,
    mut wanted: impl FnMut(&MigrationView) -> bool,
) -> Outcome<Option<MigrationView>> {
    loop {
        match patiently(&migration.vm, AWAY, async || client.vm(&migration.vm).await)
            .await?
            .migration
            .filter(|m| m.id == migration.id)
        {
            Some(m) if !wanted(&m) => tokio::time::sleep(LOOK).await,
            other => return Ok(other),
        }
    }
}

/// Asks again while the controller is away: a move goes on without it, and whoever follows one wants to see its end.
async fn patiently<T>(
    vm: &VmRef,
    longest: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Outcome<T> {
    let mut since = None;
    loop {
        let away = match ask().await {
            Ok(answer) => {
                if since.is_some() {
                    print::aside("the controller is back");
                }
                return Ok(answer);
            }
            Err(away @ ClientError::Unreachable { .. }) => away,
            Err(other) => return Err(other.into()),
        };
        if since.is_none() {
            print::aside("the controller is away; the move goes on");
        }
        if since.get_or_insert_with(Instant::now).elapsed() >= longest {
            let mut failure = Failure::from(away);
            failure.text = format!("{} (for {} s)", failure.text, longest.as_secs());
            failure.hint = format!(
                "the move goes on without it: check that `tenet controller` runs; then `tenet migrations show {vm}` \
                 shows how far it is, or what came of it"
            );
            return Err(failure);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What asking a controller that is not there ends with; nothing listens at port 1.
    async fn away() -> Result<(), ClientError> {
        let token = format!("tenet1.{}.x", "00".repeat(32));
        tenet_api::client::join("https://127.0.0.1:1", &token, "").await.map(drop)
    }

    #[tokio::test]
    async fn a_controller_that_stays_away_is_told_with_where_to_look() {
        let vm = "a/sql".parse().unwrap();
        let mut asked = 0;
        let gave_up = patiently(&vm, Duration::from_millis(400), async || {
            asked += 1;
            away().await
        });
        let failure = gave_up.await.unwrap_err();
        assert!(asked > 1, "{asked}");
        assert_eq!(failure.code, Code::Unreachable);
        for part in ["the move goes on", "`tenet migrations show a/sql`"] {
            assert!(failure.hint.contains(part), "{failure}");
        }
    }
}
