//! Methods, prefixes of both families, rewrite pools, settings and measured paths over REST.

use crate::support::{Controller, held};
use crate::{attach, kinds, refused};
use std::time::Duration;
use tenet_api::{
    agent::{Measured, OffloadTest, PathReport, UplinkReport, agent_message::Message},
    rest::{CreateVm, CreateVmPort, HostPatch, NetworkPatch, SettingsSpec, Spec, Wait},
};
use tenet_compile::Row;
use tenet_control_server::pretend::{Held, PretendAgent};
use tenet_model::Method;

/// Two hosts with agents, a VM on each.
async fn running(c: &Controller) -> (PretendAgent, PretendAgent) {
    c.small_site().await;
    let (k1, k2) = (c.join("h1", "192.168.1.10").await, c.join("h2", "192.168.2.20").await);
    let (h1, h2) = (c.agent(&k1).await, c.agent(&k2).await);
    c.client.attach(&"contoso/sql".parse().unwrap(), &attach("h1", "sql0")).await.unwrap();
    c.client.attach(&"contoso/web".parse().unwrap(), &attach("h2", "web0")).await.unwrap();
    (h1, h2)
}

/// Whether all of a host's records are sent by a method.
fn sends(held: &Held, method: Method) -> bool {
    let mut records = held.rows.0.values().filter_map(|(row, _)| match row {
        Row::Record(r) => Some(r.method),
        _ => None,
    });
    records.all(|m| m == method)
}

