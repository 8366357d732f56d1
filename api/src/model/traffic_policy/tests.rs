use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Invalid, Resource};

/// Every field there is, none at its default.
fn full() -> Value {
    json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "orders"}],
        "balancer": {"ringHash": {"minimumSize": 2048, "hashOn": [
            {"header": {"name": "X-User"}},
            {"cookie": {"name": "Session", "ttl": "1h", "path": "/shop"}},
            {"sourceIp": {}},
            {"query": {"name": "user"}},
        ]}},
        "boundedLoad": {"percent": 150},
        "zones": {"prefer": false, "minimumHealthyPercent": 80},
        "slowStart": {"window": "1m", "minimumPercent": 20},
        "timeouts": {"connect": "2s", "request": "10s", "attempt": "3s", "idle": "5m"},
        "breaker": {
            "maxConnections": 10, "maxPending": 20, "maxExchanges": 30, "maxRetries": 40,
            "errorRate": {"window": "20s", "minimum": 50, "percent": 60},
            "slowCalls": {"threshold": "2s", "percent": 70},
            "openFor": "1s", "maxOpenFor": "30s", "probes": 5, "per": "Endpoint",
        },
        "pool": {"maxIdle": 7, "idleTimeout": "20s"},
        "outlierDetection": {
            "mode": "Enabled", "consecutive5xx": 6, "consecutiveGatewayErrors": 7, "consecutiveLocalErrors": 8,
            "successRate": {"minimumHosts": 3, "minimumRequests": 50, "standardDeviations": 2.5},
            "latency": {"factor": 4, "minimumHosts": 4, "minimumRequests": 30},
            "interval": "5s", "baseEjection": "20s", "maxEjection": "10m",
            "maxEjectedPercent": 40, "panicPercent": 30,
        },
        "retry": {
            "attempts": 3, "on": ["reset", "5xx", "gateway-error", "retriable-4xx", "retriable-status"],
            "statuses": [429, 425, 429], "grpc": ["unavailable", "cancelled"],
            "backoff": {"base": "50ms", "max": "2s"}, "maxRetryAfter": "5s", "idempotencyKey": true,
            "replayBuffer": "1Mi",
        },
        "retryBudget": {"percent": 10, "minimumPerSecond": 5},
        "hedging": {"after": "50ms", "attempts": 2},
        "healthCheck": {
            "http": {"path": "/healthz?full=1", "host": "orders:81", "statuses": [204, 200]},
            "interval": "2s", "timeout": "500ms", "healthy": 3, "unhealthy": 4, "port": 9000,
        },
        "adaptiveConcurrency": {
            "minimum": 8, "maximum": 500, "initial": 30,
            "queue": {"length": 100, "target": "10ms", "interval": "200ms"},
        },
        "priorities": [
            {"header": {"name": "x-tier", "exact": "gold"}, "pathPrefix": "/pay/", "priority": "Critical"},
            {"header": {"name": "x-crawler", "present": {}}, "priority": "Sheddable"},
        ],
    })
}

fn read_spec(spec: Value) -> Result<Settings, Invalid> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    });
    match Resource::from_json(object)?.model {
        Model::TrafficPolicy(policy) => Ok((*policy.settings).clone()),
        other => panic!("{other:?}"),
    }
}

/// A policy that says no more than this.
fn with(fields: Value) -> Result<Settings, Invalid> {
    let mut spec = json!({"targetRefs": full()["targetRefs"]});
    let Value::Object(fields) = fields else { panic!("{fields}") };
    spec.as_object_mut().unwrap().extend(fields);
    read_spec(spec)
}

