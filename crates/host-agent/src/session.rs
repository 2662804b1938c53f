//! The connection to the controller: joins, connects, renews; the agent's loop sees messages only.

use crate::identity::{Identity, IdentityError, request};
use rand::Rng as _;
use rcgen::KeyPair;
use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};
use tenet_api::agent::{
    AgentMessage, ControllerMessage, RenewRequest, agent_client::AgentClient, controller_message::Message,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(3);
/// Between two checks that the other side is alive, and the time that it has to answer.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Largest message taken and sent.
const MESSAGE_MAX: usize = tenet_api::agent::MAX_MESSAGE;
/// Messages on their way out; a controller that takes none for so long is gone.
pub(crate) const OUTGOING: usize = 1024;
/// Pause before a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// What the agent's loop hears of the session.
pub(crate) enum Heard {
    /// A session opens; the first message is owed.
    Open(mpsc::Sender<AgentMessage>),
    /// The controller said something.
    Message(Message),
    /// The session ended.
    Closed,
    /// The host was removed from the site; there will be no more sessions.
    Farewell,
    /// There is no way to get a session.
    Fatal(IdentityError),
}

/// What the session task needs.
pub(crate) struct Session {
    pub(crate) state_dir: PathBuf,
    pub(crate) controllers: Vec<String>,
    pub(crate) token: Option<String>,
    pub(crate) heard: mpsc::Sender<Heard>,
    /// Where requests of this host find the connection, while there is a session.
    pub(crate) connection: watch::Sender<Option<AgentClient<Channel>>>,
}

/// Why one session came to its end.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the controller at {url} does not answer")]
    Connect {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the controller refused the session")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the session broke")]
    Broke(#[source] Box<tonic::Status>),
    #[error("the controller ended the session")]
    Ended,
    #[error("the agent is going down")]
    Gone,
}

