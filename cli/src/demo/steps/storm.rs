//! Many changes in a row, under traffic.

use std::time::{Duration, Instant};

use super::{LIVE_LIMIT, Voice, apply, canary, check_no_failure};
use crate::demo::{
    Error,
    mesh::Mesh,
    narrator::took,
    observation::{Customer, Observation},
    resources::{self, single, weight},
};

const CHANGES: u32 = 200;
/// Fewer where the machine is slow: it is to be watched.
const LIMIT: Duration = Duration::from_secs(4);

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("Changes of the route as fast as they go")?;
    let before = customer.snapshot();
    let begun = Instant::now();
    let (mut changes, mut last) = (0, 0);
    while changes < CHANGES && begun.elapsed() < LIMIT {
        // Each differs from the one before it: 0 to 100, then again.
        last = u8::try_from(changes % 101).unwrap_or(0);
        let manifest = single("canary.yaml", &resources::canary(last))
            .ok_or_else(|| Error::Unexpected("the canary's route is not valid".to_owned()))?;
        apply(mesh, &manifest).await?;
        changes += 1;
    }
    let applied = begun.elapsed();
    let wanted = Some(u64::from(last));
    let holds = |dump: &_| weight(dump, canary::ROUTE, canary::NEWER) == wanted;
    let behind = Instant::now();
    let lag = mesh.live(behind, LIVE_LIMIT, holds).await?;
    // Requests that were under way at the last change belong to it.
    customer.settle().await;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    let each = took(applied / changes.max(1));
    narrator.say(&format!(
        "{changes} changes stored in {} ({each} each); the last was live {} later",
        took(applied),
        took(lag)
    ))?;
    check_no_failure(narrator, &seen, " meanwhile")
}
