//! Failing on purpose: the delays and aborts of a `FaultPolicy`, at the callers of a service.
//!
//! Once for each exchange, when it is known to which service it goes and before an endpoint is picked: neither retries
//! nor the breaker nor outlier detection get to see an injected fault, nor do copies (an aborted request is not mirrored).
//! Conditions are about the request as it is to be sent, after the changes of its route. A delay comes before all
//! timeouts. It ends when the caller goes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use leno_api::model::fault_policy::{Abort, FaultPolicy, FaultRule};

use super::exchange::Exchange;
use crate::{
    cluster::Cluster,
    error::{Error, Flag},
};

/// Exchanges that are delayed at the same time; further ones are not. Each holds its connection and its head: at
/// 64 KiB a head, 640 MB at the very most, and far less than what the connections may take anyway.
pub const MAX_DELAYED: usize = 10_000;

/// Does to the exchange what the policy for `cluster` says, if there is one.
///
/// # Errors
/// The fault itself, where it is an abort.
pub(super) async fn inject<B>(
    exchange: &mut Exchange,
    cluster: &Cluster,
    request: &Request<B>,
) -> Result<(), Error> {
    if exchange.snapshot.faults.is_empty() {
        return Ok(());
    }
    let Some(policy) = exchange.snapshot.faults.get(&cluster.key).cloned() else { return Ok(()) };
    let rule = policy.rule(request.method(), request.uri().path(), request.headers());
    let Some(rule) = rule.filter(|rule| rule.share.takes(exchange.worker.random())) else {
        return Ok(());
    };
    let FaultRule { delay, abort, .. } = rule;
    if let Some(delay) = delay {
        // Boxed: a timer would make every exchange larger.
        Box::pin(wait(exchange, &policy, *delay)).await;
    }
    match abort {
        None => Ok(()),
        Some(abort) => {
            exchange.count_for(cluster);
            count(exchange, &policy, "abort");
            Err(failure(&policy, *abort))
        }
    }
}

async fn wait(exchange: &mut Exchange, policy: &FaultPolicy, delay: Duration) {
    let shared = exchange.worker.shared.clone();
    let Some(_delayed) = Delayed::begin(&shared.delayed) else {
        let skipped = &shared.families.resilience.limiting.skipped;
        skipped.with_label_values(&[&policy.name.to_string()]).inc();
        return;
    };
    count(exchange, policy, "delay");
    exchange.note(|record| record.flag = Flag::DI);
    tokio::time::sleep(delay).await;
}

fn count(exchange: &Exchange, policy: &FaultPolicy, kind: &str) {
    let injected = &exchange.worker.shared.families.resilience.limiting.injected;
    injected.with_label_values(&[&policy.name.to_string(), kind]).inc();
}

fn failure(policy: &FaultPolicy, abort: Abort) -> Error {
    let detail = format!("FaultPolicy {}: aborted on purpose", policy.name);
    let (status, grpc) = match abort {
        Abort::Status(status) => (status, None),
        Abort::Grpc(status) => (200, u8::try_from(status).ok()),
    };
    // The model lets no other status stand there.
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut error = Error::ours(status, Flag::FI, detail);
    error.grpc = grpc;
    error
}

/// A delay under way.
struct Delayed(Arc<AtomicUsize>);

impl Delayed {
    /// `None` where there are as many as may be.
    fn begin(count: &Arc<AtomicUsize>) -> Option<Self> {
        let begun = Self(count.clone());
        let before = count.fetch_add(1, Ordering::Relaxed);
        (before < MAX_DELAYED).then_some(begun)
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_bounded_in_number() {
        let count = Arc::default();
        let mut delayed: Vec<_> = (0..MAX_DELAYED).map(|_| Delayed::begin(&count)).collect();
        assert!(delayed.iter().all(Option::is_some));
        assert!((0..3).all(|_| Delayed::begin(&count).is_none()));
        assert_eq!(
            count.load(Ordering::Relaxed),
            MAX_DELAYED,
            "those that were refused are not counted"
        );
        delayed.pop();
        assert!(Delayed::begin(&count).is_some());
    }
}
