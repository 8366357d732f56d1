//! Metric families: Istio's names, labels and buckets, so that existing dashboards work, and Leno's own.
//!
//! The hot path never looks a series up by labels (43 ns each): a [`Scope`] stands for the labels that are known
//! when the configuration is compiled, and every worker keeps the handles it has used in a [`SeriesCache`]. These
//! count for the worker alone; what has come together is added to the shared series every [`FLUSH_AFTER`], since the
//! ten atomic counters of one exchange would travel between the cores with every request.

pub mod caches;
pub mod plugins;
pub mod resilience;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
    core::Collector,
    local::{LocalHistogram, LocalIntCounter},
};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use self::{caches::Caches, plugins::Plugins, resilience::Resilience};
use super::scope::{SCOPE_LABELS, Scope};
use crate::error::Flag;

/// Envoy's default buckets, which Istio uses for milliseconds and bytes alike.
const BUCKETS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
const SERIES_LABELS: [&str; 4] =
    ["request_protocol", "response_code", "grpc_response_status", "response_flags"];
/// A worker forgets its handles beyond this many; they are found again when needed.
const MAX_CACHED_SERIES: usize = 8192;

/// What varies from request to request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// `http`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// 0 when the caller went away before there was one.
    pub status: u16,
    /// For gRPC: the `grpc-status`, below 17.
    pub grpc_status: Option<u8>,
    /// Response flag.
    pub flag: Flag,
}

/// One worker's handles of one series.
#[derive(Debug)]
struct Series {
    requests: LocalIntCounter,
    duration: LocalHistogram,
    request_bytes: LocalHistogram,
    response_bytes: LocalHistogram,
    unflushed: Cell<bool>,
}

impl Series {
    fn flush(&self) {
        self.unflushed.set(false);
        self.requests.flush();
        self.duration.flush();
        self.request_bytes.flush();
        self.response_bytes.flush();
    }
}

/// Handles of the TCP series of one scope.
#[derive(Debug)]
pub struct TcpSeries {
    /// Connections opened.
    pub opened: IntCounter,
    /// Connections closed.
    pub closed: IntCounter,
    /// Bytes from the caller.
    pub received: IntCounter,
    /// Bytes to the caller.
    pub sent: IntCounter,
}

/// How old a worker's figures are at most when they are shown.
pub const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// A worker's own handles.
#[derive(Debug, Default)]
pub struct SeriesCache {
    series: RefCell<FxHashMap<(u64, SeriesKey), Rc<Series>>>,
    unflushed: RefCell<Vec<Rc<Series>>>,
    /// Wakes whoever flushes when there is something to flush again.
    wake: Notify,
}

impl SeriesCache {
    /// Counts one finished exchange.
    pub fn observe(
        &self,
        families: &Families,
        scope: &Scope,
        key: SeriesKey,
        milliseconds: f64,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let series = self.series(families, scope, key);
        series.requests.inc();
        series.duration.observe(milliseconds);
        series.request_bytes.observe(request_bytes as f64);
        series.response_bytes.observe(response_bytes as f64);
        if !series.unflushed.replace(true) {
            let mut unflushed = self.unflushed.borrow_mut();
            if unflushed.is_empty() {
                self.wake.notify_one();
            }
            unflushed.push(series);
        }
    }

    /// Waits until there is something to flush.
    pub async fn unflushed(&self) {
        if self.unflushed.borrow().is_empty() {
            self.wake.notified().await;
        }
    }

    /// Adds what has come together to the shared series.
    pub fn flush(&self) {
        for series in self.unflushed.take() {
            series.flush();
        }
    }

    fn series(&self, families: &Families, scope: &Scope, key: SeriesKey) -> Rc<Series> {
        let mut cache = self.series.borrow_mut();
        if let Some(series) = cache.get(&(scope.id, key)) {
            return series.clone();
        }
        if cache.len() >= MAX_CACHED_SERIES {
            cache.clear();
        }
        let series = Rc::new(families.resolve(scope, key));
        cache.insert((scope.id, key), series.clone());
        series
    }
}

/// All families of the proxy.
#[derive(Debug)]
pub struct Families {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
    tcp: [IntCounterVec; 4],
    /// For what ends when its endpoint's series have been removed; shown to nobody.
    nowhere: (IntCounter, Histogram),
    /// Open downstream connections by listener.
    pub connections: IntGaugeVec,
    /// Downstream connections refused or broken off, by listener and reason.
    pub connections_refused: IntCounterVec,
    /// The configuration generation in force.
    pub generation: IntGauge,
    /// Unix time in seconds at which the configuration last changed.
    pub config_changed: IntGauge,
    /// Resources refused, by kind.
    pub rejected: IntGaugeVec,
    /// 1 while the control plane can be reached.
    pub control_plane_connected: IntGauge,
    /// Panics survived.
    pub panics: IntCounter,
    /// Access log lines dropped because the writer was too slow.
    pub log_lines_dropped: IntCounter,
    /// Attempts after the first, by result.
    pub retries: IntCounterVec,
    /// Unix time in seconds at which the proxy's own certificate expires; 0 while there is none.
    pub certificate_expiry: IntGauge,
    /// Attempts to get a certificate, by result: ok or error.
    pub certificate_renewals: IntCounterVec,
    /// Handshakes of mesh hops, by side and how they went.
    pub tls_handshakes: IntCounterVec,
    /// Requests whose tokens were refused, by reason.
    pub tokens_refused: IntCounterVec,
    /// Requests and connections that a policy denied, by policy.
    pub authorization_denied: IntCounterVec,
    /// Those that an AUDIT policy matched, by policy.
    pub authorization_audited: IntCounterVec,
    /// Of breakers and ejections.
    pub resilience: Resilience,
    /// Of plugins.
    pub plugins: Plugins,
    /// Of what is kept of responses.
    pub caches: Caches,
}

