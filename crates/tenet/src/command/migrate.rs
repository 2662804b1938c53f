//! Live migrations.

use crate::command::Context;
use crate::command::migrations::{after_rollback, receipt, waiting_for};
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use std::time::{Duration, Instant};
use tenet_api::client::{Client, ClientError};
use tenet_api::rest::{Migrate, MigrationView, ReceiptOrMigration, ReceiptView, Wait};
use tenet_model::{Name, VmRef, in_post_copy};
use tokio::signal::unix::{Signal, SignalKind, signal};

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
    let followed = tokio::select! {
        followed = follow(&client, &begun, no_wait) => followed?,
        _ = interrupted.recv() => Followed::Over(Box::new(give_up(&client, &begun, &mut interrupted).await?)),
    };
    match followed {
        Followed::Over(receipt) => finished(context, &receipt, request.post_copy),
        Followed::Prepared(migration) => context.show(&*migration, |m| {
            let next = if m.through.driven() { "is being moved" } else { "may move" };
            print::line(&format!(
                "{}: VM {vm} {next} to host {} now; its first frame there switches it",
                m.phase, m.to
            ))
        }),
    }
}

/// How far a migration was followed.
enum Followed {
    /// The VM may move, and nobody waits for more.
    Prepared(Box<MigrationView>),
    /// To its end.
    Over(Box<ReceiptView>),
}

/// Follows a migration that has begun.
async fn follow(client: &Client, begun: &MigrationView, no_wait: bool) -> Outcome<Followed> {
    let (vm, to) = (&begun.vm, &begun.to);
    let waiting = format!("telling all hosts that VM {vm} moves to host {to}");
    let prepared = print::progress(&waiting, until(client, begun, |m| m.phase != "preparing")).await?;
    // It may have ended before it was seen prepared: then only the receipt says where the VM belongs.
    if let Some(migration) = prepared {
        if no_wait {
            return Ok(Followed::Prepared(Box::new(migration)));
        }
        if !begun.through.driven() {
            print::note(&format!("VM {vm} may move to host {to} now; its first frame there switches it"));
        }
        moving(client, begun).await?;
    }
    ended(client, begun).await.map(|receipt| Followed::Over(Box::new(receipt)))
}

/// Gives a migration up, at the first Ctrl-C. One that cannot be given up is followed to its end; whoever does not want
/// to wait for the answer, or for that end, leaves by another Ctrl-C.
async fn give_up(client: &Client, begun: &MigrationView, interrupted: &mut Signal) -> Outcome<ReceiptView> {
    print::note("\ngiving it up");
    let answer = tokio::select! {
        answer = client.migrate_cancel(&begun.vm) => answer,
        _ = interrupted.recv() => return Err(left(begun)),
    };
    match asked_to_give_up(begun, answer) {
        GivingUp::Done(receipt) => return Ok(*receipt),
        GivingUp::Unheard(failure) => return Err(failure),
        GivingUp::GoesOn(why) => print::note(&why),
    }
    let followed = async {
        moving(client, begun).await?;
        ended(client, begun).await
    };
    tokio::select! {
        receipt = followed => receipt,
        _ = interrupted.recv() => Err(left(begun)),
    }
}

/// What comes of having asked the controller to give a migration up.
#[derive(Debug)]
enum GivingUp {
    /// It is over.
    Done(Box<ReceiptView>),
    /// It is not, for this reason; the VM may be past the point of no return, or the hypervisor has not confirmed it yet.
    GoesOn(String),
    /// Nobody has heard of it, and the command ends.
    Unheard(Failure),
}

fn asked_to_give_up(begun: &MigrationView, answer: Result<ReceiptView, ClientError>) -> GivingUp {
    let vm = &begun.vm;
    match answer {
        Ok(receipt) => GivingUp::Done(Box::new(receipt)),
        Err(away @ ClientError::Unreachable { .. }) => {
            let mut failure = Failure::from(away);
            failure.hint = format!(
                "the move goes on; `tenet vm cancel {vm}` gives it up once the controller answers, {}",
                where_it_is(vm)
            );
            GivingUp::Unheard(failure)
        }
        Err(refused) => GivingUp::GoesOn(format!(
            "not given up: {}\nfollowing it to its end; Ctrl-C again leaves it to go on",
            Failure::from(refused).text
        )),
    }
}

/// The command ends before the migration does.
fn left(begun: &MigrationView) -> Failure {
    let (vm, to) = (&begun.vm, &begun.to);
    let text =
        format!("the move of VM {vm} to host {to} was left before its end, which nobody waits for here");
    Failure::new(text, where_it_is(vm))
}

fn where_it_is(vm: &VmRef) -> String {
    format!("`tenet migrations show {vm}` shows how far it is, or what came of it")
}

/// Shows how far a migration is, until it is over.
async fn moving(client: &Client, migration: &MigrationView) -> Outcome {
    let mut bar = print::Bar::default();
    let over = until(client, migration, |m| {
        bar.show(&stage(m), m.progress.as_ref().map_or((0, 0), |p| (p.transferred, p.total)));
        false
    });
    over.await.map(drop)
}

