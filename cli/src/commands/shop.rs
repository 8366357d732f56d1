//! `leno shop`: one service of the example shop, so that `leno demo` needs one binary only.

use std::{io, process::ExitCode};

use crate::error::Error;

pub async fn run(args: leno_shop::Args) -> Result<ExitCode, Error> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    leno_shop::run(args).await.map_err(|error| Error::Usage(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
