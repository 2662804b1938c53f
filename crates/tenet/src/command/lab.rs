//! Labs.

use crate::cli::{ExecArgs, Global, LabCommand, LabTool, Output, Vms};
use crate::command::{demo, migrations, runtime};
use crate::failure::{Code, Failure, Outcome};
use crate::print::{self, Table, or_dash};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;
use tenet_lab::{Guests, Lab, LabOptions, Record, SiteFile, tool as tools};
use tokio::signal::unix::{SignalKind, signal};

/// The lab that commands without `--lab` mean.
const DEFAULT: &str = "demo";

/// `lab …`
pub fn run(command: LabCommand, global: Global) -> Outcome<ExitCode> {
    let json = global.output == Output::Json;
    let named = || global.lab.clone().unwrap_or_else(|| DEFAULT.to_owned());
    match command {
        LabCommand::Up { name, site, underlay, method, clsact, vms } => {
            let mut options = LabOptions::new(&name, binary()?)?;
            (options.clsact, options.underlay, options.method) = (clsact, underlay, method);
            options.guests = guests(vms);
            // So that `network set --method rewrite` works in every lab.
            options.rewrite_pools = true;
            if let Some(path) = site {
                let text = std::fs::read_to_string(&path);
                let text = text.map_err(|e| {
                    Failure::new(format!("cannot read {}: {e}", path.display()), "give a site file")
                })?;
                options.site = SiteFile { name: path.display().to_string(), text };
            }
            up(options).map(|()| ExitCode::SUCCESS)
        }
        LabCommand::Down { name } => {
            Lab::open(&name)?.down()?;
            print::line(&format!("lab {name} is gone"))?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::List => list(json).map(|()| ExitCode::SUCCESS),
        LabCommand::Status { name } => status(&name, json).map(|()| ExitCode::SUCCESS),
        LabCommand::Exec(args) => exec(&named(), &args),
        LabCommand::Console { vm } => {
            let guest = Lab::open(&named())?.guest(&vm)?;
            print::note(&format!("the console of VM {vm}; Ctrl-] leaves it"));
            tenet_lab::guest::attach(&guest)?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Migrate { vm, host } => {
            let mut lab = Lab::open(&named())?;
            let work = async {
                print::progress(&format!("moving VM {vm} to host {host}"), lab.migrate(&vm, &host)).await
            };
            let moved = runtime()?.block_on(work)?;
            if json {
                return print::json(&moved.receipt).map(|()| ExitCode::SUCCESS);
            }
            migrations::receipt(&moved.receipt)?;
            print::line(&format!(
                "  the VM changed over in       {}",
                print::micros(moved.pause.as_micros() as u64)
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Demo { keep, clsact, vms } => {
            let mut options = demo::options(binary()?, keep, clsact)?;
            options.guests = guests(vms);
            until_interrupted(demo::run(options, keep))?.map(|()| ExitCode::SUCCESS)
        }
    }
}

const fn guests(vms: Vms) -> Guests {
    match vms {
        Vms::Namespaces => Guests::None,
        Vms::Qemu => Guests::All,
    }
}

/// The binary that a lab runs: this one.
fn binary() -> Outcome<std::path::PathBuf> {
    std::env::current_exe().map_err(|e| Failure::of(&e, "start it by its full path"))
}

fn up(mut options: LabOptions) -> Outcome {
    let begin = Instant::now();
    options.progress = Arc::new(|step| print::note(&format!("waiting for: {step}")));
    let name = options.name.to_string();
    let lab = until_interrupted(async move { Ok::<_, Failure>(Lab::up(options).await?) })?;
    let mut lab = lab?;
    lab.keep();
    print::line(&format!("lab {name} is up after {:.1} s", begin.elapsed().as_secs_f64()))?;
    print::text(&hints(lab.record()))
}

/// What to try in a running lab, with names that it has.
pub fn hints(record: &Record) -> String {
    let name = &record.name;
    let tenet = program();
    let named = name.as_str() == DEFAULT;
    let option = if named { String::new() } else { format!(" --lab {name}") };
    let down = if named { String::new() } else { format!(" {name}") };
    let mut lines = vec!["Try:".to_owned(), format!("  {tenet} --lab {name} status")];
    lines.extend(record.hosts.first().map(|h| format!("  {tenet} --lab {name} table {}", h.name)));
    let to = record.vms.first().and_then(|vm| Some((vm, vm.ports.first()?)));
    if let Some((vm, port)) = to {
        let other = record.vms.iter().find(|v| v.name.tenant == vm.name.tenant && v.name != vm.name);
        if let (Some(other), Some(address)) = (other, port.addresses.first()) {
            lines.push(format!("  {tenet} lab{option} exec {} -- ping -c 3 {address}", other.name));
        }
        if let Some(host) =
            record.hosts.iter().find(|h| port.host.is_some() && Some(&h.name) != port.host.as_ref())
        {
            lines.push(format!("  {tenet} lab{option} migrate {} {}", vm.name, host.name));
        }
    }
    if let Some(vm) = record.vms.iter().find(|v| v.real) {
        lines.push(format!("  {tenet} lab{option} console {}", vm.name));
    }
    lines.push(format!("  {tenet} --lab {name} events --follow"));
    lines.push(format!("  {tenet} --lab {name} export"));
    lines.push(format!("  {tenet} lab down{down}"));
    lines.join("\n") + "\n"
}

/// How the user calls this program: by its path unless the shell finds it.
fn program() -> String {
    let Ok(exe) = std::env::current_exe() else { return "tenet".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("tenet").canonicalize().is_ok_and(|p| p == exe)) {
        return "tenet".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    exe.strip_prefix(&here).unwrap_or(&exe).display().to_string()
}

/// Runs something that Ctrl-C or SIGTERM ends; what it holds is dropped, so that labs are removed.
fn until_interrupted<T>(work: impl Future<Output = T>) -> Outcome<T> {
    let hint = "check the limits on open files and processes";
    runtime()?.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::of(&e, hint))?;
        let mut int = signal(SignalKind::interrupt()).map_err(|e| Failure::of(&e, hint))?;
        let interrupted = || Failure::new("interrupted; all that was made has been removed", "");
        tokio::select! {
            done = work => Ok(done),
            _ = int.recv() => Err(interrupted()),
            _ = term.recv() => Err(interrupted()),
        }
    })
}

fn list(json: bool) -> Outcome {
    let names = Record::names();
    if json {
        return print::json(&names);
    }
    let mut table = Table::new(["LAB", "HOSTS", "VMS", "STATE"]);
    for name in &names {
        match Lab::open(name) {
            Ok(lab) => {
                let record = lab.record();
                table.row([
                    name.clone(),
                    record.hosts.len().to_string(),
                    record.vms.len().to_string(),
                    state(record).to_owned(),
                ]);
            }
            Err(e) => table.row([name.clone(), "-".to_owned(), "-".to_owned(), e.to_string()]),
        }
    }
    print::table(&table, "no lab is there; bring one up: tenet lab up")
}

fn state(record: &Record) -> &'static str {
    if !record.complete {
        "not complete: `tenet lab down` removes it"
    } else if record.processes().all(tenet_lab::Process::runs) {
        "up"
    } else {
        "a process of it has ended"
    }
}

fn status(name: &str, json: bool) -> Outcome {
    let lab = Lab::open(name)?;
    let record = lab.record();
    if json {
        return print::json(record);
    }
    print::line(&format!("lab {name}: {}, in {}", state(record), record.dir.display()))?;
    print::line("")?;
    let mut hosts = Table::new(["PROCESS", "PA", "NAMESPACE", "PID", "RUNS", "LOG"]);
    let runs = |p: Option<tenet_lab::Process>| print::yes(p.is_some_and(tenet_lab::Process::runs));
    let c = &record.controller;
    hosts.row([
        "controller".to_owned(),
        c.address.to_string(),
        c.netns.clone(),
        or_dash(c.process.map(|p| p.pid)),
        runs(c.process),
        c.log.display().to_string(),
    ]);
    for h in &record.hosts {
        hosts.row([
            format!("agent of {}", h.name),
            h.pa.to_string(),
            h.netns.clone(),
            or_dash(h.process.map(|p| p.pid)),
            runs(h.process),
            h.log.display().to_string(),
        ]);
    }
    print::text(&hosts.text(print::fancy()))?;
    print::line("")?;
    let mut vms = Table::new(["VM", "ADDRESS", "HOST", "DEVICE", "NAMESPACE"]);
    for vm in &record.vms {
        for port in &vm.ports {
            let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
            vms.row([
                vm.name.to_string(),
                addresses.join(" "),
                or_dash(port.host.as_ref()),
                port.device.clone(),
                vm.guest
                    .as_ref()
                    .map_or_else(|| vm.netns.clone(), |g| format!("guest, process {}", g.process.pid)),
            ]);
        }
    }
    print::table(&vms, "no VMs")
}

/// Becomes the command, so that its exit code, signals and terminal are its own. In a real guest it is run there, with
/// our streams and its exit code.
fn exec(name: &str, args: &ExecArgs) -> Outcome<ExitCode> {
    let lab = Lab::open(name)?;
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::new("no command is given", "write it after --").code(Code::Usage));
    };
    if let (None, Some(vm)) = (&args.host, &args.vm)
        && lab.vm_record(vm)?.real
    {
        let code = lab.guest(vm)?.exec_attached(args.command.iter().cloned())?;
        return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let mut command = match (&args.host, &args.vm) {
        (Some(host), _) => lab.host(host)?.command(program),
        (None, Some(vm)) => lab.vm(vm)?.command(program),
        (None, None) => lab.router()?.command(program),
    };
    let error = command.args(rest).exec();
    Err(Failure::new(format!("cannot run {program}: {error}"), "check that it is installed on this machine"))
}

/// `lab-tool …`
pub fn tool(tool: LabTool) -> Outcome {
    let here = || Netns::current().map_err(|e| Failure::of(&e, "run it by `tenet lab exec`"));
    match tool {
        LabTool::Respond { dir } => Ok(tools::respond(&dir)?),
        LabTool::Ask { address } => match tools::ask(&here()?, address, Duration::from_secs(2))? {
            Some(name) => print::line(&name),
            None => Err(Failure::new(
                format!("nobody answers at {address}"),
                "`tenet status` shows whether all hosts are in sync",
            )),
        },
        LabTool::Probe { address, expect, rate, seconds } => {
            let probe = tools::Probe::start(&here()?, address, &expect, rate)?;
            std::thread::sleep(Duration::from_secs(seconds));
            print::json(&probe.stop()?)
        }
        LabTool::Stream { address, seconds, pace_us } => {
            let stream = tools::Stream::start(&here()?, address, Duration::from_micros(pace_us))?;
            std::thread::sleep(Duration::from_secs(seconds));
            let report = stream.stop()?;
            print::json(&report)?;
            if report.received.in_order && report.received.bytes == report.sent {
                return Ok(());
            }
            Err(Failure::of(
                &io::Error::other("bytes were lost or changed on the way"),
                "report this as a bug",
            ))
        }
    }
}
