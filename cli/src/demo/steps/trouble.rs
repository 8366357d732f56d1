//! Instances that fail or are slow, as the numbers show them.

use std::time::Duration;

use serde_json::json;

use super::{LOOK, Voice, apply, check_no_failure, is_live, latencies, status_until};
use crate::demo::{
    Error,
    mesh::{Mesh, tell},
    narrator::took,
    observation::{Customer, Observation},
    resources::{single, stock},
    share::{is_plausible, percent},
};

/// Well within what may be tried again: a fifth of the calls.
const FAIL_PERCENT: u32 = 10;
/// Of orders that may fail although what failed is tried again; three tries fail once in a thousand, four once in ten
/// thousand.
const MISSED_PERCENT: u64 = 1;
const DELAY: Duration = Duration::from_millis(80);
/// Of which as many fail as chance wants: from fewer nothing can be told.
const ORDERS: u64 = 300;

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("An instance in trouble")?;
    failing(mesh, customer, narrator).await?;
    slow(mesh, customer, narrator).await
}

async fn failing(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    let user = mesh.app("user-1")?.control;
    tell(user, &json!({"failPercent": FAIL_PERCENT})).await?;
    customer.settle().await;
    let seen = customer.observe(LOOK).await;
    let (failed, all) = (seen.seen.failures(), seen.answered());
    narrator.say(&format!(
        "user-1 is told to fail {FAIL_PERCENT} % of its calls: {} of {all} orders fail ({})",
        percent(failed, all),
        seen.reasons()
    ))?;
    let blamed = seen.seen.failed.keys().all(|reason| reason.ends_with(" user"));
    let expected = is_plausible(f64::from(FAIL_PERCENT) / 100.0, failed, all);
    narrator.check(expected && blamed, "as many orders fail, and user is to blame for each")?;
    hidden(mesh, customer, narrator).await?;
    tell(user, &json!({"failPercent": 0})).await?;
    customer.settle().await;
    let seen = customer.observe(LOOK / 2).await;
    check_no_failure(narrator, &seen, " after it was told to stop")
}

/// The same trouble, while its callers try again.
async fn hidden(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    change(mesh, true).await?;
    customer.settle().await;
    let seen = customer.observe_at_least(LOOK, ORDERS).await;
    change(mesh, false).await?;
    let (failed, all) = (seen.seen.failures(), seen.answered());
    narrator.say(&format!(
        "still so, but a TrafficPolicy has its callers try again: {} of {all} orders fail",
        percent(failed, all)
    ))?;
    let few = failed * 100 <= all * MISSED_PERCENT && all > 0;
    narrator.check(few, "retries hide it: a request that may be repeated goes out again")?;
    Ok(())
}

/// Has callers of user and product try again, or not any more.
async fn change(mesh: &Mesh, retry: bool) -> Result<(), Error> {
    let manifest = single("stock.yaml", &stock(retry))
        .ok_or_else(|| Error::Unexpected("the policy is not valid".to_owned()))?;
    apply(mesh, &manifest).await?;
    let object = status_until(mesh, &manifest, is_live).await?;
    match is_live(&object) {
        true => Ok(()),
        false => Err(Error::Unexpected(format!("the policy is not live: {object}"))),
    }
}

async fn slow(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    let product = mesh.app("product-1")?.control;
    let before = customer.observe(LOOK / 2).await;
    tell(product, &json!({"delayMs": DELAY.as_millis()})).await?;
    customer.settle().await;
    let during = customer.observe(LOOK).await;
    tell(product, &json!({"delayMs": 0})).await?;
    narrator.say(&format!("product-1 is told to take {} for each call:", took(DELAY)))?;
    narrator.say(&format!("    before  {}", latencies(&before)))?;
    narrator.say(&format!("    now     {}", latencies(&during)))?;
    // What an order looks up there its sidecar has.
    let slower = during.latencies().0 >= DELAY;
    narrator.check(slower, "each order, which reserves there, takes that much longer")?;
    customer.settle().await;
    let after = recovered(customer, &during).await;
    narrator.say(&format!("    after   {}", latencies(&after)))?;
    narrator.check(is_faster(&after, &during), "and that much less once it stops")?;
    check_no_failure(narrator, &after, " in the end")
}

/// Watches until orders are fast again: a machine that is busy otherwise may have to catch up first.
async fn recovered(customer: &Customer, during: &Observation) -> Observation {
    const TRIES: u32 = 30;
    let mut seen = customer.observe(LOOK / 2).await;
    for _ in 1..TRIES {
        if is_faster(&seen, during) {
            break;
        }
        seen = customer.observe(LOOK / 2).await;
    }
    seen
}

/// Whether calls to product no longer take the time they were told to take. How long an order takes besides is the
/// machine's affair.
fn is_faster(seen: &Observation, during: &Observation) -> bool {
    let (seen, during) = (seen.latencies().0, during.latencies().0);
    seen < DELAY || seen + DELAY / 2 < during
}
