//! The control plane is killed, and comes back.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Voice, apply, canary, check_no_failure, is_live, registered, status_until};
use crate::{
    demo::{
        Error,
        mesh::{Mesh, NAMESPACE, PLANS, replace_control_plane},
        narrator::took,
        observation::{Customer, Observation},
        process::Processes,
        resources::{self, single, weight},
    },
    status::condition,
};

const GONE: Duration = Duration::from_secs(1);
/// The sidecars come back by themselves, waiting longer with each attempt that fails.
const BACK_LIMIT: Duration = Duration::from_mins(1);
const SHARE: u8 = 50;

pub async fn run(
    directory: &Path,
    mesh: &Mesh,
    customer: &Customer,
    processes: &mut Processes,
    narrator: &mut Voice,
) -> Result<(), Error> {
    narrator.step("The control plane is killed (SIGKILL), and comes back")?;
    let before = customer.snapshot();
    let begun = Instant::now();
    let resources = count(mesh).await?;
    let manifest = single("canary.yaml", &resources::canary(SHARE))
        .ok_or_else(|| Error::Unexpected("the canary's route is not valid".to_owned()))?;
    let proxies = live_on(&status_until(mesh, &manifest, is_live).await?);
    replace_control_plane(processes, directory, mesh, GONE).await?;
    let kept = count(mesh).await?;
    let what = format!("{kept} of {resources} resources are still there after {}", took(GONE));
    narrator.check(kept == resources, &what)?;

    let back = Instant::now();
    apply(mesh, &manifest).await?;
    let wanted = Some(u64::from(SHARE));
    let holds = |dump: &_| weight(dump, canary::ROUTE, canary::NEWER) == wanted;
    let live = mesh.live(back, BACK_LIMIT, holds).await?;
    narrator.say(&format!("the next change is live {} after it was made", took(live)))?;
    check_workloads(mesh, narrator).await?;
    let object = status_until(mesh, &manifest, |object| live_on(object) == proxies).await?;
    let (live, elapsed) = (live_on(&object).unwrap_or(0), took(back.elapsed()));
    let what = format!("it is live on all {live} proxies that use the route, {elapsed} later");
    narrator.check(live_on(&object) == proxies, &what)?;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    check_no_failure(narrator, &seen, " meanwhile")
}

async fn check_workloads(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let all = PLANS.len();
    let workloads = registered(mesh, all).await?.len();
    narrator.check(workloads == all, &format!("{workloads} of {all} workloads are registered"))?;
    Ok(())
}

/// On how many proxies an object is live as it is now.
fn live_on(object: &Value) -> Option<u64> {
    condition(object, "Live").and_then(|_| object.pointer("/status/proxies/live")?.as_u64())
}

/// Everything that people have applied.
async fn count(mesh: &Mesh) -> Result<usize, Error> {
    let mut count = 0;
    for kind in leno_api::KINDS.iter().filter(|kind| kind.kind != "Workload") {
        count += mesh.client.list(kind, Some(NAMESPACE)).await?.items.len();
    }
    Ok(count)
}
