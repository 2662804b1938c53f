//! Claims of hosts: what runs there wants a VM's ports. Who may have what is decided in [`tenet_control::claim`].

use crate::{
    engine::{Committed, Engine, How},
    fault::Fault,
    moving::{self, MOVE},
    resolve,
};
use axum::http::StatusCode;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tenet_api::{
    agent::{
        self, ClaimReply, ClaimRequest, ReleaseReply, ReleaseRequest,
        claim_request::Purpose,
        release_request::{Outcome, Stay as Told},
    },
    rest::{ChangeItem, Migrate, PortSpec, Problem, Spec, VmSpec},
};
use tenet_control::{
    Happening,
    claim::{self, Claim, ClaimPort, Denied, Ended, Granted, Release, Stay, Wanted},
};
use tenet_model::{Desired, HostName, Name, Object, Operation, Port, Through, Versioned, VmRef, tap_name};
use tokio::sync::oneshot;
use uuid::Uuid;

/// Attempts of a claim whose grounds change meanwhile.
const ATTEMPTS: usize = 4;
/// Most ports of one claim; no machine has more NICs.
const PORTS: usize = 256;
/// Longest wait for a migration that a claim asks for.
const LONGEST: Duration = Duration::from_secs(300);
/// Pause of a migration that was begun for a claim and has come to nothing.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The way back to who asked. That it is closed means that nobody waits for the answer.
type Asker = oneshot::Sender<ClaimReply>;

/// A host's claim, answered in the host's words; none if the controller ends.
///
/// The caller may be dropped at any moment, as its connection breaks. The claim itself is not: a migration that it has
/// begun must not be left to nobody.
pub(crate) async fn claim(
    engine: &Arc<Engine>,
    host: &HostName,
    request: ClaimRequest,
) -> Option<ClaimReply> {
    let (asker, answer) = oneshot::channel();
    tokio::spawn(answer_claim(Arc::clone(engine), host.clone(), request, asker));
    answer.await.ok()
}

async fn answer_claim(engine: Arc<Engine>, host: HostName, request: ClaimRequest, mut asker: Asker) {
    let vm = request.vm.clone();
    let reply = claimed(&engine, &host, request, &mut asker).await.unwrap_or_else(|fault| {
        if engine.budgets.spend(&host) {
            let text = format!("the claim of VM {vm} was refused: {}", fault.error.message);
            engine.events.happened(Happening::new("refused", crate::grpc::text(text)).host(&host));
        }
        ClaimReply { refusal: Some(refusal(fault)), ..ClaimReply::default() }
    });
    if let Err(unheard) = asker.send(reply)
        && unheard.began
        && let (Ok(vm), Ok(id)) = (vm.parse(), unheard.migration.parse())
    {
        give_up(&engine, &vm, id).await;
    }
}

/// Ends a migration that was begun for a claim and for which nobody waits any more.
async fn give_up(engine: &Arc<Engine>, vm: &VmRef, id: Uuid) {
    if moving::running(engine, vm).is_ok_and(|m| m.id == id) {
        // That it is over already is as good.
        let _ = moving::cancel(engine, vm, "the host that asked for it waits no longer", GIVE_UP).await;
    }
}

async fn claimed(
    engine: &Arc<Engine>,
    host: &HostName,
    request: ClaimRequest,
    asker: &mut Asker,
) -> Result<ClaimReply, Fault> {
    let longest = match request.timeout_ms {
        0 => MOVE,
        ms => Duration::from_millis(ms).min(LONGEST),
    };
    let begun = Instant::now();
    let left = || longest.saturating_sub(begun.elapsed());
    let wanted = wanted(request)?;
    let vm = &wanted.vm;
    for _ in 0..ATTEMPTS {
        let granted = decide(engine.core().desired(), host, &wanted)?;
        let (id, began) = match granted {
            Granted::Attach { .. } => match attach(engine, host, &wanted).await? {
                Some(revision) => return Ok(attached(engine, host, vm, revision)),
                None => continue,
            },
            Granted::Join(id) => (id, None),
            Granted::Later(id) => {
                let over = tokio::select! {
                    over = moving::ended(engine, vm, id, left()) => over,
                    () = asker.closed() => return Err(waits_no_longer(host, vm)),
                };
                if over {
                    continue;
                }
                return Err(not_done(vm, longest));
            }
            Granted::Migrate { devices, .. } => {
                let migrate = Migrate { devices, through: Through::Other, ..Migrate::to(host.clone()) };
                let (id, revision) = moving::begin(engine, None, vm, &migrate).await?;
                (id, Some(revision))
            }
        };
        let prepared = tokio::select! {
            prepared = moving::prepared(engine, vm, id, began.unwrap_or(0), left()) => prepared.map(drop),
            () = asker.closed() => Err(waits_no_longer(host, vm)),
        };
        if prepared.is_err() && began.is_some() {
            give_up(engine, vm, id).await;
        }
        prepared?;
        return Ok(under_way(engine, host, vm, id, began.is_some()));
    }
    Err(Fault::conflict(format!("VM {vm} changes while it is claimed"), "try again in a moment"))
}