/// `full` with another value at a pointer; `null` takes it out.
fn changed(pointer: &str, value: Value) -> Value {
    let mut spec = full();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}")) {
        Value::Object(fields) if value.is_null() => drop(fields.remove(field)),
        Value::Object(fields) => drop(fields.insert(field.to_owned(), value)),
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        other => panic!("{other}"),
    }
    spec
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[expect(clippy::too_many_lines, reason = "one line per field")]
#[test]
fn reads_every_field() {
    let settings = read_spec(full()).unwrap();
    let cookie = HashCookie {
        name: "Session".to_owned(),
        ttl: Some(seconds(3600)),
        path: "/shop".to_owned(),
    };
    let keys = vec![
        HashKey::Header(http::HeaderName::from_static("x-user")),
        HashKey::Cookie(cookie),
        HashKey::SourceIp,
        HashKey::Query("user".to_owned()),
    ];
    let header =
        |name: &'static str, value: Option<&str>| crate::model::matching::HeaderCondition {
            name: http::HeaderName::from_static(name),
            value: value.map(str::to_owned),
        };
    let expected = Settings {
        balancer: Balancer::RingHash { keys, minimum_size: 2048 },
        bounded_load: BoundedLoad { percent: 150 },
        zones: Zones { prefer: false, minimum_healthy_percent: 80 },
        slow_start: SlowStart { window: seconds(60), minimum_percent: 20 },
        connect_timeout: seconds(2),
        request_timeout: seconds(10),
        attempt_timeout: seconds(3),
        idle_timeout: seconds(300),
        max_connections: 10,
        max_pending: 20,
        max_exchanges: 30,
        max_retries: 40,
        circuit: Circuit {
            per: Per::Endpoint,
            window: seconds(20),
            minimum: 50,
            error_percent: Some(60),
            slow_calls: Some(SlowCalls { threshold: seconds(2), percent: 70 }),
            open_for: seconds(1),
            max_open_for: seconds(30),
            probes: 5,
        },
        outlier_detection: OutlierDetection {
            enabled: true,
            consecutive_5xx: Some(6),
            consecutive_gateway_errors: Some(7),
            consecutive_local_errors: Some(8),
            success_rate: Some(SuccessRate {
                minimum_hosts: 3,
                minimum_requests: 50,
                standard_deviations: 2.5,
            }),
            latency: Some(LatencyOutlier { factor: 4.0, minimum_hosts: 4, minimum_requests: 30 }),
            interval: seconds(5),
            base_ejection: seconds(20),
            max_ejection: seconds(600),
            max_ejected_percent: 40,
            panic_percent: 30,
        },
        retry: Retry {
            attempts: 3,
            on: Conditions {
                reset: true,
                server_error: true,
                gateway_error: true,
                retriable_4xx: true,
            },
            statuses: vec![425, 429],
            grpc: vec![GrpcCode::Cancelled, GrpcCode::Unavailable],
            backoff: Backoff { base: millis(50), max: seconds(2) },
            max_retry_after: seconds(5),
            idempotency_key: true,
            replay_buffer: 1 << 20,
        },
        retry_budget: RetryBudget { percent: 10, minimum_per_second: 5 },
        hedging: Some(Hedging { after: HedgeAfter::Delay(millis(50)), attempts: 2 }),
        health_check: Some(HealthCheck {
            probe: Probe::Http {
                path: "/healthz?full=1".parse().unwrap(),
                host: Some("orders:81".parse().unwrap()),
                statuses: vec![200, 204],
            },
            interval: seconds(2),
            timeout: millis(500),
            healthy: 3,
            unhealthy: 4,
            port: Some(9000),
        }),
        adaptive_concurrency: Some(AdaptiveConcurrency {
            minimum: 8,
            maximum: 500,
            initial: 30,
            queue: Queue { length: 100, target: millis(10), interval: millis(200) },
            priorities: vec![
                Priority {
                    header: Some(header("x-tier", Some("gold"))),
                    path_prefix: Some("/pay".into()),
                    level: PriorityLevel::Critical,
                },
                Priority {
                    header: Some(header("x-crawler", None)),
                    path_prefix: None,
                    level: PriorityLevel::Sheddable,
                },
            ],
        }),
        max_idle: 7,
        pool_idle_timeout: seconds(20),
    };
    assert_eq!(settings, expected);
}