impl Families {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken in `registry`.
    pub fn register(registry: Registry) -> prometheus::Result<Self> {
        let series_labels: Vec<&str> = SCOPE_LABELS.iter().chain(&SERIES_LABELS).copied().collect();
        let new = New(&registry);
        let counter = |name, help, labels: &[&str]| new.counters(name, help, labels);
        let histogram = |name, help| new.histograms(name, help, &series_labels);
        Ok(Self {
            requests: counter("istio_requests_total", "Finished requests.", &series_labels)?,
            duration: histogram(
                "istio_request_duration_milliseconds",
                "From first byte in to last byte out.",
            )?,
            request_bytes: histogram("istio_request_bytes", "Body bytes of requests.")?,
            response_bytes: histogram("istio_response_bytes", "Body bytes of responses.")?,
            nowhere: (
                IntCounter::new("nowhere", "x")?,
                Histogram::with_opts(HistogramOpts::new("nowhere", "x"))?,
            ),
            tcp: [
                counter(
                    "istio_tcp_connections_opened_total",
                    "TCP connections opened.",
                    &SCOPE_LABELS,
                )?,
                counter(
                    "istio_tcp_connections_closed_total",
                    "TCP connections closed.",
                    &SCOPE_LABELS,
                )?,
                counter("istio_tcp_received_bytes_total", "Bytes from callers.", &SCOPE_LABELS)?,
                counter("istio_tcp_sent_bytes_total", "Bytes to callers.", &SCOPE_LABELS)?,
            ],
            connections: new.gauges(
                "leno_downstream_connections",
                "Open downstream connections.",
                &["listener"],
            )?,
            connections_refused: counter(
                "leno_downstream_connections_refused_total",
                "Downstream connections refused or broken off.",
                &["listener", "reason"],
            )?,
            generation: new
                .gauge("leno_config_generation", "The configuration generation in force.")?,
            config_changed: new
                .gauge("leno_config_last_change_timestamp_seconds", "When it last changed.")?,
            rejected: new.gauges(
                "leno_config_rejected_resources",
                "Resources refused.",
                &["kind"],
            )?,
            control_plane_connected: new.gauge(
                "leno_control_plane_connected",
                "1 while the control plane can be reached.",
            )?,
            panics: new.counter("leno_panics_total", "Panics survived.")?,
            log_lines_dropped: new
                .counter("leno_access_log_dropped_total", "Access log lines dropped.")?,
            retries: counter(
                "leno_retries_total",
                "Attempts after the first.",
                &["service", "result"],
            )?,
            certificate_expiry: new.gauge(
                "leno_certificate_expiry_timestamp_seconds",
                "When the proxy's own certificate expires; 0 while there is none.",
            )?,
            certificate_renewals: counter(
                "leno_certificate_renewals_total",
                "Attempts to get a certificate.",
                &["result"],
            )?,
            tls_handshakes: counter(
                "leno_tls_handshakes_total",
                "Handshakes of mesh hops: ok, resumed, or why not.",
                &["side", "result"],
            )?,
            tokens_refused: counter(
                "leno_tokens_refused_total",
                "Requests whose token was refused.",
                &["reason"],
            )?,
            authorization_denied: counter(
                "leno_authorization_denied_total",
                "Requests and connections denied by a policy.",
                &["policy"],
            )?,
            authorization_audited: counter(
                "leno_authorization_audited_total",
                "Requests and connections that an AUDIT policy matched.",
                &["policy"],
            )?,
            resilience: Resilience::register(&new)?,
            plugins: Plugins::register(&registry)?,
            caches: Caches::register(&registry)?,
            registry,
        })
    }

    /// For exposition.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes a policy that is no more out of the registry.
    pub fn forget_policy(&self, policy: &str) {
        for family in [&self.authorization_denied, &self.authorization_audited] {
            // One that never mattered has no series.
            let _ = family.remove_label_values(&[policy]);
        }
    }

