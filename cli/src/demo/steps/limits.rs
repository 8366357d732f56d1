//! What some customers get instead of what they want, by policy.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{LIVE_LIMIT, LOOK, Voice, apply, check_no_failure};
use crate::demo::{
    Error,
    mesh::Mesh,
    observation::{Customer, Observation},
    resources::{FAULT, GREEDY, single},
};

/// One after the other, from one customer.
const ORDERS: usize = 8;
/// Instances of order and order-v2; each counts for itself.
const INSTANCES: usize = 3;
const POLL: Duration = Duration::from_millis(20);

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("Limits and faults, by policy")?;
    let (before, begun) = (customer.snapshot(), Instant::now());
    put(mesh, GREEDY).await?;
    greedy(mesh, narrator).await?;
    put(mesh, FAULT).await?;
    faulty(mesh, narrator).await?;
    // The two take a moment: long enough for all that was under way to be answered, and for orders to speak of.
    customer.observe(LOOK / 4).await;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    check_no_failure(narrator, &seen, " of all other customers")
}

async fn put(mesh: &Mesh, text: &str) -> Result<(), Error> {
    let manifest = single("policy.yaml", text)
        .ok_or_else(|| Error::Unexpected("the policy is not valid".to_owned()))?;
    apply(mesh, &manifest).await.map(drop)
}

/// Somebody orders more than is allowed.
async fn greedy(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let customer = [("x-customer", "greedy")];
    until(mesh, &customer, 429).await?;
    let (mut taken, mut refused, mut told) = (0, 0, None);
    for _ in 0..ORDERS {
        let answer = mesh.answer(&customer).await?;
        match answer.status().as_u16() {
            429 => refused += 1,
            _ => taken += 1,
        }
        let field = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let fields = field("ratelimit").zip(field("retry-after"));
        told = fields.filter(|_| answer.status() == 429).or(told);
    }
    let (limit, later) = told.clone().unwrap_or_default();
    narrator.say(&format!(
        "one order a minute at each of {INSTANCES} instances: of {ORDERS} orders more, {refused} are refused with 429"
    ))?;
    narrator.say(&format!("    RateLimit: {limit}    Retry-After: {later}"))?;
    let limited = refused > 0 && taken <= INSTANCES && told.is_some();
    narrator.check(limited, "who asks too often is refused, and told when to come back")?;
    Ok(())
}

/// Somebody asks for a failure.
async fn faulty(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let test = [("x-test", "fail")];
    until(mesh, &test, 504).await?;
    let (with, _) = mesh.order(&test).await?;
    let (without, _) = mesh.order(&[]).await?;
    let what =
        format!("orders that ask for it fail on purpose ({with}), others do not ({without})");
    narrator.check(with == 504 && without < 300, &what)?;
    Ok(())
}

/// Orders until the policy is there.
async fn until(mesh: &Mesh, headers: &[(&str, &str)], status: u16) -> Result<(), Error> {
    let begun = Instant::now();
    while mesh.order(headers).await?.0 != status {
        if begun.elapsed() > LIVE_LIMIT {
            let message = format!("no order was answered with {status} within {LIVE_LIMIT:?}");
            return Err(Error::Unexpected(message));
        }
        sleep(POLL).await;
    }
    Ok(())
}
