//! Claims of hosts: what runs there wants a VM's ports.

use crate::{engine::Engine, fault::Fault};
use axum::http::StatusCode;
use std::sync::Arc;
use tenet_api::agent::{self, ClaimReply, ClaimRequest, ReleaseReply, ReleaseRequest};
use tenet_model::HostName;

pub(crate) async fn claim(_: &Arc<Engine>, _: &HostName, _: ClaimRequest) -> ClaimReply {
    ClaimReply { refusal: Some(refusal(not_yet())), ..ClaimReply::default() }
}

pub(crate) async fn release(_: &Arc<Engine>, _: &HostName, _: ReleaseRequest) -> ReleaseReply {
    ReleaseReply { refusal: Some(refusal(not_yet())), ..ReleaseReply::default() }
}

fn not_yet() -> Fault {
    Fault::new(StatusCode::NOT_IMPLEMENTED, "unavailable", "claims are not taken yet", "wait")
}

fn refusal(fault: Fault) -> agent::Refusal {
    let Fault { status, error } = fault;
    let problem = |p: tenet_api::rest::Problem| agent::Problem {
        code: p.code,
        object: p.object,
        message: p.message,
        hint: p.hint,
    };
    agent::Refusal {
        status: status.as_u16().into(),
        code: error.code,
        message: error.message,
        hint: error.hint,
        problems: error.problems.into_iter().map(problem).collect(),
    }
}