fn to(method: Method) -> NetworkPatch {
    NetworkPatch { method: Some(method) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_changes_its_method_while_it_runs() {
    let c = Controller::memory().await;
    let (h1, h2) = running(&c).await;
    let blue = "contoso/blue".parse().unwrap();
    for (n, pool) in [("h1", "192.168.1.128/25"), ("h2", "192.168.2.128/25")] {
        let patch = HostPatch { rewrite_pool: Some(vec![pool.parse().unwrap()]) };
        c.client.set_host(&n.parse().unwrap(), &patch).await.unwrap();
    }
    for method in [Method::Vxlan, Method::Geneve, Method::Stt, Method::Rewrite, Method::Nvgre] {
        let reply = c.client.set_network(&blue, &to(method)).await.unwrap();
        let applied = reply.applied.unwrap();
        assert!(applied.complete, "{method}: {applied:?}");
        assert!(matches!(reply.changed[0].now, Some(Spec::Network(ref n)) if n.method == Some(method)));
        let view = c.client.network(&blue).await.unwrap();
        assert_eq!((view.method, view.switching), (method, None));
        for (name, host) in [("h1", &h1), ("h2", &h2)] {
            assert!(sends(&host.held(), method), "{name}, {method}: applied means that the senders switched");
        }
        let hosts = c.client.hosts().await.unwrap();
        let used: Vec<u64> = hosts.iter().map(|h| h.pool.used).collect();
        if method == Method::Rewrite {
            assert_eq!(used, [1, 1]);
            let vm = c.client.vm(&"contoso/sql".parse().unwrap()).await.unwrap();
            let pa = vm.ports[0].rewrite[&vm.ports[0].addresses[0]];
            assert!(hosts[0].pool.ranges[0].contains(&pa), "{pa}");
            assert_eq!(hosts[0].pool.size, 126, "without the first and the last");
            let table = c.client.table(Some(&"h2".parse().unwrap())).await.unwrap();
            assert!(table.rows.iter().all(|r| r.rewrite_pa.is_some() && r.in_sync), "{table:?}");
        }
    }
    // The addresses go once nobody sends to them any more.
    let free = async {
        while c.client.hosts().await.unwrap().iter().any(|h| h.pool.used > 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::DEADLINE, free).await.unwrap();
    assert!(kinds(&c).await.iter().any(|k| k == "method"));
    // The same again changes nothing; a network that is not there is told.
    let same = c.client.set_network(&blue, &to(Method::Nvgre)).await.unwrap();
    assert_eq!(same.changed[0].effect, tenet_api::rest::Effect::Unchanged);
    let nowhere = c.client.set_network(&"contoso/none".parse().unwrap(), &to(Method::Stt)).await.unwrap_err();
    assert_eq!(refused(&nowhere), (404, "not-found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_method_is_seen_on_its_way_and_can_be_given_up() {
    let c = Controller::memory().await;
    let (h1, h2) = running(&c).await;
    h2.mute(true);
    let blue = "contoso/blue".parse().unwrap();
    let quick = c.client.clone().with_wait(Wait::Applied, Some(Duration::from_millis(300)));
    let applied = quick.set_network(&blue, &to(Method::Stt)).await.unwrap().applied.unwrap();
    assert!(!applied.complete, "{applied:?}");
    let view = c.client.network(&blue).await.unwrap();
    assert_eq!((view.method, view.switching), (Method::Nvgre, Some(Method::Stt)));
    assert_eq!(view.waiting_for, ["h2".parse().unwrap()]);
    assert_eq!(c.client.status().await.unwrap().switching.len(), 1);
    let export = c.client.site().await.unwrap();
    assert_eq!(export.networks[0].method, Some(Method::Stt), "what is asked for");
    // Back to the present one.
    quick.set_network(&blue, &to(Method::Nvgre)).await.unwrap();
    let view = c.client.network(&blue).await.unwrap();
    assert_eq!((view.method, view.switching), (Method::Nvgre, None));
    // And for good: the silent host holds it up for two seconds only.
    let reply = c.client.clone().with_wait(Wait::Stored, None).set_network(&blue, &to(Method::Stt)).await;
    reply.unwrap();
    held(&h1, |h| sends(h, Method::Stt)).await;
    assert!(kinds(&c).await.iter().any(|k| k == "problem"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_too_small_refuses_before_anything_breaks() {
    let c = Controller::memory().await;
    let (h1, _h2) = running(&c).await;
    let blue = "contoso/blue".parse().unwrap();
    let error = c.client.set_network(&blue, &to(Method::Rewrite)).await.unwrap_err();
    assert_eq!(refused(&error).0, 422);
    assert!(error.to_string().contains("pool") && error.to_string().contains("h1"), "{error}");
    let pool = |range: &str| HostPatch { rewrite_pool: Some(vec![range.parse().unwrap()]) };
    // One address for each host; a second VM is one too many.
    for (host, range) in [("h1", "192.168.1.200/32"), ("h2", "192.168.2.200/32")] {
        c.client.set_host(&host.parse().unwrap(), &pool(range)).await.unwrap();
    }
    assert!(c.client.set_network(&blue, &to(Method::Rewrite)).await.unwrap().applied.unwrap().complete);
    let port = CreateVmPort {
        name: None,
        subnet: "contoso/blue/web".parse().unwrap(),
        mac: None,
        address: None,
        addresses: Vec::new(),
        security: true,
    };
    let extra = CreateVm { name: "contoso/extra".parse().unwrap(), port: Some(port) };
    c.client.create_vm(&extra).await.unwrap();
    let before = h1.held().rows;
    let error = c.client.attach(&extra.name, &attach("h1", "extra0")).await.unwrap_err();
    assert_eq!(refused(&error).0, 422, "{error}");
    assert!(error.to_string().contains("192.168.1.200/32"), "{error}");
    assert_eq!(h1.held().rows, before);
    let host = c.client.host(&"h1".parse().unwrap()).await.unwrap();
    assert_eq!((host.pool.used, host.pool.size), (1, 1));
    // Nor can a pool go that is in use.
    let error = c.client.set_host(&"h1".parse().unwrap(), &HostPatch { rewrite_pool: Some(vec![]) }).await;
    assert_eq!(refused(&error.unwrap_err()).0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn subnets_have_one_prefix_or_two() {
    let c = Controller::memory().await;
    c.small_site().await;
    c.put(serde_json::json!([
        {"kind": "host", "name": "h3", "pa": "192.168.3.30", "rewrite_pool": ["192.168.3.128/25", "2001:db8:3::/64"]},
        {"kind": "subnet", "name": "contoso/blue/dual",
            "prefixes": ["10.2.0.0/24", {"prefix": "fd00:2::/64", "gateway": "fd00:2::ffff"}]},
        {"kind": "subnet", "name": "contoso/blue/six", "prefix": "fd00:6::/64"},
        {"kind": "vm", "name": "contoso/both"},
        {"kind": "port", "name": "contoso/both/eth0", "subnet": "contoso/blue/dual"},
        {"kind": "vm", "name": "contoso/six"},
        {"kind": "port", "name": "contoso/six/eth0", "subnet": "contoso/blue/six"},
        {"kind": "route", "network": "contoso/blue", "prefix": "::/0", "next_hop": "fd00:6::2"},
    ]))
    .await;
    let dual = c.client.subnet(&"contoso/blue/dual".parse().unwrap()).await.unwrap();
    let text: Vec<String> = dual.prefixes.iter().map(|p| format!("{} {}", p.prefix, p.gateway)).collect();
    assert_eq!(text, ["10.2.0.0/24 10.2.0.1", "fd00:2::/64 fd00:2::ffff"]);
    let addresses = |vm: &str| {
        let name = vm.parse().unwrap();
        let client = c.client.clone();
        async move {
            let ports = client.vm(&name).await.unwrap().ports;
            ports[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        }
    };
    assert_eq!(addresses("contoso/both").await, ["10.2.0.2", "fd00:2::2"]);
    assert_eq!(addresses("contoso/six").await, ["fd00:6::2"]);
    // What is exported comes to the same site.
    let site = c.client.site().await.unwrap();
    let items = tenet_api::rest::ChangesRequest { changes: site.puts(), ..Default::default() };
    let reply = c.client.changes(&items).await.unwrap();
    assert!(reply.changed.iter().all(|c| c.effect == tenet_api::rest::Effect::Unchanged), "{reply:?}");
    assert_eq!(site.hosts[2].rewrite_pool.as_ref().unwrap().len(), 2);
    // All hosts have provider addresses of one family.
    let change = serde_json::from_value(serde_json::json!({"changes": [
        {"op": "put", "object": {"kind": "host", "name": "h6", "pa": "2001:db8::6"}}]}));
    let error = c.client.changes(&change.unwrap()).await.unwrap_err();
    assert_eq!(refused(&error), (422, "invalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_there_from_the_start_and_reach_the_hosts() {
    let c = Controller::memory().await;
    let (h1, _h2) = running(&c).await;
    let now = c.client.settings().await.unwrap();
    assert_eq!((now.vxlan_port, now.geneve_port, now.revision), (4789, 6081, 0));
    assert!(c.client.site().await.unwrap().settings.is_none());
    let spec = SettingsSpec { vxlan_port: Some(8472), ..SettingsSpec::default() };
    assert!(c.client.set_settings(&spec).await.unwrap().applied.unwrap().complete);
    let now = c.client.settings().await.unwrap();
    assert_eq!((now.vxlan_port, now.geneve_port), (8472, 6081));
    assert!(now.revision > 0 && c.client.site().await.unwrap().settings.is_some());
    let told = |h: &Held| h.rows.0.values().any(|(r, _)| matches!(r, Row::Host(h) if h.vxlan_port == 8472));
    assert!(told(&h1.held()), "applied means that the hosts have it");
    let same = SettingsSpec { vxlan_port: Some(6081), ..SettingsSpec::default() };
    assert_eq!(refused(&c.client.set_settings(&same).await.unwrap_err()).0, 422, "one port for both");
}

#[tokio::test(flavor = "multi_thread")]
async fn measured_paths_name_the_bad_link() {
    let c = Controller::memory().await;
    let (h1, h2) = running(&c).await;
    let none = c.client.paths(None).await.unwrap();
    assert!(none.pairs.is_empty() && none.findings.is_empty());
    let path = |peer: &str, mtu| PathReport {
        peer: peer.into(),
        pa: "192.168.9.9".into(),
        mtu,
        state: "measured".into(),
        rtt_us: 80,
        method: "vxlan".into(),
        ..PathReport::default()
    };
    let uplink = || UplinkReport {
        device: "eth0".into(),
        mtu: 1600,
        receive: "hub".into(),
        receive_reason: "bundles stay whole".into(),
        tests: vec![OffloadTest {
            method: "stt".into(),
            outcome: "degraded".into(),
            ..OffloadTest::default()
        }],
        ..UplinkReport::default()
    };
    h1.send(Message::Measured(Measured { paths: vec![path("h2", 1600)], uplinks: vec![uplink()] })).await;
    h2.send(Message::Measured(Measured { paths: vec![path("h1", 1400)], uplinks: vec![uplink()] })).await;
    let both = async {
        loop {
            let paths = c.client.paths(None).await.unwrap();
            if paths.pairs.first().is_some_and(|p| p.there.is_some() && p.back.is_some()) {
                return paths;
            }
            tokio::task::yield_now().await;
        }
    };
    let paths = tokio::time::timeout(crate::DEADLINE, both).await.unwrap();
    let pair = &paths.pairs[0];
    let mtus = (pair.there.as_ref().unwrap().mtu, pair.back.as_ref().unwrap().mtu);
    assert_eq!((mtus, pair.promised, pair.ok), ((Some(1600), Some(1400)), Some(1600), false));
    assert!(!paths.ok && paths.findings.len() == 1, "{paths:?}");
    assert!(paths.findings[0].text.contains("h2→h1 carries 1400"), "{paths:?}");
    assert_eq!(c.client.status().await.unwrap().paths, paths.findings);
    let host = c.client.host(&"h1".parse().unwrap()).await.unwrap();
    assert_eq!(
        (host.measured[0].receive.as_str(), host.measured[0].tests[0].outcome.as_str()),
        ("hub", "degraded")
    );
    assert_eq!(c.client.paths(Some(&"h1".parse().unwrap())).await.unwrap().pairs.len(), 1);
    assert_eq!(refused(&c.client.paths(Some(&"h9".parse().unwrap())).await.unwrap_err()).0, 404);
}
