use serde_json::json;

use super::*;
use crate::{Invalid, Resource};

fn read_spec(mut spec: Value) -> Result<Settings, Invalid> {
    spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "orders"}]);
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "orders", "namespace": "shop"}, "spec": spec,
    });
    match Resource::from_json(object)?.model {
        Model::TrafficPolicy(policy) => Ok(policy.settings.clone()),
        other => panic!("{other:?}"),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn without_a_word_endpoints_are_ejected_and_there_is_no_breaker() {
    let settings = read_spec(json!({})).unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.balancer, Balancer::PeakEwma { decay: seconds(10) });
    assert!(settings.outlier_detection.enabled && !settings.circuit.is_on());
    let same = json!({"balancer": {"peakEwma": {}}, "breaker": {}, "outlierDetection": {}});
    assert_eq!(read_spec(same).unwrap(), settings);
}

#[test]
fn every_field_is_read() {
    let settings = read_spec(json!({
        "balancer": {"peakEwma": {"decay": "3s"}},
        "breaker": {
            "maxConnections": 10, "maxPending": 20, "maxExchanges": 30,
            "errorRate": {"window": "20s", "minimum": 50, "percent": 60},
            "slowCalls": {"threshold": "2s", "percent": 70},
            "openFor": "1s", "maxOpenFor": "30s", "probes": 7,
        },
        "outlierDetection": {
            "consecutive5xx": 6, "consecutiveGatewayErrors": 7, "consecutiveLocalErrors": 0,
            "successRate": {"minimumHosts": 4, "minimumRequests": 50, "standardDeviations": 2.5},
            "latency": {"factor": 4, "minimumHosts": 6, "minimumRequests": 30},
            "interval": "5s", "baseEjection": "20s", "maxEjection": "10m",
            "maxEjectedPercent": 40, "panicPercent": 30,
        },
    }))
    .unwrap();
    assert_eq!(settings.balancer, Balancer::PeakEwma { decay: seconds(3) });
    let limits = (settings.max_connections, settings.max_pending, settings.max_exchanges);
    assert_eq!(limits, (10, 20, 30));
    let circuit = Circuit {
        window: seconds(20),
        minimum: 50,
        error_percent: Some(60),
        slow_calls: Some(SlowCalls { threshold: seconds(2), percent: 70 }),
        open_for: seconds(1),
        max_open_for: seconds(30),
        probes: 7,
    };
    assert_eq!(settings.circuit, circuit);
    let outliers = OutlierDetection {
        enabled: true,
        consecutive_5xx: Some(6),
        consecutive_gateway_errors: Some(7),
        consecutive_local_errors: None,
        success_rate: Some(SuccessRate {
            minimum_hosts: 4,
            minimum_requests: 50,
            standard_deviations: 2.5,
        }),
        latency: Some(LatencyOutlier { factor: 4.0, minimum_hosts: 6, minimum_requests: 30 }),
        interval: seconds(5),
        base_ejection: seconds(20),
        max_ejection: seconds(600),
        max_ejected_percent: 40,
        panic_percent: 30,
    };
    assert_eq!(settings.outlier_detection, outliers);
    let off =
        json!({"outlierDetection": {"mode": "Disabled", "successRate": {"mode": "Disabled"}}});
    let off = read_spec(off).unwrap().outlier_detection;
    assert!(!off.enabled && off.success_rate.is_none());
}

#[test]
fn the_longest_time_follows_the_first() {
    let settings = read_spec(json!({
        "breaker": {"errorRate": {}, "openFor": "10m"}, "outlierDetection": {"baseEjection": "20m"},
    }))
    .unwrap();
    assert_eq!(settings.circuit.max_open_for, seconds(600));
    assert_eq!(settings.outlier_detection.max_ejection, seconds(1200));
}

#[test]
fn what_is_wrong_is_named() {
    let rows = [
        (json!({"balancer": {}}), "spec.balancer", "exactly one of peakEwma"),
        (
            json!({"balancer": {"peakEwma": {}, "random": {}}}),
            "spec.balancer",
            "exactly one of peakEwma, leastRequest, roundRobin, random",
        ),
        (
            json!({"balancer": {"peakEwma": {"decay": "1ms"}}}),
            "spec.balancer.peakEwma.decay",
            "must be 100ms to 10m",
        ),
        (
            json!({"breaker": {"errorRate": {"percent": 0}}}),
            "spec.breaker.errorRate.percent",
            "must be 1 to 100",
        ),
        (
            json!({"breaker": {"errorRate": {"window": "0s"}}}),
            "spec.breaker.errorRate.window",
            "must be 1s to 1h",
        ),
        (
            json!({"breaker": {"slowCalls": {"threshold": "soon"}}}),
            "spec.breaker.slowCalls.threshold",
            "is not a duration",
        ),
        (
            json!({"breaker": {"errorRate": {}, "openFor": "10s", "maxOpenFor": "5s"}}),
            "spec.breaker.maxOpenFor",
            "must be 10s to 1h",
        ),
        (
            json!({"breaker": {"errorRate": {}, "probes": 101}}),
            "spec.breaker.probes",
            "must be 1 to 100",
        ),
        (
            json!({"breaker": {"openFor": "1s"}}),
            "spec.breaker.openFor",
            "only beside errorRate or slowCalls",
        ),
        (
            json!({"outlierDetection": {"successRate": {"minimumHosts": 2}}}),
            "spec.outlierDetection.successRate.minimumHosts",
            "must be 3 to 10000",
        ),
        (
            json!({"outlierDetection": {"maxEjectedPercent": 0}}),
            "spec.outlierDetection.maxEjectedPercent",
            "must be 1 to 100",
        ),
        (
            json!({"outlierDetection": {"interval": "500ms"}}),
            "spec.outlierDetection.interval",
            "must be 1s to 1h",
        ),
        (
            json!({"outlierDetection": {"latency": {"factor": 1}}}),
            "spec.outlierDetection.latency.factor",
            "must be 1.5 to 1000",
        ),
    ];
    for (spec, path, message) in rows {
        let told = read_spec(spec.clone()).unwrap_err().to_string();
        assert!(told.contains(path) && told.contains(message), "{spec}: {told}");
    }
}

/// What has no effect yet is an unknown field, not a silent one.
#[test]
fn what_is_not_there_yet_is_refused() {
    for (spec, field) in [
        (json!({"retry": {}}), "retry"),
        (json!({"slowStart": {"window": "1s"}}), "slowStart"),
        (json!({"breaker": {"errorRate": {}, "per": "Endpoint"}}), "per"),
        (json!({"balancer": {"ringHash": {}}}), "ringHash"),
    ] {
        let told = read_spec(spec).unwrap_err().to_string();
        assert!(told.contains("unknown field") && told.contains(field), "{told}");
    }
}
