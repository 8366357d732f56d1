//! How timeouts, retries and hedging of a service are shown.

use std::time::Duration;

use leno_api::model::traffic_policy::HedgeAfter;
use serde_json::{Value, json};

use crate::cluster::{Cluster, breaker::Resource};

/// What the service's policy says of timeouts; a limit that there is not is `null`.
pub(super) fn timeouts(cluster: &Cluster) -> Value {
    let settings = &cluster.settings;
    json!({
        "connectMs": millis(settings.connect_timeout), "requestMs": millis(settings.request_timeout),
        "attemptMs": millis(settings.attempt_timeout), "idleMs": millis(settings.idle_timeout),
    })
}

/// What the service's policy says of retries, and how many are under way.
pub(super) fn retries(cluster: &Cluster) -> Value {
    let (settings, retry) = (&cluster.settings, &cluster.settings.retry);
    let mut on = vec!["connect-failure", "refused-stream"];
    let named = [
        (retry.on.reset, "reset"),
        (retry.on.server_error, "5xx"),
        (retry.on.gateway_error, "gateway-error"),
        (retry.on.retriable_4xx, "retriable-4xx"),
        (!retry.statuses.is_empty(), "retriable-status"),
    ];
    on.extend(named.iter().filter(|(named, _)| *named).map(|(_, name)| *name));
    let budget = settings.retry_budget;
    json!({
        "underWay": cluster.state.limits.in_use(Resource::Retries),
        "most": settings.max_retries,
        "attempts": retry.attempts,
        "on": if retry.attempts == 0 { Vec::new() } else { on },
        "statuses": retry.statuses,
        "grpc": retry.grpc.iter().map(|code| leno_api::model::traffic_policy::grpc_number(*code)).collect::<Vec<_>>(),
        "replayBuffer": retry.replay_buffer,
        "budget": {"percent": budget.percent, "minimumPerSecond": budget.minimum_per_second},
        "hedging": settings.hedging.map(|hedging| json!({
            "attempts": hedging.attempts,
            "after": match hedging.after {
                HedgeAfter::Delay(after) => format!("{after:?}"),
                HedgeAfter::P95 => "p95".to_owned(),
            },
        })),
    })
}

/// The same as the ends of Envoy-like lines.
pub(super) fn lines(cluster: &Cluster) -> [String; 2] {
    [
        format!("default_priority::max_retries::{}", cluster.settings.max_retries),
        format!("rq_retry_active::{}", cluster.state.limits.in_use(Resource::Retries)),
    ]
}

fn millis(time: Duration) -> Option<u64> {
    (!time.is_zero()).then(|| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
