//! A hundred agents without kernels on one real controller: programming a whole site, then one change at a time.

use super::{latency::resident_kb, report::Samples, topology::wait};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tenet_api::{
    client::Client,
    rest::{
        ChangeItem, ChangesRequest, HostSpec, NetworkSpec, PortSpec, RouteSpec, Spec, SubnetSpec, TenantSpec,
        VmSpec,
    },
};
use tenet_host_agent::{KernelPart, Options};

const HOSTS: usize = 100;
const NETWORKS: usize = 50;
const PORTS_PER_NETWORK: usize = 100;
/// Hosts that each network is spread over.
const SPREAD: usize = 20;
const CHANGES: usize = 100;

/// Runs it with the binary `tenet` as controller; prints and writes `scale.json`.
pub fn run(tenet: &Path, out: &Path) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(measure(tenet, out))
}

/// A controller process on loopback with its state in a folder of its own; both removed on drop.
struct Controller {
    child: Child,
    folder: PathBuf,
    url: String,
}

impl Controller {
    fn start(tenet: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("tenet-scale-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let (rest, grpc) = (free_port()?, free_port()?);
        let log = std::fs::File::create(folder.join("log"))?;
        let child = Command::new(tenet)
            .args(["controller", "--state-dir"])
            .arg(&folder)
            .args(["--rest", &format!("127.0.0.1:{rest}"), "--grpc", &format!("127.0.0.1:{grpc}")])
            .args(["--address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", tenet.display()))?;
        let controller = Self { child, folder, url: format!("https://127.0.0.1:{rest}") };
        wait(Duration::from_secs(20), "the controller to write admin.json", || {
            Ok(controller.admin().exists())
        })?;
        Ok(controller)
    }

    fn admin(&self) -> PathBuf {
        self.folder.join("admin.json")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn measure(tenet: &Path, out: &Path) -> Result<()> {
    let controller = Controller::start(tenet)?;
    let client = Client::from_admin_file(&controller.admin())?;
    let hosts: Vec<ChangeItem> = (0..HOSTS)
        .map(|h| {
            let pa = format!("192.168.{}.{}", h / 200, h % 200 + 1).parse()?;
            Ok(ChangeItem::Put {
                object: Spec::Host(HostSpec { name: format!("h{h}").parse()?, pa, rewrite_pool: None }),
            })
        })
        .collect::<Result<_>>()?;
    client.changes(&request(hosts)).await?;
    let (stop, _) = tokio::sync::watch::channel(false);
    let mut agents = Vec::new();
    for h in 0..HOSTS {
        agents.push(tokio::spawn(agent(&controller, &client, h, stop.subscribe()).await?));
    }
    connected(&client).await?;
    println!(
        "{HOSTS} agents connected; controller {} MB resident",
        resident_kb(controller.child.id())? / 1024
    );

    let begin = Instant::now();
    let reply = client.changes(&request(site()?)).await?;
    let full = begin.elapsed();
    ensure!(reply.applied.as_ref().is_some_and(|a| a.complete), "the site was not applied everywhere");
    let ports = NETWORKS * PORTS_PER_NETWORK;
    println!(
        "{ports} ports in {NETWORKS} networks on {HOSTS} hosts: programmed everywhere in {:.2} s   (promised: under 5 s)",
        full.as_secs_f64()
    );

    let mut times = Samples::default();
    for i in 0..CHANGES {
        let route = RouteSpec {
            network: format!("t{}/n", i % NETWORKS).parse()?,
            prefix: format!("172.16.{i}.0/24").parse()?,
            next_hop: "10.0.0.2".parse()?,
            metric: 0,
        };
        let begin = Instant::now();
        let reply = client.create_route(&route).await?;
        times.0.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(reply.applied.as_ref().is_some_and(|a| a.complete), "change {i} was not applied everywhere");
    }
    let rss = resident_kb(controller.child.id())?;
    println!(
        "one change until the {SPREAD} hosts concerned applied it: median {:.1} ms, max {:.1}   (promised: median under 50 ms)",
        times.median(),
        times.range().1
    );
    println!("controller {} MB resident   (promised: under 200 MB)", rss / 1024);
    stop.send(true).ok();
    for a in agents {
        a.await.ok();
    }
    std::fs::write(
        out.join("scale.json"),
        serde_json::to_string_pretty(&json!({
            "hosts": HOSTS, "networks": NETWORKS, "ports": ports, "hosts_per_network": SPREAD,
            "full_programming_s": full.as_secs_f64(), "change_ms": times.0, "change_median_ms": times.median(),
            "controller_rss_kb": rss,
        }))?,
    )?;
    Ok(())
}

fn request(items: Vec<ChangeItem>) -> ChangesRequest {
    ChangesRequest { changes: items, ..Default::default() }
}

async fn connected(client: &Client) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let n = client.hosts().await?.iter().filter(|h| h.connected).count();
        if n == HOSTS {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("only {n} of {HOSTS} agents connected within 30 s");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An agent that joins with a token as a real one would, and keeps its tables in memory.
async fn agent(
    controller: &Controller,
    client: &Client,
    h: usize,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<impl Future<Output = ()> + use<>> {
    let token = client
        .host_token(&tenet_api::rest::TokenRequest {
            name: format!("h{h}").parse()?,
            pa: None,
            ttl_s: Some(600),
        })
        .await?;
    let options = Options {
        state_dir: controller.folder.join(format!("agent{h}")),
        controllers: vec![controller.url.clone()],
        token: Some(token.token),
        uplinks: vec!["uplink".to_owned()],
        kernel: KernelPart::None { uplink_mtu: 1500 },
        metrics: None,
        socket: None,
        keep_offloads: false,
        compare_every: Duration::from_secs(10),
        qmp_dir: None,
        libvirt: tenet_host_agent::Libvirt::Off,
        ready: None,
    };
    Ok(async move {
        let shutdown = async move {
            stop.wait_for(|s| *s).await.ok();
        };
        if let Err(e) = tenet_host_agent::run(options, shutdown).await {
            eprintln!("agent h{h}: {e:#}");
        }
    })
}

/// All networks with their ports, each network on [`SPREAD`] hosts.
fn site() -> Result<Vec<ChangeItem>> {
    let mut specs = Vec::new();
    for n in 0..NETWORKS {
        let tenant = format!("t{n}");
        specs.push(Spec::Tenant(TenantSpec { name: tenant.parse()? }));
        specs.push(Spec::Network(NetworkSpec {
            name: format!("{tenant}/n").parse()?,
            rdid: None,
            method: None,
        }));
        specs.push(Spec::Subnet(SubnetSpec {
            name: format!("{tenant}/n/s").parse()?,
            vsid: None,
            prefixes: vec!["10.0.0.0/24".parse()?],
        }));
        for p in 0..PORTS_PER_NETWORK {
            let host = (n * 2 + p % SPREAD * (HOSTS / SPREAD)) % HOSTS;
            specs.push(Spec::Vm(VmSpec { name: format!("{tenant}/v{p}").parse()? }));
            specs.push(Spec::Port(PortSpec {
                name: format!("{tenant}/v{p}/eth0").parse()?,
                subnet: format!("{tenant}/n/s").parse()?,
                mac: None,
                addresses: vec![format!("10.0.0.{}", p + 2).parse()?],
                host: Some(format!("h{host}").parse()?),
                queues: None,
                device: Some(format!("p{n}x{p}")),
                security: true,
            }));
        }
    }
    Ok(specs.into_iter().map(|object| ChangeItem::Put { object }).collect())
}