/// What the design promises to a service that nobody wrote a policy for.
#[test]
fn protects_without_any_policy() {
    let settings = with(json!({})).unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.balancer, Balancer::PeakEwma { decay: seconds(10) });
    assert_eq!(settings.connect_timeout, seconds(1));
    assert!(settings.request_timeout.is_zero() && settings.attempt_timeout.is_zero());
    assert_eq!(settings.retry_budget, RetryBudget { percent: 20, minimum_per_second: 10 });
    assert_eq!((settings.retry.attempts, settings.retry.replay_buffer), (2, 65_536));
    assert_eq!(settings.retry.on, Conditions::default());
    assert!(
        settings.outlier_detection.enabled && settings.outlier_detection.success_rate.is_some()
    );
    assert_eq!(settings.outlier_detection.max_ejected_percent, 50);
    assert!(!settings.circuit.is_on());
    assert!(settings.hedging.is_none() && settings.health_check.is_none());
    // An object that says nothing says what leaving it out says.
    let empty = json!({
        "boundedLoad": null, "zones": {}, "slowStart": {}, "timeouts": {}, "breaker": {}, "pool": {},
        "outlierDetection": {"successRate": {}}, "retry": {"backoff": {}}, "retryBudget": {},
        "balancer": {"peakEwma": {}},
    });
    assert_eq!(with(empty).unwrap(), Settings::default());
}

#[test]
fn each_balancer_has_its_name() {
    for name in ["peakEwma", "leastRequest", "roundRobin", "random"] {
        assert_eq!(with(json!({"balancer": {name: {}}})).unwrap().balancer.name(), name);
    }
    for name in ["ringHash", "maglev"] {
        let balancer = with(json!({"balancer": {name: {"hashOn": [{"sourceIp": {}}]}}}));
        let balancer = balancer.unwrap().balancer;
        assert_eq!((balancer.name(), balancer.keys()), (name, &[HashKey::SourceIp][..]));
    }
    let cookie = json!({"balancer": {"maglev": {"hashOn": [{"cookie": {"name": "s"}}]}}});
    let expected = HashCookie { name: "s".to_owned(), ttl: None, path: "/".to_owned() };
    assert_eq!(with(cookie).unwrap().balancer.keys(), [HashKey::Cookie(expected)]);
    let decay = with(json!({"balancer": {"peakEwma": {"decay": "3s"}}})).unwrap();
    assert_eq!(decay.balancer, Balancer::PeakEwma { decay: seconds(3) });
}

#[test]
fn what_is_on_can_be_switched_off() {
    let spec = json!({
        "retry": {"mode": "Disabled"},
        "outlierDetection": {
            "consecutive5xx": 0, "consecutiveLocalErrors": 0, "successRate": {"mode": "Disabled"},
        },
    });
    let settings = with(spec).unwrap();
    assert_eq!(settings.retry.attempts, 0);
    let detection = settings.outlier_detection;
    assert!(detection.enabled);
    assert_eq!((detection.consecutive_5xx, detection.consecutive_local_errors), (None, None));
    assert_eq!(detection.success_rate, None);
    let off = with(json!({"outlierDetection": {"mode": "Disabled"}})).unwrap();
    assert!(!off.outlier_detection.enabled);
}

