//! VMs, their ports, and their moves.

use super::{
    extract::{App, Body, Named, Wish},
    object::{Reply, create, delete},
};
use crate::{engine, engine::How, fault::Fault, moving, moving::MOVE, resolve, view};
use axum::{Json, extract::State};
use tenet_api::rest::{
    ApiError, Attach, ChangeItem, ChangeReply, CreateVm, Detach, Migrate, MigrationView, PortSpec,
    ReceiptOrMigration, ReceiptView, Spec, Target, VmSpec, VmView, Wait, WaitQuery,
};
use tenet_model::{Desired, Key, Name, Object, Operation, Port, PortRef, VmRef};

/// The name of a VM's port if none is given.
const PORT: &str = "eth0";

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
                queues: None,
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

/// Attaches a port to a host: to a tap that its agent makes, or to a device that is there. A port that a VM uses on
/// another host is moved by a migration; here it is refused, unless forced.
#[utoipa::path(post, path = "/v1/vms/{tenant}/{vm}/attach", tag = "vms", request_body = Attach,
    params(("tenant" = String, Path), ("vm" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 422, body = ApiError)))]
pub(super) async fn attach(
    State(app): State<App>,
    wish: Wish,
    Named(vm): Named<VmRef>,
    Body(a): Body<Attach>,
) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| resolve::change(desired, &[attached(desired, &vm, &a)?]);
    let how = How { if_revision: wish.if_match, dry_run: false, force: a.force };
    app.engine.change_and_wait(how, wish.wait, plan).await.map(Json)
}

/// The port that shall be attached.
fn attached_port(desired: &Desired, vm: &VmRef, a: &Attach) -> Result<PortRef, Fault> {
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
    Ok(port_ref(vm, name))
}

fn attached(desired: &Desired, vm: &VmRef, a: &Attach) -> Result<ChangeItem, Fault> {
    let name = attached_port(desired, vm, a)?;
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
            device: a.device.clone(),
            queues: a.queues,
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
            .map(|(_, p)| Port { host: None, device: None, tap: false, ..p.value.clone() })
            .map(|p| Operation::Put(Object::Port(p)))
            .collect())
    };
    app.engine.change_and_wait(How::at(wish.if_match), wish.wait, plan).await.map(Json)
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
    let (id, revision) = moving::begin(&app.engine, wish.if_match, &vm, &m).await?;
    if wish.wait.wait == Wait::Stored {
        let show = moving::show(&app.engine.core(), &vm, id);
        return show.map(Json).ok_or_else(|| moving::gone(&vm));
    }
    let longest = wish.wait.timeout_ms.map_or(MOVE, |_| engine::longest(wish.wait));
    moving::prepared(&app.engine, &vm, id, revision, longest).await.map(Json)
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
    let before = moving::running(&app.engine, &vm)?;
    let mut refused = None;
    app.engine.drive(|core, now| {
        core.switch(now, &vm).unwrap_or_else(|r| {
            refused = Some(r);
            Vec::new()
        })
    });
    if let Some(refused) = refused {
        return Err(moving::refusal(&vm, &refused));
    }
    if wish.wait.wait == Wait::Applied {
        let longest = wish.wait.timeout_ms.map_or(MOVE, |_| engine::longest(wish.wait));
        moving::ended(&app.engine, &vm, before.id, longest).await;
    }
    if let Some(receipt) = moving::receipt(&app.engine, before.id).await? {
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
    let longest = wish.wait.timeout_ms.map_or(MOVE, |_| engine::longest(wish.wait));
    let receipt = moving::cancel(&app.engine, &vm, "it was cancelled", longest).await?;
    Ok(Json(view::receipt(receipt)))
}
