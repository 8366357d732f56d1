//! The control plane's metrics.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

/// Seconds, from 50 microseconds to 5 seconds: the promise is 10 ms.
const BUCKETS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// Every metric, with the registry that they are rendered from.
#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub connected: IntGauge,
    pub streams_refused: IntCounterVec,
    pub pushes: IntCounter,
    pub publish_seconds: Histogram,
    pub delivery_seconds: Histogram,
    pub responses: IntCounterVec,
    pub acks: IntCounter,
    pub nacks: IntCounterVec,
    pub protocol_errors: IntCounterVec,
    pub revision: IntGauge,
    pub leases: IntGauge,
    pub status_writes: IntCounter,
    pub quota_shares: IntGauge,
    pub purge_streams: IntGauge,
    pub handshakes: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// When two metrics have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        Ok(Self {
            connected: gauge(
                &registry,
                "leno_xds_connected_proxies",
                "Proxies with an open stream.",
            )?,
            streams_refused: counters(
                &registry,
                "leno_xds_streams_refused_total",
                "Streams refused, by reason: limit, denied, node.",
                "reason",
            )?,
            pushes: counter(&registry, "leno_pushes_total", "Changes published to proxies.")?,
            publish_seconds: histogram(
                &registry,
                "leno_publish_duration_seconds",
                "From the planned change to the last mailbox concerned.",
            )?,
            delivery_seconds: histogram(
                &registry,
                "leno_push_duration_seconds",
                "From the planned change to the last of its responses handed to the transport.",
            )?,
            responses: counters(
                &registry,
                "leno_xds_responses_total",
                "Responses sent, by kind.",
                "kind",
            )?,
            acks: counter(&registry, "leno_xds_acks_total", "Responses accepted whole.")?,
            nacks: counters(
                &registry,
                "leno_xds_nacks_total",
                "Responses of which something was rejected, by kind.",
                "kind",
            )?,
            protocol_errors: counters(
                &registry,
                "leno_xds_protocol_errors_total",
                "Requests that were odd: unknown_type, unknown_nonce, bad_name, too_many_names, malformed.",
                "what",
            )?,
            revision: gauge(
                &registry,
                "leno_store_revision",
                "The store's revision that is planned.",
            )?,
            leases: gauge(&registry, "leno_registry_leases", "Workloads held by a lease.")?,
            quota_shares: gauge(
                &registry,
                "leno_quota_shares",
                "Shares of global rate limits that proxies have now.",
            )?,
            purge_streams: gauge(
                &registry,
                "leno_purge_streams",
                "Proxies with caches that hear of purges now.",
            )?,
            status_writes: counter(&registry, "leno_status_writes_total", "Statuses written.")?,
            handshakes: handshakes(&registry)?,
            registry,
        })
    }
}

/// As the proxies count theirs; we are the server always.
fn handshakes(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let options = Opts::new(
        "leno_tls_handshakes_total",
        "TLS handshakes, by result: ok, or why the connection was closed.",
    );
    let options = options.const_label("side", "server");
    registered(registry, IntCounterVec::new(options, &["result"])?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    registered(registry, IntGauge::new(name, help)?)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    registered(registry, IntCounter::new(name, help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
}

fn histogram(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
    registered(registry, Histogram::with_opts(options)?)
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
