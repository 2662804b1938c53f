//! The controller's shell: REST for people and tools, gRPC for agents, certificates, and the store behind them.
//!
//! Three things to know: [`run`] serves until it is told to stop, [`Options`] say where and with what, and [`Ready`]
//! says what came of them. Decisions are made in `control` and `model`; nothing is decided here that could be there.
//! Must never touch a host's kernel.

mod budget;
mod claim;
mod clock;
mod engine;
mod events;
mod fault;
mod grpc;
mod in_use;
mod listen;
mod measured;
mod metrics;
mod moving;
mod path;
mod pki;
#[cfg(feature = "pretend-agent")]
pub mod pretend;
mod resolve;
mod rest;
mod spec;
mod token;
mod view;

pub use pki::PkiError;
pub use rest::document as openapi_document;

use crate::{
    engine::Engine,
    listen::Incoming,
    pki::{Pki, ServerCertificate},
};
use sha2::{Digest as _, Sha256};
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tenet_api::{agent::agent_server::AgentServer, client::AdminFile};
use tenet_store::{MemoryStore, RedbOptions, RedbStore, SiteError, SiteStore, Store, StoreError};
use tokio::{net::TcpListener, sync::watch};

/// Longest wait at the end for connections to let go.
const LET_GO: Duration = Duration::from_secs(2);

/// Where desired state is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StoreKind {
    /// In a file of the state directory.
    #[default]
    Redb,
    /// In memory: gone when the controller ends.
    Memory,
}

/// How a controller runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything that must last is kept.
    pub state_dir: PathBuf,
    /// Listener of REST.
    pub rest_addr: SocketAddr,
    /// Listener of the agents.
    pub grpc_addr: SocketAddr,
    /// Names and addresses by which the controller is reached; `localhost` and the loopback addresses always are.
    pub addresses: Vec<String>,
    /// Where desired state is kept.
    pub store: StoreKind,
    /// Lifetime of hosts' certificates.
    pub host_certificate: Duration,
}

impl Options {
    /// The state directory unless another one is given.
    pub const STATE_DIR: &str = "/var/lib/tenet";
    /// REST's port unless another one is given.
    pub const REST_PORT: u16 = 7443;
    /// The agents' port unless another one is given.
    pub const GRPC_PORT: u16 = 7444;
    /// Lifetime of hosts' certificates unless another one is given.
    pub const HOST_CERTIFICATE: Duration = Duration::from_secs(30 * 86_400);

    /// The defaults in a state directory.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        Self {
            state_dir: state_dir.into(),
            rest_addr: SocketAddr::new(any, Self::REST_PORT),
            grpc_addr: SocketAddr::new(any, Self::GRPC_PORT),
            addresses: Vec::new(),
            store: StoreKind::default(),
            host_certificate: Self::HOST_CERTIFICATE,
        }
    }
}

/// A controller that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// REST's address.
    pub rest: SocketAddr,
    /// The agents' address.
    pub grpc: SocketAddr,
    /// The admin file.
    pub admin_file: PathBuf,
}

