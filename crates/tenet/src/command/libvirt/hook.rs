//! What libvirt calls.
//!
//! Whether a domain is ours shows in its bytes; for all others this ends before anything is started. For ours, the
//! answer comes within the time-out: libvirt holds the domain meanwhile, and virsh waits.

use crate::cli::HookArgs;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;
use tenet_api::local::{self, LocalClient, Outcome};
use tenet_libvirt::{Answer, Call, Plan, Prepare, Purpose};
use tokio::time::timeout;

/// Larger than any domain's description.
const LONGEST: u64 = 16 << 20;
/// Beyond what the agent is given, so that it is the agent that says what is missing.
const SLACK: Duration = Duration::from_secs(3);
/// Longest wait at a domain's end, which nothing depends on: what the agent was told, it sees to by itself.
const RELEASE: Duration = Duration::from_secs(5);

/// `libvirt hook`; what goes wrong is one line on standard error, which virsh shows.
pub fn hook(args: &HookArgs) -> ExitCode {
    match act(args) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(xml)) => match io::stdout().lock().write_all(xml.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => refuse(args, &format!("the domain's description cannot be handed over: {e}")),
        },
        Err(line) => refuse(args, &line),
    }
}

fn refuse(args: &HookArgs, line: &str) -> ExitCode {
    let line: Vec<&str> = line.lines().map(str::trim).collect();
    // Nobody may listen; the exit code says enough.
    _ = writeln!(io::stderr(), "tenet: {}", line.join(" "));
    // libvirt ends a running guest whose reconnect is refused, and does not ask about what is over.
    let may_refuse = matches!(args.operation.as_str(), "prepare" | "migrate");
    if may_refuse { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A new description of the domain, if it shall have one.
fn act(args: &HookArgs) -> Result<Option<String>, String> {
    let mut xml = Vec::new();
    let read = io::stdin().lock().take(LONGEST).read_to_end(&mut xml);
    read.map_err(|e| format!("the domain's description cannot be read from standard input: {e}"))?;
    let call = Call { domain: &args.domain, operation: &args.operation, stage: &args.stage };
    let plan = tenet_libvirt::plan(call, &xml).map_err(|e| e.to_string())?;
    if plan == Plan::Nothing {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("no runtime: {e}; check the limits on open files"))?;
    let client = LocalClient::new(&args.agent.socket).map_err(|e| e.line())?;
    let patience = Duration::from_secs(args.agent.timeout);
    runtime.block_on(async {
        match plan {
            Plan::Nothing => Ok(None),
            Plan::Release { vm } => {
                // libvirt does not say why it is over, nor whether the guest runs elsewhere: the controller knows, and
                // takes this for the end of a move that failed, or for nothing where the guest has moved.
                let release = local::Release { vm, outcome: Outcome::Stopped, ports: Vec::new() };
                let patience = patience.min(RELEASE);
                let release = timeout(patience, client.release(&release)).await;
                // The agent has it by then, and sees to it whoever waits.
                release.map_err(|_| owed(args, patience))?.map_err(|e| e.line())?;
                Ok(None)
            }
            Plan::Prepare(prepare) => {
                let request = request(&prepare, &args.domain, patience);
                let answer = timeout(patience + SLACK, client.prepare(&request));
                let answer = answer.await.map_err(|_| late(args, patience))?.map_err(|e| e.line())?;
                ready(args, &prepare, &answer, &xml)
            }
        }
    })
}

fn late(args: &HookArgs, patience: Duration) -> String {
    format!(
        "the agent at {} has not answered within {} s: look at its log (`journalctl -u tenet-agent`) and try again",
        args.agent.socket.display(),
        patience.as_secs()
    )
}

fn owed(args: &HookArgs, patience: Duration) -> String {
    format!(
        "the agent at {} has not let the ports of domain {} go within {} s: it goes on by itself; `tenet attached` \
         shows those that are still here, `journalctl -u tenet-agent` why",
        args.agent.socket.display(),
        args.domain,
        patience.as_secs()
    )
}

/// The agent's answer held against what the domain opens.
fn ready(
    args: &HookArgs,
    prepare: &Prepare,
    answer: &local::Prepared,
    xml: &[u8],
) -> Result<Option<String>, String> {
    let answers: Vec<Answer> = answer
        .ports
        .iter()
        .map(|p| Answer {
            mac: p.mac,
            device: p.device.clone(),
            port: p.port.clone(),
            queues: p.tap.then_some(p.queues),
        })
        .collect();
    // Where the domain names no ports, the site says which of its interfaces are some.
    let named = prepare.ports.iter().filter(|p| p.name.is_some());
    if let Some(missing) = named.clone().find(|p| !answers.iter().any(|a| a.mac == p.mac)) {
        let name = missing.name.as_ref().map_or_else(String::new, ToString::to_string);
        let theirs = answer.ports.iter().find(|p| Some(&p.port.port) == missing.name.as_ref());
        return Err(match theirs {
            Some(port) => format!(
                "port {} has MAC {} in the site, and domain {} has {}: make them the same",
                port.port, port.mac, args.domain, missing.mac
            ),
            None => format!("the agent made no port {name} of VM {} ready: look at its log", prepare.vm),
        });
    }
    if prepare.purpose == Purpose::Incoming {
        prepare.check_queues(&args.domain, &answers, None).map_err(|e| e.to_string())?;
        let xml = std::str::from_utf8(xml).map_err(|e| e.to_string())?;
        return tenet_libvirt::redirect(xml, &prepare.ports, &answers).map_err(|e| e.to_string());
    }
    prepare.check(&args.domain, &answers, answer.host.as_ref()).map_err(|e| e.to_string())?;
    Ok(None)
}

/// What is asked of the agent.
fn request(prepare: &Prepare, domain: &str, patience: Duration) -> local::Prepare {
    let port = |p: &tenet_libvirt::Wanted| local::PreparePort {
        port: p.name.clone(),
        mac: Some(p.mac),
        network: p.subnet.as_ref().map(tenet_model::SubnetRef::network_ref),
        subnet: p.subnet.as_ref().map(|s| s.subnet.clone()),
        addresses: p.addresses.clone(),
        device: p.foreign.then(|| p.device.clone()),
        // A domain alters no port that is there: where they differ, it is refused.
        queues: None,
    };
    local::Prepare {
        vm: prepare.vm.clone(),
        ports: prepare.ports.iter().map(port).collect(),
        purpose: match prepare.purpose {
            Purpose::Start | Purpose::Running => local::Purpose::Start,
            Purpose::Incoming => local::Purpose::Incoming,
        },
        domain: Some(domain.to_owned()),
        timeout_ms: u64::try_from(patience.as_millis()).ok(),
    }
}
