//! When an endpoint is left out for a while because of how it answers.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    Path,
    invalid::Problems,
    model::{range::Fields, traffic_policy::MAX_LIMIT},
    spec::traffic_policy as raw,
};

const MAX_CONSECUTIVE: u32 = 1000;
/// A mean of fewer says nothing.
const HOSTS: RangeInclusive<u32> = 3..=10_000;
const DEVIATIONS: RangeInclusive<f64> = 0.1..=10.0;
/// Endpoints differ by half without anything being wrong.
const FACTOR: RangeInclusive<f64> = 1.5..=1000.0;
/// Not shorter than measurements take to come in.
const SHORTEST: Duration = Duration::from_millis(100);
/// Shorter windows hold too little to compare.
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Whether any is.
    pub enabled: bool,
    /// Failures in a row, of whatever kind: answers of 500 to 599 or none; `None`: not judged.
    pub consecutive_5xx: Option<u32>,
    /// Answers of 502, 503 and 504 in a row; `None`: not judged.
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures to connect, resets and timeouts in a row; `None`: not judged.
    pub consecutive_local_errors: Option<u32>,
    /// By comparison of success rates; `None`: not judged.
    pub success_rate: Option<SuccessRate>,
    /// By comparison of latencies; `None`: not judged.
    pub latency: Option<LatencyOutlier>,
    /// Over how long endpoints are compared: the last so many seconds, at any time.
    pub interval: Duration,
    /// How long an endpoint is ejected, times how often in a row.
    pub base_ejection: Duration,
    /// How long an endpoint is ejected at most; not less than `base_ejection`.
    pub max_ejection: Duration,
    /// Endpoints ejected at once, 1 to 100; never all of them.
    pub max_ejected_percent: u8,
    /// Healthy endpoints below which ejection is ignored, 0 to 100; 0 is never.
    pub panic_percent: u8,
}

/// Who fails more than the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Endpoints with enough requests below which nothing is compared.
    pub minimum_hosts: u32,
    /// Requests of an endpoint within an interval below which it is not compared.
    pub minimum_requests: u32,
    /// How many of them below the average is too low.
    pub standard_deviations: f64,
}

/// Who is slower than the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyOutlier {
    /// How many times the median of the others is too slow.
    pub factor: f64,
    /// Endpoints with enough requests below which nothing is compared.
    pub minimum_hosts: u32,
    /// Requests of an endpoint within an interval below which it is not compared.
    pub minimum_requests: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_5xx: Some(5),
            // Gateway errors are counted among the 5xx already.
            consecutive_gateway_errors: None,
            consecutive_local_errors: Some(5),
            success_rate: Some(SuccessRate::default()),
            // The balancer avoids slow endpoints without taking them out.
            latency: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            panic_percent: 50,
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { minimum_hosts: 5, minimum_requests: 100, standard_deviations: 1.9 }
    }
}

impl Default for LatencyOutlier {
    fn default() -> Self {
        Self { factor: 3.0, minimum_hosts: 3, minimum_requests: 20 }
    }
}

