//! The sidecar alone, for images that hold nothing else. The same as `leno proxy`.

use clap::Parser;
use leno_proxy::hooks::Hook;

#[global_allocator]
static ALLOCATOR: leno_daemon::memory::Allocator = leno_daemon::memory::Allocator;

/// Leno's sidecar proxy.
#[derive(Parser)]
#[command(name = "leno-proxy", version, subcommand_negates_reqs = true)]
struct Command {
    #[command(subcommand)]
    hook: Option<Hook>,
    #[command(flatten)]
    options: leno_proxy::Options,
}

fn main() -> std::process::ExitCode {
    let Command { hook, options } = Command::parse();
    let done = match hook {
        Some(hook) => hook.run().map_err(|error| error.to_string()),
        None => leno_proxy::run(options).map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
