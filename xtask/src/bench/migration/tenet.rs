//! Tenet: the real controller and three real agents; one network per method, all on the same hosts.

use super::clock::{self, Micros};
use super::fabric::{Fabric, Nic, Settled, move_memory, nics, tap};
use super::qmp::Qmp;
use crate::bench::topology::wait;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tenet_api::client::Client;
use tenet_api::rest::ChangesRequest;
use tenet_hostnet::Netns;
use tenet_lab::{Lab, LabOptions, SiteFile};
use tokio::runtime::Runtime;

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
/// How long a step of the controller may take, ten migrations at once included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Controller, agents and clients; all methods' networks are on it.
pub struct Site {
    runtime: Runtime,
    client: Client,
    hosts: [Netns; 2],
    /// Where the agents look for their guests' monitors.
    monitors: [PathBuf; 2],
    /// Whether the source's agent has QEMU move the memory, or we do.
    driven: bool,
    pas: BTreeMap<String, IpAddr>,
    lab: Lab,
}

/// The network of one method.
pub struct Tenet {
    site: Arc<Site>,
    name: String,
    method: String,
    client: Netns,
    nics: Vec<Nic>,
    /// Migrations under way, by guest.
    moving: Mutex<BTreeMap<usize, String>>,
}

impl Site {
    /// Brings up controller, agents and clients.
    ///
    /// # Errors
    /// What is in the way.
    pub fn up(tenet: &Path, methods: &[String], guests: usize, driven: bool) -> Result<Arc<Self>> {
        let runtime = Runtime::new().context("start the runtime")?;
        let mut options = LabOptions::new(&format!("benchm{}", std::process::id()), tenet)?;
        options.site = SiteFile { name: "the bench's site".to_owned(), text: text(methods) };
        options.responder = false;
        let (lab, client) = runtime.block_on(async {
            let lab = Lab::up(options).await?;
            let client = lab.client()?;
            anyhow::Ok((lab, client))
        })?;
        let hosts = [lab.host(HOSTS[0])?.netns().clone(), lab.host(HOSTS[1])?.netns().clone()];
        let monitors = [lab.host(HOSTS[0])?, lab.host(HOSTS[1])?].map(|h| h.record().state_dir.join("qmp"));
        for dir in &monitors {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let pas = lab.record().hosts.iter().map(|h| (h.name.to_string(), h.pa)).collect();
        let site = Arc::new(Self { runtime, client, hosts, monitors, driven, pas, lab });
        for method in methods {
            site.add_guests(method, guests)?;
        }
        site.runtime.block_on(site.lab.in_sync(PATIENCE))?;
        Ok(site)
    }

    fn add_guests(&self, method: &str, count: usize) -> Result<()> {
        let mtu = self.mtu(method)?;
        let mut changes = Vec::new();
        for (n, nic) in nics(method, count, mtu).iter().enumerate() {
            for host in &self.hosts {
                tap(host, nic)?;
            }
            let mac: Vec<String> = nic.mac.iter().map(|b| format!("{b:02x}")).collect();
            changes.push(json!({ "kind": "vm", "name": format!("bench/{method}-{n}") }));
            changes.push(json!({
                "kind": "port", "name": format!("bench/{method}-{n}/eth0"), "subnet": format!("bench/{method}/all"),
                "mac": mac.join(":"), "addresses": [nic.address], "host": HOSTS[0], "device": nic.device,
            }));
        }
        let changes: Vec<_> =
            changes.into_iter().map(|object| json!({ "op": "put", "object": object })).collect();
        let request: ChangesRequest = serde_json::from_value(json!({ "changes": changes }))?;
        self.runtime.block_on(self.client.changes(&request)).context("take the guests")?;
        Ok(())
    }

    /// What the method leaves of the wire's MTU, as the lab gave it to the client.
    fn mtu(&self, method: &str) -> Result<u32> {
        let vm = self.lab.vm(&format!("bench/client-{method}"))?;
        Ok(vm.record().ports.first().context("the client has no port")?.mtu)
    }

    /// Records of one address in any host's kernel that point elsewhere than to a host.
    fn stale(&self, network: &str, address: IpAddr, to: &str) -> Result<u64> {
        let right = self.pas.get(to).copied();
        let mut stale = 0;
        for host in self.pas.keys() {
            let table = self.runtime.block_on(self.client.table(Some(&host.parse()?)))?;
            let rows = table.rows.iter().filter(|r| r.ca == address && r.network.to_string() == network);
            stale += rows.filter(|r| Some(r.pa) != right).count() as u64;
        }
        Ok(stale)
    }
}

impl Tenet {
    /// The contestant of one method.
    ///
    /// # Errors
    /// If the site does not have it.
    pub fn new(site: &Arc<Site>, method: &str, guests: usize) -> Result<Self> {
        let client = site.lab.vm(&format!("bench/client-{method}"))?.netns().clone();
        let nics = nics(method, guests, site.mtu(method)?);
        let (site, method) = (site.clone(), method.to_owned());
        Ok(Self { site, name: format!("Tenet {method}"), method, client, nics, moving: Mutex::default() })
    }

    fn vm(&self, nic: usize) -> String {
        format!("bench/{}-{nic}", self.method)
    }

