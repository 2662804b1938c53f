//! VMs, their ports, and their moves.

use super::{
    extract::{App, Body, Named, Wish},
    object::{Reply, create, delete},
};
use crate::{engine, fault::Fault, resolve, view};
use axum::{Json, extract::State, http::StatusCode};
use std::time::Duration;
use tenet_api::rest::{
    ApiError, Attach, ChangeItem, ChangeReply, CreateVm, Detach, Migrate, MigrationView, PortSpec,
    ReceiptOrMigration, ReceiptView, Spec, Target, VmSpec, VmView, Wait, WaitQuery,
};
use tenet_control::Refused;
use tenet_model::{
    Change, Desired, Key, Migration, Name, Object, Operation, Phase, Port, PortRef, Receipt, VmRef,
};
use uuid::Uuid;

/// The name of a VM's port if none is given.
const PORT: &str = "eth0";
/// A migration that is waited for may take longer than a plain change.
const MOVE: Duration = Duration::from_secs(20);

fn port_ref(vm: &VmRef, port: Name) -> PortRef {
    PortRef { tenant: vm.tenant.clone(), vm: vm.vm.clone(), port }
}

fn default_port() -> Result<Name, Fault> {
    Name::new(PORT).map_err(|e| Fault::internal(&e))
}

/// Lists the VMs with their ports.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses((status = 200, body = Vec<VmView>)))]
pub(super) async fn vms(State(app): State<App>) -> Json<Vec<VmView>> {
    let core = app.engine.core();
    Json(core.desired().vms.values().map(|v| view::vm(&core, v)).collect())
}

/// Creates a VM, optionally with a port.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", params(WaitQuery), request_body = CreateVm,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_vm(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<CreateVm>,
) -> Reply<ChangeReply> {
    let mut items = vec![ChangeItem::Put { object: Spec::Vm(VmSpec { name: s.name.clone() }) }];
    if let Some(port) = s.port {
        let name = match port.name {
            Some(name) => name,
            None => default_port()?,
        };
        items.push(ChangeItem::Put {
            object: Spec::Port(PortSpec {
                name: port_ref(&s.name, name),
                subnet: port.subnet,
                mac: port.mac,
                addresses: port.address.into_iter().chain(port.addresses).collect(),
                host: None,
                device: None,
                security: port.security,
            }),
        });
    }
    create(&app, wish, &items).await
}

/// Shows a VM.
#[utoipa::path(get, path = "/v1/vms/{tenant}/{vm}", tag = "vms",
    params(("tenant" = String, Path), ("vm" = String, Path)),
    responses((status = 200, body = VmView), (status = 404, body = ApiError)))]
pub(super) async fn vm(State(app): State<App>, Named(name): Named<VmRef>) -> Reply<VmView> {
    let core = app.engine.core();
    let found = core.desired().vms.get(&name).map(|v| view::vm(&core, v));
    found.map(Json).ok_or_else(|| Fault::not_found(&Key::Vm(name)))
}

/// Deletes a VM with its ports.
#[utoipa::path(delete, path = "/v1/vms/{tenant}/{vm}", tag = "vms",
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn delete_vm(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<VmRef>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Vm { name }).await
}

/// Attaches a port to a device of a host.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/attach", tag = "vms", request_body = Attach,
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 422, body = ApiError)))]
pub(super) async fn attach(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
    Body(a): Body<Attach>,
) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| resolve::change(desired, &[attached(desired, &vm, &a)?]);
    app.engine.change_and_wait(wish.if_match, false, wish.wait, plan).await.map(Json)
}