fn waits_no_longer(host: &HostName, vm: &VmRef) -> Fault {
    Fault::conflict(format!("host {host} waits no longer for VM {vm}"), "claim it again")
}

fn not_done(vm: &VmRef, longest: Duration) -> Fault {
    let message = format!("the move that VM {vm} is in was not done within {} s", longest.as_secs());
    Fault::conflict(message, "try again when it is: `tenet migrations` shows how far it is")
}

/// Attaches what the host may have at the moment of the commit; none if it is not that any more.
async fn attach(engine: &Arc<Engine>, host: &HostName, wanted: &Claim) -> Result<Option<u64>, Fault> {
    let lost = std::sync::atomic::AtomicBool::new(false);
    let plan = |desired: &Desired| match decide(desired, host, wanted)? {
        Granted::Attach { new_vm, ports } => {
            let vm = new_vm.then(|| Spec::Vm(VmSpec { name: wanted.vm.clone() }));
            let ports = ports.into_iter().map(|p| Spec::Port(spec(p, host)));
            let put = |object| ChangeItem::Put { object };
            resolve::change(desired, &vm.into_iter().chain(ports).map(put).collect::<Vec<_>>())
        }
        Granted::Join(_) | Granted::Later(_) | Granted::Migrate { .. } => {
            lost.store(true, std::sync::atomic::Ordering::Relaxed);
            Ok(tenet_model::Change::default())
        }
    };
    let Committed { revision, .. } = engine.change(How::at(None), plan).await?;
    Ok((!lost.into_inner()).then_some(revision))
}

fn decide(desired: &Desired, host: &HostName, wanted: &Claim) -> Result<Granted, Fault> {
    claim::claim(desired, host, wanted).map_err(|denied| denial(&denied))
}

fn spec(port: Wanted, host: &HostName) -> PortSpec {
    // A tap of the agent's has a name that nobody needs to say.
    let device = port.device.filter(|device| *device != tap_name(&port.name));
    PortSpec {
        name: port.name,
        subnet: port.subnet,
        mac: port.mac,
        addresses: port.addresses,
        host: Some(host.clone()),
        device,
        queues: port.queues,
        security: port.security,
    }
}

/// The VM's ports as they stand on the host.
fn attached(engine: &Engine, host: &HostName, vm: &VmRef, revision: u64) -> ClaimReply {
    let core = engine.core();
    let here = core.desired().ports_of(vm).filter(|(_, p)| p.value.host.as_ref() == Some(host));
    let port = |(_, p): (_, &Versioned<Port>)| agent::ClaimedPort {
        port: p.value.name.to_string(),
        device: p.value.device.clone().unwrap_or_default(),
        revision: p.revision,
    };
    ClaimReply { revision, ports: here.map(port).collect(), ..ClaimReply::default() }
}

/// The answer for a VM whose migration is prepared, or past it.
fn under_way(engine: &Engine, host: &HostName, vm: &VmRef, id: Uuid, began: bool) -> ClaimReply {
    let core = engine.core();
    let revision = core.desired().revision;
    let Some(migration) = core.desired().migrations.get(vm) else {
        drop(core);
        return attached(engine, host, vm, revision);
    };
    let port = |(name, device): (&Name, &String)| agent::ClaimedPort {
        port: format!("{vm}/{name}"),
        device: device.clone(),
        revision: 0,
    };
    ClaimReply {
        refusal: None,
        ports: migration.value.devices.iter().map(port).collect(),
        revision,
        migration: id.to_string(),
        began,
    }
}

/// A VM is over on a host.
pub(crate) async fn release(engine: &Arc<Engine>, host: &HostName, request: ReleaseRequest) -> ReleaseReply {
    match released(engine, host, request).await {
        Ok((done, revision)) => ReleaseReply { refusal: None, done, revision },
        Err(fault) => ReleaseReply { refusal: Some(refusal(fault)), ..ReleaseReply::default() },
    }
}

