//! `leno-redirect`: what the init container runs. The same commands as `leno redirect`.

use std::{io, process::ExitCode};

use clap::Parser;

/// Lead the connections of this network namespace through the sidecar
#[derive(Debug, Parser)]
#[command(name = "leno-redirect", version)]
struct Cli {
    #[command(flatten)]
    redirect: leno_redirect::RedirectArgs,
}

fn main() -> ExitCode {
    match leno_redirect::execute(&Cli::parse().redirect.command, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
