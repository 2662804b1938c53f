//! The agents' side: sessions and renewals over mTLS. A host is who its certificate says, never what it says itself.

use crate::{
    claim,
    engine::{Closed, Engine, Link},
    listen::Peer,
    measured,
};
use std::{sync::Arc, time::Duration};
use tenet_api::agent::{
    self, AgentMessage, ClaimReply, ClaimRequest, ControllerMessage, ReleaseReply, ReleaseRequest,
    RenewRequest, RenewResponse, agent_message, agent_server::Agent, controller_message,
};
use tenet_api::rest::EventLine;
use tenet_control::{
    Ack, Happening, Hello, Message, NetworkProof, PortReport, Progress, Proof, Refused, SessionId, Word,
};
use tenet_model::{HostName, NetId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A session must begin with a hello within this time.
const HELLO: Duration = Duration::from_secs(10);
/// A host gets this time to read why its session ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages to a session that its connection has not yet taken.
const QUEUE: usize = 4;
/// Longest text of a host that is kept, in bytes.
const TEXT: usize = 1024;
/// Lines of a proof's repairs, and of its problems, that are kept.
const LINES: usize = 100;

type Outgoing = mpsc::Sender<Result<ControllerMessage, Status>>;

/// The gRPC service.
pub(crate) struct Service(pub(crate) Arc<Engine>);

#[tonic::async_trait]
impl Agent for Service {
    type SessionStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let host = peer(&request)?;
        let (to, messages) = mpsc::channel(QUEUE);
        tokio::spawn(session(Arc::clone(&self.0), host, request.into_inner(), to));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let host = peer(&request)?;
        if !self.0.core().desired().hosts.contains_key(&host) {
            return Err(no_such_host(&host));
        }
        let reply = claim::claim(&self.0, &host, request.into_inner()).await;
        reply.map(Response::new).ok_or_else(|| Status::internal("the claim came to no end: try again"))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseReply>, Status> {
        let host = peer(&request)?;
        if !self.0.core().desired().hosts.contains_key(&host) {
            return Err(no_such_host(&host));
        }
        Ok(Response::new(claim::release(&self.0, &host, request.into_inner()).await))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let host = peer(&request)?;
        if !self.0.core().desired().hosts.contains_key(&host) {
            return Err(no_such_host(&host));
        }
        let certificate_pem = self
            .0
            .pki
            .sign_host(&request.into_inner().csr_pem, &host, std::time::SystemTime::now())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let text = "the host's certificate was renewed";
        self.0.events.happened(Happening::new("certificate", text).host(&host));
        Ok(Response::new(RenewResponse { certificate_pem, ca_pem: self.0.pki.ca_pem().to_owned() }))
    }
}

fn peer<T>(request: &Request<T>) -> Result<HostName, Status> {
    request
        .extensions()
        .get::<Peer>()
        .and_then(|p| p.host.clone())
        .ok_or_else(|| Status::unauthenticated("the certificate names no host"))
}

fn no_such_host(host: &HostName) -> Status {
    Status::permission_denied(format!("host {host} is not part of this site: join it again with a new token"))
}

async fn session(engine: Arc<Engine>, host: HostName, mut inbound: Streaming<AgentMessage>, to: Outgoing) {
    let hello = match tokio::time::timeout(HELLO, inbound.message()).await {
        Ok(Ok(Some(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }))) => hello,
        Ok(Ok(_)) => {
            // The stream may be gone already; then nobody is there to be told.
            let _ = to.send(Err(Status::invalid_argument("a session begins with a hello"))).await;
            return;
        }
        Ok(Err(error)) => {
            tracing::info!(%host, %error, "a session did not begin");
            return;
        }
        Err(_) => {
            let _ = to.send(Err(Status::deadline_exceeded("no hello came"))).await;
            return;
        }
    };
    let hello = Hello {
        version: hello.version,
        generation: hello.generation,
        hook: hello.hook,
        uplinks: hello.uplinks,
        uplink_mtu: hello.uplink_mtu,
        kernel: hello.kernel,
        qmp_dir: hello.qmp_dir,
    };
    let (id, link) = match engine.open(&host, hello) {
        Ok(opened) => opened,
        Err(
            Refused::NoSuchHost
            | Refused::NoMigration
            | Refused::Phase(_)
            | Refused::Left
            | Refused::PostCopy(_),
        ) => {
            tracing::warn!(%host, "a host that is not part of the site asked for a session");
            farewell(&to, "the host is not part of this site").await;
            let _ = to.send(Err(no_such_host(&host))).await;
            return;
        }
    };
    let writer = write(Arc::clone(&engine), id, Arc::clone(&link), to);
    let reader = read(&engine, id, &host, &link, &mut inbound);
    // Whichever ends first ends the session.
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
    engine.close(id);
    // Dropping the host's stream resets the connection's, and with it last words that the host has not yet read.
    let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
    let _ = tokio::time::timeout(LAST_WORDS, rest).await;
}

