//! Live migrations as requests make them: begun, waited for, given up. Whoever asks, REST or a host, it goes this way.

use crate::{
    engine::{Committed, Engine, How},
    fault::Fault,
    view,
};
use axum::http::StatusCode;
use std::{sync::Arc, time::Duration};
use tenet_api::rest::{Migrate, MigrationView};
use tenet_control::{Control, Refused};
use tenet_model::{
    Change, Desired, Key, Migration, Object, Phase, Receipt, Through, VmRef, check_migration_uri,
};
use uuid::Uuid;

/// A migration that is waited for may take longer than a plain change.
pub(crate) const MOVE: Duration = Duration::from_secs(20);

/// Begins a migration; its id, and the revision that began it. What must be refused before anything moves is refused
/// here.
pub(crate) async fn begin(
    engine: &Engine,
    if_revision: Option<u64>,
    vm: &VmRef,
    m: &Migrate,
) -> Result<(Uuid, u64), Fault> {
    let id = crate::clock::random_id();
    driven(m)?;
    let ready = engine.core().ready_for(vm, &m.to);
    ready.map_err(|why| Fault::conflict(why.text, &why.hint))?;
    let plan = |desired: &Desired| Ok(Change::put(Object::Migration(migration(desired, vm, m, id)?)));
    let Committed { revision, .. } = engine.change(How::at(if_revision), plan).await?;
    Ok((id, revision))
}

/// Who moves the VM goes with where to.
fn driven(m: &Migrate) -> Result<(), Fault> {
    if m.post_copy && !m.through.driven() {
        let message =
            "`post_copy` is for a migration through qmp or libvirt: nobody else is told to switch to it";
        let hint =
            "say through which, and where to; what another tool moves in post-copy is followed as it is";
        return Err(Fault::new(StatusCode::BAD_REQUEST, "post-copy", message, hint));
    }
    let missing = match (m.through, &m.uri) {
        (Through::Qmp | Through::Libvirt, Some(uri)) if !uri.is_empty() => {
            return check_migration_uri(m.through, uri).map_err(|why| {
                let message = format!("`uri` is {uri:?}: {why}");
                Fault::new(StatusCode::BAD_REQUEST, "uri", message, "see docs/migration.md")
            });
        }
        (Through::SwitchOnly | Through::Other, None) => return Ok(()),
        (Through::Qmp, _) => "`uri` is missing: where the incoming QEMU waits, as tcp:10.0.0.2:49152",
        (Through::Libvirt, _) => "`uri` is missing: the destination's libvirt, as qemu+ssh://h2/system",
        (Through::SwitchOnly | Through::Other, Some(_)) => {
            "`uri` is for a migration through qmp or libvirt: say through which, or leave it out"
        }
    };
    Err(Fault::new(StatusCode::BAD_REQUEST, "uri", missing, "see docs/migration.md"))
}

/// Waits until the VM may move.
pub(crate) async fn prepared(
    engine: &Engine,
    vm: &VmRef,
    id: Uuid,
    begun: u64,
    longest: Duration,
) -> Result<MigrationView, Fault> {
    let outcome = engine
        .until(longest, |core| {
            let revision = core.desired().revision;
            match show(core, vm, id) {
                Some(m) if m.phase == view::phase(Phase::Preparing) => None,
                Some(m) => Some(Some(m)),
                None => (revision >= begun).then_some(None),
            }
        })
        .await;
    match outcome {
        Some(Some(view)) => Ok(view),
        Some(None) => match receipt(engine, id).await? {
            Some(r) if !r.moved => {
                let message = format!("the move was rolled back: {}", r.reason.unwrap_or_default());
                Err(Fault::conflict(message, "put the cause right and begin again; the VM stays where it is"))
            }
            Some(_) | None => Err(gone(vm)),
        },
        None => {
            let message = format!("the move of {vm} is not prepared after {} s", longest.as_secs());
            let hint = "see `tenet status` for the hosts that do not answer; cancel it or wait on";
            Err(Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message, hint))
        }
    }
}

/// The migration, while it is under way.
pub(crate) fn show(core: &Control, vm: &VmRef, id: Uuid) -> Option<MigrationView> {
    let found = core.desired().migrations.get(vm).filter(|r| r.value.id == id);
    found.map(|r| view::migration(core, &r.value))
}

/// It was over too soon to be shown.
pub(crate) fn gone(vm: &VmRef) -> Fault {
    let message = format!("the move of {vm} ended before it could be shown");
    Fault::conflict(message, "see `tenet vm show` and the receipts")
}

