//! The benchmark rig: Leno and its peers on the same work, interleaved, on a small shared machine.
//!
//! ```text
//! core 1: load generator (this process) ──▶ core 0: one proxy at a time ──▶ core 1: origin
//! suite (what is measured) ─▶ rounds A B C, B C A ... ─▶ statistics (ratios) ─▶ report
//! ```
//!
//! `suite` holds what is measured, `peer` the programs compared with their configurations, `load`
//! the generators, `identity` the certificates where TLS is measured, `measure` the accounting from `/proc`, `report` the table, plot and JSON.
//! `origin` and `relay` run as processes of this same binary, under hidden subcommands.

mod cores;
mod identity;
mod load;
mod measure;
mod origin;
mod peer;
mod relay;
mod report;
mod statistics;
mod suite;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use self::cores::Cores;
use self::peer::{Choice, Programs};
use self::suite::{Bench, Settings, Suite};

/// Measures Leno and its peers side by side, interleaved, and prints ratios that hold.
#[derive(Parser)]
#[command(name = "leno-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: Option<Run>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Args)]
struct Run {
    /// What to measure.
    suite: Suite,
    /// Whom to compare with; the null relay and Leno always take part.
    #[arg(long, value_delimiter = ',', default_value = "haproxy,nginx,envoy")]
    peers: Vec<Choice>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each measured phase.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Requests a second where the rate is fixed, instead of the suite's own.
    #[arg(long)]
    rate: Option<f64>,
    /// Print one table, without the spread of each program.
    #[arg(long)]
    summary: bool,
    /// Write every value and what follows from it here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figures here.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Leno's sidecar (`leno-proxy`, or `leno`), if neither is beside this program.
    #[arg(long, value_name = "PATH")]
    leno: Option<PathBuf>,
    /// Envoy's binary, if it is not on the PATH.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// The core proxies run on.
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// The core that load generator and origin share.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Niceness of everything measured; a negative one (as root) keeps builds on the same machine
    /// out of the way.
    #[arg(long, allow_negative_numbers = true)]
    nice: Option<i32>,
}

/// Parts of the rig that run as processes of their own.
#[derive(Subcommand)]
enum Part {
    /// The service behind the proxies.
    #[command(hide = true)]
    Origin,
    /// One instance of a service that takes its time.
    #[command(hide = true)]
    Instance {
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        milliseconds: u64,
    },
    /// The null relay.
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        to: SocketAddr,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    cores::raise_file_limit()?;
    match (arguments.part, arguments.run) {
        (Some(Part::Origin), _) => origin::serve().map(|()| ExitCode::SUCCESS),
        (Some(Part::Instance { threads, milliseconds }), _) => {
            let service = Duration::from_millis(milliseconds);
            origin::instance::serve(threads, service).map(|()| ExitCode::SUCCESS)
        }
        (Some(Part::Relay { to }), _) => relay::serve(to).map(|()| ExitCode::SUCCESS),
        (None, Some(run)) => measure(&run),
        (None, None) => anyhow::bail!("name a suite; --help lists them"),
    }
}

fn measure(run: &Run) -> Result<ExitCode> {
    if let Some(nice) = run.nice {
        cores::prioritise(nice)?;
    }
    let cores = Cores { proxy: run.proxy_core, load: run.load_core };
    cores::pin(cores.load)?;
    cores::wake_exactly()?;
    let absolute = |path: &Option<PathBuf>| -> Result<Option<PathBuf>> {
        // Programs are started in directories of their own.
        let resolve = |path: &PathBuf| {
            path.canonicalize().with_context(|| format!("there is no {}", path.display()))
        };
        path.as_ref().map(resolve).transpose()
    };
    let programs = Programs { leno: absolute(&run.leno)?, envoy: absolute(&run.envoy)? };
    let peers = peer::peers(&run.peers, &programs);
    let settings = Settings {
        cores,
        rounds: run.rounds.into(),
        phase: Duration::from_secs(run.seconds.into()),
        rate: run.rate,
        programs,
    };
    let mut bench = Bench::new(run.suite, settings, peers, command_line(run))?;
    run.suite.run(&mut bench)?;
    let report = &bench.report;
    let text = match run.summary {
        true => report::table::summary(report),
        false => report::table::markdown(report),
    };
    println!("{text}");
    if let Some(path) = &run.json {
        write(path, &report.to_json()?)?;
    }
    if let Some(path) = &run.svg {
        write(path, &report::svg::plot(report))?;
    }
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that makes the report again, without this machine's paths.
fn command_line(run: &Run) -> String {
    let peers: Vec<String> =
        run.peers.iter().map(|peer| format!("{peer:?}").to_lowercase()).collect();
    let mut command = format!(
        "cargo run --release -p leno-bench -- {} --peers {} --rounds {} --seconds {}",
        run.suite.name(),
        peers.join(","),
        run.rounds,
        run.seconds
    );
    if let Some(rate) = run.rate {
        command += &format!(" --rate {rate}");
    }
    if let Some(nice) = run.nice {
        command += &format!(" --nice {nice}");
    }
    command
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