/// Sends what the core and the askers have for the session, as fast as the connection takes it.
async fn write(engine: Arc<Engine>, id: SessionId, link: Arc<Link>, to: Outgoing) {
    loop {
        if let Some(Closed { reason, farewell: leave }) = link.closed() {
            if leave {
                farewell(&to, &reason).await;
            }
            let _ = to.send(Err(Status::aborted(reason))).await;
            return;
        }
        for question in link.take_questions() {
            if send(&to, controller_message::Message::Question(question)).await.is_err() {
                return;
            }
        }
        for drive in link.take_drives() {
            if send(&to, controller_message::Message::Drive(drive)).await.is_err() {
                return;
            }
        }
        if let Some(message) = engine.next_message(id) {
            let message = match message {
                Message::Full { generation, rows } => {
                    controller_message::Message::Full(agent::Full::new(generation, &rows))
                }
                Message::Delta(delta) => controller_message::Message::Delta((&delta).into()),
            };
            if send(&to, message).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            () = link.wake.notified() => {}
            () = to.closed() => return,
        }
    }
}

async fn send(to: &Outgoing, message: controller_message::Message) -> Result<(), ()> {
    to.send(Ok(ControllerMessage { message: Some(message) })).await.map_err(drop)
}

async fn farewell(to: &Outgoing, reason: &str) {
    let _ =
        send(to, controller_message::Message::Farewell(agent::Farewell { reason: reason.to_owned() })).await;
}

/// Hears the host.
async fn read(
    engine: &Arc<Engine>,
    id: SessionId,
    host: &HostName,
    link: &Link,
    inbound: &mut Streaming<AgentMessage>,
) {
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => return,
            Err(error) => {
                tracing::info!(%host, %error, "the session broke");
                return;
            }
        };
        match message {
            Some(agent_message::Message::Ack(ack)) => {
                let error = (!ack.error.is_empty()).then(|| text(ack.error));
                let (networks, ports) = (networks(&ack.networks), ports(ack.ports));
                let ack = Ack { generation: ack.generation, error, networks, ports };
                engine.drive(|core, now| core.acked(now, id, ack));
            }
            Some(agent_message::Message::Proof(proof)) => {
                let proof = Proof {
                    generation: proof.generation,
                    networks: networks(&proof.networks),
                    ports: ports(proof.ports),
                    repaired: texts(proof.repaired),
                    problems: texts(proof.problems),
                };
                engine.drive(|core, now| core.proved(now, id, proof));
            }
            Some(agent_message::Message::Measured(measured)) => {
                let measured = measured::measured(measured);
                engine.drive(|core, now| core.measured(now, id, measured));
            }
            Some(agent_message::Message::Resync(resync)) => {
                engine.drive(|core, now| core.resync(now, id, &resync.reason));
            }
            Some(agent_message::Message::PortActivated(activated)) => match activated.port.parse() {
                Ok(port) => engine.drive_for(host, |core, now| core.activated(now, id, &port)),
                Err(error) => tracing::warn!(%host, %error, "a message names no port"),
            },
            Some(agent_message::Message::VmEvent(event)) => match event.vm.parse() {
                Ok(vm) => {
                    if let Some(word) = word(event) {
                        engine.drive_for(host, |core, now| core.hypervisor(now, id, &vm, word));
                    }
                }
                Err(error) => tracing::warn!(%host, %error, "a message names no VM"),
            },
            Some(agent_message::Message::Event(event)) if engine.budgets.spend(host) => {
                engine.events.push(line(host, event))
            }
            // Too many: what is dropped is in the host's counters.
            Some(agent_message::Message::Event(_)) => {}
            Some(agent_message::Message::Answer(answer)) => link.answered(answer),
            Some(agent_message::Message::Hello(_)) => {
                tracing::warn!(%host, "a second hello in one session is ignored");
            }
            // A kind that a newer agent knows.
            None => {}
        }
    }
}

