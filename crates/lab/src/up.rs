//! Brings a lab up.

use crate::lab::{Lab, LabOptions, chain};
use crate::plan::{PlanOptions, plan};
use crate::process::Process;
use crate::record::{PortRecord, PrefixRecord, Record};
use crate::{Error, Result, bpffs, network, prepare, real};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tenet_api::rest::{ChangesRequest, Status, TokenRequest};
use tenet_hostnet::{Links, Netns};
use tenet_model::{HostName, PortRef};
use tenet_site::Site;

/// How long controller and agents may take to start.
const START: Duration = Duration::from_secs(20);

pub async fn up(options: LabOptions) -> Result<Lab> {
    let mut site = tenet_site::parse(&options.site.name, &options.site.text)?;
    prepare::prepare(&mut site, &options);
    let plan_options = PlanOptions {
        name: options.name.clone(),
        id: format!("{:04x}", rand::random::<u16>()),
        dir: options.dir.clone(),
        bpffs: bpffs::BPFFS.into(),
        binary: options.binary.clone(),
        clsact: options.clsact,
        file: options.site.name.clone(),
        vm_mtu: options.vm_mtu,
        guests: options.guests.clone(),
    };
    let mut record = plan(&plan_options, &site)?;
    // Before anything is made, as it may have to be fetched.
    record.image = real::image(&record, &options.progress).await?;
    bpffs::mount()?;
    record.create()?;
    // From here on dropping the handle removes what was made.
    let mut lab = Lab::new(record, true, options.progress.clone());
    let guests = lab.record.vms.iter().filter(|v| v.real).count();
    let (hosts, others) = (lab.record.hosts.len(), lab.record.vms.len() - guests);
    say(
        &lab,
        &match (guests, others) {
            (0, _) => format!("{hosts} hosts, {others} VMs as namespaces"),
            (_, 0) => format!("{hosts} hosts, {guests} VMs as real guests"),
            _ => format!("{hosts} hosts, {others} VMs as namespaces, {guests} as real guests"),
        },
    );
    network::physical(&lab.record)?;
    vms(&lab.record)?;
    say(&lab, "controller");
    start_controller(&mut lab.record)?;
    lab.record.save()?;
    controller_answers(&lab).await?;
    say(&lab, "agents");
    join_all(&mut lab).await?;
    say(&lab, "site");
    devices(&mut site, &lab.record);
    let client = lab.client()?;
    let request = ChangesRequest { changes: site.puts(), ..ChangesRequest::default() };
    client.changes(&request).await.map_err(|e| refused("take the site", e))?;
    addresses(&mut lab, &client).await?;
    real::boot_all(&mut lab).await?;
    if options.responder {
        start_responder(&mut lab.record)?;
    }
    lab.record.save()?;
    say(&lab, "every host's kernel to hold it");
    in_sync(&lab, START).await?;
    real::all_up(&lab).await?;
    lab.record.complete = true;
    lab.record.save()?;
    Ok(lab)
}

fn say(lab: &Lab, text: &str) {
    (lab.progress)(text);
}

/// The VMs' namespaces and the legs of their attached ports.
fn vms(record: &Record) -> Result<()> {
    let hosts: BTreeMap<&HostName, Links> = record
        .hosts
        .iter()
        .map(|h| Ok((&h.name, Links::in_netns(&Netns::open(&h.netns)?)?)))
        .collect::<Result<_>>()?;
    for vm in &record.vms {
        if vm.real {
            // The others' taps are their agents' to make.
            for port in vm.ports.iter().filter(|p| !p.tap) {
                if let Some(host) = port.host.as_ref().and_then(|h| hosts.get(h)) {
                    real::tap(host, port)?;
                }
            }
            continue;
        }
        let (netns, _) = network::namespace(&vm.netns)?;
        for port in &vm.ports {
            if let Some(host) = port.host.as_ref().and_then(|h| hosts.get(h)) {
                network::leg(host, &port.device, &netns, &port.link, port.mtu)?;
            }
        }
    }
    Ok(())
}

/// Fills in the devices that the lab chose. Where none is named, the agent makes a tap.
fn devices(site: &mut Site, record: &Record) {
    let ports: BTreeMap<&PortRef, &PortRecord> =
        record.vms.iter().flat_map(|v| &v.ports).map(|p| (&p.name, p)).collect();
    for port in &mut site.ports {
        let Some(planned) = ports.get(&port.value.name).filter(|_| port.value.host.is_some()) else {
            continue;
        };
        port.value.device = (!planned.tap).then(|| planned.device.clone());
        if planned.tap {
            // A lab's guest opens one queue, and a tap made for several is opened by nobody who has one.
            port.value.queues = None;
        }
    }
}

