//! The story, step by step. Each step says what it does, shows what came of it, and checks that it is right.

use std::{
    io::Stdout,
    path::Path,
    time::{Duration, Instant},
};

use leno_api::kind_of;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    DemoArgs, Error,
    mesh::{Mesh, NAMESPACE},
    modules::Modules,
    narrator::{Narrator, took},
    observation::{Customer, Observation},
    process::Processes,
};
use crate::{api_client::ApplyOptions, files::Manifest, status::condition};

mod canary;
mod catalogue;
mod conversation;
mod crash;
mod identity;
mod limits;
mod plugins;
mod rejection;
mod start;
mod stay;
mod storm;
mod trouble;

/// Long enough for a few hundred orders, short enough to watch.
const LOOK: Duration = Duration::from_millis(2_200);
/// From a change until it must have arrived; it takes milliseconds unless something is wrong, or the machine is busy.
const LIVE_LIMIT: Duration = Duration::from_mins(1);

type Voice = Narrator<Stdout>;

pub async fn tell(
    args: &DemoArgs,
    modules: &Modules,
    directory: &Path,
    processes: &mut Processes,
    narrator: &mut Voice,
) -> Result<(), Error> {
    let mesh = start::run(directory, processes, narrator).await?;
    let customer = match args.rate {
        Some(rate) => Customer::start(mesh.customer, rate),
        None => Customer::start_easily(mesh.customer).await,
    };
    conversation::run(&mesh, &customer, narrator).await?;
    identity::prove(&mesh, narrator).await?;
    catalogue::run(&mesh, &customer, narrator).await?;
    processes.check_alive()?;
    canary::run(&mesh, &customer, narrator).await?;
    storm::run(&mesh, &customer, narrator).await?;
    processes.check_alive()?;
    rejection::run(&mesh, &customer, narrator).await?;
    trouble::run(&mesh, &customer, narrator).await?;
    limits::run(&mesh, &customer, narrator).await?;
    plugins::run(modules, &mesh, &customer, narrator).await?;
    processes.check_alive()?;
    identity::replace(&mesh, &customer, narrator).await?;
    processes.check_alive()?;
    crash::run(directory, &mesh, &customer, processes, narrator).await?;
    processes.check_alive()?;
    if !args.check {
        stay::run(directory, &mesh, &customer, processes, narrator).await?;
    }
    Ok(())
}

/// Applies `manifest` as `leno apply` does; how long until the control plane had stored it.
async fn apply(mesh: &Mesh, manifest: &Manifest) -> Result<Duration, Error> {
    let begun = Instant::now();
    let (kind, name) = (manifest.resource.kind, manifest.resource.name());
    // The demonstration is the only one who writes here, except the person who watches.
    let options = ApplyOptions { dry_run: false, force: true };
    mesh.client.apply(kind, &name, &manifest.body(), options).await?;
    Ok(begun.elapsed())
}

/// Reads an object of the shop until `holds`, or until it should long have; the last state either way.
async fn status_until(
    mesh: &Mesh,
    manifest: &Manifest,
    holds: impl Fn(&Value) -> bool,
) -> Result<Value, Error> {
    const POLL: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    let (kind, name) = (manifest.resource.kind, manifest.resource.name());
    loop {
        let object = mesh.client.get(kind, &name).await?.unwrap_or_default();
        if holds(&object) || begun.elapsed() > LIVE_LIMIT {
            return Ok(object);
        }
        sleep(POLL).await;
    }
}

/// The workloads that the control plane knows, once there are so many or long should be.
async fn registered(mesh: &Mesh, count: usize) -> Result<Vec<Value>, Error> {
    const POLL: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        let workloads = mesh.client.list(kind("workloads")?, Some(NAMESPACE)).await?.items;
        if workloads.len() == count || begun.elapsed() > LIVE_LIMIT {
            return Ok(workloads);
        }
        sleep(POLL).await;
    }
}

/// Whether every proxy that uses an object has it as it is now.
fn is_live(object: &Value) -> bool {
    condition(object, "Live").is_some_and(|found| found.status == "True")
}

/// Says that no order failed, or which did.
fn check_no_failure(narrator: &mut Voice, seen: &Observation, when: &str) -> Result<(), Error> {
    let (failed, answered) = (seen.seen.failures(), seen.answered());
    let what = match failed {
        0 => format!("0 of {answered} orders failed{when}"),
        _ => format!(
            "{failed} of {answered} orders failed{when}: {}; the last: {}",
            seen.reasons(),
            seen.seen.last_failure.as_deref().unwrap_or("-")
        ),
    };
    narrator.check(failed == 0 && answered > 0, &what)?;
    Ok(())
}

/// `p50 3.1 ms, p99 7.4 ms`.
fn latencies(seen: &Observation) -> String {
    let (half, most) = seen.latencies();
    format!("p50 {}, p99 {}", took(half), took(most))
}

fn kind(name: &'static str) -> Result<&'static leno_api::KindInfo, Error> {
    kind_of(name).ok_or_else(|| Error::Unexpected(format!("there is no kind {name}")))
}
