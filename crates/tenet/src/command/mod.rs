//! What the commands do.

mod apply;
mod change;
mod demo;
mod docs;
mod lab;
mod libvirt;
mod migrate;
mod migrations;
mod netns;
mod object;
mod paths;
mod role;
mod run_args;
mod show;
mod site;
mod status;
mod wire;

use crate::cli::{Cli, Command, DocsCommand, Global, Output};
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use clap::CommandFactory as _;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;
use tenet_api::client::Client;
use tenet_api::rest::Wait;
use tenet_lab::Lab;

/// What a command works with.
pub struct Context {
    /// Options of every command.
    pub global: Global,
    /// The lab that `--lab` names; its client lives as long as it does.
    lab: Option<Lab>,
}

impl Context {
    fn new(global: Global) -> Outcome<Self> {
        let lab = global.lab.as_deref().map(Lab::open).transpose()?;
        Ok(Self { global, lab })
    }

    /// The controller's client; its changes wait as `--wait` says.
    pub fn client(&self) -> Outcome<Client> {
        let client = match &self.lab {
            Some(lab) => lab.client()?,
            None => Client::from_admin_file(&self.global.admin_file)?,
        };
        let patience = Duration::from_secs(self.global.wait);
        let wait = if patience.is_zero() { Wait::Stored } else { Wait::Applied };
        Ok(client.with_wait(wait, Some(patience)))
    }

    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        self.global.output == Output::Json
    }

    /// Prints as JSON, or lets `people` print.
    pub fn show<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> Outcome) -> Outcome {
        if self.json() { print::json(value) } else { people(value) }
    }
}

/// Runs a command.
pub fn run(cli: Cli) -> Outcome<ExitCode> {
    match cli.command {
        Command::Controller(args) => role::controller(args).map(|()| ExitCode::SUCCESS),
        Command::Agent(args) => role::agent(args),
        Command::Completion(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "tenet", &mut script);
            print::text(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
        Command::Docs(DocsCommand::Cli) => print::text(&docs::cli()).map(|()| ExitCode::SUCCESS),
        Command::Lab(command) => lab::run(command, cli.global),
        Command::Libvirt(command) => libvirt::run(command, cli.global),
        Command::LabTool(tool) => lab::tool(tool).map(|()| ExitCode::SUCCESS),
        Command::Attach(args) => here(async || netns::attach(&cli.global, args).await),
        Command::Detach(args) => here(async || netns::detach(&cli.global, args).await),
        Command::Attached(args) => here(async || netns::attached(&cli.global, args).await),
        Command::Host(_)
        | Command::Tenant(_)
        | Command::Network(_)
        | Command::Subnet(_)
        | Command::Vm(_)
        | Command::Route(_)
        | Command::Site(_)
        | Command::Table(_)
        | Command::Status
        | Command::Paths(_)
        | Command::Events(_)
        | Command::Counters(_)
        | Command::Migrations(_)
        | Command::Receipts(_)
        | Command::Apply(_)
        | Command::Export => {
            let context = Context::new(cli.global)?;
            runtime()?.block_on(remote(&context, cli.command)).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Runs a command that asks this host's agent.
fn here(command: impl AsyncFnOnce() -> Outcome) -> Outcome<ExitCode> {
    runtime()?.block_on(command()).map(|()| ExitCode::SUCCESS)
}

/// The commands that ask a controller.
async fn remote(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Host(command) => object::host(context, command).await,
        Command::Tenant(command) => object::tenant(context, command).await,
        Command::Network(command) => object::network(context, command).await,
        Command::Subnet(command) => object::subnet(context, command).await,
        Command::Vm(command) => object::vm(context, command).await,
        Command::Route(command) => object::route(context, command).await,
        Command::Site(command) => site::site(context, command).await,
        Command::Table(args) => show::table(context, args).await,
        Command::Status => status::status(context).await,
        Command::Paths(args) => paths::paths(context, args).await,
        Command::Events(args) => show::events(context, args).await,
        Command::Counters(args) => show::counters(context, args).await,
        Command::Migrations(args) => migrations::migrations(context, args).await,
        Command::Receipts(args) => migrations::receipts(context, args).await,
        Command::Apply(args) => apply::apply(context, args).await,
        Command::Export => apply::export(context).await,
        Command::Controller(_)
        | Command::Agent(_)
        | Command::Completion(_)
        | Command::Docs(_)
        | Command::Lab(_)
        | Command::Libvirt(_)
        | Command::LabTool(_)
        | Command::Attach(_)
        | Command::Detach(_)
        | Command::Attached(_) => Ok(()),
    }
}

/// A small runtime: one thread is enough to ask and print.
pub fn runtime() -> Outcome<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::of(&e, "check the limits on open files and processes"))
}

/// The failure of a state that is not what is desired everywhere.
pub fn not_in_sync(text: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::new(text, hint).code(Code::NotInSync)
}
