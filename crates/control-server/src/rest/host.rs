//! Hosts, join tokens and joining.

use super::{
    extract::{App, Body, Named, Wish},
    object::{Reply, create, delete},
};
use crate::{clock, engine::How, fault::Fault, resolve, token, view};
use axum::{Json, extract::State};
use tenet_api::rest::{
    ApiError, ChangeItem, ChangeReply, HostPatch, HostSpec, HostStatus, HostView, Join, Joined, Spec, Target,
    Token, TokenRequest, WaitQuery,
};
use tenet_model::{Desired, HostName, Key};

/// Lists the hosts and how they are.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", responses((status = 200, body = Vec<HostView>)))]
pub(super) async fn hosts(State(app): State<App>) -> Json<Vec<HostView>> {
    Json(view::hosts(&mut app.engine.core(), clock::micros()))
}

/// Adds a host.
#[utoipa::path(post, path = "/v1/hosts", tag = "hosts", params(WaitQuery), request_body = HostSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_host(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<HostSpec>,
) -> Reply<ChangeReply> {
    create(&app, wish, &[ChangeItem::Put { object: Spec::Host(s) }]).await
}

/// Shows a host with all that is known of it.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    responses((status = 200, body = HostStatus), (status = 404, body = ApiError)))]
pub(super) async fn host(State(app): State<App>, Named(name): Named<HostName>) -> Reply<HostStatus> {
    let status = view::host_status(&mut app.engine.core(), &name, clock::micros());
    status.map(Json).ok_or_else(|| Fault::not_found(&Key::Host(name)))
}

/// Alters a host: its rewrite pool.
#[utoipa::path(patch, path = "/v1/hosts/{host}", tag = "hosts", request_body = HostPatch,
    params(("host" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 422, body = ApiError)))]
pub(super) async fn set_host(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<HostName>,
    Body(patch): Body<HostPatch>,
) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| {
        let was = desired.hosts.get(&name).ok_or_else(|| Fault::not_found(&Key::Host(name.clone())))?;
        let spec =
            HostSpec { name: name.clone(), pa: was.value.pa, rewrite_pool: patch.rewrite_pool.clone() };
        resolve::change(desired, &[ChangeItem::Put { object: Spec::Host(spec) }])
    };
    app.engine.change_and_wait(How::at(wish.if_match), wish.wait, plan).await.map(Json)
}

/// Removes a host.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn delete_host(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<HostName>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Host { name }).await
}

/// Makes a one-time join token; adds the host if it does not exist.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "hosts", request_body = TokenRequest,
    responses((status = 200, body = Token), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn host_token(State(app): State<App>, Body(request): Body<TokenRequest>) -> Reply<Token> {
    token::make(&app.engine, request).await.map(Json)
}

/// Joins a host: a token and a certificate request in, a certificate out. Needs no bearer token.
#[utoipa::path(post, path = "/v1/join", tag = "hosts", request_body = Join, security(()),
    responses((status = 200, body = Joined), (status = 403, body = ApiError)))]
pub(super) async fn join(State(app): State<App>, Body(request): Body<Join>) -> Reply<Joined> {
    let (host, pa, certificate_pem) = token::join(&app.engine, &request).await?;
    let ca_pem = app.engine.pki.ca_pem().to_owned();
    Ok(Json(Joined { host, pa, certificate_pem, ca_pem, grpc_port: app.grpc_port }))
}
