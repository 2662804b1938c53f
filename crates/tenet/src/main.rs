//! The binary `tenet`: controller, agent, command line and lab. Wiring only.

mod cli;
mod command;
mod failure;
mod print;

use clap::Parser as _;
use cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors; a closed pipe is not one either.
            _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    match command::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            print::note(&failure.to_string());
            ExitCode::from(failure.code as u8)
        }
    }
}