/// What a hypervisor said; none for what a newer agent knows.
fn word(event: agent::VmEvent) -> Option<Word> {
    use agent::vm_event::Kind;
    Some(match event.kind() {
        Kind::Other => return None,
        Kind::Stopped => Word::Stopped,
        Kind::Resumed => Word::Resumed,
        Kind::FirstFrame => Word::FirstFrame { after_us: event.after_us },
        Kind::Migration => Word::Migration {
            // What is no id is none of ours.
            id: (!event.migration.is_empty()).then(|| event.migration.parse().unwrap_or_default()),
            progress: Progress {
                transferred: event.transferred,
                total: event.total,
                status: text(event.status),
            },
            downtime_us: event.downtime_ms.map(|ms| ms.saturating_mul(1000)),
            error: text(event.error),
        },
    })
}

/// A host's words, cut to a length that a thousand of them may be kept.
pub(crate) fn text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT));
    text.shrink_to_fit();
    text
}

/// As many of a host's lines as are worth telling.
pub(crate) fn texts(all: Vec<String>) -> Vec<String> {
    all.into_iter().take(LINES).map(text).collect()
}

fn networks(proofs: &[agent::NetworkProof]) -> Vec<NetworkProof> {
    proofs.iter().map(|p| NetworkProof { net: NetId(p.net), digest: p.digest, rows: p.rows }).collect()
}

/// Ports that have no name of ours are left out.
fn ports(reports: Vec<agent::PortStatus>) -> Vec<PortReport> {
    let report = |p: agent::PortStatus| {
        Some(PortReport {
            port: p.port.parse().ok()?,
            present: p.present,
            carrier: p.carrier,
            ifindex: p.ifindex,
            mtu: p.mtu,
            state: p.state,
            detail: p.detail,
        })
    };
    reports.into_iter().filter_map(report).collect()
}

fn line(host: &HostName, event: agent::Event) -> EventLine {
    let mut fields = std::collections::BTreeMap::new();
    for (name, value) in [("mac", event.mac), ("ca", event.ca), ("pa", event.pa)] {
        if !value.is_empty() {
            fields.insert(name.to_owned(), text(value));
        }
    }
    if event.vsid != 0 {
        fields.insert("vsid".to_owned(), event.vsid.to_string());
    }
    EventLine {
        id: 0,
        time_ms: if event.time_ms == 0 { crate::clock::ms() } else { event.time_ms },
        kind: text(event.kind),
        host: Some(host.clone()),
        port: (!event.port.is_empty()).then(|| text(event.port)),
        fields,
        text: text(event.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_words_are_cut() {
        assert_eq!(text("short".into()), "short");
        let cut = text("µ".repeat(TEXT) + "x");
        assert_eq!(cut.len(), TEXT);
        assert_eq!(text(format!("x{}", "µ".repeat(TEXT))).len(), TEXT - 1);
        assert_eq!(texts(vec![String::new(); 2 * LINES]).len(), LINES);
    }
}