async fn released(
    engine: &Arc<Engine>,
    host: &HostName,
    request: ReleaseRequest,
) -> Result<(String, u64), Fault> {
    let ended = match request.outcome() {
        Outcome::Stopped => Ended::Stopped,
        Outcome::Failed => Ended::Failed,
        Outcome::Moved => Ended::Moved,
    };
    let stay = match request.stay() {
        Told::Unsaid => Stay::Unsaid,
        Told::Arriving => Stay::Arriving,
        Told::Here => Stay::Here,
        Told::Away => Stay::Away,
    };
    let over = (ended, stay);
    let vm: VmRef = parse("vm", &request.vm)?;
    let ports = request.ports.iter().map(|p| parse("port", p)).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..ATTEMPTS {
        let decided = claim::release(engine.core().desired(), host, &vm, over, &ports);
        match decided {
            Release::Nothing(why) => return Ok((why, engine.core().desired().revision)),
            Release::Cancel => {
                moving::cancel(engine, &vm, &format!("host {host} says that it failed"), MOVE).await?;
                return Ok(("the move was given up".into(), engine.core().desired().revision));
            }
            Release::Later(id) => {
                if !moving::ended(engine, &vm, id, MOVE).await {
                    return Err(not_done(&vm, MOVE));
                }
            }
            Release::Detach(_) => {
                let plan = |desired: &Desired| {
                    let Release::Detach(ports) = claim::release(desired, host, &vm, over, &ports) else {
                        return Ok(tenet_model::Change::default());
                    };
                    let ports = ports.iter().filter_map(|name| desired.ports.get(name));
                    let alone = |p: &Port| Port { host: None, device: None, tap: false, ..p.clone() };
                    Ok(ports.map(|p| Operation::Put(Object::Port(alone(&p.value)))).collect())
                };
                let Committed { revision, changed } = engine.change(How::at(None), plan).await?;
                if !changed.is_empty() {
                    let names: Vec<&str> = changed.iter().map(|c| c.object.as_str()).collect();
                    return Ok((format!("{} left host {host}", names.join(", ")), revision));
                }
            }
        }
    }
    Err(Fault::conflict(format!("VM {vm} changes while host {host} lets it go"), "try again in a moment"))
}

fn parse<T: std::str::FromStr<Err = impl std::fmt::Display>>(what: &str, text: &str) -> Result<T, Fault> {
    text.parse()
        .map_err(|e| Fault::bad_request(format!("the {what} is not understood: {e}"), "check the name"))
}

fn optional<T: std::str::FromStr<Err = impl std::fmt::Display>>(
    what: &str,
    text: &str,
) -> Result<Option<T>, Fault> {
    if text.is_empty() { Ok(None) } else { parse(what, text).map(Some) }
}

/// How many queues the VM opens; none: as the port has.
fn queues(told: u32) -> Result<Option<u16>, Fault> {
    let many =
        |_| Fault::bad_request(format!("{told} queues are not possible"), "give as many as the VM's NIC has");
    u16::try_from(told).map(|queues| Some(queues).filter(|q| *q > 0)).map_err(many)
}

fn wanted(request: ClaimRequest) -> Result<Claim, Fault> {
    if request.ports.len() > PORTS {
        let message = format!("the claim names {} ports", request.ports.len());
        return Err(Fault::bad_request(message, &format!("claim at most {PORTS} at a time")));
    }
    let port = |p: &agent::ClaimPort| {
        Ok(ClaimPort {
            port: optional("port", &p.port)?,
            mac: optional("MAC", &p.mac)?,
            network: optional("network", &p.network)?,
            subnet: optional("subnet", &p.subnet)?,
            addresses: p.addresses.iter().map(|a| parse("address", a)).collect::<Result<_, _>>()?,
            device: Some(p.device.clone()).filter(|d| !d.is_empty()),
            queues: queues(p.queues)?,
        })
    };
    Ok(Claim {
        vm: parse("VM", &request.vm)?,
        ports: request.ports.iter().map(port).collect::<Result<_, Fault>>()?,
        incoming: request.purpose() == Purpose::Incoming,
    })
}

fn denial(denied: &Denied) -> Fault {
    let (status, code) = if denied.is_missing() {
        (StatusCode::NOT_FOUND, "not-found")
    } else if denied.is_conflict() {
        (StatusCode::CONFLICT, "conflict")
    } else {
        (StatusCode::BAD_REQUEST, "bad-request")
    };
    Fault::new(status, code, denied.to_string(), denied.hint())
}

fn refusal(fault: Fault) -> agent::Refusal {
    let Fault { status, error } = fault;
    let problem =
        |p: Problem| agent::Problem { code: p.code, object: p.object, message: p.message, hint: p.hint };
    agent::Refusal {
        status: status.as_u16().into(),
        code: error.code,
        message: error.message,
        hint: error.hint,
        problems: error.problems.into_iter().map(problem).collect(),
    }
}
