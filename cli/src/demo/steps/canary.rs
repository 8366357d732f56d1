//! A canary: the newer version of order gets more and more of the traffic.

use std::time::{Duration, Instant};

use super::{LIVE_LIMIT, LOOK, Voice, apply, check_no_failure, is_live, status_until};
use crate::{
    demo::{
        Error,
        mesh::Mesh,
        narrator::took,
        observation::Customer,
        resources::{canary, single, weight},
        share::{bar, is_plausible, percent, plausible},
    },
    status::condition,
};

const STEPS: [u8; 4] = [0, 10, 50, 100];
pub const ROUTE: &str = "HTTPRoute shop/order";
pub const NEWER: &str = "shop/order-v2:80";

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("A canary: order v2 takes 0, 10, 50, 100 % of the orders")?;
    let mut slowest = Duration::ZERO;
    for share in STEPS {
        slowest = slowest.max(step(share, mesh, customer, narrator).await?);
    }
    let what = format!("every change was live in the customer's sidecar within {}", took(slowest));
    narrator.check(slowest < LIVE_LIMIT, &what)?;
    check_status(mesh, narrator).await
}

/// How long the change took from the request to the API until the customer's sidecar had it.
async fn step(
    share: u8,
    mesh: &Mesh,
    customer: &Customer,
    narrator: &mut Voice,
) -> Result<Duration, Error> {
    let before = customer.snapshot();
    let begun = Instant::now();
    let stored = change(mesh, share).await?;
    let wanted = Some(u64::from(share));
    let live = mesh.live(begun, LIVE_LIMIT, |dump| weight(dump, ROUTE, NEWER) == wanted).await?;
    customer.settle().await;
    let mut seen = customer.observe(LOOK).await;
    let (newer, all) = seen.orders_by_version("v2");
    narrator.say(&format!(
        "weight {share:>3} %  {}  {:>7} of {all} orders went to v2   stored {:>7}, live {:>7}",
        bar(newer, all),
        percent(newer, all),
        took(stored),
        took(live)
    ))?;
    let (low, high) = plausible(f64::from(share) / 100.0, all);
    let what = format!(
        "as weighed: chance allows {:.0} to {:.0} %",
        (low * 100.0).floor(),
        (high * 100.0).ceil()
    );
    narrator.check(is_plausible(f64::from(share) / 100.0, newer, all), &what)?;
    // The change itself belongs to what must not fail.
    seen.seen = customer.snapshot().since(&before);
    check_no_failure(narrator, &seen, " while and after it changed")?;
    Ok(live)
}

async fn change(mesh: &Mesh, share: u8) -> Result<Duration, Error> {
    let manifest = single("canary.yaml", &canary(share))
        .ok_or_else(|| Error::Unexpected("the canary's route is not valid".to_owned()))?;
    apply(mesh, &manifest).await
}

async fn check_status(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let manifest = single("canary.yaml", &canary(100))
        .ok_or_else(|| Error::Unexpected("the canary's route is not valid".to_owned()))?;
    let object = status_until(mesh, &manifest, is_live).await?;
    let message = condition(&object, "Live").map_or("it says nothing", |found| found.message);
    narrator.check(is_live(&object), &format!("the route's status: {message}"))?;
    Ok(())
}