fn migration(desired: &Desired, vm: &VmRef, m: &Migrate, id: Uuid) -> Result<Migration, Fault> {
    if !desired.vms.contains_key(vm) {
        return Err(Fault::not_found(&Key::Vm(vm.clone())));
    }
    let attached = || desired.ports_of(vm).filter(|(_, p)| p.value.host.is_some());
    let mut devices = m.devices.clone();
    for (name, port) in attached() {
        if let (false, Some(device)) = (devices.contains_key(&name.port), &port.value.device) {
            devices.insert(name.port.clone(), device.clone());
        }
    }
    // Without an attached port the model refuses it and says why.
    let from = attached().find_map(|(_, p)| p.value.host.clone()).unwrap_or_else(|| m.to.clone());
    Ok(Migration {
        started_ms: crate::clock::ms(),
        through: m.through,
        uri: m.uri.clone(),
        post_copy: m.post_copy,
        ..Migration::new(vm.clone(), id, from, m.to.clone(), devices)
    })
}

/// Gives a migration up that is not yet switched.
pub(crate) async fn cancel(
    engine: &Arc<Engine>,
    vm: &VmRef,
    reason: &str,
    longest: Duration,
) -> Result<Receipt, Fault> {
    let before = running(engine, vm)?;
    let mut refused = None;
    engine.drive(|core, now| {
        core.cancel(now, vm, reason).unwrap_or_else(|r| {
            refused = Some(r);
            Vec::new()
        })
    });
    if let Some(refused) = refused {
        return Err(refusal(vm, &refused));
    }
    let over = |core: &Control| {
        let same = core.desired().migrations.get(vm).is_some_and(|m| m.value.id == before.id);
        (!same || core.is_in_post_copy(vm)).then_some(same)
    };
    if engine.until(longest, over).await == Some(true) {
        // It was quicker than the hypervisor could be stopped.
        return Err(refusal(vm, &Refused::PostCopy(before.to)));
    }
    receipt(engine, before.id).await?.ok_or_else(|| {
        let message = format!("the move of {vm} is not yet rolled back");
        Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message, "look at `tenet status` in a moment")
    })
}

/// The VM's migration.
pub(crate) fn running(engine: &Engine, vm: &VmRef) -> Result<Migration, Fault> {
    let core = engine.core();
    let found = core.desired().migrations.get(vm).map(|m| m.value.clone());
    found.ok_or_else(|| refusal(vm, &Refused::NoMigration))
}

/// In the words of REST.
pub(crate) fn refusal(vm: &VmRef, refused: &Refused) -> Fault {
    match refused {
        Refused::NoMigration | Refused::NoSuchHost => {
            let mut fault = Fault::not_found(&Key::Migration(vm.clone()));
            fault.error.hint = "begin one with `tenet vm migrate`".into();
            fault
        }
        Refused::PostCopy(to) => {
            let message = format!(
                "VM {vm} is in post-copy: it runs on host {to}, and part of its memory is still on its way there, so that \
                 there is no way back"
            );
            Fault::conflict(message, "wait until this is done (`tenet migrations`), then move it back")
        }
        Refused::Phase(Phase::Switched) => {
            let message = format!("VM {vm} runs on the destination already");
            Fault::conflict(message, "move it back when this is done")
        }
        Refused::Left => {
            let message = format!("VM {vm} has left its host: all of it has been moved, says the hypervisor");
            Fault::conflict(message, "wait until this is done (`tenet migrations`), then move it back")
        }
        Refused::Phase(Phase::Preparing | Phase::Prepared) => {
            let message = format!("the move of {vm} is not yet prepared");
            Fault::conflict(message, "wait until its phase is `prepared`")
        }
    }
}

/// Waits until the migration is over, and whether it is; what it came to is seen in the store.
pub(crate) async fn ended(engine: &Engine, vm: &VmRef, id: Uuid, longest: Duration) -> bool {
    let over = |core: &Control| {
        let same = core.desired().migrations.get(vm).is_some_and(|m| m.value.id == id);
        (!same).then_some(())
    };
    engine.until(longest, over).await.is_some()
}

/// A migration's receipt, once it is over.
pub(crate) async fn receipt(engine: &Engine, id: Uuid) -> Result<Option<Receipt>, Fault> {
    Ok(engine.site().receipts().await?.into_iter().find(|r| r.id == id))
}
