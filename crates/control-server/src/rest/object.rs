//! Tenants, networks, subnets, routes.

use super::extract::{App, Body, Named, Params, Wish};
use crate::{engine::How, fault::Fault, resolve, view};
use axum::{Json, extract::State};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;
use tenet_api::rest::{
    ApiError, ChangeItem, ChangeReply, NetworkPatch, NetworkSpec, NetworkView, RouteSpec, RouteView, Spec,
    SubnetSpec, SubnetView, Target, TenantSpec, TenantView, WaitQuery,
};
use tenet_model::{Desired, Key, NetworkRef, SubnetRef, TenantName};
use utoipa::IntoParams;

pub(super) type Reply<T> = Result<Json<T>, Fault>;

async fn put(app: &App, wish: Wish, object: Spec) -> Reply<ChangeReply> {
    let items = [ChangeItem::Put { object }];
    app.engine.change_items(wish.if_match, &items, wish.wait).await.map(Json)
}

/// Creates objects; what is there already must be as asked for, and stays.
pub(super) async fn create(app: &App, wish: Wish, items: &[ChangeItem]) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| resolve::create(desired, items);
    app.engine.change_and_wait(How::at(wish.if_match), wish.wait, plan).await.map(Json)
}

/// Deletes what is named; it must be there.
pub(super) async fn delete(app: &App, wish: Wish, object: Target) -> Reply<ChangeReply> {
    let key = object.key();
    let there = app.engine.core().desired().get(&key).is_some();
    if !there {
        return Err(Fault::not_found(&key));
    }
    let items = [ChangeItem::Delete { object }];
    app.engine.change_items(wish.if_match, &items, wish.wait).await.map(Json)
}

fn list<T>(app: &App, look: impl Fn(&Desired) -> Vec<T>) -> Json<Vec<T>> {
    Json(look(app.engine.core().desired()))
}

fn one<T>(app: &App, key: Key, look: impl Fn(&Desired) -> Option<T>) -> Reply<T> {
    look(app.engine.core().desired()).map(Json).ok_or_else(|| Fault::not_found(&key))
}

/// Lists the tenants.
#[utoipa::path(get, path = "/v1/tenants", tag = "objects", responses((status = 200, body = Vec<TenantView>)))]
pub(super) async fn tenants(State(app): State<App>) -> Json<Vec<TenantView>> {
    list(&app, |d| d.tenants.values().map(view::tenant).collect())
}

/// Creates a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "objects", params(WaitQuery), request_body = TenantSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_tenant(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<TenantSpec>,
) -> Reply<ChangeReply> {
    create(&app, wish, &[ChangeItem::Put { object: Spec::Tenant(s) }]).await
}

/// Shows a tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "objects", params(("tenant" = String, Path)),
    responses((status = 200, body = TenantView), (status = 404, body = ApiError)))]
pub(super) async fn tenant(State(app): State<App>, Named(name): Named<TenantName>) -> Reply<TenantView> {
    one(&app, Key::Tenant(name.clone()), |d| d.tenants.get(&name).map(view::tenant))
}

/// Deletes a tenant.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "objects", params(("tenant" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn delete_tenant(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<TenantName>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Tenant { name }).await
}

/// Lists the networks.
#[utoipa::path(get, path = "/v1/networks", tag = "objects", responses((status = 200, body = Vec<NetworkView>)))]
pub(super) async fn networks(State(app): State<App>) -> Json<Vec<NetworkView>> {
    let core = app.engine.core();
    Json(core.desired().networks.values().map(|n| view::network(&core, n)).collect())
}

/// Creates a network.
#[utoipa::path(post, path = "/v1/networks", tag = "objects", params(WaitQuery), request_body = NetworkSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_network(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<NetworkSpec>,
) -> Reply<ChangeReply> {
    create(&app, wish, &[ChangeItem::Put { object: Spec::Network(s) }]).await
}

/// Shows a network.
#[utoipa::path(get, path = "/v1/networks/{tenant}/{network}", tag = "objects",
    params(("tenant" = String, Path), ("network" = String, Path)),
    responses((status = 200, body = NetworkView), (status = 404, body = ApiError)))]
pub(super) async fn network(State(app): State<App>, Named(name): Named<NetworkRef>) -> Reply<NetworkView> {
    let core = app.engine.core();
    let found = core.desired().networks.get(&name).map(|n| view::network(&core, n));
    found.map(Json).ok_or_else(|| Fault::not_found(&Key::Network(name)))
}