fn attached(desired: &Desired, vm: &VmRef, a: &Attach) -> Result<ChangeItem, Fault> {
    if !desired.vms.contains_key(vm) {
        return Err(Fault::not_found(&Key::Vm(vm.clone())));
    }
    let mut ports = desired.ports_of(vm).map(|(name, _)| name.port.clone());
    let name = match (&a.port, ports.next(), ports.next()) {
        (Some(name), ..) => name.clone(),
        (None, Some(only), None) => only,
        (None, None, _) => default_port()?,
        (None, Some(_), Some(_)) => {
            return Err(Fault::bad_request(format!("VM {vm} has several ports"), "name the one to attach"));
        }
    };
    let name = port_ref(vm, name);
    let was = desired.ports.get(&name).map(|p| &p.value);
    let Some(subnet) = a.subnet.clone().or_else(|| was.map(|w| w.subnet.clone())) else {
        let mut fault = Fault::not_found(&Key::Port(name));
        fault.error.hint = "give the subnet, and the port is made".into();
        return Err(fault);
    };
    Ok(ChangeItem::Put {
        object: Spec::Port(PortSpec {
            name,
            subnet,
            mac: None,
            addresses: Vec::new(),
            host: Some(a.host.clone()),
            device: Some(a.device.clone()),
            security: was.is_none_or(|w| w.security),
        }),
    })
}

/// Detaches a port, or all of the VM's, from its host.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/detach", tag = "vms", request_body = Detach,
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn detach(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
    Body(d): Body<Detach>,
) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| {
        if !desired.vms.contains_key(&vm) {
            return Err(Fault::not_found(&Key::Vm(vm.clone())));
        }
        if let Some(port) = &d.port {
            let name = port_ref(&vm, port.clone());
            if !desired.ports.contains_key(&name) {
                return Err(Fault::not_found(&Key::Port(name)));
            }
        }
        let wanted =
            desired.ports_of(&vm).filter(|(name, _)| d.port.as_ref().is_none_or(|p| *p == name.port));
        Ok(wanted
            .map(|(_, p)| Operation::Put(Object::Port(Port { host: None, device: None, ..p.value.clone() })))
            .collect())
    };
    app.engine.change_and_wait(wish.if_match, false, wish.wait, plan).await.map(Json)
}

/// Begins a live migration. With `wait=applied` the answer comes once the VM may move.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/migrate", tag = "vms", request_body = Migrate,
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = MigrationView), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn migrate(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
    Body(m): Body<Migrate>,
) -> Reply<MigrationView> {
    let id = crate::clock::random_id();
    let plan = |desired: &Desired| Ok(Change::put(Object::Migration(migration(desired, &vm, &m, id)?)));
    let committed = app.engine.change(wish.if_match, false, plan).await?;
    let show = |core: &tenet_control::Control| {
        core.desired()
            .migrations
            .get(&vm)
            .filter(|r| r.value.id == id)
            .map(|r| view::migration(core, &r.value))
    };
    let gone = || {
        let message = format!("the move of {vm} ended before it could be shown");
        Fault::conflict(message, "see `tenet vm show` and the receipts")
    };
    if wish.wait.wait == Wait::Stored {
        return show(&app.engine.core()).map(Json).ok_or_else(gone);
    }
    let longest = wish.wait.timeout_ms.map_or(MOVE, |_| engine::longest(wish.wait));
    let outcome = app
        .engine
        .until(longest, |core| {
            let revision = core.desired().revision;
            match show(core) {
                Some(m) if m.phase == view::phase(Phase::Preparing) => None,
                Some(m) => Some(Some(m)),
                None => (revision >= committed.revision).then_some(None),
            }
        })
        .await;
    match outcome {
        Some(Some(view)) => Ok(Json(view)),
        Some(None) => match receipt(&app, id).await? {
            Some(r) if !r.moved => {
                let message = format!("the move was rolled back: {}", r.reason.unwrap_or_default());
                Err(Fault::conflict(message, "put the cause right and begin again; the VM stays where it is"))
            }
            Some(_) | None => Err(gone()),
        },
        None => {
            let message = format!("the move of {vm} is not prepared after {} s", longest.as_secs());
            let hint = "see `tenet status` for the hosts that do not answer; cancel it or wait on";
            Err(Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message, hint))
        }
    }
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
        vm: vm.clone(),
        id,
        from,
        to: m.to.clone(),
        devices,
        rewrite: std::collections::BTreeMap::new(),
        phase: Phase::Preparing,
        started_ms: crate::clock::ms(),
        switched_ms: None,
    })
}

