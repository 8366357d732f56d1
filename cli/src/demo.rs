//! `leno demo`: a mesh around the example shop, and what it does, shown on real traffic.
//!
//! ```text
//! customer ─▶ sidecar ═▶ sidecar ─▶ order-1, order-2, order-v2-1
//!                                      ╰─▶ sidecar ═▶ sidecar ─▶ user-1 · product-1 · notification-1
//! ```
//!
//! Every box is a process: this program again, as control plane, sidecar or service.
//!
//! - `process.rs` starts them and sees to it that none is left behind
//! - `mesh.rs` puts them together; `resources.rs` has the configuration they get, `modules.rs` the plugins
//! - `steps/` is the story; `observation.rs` what it sees of the traffic, `calls.rs` and `metrics.rs` of the
//!   sidecars' metrics, `share.rs` which shares chance allows
//! - `narrator.rs` tells it, and keeps count of what was not as it should be

use std::{io, num::NonZeroU32, path::PathBuf, process::ExitCode, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

mod calls;
mod mesh;
mod metrics;
mod modules;
mod narrator;
mod observation;
pub mod process;
mod resources;
mod share;
mod steps;

use modules::Modules;
use narrator::Narrator;

use crate::{api_client, error::Error as CommandError, http_client};

/// The whole of `--check`: what hangs must not hang for ever.
const CHECK_LIMIT: Duration = Duration::from_mins(15);
const INTERRUPTED: u8 = 130;

/// Run the example shop in a mesh and watch: traffic, identities, a cache, a canary, mistakes, faults, a new root
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Assert every step, then stop: exits 0 when all was as it should be
    #[arg(long)]
    check: bool,

    /// Orders per second [default: as many as the machine carries easily, at most 200]
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,

    /// Leave out the plugins, for which cargo has to build them first
    #[arg(long)]
    no_plugins: bool,

    /// Keep the directory with data and logs (kept anyway when something went wrong)
    #[arg(long, overrides_with = "no_keep")]
    keep: bool,

    /// Remove the directory with data and logs, whatever happened
    #[arg(long)]
    no_keep: bool,
}

/// Why the demonstration cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Api(#[from] api_client::Error),
    #[error(transparent)]
    Http(#[from] http_client::Error),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Unexpected(String),
}

pub fn run(args: &DemoArgs) -> Result<ExitCode, CommandError> {
    let place = Place::new()?;
    let modules = match args.no_plugins {
        true => Modules::LeftOut("as asked for".to_owned()),
        false => Modules::build(place.path()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    // Children die with the thread that started them: this one, which stays to the end.
    runtime.map_err(CommandError::Runtime)?.block_on(demonstrate(args, place, &modules))
}

enum Ending {
    Told(Result<(), Error>),
    TooLate,
    Interrupted,
}

async fn demonstrate(
    args: &DemoArgs,
    place: Place,
    modules: &Modules,
) -> Result<ExitCode, CommandError> {
    let mut narrator = Narrator::new(io::stdout());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut processes = process::Processes::new(place.path())?;
    let story = steps::tell(args, modules, place.path(), &mut processes, &mut narrator);
    let story = async {
        match args.check {
            true => timeout(CHECK_LIMIT, story).await.map_or(Ending::TooLate, Ending::Told),
            false => Ending::Told(story.await),
        }
    };
    // Not biased: whichever comes first.
    let ending = tokio::select! {
        ending = story => ending,
        _ = interrupt.recv() => Ending::Interrupted,
        _ = terminate.recv() => Ending::Interrupted,
    };
    let stopping = processes.stop().await;
    let code = conclude(args, &ending, &mut narrator)?;
    let went_well = code == ExitCode::SUCCESS || matches!(ending, Ending::Interrupted);
    if let Some(kept) = place.leave(args.keep || !args.no_keep && !went_well) {
        narrator.remark(&format!("data and logs are kept in {}", kept.display()))?;
    }
    stopping.map_err(|error| CommandError::Usage(error.to_string()))?;
    Ok(code)
}

fn conclude(
    args: &DemoArgs,
    ending: &Ending,
    narrator: &mut Narrator<io::Stdout>,
) -> Result<ExitCode, CommandError> {
    match ending {
        Ending::Interrupted => {
            narrator.remark("stopped")?;
            // Somebody who watches ends the demonstration so; a check that is cut short has failed.
            Ok(if args.check { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
        }
        Ending::TooLate => {
            eprintln!("error: the demonstration did not end within {CHECK_LIMIT:?}");
            Ok(ExitCode::FAILURE)
        }
        Ending::Told(Err(error)) => {
            eprintln!("error: {error}");
            Ok(ExitCode::FAILURE)
        }
        Ending::Told(Ok(())) => {
            let failed = narrator.conclude()?;
            Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// A temporary directory for data and logs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> io::Result<Self> {
        tempfile::Builder::new().prefix("leno-demo-").tempdir().map(Self)
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    fn leave(self, keep: bool) -> Option<PathBuf> {
        // Without `keep` the directory goes with the value.
        keep.then(|| self.0.keep())
    }
}
