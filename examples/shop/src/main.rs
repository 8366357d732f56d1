//! `leno-shop <user|product|order|notification>`: one instance of one service.

use clap::Parser;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// One service of Leno's example shop.
#[derive(Parser)]
#[command(name = "leno-shop")]
struct Cli {
    #[command(flatten)]
    args: leno_shop::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("LENO_SHOP_LOG").unwrap_or_else(|_| "info".into());
    // Standard output is for the one line that tells the addresses; logs go beside it.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match leno_shop::run(cli.args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