/// Says that the VM runs on the destination. With `wait=applied` the answer comes with the receipt.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/switch", tag = "vms",
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ReceiptOrMigration), (status = 404, body = ApiError),
        (status = 409, body = ApiError)))]
pub(super) async fn switch(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
) -> Reply<ReceiptOrMigration> {
    let before = running(&app, &vm)?;
    let mut refused = None;
    app.engine.drive(|core, now| {
        core.switch(now, &vm).unwrap_or_else(|r| {
            refused = Some(r);
            Vec::new()
        })
    });
    if let Some(refused) = refused {
        return Err(refusal(&vm, &refused));
    }
    if wish.wait.wait == Wait::Applied {
        ended(&app, &before, wish.wait).await;
    }
    if let Some(receipt) = receipt(&app, before.id).await? {
        return Ok(Json(ReceiptOrMigration::Receipt(view::receipt(receipt))));
    }
    let core = app.engine.core();
    let now = core.desired().migrations.get(&vm).map_or(&before, |m| &m.value).clone();
    Ok(Json(ReceiptOrMigration::Migration(view::migration(&core, &now))))
}

/// Gives a migration up that is not yet switched; the VM stays on the source.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/cancel", tag = "vms",
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ReceiptView), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn cancel(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
) -> Reply<ReceiptView> {
    let before = running(&app, &vm)?;
    let mut refused = None;
    app.engine.drive(|core, now| {
        core.cancel(now, &vm, "it was cancelled").unwrap_or_else(|r| {
            refused = Some(r);
            Vec::new()
        })
    });
    if let Some(refused) = refused {
        return Err(refusal(&vm, &refused));
    }
    ended(&app, &before, wish.wait).await;
    match receipt(&app, before.id).await? {
        Some(receipt) => Ok(Json(view::receipt(receipt))),
        None => {
            let message = format!("the move of {vm} is not yet rolled back");
            Err(Fault::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                message,
                "look at `tenet status` in a moment",
            ))
        }
    }
}

fn running(app: &App, vm: &VmRef) -> Result<Migration, Fault> {
    let core = app.engine.core();
    let found = core.desired().migrations.get(vm).map(|m| m.value.clone());
    found.ok_or_else(|| refusal(vm, &Refused::NoMigration))
}

fn refusal(vm: &VmRef, refused: &Refused) -> Fault {
    match refused {
        Refused::NoMigration | Refused::NoSuchHost => {
            let mut fault = Fault::not_found(&Key::Migration(vm.clone()));
            fault.error.hint = "begin one with `tenet vm migrate`".into();
            fault
        }
        Refused::Phase(Phase::Switched) => {
            let message = format!("VM {vm} runs on the destination already");
            Fault::conflict(message, "move it back when this is done")
        }
        Refused::Phase(Phase::Preparing | Phase::Prepared) => {
            let message = format!("the move of {vm} is not yet prepared");
            Fault::conflict(message, "wait until its phase is `prepared`")
        }
    }
}

async fn ended(app: &App, migration: &Migration, wait: WaitQuery) {
    let longest = wait.timeout_ms.map_or(MOVE, |_| engine::longest(wait));
    let over = |core: &tenet_control::Control| {
        let same = core.desired().migrations.get(&migration.vm).is_some_and(|m| m.value.id == migration.id);
        (!same).then_some(())
    };
    // What it came to is seen in the store.
    let _ = app.engine.until(longest, over).await;
}

async fn receipt(app: &App, id: Uuid) -> Result<Option<Receipt>, Fault> {
    Ok(app.engine.site().receipts().await?.into_iter().find(|r| r.id == id))
}
