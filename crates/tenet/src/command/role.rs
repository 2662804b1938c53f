//! Controller and agent.

use crate::cli::{AgentArgs, ControllerArgs, Hook, Receive};
use crate::failure::{Failure, Outcome};
use crate::print::{self, Table};
use std::future::Future;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::time::Duration;
use tenet_host_agent::KernelPart;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The uplink's MTU where there is no uplink.
const IMAGINED_MTU: u32 = 1500;

/// `controller`
pub fn controller(args: ControllerArgs) -> Outcome {
    log();
    let mut options = tenet_control_server::Options::new(args.state_dir);
    options.rest_addr = args.rest;
    options.grpc_addr = args.grpc;
    options.addresses = args.addresses;
    let ready = |_| notify("READY=1");
    serve(|shutdown| tenet_control_server::run(options, shutdown, ready))?
        .map_err(|e| Failure::of(&e, "put right what the message names and start it again"))
}

/// `agent`
pub fn agent(args: AgentArgs) -> Outcome<ExitCode> {
    if args.check {
        return check();
    }
    if args.prepare {
        return tenet_host_agent::prepare(&args.bpffs).map(|()| ExitCode::SUCCESS).map_err(|e| {
            Failure::of(&e, "forwarding works without; `tenet agent --check` says what is missing")
        });
    }
    if args.detach {
        return detach(&args).map(|()| ExitCode::SUCCESS);
    }
    log();
    let metrics = match args.metrics.as_str() {
        "off" => None,
        address => Some(address.parse().map_err(|_| {
            Failure::new(format!("--metrics {address} is no address"), "write it as 127.0.0.1:7445, or off")
                .code(crate::failure::Code::Usage)
        })?),
    };
    let kernel = if args.no_kernel {
        KernelPart::None { uplink_mtu: IMAGINED_MTU }
    } else {
        let hook = match args.hook {
            Hook::Auto => tenet_host_agent::Hook::Auto,
            Hook::Tcx => tenet_host_agent::Hook::Tcx,
            Hook::Clsact => tenet_host_agent::Hook::Clsact,
        };
        let receive = match args.receive {
            Receive::Auto => tenet_host_agent::Receive::Auto,
            Receive::Plain => tenet_host_agent::Receive::Plain,
            Receive::Hub => tenet_host_agent::Receive::Hub,
            Receive::Kernel => tenet_host_agent::Receive::Kernel,
        };
        KernelPart::Real { bpffs: args.bpffs, hook, receive }
    };
    let options = tenet_host_agent::Options {
        state_dir: args.state_dir,
        controllers: args.controllers,
        token: args.join,
        uplinks: args.uplinks,
        kernel,
        keep_offloads: args.keep_offloads,
        metrics,
        socket: (args.socket.as_os_str() != "none").then_some(args.socket),
        compare_every: Duration::from_secs(args.compare_every.max(1)),
        qmp_dir: Some(args.qmp_dir),
        libvirt: args.libvirt,
        ready: Some(Box::new(|| notify("READY=1"))),
    };
    serve(|shutdown| tenet_host_agent::run(options, shutdown))?.map_err(|e| {
        Failure::of(&e, "put right what the message names and start it again; forwarding was not touched")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `agent --check`
fn check() -> Outcome<ExitCode> {
    let mut table = Table::new(["FEATURE", "THERE", "NEEDED", "FOUND", "FOR"]);
    let features = tenet_host_agent::check();
    for f in &features {
        let needed = if f.required { "yes" } else { "helps" };
        table.row([
            f.name.to_owned(),
            print::yes(f.ok),
            needed.to_owned(),
            f.detail.clone(),
            f.needed_for.to_owned(),
        ]);
    }
    print::text(&table.text(print::fancy()))?;
    let missing: Vec<_> = features.iter().filter(|f| f.required && !f.ok).map(|f| f.name).collect();
    if missing.is_empty() {
        print::line("\nthis host can run the agent")?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(
        format!("this host cannot run the agent: it lacks {}", missing.join(", ")),
        "the table says what each is for; run as root, on a kernel from 5.15 on",
    ))
}

/// `agent --detach`
fn detach(args: &AgentArgs) -> Outcome {
    let done = tenet_host_agent::detach(&args.bpffs, &args.state_dir)
        .map_err(|e| Failure::of(&e, "stop the agent first"))?;
    print::line(&format!(
        "removed {} TCX links, {} clsact filters, {} maps and {} taps; ports are without network now",
        done.links, done.filters, done.maps, done.taps
    ))?;
    if !done.offloads.is_empty() {
        print::line(&format!("turned on again what the agent had turned off: {}", done.offloads.join(", ")))?;
    }
    if !done.multicast.is_empty() {
        print::line(&format!("taking all multicast was turned off again on {}", done.multicast.join(", ")))?;
    }
    if !done.open_taps.is_empty() {
        print::line(&format!(
            "{} of the taps were open: the VMs of {} keep a NIC that leads nowhere until they are started again",
            done.open_taps.len(),
            done.open_taps.join(", ")
        ))?;
    }
    if done.errors.is_empty() {
        return Ok(());
    }
    let errors: Vec<_> = done.errors.iter().map(|e| crate::failure::chain(e)).collect();
    Err(Failure::new(format!("some of it is still there:\n{}", errors.join("\n")), "try again as root"))
}

/// Runs a server until SIGTERM or Ctrl-C.
///
/// It runs as a task like all others, on the runtime's threads: the thread that waits for I/O then does what has come
/// itself, instead of waking this one for it each time.
fn serve<T, R>(run: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> R) -> Outcome<T>
where
    T: Send + 'static,
    R: Future<Output = T> + Send + 'static,
{
    let hint = "check the limits on open files and processes";
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Failure::of(&e, hint))?.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::of(&e, hint))?;
        let mut int = signal(SignalKind::interrupt()).map_err(|e| Failure::of(&e, hint))?;
        let shutdown = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            notify("STOPPING=1");
        };
        match tokio::spawn(run(Box::pin(shutdown))).await {
            Ok(done) => Ok(done),
            Err(broken) => std::panic::resume_unwind(broken.into_panic()),
        }
    })
}

/// One line per change on standard error, without colour where nobody sees it; `RUST_LOG` says how much.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).init();
}

/// Tells systemd, if it asked to be told (sd_notify(3)); nobody listening is no error.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || {
        let socket = UnixDatagram::unbound()?;
        // A leading @ stands for the abstract namespace.
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(state.as_bytes(), &address)
            }
            None => socket.send_to(state.as_bytes(), &path),
        }
    };
    if let Err(e) = send() {
        tracing::warn!("systemd could not be told {state}: {e}");
    }
}
