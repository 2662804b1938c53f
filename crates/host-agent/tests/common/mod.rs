//! A controller that does as the test says: joins hosts, signs certificates, holds sessions.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

mod shared;

pub use shared::Shared;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tenet_api::agent::agent_server::{Agent, AgentServer};
use tenet_api::agent::{
    AgentMessage, ClaimReply, ClaimRequest, ControllerMessage, ReleaseReply, ReleaseRequest, RenewRequest,
    RenewResponse, agent_message, controller_message,
};
use tenet_compile::*;
use tenet_host_agent::{KernelPart, Options};
use tenet_model::{Mac, Method, Name, NetId, NetworkRef, PortRef, SubnetPrefix, SubnetRef, Vsid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// Time after which a test gives up waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A certificate authority.
pub struct Ca {
    pem: String,
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    /// Seconds that a host's certificate lives.
    pub lifetime: AtomicU64,
    pub signed: AtomicU32,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "fake");
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let (pem, der) = (cert.pem(), cert.der().to_vec());
        let issuer = Issuer::new(params, key);
        Self { pem, der, issuer, lifetime: AtomicU64::new(86_400), signed: AtomicU32::new(0) }
    }

    fn server(&self) -> (String, String) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(LOOPBACK)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem() + &self.pem, key.serialize_pem())
    }

    fn sign(&self, csr: &str) -> String {
        self.signed.fetch_add(1, Ordering::SeqCst);
        let mut csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.params.distinguished_name.push(DnType::CommonName, "h1");
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.not_before = SystemTime::now().into();
        csr.params.not_after =
            (SystemTime::now() + Duration::from_secs(self.lifetime.load(Ordering::SeqCst))).into();
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    pub fn token(&self) -> String {
        let hex: String =
            tenet_api::client::fingerprint(&self.der).iter().map(|b| format!("{b:02x}")).collect();
        format!("tenet1.{hex}.secret")
    }
}

/// One agent's session.
pub struct Session {
    pub to: mpsc::Sender<Result<ControllerMessage, Status>>,
    pub from: Streaming<AgentMessage>,
}

impl Session {
    pub async fn say(&self, message: controller_message::Message) {
        self.to.send(Ok(ControllerMessage { message: Some(message) })).await.unwrap();
    }

    /// The next message for which `pick` gives something.
    pub async fn hear<T>(&mut self, pick: impl Fn(agent_message::Message) -> Option<T>) -> T {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let message = self.from.message().await.unwrap().expect("the agent ended the session");
                if let Some(found) = message.message.and_then(&pick) {
                    return found;
                }
            }
        })
        .await
        .expect("the agent did not say what the test waits for")
    }
}

struct Service {
    sessions: mpsc::Sender<Session>,
    ca: Arc<Ca>,
}

#[tonic::async_trait]
impl Agent for Service {
    type SessionStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to, rx) = mpsc::channel(16);
        let session = Session { to, from: request.into_inner() };
        self.sessions.send(session).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn claim(&self, _: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        Err(Status::unimplemented("this controller takes no claims"))
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseReply>, Status> {
        Err(Status::unimplemented("this controller takes no claims"))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let certificate_pem = self.ca.sign(&request.into_inner().csr_pem);
        Ok(Response::new(RenewResponse { certificate_pem, ca_pem: self.ca.pem.clone() }))
    }
}

/// The controller.
pub struct Controller {
    pub ca: Arc<Ca>,
    pub url: String,
    pub grpc: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    stop: Option<oneshot::Sender<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Controller {
    pub async fn start() -> Self {
        Self::start_at(Arc::new(Ca::new()), (LOOPBACK, 0).into(), (LOOPBACK, 0).into()).await
    }

    pub async fn start_at(ca: Arc<Ca>, rest: SocketAddr, grpc: SocketAddr) -> Self {
        let (cert, key) = ca.server();
        let listener = TcpListener::bind(grpc).await.unwrap();
        let grpc = listener.local_addr().unwrap();
        let rest = TcpListener::bind(rest).await.unwrap();
        let url = format!("https://{}", rest.local_addr().unwrap());
        let (sessions_tx, sessions) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&cert, &key))
            .client_ca_root(Certificate::from_pem(&ca.pem));
        let service = AgentServer::new(Service { sessions: sessions_tx, ca: Arc::clone(&ca) });
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        let grpc_task = tokio::spawn(async move {
            // Ends all sessions at once, as a killed controller does.
            tokio::select! {
                r = server.serve_with_incoming(TcpIncoming::from(listener)) => r.unwrap(),
                _ = stopped => {}
            }
        });
        let rest_task = tokio::spawn(serve_joins(rest, Arc::clone(&ca), cert, key, grpc.port()));
        Self { ca, url, grpc, sessions, stop: Some(stop), tasks: vec![grpc_task, rest_task] }
    }

    pub async fn session(&mut self) -> Session {
        tokio::time::timeout(PATIENCE, self.sessions.recv()).await.expect("no agent came").unwrap()
    }

    pub fn rest(&self) -> SocketAddr {
        self.url.trim_start_matches("https://").parse().unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve_joins(listener: TcpListener, ca: Arc<Ca>, cert: String, key: String, grpc_port: u16) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut request = String::new();
        let body = loop {
            let mut chunk = [0; 4096];
            let n = stream.read(&mut chunk).await.unwrap_or(0);
            request.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
            let body = request.split_once("\r\n\r\n").map(|(_, b)| b);
            match body.and_then(|b| serde_json::from_str::<serde_json::Value>(b).ok()) {
                Some(body) => break body,
                None if n == 0 => return,
                None => {}
            }
        };
        let (status, reply) = if body["token"] == ca.token() {
            let certificate_pem = ca.sign(body["csr_pem"].as_str().unwrap());
            let reply = serde_json::json!({
                "host": "h1", "pa": "192.168.1.10", "certificate_pem": certificate_pem,
                "ca_pem": ca.pem, "grpc_port": grpc_port,
            });
            ("200 OK", reply)
        } else {
            (
                "403 Forbidden",
                serde_json::json!({"code": "token", "message": "used", "hint": "", "problems": []}),
            )
        };
        let reply = reply.to_string();
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", reply.len());
        stream.write_all((head + &reply).as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    }
}

