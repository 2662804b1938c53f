//! `libvirt`: its hook, and what edits and reads its domains.

mod attach;
mod hook;
mod import;
mod install;
mod virsh;

use crate::cli::LibvirtCommand;
use crate::command::Context;
use crate::failure::{Code, Failure, Outcome};
use std::process::ExitCode;
use tenet_api::local::LocalError;

/// Runs a command; the runtime starts where it is needed, as the hook must be quick.
pub fn run(command: LibvirtCommand, global: crate::cli::Global) -> Outcome<ExitCode> {
    match command {
        LibvirtCommand::Hook(args) => Ok(hook::hook(&args)),
        LibvirtCommand::InstallHook(args) => install::install(&args).map(|()| ExitCode::SUCCESS),
        LibvirtCommand::Attach(args) => {
            let context = Context::new(global)?;
            super::runtime()?.block_on(attach::attach(&context, args)).map(|()| ExitCode::SUCCESS)
        }
        LibvirtCommand::Import(args) => {
            super::runtime()?.block_on(import::import(&args)).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn refused(error: &LocalError) -> Failure {
    let code = match error {
        LocalError::Refused { status: 409, .. } => Code::Conflict,
        LocalError::Unreachable { .. } => Code::Unreachable,
        LocalError::Refused { .. } | LocalError::Answer(_) | LocalError::Client(_) => Code::Failed,
    };
    Failure::of(error, error.hint()).code(code)
}