impl Session {
    /// Runs until the agent goes down, the host is removed, or there is no hope.
    pub(crate) async fn run(self) {
        let mut identity = match self.identity().await {
            Ok(identity) => identity,
            Err(error) => {
                // The loop may be gone already.
                let _ = self.heard.send(Heard::Fatal(error)).await;
                return;
            }
        };
        let mut backoff = Backoff::default();
        for url in identity.controllers.clone().iter().cycle() {
            let (began, mut opened) = (Instant::now(), false);
            let result = self.session(&mut identity, url, &mut opened).await;
            self.connection.send_replace(None);
            if opened && self.heard.send(Heard::Closed).await.is_err() {
                return;
            }
            // A controller that takes sessions and breaks them is not to be asked at full speed.
            let lived = opened && began.elapsed() > BACKOFF_MAX;
            if lived {
                backoff = Backoff::default();
            }
            match result {
                Ok(()) => {
                    // The loop may be gone already.
                    let _ = self.heard.send(Heard::Farewell).await;
                    return;
                }
                Err(SessionError::Gone) => return,
                Err(error) => {
                    let pause = backoff.next();
                    let cause = chain(&error);
                    if backoff.first() && identity.is_valid() {
                        tracing::warn!(%url, cause, "no session with the controller; forwarding goes on");
                    } else if backoff.first() {
                        tracing::error!(%url, cause, "this host's certificate has expired: start with a new join token");
                    } else {
                        tracing::debug!(%url, cause, ?pause, "no session with the controller");
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// The host's identity; joins if it has none yet.
    async fn identity(&self) -> Result<Identity, IdentityError> {
        let known = Identity::load(&self.state_dir)?;
        // A host that was away for longer than its certificate lived needs a token again.
        if let Some(mut identity) = known.filter(|i| self.token.is_none() || i.is_valid()) {
            if self.token.is_some() {
                tracing::info!(
                    host = identity.host,
                    "this host has joined already: the join token is not used"
                );
            }
            if !self.controllers.is_empty() {
                identity.controllers = self.grpc_urls(identity.grpc_port);
            }
            return Ok(identity);
        }
        let Some(token) = &self.token else { return Err(IdentityError::NotJoined) };
        let mut backoff = Backoff::default();
        for url in self.controllers.iter().cycle() {
            match Identity::join(&self.state_dir, url, token).await {
                Ok(mut identity) => {
                    identity.controllers = self.grpc_urls(identity.grpc_port);
                    identity.save(&self.state_dir)?;
                    tracing::info!(host = identity.host, pa = %identity.pa, "joined the site");
                    return Ok(identity);
                }
                Err(error) if error.passes() => {
                    let pause = backoff.next();
                    tracing::warn!(%url, cause = chain(&error), ?pause, "cannot join yet");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(IdentityError::NotJoined)
    }

    fn grpc_urls(&self, port: u16) -> Vec<String> {
        self.controllers.iter().filter_map(|url| grpc_url(url, port)).collect()
    }

    /// One session; `Ok` is the controller's farewell.
    async fn session(
        &self,
        identity: &mut Identity,
        url: &str,
        opened: &mut bool,
    ) -> Result<(), SessionError> {
        let channel = connect(identity, url).await?;
        let mut client = AgentClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let (tx, rx) = mpsc::channel(OUTGOING);
        // The controller may wait for the first message before it opens its side.
        self.heard.send(Heard::Open(tx)).await.map_err(|_| SessionError::Gone)?;
        *opened = true;
        let refused = |status| SessionError::Refused(Box::new(status));
        let mut stream = client.session(ReceiverStream::new(rx)).await.map_err(refused)?.into_inner();
        self.connection.send_replace(Some(client.clone()));
        tracing::info!(%url, "session with the controller");
        let mut not_before = SystemTime::UNIX_EPOCH;
        loop {
            let renew_at = identity.renew_at().unwrap_or_else(|_| far()).max(not_before);
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(ControllerMessage { message: Some(Message::Farewell(_)) })) => return Ok(()),
                    Ok(Some(ControllerMessage { message: Some(m) })) => {
                        self.heard.send(Heard::Message(m)).await.map_err(|_| SessionError::Gone)?;
                    }
                    // A kind of message that a newer controller sends.
                    Ok(Some(ControllerMessage { message: None })) => {}
                    Ok(None) => return Err(SessionError::Ended),
                    Err(status) => return Err(SessionError::Broke(Box::new(status))),
                },
                () = tokio::time::sleep(until(renew_at)), if !until(renew_at).is_zero() => {}
                // Resolves at once; the branch above does while it is too early.
                () = std::future::ready(()), if until(renew_at).is_zero() => {
                    self.renew(identity, &mut client).await;
                    not_before = SystemTime::now() + RENEW_AGAIN;
                }
            }
        }
    }

    /// Gets a new certificate for a new key; the running session keeps the old one until its end.
    async fn renew(&self, identity: &mut Identity, client: &mut AgentClient<Channel>) {
        let renewed = async {
            let key = KeyPair::generate().map_err(|e| e.to_string())?;
            let csr_pem = request(&key).map_err(|e| chain(&e))?;
            let reply = tokio::time::timeout(KEEPALIVE, client.renew(RenewRequest { csr_pem }));
            let reply = reply.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))?.into_inner();
            let ca_pem = if reply.ca_pem.is_empty() { identity.ca_pem.clone() } else { reply.ca_pem };
            let new = Identity {
                key_pem: key.serialize_pem(),
                certificate_pem: reply.certificate_pem,
                ca_pem,
                ..identity.clone()
            };
            new.validity().map_err(|e| chain(&e))?;
            new.save(&self.state_dir).map_err(|e| chain(&e))?;
            Ok::<_, String>(new)
        };
        match renewed.await {
            Ok(new) => {
                *identity = new;
                tracing::info!("certificate renewed");
            }
            Err(cause) => tracing::warn!(cause, "the certificate is not renewed yet"),
        }
    }
}

async fn connect(identity: &Identity, url: &str) -> Result<Channel, SessionError> {
    let error = |source| SessionError::Connect { url: url.to_owned(), source };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .identity(TlsIdentity::from_pem(&identity.certificate_pem, &identity.key_pem));
    Endpoint::from_shared(url.to_owned())
        .and_then(|e| e.tls_config(tls))
        .map_err(error)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(error)
}

/// The gRPC listener beside a REST listener.
fn grpc_url(rest: &str, port: u16) -> Option<String> {
    let uri: tonic::transport::Uri = rest.parse().ok()?;
    Some(format!("https://{}:{port}", uri.host()?))
}

fn until(time: SystemTime) -> Duration {
    // Timers of more than a day may be cut by the clock's changes: look again then.
    time.duration_since(SystemTime::now()).unwrap_or_default().min(Duration::from_secs(86_400))
}

fn far() -> SystemTime {
    SystemTime::now() + Duration::from_secs(86_400)
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Growing pauses, each up to a half longer or shorter by chance, so that hosts do not come all at once.
#[derive(Debug, Default)]
struct Backoff {
    tries: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = (BACKOFF_MIN * 2u32.saturating_pow(self.tries.min(10))).min(BACKOFF_MAX);
        self.tries = self.tries.saturating_add(1);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    const fn first(&self) -> bool {
        self.tries == 1
    }
}
