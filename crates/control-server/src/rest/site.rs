//! The site as a whole: changes, status, table, counters, events.

use super::{
    extract::{App, Body, Params, Wish},
    object::Reply,
};
use crate::{
    clock,
    engine::{ANSWER, How},
    fault::Fault,
    metrics, path, resolve, view,
};
use axum::{
    Json,
    body::Body as HttpBody,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use tenet_api::{
    agent::{self, question::What},
    rest::{
        ApiError, ChangeItem, ChangeReply, ChangesRequest, Counters, EventLine, MigrationView, Paths,
        PortCounters, ReceiptView, SettingsSpec, SettingsView, Site, Spec, Status, Table, TableRow,
        WaitQuery,
    },
    to_rows,
};
use tenet_compile::{RecordRow, Row, RowKey, Rows};
use tenet_model::{HostName, Key, NetId, NetworkRef};
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

/// Applies several changes as one. One that would take a port that a VM uses to another host is refused, unless forced.
#[utoipa::path(post, path = "/v1/changes", tag = "site", params(WaitQuery), request_body = ChangesRequest,
    responses((status = 200, body = ChangeReply), (status = 409, body = ApiError), (status = 422, body = ApiError)))]
pub(super) async fn changes(
    State(app): State<App>,
    wish: Wish,
    Body(r): Body<ChangesRequest>,
) -> Reply<ChangeReply> {
    let if_revision = r.if_revision.or(wish.if_match);
    let how = How { if_revision, dry_run: r.dry_run, force: r.force };
    app.engine.change_and_wait(how, wish.wait, |desired| resolve::change(desired, &r.changes)).await.map(Json)
}

/// Shows the whole desired state.
#[utoipa::path(get, path = "/v1/site", tag = "site", responses((status = 200, body = Site)))]
pub(super) async fn site(State(app): State<App>) -> Json<Site> {
    Json(view::site(app.engine.core().desired()))
}

/// Shows what holds for the whole site.
#[utoipa::path(get, path = "/v1/settings", tag = "site", responses((status = 200, body = SettingsView)))]
pub(super) async fn settings(State(app): State<App>) -> Json<SettingsView> {
    Json(view::settings(&app.engine.core()))
}

/// Alters what holds for the whole site.
#[utoipa::path(patch, path = "/v1/settings", tag = "site", params(WaitQuery), request_body = SettingsSpec,
    responses((status = 200, body = ChangeReply), (status = 422, body = ApiError)))]
pub(super) async fn set_settings(
    State(app): State<App>,
    wish: Wish,
    Body(s): Body<SettingsSpec>,
) -> Reply<ChangeReply> {
    let items = [ChangeItem::Put { object: Spec::Site(s) }];
    app.engine.change_items(wish.if_match, &items, wish.wait).await.map(Json)
}

/// Shows the ways between the hosts as measured with real probes, and what is wrong with them.
#[utoipa::path(get, path = "/v1/paths", tag = "site", params(OfHost),
    responses((status = 200, body = Paths), (status = 404, body = ApiError)))]
pub(super) async fn paths(State(app): State<App>, Params(OfHost { host }): Params<OfHost>) -> Reply<Paths> {
    let core = app.engine.core();
    match host.clone().filter(|host| !core.desired().hosts.contains_key(host)) {
        Some(unknown) => Err(Fault::not_found(&Key::Host(unknown))),
        None => Ok(Json(path::paths(core.paths(), host.as_ref(), clock::micros()))),
    }
}

/// Shows desired, applied and proven state of each host and network.
#[utoipa::path(get, path = "/v1/status", tag = "site", responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): State<App>) -> Json<Status> {
    let mut core = app.engine.core();
    let now = clock::micros();
    let names: Vec<HostName> = core.desired().hosts.keys().cloned().collect();
    let hosts: Vec<_> = names.iter().filter_map(|name| view::host_status(&mut core, name, now)).collect();
    let desired = core.desired();
    Json(Status {
        revision: desired.revision,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        in_sync: hosts.iter().all(|h| h.in_sync),
        migrations: desired.migrations.values().map(|m| view::migration(&core, &m.value)).collect(),
        switching: desired
            .networks
            .values()
            .filter(|n| n.value.switching.is_some())
            .map(|n| view::network(&core, n))
            .collect(),
        paths: core.paths().findings.into_iter().map(path::finding).collect(),
        hosts,
    })
}

