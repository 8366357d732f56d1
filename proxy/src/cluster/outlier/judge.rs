//! Who is an outlier now, the worst first.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use super::{
    Cause, Entry, Streaks,
    settings::{Latency, Settings, SuccessRate},
};
use crate::cluster::window::Batch;

/// An endpoint's results, of those in service.
struct Sample {
    endpoint: u64,
    totals: Batch,
}

/// Those that some rule would eject, the one with the fewest successes first.
pub(super) fn outliers(
    settings: &Settings,
    endpoints: &BTreeMap<u64, Entry>,
    now: Duration,
) -> Vec<(u64, Cause)> {
    let serving = endpoints.iter().filter(|(_, entry)| !entry.is_ejected());
    let samples: Vec<Sample> = serving
        .clone()
        .map(|(endpoint, entry)| Sample { endpoint: *endpoint, totals: entry.window.totals(now) })
        .collect();
    let mut causes: BTreeMap<u64, Cause> = BTreeMap::new();
    if let Some(rule) = settings.latency {
        causes.extend(too_slow(&rule, &samples));
    }
    if let Some(rule) = settings.success_rate {
        causes.extend(too_few_successes(&rule, &samples));
    }
    causes.extend(
        serving.filter_map(|(endpoint, entry)| Some((*endpoint, in_a_row(settings, entry)?))),
    );
    let rates: BTreeMap<u64, f64> =
        samples.iter().map(|sample| (sample.endpoint, success_rate(&sample.totals))).collect();
    let mut worst_first: Vec<(u64, Cause)> = causes.into_iter().collect();
    let rate = |endpoint: u64| rates.get(&endpoint).copied().unwrap_or(1.0);
    worst_first.sort_by(|one, other| rate(one.0).total_cmp(&rate(other.0)));
    worst_first
}

fn in_a_row(settings: &Settings, entry: &Entry) -> Option<Cause> {
    let run = entry.longest;
    let rules = [
        (Streaks::Local, settings.consecutive_local, run.local),
        (Streaks::Gateway, settings.consecutive_gateway, run.gateway),
        (Streaks::Errors, settings.consecutive_errors, run.errors),
    ];
    rules.into_iter().find_map(|(kind, allowed, count)| {
        (count >= allowed?).then_some(Cause::Consecutive { kind, count })
    })
}

/// Below `mean - factor * stdev`, over the endpoints with enough results.
fn too_few_successes(rule: &SuccessRate, samples: &[Sample]) -> Vec<(u64, Cause)> {
    let judged: Vec<(u64, u64, f64)> = samples
        .iter()
        .map(|sample| (sample.endpoint, sample.totals.total(), success_rate(&sample.totals)))
        .filter(|(_, volume, _)| *volume >= rule.minimum_volume)
        .collect();
    if judged.len() < rule.minimum_hosts {
        return Vec::new();
    }
    let hosts = judged.len() as f64;
    let mean = judged.iter().map(|(.., rate)| rate).sum::<f64>() / hosts;
    let variance = judged.iter().map(|(.., rate)| (rate - mean).powi(2)).sum::<f64>() / hosts;
    let needed = (mean - rule.factor * variance.sqrt()).min(mean - rule.gap);
    let outlier = |(endpoint, volume, rate): (u64, u64, f64)| {
        (rate < needed).then_some((endpoint, Cause::SuccessRate { rate, mean, needed, volume }))
    };
    judged.into_iter().filter_map(outlier).collect()
}

/// Whose mean is too many times the median of the others' means.
fn too_slow(rule: &Latency, samples: &[Sample]) -> Vec<(u64, Cause)> {
    let mut judged: Vec<(Duration, u64, u64)> = samples
        .iter()
        .filter(|sample| sample.totals.count >= rule.minimum_volume)
        .filter_map(|sample| {
            Some((sample.totals.mean_latency()?, sample.endpoint, sample.totals.count))
        })
        .collect();
    if judged.len() < rule.minimum_hosts {
        return Vec::new();
    }
    judged.sort_unstable_by_key(|(mean, endpoint, _)| (*mean, *endpoint));
    let outlier = |(place, (mean, endpoint, volume)): (usize, &(Duration, u64, u64))| {
        let median = median_without(&judged, place);
        let slow = mean.as_secs_f64() > rule.factor * median.as_secs_f64() && *mean > rule.floor;
        let cause = Cause::Latency { mean: *mean, median, volume: *volume };
        slow.then_some((*endpoint, cause))
    };
    judged.iter().enumerate().filter_map(outlier).collect()
}

/// The lower median of sorted `means` but for the one at `place`.
fn median_without(means: &[(Duration, u64, u64)], place: usize) -> Duration {
    let middle = means.len().saturating_sub(2) / 2;
    let at = match middle.cmp(&place) {
        Ordering::Less => middle,
        Ordering::Equal | Ordering::Greater => middle + 1,
    };
    means.get(at).map_or(Duration::ZERO, |(mean, ..)| *mean)
}

/// 0 to 1; who did nothing did nothing wrong.
fn success_rate(totals: &Batch) -> f64 {
    match totals.total() {
        0 => 1.0,
        total => totals.successes as f64 / total as f64,
    }
}
