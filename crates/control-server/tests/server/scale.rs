//! A hundred hosts and five thousand ports on one controller, in one process.

use crate::support::{Controller, held};
use std::time::Instant;
use tenet_api::rest::{ChangeItem, ChangesRequest, RouteSpec, Spec};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run by name"]
async fn a_hundred_hosts_and_five_thousand_ports() {
    let c = Controller::memory().await;
    let mut agents = Vec::new();
    for n in 0..100 {
        let credentials = c.join(&format!("h{n}"), &format!("192.168.1.{}", n + 1)).await;
        agents.push(c.agent(&credentials).await);
    }
    let mut objects = Vec::new();
    for n in 0..50 {
        objects.push(serde_json::json!({"kind": "tenant", "name": format!("t{n}")}));
        objects.push(serde_json::json!({"kind": "network", "name": format!("t{n}/n")}));
        let subnet = format!("t{n}/n/s");
        objects.push(serde_json::json!({"kind": "subnet", "name": subnet, "prefix": "10.0.0.0/24"}));
        for p in 0..100 {
            objects.push(serde_json::json!({"kind": "vm", "name": format!("t{n}/v{p}")}));
            objects.push(serde_json::json!({
                "kind": "port", "name": format!("t{n}/v{p}/eth0"), "subnet": subnet,
                "host": format!("h{}", (n * 2 + p % 20) % 100), "device": format!("d{n}-{p}"),
            }));
        }
    }
    let specs: Vec<Spec> = serde_json::from_value(objects.into()).unwrap();
    let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
    let begun = Instant::now();
    let reply = c.client.changes(&ChangesRequest { changes, ..Default::default() }).await.unwrap();
    println!("programmed in {:?}: {:?}", begun.elapsed(), reply.applied);
    assert!(reply.applied.unwrap().complete);
    let mut times = Vec::new();
    for n in 0..50 {
        let route = RouteSpec {
            network: format!("t{n}/n").parse().unwrap(),
            prefix: "172.16.0.0/16".parse().unwrap(),
            next_hop: "10.0.0.9".parse().unwrap(),
            metric: 0,
        };
        let begun = Instant::now();
        let reply = c.client.create_route(&route).await.unwrap();
        assert!(reply.applied.unwrap().complete);
        times.push(begun.elapsed());
    }
    times.sort();
    println!("one change: median {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    let begun = Instant::now();
    let status = c.client.status().await.unwrap();
    println!("status in {:?}, in sync: {}", begun.elapsed(), status.in_sync);
    for agent in &agents {
        held(agent, |h| h.fulls == 1).await;
    }
}
