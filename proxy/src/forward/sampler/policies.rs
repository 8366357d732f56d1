//! What policies say, as the machines want it.

use leno_api::model::traffic_policy::{self, Settings};

use crate::cluster::{circuit, outlier};

/// What ejects endpoints, and how they come back.
pub(super) fn outlier_settings(settings: &Settings) -> outlier::Settings {
    let (detection, slow_start) = (&settings.outlier_detection, settings.slow_start);
    let rate = |rate: traffic_policy::SuccessRate| outlier::settings::SuccessRate {
        minimum_hosts: rate.minimum_hosts as usize,
        minimum_volume: rate.minimum_requests.into(),
        factor: rate.standard_deviations,
        ..outlier::settings::SuccessRate::default()
    };
    let latency = |latency: traffic_policy::LatencyOutlier| outlier::settings::Latency {
        minimum_hosts: latency.minimum_hosts as usize,
        minimum_volume: latency.minimum_requests.into(),
        factor: latency.factor,
        ..outlier::settings::Latency::default()
    };
    let common = outlier::Settings {
        panic_percent: detection.panic_percent,
        ramp: slow_start.window,
        ramp_percent: slow_start.minimum_percent,
        ..outlier::Settings::default()
    };
    if !detection.enabled {
        // Health checks and slow start go on.
        return outlier::Settings {
            consecutive_errors: None,
            consecutive_gateway: None,
            consecutive_local: None,
            success_rate: None,
            latency: None,
            max_ejected_percent: 0,
            ..common
        };
    }
    outlier::Settings {
        consecutive_errors: detection.consecutive_5xx,
        consecutive_gateway: detection.consecutive_gateway_errors,
        consecutive_local: detection.consecutive_local_errors,
        success_rate: detection.success_rate.map(rate),
        latency: detection.latency.map(latency),
        window: detection.interval,
        base_ejection: detection.base_ejection,
        max_ejection: detection.max_ejection,
        max_ejected_percent: detection.max_ejected_percent,
        ..common
    }
}

/// What opens a breaker.
pub(super) fn circuit_settings(circuit: &traffic_policy::Circuit) -> circuit::Settings {
    let slow = |slow: traffic_policy::SlowCalls| circuit::Slow {
        threshold: slow.threshold,
        percent: slow.percent,
    };
    circuit::Settings {
        window: circuit.window,
        minimum: circuit.minimum.into(),
        error_percent: circuit.error_percent.unwrap_or(circuit::NEVER),
        slow: circuit.slow_calls.map(slow),
        open_for: circuit.open_for,
        open_max: circuit.max_open_for,
        probes: circuit.probes,
    }
}
