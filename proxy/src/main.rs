//! The sidecar alone, for images that hold nothing else. The same as `leno proxy`.

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Leno's sidecar proxy.
#[derive(Parser)]
#[command(name = "leno-proxy", version)]
struct Command {
    #[command(flatten)]
    options: leno_proxy::Options,
}

fn main() -> std::process::ExitCode {
    match leno_proxy::run(Command::parse().options) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