/// Alters a network. Its method changes in two steps, receivers first, so that no frame is lost; with `wait=applied`
/// the answer comes once all connected hosts send by it.
#[utoipa::path(patch, path = "/v1/networks/{tenant}/{network}", tag = "objects", request_body = NetworkPatch,
    params(("tenant" = String, Path), ("network" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 422, body = ApiError)))]
pub(super) async fn set_network(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<NetworkRef>,
    Body(patch): Body<NetworkPatch>,
) -> Reply<ChangeReply> {
    let plan = |desired: &Desired| {
        if !desired.networks.contains_key(&name) {
            return Err(Fault::not_found(&Key::Network(name.clone())));
        }
        let object = Spec::Network(NetworkSpec { name: name.clone(), rdid: None, method: patch.method });
        resolve::change(desired, &[ChangeItem::Put { object }])
    };
    app.engine.change_and_wait(How::at(wish.if_match), wish.wait, plan).await.map(Json)
}

/// Deletes a network.
#[utoipa::path(delete, path = "/v1/networks/{tenant}/{network}", tag = "objects",
    params(("tenant" = String, Path), ("network" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn delete_network(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<NetworkRef>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Network { name }).await
}

/// Lists the subnets.
#[utoipa::path(get, path = "/v1/subnets", tag = "objects", responses((status = 200, body = Vec<SubnetView>)))]
pub(super) async fn subnets(State(app): State<App>) -> Json<Vec<SubnetView>> {
    list(&app, |d| d.subnets.values().map(view::subnet).collect())
}

/// Creates a subnet.
#[utoipa::path(post, path = "/v1/subnets", tag = "objects", params(WaitQuery), request_body = SubnetSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_subnet(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<SubnetSpec>,
) -> Reply<ChangeReply> {
    create(&app, wish, &[ChangeItem::Put { object: Spec::Subnet(s) }]).await
}

/// Shows a subnet.
#[utoipa::path(get, path = "/v1/subnets/{tenant}/{network}/{subnet}", tag = "objects",
    params(("tenant" = String, Path), ("network" = String, Path), ("subnet" = String, Path)),
    responses((status = 200, body = SubnetView), (status = 404, body = ApiError)))]
pub(super) async fn subnet(State(app): State<App>, Named(name): Named<SubnetRef>) -> Reply<SubnetView> {
    one(&app, Key::Subnet(name.clone()), |d| d.subnets.get(&name).map(view::subnet))
}

/// Deletes a subnet.
#[utoipa::path(delete, path = "/v1/subnets/{tenant}/{network}/{subnet}", tag = "objects",
    params(("tenant" = String, Path), ("network" = String, Path), ("subnet" = String, Path), WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn delete_subnet(
    State(app): State<App>,
    wish: Wish,
    Named(name): Named<SubnetRef>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Subnet { name }).await
}

/// Lists the customer routes.
#[utoipa::path(get, path = "/v1/routes", tag = "objects", responses((status = 200, body = Vec<RouteView>)))]
pub(super) async fn routes(State(app): State<App>) -> Json<Vec<RouteView>> {
    list(&app, |d| d.routes.values().map(view::route).collect())
}

/// Creates a customer route, or alters its metric.
#[utoipa::path(post, path = "/v1/routes", tag = "objects", params(WaitQuery), request_body = RouteSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn create_route(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<RouteSpec>,
) -> Reply<ChangeReply> {
    put(&app, wish, Spec::Route(s)).await
}

/// Names a customer route.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RouteName {
    /// The network.
    #[param(value_type = String)]
    network: NetworkRef,
    /// Destination.
    #[param(value_type = String)]
    prefix: IpNet,
    /// Next hop's customer address.
    #[param(value_type = String)]
    next_hop: IpAddr,
}

/// Deletes a customer route.
#[utoipa::path(delete, path = "/v1/routes", tag = "objects", params(RouteName, WaitQuery),
    responses((status = 200, body = ChangeReply), (status = 404, body = ApiError)))]
pub(super) async fn delete_route(
    State(app): State<App>,
    wish: Wish,
    Params(RouteName { network, prefix, next_hop }): Params<RouteName>,
) -> Reply<ChangeReply> {
    delete(&app, wish, Target::Route { network, prefix, next_hop }).await
}
