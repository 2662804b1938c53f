//! Requests of this host on their way to the controller, by the session's own connection.

use super::{owed::Debt, ready::Stay};
use std::time::Duration;
use tenet_api::{
    agent::{
        ClaimPort, ClaimReply, ClaimRequest, Refusal, ReleaseReply, ReleaseRequest,
        agent_client::AgentClient,
        claim_request::Purpose as ClaimPurpose,
        release_request::{Outcome as ReleaseOutcome, Stay as ReleaseStay},
    },
    local::{Outcome, Prepare, PreparePort, Purpose},
    rest::{ApiError, Problem},
};
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

/// A connection to the controller.
pub(crate) type Connection = AgentClient<Channel>;

/// The connection of the session, while there is one.
#[derive(Clone)]
pub(crate) struct Controller(watch::Receiver<Option<Connection>>);

/// Why the controller did not answer.
#[derive(Debug)]
pub(super) enum Silent {
    /// There is no way to it now: it was not asked.
    Away,
    /// It was asked, and what came of that is not known.
    Broken,
    /// It does not know what is asked.
    TooOld,
    /// It refuses this host.
    Outcast(String),
}

impl Controller {
    pub(crate) const fn new(connection: watch::Receiver<Option<Connection>>) -> Self {
        Self(connection)
    }

    /// Waits for a session.
    pub(super) async fn come(&mut self, longest: Duration) -> bool {
        matches!(tokio::time::timeout(longest, self.0.wait_for(Option::is_some)).await, Ok(Ok(_)))
    }

    /// Waits for a session, however long; false: the agent ends.
    pub(super) async fn way(&mut self) -> bool {
        self.0.wait_for(Option::is_some).await.is_ok()
    }

    pub(super) async fn claim(&self, prepare: &Prepare, longest: Duration) -> Result<ClaimReply, Silent> {
        let mut connection = self.0.borrow().clone().ok_or(Silent::Away)?;
        let request = ClaimRequest {
            vm: prepare.vm.to_string(),
            ports: prepare.ports.iter().map(port).collect(),
            purpose: match prepare.purpose {
                Purpose::Start => ClaimPurpose::Start,
                Purpose::Incoming => ClaimPurpose::Incoming,
            }
            .into(),
            timeout_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
        };
        // It answers late rather than not at all.
        let slack = Duration::from_secs(2);
        match tokio::time::timeout(longest + slack, connection.claim(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(silent),
            Err(_) => Err(Silent::Broken),
        }
    }

    pub(super) async fn release(&self, debt: &Debt, longest: Duration) -> Result<ReleaseReply, Silent> {
        let mut connection = self.0.borrow().clone().ok_or(Silent::Away)?;
        let request = ReleaseRequest {
            vm: debt.vm.to_string(),
            outcome: match debt.outcome {
                Outcome::Stopped => ReleaseOutcome::Stopped,
                Outcome::Failed => ReleaseOutcome::Failed,
                Outcome::Moved => ReleaseOutcome::Moved,
            }
            .into(),
            ports: debt.ports.iter().map(ToString::to_string).collect(),
            stay: match debt.stay {
                Stay::Unsaid => ReleaseStay::Unsaid,
                Stay::Arriving => ReleaseStay::Arriving,
                Stay::Here => ReleaseStay::Here,
                Stay::Away => ReleaseStay::Away,
            }
            .into(),
        };
        match tokio::time::timeout(longest, connection.release(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(silent),
            Err(_) => Err(Silent::Broken),
        }
    }
}

fn silent(status: tonic::Status) -> Silent {
    match status.code() {
        Code::Unimplemented => Silent::TooOld,
        Code::PermissionDenied | Code::Unauthenticated => Silent::Outcast(status.message().to_owned()),
        code => {
            tracing::info!(?code, message = status.message(), "the controller did not answer a request");
            Silent::Broken
        }
    }
}

fn port(p: &PreparePort) -> ClaimPort {
    let text = |t: Option<String>| t.unwrap_or_default();
    ClaimPort {
        port: text(p.port.as_ref().map(ToString::to_string)),
        mac: text(p.mac.map(|m| m.to_string())),
        network: text(p.network.as_ref().map(ToString::to_string)),
        subnet: text(p.subnet.as_ref().map(ToString::to_string)),
        addresses: p.addresses.iter().map(ToString::to_string).collect(),
        device: p.device.clone().unwrap_or_default(),
        queues: p.queues.map_or(0, u32::from),
    }
}

/// The controller's words, as they are.
pub(super) fn refused(refusal: Refusal) -> (u16, ApiError) {
    let problems = refusal.problems.into_iter().map(|p| Problem {
        code: p.code,
        object: p.object,
        message: p.message,
        hint: p.hint,
    });
    let error = ApiError {
        code: refusal.code,
        message: refusal.message,
        hint: refusal.hint,
        problems: problems.collect(),
    };
    (u16::try_from(refusal.status).unwrap_or(500), error)
}