    fn ask(&self, vm: &str, to: usize, uri: &str) -> Result<String> {
        let (site, name, of) = (&self.site, HOSTS[to], vm.parse()?);
        if site.driven {
            let migrate = serde_json::from_value(json!({ "to": name, "through": "qmp", "uri": uri }))?;
            return Ok(site.runtime.block_on(site.client.migrate(&of, &migrate))?.id.to_string());
        }
        let migrate = serde_json::from_value(json!({ "to": name }))?;
        let mut view = site.runtime.block_on(site.client.migrate(&of, &migrate))?;
        let begin = Instant::now();
        while view.phase == "preparing" {
            ensure!(begin.elapsed() < PATIENCE, "{vm}: not prepared, waiting for {:?}", view.waiting_for);
            std::thread::sleep(Duration::from_millis(2));
            let now = site.runtime.block_on(site.client.vm(&of))?;
            view = now.migration.with_context(|| format!("{vm}: rolled back while preparing"))?;
        }
        Ok(view.id.to_string())
    }
}

impl Fabric for Tenet {
    fn name(&self) -> &str {
        &self.name
    }

    fn host(&self, at: usize) -> &Netns {
        let [first, second] = &self.site.hosts;
        if at == 0 { first } else { second }
    }

    fn client(&self) -> &Netns {
        &self.client
    }

    fn nics(&self) -> &[Nic] {
        &self.nics
    }

    fn monitor(&self, nic: usize, at: usize) -> Option<PathBuf> {
        let vm = self.vm(nic).replace('/', ".");
        self.site.monitors.get(at).map(|dir| dir.join(format!("{vm}.sock")))
    }

    fn migrate(&self, nic: usize, to: usize, uri: &str, source: &mut Qmp) -> Result<()> {
        let id = self.ask(&self.vm(nic), to, uri)?;
        self.moving.lock().unwrap_or_else(PoisonError::into_inner).insert(nic, id);
        if self.site.driven { Ok(()) } else { move_memory(source, uri) }
    }

    fn settle(&self, nic: usize, to: usize) -> Result<Settled> {
        let id = self.moving.lock().unwrap_or_else(PoisonError::into_inner).remove(&nic);
        let id = id.context("no migration was begun")?;
        let site = &self.site;
        let mut receipt = None;
        wait(PATIENCE, "the receipt", || {
            let receipts = site.runtime.block_on(site.client.receipts())?;
            receipt = receipts.into_iter().rev().find(|r| r.id.to_string() == id);
            Ok(receipt.is_some())
        })?;
        let receipt = receipt.context("no receipt")?;
        let why = receipt.reason.as_deref().unwrap_or("no reason given");
        ensure!(receipt.moved, "rolled back: {why}");
        let address = self.nics.get(nic).context("no such guest")?.address.into();
        let stale = site.stale(&format!("bench/{}", self.method), address, HOSTS[to])?;
        Ok(Settled {
            redirected: receipt.exact.then_some(receipt.redirected),
            last_ack: Some(Micros::try_from(receipt.last_ack_us)?),
            stale: Some(stale),
        })
    }

    fn reset(&self, nic: usize) -> Result<()> {
        let (site, vm) = (&self.site, self.vm(nic).parse()?);
        // There may be none under way.
        _ = site.runtime.block_on(site.client.migrate_cancel(&vm));
        let device = &self.nics.get(nic).context("no such guest")?.device;
        let back = serde_json::from_value(json!({ "host": HOSTS[0], "device": device }))?;
        let begin = clock::now();
        let attached = site.runtime.block_on(async {
            let on = site.client.vm(&vm).await?.ports.first().and_then(|p| p.host.clone());
            if on.is_some_and(|h| h.as_str() == HOSTS[0]) {
                return Ok(());
            }
            site.client.detach(&vm, &serde_json::from_value(json!({}))?).await?;
            site.client.attach(&vm, &back).await?;
            anyhow::Ok(())
        });
        attached.with_context(|| format!("put {vm} back ({} ms)", clock::millis(clock::now() - begin)))
    }
}

/// The site: a network per method, with its client on the third host.
fn text(methods: &[String]) -> String {
    let mut text = "hosts:\n".to_owned();
    for (i, host) in HOSTS.iter().enumerate() {
        let rewrite = methods.iter().any(|m| m == "rewrite");
        let pool =
            if rewrite { format!(", rewrite_pool: [192.168.9.{}/26]", 64 * (i + 1)) } else { String::new() };
        _ = writeln!(text, "  {host}: {{ pa: 192.168.9.{}{pool} }}", i + 1);
    }
    text.push_str("tenants:\n  bench:\n    networks:\n");
    for (at, method) in methods.iter().enumerate() {
        let subnet = format!("prefix: 10.1.0.0/24, vsid: {}, gateway: 10.1.0.254", 5001 + at);
        _ = writeln!(
            text,
            "      {method}:\n        method: {method}\n        subnets:\n          all: {{ {subnet} }}"
        );
    }
    text.push_str("    vms:\n");
    for method in methods {
        let port = format!("subnet: {method}/all, address: 10.1.0.1, host: h3");
        _ = writeln!(text, "      client-{method}: {{ ports: {{ eth0: {{ {port} }} }} }}");
    }
    text
}
