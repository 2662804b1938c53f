//! A controller in this process with its own state directory and free ports.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tenet_api::{
    client::Client,
    rest::{ChangeItem, ChangesRequest, Spec, TokenRequest},
};
use tenet_control_server::{
    Options, Ready, StoreKind,
    pretend::{Credentials, Held, PretendAgent},
};
use tokio::sync::oneshot;

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Controller {
    pub options: Options,
    pub ready: Ready,
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

pub fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tenet-server-{}-{n}", std::process::id()))
}

pub fn options(store: StoreKind) -> Options {
    let mut options = Options::new(folder());
    options.store = store;
    options.rest_addr = "127.0.0.1:0".parse().unwrap();
    options.grpc_addr = "127.0.0.1:0".parse().unwrap();
    options
}

impl Controller {
    pub async fn start(options: Options) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (to, ready) = oneshot::channel();
        let run = tenet_control_server::run(
            options.clone(),
            async {
                let _ = stopped.await;
            },
            move |ready| to.send(ready).unwrap(),
        );
        let task = tokio::spawn(async { run.await.unwrap() });
        let ready = tokio::time::timeout(DEADLINE, ready).await.unwrap().unwrap();
        let client = Client::from_admin_file(&ready.admin_file).unwrap();
        Self { options, ready, client, stop: Some(stop), task: Some(task) }
    }

    pub async fn memory() -> Self {
        Self::start(options(StoreKind::Memory)).await
    }

    /// Ends it and gives what another start needs.
    pub async fn stop(mut self) -> Options {
        drop(self.stop.take());
        tokio::time::timeout(DEADLINE, self.task.take().unwrap()).await.unwrap().unwrap();
        let mut options = self.options.clone();
        options.rest_addr = self.ready.rest;
        options.grpc_addr = self.ready.grpc;
        // Kept for the next start.
        self.options.state_dir = PathBuf::new();
        options
    }

    pub async fn join(&self, name: &str, pa: &str) -> Credentials {
        let request =
            TokenRequest { name: name.parse().unwrap(), pa: Some(pa.parse().unwrap()), ttl_s: None };
        let token = self.client.host_token(&request).await.unwrap().token;
        Credentials::join(self.client.url(), &token).await.unwrap()
    }

    pub async fn agent(&self, credentials: &Credentials) -> PretendAgent {
        PretendAgent::start(credentials, self.ready.grpc).await.unwrap()
    }

    /// Puts objects given as JSON.
    pub async fn put(&self, objects: serde_json::Value) {
        let specs: Vec<Spec> = serde_json::from_value(objects).unwrap();
        let changes = specs.into_iter().map(|object| ChangeItem::Put { object }).collect();
        let reply = self.client.changes(&ChangesRequest { changes, ..Default::default() }).await.unwrap();
        assert!(reply.applied.unwrap().complete);
    }

    /// A tenant with a network, a subnet and hosts h1 and h2.
    pub async fn small_site(&self) {
        self.put(serde_json::json!([
            {"kind": "host", "name": "h1", "pa": "192.168.1.10"},
            {"kind": "host", "name": "h2", "pa": "192.168.2.20"},
            {"kind": "tenant", "name": "contoso"},
            {"kind": "network", "name": "contoso/blue"},
            {"kind": "subnet", "name": "contoso/blue/web", "prefix": "10.1.1.0/24"},
            {"kind": "vm", "name": "contoso/sql"},
            {"kind": "port", "name": "contoso/sql/eth0", "subnet": "contoso/blue/web"},
            {"kind": "vm", "name": "contoso/web"},
            {"kind": "port", "name": "contoso/web/eth0", "subnet": "contoso/blue/web"},
        ]))
        .await;
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        if !self.options.state_dir.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.options.state_dir);
        }
    }
}

/// Waits until the agent holds something.
pub async fn held(agent: &PretendAgent, look: impl Fn(&Held) -> bool) -> Held {
    let mut watch = agent.watch();
    let found = tokio::time::timeout(DEADLINE, watch.wait_for(|h| look(h))).await;
    found.unwrap_or_else(|_| panic!("it never came: {:?}", agent.held())).unwrap().clone()
}