#[test]
fn what_is_off_has_no_settings() {
    for (spec, path) in [
        (json!({"retry": {"mode": "Disabled", "attempts": 3}}), "spec.retry.attempts"),
        (json!({"retry": {"mode": "Disabled", "on": ["reset"]}}), "spec.retry.on"),
        (
            json!({"outlierDetection": {"mode": "Disabled", "interval": "5s"}}),
            "spec.outlierDetection.interval",
        ),
        (
            json!({"outlierDetection": {"successRate": {"mode": "Disabled", "minimumHosts": 3}}}),
            "spec.outlierDetection.successRate.minimumHosts",
        ),
    ] {
        let error = with(spec.clone()).unwrap_err().to_string();
        assert!(
            error.contains(path) && error.contains("beside `mode: Disabled`"),
            "{spec}: {error}"
        );
    }
    // Health checks go by it, too; and hedging is no retry.
    let both = json!({
        "outlierDetection": {"mode": "Disabled", "panicPercent": 0},
        "retry": {"mode": "Disabled", "replayBuffer": "1Ki"}, "hedging": {"p95": {}},
    });
    assert!(with(both).unwrap().hedging.is_some());
}

#[test]
fn slow_calls_open_a_breaker_alone() {
    let circuit = with(json!({"breaker": {"slowCalls": {}, "probes": 1}})).unwrap().circuit;
    assert_eq!((circuit.error_percent, circuit.slow_calls), (None, Some(SlowCalls::default())));
    assert!(circuit.is_on());
    let circuit = with(json!({"breaker": {"errorRate": {}}})).unwrap().circuit;
    assert_eq!((circuit.error_percent, circuit.slow_calls), (Some(50), None));
}

#[test]
fn defaults_follow_the_fields_that_bound_them() {
    let spec = json!({
        "breaker": {"errorRate": {}, "openFor": "10m"},
        "outlierDetection": {"baseEjection": "30m"},
        "retry": {"backoff": {"base": "1s"}},
        "healthCheck": {"tcp": {}, "interval": "200ms"},
        "adaptiveConcurrency": {"minimum": 50, "queue": {"target": "1s"}},
    });
    let settings = with(spec).unwrap();
    assert_eq!(settings.circuit.max_open_for, seconds(600));
    assert_eq!(settings.outlier_detection.max_ejection, seconds(1800));
    assert_eq!(settings.retry.backoff.max, seconds(10));
    assert_eq!(settings.health_check.unwrap().timeout, millis(200));
    let concurrency = settings.adaptive_concurrency.unwrap();
    assert_eq!((concurrency.initial, concurrency.queue.interval), (50, seconds(1)));
}

#[test]
fn a_probe_knows_good_answers() {
    let probe =
        |check: Value| with(json!({"healthCheck": check})).unwrap().health_check.unwrap().probe;
    let any = probe(json!({"http": {"path": "/"}}));
    assert!(any.accepts(200) && any.accepts(299) && !any.accepts(300) && !any.accepts(199));
    let some = probe(json!({"http": {"path": "/", "statuses": [418]}}));
    assert!(some.accepts(418) && !some.accepts(200));
    assert_eq!(probe(json!({"grpc": {}})), Probe::Grpc { service: String::new() });
    assert_eq!(probe(json!({"tcp": {}})), Probe::Tcp);
}

#[test]
fn the_first_entry_that_matches_is_the_priority() {
    let concurrency = read_spec(full()).unwrap().adaptive_concurrency.unwrap();
    let headers = |lines: &[(&'static str, &'static str)]| -> http::HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        lines.collect()
    };
    let rows = [
        ("/pay/1", headers(&[("x-tier", "gold")]), PriorityLevel::Critical),
        ("/pay", headers(&[("x-tier", "gold"), ("x-crawler", "")]), PriorityLevel::Critical),
        ("/payments", headers(&[("x-tier", "gold")]), PriorityLevel::Normal),
        ("/pay", headers(&[("x-tier", "silver"), ("x-crawler", "1")]), PriorityLevel::Sheddable),
        ("/pay", headers(&[]), PriorityLevel::Normal),
    ];
    for (path, headers, level) in rows {
        assert_eq!(concurrency.level_of(path, &headers), level, "{path} {headers:?}");
    }
}

