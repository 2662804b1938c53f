//! An agent without a kernel, for tests and benches: it joins, keeps rows, acknowledges with their digests.

use rcgen::{CertificateParams, KeyPair};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tenet_api::{
    agent::{
        self, AgentMessage, ControllerMessage, agent_client::AgentClient, agent_message::Message,
        controller_message,
    },
    client,
};
use tenet_compile::{Delta, PortState, Row, Rows, digests};
use tenet_model::PortRef;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// What a host got by joining.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// PEM of its key.
    pub key_pem: String,
    /// PEM of its certificate.
    pub certificate_pem: String,
    /// PEM of the controller's CA.
    pub ca_pem: String,
}

impl Credentials {
    /// Joins with a token.
    ///
    /// # Errors
    /// As [`client::join`].
    pub async fn join(url: &str, token: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        let joined = client::join(url, token, &csr).await?;
        let (certificate_pem, ca_pem) = (joined.certificate_pem, joined.ca_pem);
        Ok(Self { key_pem: key.serialize_pem(), certificate_pem, ca_pem })
    }

    /// Connects to the agents' listener.
    ///
    /// # Errors
    /// What connecting fails with.
    pub async fn connect(&self, grpc: SocketAddr) -> Result<AgentClient<Channel>, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(Identity::from_pem(&self.certificate_pem, &self.key_pem))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{grpc}"))?.tls_config(tls)?.tcp_nodelay(true);
        let max = agent::MAX_MESSAGE;
        Ok(AgentClient::new(endpoint.connect().await?)
            .max_decoding_message_size(max)
            .max_encoding_message_size(max))
    }
}

/// What the pretend agent holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Generation of the rows.
    pub generation: u64,
    /// The rows.
    pub rows: Rows,
    /// Full states taken.
    pub fulls: u64,
    /// Deltas taken.
    pub deltas: u64,
    /// The session's end, if it has ended.
    pub ended: Option<String>,
    /// Whether the controller said farewell.
    pub farewell: bool,
    /// What it was told to move.
    pub drives: Vec<agent::Drive>,
}

/// A session of a pretend agent; ends when dropped.
pub struct PretendAgent {
    held: watch::Receiver<Held>,
    to: mpsc::Sender<AgentMessage>,
    muted: Arc<Mutex<bool>>,
    task: tokio::task::JoinHandle<()>,
}

impl PretendAgent {
    /// Begins a session.
    ///
    /// # Errors
    /// What connecting and calling fail with.
    pub async fn start(
        credentials: &Credentials,
        grpc: SocketAddr,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut client = credentials.connect(grpc).await?;
        let (to, messages) = mpsc::channel(64);
        let hello =
            agent::Hello { version: "pretend".into(), hook: "none".into(), ..agent::Hello::default() };
        to.send(message(Message::Hello(hello))).await?;
        let inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let (sender, held) = watch::channel(Held::default());
        let muted = Arc::new(Mutex::new(false));
        let task = tokio::spawn(serve(inbound, to.clone(), sender, Arc::clone(&muted)));
        Ok(Self { held, to, muted, task })
    }

    /// What it holds now.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// To wait for what it holds.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Held> {
        self.held.clone()
    }

    /// Acknowledges nothing more (or again what comes from now on).
    pub fn mute(&self, muted: bool) {
        *self.muted.lock().unwrap_or_else(PoisonError::into_inner) = muted;
    }

    /// Says that a prepared port sent its first frame.
    pub async fn activate(&self, port: &PortRef) {
        let activated = agent::PortActivated { port: port.to_string() };
        // A session that has ended shows it in what it holds.
        let _ = self.to.send(message(Message::PortActivated(activated))).await;
    }

    /// Sends anything.
    pub async fn send(&self, what: Message) {
        let _ = self.to.send(message(what)).await;
    }
}

impl Drop for PretendAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const fn message(message: Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

async fn serve(
    mut inbound: Streaming<ControllerMessage>,
    to: mpsc::Sender<AgentMessage>,
    held: watch::Sender<Held>,
    muted: Arc<Mutex<bool>>,
) {
    let end = loop {
        match inbound.message().await {
            Ok(Some(m)) => {
                let answer = m.message.and_then(|m| take(m, &held));
                let muted = *muted.lock().unwrap_or_else(PoisonError::into_inner);
                if let (Some(answer), false) = (answer, muted)
                    && to.send(message(answer)).await.is_err()
                {
                    break Status::cancelled("stopped");
                }
            }
            Ok(None) => break Status::ok("the controller ended the session"),
            Err(status) => break status,
        }
    };
    held.send_modify(|h| h.ended = Some(end.to_string()));
}

fn take(m: controller_message::Message, held: &watch::Sender<Held>) -> Option<Message> {
    let result: Result<(), String> = match m {
        controller_message::Message::Full(full) => {
            let generation = full.generation;
            full.into_rows().map_err(|e| e.to_string()).map(|rows| {
                held.send_modify(|h| (h.generation, h.rows, h.fulls) = (generation, rows, h.fulls + 1));
            })
        }
        controller_message::Message::Delta(delta) => {
            Delta::try_from(delta).map_err(|e| e.to_string()).and_then(|d| {
                let mut result = Ok(());
                held.send_modify(|h| {
                    if d.base == h.generation {
                        h.rows.apply(&d);
                        (h.generation, h.deltas) = (d.generation, h.deltas + 1);
                    } else {
                        result = Err(format!("base {} is not {}", d.base, h.generation));
                    }
                });
                result
            })
        }
        controller_message::Message::Question(q) => {
            let rows = held.borrow().rows.0.values().map(Into::into).collect();
            let counters = ports(&held.borrow().rows)
                .map(|(port, _)| agent::PortCounters {
                    port: port.to_string(),
                    ..agent::PortCounters::default()
                })
                .collect();
            return Some(Message::Answer(agent::Answer {
                id: q.id,
                rows,
                counters,
                ..agent::Answer::default()
            }));
        }
        controller_message::Message::Drive(drive) => {
            held.send_modify(|h| h.drives.push(drive));
            return None;
        }
        controller_message::Message::Farewell(_) => {
            held.send_modify(|h| h.farewell = true);
            return None;
        }
    };
    let held = held.borrow();
    Some(match result {
        Ok(()) => Message::Ack(agent::Ack {
            generation: held.generation,
            error: String::new(),
            networks: digests(&held.rows)
                .into_iter()
                .map(|(net, digest)| agent::NetworkProof { net: net.0, digest, rows: 0 })
                .collect(),
            ports: ports(&held.rows).map(|(port, state)| status(port, state)).collect(),
        }),
        Err(reason) => Message::Resync(agent::Resync { reason }),
    })
}

fn ports(rows: &Rows) -> impl Iterator<Item = (&PortRef, PortState)> {
    rows.0.values().filter_map(|(row, _)| match row {
        Row::Port(p) => Some((&p.name, p.state)),
        Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) => {
            None
        }
    })
}

fn status(port: &PortRef, state: PortState) -> agent::PortStatus {
    let state = match state {
        PortState::Blocked => "blocked",
        PortState::Active => "active",
        PortState::Prepared => "prepared",
        PortState::Moved => "moved",
    };
    agent::PortStatus {
        port: port.to_string(),
        present: true,
        carrier: true,
        ifindex: 0,
        mtu: 1458,
        state: state.into(),
        detail: String::new(),
    }
}