    /// TCP handles of a scope.
    pub fn tcp(&self, scope: &Scope) -> TcpSeries {
        let values = scope.labels().values();
        let [opened, closed, received, sent] = &self.tcp;
        let used = scope.used();
        let resolve = |family: &IntCounterVec| match used.gone {
            true => self.nowhere.0.clone(),
            false => family.with_label_values(&values),
        };
        TcpSeries {
            opened: resolve(opened),
            closed: resolve(closed),
            received: resolve(received),
            sent: resolve(sent),
        }
    }

    /// Removes the series of an endpoint that is no more; otherwise they would pile up with every roll-out. An `heir`
    /// with the same labels keeps them: its workers hold handles of the very same series.
    pub fn retire(&self, scope: &Scope, heir: Option<&Scope>) {
        if let Some(heir) = heir {
            let keys = std::mem::take(&mut scope.used().keys);
            let mut inherited = heir.used();
            let new: Vec<_> =
                keys.into_iter().filter(|key| !inherited.keys.contains(key)).collect();
            inherited.keys.extend(new);
            return;
        }
        let fixed = scope.labels().values();
        let mut used = scope.used();
        used.gone = true;
        for family in &self.tcp {
            // An endpoint that never carried TCP has no such series; that is not an error.
            let _ = family.remove_label_values(&fixed);
        }
        for key in used.keys.drain(..) {
            with_values(&fixed, key, |values| {
                let _ = self.requests.remove_label_values(values);
                let _ = self.duration.remove_label_values(values);
                let _ = self.request_bytes.remove_label_values(values);
                let _ = self.response_bytes.remove_label_values(values);
            });
        }
    }

    fn resolve(&self, scope: &Scope, key: SeriesKey) -> Series {
        // Held until the series is there, lest `retire` comes in between.
        let mut used = scope.used();
        let (counter, histogram) = &self.nowhere;
        if used.gone {
            return Series {
                requests: counter.local(),
                duration: histogram.local(),
                request_bytes: histogram.local(),
                response_bytes: histogram.local(),
                unflushed: Cell::new(false),
            };
        }
        if !used.keys.contains(&key) {
            used.keys.push(key);
        }
        with_values(&scope.labels().values(), key, |values| Series {
            requests: self.requests.with_label_values(values).local(),
            duration: self.duration.with_label_values(values).local(),
            request_bytes: self.request_bytes.with_label_values(values).local(),
            response_bytes: self.response_bytes.with_label_values(values).local(),
            unflushed: Cell::new(false),
        })
    }
}

/// Makes families and registers them; fails when a name is taken.
struct New<'a>(&'a Registry);

impl New<'_> {
    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        self.add(HistogramVec::new(options, labels)?)
    }

    fn add<C: Collector + Clone + 'static>(&self, family: C) -> prometheus::Result<C> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }
}

fn with_values<T>(fixed: &[&str], key: SeriesKey, apply: impl FnOnce(&[&str]) -> T) -> T {
    let status = key.status.to_string();
    let grpc_status = key.grpc_status.map(|status| status.to_string()).unwrap_or_default();
    let variable = [key.protocol, &status, &grpc_status, key.flag.as_str()];
    let values: Vec<&str> = fixed.iter().copied().chain(variable).collect();
    apply(&values)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::telemetry::scope::{Party, ScopeLabels};

    fn labels() -> ScopeLabels {
        ScopeLabels {
            reporter: "source",
            source: Party::default(),
            destination: Party { workload: "orders-1".into(), ..Party::default() },
            service: Some((Arc::from("shop"), Arc::from("orders"))),
            ..ScopeLabels::default()
        }
    }

    #[test]
    fn series_appear_when_used_and_go_with_their_scope() {
        let families = Families::register(Registry::new()).unwrap();
        let (cache, scope) = (SeriesCache::default(), Scope::new(labels()));
        let key = SeriesKey { protocol: "http", status: 200, grpc_status: None, flag: Flag::None };
        for _ in 0..3 {
            cache.observe(&families, &scope, key, 0.7, 0, 10);
        }
        cache.flush();
        families.tcp(&scope).opened.inc();
        let text = || {
            let mut text = String::new();
            prometheus::TextEncoder::new()
                .encode_utf8(&families.registry().gather(), &mut text)
                .unwrap();
            text
        };
        let shown = text();
        let requests = "istio_requests_total{";
        let line = shown.lines().find(|line| line.starts_with(requests)).unwrap();
        assert!(
            line.ends_with(" 3") && line.contains("destination_workload=\"orders-1\""),
            "{line}"
        );
        assert!(shown.contains("istio_request_duration_milliseconds_bucket"));
        let heir = Scope::new(labels());
        families.retire(&scope, Some(&heir));
        cache.observe(&families, &heir, key, 0.7, 0, 10);
        cache.flush();
        assert!(text().lines().any(|line| line.starts_with(requests) && line.ends_with(" 4")));
        families.retire(&heir, None);
        assert!(!text().contains("orders-1"));
        // A stream that outlives its endpoint brings nothing back.
        let late = SeriesKey { flag: Flag::DC, ..key };
        cache.observe(&families, &heir, late, 0.7, 0, 10);
        cache.flush();
        assert!(!text().contains("orders-1"));
    }
}
