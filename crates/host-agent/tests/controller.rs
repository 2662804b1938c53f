//! The agent and the real controller in one process, over real REST and gRPC; tables in memory.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

mod common;

use common::{Dir, PATIENCE, Running, Shared};
use std::net::SocketAddr;
use std::time::Duration;
use tenet_api::client::Client;
use tenet_api::rest::{
    ChangeItem, ChangesRequest, HostSpec, HostStatus, NetworkSpec, PortSpec, RouteSpec, Spec, SubnetSpec,
    TenantSpec, TokenRequest, VmSpec,
};
use tenet_control_server::{Options as ControllerOptions, Ready, StoreKind};
use tenet_host_agent::{Kernel as _, KernelPart, Options};
use tenet_tables::image::Operation;
use tokio::sync::oneshot;

/// A controller of the test's own.
struct Controller {
    ready: Ready,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Controller {
    async fn start(dir: &Dir, rest: SocketAddr, grpc: SocketAddr) -> Self {
        let options = ControllerOptions {
            rest_addr: rest,
            grpc_addr: grpc,
            store: StoreKind::Redb,
            ..ControllerOptions::new(dir.0.join("controller"))
        };
        let (tx, rx) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let ready = move |r: Ready| tx.send(r).expect("the test waits");
            tenet_control_server::run(options, async { drop(stopped.await) }, ready).await.unwrap();
        });
        let ready = tokio::time::timeout(PATIENCE, rx).await.unwrap().unwrap();
        Self { ready, stop: Some(stop), task }
    }

    /// Ends it; its store is closed then.
    async fn end(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends").unwrap();
    }

    fn client(&self) -> Client {
        Client::from_admin_file(&self.ready.admin_file).unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn put(object: Spec) -> ChangeItem {
    ChangeItem::Put { object }
}

/// A host h1 with contoso/sql on device tap1, a host h2 without agent.
async fn site(client: &Client) {
    let host = |name: &str, pa: &str| {
        put(Spec::Host(HostSpec { name: name.parse().unwrap(), pa: pa.parse().unwrap(), rewrite_pool: None }))
    };
    let changes = vec![
        host("h1", "192.168.1.10"),
        host("h2", "192.168.2.20"),
        put(Spec::Tenant(TenantSpec { name: "contoso".parse().unwrap() })),
        put(Spec::Network(NetworkSpec { name: "contoso/blue".parse().unwrap(), rdid: None, method: None })),
        put(Spec::Subnet(SubnetSpec {
            name: "contoso/blue/web".parse().unwrap(),
            vsid: None,
            prefixes: vec!["10.1.1.0/24".parse().unwrap()],
        })),
        put(Spec::Vm(VmSpec { name: "contoso/sql".parse().unwrap() })),
        put(Spec::Port(PortSpec {
            name: "contoso/sql/eth0".parse().unwrap(),
            subnet: "contoso/blue/web".parse().unwrap(),
            mac: None,
            addresses: vec!["10.1.1.11".parse().unwrap()],
            host: Some("h1".parse().unwrap()),
            queues: None,
            device: Some("tap1".into()),
            security: true,
        })),
    ];
    client.changes(&ChangesRequest { changes, ..Default::default() }).await.unwrap();
}

async fn token(client: &Client) -> String {
    let request = TokenRequest { name: "h1".parse().unwrap(), pa: None, ttl_s: None };
    client.host_token(&request).await.unwrap().token
}

fn agent(dir: &Dir, controller: &Controller, token: Option<String>, kernel: &Shared) -> Running {
    Running::start(Options {
        state_dir: dir.0.join("agent"),
        controllers: vec![format!("https://{}", controller.ready.rest)],
        token,
        uplinks: vec!["eth0".into()],
        kernel: KernelPart::Other(Box::new(kernel.clone())),
        metrics: None,
        socket: None,
        keep_offloads: false,
        compare_every: Duration::from_millis(100),
        qmp_dir: Some(dir.0.join("qmp")),
        libvirt: tenet_host_agent::Libvirt::Off,
        ready: None,
    })
}

async fn status(client: &Client, what: &str, good: impl Fn(&HostStatus) -> bool) -> HostStatus {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let status = client.host(&"h1".parse().unwrap()).await.unwrap();
        if good(&status) {
            return status;
        }
        assert!(std::time::Instant::now() < end, "{what}: {status:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn proven(s: &HostStatus) -> bool {
    s.connected && s.in_sync && s.proven_generation == Some(s.desired_generation)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_joins_applies_proves_repairs_and_survives_both_restarts() {
    let (dir, kernel) = (Dir::new(), Shared::new());
    let controller = Controller::start(&dir, local(), local()).await;
    let client = controller.client();
    site(&client).await;
    let running = agent(&dir, &controller, Some(token(&client).await), &kernel);
    let s = status(&client, "first proof", |s| {
        proven(s) && s.ports.iter().all(|p| p.state.as_deref() == Some("active"))
    })
    .await;
    assert_eq!((s.ports.len(), s.networks.len(), s.error), (1, 1, None));
    assert_eq!(s.qmp_dir.as_deref(), dir.0.join("qmp").to_str(), "for who starts a QEMU there");
    assert_eq!(s.networks[0].proven_digest.as_ref(), Some(&s.networks[0].desired_digest));

    // One change, applied when the request returns.
    let route = RouteSpec {
        network: "contoso/blue".parse().unwrap(),
        prefix: "172.16.0.0/16".parse().unwrap(),
        next_hop: "10.1.1.11".parse().unwrap(),
        metric: 1,
    };
    let reply = client.create_route(&route).await.unwrap();
    assert!(reply.applied.as_ref().is_some_and(|a| a.complete), "{reply:?}");
    assert_eq!(kernel.image().routes.len(), 2);

    // Drift.
    let good = kernel.image();
    let (key, _) = good.routes.first_key_value().map(|(k, v)| (*k, *v)).unwrap();
    kernel.memory().apply(&[Operation::Route(key, None)]);
    let s = status(&client, "repair", |s| !s.repaired.is_empty()).await;
    assert!(s.repaired[0].contains("was missing: written again"), "{:?}", s.repaired);
    assert_eq!(kernel.image(), good);

    // The agent restarts without the controller, then the controller comes back.
    running.stop().await;
    let (rest, grpc) = (controller.ready.rest, controller.ready.grpc);
    kernel.memory().apply(&[Operation::Route(key, None)]);
    let running = agent(&dir, &controller, None, &kernel);
    drop(client);
    controller.end().await;
    let end = std::time::Instant::now() + PATIENCE;
    while kernel.image() != good {
        assert!(std::time::Instant::now() < end, "not repaired without a controller");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let controller = Controller::start(&dir, rest, grpc).await;
    let client = controller.client();
    status(&client, "proof after both restarts", proven).await;
    assert_eq!(kernel.image(), good);
    running.stop().await;
}
