//! `leno`: the command people type.
//!
//! ```text
//! apply get delete diff ──▶ api_client ──▶ the control plane's HTTP API
//! ca check ───────────────▶ api_client ──▶ the same, about certificates and what is not live
//! cache ──────────────────▶ both ────────▶ purges by the control plane, figures of a proxy
//! analyze ────────────────▶ files ───────▶ leno_api, the parser that the proxy uses, too
//! proxy-config ───────────▶ http_client ─▶ the admin port of a proxy
//! plugin ────────────────▶ leno_wasm_host, the host that the proxy runs plugins in
//! install uninstall ─────▶ install, what runs in Kubernetes (and the Helm chart, from the same source)
//! join leave ─────────────▶ files of this machine, systemd
//! redirect ───────────────▶ leno_redirect, which the init container runs, too
//! demo ───────────────────▶ processes: this program again, as control plane, sidecars and shop
//! ```
//!
//! `commands/` has one file per command, `demo/` the demonstration. Commands write what they have to say to
//! standard output, everything about its not working to standard error.

use std::{io, process::ExitCode};

use clap::Parser;

mod api_client;
mod commands;
mod demo;
mod diff;
mod error;
mod files;
mod http_client;
mod install;
mod moments;
mod plugin;
mod status;
mod table;
mod yaml_text;

use error::Error;

// The proxy's; its hot path is what it is chosen for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A service mesh: a small control plane, and a sidecar proxy beside every service
#[derive(Debug, Parser)]
#[command(name = "leno", version, disable_help_subcommand = true)]
struct Cli {
    /// End when the process with this id does (set for the processes of `leno demo`)
    #[arg(long, value_name = "PID", hide = true)]
    die_with: Option<u32>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the control plane
    ControlPlane(leno_control_plane::Settings),
    /// Run the sidecar proxy
    Proxy(Box<leno_proxy::Options>),
    Apply(commands::apply::ApplyArgs),
    Get(commands::get::GetArgs),
    Delete(commands::delete::DeleteArgs),
    Diff(commands::diff::DiffArgs),
    Analyze(commands::analyze::AnalyzeArgs),
    ProxyConfig(commands::proxy_config::ProxyConfigArgs),
    Token(commands::token::TokenArgs),
    Ca(commands::ca::CaArgs),
    Cache(commands::cache::CacheArgs),
    Check(commands::check::CheckArgs),
    Install(commands::install::InstallArgs),
    Uninstall(commands::uninstall::UninstallArgs),
    Join(Box<commands::join::JoinArgs>),
    Leave(commands::leave::LeaveArgs),
    Inject(Box<commands::inject::InjectArgs>),
    Uninject(commands::inject::UninjectArgs),
    Plugin(plugin::PluginArgs),
    Redirect(leno_redirect::RedirectArgs),
    Demo(demo::DemoArgs),
    /// One service of the demonstration's shop
    #[command(hide = true)]
    Shop(leno_shop::Args),
    /// Say which version this is
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Err(error)) = cli.die_with.map(demo::process::die_with) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    // What a command that fails without further ado exits with; `diff` says "different" with 1.
    let trouble = match &cli.command {
        Command::Diff(_) => ExitCode::from(commands::diff::TROUBLE),
        _ => ExitCode::FAILURE,
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            trouble
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Error> {
    // Not locked: the long-running commands write from several threads.
    let out = &mut io::stdout();
    match command {
        Command::Analyze(args) => commands::analyze::run(&args, out),
        Command::Apply(args) => block_on(commands::apply::run(&args, out)),
        Command::Get(args) => block_on(commands::get::run(&args, out)),
        Command::Delete(args) => block_on(commands::delete::run(&args, out)),
        Command::Diff(args) => block_on(commands::diff::run(&args, out)),
        Command::ProxyConfig(args) => block_on(commands::proxy_config::run(&args, out)),
        Command::ControlPlane(settings) => commands::control_plane::run(settings),
        Command::Proxy(options) => {
            leno_proxy::run(*options).map_err(|error| Error::Usage(error.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Ca(args) => block_on(commands::ca::run(&args, out)),
        Command::Cache(args) => block_on(commands::cache::run(&args, out)),
        Command::Check(args) => block_on(commands::check::run(&args, out)),
        Command::Install(args) => commands::install::run(&args, out),
        Command::Uninstall(args) => commands::uninstall::run(&args, out),
        Command::Join(args) => block_on(commands::join::run(&args, out)),
        Command::Leave(args) => commands::leave::run(&args, out),
        Command::Token(args) => commands::token::run(&args, out),
        Command::Inject(args) => commands::inject::run(&args, out),
        Command::Uninject(args) => commands::inject::run_uninject(&args, out),
        Command::Plugin(args) => plugin::run(args, out),
        Command::Redirect(args) => commands::redirect::run(&args, out),
        Command::Demo(args) => demo::run(&args),
        Command::Shop(args) => block_on(commands::shop::run(args)),
        Command::Version => {
            io::Write::write_fmt(out, format_args!("leno {}\n", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// For commands that ask one thing after the other.
fn block_on(command: impl Future<Output = Result<ExitCode, Error>>) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(command)
}
