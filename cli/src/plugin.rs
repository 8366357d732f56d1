//! `leno plugin`: for those who write Wasm plugins, and those who run them.
//!
//! ```text
//! new ──▶ a crate that builds and tests at once
//! list ─▶ what the plugins of a running proxy do
//! run ──▶ the real proxy on this machine, with generated resources
//! test ─▶ the module on the desk: the host that the proxy has, requests from a file, no network, no clock
//! ```

use std::{io::Write, process::ExitCode};

use crate::error::Error;

mod list;
mod new;
mod run;
mod test;

pub use test::{build::module_of, load};

/// Write, test and run Wasm plugins
#[derive(Debug, clap::Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    List(list::ListArgs),
    New(new::NewArgs),
    Run(run::RunArgs),
    Test(Box<test::TestArgs>),
}

pub fn run(args: PluginArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    match args.action {
        Action::List(args) => crate::block_on(list::run(&args, out)),
        Action::New(args) => new::run(&args, out),
        Action::Run(args) => run::run(&args, out),
        Action::Test(args) => test::run(&args, out),
    }
}