/// A directory that is gone after the test.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("tenet-agent-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn options(dir: &Path, controller: &Controller) -> Options {
    Options {
        state_dir: dir.to_owned(),
        controllers: vec![controller.url.clone()],
        token: Some(controller.ca.token()),
        uplinks: vec!["eth0".into()],
        kernel: KernelPart::None { uplink_mtu: 1500 },
        metrics: None,
        socket: None,
        keep_offloads: false,
        compare_every: Duration::from_millis(100),
        qmp_dir: None,
        libvirt: tenet_host_agent::Libvirt::Off,
        ready: None,
    }
}

/// A running agent; ends with the test.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    pub task: tokio::task::JoinHandle<Result<(), tenet_host_agent::AgentError>>,
}

impl Running {
    pub fn start(options: Options) -> Self {
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        Self { stop: Some(stop), task: tokio::spawn(tenet_host_agent::run(options, shutdown)) }
    }

    pub async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, &mut self.task).await.unwrap().unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Ready = Option<Box<dyn FnOnce() + Send>>;

/// A ready callback and what tells that it was called.
pub fn ready() -> (Ready, oneshot::Receiver<()>) {
    let (tx, rx) = oneshot::channel();
    (Some(Box::new(move || tx.send(()).unwrap_or(()))), rx)
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// One network with a port here (device `tap1`) and one there.
pub fn site(generation: u64) -> Rows {
    let net = NetId(1);
    let vsid = Vsid::new(5001).unwrap();
    let tenant = || name("contoso");
    let port = |vm: &str| PortRef { tenant: tenant(), vm: name(vm), port: name("eth0") };
    let record = |vm: &str, n: u8, pa: &str| {
        Row::Record(RecordRow {
            net,
            ca: [10, 1, 1, n].into(),
            mac: Mac::new([2, 0, 0, 0, 0, n]).unwrap(),
            vsid,
            pa: pa.parse().unwrap(),
            alt_pa: None,
            method: Method::Nvgre,
            rewrite_pa: None,
            other_rewrite_pa: None,
            port: port(vm),
        })
    };
    let all = [
        Row::Host(HostRow {
            name: name("h1"),
            pa: "192.168.1.10".parse().unwrap(),
            vxlan_port: 4789,
            geneve_port: 6081,
            other_port: None,
            pool: vec![],
        }),
        Row::Peer(PeerRow { name: name("h2"), pa: "192.168.2.20".parse().unwrap(), any_source: vec![] }),
        Row::Network(NetworkRow {
            id: net,
            name: NetworkRef { tenant: tenant(), network: name("blue") },
            rdid: uuid::Uuid::from_u128(1),
            method: Method::Nvgre,
            switching: None,
        }),
        Row::Subnet(SubnetRow {
            net,
            vsid,
            name: SubnetRef { tenant: tenant(), network: name("blue"), subnet: name("web") },
            prefixes: vec![SubnetPrefix {
                prefix: "10.1.1.0/24".parse().unwrap(),
                gateway: [10, 1, 1, 1].into(),
            }],
        }),
        Row::Route(RouteRow { net, prefix: "10.1.1.0/24".parse().unwrap(), next_hop: None, metric: 0 }),
        record("sql", 11, "192.168.1.10"),
        record("web", 12, "192.168.2.20"),
        Row::Port(PortRow {
            net,
            name: port("sql"),
            vsid,
            mac: Mac::new([2, 0, 0, 0, 0, 11]).unwrap(),
            device: "tap1".into(),
            tap: false,
            queues: 1,
            state: PortState::Active,
            peer_pa: None,
            security: true,
        }),
    ];
    Rows(all.into_iter().map(|r| (r.key(), (r, generation))).collect())
}

/// The site with one more record of a generation.
pub fn more(rows: &Rows, generation: u64) -> Rows {
    let mut next = rows.clone();
    let Some((Row::Record(r), _)) =
        rows.0.values().find(|(r, _)| matches!(r, Row::Record(r) if r.port.vm == name("web")))
    else {
        unreachable!()
    };
    let last = u8::try_from(generation % 100).unwrap() + 100;
    let row = Row::Record(RecordRow {
        ca: [10, 1, 1, last].into(),
        mac: Mac::new([2, 0, 0, 0, 0, last]).unwrap(),
        ..r.clone()
    });
    next.0.insert(row.key(), (row, generation));
    next
}
