//! The socket and its requests.

use super::{
    Ask, Controller, Domains,
    listen::listen,
    owed::{Attempt, Debt, First, Owed, Tell},
    ready::{self, Missing, Stay},
    relay::{self, Silent},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tenet_api::{
    agent::{ClaimedPort, ReleaseReply},
    local::{LocalVm, Outcome, Prepare, Prepared, Purpose, Release, Released},
    rest::ApiError,
};
use tenet_host::Here;
use tenet_model::VmRef;
use tokio::sync::{mpsc, oneshot, watch};

/// Pause before an address that could not be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Time that a session has to come where the last state is not enough for an answer.
const SESSION: Duration = Duration::from_secs(5);
/// Time that the controller has for one attempt at a release; a migration may have to end first.
const RELEASE: Duration = Duration::from_secs(25);

/// What the requests need.
#[derive(Clone)]
pub(crate) struct Local {
    /// The agent's loop.
    pub(crate) asks: mpsc::Sender<Ask>,
    /// Counts what may have changed the answers.
    pub(crate) changed: watch::Receiver<u64>,
    /// The controller.
    pub(crate) controller: Controller,
    /// Which VM is which domain.
    pub(crate) domains: Domains,
    /// Where QEMU's monitors are looked for.
    pub(crate) qmp_dir: Option<String>,
}

/// The requests' state.
#[derive(Clone)]
struct Desk {
    local: Local,
    owed: Owed<Local>,
}

/// Serves as long as the agent's loop goes on.
pub(crate) async fn serve(path: std::path::PathBuf, local: Local) {
    let mut told = false;
    let listener = loop {
        match listen(&path).await {
            Ok(listener) => break listener,
            Err(cause) => {
                if !std::mem::replace(&mut told, true) {
                    let path = path.display();
                    tracing::error!(%path, %cause, "no local socket: containers and hypervisors cannot ask for ports");
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    tracing::info!(path = %path.display(), "local socket open");
    let app = Router::new()
        .route("/v1/prepare", post(prepare))
        .route("/v1/release", post(release))
        .route("/v1/vms", get(vms))
        .fallback(async || {
            Fault::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "there is no such request",
                "see docs/containers.md",
            )
        })
        .with_state(Desk { owed: Owed::load(local.domains.folder(), local.clone()), local });
    if let Err(cause) = axum::serve(listener, app).await {
        tracing::error!(%cause, "the local socket is served no more");
    }
}

/// An answer outside 2xx.
#[derive(Debug)]
struct Fault(StatusCode, ApiError);

impl Fault {
    fn new(status: StatusCode, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let (message, hint) = (message.into(), hint.into());
        Self(status, ApiError { code: code.into(), message, hint, problems: Vec::new() })
    }

    fn unavailable(missing: Missing) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", missing.message, missing.hint)
    }

    fn from_controller(refusal: tenet_api::agent::Refusal) -> Self {
        let (status, error) = relay::refused(refusal);
        Self(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error)
    }

    fn silent(silent: Silent, away: Missing) -> Self {
        match silent {
            Silent::Away | Silent::Broken => Self::unavailable(away),
            Silent::TooOld => Self::new(
                StatusCode::NOT_IMPLEMENTED,
                "unavailable",
                "the controller is older than this agent and takes no claims of hosts",
                "bring the controller to the agent's version",
            ),
            Silent::Outcast(why) => {
                Self::new(StatusCode::FORBIDDEN, "unauthorized", why, "join this host with a new token")
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

fn body<T: serde::de::DeserializeOwned>(bytes: &Bytes) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| {
        let message = format!("the request is not understood: {e}");
        Fault::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            message,
            "docs/containers.md shows what it may hold",
        )
    })
}

/// Who asks may hang up at any moment. The request is not dropped with it: a migration that it has begun must not be
/// left to nobody.
async fn prepare(State(desk): State<Desk>, bytes: Bytes) -> Result<Json<Prepared>, Fault> {
    let request: Prepare = body(&bytes)?;
    if request.domain.is_some() {
        desk.local.domains.hook_asks();
    }
    let (mut asker, answer) = oneshot::channel();
    tokio::spawn(async move {
        // It starts or comes: what was owed for its end would end it again.
        let owed = desk.owed.cancel(&request);
        let began = AtomicBool::new(false);
        let answer = tokio::select! {
            answer = desk.local.clone().prepare(&request, &began) => Some(answer),
            () = asker.closed() => None,
        };
        let heard = match answer {
            Some(Ok(answer)) => asker.send(Ok(answer)).is_ok(),
            Some(Err(fault)) => {
                // The asker may be gone; it was refused anyway.
                let _ = asker.send(Err(fault));
                false
            }
            None => false,
        };
        if heard {
            return;
        }
        for debt in owed {
            desk.owed.owe(debt);
        }
        if began.into_inner() {
            let release = Release { vm: request.vm, outcome: Outcome::Failed, ports: Vec::new() };
            desk.owed.owe(Debt::new(release, Stay::Arriving));
        }
    });
    answer.await.map_err(|_| ends())?
}

fn ends() -> Fault {
    Fault::unavailable(Missing { message: "the agent ends".into(), hint: "try again when it runs".into() })
}

fn not_answered(vm: &VmRef) -> Missing {
    let message = format!("the controller did not answer the claim of VM {vm}");
    Missing { message, hint: "try again when it answers".into() }
}

fn prepared<'a>(vm: VmRef, here: impl Iterator<Item = &'a Here>, fail_static: bool) -> Prepared {
    let here: Vec<&Here> = here.collect();
    let host = here.iter().find_map(|h| h.host.clone());
    Prepared { vm, ports: here.into_iter().filter_map(ready::local_port).collect(), fail_static, host }
}

async fn release(State(desk): State<Desk>, bytes: Bytes) -> Result<Json<Released>, Fault> {
    let request: Release = body(&bytes)?;
    let vm = request.vm.clone();
    let here = desk.local.here(Some(&vm)).await;
    let stay = here.map_or(Stay::Unsaid, |here| ready::stay(&here));
    let done = match desk.owed.owe(Debt::new(request, stay)).await {
        Ok(First::Answered(ReleaseReply { refusal: Some(refusal), .. })) => {
            return Err(Fault::from_controller(refusal));
        }
        Ok(First::Answered(reply)) => reply.done,
        Ok(First::Later) => {
            "the controller has not answered: it is told again until it does, unless the VM starts \
                             here before"
                .into()
        }
        Ok(First::Never(silent)) => {
            let message = format!("the controller does not answer: VM {vm} stays with this host");
            let hint = "release it again when the controller answers".into();
            return Err(Fault::silent(silent, Missing { message, hint }));
        }
        // The same was asked again, or the VM starts here.
        Err(_) => "a later request took its place".into(),
    };
    Ok(Json(Released { vm, done }))
}

async fn vms(State(Desk { local, .. }): State<Desk>) -> Result<Json<Vec<LocalVm>>, Fault> {
    let mut vms: BTreeMap<VmRef, LocalVm> = BTreeMap::new();
    for here in local.here(None).await? {
        let vm = here.row.name.vm_ref();
        let entry = vms.entry(vm.clone()).or_insert_with(|| LocalVm {
            domain: local.domains.of(&vm),
            qmp_dir: local.qmp_dir.clone(),
            vm,
            ports: Vec::new(),
        });
        entry.ports.extend(ready::local_port(&here));
    }
    Ok(Json(vms.into_values().collect()))
}

impl Tell for Local {
    async fn tell(&self, debt: &Debt) -> Attempt {
        let reply = self.controller.release(debt, RELEASE).await?;
        if reply.refusal.is_none()
            && debt.ports.is_empty()
            && self.here(Some(&debt.vm)).await.is_ok_and(|here| here.is_empty())
        {
            self.domains.forget(&debt.vm);
        }
        Ok(reply)
    }

    async fn way(&mut self) -> bool {
        self.controller.way().await
    }
}

impl Local {
    /// Asks the controller for the ports, waits until they are there. `began` is set as soon as a migration is known to
    /// have been begun for this request.
    async fn prepare(mut self, request: &Prepare, began: &AtomicBool) -> Result<Json<Prepared>, Fault> {
        let vm = &request.vm;
        let (begun, longest) = (Instant::now(), request.longest());
        let left = || longest.saturating_sub(begun.elapsed());
        let mut answer = self.controller.claim(request, longest).await;
        // A claim of an incoming VM that broke off may have begun a migration, which the controller then gives up: the
        // last state would let the guest come although it is called off.
        let unsure = request.purpose == Purpose::Incoming && matches!(answer, Err(Silent::Broken));
        if let Err(Silent::Away | Silent::Broken) = answer {
            let here = self.here(Some(vm)).await?;
            let missing = match ready::fail_static(vm, &request.ports, &here) {
                Ok(ports) if !unsure => return self.last_state(request, &ports, begun).await,
                Ok(_) => not_answered(vm),
                Err(missing) => missing,
            };
            // An agent that has just begun gets its session in a moment.
            if !self.controller.come(SESSION.min(left())).await {
                return Err(Fault::unavailable(missing));
            }
            answer = self.controller.claim(request, left().max(Duration::from_millis(1))).await;
        }
        let reply = answer.map_err(|silent| Fault::silent(silent, not_answered(vm)))?;
        if let Some(refusal) = reply.refusal {
            return Err(Fault::from_controller(refusal));
        }
        began.store(reply.began, Ordering::Relaxed);
        if let Some(domain) = &request.domain {
            self.domains.note(vm, domain);
        }
        let incoming = !reply.migration.is_empty();
        let here = self.ready(vm, &reply.ports, incoming, begun, longest).await?;
        Ok(Json(prepared(vm.clone(), here.iter(), false)))
    }

    async fn here(&self, vm: Option<&VmRef>) -> Result<Vec<Here>, Fault> {
        let (reply, answer) = oneshot::channel();
        let asked = self.asks.send(Ask { vm: vm.cloned(), reply }).await.is_ok();
        match answer.await {
            Ok(here) if asked => Ok(here),
            Ok(_) | Err(_) => Err(ends()),
        }
    }

    /// Waits until the ports that were granted are there.
    async fn ready(
        &mut self,
        vm: &VmRef,
        granted: &[ClaimedPort],
        incoming: bool,
        begun: Instant,
        longest: Duration,
    ) -> Result<Vec<Here>, Fault> {
        let judge = |here: &[Here]| granted.iter().find_map(|c| ready::missing(c, here, incoming));
        let mut here = self.until(vm, judge, begun, longest).await?;
        here.retain(|h| granted.iter().any(|c| h.row.name.to_string() == c.port));
        Ok(here)
    }

    /// The answer of a host that has no controller: what it had last, once it is there.
    async fn last_state(
        &mut self,
        request: &Prepare,
        ports: &[&Here],
        begun: Instant,
    ) -> Result<Json<Prepared>, Fault> {
        let vm = &request.vm;
        tracing::warn!(%vm, "prepared from the last state: there is no session with the controller");
        let names: Vec<_> = ports.iter().map(|h| h.row.name.clone()).collect();
        let incoming = request.purpose == Purpose::Incoming;
        let judge = |here: &[Here]| {
            here.iter().filter(|h| names.contains(&h.row.name)).find_map(|h| ready::unready(h, incoming))
        };
        let here = self.until(vm, judge, begun, request.longest()).await?;
        if let Some(domain) = &request.domain {
            self.domains.note(vm, domain);
        }
        Ok(Json(prepared(vm.clone(), here.iter().filter(|h| names.contains(&h.row.name)), true)))
    }

    async fn until(
        &mut self,
        vm: &VmRef,
        judge: impl Fn(&[Here]) -> Option<Missing>,
        begun: Instant,
        longest: Duration,
    ) -> Result<Vec<Here>, Fault> {
        loop {
            self.changed.mark_unchanged();
            let here = self.here(Some(vm)).await?;
            let Some(missing) = judge(&here) else { return Ok(here) };
            let left = longest.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let message = format!("{} (after {} s)", missing.message, longest.as_secs_f32());
                return Err(Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message, missing.hint));
            }
            // Out of time: one last look.
            let _ = tokio::time::timeout(left, self.changed.changed()).await;
        }
    }
}
