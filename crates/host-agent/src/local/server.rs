//! The socket and its requests.

use super::{
    Ask, Controller, Domains,
    ready::{self, Missing},
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
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};
use tenet_api::{
    agent::ClaimedPort,
    local::{LocalVm, Outcome, Prepare, Prepared, Purpose, Release, Released},
    rest::ApiError,
};
use tenet_host::Here;
use tenet_model::VmRef;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};

/// Pause before an address that could not be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Time that a session has to come where the last state is not enough for an answer.
const SESSION: Duration = Duration::from_secs(5);
/// Time that the controller has for a release; a migration may have to end first.
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
}

/// Serves as long as the agent's loop goes on.
pub(crate) async fn serve(path: std::path::PathBuf, local: Local) {
    let mut told = false;
    let listener = loop {
        match listen(&path) {
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
        .with_state(local);
    if let Err(cause) = axum::serve(listener, app).await {
        tracing::error!(%cause, "the local socket is served no more");
    }
}

/// Root's alone from its first moment: it gets its name when it has its mode.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = "another agent listens there: name another socket with --socket, or `none`";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
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
            Silent::Away => Self::unavailable(away),
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

async fn prepare(State(mut local): State<Local>, bytes: Bytes) -> Result<Json<Prepared>, Fault> {
    let request: Prepare = body(&bytes)?;
    let begun = Instant::now();
    let longest = request.longest();
    let mut answer = local.controller.claim(&request, longest).await;
    if let Err(Silent::Away) = answer {
        let here = local.here(Some(&request.vm)).await?;
        match ready::fail_static(&request.vm, &request.ports, &here) {
            Ok(ports) => return local.last_state(&request, &ports, begun).await,
            // An agent that has just begun gets its session in a moment.
            Err(missing) => {
                if !local.controller.come(SESSION.min(longest)).await {
                    return Err(Fault::unavailable(missing));
                }
                answer = local.controller.claim(&request, longest).await;
            }
        }
    }
    let reply = match answer {
        Ok(reply) => reply,
        Err(silent) => {
            let vm = &request.vm;
            let away = Missing {
                message: format!("the controller did not answer the claim of VM {vm}"),
                hint: "try again when it answers".into(),
            };
            return Err(Fault::silent(silent, away));
        }
    };
    if let Some(refusal) = reply.refusal {
        return Err(Fault::from_controller(refusal));
    }
    if let Some(domain) = &request.domain {
        local.domains.note(&request.vm, domain);
    }
    let incoming = !reply.migration.is_empty();
    match local.ready(&request.vm, &reply.ports, incoming, begun, longest).await {
        Ok(here) => Ok(Json(prepared(request.vm, here.iter(), false))),
        Err(fault) => {
            if reply.began {
                // Nobody waits for the move any more: it must not hold the VM up.
                let (vm, domain) = (request.vm, request.domain);
                let failed = Release { vm, domain, outcome: Outcome::Failed, ports: Vec::new() };
                let _ = local.controller.release(&failed, RELEASE).await;
            }
            Err(fault)
        }
    }
}

fn prepared<'a>(vm: VmRef, here: impl Iterator<Item = &'a Here>, fail_static: bool) -> Prepared {
    Prepared { vm, ports: here.filter_map(ready::local_port).collect(), fail_static }
}

async fn release(State(local): State<Local>, bytes: Bytes) -> Result<Json<Released>, Fault> {
    let request: Release = body(&bytes)?;
    let vm = request.vm.clone();
    let reply = local.controller.release(&request, RELEASE).await.map_err(|silent| {
        let away = Missing {
            message: format!("the controller does not answer: VM {vm} stays with this host"),
            hint: "it may start here again; to let it go, release it again when the controller answers"
                .into(),
        };
        Fault::silent(silent, away)
    })?;
    if let Some(refusal) = reply.refusal {
        return Err(Fault::from_controller(refusal));
    }
    if request.ports.is_empty() && local.here(Some(&vm)).await?.is_empty() {
        local.domains.forget(&vm);
    }
    Ok(Json(Released { vm, done: reply.done }))
}

async fn vms(State(local): State<Local>) -> Result<Json<Vec<LocalVm>>, Fault> {
    let mut vms: BTreeMap<VmRef, LocalVm> = BTreeMap::new();
    for here in local.here(None).await? {
        let vm = here.row.name.vm_ref();
        let entry = vms.entry(vm.clone()).or_insert_with(|| LocalVm {
            domain: local.domains.of(&vm),
            vm,
            ports: Vec::new(),
            qmp: None,
        });
        entry.ports.extend(ready::local_port(&here));
    }
    Ok(Json(vms.into_values().collect()))
}

impl Local {
    async fn here(&self, vm: Option<&VmRef>) -> Result<Vec<Here>, Fault> {
        let (reply, answer) = oneshot::channel();
        let asked = self.asks.send(Ask { vm: vm.cloned(), reply }).await.is_ok();
        match answer.await {
            Ok(here) if asked => Ok(here),
            Ok(_) | Err(_) => Err(Fault::unavailable(Missing {
                message: "the agent ends".into(),
                hint: "try again when it runs".into(),
            })),
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
