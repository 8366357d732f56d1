//! `leno-control-plane`: the control plane as a program of its own; `leno control-plane` is the same.

use std::process::ExitCode;

use clap::Parser;
use leno_control_plane::Settings;

// As in `leno`: what thousands of proxies come with and leave again goes back to the system.
#[global_allocator]
static ALLOCATOR: leno_daemon::memory::Allocator = leno_daemon::memory::Allocator;

/// The Leno control plane: takes resources over its API and tells the proxies
#[derive(Debug, Parser)]
#[command(name = "leno-control-plane", version)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let runtime = match leno_control_plane::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(leno_control_plane::run(command.settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