/// What the controller decided goes into the VMs: MAC, addresses, route.
async fn addresses(lab: &mut Lab, client: &tenet_api::client::Client) -> Result<()> {
    let views = client.vms().await.map_err(|e| refused("list the VMs", e))?;
    let subnets = client.subnets().await.map_err(|e| refused("list the subnets", e))?;
    let ports: BTreeMap<_, _> =
        views.into_iter().flat_map(|v| v.ports).map(|p| (p.name.clone(), p)).collect();
    for vm in &mut lab.record.vms {
        let links = if vm.real { None } else { Some(Links::in_netns(&Netns::open(&vm.netns)?)?) };
        for (at, port) in vm.ports.iter_mut().enumerate() {
            let Some(view) = ports.get(&port.name) else { continue };
            port.mac = Some(view.mac);
            port.addresses.clone_from(&view.addresses);
            if let Some(subnet) = subnets.iter().find(|s| s.name == view.subnet) {
                let record = |p: &tenet_api::rest::PrefixView| PrefixRecord {
                    prefix: p.prefix,
                    gateway: Some(p.gateway),
                };
                port.prefixes = subnet.prefixes.iter().map(record).collect();
            }
            if let Some(links) = &links {
                bring_up(links, port, at == 0)?;
            }
        }
    }
    Ok(())
}

fn bring_up(vm: &Links, port: &PortRecord, first: bool) -> Result<()> {
    if let (Some(_), Some(mac)) = (&port.host, port.mac) {
        network::wake(vm, &port.link, mac)?;
        network::address(vm, &port.link, port, first)?;
    }
    Ok(())
}

pub fn start_controller(record: &mut Record) -> Result<()> {
    let controller = &record.controller;
    private_dir(&controller.state_dir)?;
    let mut command = Netns::open(&controller.netns)?.command(&record.binary);
    command.arg("controller").arg("--state-dir").arg(&controller.state_dir);
    command.arg("--address").arg(controller.address.to_string()).args(["--address", "127.0.0.1"]);
    if controller.address.is_ipv6() {
        command.args(["--rest", "[::]:7443", "--grpc", "[::]:7444"]);
    }
    record.controller.process = Some(spawn(command, &controller.log)?);
    Ok(())
}

pub async fn controller_answers(lab: &Lab) -> Result<()> {
    let controller = &lab.record.controller;
    let check = async || -> Result<Option<()>> {
        if lab.credentials().is_err() {
            return Ok(None);
        }
        Ok(lab.client()?.healthz().await.ok())
    };
    wait("the controller did not answer", START, &controller.log, controller.process, check).await
}

async fn join_all(lab: &mut Lab) -> Result<()> {
    let client = lab.client()?;
    for at in 0..lab.record.hosts.len() {
        let Some(host) = lab.record.hosts.get(at) else { break };
        let (name, pa) = (host.name.clone(), host.pa);
        let request = TokenRequest { name: name.clone(), pa: Some(pa), ttl_s: Some(300) };
        let token =
            client.host_token(&request).await.map_err(|e| refused(&format!("let host {name} join"), e))?;
        start_agent(&mut lab.record, &name, Some(&token.token))?;
        lab.record.save()?;
    }
    Ok(())
}

/// Starts a host's agent; a token is needed until it has joined.
pub fn start_agent(record: &mut Record, name: &HostName, token: Option<&str>) -> Result<()> {
    let url = format!("https://{}", crate::forward::rest(record.controller.address));
    let (binary, clsact) = (record.binary.clone(), record.clsact);
    let Some(host) = record.hosts.iter_mut().find(|h| h.name == *name) else { return Ok(()) };
    private_dir(&host.state_dir)?;
    let mut command = Netns::open(&host.netns)?.command(&binary);
    command.arg("agent").arg("--controller").arg(url).arg("--state-dir").arg(&host.state_dir);
    command.arg("--bpffs").arg(&host.bpffs).arg("--uplink").arg(&host.uplink);
    command.arg("--qmp-dir").arg(host.state_dir.join("qmp"));
    command.arg("--socket").arg(host.socket());
    if let Some(wish) = &host.libvirt {
        command.arg("--libvirt").arg(wish);
    }
    // The machine's libvirt is none of a lab's host, which has its own, if any.
    command.env("LIBVIRT_DEFAULT_URI", host.libvirt_uri());
    if clsact {
        command.args(["--hook", "clsact"]);
    }
    // Not as an argument, which every user of the machine could read.
    if let Some(token) = token {
        command.env("TENET_JOIN_TOKEN", token);
    }
    host.process = Some(spawn(command, &host.log)?);
    Ok(())
}

