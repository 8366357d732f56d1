//! Whether a caller asks for more than the port it has reached takes from it. After authentication and authorization:
//! who may not call uses nothing up, and a caller's identity is proven when it is counted.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Request, StatusCode};

use super::{exchange::Exchange, worker::Shared};
use crate::{
    error::{Error, Flag},
    filter::rate_limit::{self, Exceeded, Facts, Standing, headers},
    snapshot::InboundPort,
};

/// How often figures of limits are brought up to date.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// Shows how many keys the limits have, for ever.
pub async fn show(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SHOWN_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let figures = &shared.families.resilience.limiting;
    loop {
        ticks.tick().await;
        for (id, held) in &shared.published.load().inbound.limits {
            if held.limit.model.by.is_empty() {
                continue;
            }
            let (keys, forgotten) = held.limit.counter.sizes();
            let labels = [&*id.service.to_string(), &*id.policy.to_string(), &*id.name];
            let number = i64::try_from(keys).unwrap_or(i64::MAX);
            figures.keys.with_label_values(&labels).set(number);
            let number = i64::try_from(forgotten).unwrap_or(i64::MAX);
            figures.forgotten.with_label_values(&labels).set(number);
        }
    }
}

/// Takes the request from all limits of `port` that apply to it.
pub(super) fn check<B>(
    exchange: &mut Exchange,
    port: &InboundPort,
    request: &Request<B>,
) -> Result<(), Error> {
    if port.limits.is_empty() {
        return Ok(());
    }
    let secured = exchange.downstream.secured.clone();
    let facts = Facts {
        method: request.method(),
        path: request.uri().path(),
        headers: request.headers(),
        caller: secured.as_deref().map(|secured| &*secured.id),
        source: exchange.downstream.address.ip().to_canonical(),
    };
    let now = exchange.worker.shared.now();
    let mut tables = exchange.worker.limits.borrow_mut();
    let taken = rate_limit::take(&port.limits, &facts, now, &mut tables);
    drop(tables);
    match taken {
        Ok(standing) => {
            exchange.standing = standing.map(Box::new);
            Ok(())
        }
        Err(Exceeded { limit, wait, standing }) => {
            exchange.standing = Some(Box::new(standing));
            let (policy, name) = (&*limit.policy, &*limit.model.name);
            let limited = &exchange.worker.shared.families.resilience.limiting.limited;
            limit.refused.get_or_init(|| limited.with_label_values(&[policy, name])).inc();
            // The model lets only error statuses stand there.
            let status =
                StatusCode::from_u16(limit.model.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
            let detail = format!("RateLimitPolicy {policy}: over the limit `{name}`");
            let mut error = Error::downstream(status, Flag::RL, detail);
            error.retry_after = Some(wait);
            Err(error)
        }
    }
}

/// Tells the caller how it stands with its limits, beside what the application may say of its own.
pub(super) fn tell(standing: Option<&Standing>, headers: &mut HeaderMap) {
    let Some(Standing { policy, limit }) = standing else { return };
    for (name, value) in [(headers::POLICY, policy), (headers::LIMIT, limit)] {
        if let Some(value) = value {
            headers.append(name, value.clone());
        }
    }
}