/// (JSON pointer into `full`, values that are refused, what the message has). The path is the pointer's own.
#[test]
fn every_number_has_a_range() {
    let huge = json!(i64::MAX);
    let percent = [json!(0), json!(101), json!(-1), huge.clone()];
    let limit = [json!(0), json!(10_000_001), json!(-1), huge.clone()];
    let time = [json!("0s"), json!("99999h"), json!("1"), json!("-1s"), json!("")];
    let unbounded = [json!("1"), json!("-1s")];
    let rows: Vec<(&str, Vec<Value>)> = vec![
        ("/balancer/ringHash/minimumSize", limit.to_vec()),
        ("/balancer/ringHash/hashOn/1/cookie/ttl", time[1..].to_vec()),
        ("/boundedLoad/percent", vec![json!(100), json!(0), json!(1001), json!(-1)]),
        ("/zones/minimumHealthyPercent", percent.to_vec()),
        ("/slowStart/window", time.to_vec()),
        ("/slowStart/minimumPercent", percent.to_vec()),
        ("/timeouts/connect", vec![json!("0s"), json!("1"), json!("-1s")]),
        ("/timeouts/request", unbounded.to_vec()),
        ("/timeouts/attempt", unbounded.to_vec()),
        ("/timeouts/idle", unbounded.to_vec()),
        ("/breaker/maxConnections", limit.to_vec()),
        ("/breaker/maxPending", limit[1..].to_vec()),
        ("/breaker/maxExchanges", limit.to_vec()),
        ("/breaker/maxRetries", limit[1..].to_vec()),
        ("/breaker/errorRate/window", time.to_vec()),
        ("/breaker/errorRate/minimum", limit.to_vec()),
        ("/breaker/errorRate/percent", percent.to_vec()),
        ("/breaker/slowCalls/threshold", time.to_vec()),
        ("/breaker/slowCalls/percent", percent.to_vec()),
        ("/breaker/openFor", time.to_vec()),
        ("/breaker/maxOpenFor", time.to_vec()),
        ("/breaker/probes", vec![json!(0), json!(101)]),
        ("/pool/maxIdle", limit[1..].to_vec()),
        ("/outlierDetection/consecutive5xx", vec![json!(-1), json!(1001)]),
        ("/outlierDetection/consecutiveGatewayErrors", vec![json!(-1), json!(1001)]),
        ("/outlierDetection/consecutiveLocalErrors", vec![json!(-1), json!(1001)]),
        ("/outlierDetection/successRate/minimumHosts", vec![json!(0), json!(1), json!(10_001)]),
        ("/outlierDetection/successRate/minimumRequests", limit.to_vec()),
        (
            "/outlierDetection/successRate/standardDeviations",
            vec![json!(0), json!(10.1), json!(-1.9)],
        ),
        ("/outlierDetection/latency/factor", vec![json!(1), json!(0), json!(1e300), json!(-3)]),
        ("/outlierDetection/latency/minimumHosts", vec![json!(1), json!(10_001)]),
        ("/outlierDetection/latency/minimumRequests", limit.to_vec()),
        ("/outlierDetection/interval", time.to_vec()),
        ("/outlierDetection/baseEjection", time.to_vec()),
        ("/outlierDetection/maxEjection", time.to_vec()),
        ("/outlierDetection/maxEjectedPercent", percent.to_vec()),
        ("/outlierDetection/panicPercent", percent[1..].to_vec()),
        ("/retry/attempts", vec![json!(0), json!(11), json!(1_000_000), json!(-1)]),
        ("/retry/backoff/base", time.to_vec()),
        ("/retry/backoff/max", time.to_vec()),
        ("/retry/maxRetryAfter", time[1..].to_vec()),
        (
            "/retry/replayBuffer",
            vec![json!(-1), json!("17Mi"), json!("lots"), json!("1Gi"), huge.clone()],
        ),
        ("/retryBudget/percent", percent[1..].to_vec()),
        ("/retryBudget/minimumPerSecond", vec![json!(-1), json!(10_001)]),
        ("/hedging/after", time.to_vec()),
        ("/hedging/attempts", vec![json!(0), json!(4)]),
        ("/healthCheck/interval", time.to_vec()),
        ("/healthCheck/timeout", time.to_vec()),
        ("/healthCheck/healthy", vec![json!(0), json!(101)]),
        ("/healthCheck/unhealthy", vec![json!(0), json!(101)]),
        ("/healthCheck/port", vec![json!(0), json!(65_536), json!(-1)]),
        ("/adaptiveConcurrency/minimum", vec![json!(0), json!(1_000_001)]),
        ("/adaptiveConcurrency/maximum", vec![json!(7), json!(1_000_001)]),
        ("/adaptiveConcurrency/initial", vec![json!(7), json!(501)]),
        ("/adaptiveConcurrency/queue/length", vec![json!(-1), json!(1_000_001)]),
        ("/adaptiveConcurrency/queue/target", time.to_vec()),
        ("/adaptiveConcurrency/queue/interval", vec![json!("0s"), json!("9ms"), json!("2m")]),
    ];
    for (pointer, values) in rows {
        for value in values {
            let path = format!("spec{}", pointer.replace("/1/", "[1]/").replace('/', "."));
            let problems = match read_spec(changed(pointer, value.clone())) {
                Ok(settings) => panic!("{pointer} {value}: {settings:?}"),
                Err(invalid) => invalid.problems,
            };
            let says = |message: &str| message.contains("must be") || message.contains("is not a");
            let named =
                problems.iter().any(|problem| problem.path == path && says(&problem.message));
            assert!(named, "{pointer} {value}: {problems:#?}");
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one row per rule")]
#[test]
fn refuses_what_means_nothing() {
    let nothing = Value::Null;
    // (JSON pointer, new value, path of the problem, part of the message)
    let rows = [
        ("/balancer", json!({}), "spec.balancer", "exactly one of peakEwma, leastRequest"),
        (
            "/balancer",
            json!({"random": {}, "maglev": {"hashOn": [{"sourceIp": {}}]}}),
            "spec.balancer",
            "exactly one",
        ),
        ("/balancer", json!({"random": {}}), "spec.boundedLoad", "balancer.ringHash"),
        ("/balancer", nothing.clone(), "spec.boundedLoad", "balancer.ringHash"),
        ("/balancer", json!({"maglev": {}}), "spec.balancer.maglev", "missing field `hashOn`"),
        ("/balancer/ringHash/hashOn", json!([]), "spec.balancer.ringHash.hashOn", "1 to 8"),
        (
            "/balancer/ringHash/hashOn",
            json!(vec![json!({"sourceIp": {}}); 9]),
            "spec.balancer.ringHash.hashOn",
            "1 to 8",
        ),
        (
            "/balancer/ringHash/hashOn/0",
            json!({}),
            "spec.balancer.ringHash.hashOn[0]",
            "exactly one of header, cookie, sourceIp, query",
        ),
        (
            "/balancer/ringHash/hashOn/0/header/name",
            json!("a b"),
            "spec.balancer.ringHash.hashOn[0].header.name",
            "not a header name",
        ),
        (
            "/balancer/ringHash/hashOn/1/cookie/name",
            json!("a=b"),
            "spec.balancer.ringHash.hashOn[1].cookie.name",
            "letters",
        ),
        (
            "/balancer/ringHash/hashOn/1/cookie/path",
            json!("/a; Secure"),
            "spec.balancer.ringHash.hashOn[1].cookie.path",
            "begin with `/`",
        ),
        (
            "/balancer/ringHash/hashOn/1/cookie/ttl",
            nothing.clone(),
            "spec.balancer.ringHash.hashOn[1].cookie.path",
            "needs ttl",
        ),
        (
            "/balancer/ringHash/hashOn/3/query/name",
            json!(""),
            "spec.balancer.ringHash.hashOn[3].query.name",
            "1 to 256",
        ),
        (
            "/timeouts/attempt",
            json!("11s"),
            "spec.timeouts.attempt",
            "longer than timeouts.request",
        ),
        (
            "/breaker",
            json!({"openFor": "1s"}),
            "spec.breaker.openFor",
            "only beside errorRate or slowCalls",
        ),
        ("/breaker", json!({"per": "Endpoint"}), "spec.breaker.per", "only beside"),
        ("/breaker/maxOpenFor", json!("999ms"), "spec.breaker.maxOpenFor", "must be 1s to 1h"),
        ("/breaker/per", json!("Host"), "spec.breaker.per", "unknown variant `Host`"),
        (
            "/outlierDetection/maxEjection",
            json!("19s"),
            "spec.outlierDetection.maxEjection",
            "must be 20s to 24h",
        ),
        ("/outlierDetection/mode", json!("Off"), "spec.outlierDetection.mode", "unknown variant"),
        (
            "/outlierDetection/consecutive5XX",
            json!(1),
            "spec.outlierDetection.consecutive5XX",
            "unknown field",
        ),
        ("/retry/on", json!([]), "spec.retry.on", "1 to 16"),
        ("/retry/on", json!(["5xx"]), "spec.retry.statuses", "only with retriable-status"),
        ("/retry/on", nothing.clone(), "spec.retry.statuses", "only with retriable-status"),
        ("/retry/on/0", json!("4xx"), "spec.retry.on[0]", "unknown variant `4xx`"),
        ("/retry/statuses", nothing, "spec.retry.statuses", "is needed"),
        ("/retry/statuses", json!([]), "spec.retry.statuses", "1 to 32"),
        ("/retry/statuses", json!([429, 200]), "spec.retry.statuses[1]", "400 to 599"),
        ("/retry/grpc", json!([]), "spec.retry.grpc", "1 to 5"),
        ("/retry/grpc/0", json!("ok"), "spec.retry.grpc[0]", "unknown variant `ok`"),
        ("/retry/backoff/max", json!("49ms"), "spec.retry.backoff.max", "must be 50ms to 1h"),
        ("/retry/replayBuffer", json!(true), "spec.retry.replayBuffer", "64Ki"),
        ("/hedging", json!({}), "spec.hedging", "exactly one of after, p95"),
        ("/hedging", json!({"after": "1s", "p95": {}}), "spec.hedging", "exactly one"),
        ("/healthCheck/tcp", json!({}), "spec.healthCheck", "exactly one of http, grpc, tcp"),
        (
            "/healthCheck/http/path",
            json!("healthz"),
            "spec.healthCheck.http.path",
            "must be a path",
        ),
        ("/healthCheck/http/path", json!("/a b"), "spec.healthCheck.http.path", "must be a path"),
        ("/healthCheck/http/host", json!("a@b"), "spec.healthCheck.http.host", "must be a host"),
        ("/healthCheck/http/host", json!("a/b"), "spec.healthCheck.http.host", "must be a host"),
        (
            "/healthCheck/http/statuses",
            json!([99]),
            "spec.healthCheck.http.statuses[0]",
            "100 to 599",
        ),
        ("/healthCheck/timeout", json!("3s"), "spec.healthCheck.timeout", "must be 1ms to 2s"),
        ("/priorities", json!([]), "spec.priorities", "1 to 32"),
        ("/priorities/0", json!({"priority": "Critical"}), "spec.priorities[0]", "needs header"),
        (
            "/priorities/0/pathPrefix",
            json!("pay"),
            "spec.priorities[0].pathPrefix",
            "must be a path",
        ),
        (
            "/priorities/1/header",
            json!({"name": "x"}),
            "spec.priorities[1].header",
            "exactly one of exact, present",
        ),
        ("/priorities/1/priority", json!("low"), "spec.priorities[1].priority", "unknown variant"),
        ("/adaptiveConcurrency", Value::Null, "spec.priorities", "only beside adaptiveConcurrency"),
    ];
    for (pointer, value, path, message) in rows {
        let problems = read_spec(changed(pointer, value)).expect_err(pointer).problems;
        let hit = problems
            .iter()
            .any(|problem| problem.path == path && problem.message.contains(message));
        assert!(hit, "{pointer}: {problems:#?}");
    }
}

#[test]
fn grpc_codes_have_their_numbers() {
    let spec = json!({"retry": {"grpc": [
        "unavailable", "internal", "resource-exhausted", "deadline-exceeded", "cancelled",
    ]}});
    let numbers: Vec<_> = with(spec).unwrap().retry.grpc.into_iter().map(grpc_number).collect();
    assert_eq!(numbers, [1, 4, 8, 13, 14]);
}

/// What the machines that are driven by it count on.
fn check_promises(settings: &Settings) {
    let Settings { circuit, outlier_detection, retry, retry_budget, .. } = settings;
    assert!(!circuit.window.is_zero() && !circuit.open_for.is_zero() && circuit.probes > 0);
    assert!(circuit.max_open_for >= circuit.open_for);
    assert!(outlier_detection.max_ejection >= outlier_detection.base_ejection);
    assert!(!outlier_detection.interval.is_zero() && !outlier_detection.base_ejection.is_zero());
    assert!((1..=100).contains(&outlier_detection.max_ejected_percent));
    assert!(retry.backoff.max >= retry.backoff.base && !retry.backoff.base.is_zero());
    assert!(retry.attempts <= 10 && retry_budget.percent <= 100);
    let concurrency = settings.adaptive_concurrency.as_ref().unwrap();
    assert!((1..=concurrency.initial).contains(&concurrency.minimum));
    assert!(concurrency.initial <= concurrency.maximum);
    assert!(concurrency.queue.target <= concurrency.queue.interval);
    let check = settings.health_check.as_ref().unwrap();
    assert!(!check.timeout.is_zero() && check.timeout <= check.interval);
}

/// Pointers to the fields that other fields bound.
const BOUND: [(&str, bool); 13] = [
    ("/breaker/openFor", true),
    ("/breaker/maxOpenFor", true),
    ("/breaker/probes", false),
    ("/outlierDetection/interval", true),
    ("/outlierDetection/baseEjection", true),
    ("/outlierDetection/maxEjection", true),
    ("/retry/backoff/base", true),
    ("/retry/backoff/max", true),
    ("/healthCheck/interval", true),
    ("/healthCheck/timeout", true),
    ("/adaptiveConcurrency/minimum", false),
    ("/adaptiveConcurrency/maximum", false),
    ("/adaptiveConcurrency/initial", false),
];

proptest! {
    /// Whatever stands in two fields: either it is refused, at one of them or at one they bound, or the machines can
    /// rely on it.
    #[test]
    fn what_is_accepted_keeps_its_promises(
        first in 0..BOUND.len(),
        second in 0..BOUND.len(),
        left_out in 0..BOUND.len(),
        numbers in [any::<u16>(), any::<u16>()],
        small in any::<bool>(),
    ) {
        let mut spec = full();
        for (at, number) in [first, second].into_iter().zip(numbers) {
            let (pointer, duration) = BOUND[at];
            let number = if small { number % 40 } else { number };
            let value = if duration { json!(format!("{number}ms")) } else { json!(number) };
            *spec.pointer_mut(pointer).unwrap() = value;
        }
        *spec.pointer_mut(BOUND[left_out].0).unwrap() = Value::Null;
        match read_spec(spec) {
            Ok(settings) => check_promises(&settings),
            Err(invalid) => {
                prop_assert!(invalid.problems.iter().all(|problem| problem.message.contains(" to ")));
            }
        }
    }
}