pub(super) fn parse_outlier_detection(
    at: Path<'_>,
    raw: Option<raw::OutlierDetection>,
    problems: &mut Problems,
) -> OutlierDetection {
    let default = OutlierDetection::default();
    let Some(raw) = raw else { return default };
    if raw.mode == Some(raw::Mode::Disabled) {
        // `panicPercent` holds for health checks, too.
        let rest = [
            ("consecutive5xx", raw.consecutive_5xx.is_some()),
            ("consecutiveGatewayErrors", raw.consecutive_gateway_errors.is_some()),
            ("consecutiveLocalErrors", raw.consecutive_local_errors.is_some()),
            ("successRate", raw.success_rate.is_some()),
            ("latency", raw.latency.is_some()),
            ("interval", raw.interval.is_some()),
            ("baseEjection", raw.base_ejection.is_some()),
            ("maxEjection", raw.max_ejection.is_some()),
            ("maxEjectedPercent", raw.max_ejected_percent.is_some()),
        ];
        Fields::new(at, problems).nothing_beside("mode: Disabled", &rest);
    }
    let success_rate = parse_success_rate(at.field("successRate"), raw.success_rate, problems);
    let latency = raw.latency.map(|raw| parse_latency(at.field("latency"), &raw, problems));
    let mut fields = Fields::new(at, problems);
    let mut in_a_row = |field: &str, raw: Option<i64>, default: Option<u32>| {
        let number = fields.number(field, raw, 0..=MAX_CONSECUTIVE, default.unwrap_or(0));
        Some(number).filter(|number| *number > 0)
    };
    let consecutive_5xx = in_a_row("consecutive5xx", raw.consecutive_5xx, default.consecutive_5xx);
    let consecutive_gateway_errors = in_a_row(
        "consecutiveGatewayErrors",
        raw.consecutive_gateway_errors,
        default.consecutive_gateway_errors,
    );
    let consecutive_local_errors = in_a_row(
        "consecutiveLocalErrors",
        raw.consecutive_local_errors,
        default.consecutive_local_errors,
    );
    let base = raw.base_ejection.as_deref();
    let base_ejection =
        fields.duration("baseEjection", base, SHORTEST..=HOUR, default.base_ejection);
    let range = base_ejection..=DAY;
    let [interval, longest] = [raw.interval.as_deref(), raw.max_ejection.as_deref()];
    let (share, panic) = (raw.max_ejected_percent, raw.panic_percent);
    OutlierDetection {
        enabled: raw.mode.unwrap_or_default() == raw::Mode::Enabled,
        consecutive_5xx,
        consecutive_gateway_errors,
        consecutive_local_errors,
        success_rate,
        latency,
        interval: fields.duration("interval", interval, WINDOW, default.interval),
        base_ejection,
        max_ejection: fields.duration("maxEjection", longest, range, default.max_ejection),
        max_ejected_percent: fields.number("maxEjectedPercent", share, 1..=100, 50),
        panic_percent: fields.number("panicPercent", panic, 0..=100, default.panic_percent),
    }
}

fn parse_success_rate(
    at: Path<'_>,
    raw: Option<raw::SuccessRate>,
    problems: &mut Problems,
) -> Option<SuccessRate> {
    let default = SuccessRate::default();
    let Some(raw) = raw else { return Some(default) };
    let mut fields = Fields::new(at, problems);
    let (hosts, requests) = (raw.minimum_hosts, raw.minimum_requests);
    let deviations = raw.standard_deviations;
    if raw.mode == Some(raw::Mode::Disabled) {
        let rest = [
            ("minimumHosts", hosts.is_some()),
            ("minimumRequests", requests.is_some()),
            ("standardDeviations", deviations.is_some()),
        ];
        fields.nothing_beside("mode: Disabled", &rest);
    }
    let rate = SuccessRate {
        minimum_hosts: fields.number("minimumHosts", hosts, HOSTS, default.minimum_hosts),
        minimum_requests: fields.number("minimumRequests", requests, 1..=MAX_LIMIT, 100),
        standard_deviations: fields.decimal("standardDeviations", deviations, DEVIATIONS, 1.9),
    };
    (raw.mode.unwrap_or_default() == raw::Mode::Enabled).then_some(rate)
}

fn parse_latency(
    at: Path<'_>,
    raw: &raw::LatencyOutlier,
    problems: &mut Problems,
) -> LatencyOutlier {
    let default = LatencyOutlier::default();
    let mut fields = Fields::new(at, problems);
    let (hosts, requests) = (raw.minimum_hosts, raw.minimum_requests);
    LatencyOutlier {
        factor: fields.decimal("factor", raw.factor, FACTOR, default.factor),
        minimum_hosts: fields.number("minimumHosts", hosts, HOSTS, default.minimum_hosts),
        minimum_requests: fields.number("minimumRequests", requests, 1..=MAX_LIMIT, 20),
    }
}