/// Why a controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file or directory cannot be used.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: is another controller running?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate authority fails.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The site cannot be read.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A part of the controller broke; a start anew reads everything from the store again.
    #[error("a task of the controller broke")]
    Task(#[source] tokio::task::JoinError),
    /// A listener failed.
    #[error("serving failed")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Serves until `shutdown` ends; calls `ready` once both listeners are open.
///
/// # Errors
/// [`RunError`] if it cannot begin, or a listener fails.
pub async fn run(
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), RunError> {
    // The servers' futures are large; whoever awaits this should not have to carry them.
    Box::pin(serve(options, shutdown, ready)).await
}

async fn serve(
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), RunError> {
    let dir = &options.state_dir;
    let file = |path: &Path, source| RunError::File { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| file(dir, e))?;
    let pki = Pki::open(&dir.join("pki"), options.host_certificate, SystemTime::now())?;
    let store: Arc<dyn Store> = match options.store {
        StoreKind::Memory => Arc::new(MemoryStore::new()),
        StoreKind::Redb => Arc::new(RedbStore::open(&dir.join("site.redb"), RedbOptions::default())?),
    };
    let (rest_listener, rest) = bind(options.rest_addr).await?;
    let (grpc_listener, grpc) = bind(options.grpc_addr).await?;
    let mut names = options.addresses.clone();
    names.extend(
        [rest, grpc].iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()),
    );
    let certificate = Arc::new(ServerCertificate::new(pki.server_key(&names, SystemTime::now())?));
    if options.addresses.is_empty() && (rest.ip().is_unspecified() || grpc.ip().is_unspecified()) {
        tracing::warn!(
            "no --address is given: the certificate names this machine's loopback only, and other hosts' agents refuse it"
        );
    }
    let (rest_tls, grpc_tls) = pki.server_configs(&certificate)?;
    let (admin_file, admin) = admin_file(dir, rest, &pki)?;
    let (engine, mut tasks) = Engine::start(SiteStore::open(store).await?, pki).await?;
    let renewal = tokio::spawn(renew_server_certificate(Arc::clone(&engine), certificate, names));
    let app = rest::App { engine: Arc::clone(&engine), admin, grpc_port: grpc.port() };
    let (stop, stopping) = watch::channel(false);
    let stopped = |mut stopping: watch::Receiver<bool>| async move {
        // The sender lives as long as we serve.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let rest_incoming =
        Incoming::new(rest_listener, rest_tls).map_err(|source| RunError::Listen { addr: rest, source })?;
    let grpc_incoming =
        Incoming::new(grpc_listener, grpc_tls).map_err(|source| RunError::Listen { addr: grpc, source })?;
    let rest_server =
        axum::serve(rest_incoming, rest::router(app)).with_graceful_shutdown(stopped(stopping.clone()));
    let service = AgentServer::new(grpc::Service(Arc::clone(&engine)))
        .max_decoding_message_size(tenet_api::agent::MAX_MESSAGE)
        .max_encoding_message_size(tenet_api::agent::MAX_MESSAGE);
    let grpc_server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(grpc_incoming.into_stream(), stopped(stopping));
    tracing::info!(%rest, %grpc, state = %dir.display(), "the controller serves");
    ready(Ready { rest, grpc, admin_file });
    let serve = async {
        tokio::try_join!(async { rest_server.await.map_err(|e| RunError::Serve(e.into())) }, async {
            grpc_server.await.map_err(|e| RunError::Serve(e.into()))
        },)
    };
    let result = tokio::select! {
        result = serve => result.map(drop),
        () = shutdown => Ok(()),
        // They have no end of their own; what is left would take changes that reach nobody.
        Some(Err(error)) = tasks.join_next() => Err(RunError::Task(error)),
    };
    // Streams to followers and sessions have no end of their own: whoever is connected connects again.
    let _ = stop.send(true);
    renewal.abort();
    tasks.abort_all();
    engine.stop();
    // Sessions and connections let go of the store, so that whoever comes next can open it.
    let free = async {
        while Arc::strong_count(&engine) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(LET_GO, free).await;
    tracing::info!("the controller ends");
    result
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let at = |source| RunError::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(at)?;
    let addr = listener.local_addr().map_err(at)?;
    Ok((listener, addr))
}

/// Writes the file that lets root in; the token in it stays the same over restarts.
fn admin_file(dir: &Path, rest: SocketAddr, pki: &Pki) -> Result<(PathBuf, [u8; 32]), RunError> {
    let path = dir.join("admin.json");
    let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<AdminFile>(&bytes).ok());
    let token = match known {
        Some(known) if !known.token.is_empty() => known.token,
        Some(_) | None => pki::secret()?,
    };
    let ip = if rest.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { rest.ip() };
    let hash = Sha256::digest(token.as_bytes()).into();
    let admin = AdminFile {
        url: format!("https://{}", SocketAddr::new(ip, rest.port())),
        ca: "ca.pem".into(),
        token,
    };
    let text = serde_json::to_vec_pretty(&admin).unwrap_or_default();
    let ca = dir.join("ca.pem");
    for (path, bytes) in [(&ca, pki.ca_pem().as_bytes()), (&path, text.as_slice())] {
        pki::write_private(path, bytes).map_err(|source| RunError::File { path: path.clone(), source })?;
    }
    Ok((path, hash))
}

/// Makes the server's certificate anew when two thirds of its life are over.
async fn renew_server_certificate(
    engine: Arc<Engine>,
    certificate: Arc<ServerCertificate>,
    names: Vec<String>,
) {
    loop {
        tokio::time::sleep(pki::SERVER_LIFETIME / 3 * 2).await;
        match engine.pki.server_key(&names, SystemTime::now()) {
            Ok(key) => certificate.replace(key),
            Err(error) => tracing::error!(%error, "the server's certificate cannot be renewed"),
        }
    }
}