/// Lists the running migrations.
#[utoipa::path(get, path = "/v1/migrations", tag = "site", responses((status = 200, body = Vec<MigrationView>)))]
pub(super) async fn migrations(State(app): State<App>) -> Json<Vec<MigrationView>> {
    let core = app.engine.core();
    Json(core.desired().migrations.values().map(|m| view::migration(&core, &m.value)).collect())
}

/// Lists the receipts of past migrations, oldest first.
#[utoipa::path(get, path = "/v1/receipts", tag = "site", responses((status = 200, body = Vec<ReceiptView>)))]
pub(super) async fn receipts(State(app): State<App>) -> Reply<Vec<ReceiptView>> {
    let receipts = app.engine.site().receipts().await?;
    Ok(Json(receipts.into_iter().map(view::receipt).collect()))
}

/// Names a host.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OfHost {
    /// The host; all of them if left out.
    #[param(value_type = Option<String>)]
    host: Option<HostName>,
}

/// Shows the lookup table: as desired, or as it stands in the kernel of one host.
#[utoipa::path(get, path = "/v1/table", tag = "site", params(OfHost),
    responses((status = 200, body = Table), (status = 404, body = ApiError), (status = 503, body = ApiError)))]
pub(super) async fn table(State(app): State<App>, Params(OfHost { host }): Params<OfHost>) -> Reply<Table> {
    match host {
        None => Ok(Json(whole_table(&app))),
        Some(host) => host_table(&app, host).await.map(Json),
    }
}

fn whole_table(app: &App) -> Table {
    let mut core = app.engine.core();
    let names: Vec<HostName> = core.desired().hosts.keys().cloned().collect();
    let mut rows: BTreeMap<(NetworkRef, std::net::IpAddr), TableRow> = BTreeMap::new();
    for name in &names {
        let behind: Vec<NetworkRef> = core.host_report(name, clock::micros()).map_or_else(Vec::new, |r| {
            r.networks.into_iter().filter(|n| !n.in_sync || !r.connected).map(|n| n.network).collect()
        });
        for (network, record, generation) in records(&core.rows(name)) {
            let row = rows
                .entry((network.clone(), record.ca))
                .or_insert_with(|| table_row(network.clone(), record, generation, String::new()));
            if behind.contains(&network) {
                row.in_sync = false;
                row.detail = format!("not proven on {name}");
            }
        }
    }
    Table { host: None, revision: core.desired().revision, rows: rows.into_values().collect() }
}

async fn host_table(app: &App, host: HostName) -> Result<Table, Fault> {
    let answer = ask(app, &host, What::Table).await?;
    let kernel = to_rows(answer.rows).map_err(|e| {
        let message = format!("the answer of host {host} is not understood: {e}");
        Fault::new(
            StatusCode::BAD_GATEWAY,
            "unavailable",
            message,
            "use the agent of the controller's version",
        )
    })?;
    let (wanted, revision) = {
        let core = app.engine.core();
        (core.rows(&host), core.desired().revision)
    };
    let names = networks(&wanted);
    let mut rows = Vec::new();
    for (key, (row, generation)) in &wanted.0 {
        let Row::Record(record) = row else { continue };
        let detail = match kernel.0.get(key) {
            None => "missing in the kernel".to_owned(),
            Some((Row::Record(have), have_generation)) => {
                difference(record, *generation, have, *have_generation)
            }
            Some(_) => "another kind of row in the kernel".to_owned(),
        };
        if let Some(network) = names.get(&record.net) {
            rows.push(table_row(network.clone(), record.clone(), *generation, detail));
        }
    }
    for (key, (row, generation)) in &kernel.0 {
        let (Row::Record(record), false) = (row, wanted.0.contains_key(key)) else { continue };
        let network = names.get(&record.net).cloned().or_else(|| network_name(app, record.net));
        if let Some(network) = network {
            rows.push(table_row(
                network,
                record.clone(),
                *generation,
                "in the kernel, but not desired".into(),
            ));
        }
    }
    Ok(Table { host: Some(host), revision, rows })
}

