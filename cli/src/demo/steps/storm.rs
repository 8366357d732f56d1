//! Many changes in a row, under traffic.

use std::time::Instant;

use super::{LIVE_LIMIT, Voice, apply, canary, check_no_failure};
use crate::demo::{
    Error,
    mesh::Mesh,
    narrator::took,
    observation::{Customer, Observation},
    resources::{self, single, weight},
};

const CHANGES: u8 = 200;

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step(&format!("{CHANGES} changes of the route as fast as they go"))?;
    let before = customer.snapshot();
    let begun = Instant::now();
    let mut last = 0;
    for number in 0..CHANGES {
        // Each differs from the one before it: 0 to 100, then again.
        last = number % 101;
        let manifest = single("canary.yaml", &resources::canary(last))
            .ok_or_else(|| Error::Unexpected("the canary's route is not valid".to_owned()))?;
        apply(mesh, &manifest).await?;
    }
    let applied = begun.elapsed();
    let wanted = Some(u64::from(last));
    let holds = |dump: &_| weight(dump, canary::ROUTE, canary::NEWER) == wanted;
    let behind = Instant::now();
    let lag = mesh.live(behind, LIVE_LIMIT, holds).await?;
    // Those under way belong to it.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    let each = took(applied / u32::from(CHANGES));
    narrator.say(&format!(
        "{CHANGES} changes stored in {} ({each} each); the last was live {} later",
        took(applied),
        took(lag)
    ))?;
    check_no_failure(narrator, &seen, " meanwhile")
}
