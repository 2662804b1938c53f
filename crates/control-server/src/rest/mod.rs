//! REST: routes, the document that describes them, and what all of them have in common.

mod extract;
mod host;
mod object;
mod site;
mod vm;

pub(crate) use extract::App;

use crate::fault::Fault;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{Method, StatusCode, Uri},
    middleware,
    routing::{MethodRouter, delete, get, post},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Ref, ResponseBuilder,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

/// Largest body.
const BODY: usize = 1 << 20;
/// Largest body of a list of changes.
const CHANGES: usize = 16 << 20;

type Routes = Vec<(&'static str, MethodRouter<App>)>;

/// Routes for holders of the admin token.
fn guarded() -> Routes {
    vec![
        ("/metrics", get(site::metrics)),
        ("/v1/tenants", get(object::tenants).post(object::create_tenant)),
        ("/v1/tenants/{tenant}", get(object::tenant).delete(object::delete_tenant)),
        ("/v1/networks", get(object::networks).post(object::create_network)),
        (
            "/v1/networks/{tenant}/{network}",
            get(object::network).patch(object::set_network).delete(object::delete_network),
        ),
        ("/v1/subnets", get(object::subnets).post(object::create_subnet)),
        ("/v1/subnets/{tenant}/{network}/{subnet}", get(object::subnet).delete(object::delete_subnet)),
        ("/v1/vms", get(vm::vms).post(vm::create_vm)),
        ("/v1/vms/{tenant}/{vm}", get(vm::vm).delete(vm::delete_vm)),
        ("/v1/vms/{tenant}/{vm}/attach", post(vm::attach)),
        ("/v1/vms/{tenant}/{vm}/detach", post(vm::detach)),
        ("/v1/vms/{tenant}/{vm}/migrate", post(vm::migrate)),
        ("/v1/vms/{tenant}/{vm}/switch", post(vm::switch)),
        ("/v1/vms/{tenant}/{vm}/cancel", post(vm::cancel)),
        ("/v1/routes", get(object::routes).post(object::create_route).delete(object::delete_route)),
        ("/v1/hosts", get(host::hosts).post(host::create_host)),
        ("/v1/hosts/{host}", get(host::host).patch(host::set_host).merge(delete(host::delete_host))),
        ("/v1/join-tokens", post(host::host_token)),
        ("/v1/migrations", get(site::migrations)),
        ("/v1/receipts", get(site::receipts)),
        ("/v1/changes", post(site::changes).layer(DefaultBodyLimit::max(CHANGES))),
        ("/v1/site", get(site::site)),
        ("/v1/settings", get(site::settings).patch(site::set_settings)),
        ("/v1/paths", get(site::paths)),
        ("/v1/status", get(site::status)),
        ("/v1/table", get(site::table)),
        ("/v1/counters", get(site::counters)),
        ("/v1/events", get(site::events)),
    ]
}

/// Routes for anybody.
fn open() -> Routes {
    vec![
        ("/healthz", get(site::healthz)),
        ("/openapi.json", get(site::openapi)),
        ("/v1/join", post(host::join)),
    ]
}

/// The whole API.
pub(crate) fn router(app: App) -> Router {
    let add = |router: Router<App>, (path, route): (&str, MethodRouter<App>)| router.route(path, route);
    let guarded = guarded()
        .into_iter()
        .fold(Router::new(), add)
        .route_layer(middleware::from_fn_with_state(app.clone(), extract::authorize));
    open()
        .into_iter()
        .fold(guarded, add)
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(app.clone(), extract::count))
        .with_state(app)
}

async fn nowhere(uri: Uri) -> Fault {
    let message = format!("there is nothing at {}", uri.path());
    Fault::new(StatusCode::NOT_FOUND, "not-found", message, "see /openapi.json for what there is")
}

async fn wrong_method(method: Method, uri: Uri) -> Fault {
    let message = format!("{method} is not possible at {}", uri.path());
    let hint = "see /openapi.json for what is";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "bad-request", message, hint)
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Tenet", description = "Tenants' networks across hosts: desired state in, what is so out."),
    paths(
        site::healthz, site::metrics, site::openapi, site::changes, site::site, site::settings, site::set_settings, site::paths, site::status, site::table,
        site::counters, site::events, site::migrations, site::receipts,
        object::tenants, object::create_tenant, object::tenant, object::delete_tenant,
        object::networks, object::create_network, object::network, object::set_network,
        object::delete_network,
        object::subnets, object::create_subnet, object::subnet, object::delete_subnet,
        object::routes, object::create_route, object::delete_route,
        vm::vms, vm::create_vm, vm::vm, vm::delete_vm, vm::attach, vm::detach, vm::migrate, vm::switch, vm::cancel,
        host::hosts, host::create_host, host::host, host::set_host, host::delete_host, host::host_token, host::join,
    ),
    modifiers(&Common),
    security(("token" = []))
)]
struct Document;

/// What all operations have in common.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        for item in api.paths.paths.values_mut() {
            for operation in
                [&mut item.get, &mut item.post, &mut item.delete, &mut item.put].into_iter().flatten()
            {
                let error = Content::new(Some(Ref::from_schema_name("ApiError")));
                let response = ResponseBuilder::new()
                    .description("Anything else: what is wrong and what to do.")
                    .content("application/json", error)
                    .build();
                operation.responses.responses.insert("default".into(), response.into());
            }
        }
    }
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Method and path of everything that is routed, as axum itself tells by its `allow` header.
    fn routed() -> BTreeSet<(String, String)> {
        let debug = |route: &MethodRouter<App>| format!("{route:?}");
        let mut all = BTreeSet::new();
        for (path, route) in guarded().into_iter().chain(open()) {
            let text = debug(&route);
            for method in ["get", "post", "put", "delete", "patch"] {
                if !text.contains(&format!(" {method}: None")) {
                    all.insert((method.to_owned(), path.to_owned()));
                }
            }
        }
        all
    }

    #[test]
    fn document_and_routes_are_the_same() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |m| (m.clone(), path.clone())))
            .collect();
        assert_eq!(documented, routed());
    }

    #[test]
    fn committed_document_is_the_served_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("TENET_UPDATE_OPENAPI").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let hint = "docs/openapi.json is stale: run this test with TENET_UPDATE_OPENAPI=1 and commit it";
        assert!(committed == document(), "{hint}");
    }
}