fn networks(rows: &Rows) -> BTreeMap<NetId, NetworkRef> {
    let named = |(key, (row, _)): (&RowKey, &(Row, u64))| match (key, row) {
        (RowKey::Network(id), Row::Network(n)) => Some((*id, n.name.clone())),
        _ => None,
    };
    rows.0.iter().filter_map(named).collect()
}

fn network_name(app: &App, id: NetId) -> Option<NetworkRef> {
    let core = app.engine.core();
    core.desired().networks.values().find(|n| n.value.id == id).map(|n| n.value.name.clone())
}

fn records(rows: &Rows) -> Vec<(NetworkRef, RecordRow, u64)> {
    let names = networks(rows);
    let record = |(row, generation): &(Row, u64)| match row {
        Row::Record(r) => Some((names.get(&r.net)?.clone(), r.clone(), *generation)),
        Row::Host(_) | Row::Peer(_) | Row::Network(_) | Row::Subnet(_) | Row::Route(_) | Row::Port(_) => None,
    };
    rows.0.values().filter_map(record).collect()
}

/// What of a record in the kernel is not as desired; empty: nothing.
fn difference(want: &RecordRow, want_generation: u64, have: &RecordRow, have_generation: u64) -> String {
    let mut parts = Vec::new();
    let mut compare = |name: &str, want: String, have: String| {
        if want != have {
            parts.push(format!("{name} is {have}, should be {want}"));
        }
    };
    let text = |a: Option<std::net::IpAddr>| match a {
        // How an agent says that its two tables of rewrite addresses contradict each other.
        Some(a) if a.is_unspecified() => "contradictory".to_owned(),
        Some(a) => a.to_string(),
        None => "none".to_owned(),
    };
    compare("MAC", want.mac.to_string(), have.mac.to_string());
    compare("VSID", want.vsid.to_string(), have.vsid.to_string());
    compare("PA", want.pa.to_string(), have.pa.to_string());
    compare("second PA", text(want.alt_pa), text(have.alt_pa));
    compare("rewrite PA", text(want.rewrite_pa), text(have.rewrite_pa));
    compare("second rewrite PA", text(want.other_rewrite_pa), text(have.other_rewrite_pa));
    compare("method", want.method.to_string(), have.method.to_string());
    compare("generation", want_generation.to_string(), have_generation.to_string());
    parts.join("; ")
}

fn table_row(network: NetworkRef, r: RecordRow, generation: u64, detail: String) -> TableRow {
    TableRow {
        network,
        ca: r.ca,
        mac: r.mac,
        vsid: r.vsid,
        pa: r.pa,
        alt_pa: r.alt_pa,
        method: r.method,
        rewrite_pa: r.rewrite_pa,
        kind: "Static".into(),
        port: Some(r.port),
        generation,
        in_sync: detail.is_empty(),
        detail,
    }
}

async fn ask(app: &App, host: &HostName, what: What) -> Result<agent::Answer, Fault> {
    let session = {
        let core = app.engine.core();
        if !core.desired().hosts.contains_key(host) {
            return Err(Fault::not_found(&Key::Host(host.clone())));
        }
        core.session_of(host)
    };
    let silent = |why: String| {
        let message = format!("host {host} cannot be asked: {why}");
        let hint = "check that its agent runs and reaches the controller";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, hint)
    };
    let session = session.ok_or_else(|| silent("its agent has no session".into()))?;
    app.engine.ask(session, what, ANSWER).await.map_err(silent)
}

/// Shows the counters of all hosts, or of one.
#[utoipa::path(get, path = "/v1/counters", tag = "site", params(OfHost),
    responses((status = 200, body = Counters), (status = 404, body = ApiError), (status = 503, body = ApiError)))]