fn start_responder(record: &mut Record) -> Result<()> {
    let mut command = Command::new(&record.binary);
    command.args(["lab-tool", "respond"]).arg(&record.dir);
    record.responder = Some(spawn(command, &record.dir.join(".responder.log"))?);
    Ok(())
}

/// Waits until all hosts are connected and proven, and all attached ports are ready.
pub async fn in_sync(lab: &Lab, patience: Duration) -> Result<()> {
    let client = lab.client()?;
    let mut last = String::new();
    let expected = lab.record.hosts.len();
    let check = async || -> Result<Option<()>> {
        match client.status().await {
            Ok(status) => {
                let missing = not_ready(&status, expected);
                last = missing.clone().unwrap_or_default();
                Ok(missing.is_none().then_some(()))
            }
            Err(e) => {
                last = chain(&e);
                Ok(None)
            }
        }
    };
    let log = lab.record.hosts.first().map_or(lab.record.controller.log.as_path(), |h| h.log.as_path());
    let done = wait("the hosts were not in sync", patience, log, None, check).await;
    done.map_err(|e| because(e, &last))
}

/// Adds to an error that something took too long what was missing last.
pub fn because(error: Error, last: &str) -> Error {
    match error {
        Error::Timeout { what, seconds, log, tail } if !last.is_empty() => {
            Error::Timeout { what: format!("{what} ({last})"), seconds, log, tail }
        }
        other => other,
    }
}

/// What is missing, in plain words.
fn not_ready(status: &Status, expected: usize) -> Option<String> {
    if status.hosts.len() < expected {
        return Some(format!("{} of {expected} hosts are known", status.hosts.len()));
    }
    for host in &status.hosts {
        let name = &host.name;
        if !host.connected {
            return Some(format!("host {name} is not connected"));
        }
        if let Some(problem) = host.error.as_ref().or(host.problems.first()) {
            return Some(format!("host {name}: {problem}"));
        }
        for port in &host.ports {
            if !port.present || port.state.as_deref() != Some("active") {
                let state = port.state.as_deref().unwrap_or("not reported");
                return Some(format!("host {name}: port {} is {state} {}", port.port, port.detail));
            }
        }
        if !host.in_sync {
            return Some(format!("host {name} is not in sync"));
        }
    }
    (!status.in_sync).then(|| "the site is not in sync".to_owned())
}

/// Asks again and again until there is an answer, time is up, or the process that should give it has ended.
pub async fn wait<T>(
    what: &str,
    patience: Duration,
    log: &Path,
    process: Option<Process>,
    mut check: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let (begin, patience) = (Instant::now(), crate::patience(patience));
    loop {
        if let Some(done) = check().await? {
            return Ok(done);
        }
        let ended = process.is_some_and(|p| !p.runs());
        if ended || begin.elapsed() > patience {
            let what = if ended { format!("{what}: its process ended") } else { what.to_owned() };
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n");
            return Err(Error::Timeout {
                what,
                seconds: begin.elapsed().as_secs(),
                log: log.to_owned(),
                tail,
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Starts a process that outlives us and does not hear our terminal's Ctrl-C.
fn spawn(mut command: Command, log: &Path) -> Result<Process> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(log);
    let file = open().map_err(Error::io(format!("write {}", log.display())))?;
    let copy = file.try_clone().map_err(Error::io(format!("write {}", log.display())))?;
    command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0).env("NO_COLOR", "1");
    let program = command.get_program().to_owned();
    let child = command.spawn().map_err(Error::io(format!("start {}", program.display())))?;
    Process::of(child.id())
}

pub fn private_dir(path: &Path) -> Result<()> {
    let make = || DirBuilder::new().recursive(true).mode(0o700).create(path);
    make().map_err(Error::io(format!("make {}", path.display())))
}

pub fn refused(action: &str, error: tenet_api::client::ClientError) -> Error {
    Error::Api { action: action.to_owned(), source: error.into() }
}