/// What a migration does at the moment.
fn stage(m: &MigrationView) -> String {
    match (m.phase.as_str(), &m.progress) {
        ("switched", Some(p)) if in_post_copy(&p.status) => {
            format!("runs on {}, its memory follows ({})", m.to, p.status)
        }
        ("switched", _) => format!("runs on {}, {}", m.to, waits(m)),
        (_, Some(p)) if p.status == "waiting" => format!(
            "waiting for a QEMU on {}: start it there with what `tenet vm run-args {} --host {}` prints, and -incoming",
            m.to, m.vm, m.to
        ),
        (_, Some(p)) => p.status.clone(),
        (phase, None) => phase.to_owned(),
    }
}

/// What a migration whose VM runs on its destination waits for.
fn waits(m: &MigrationView) -> String {
    match waiting_for(m) {
        Some(hosts) => format!("waiting for {hosts}"),
        None => format!("all hosts send there; {} sends on what still comes to it", m.from),
    }
}

/// The receipt of a migration that is over.
async fn ended(client: &Client, migration: &MigrationView) -> Outcome<ReceiptView> {
    let vm = &migration.vm;
    let receipts = patiently(vm, AWAY, async || client.receipts().await).await?;
    receipts.into_iter().rev().find(|r| r.id == migration.id).ok_or_else(|| {
        Failure::new(
            format!("the migration of VM {vm} ended without a receipt"),
            format!("`tenet vm show {vm}` shows where it is"),
        )
    })
}

/// `vm switch`
pub async fn switch(context: &Context, vm: &VmRef) -> Outcome {
    match context.client()?.migrate_switch(vm).await? {
        ReceiptOrMigration::Receipt(receipt) => finished(context, &receipt, false),
        ReceiptOrMigration::Migration(m) => {
            context.show(&m, |m| print::line(&format!("{}: {}", m.phase, waits(m))))
        }
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
                "the move goes on without it: check that `tenet controller` runs; then {}",
                where_it_is(vm)
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

    fn migration(more: serde_json::Value) -> MigrationView {
        let mut all = serde_json::json!({
            "vm": "a/sql", "id": "00000000-0000-0000-0000-000000000009", "from": "h1", "to": "h2", "devices": {},
            "phase": "switched", "started_ms": 1, "switched_ms": 2,
        });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn refusal(status: u16, message: &str) -> ClientError {
        let error = serde_json::json!({ "code": "conflict", "message": message, "hint": "wait" });
        ClientError::Refused { status, error: serde_json::from_value(error).unwrap() }
    }

    #[test]
    fn a_move_that_is_not_given_up_is_followed_with_the_reason_and_another_interrupt_leaves_it() {
        let begun = migration(serde_json::json!({}));
        for refused in [
            refusal(409, "VM a/sql is in post-copy"),
            refusal(404, "there is no migration a/sql"),
            refusal(504, "the move of a/sql is not yet rolled back"),
            ClientError::Answer("cut short".to_owned()),
        ] {
            let message = refused.to_string();
            let GivingUp::GoesOn(why) = asked_to_give_up(&begun, Err(refused)) else { panic!("{message}") };
            assert!(why.contains(&message) && why.contains("Ctrl-C again leaves it"), "{why}");
        }
        let failure = left(&begun);
        assert_eq!(failure.code, Code::Failed);
        let said = failure.to_string();
        assert!(
            said.contains("the move of VM a/sql to host h2") && said.contains("before its end"),
            "{said}"
        );
        assert!(failure.hint.starts_with("`tenet migrations show a/sql` shows"), "{said}");
    }

    #[tokio::test]
    async fn a_move_is_given_up_by_a_controller_that_answers_only() {
        let begun = migration(serde_json::json!({}));
        let GivingUp::Unheard(failure) = asked_to_give_up(&begun, Err(away().await.unwrap_err())) else {
            panic!("nobody has heard of it")
        };
        assert_eq!(failure.code, Code::Unreachable);
        for part in ["the move goes on", "`tenet vm cancel a/sql`", "`tenet migrations show a/sql`"] {
            assert!(failure.hint.contains(part), "{failure}");
        }
        let receipt: ReceiptView = serde_json::from_value(serde_json::json!({
            "vm": "a/sql", "id": begun.id, "from": "h1", "to": "h2", "moved": false, "reason": "it was cancelled",
            "redirected": 0, "lost": 0, "started_ms": 1, "prepare_us": 1, "last_ack_us": 0, "acks_us": {},
        }))
        .unwrap();
        let GivingUp::Done(done) = asked_to_give_up(&begun, Ok(receipt.clone())) else {
            panic!("it is over")
        };
        assert_eq!(*done, receipt);
    }

    #[test]
    fn a_move_that_waits_for_nobody_says_what_it_does_instead() {
        let stage = |more| stage(&migration(more));
        assert_eq!(
            stage(serde_json::json!({ "waiting_for": ["h3", "h4"] })),
            "runs on h2, waiting for h3 h4"
        );
        let all_know = "runs on h2, all hosts send there; h1 sends on what still comes to it";
        assert_eq!(stage(serde_json::json!({})), all_know);
        let progress = |status: &str| serde_json::json!({ "status": status, "transferred": 1, "total": 2 });
        assert_eq!(stage(serde_json::json!({ "progress": progress("completed") })), all_know);
        assert_eq!(
            stage(serde_json::json!({ "progress": progress("postcopy-active") })),
            "runs on h2, its memory follows (postcopy-active)"
        );
        assert_eq!(stage(serde_json::json!({ "phase": "prepared" })), "prepared");
    }
}