pub(super) async fn counters(
    State(app): State<App>,
    Params(OfHost { host }): Params<OfHost>,
) -> Reply<Counters> {
    if let Some(host) = host {
        let answer = ask(&app, &host, What::Counters).await?;
        return Ok(Json(Counters { ports: port_counters(&host, answer), missing: BTreeMap::new() }));
    }
    let names: Vec<HostName> = app.engine.core().desired().hosts.keys().cloned().collect();
    let asked = names.into_iter().map(|name| {
        let app = &app;
        async move {
            let answer = ask(app, &name, What::Counters).await;
            (name, answer)
        }
    });
    let mut all = Counters::default();
    for (name, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(answer) => all.ports.extend(port_counters(&name, answer)),
            Err(fault) => drop(all.missing.insert(name, fault.error.message)),
        }
    }
    Ok(Json(all))
}

fn port_counters(host: &HostName, answer: agent::Answer) -> Vec<PortCounters> {
    let one = |c: agent::PortCounters| PortCounters {
        host: host.clone(),
        port: c.port,
        tx_frames: c.tx_frames,
        tx_bytes: c.tx_bytes,
        rx_frames: c.rx_frames,
        rx_bytes: c.rx_bytes,
        redirected: c.redirected,
        answered: c.answered,
        icmp_errors: c.icmp_errors,
        flooded: c.flooded,
        slow: c.slow,
        clamped: c.clamped,
        tap_unread: c.tap_unread,
        drops: c.drops,
        drained: c.drained,
        undrained: c.undrained,
    };
    answer.counters.into_iter().map(one).collect()
}

/// How events are read.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Follow {
    /// Whether the answer goes on with what happens from now on.
    #[serde(default)]
    follow: Option<String>,
}

/// Shows recent events, one JSON object a line; with `follow`, then those to come.
#[utoipa::path(get, path = "/v1/events", tag = "site", params(Follow),
    responses((status = 200, body = EventLine, content_type = "application/x-ndjson")))]
pub(super) async fn events(State(app): State<App>, Params(Follow { follow }): Params<Follow>) -> Response {
    let follow = follow.is_some_and(|f| f != "false" && f != "0");
    let (recent, to_come) = app.engine.events.follow();
    let line = |event: &EventLine| {
        let mut text = serde_json::to_string(event).unwrap_or_default();
        text.push('\n');
        Ok::<_, std::convert::Infallible>(text)
    };
    let recent: Vec<_> = recent.iter().map(line).collect();
    let recent = futures::stream::iter(recent);
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if !follow {
        return (kind, HttpBody::from_stream(recent)).into_response();
    }
    let live = futures::stream::unfold(to_come, move |mut to_come| async move {
        loop {
            match to_come.recv().await {
                Ok(event) => return Some((line(&event), to_come)),
                // A reader that is too slow misses events rather than holding up the controller.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    (kind, HttpBody::from_stream(recent.chain(live))).into_response()
}

/// Says that the controller is up. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "site", security(()), responses((status = 200, body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Shows metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "site", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&app.engine)).into_response()
}

/// Shows this document. Needs no token.
#[utoipa::path(get, path = "/openapi.json", tag = "site", security(()), responses((status = 200, body = Object)))]
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_that_an_agent_tells_is_shown() {
        let told = agent::PortCounters {
            port: "uplink:eth0".to_owned(),
            tx_frames: 1001,
            tx_bytes: 1002,
            rx_frames: 1003,
            rx_bytes: 1004,
            redirected: 1005,
            answered: 1006,
            icmp_errors: 1007,
            flooded: 1008,
            slow: 1009,
            clamped: 1010,
            tap_unread: 1012,
            drops: BTreeMap::from([("loop".to_owned(), 1011)]),
            drained: 1013,
            undrained: BTreeMap::from([("broadcast".to_owned(), 1014)]),
        };
        let answer = agent::Answer { counters: vec![told], ..agent::Answer::default() };
        let host = "h1".parse().unwrap();
        let shown = serde_json::to_string(&port_counters(&host, answer)).unwrap();
        for n in 1001..=1014 {
            assert!(shown.contains(&format!(":{n}")), "{n} is missing: {shown}");
        }
    }
}
