//! Who calls whom, how often, how fast: from what the callers' sidecars count.

use std::{collections::BTreeMap, time::Duration};

use super::metrics::Sample;

/// Istio's names, which Leno's sidecars use.
const REQUESTS: &str = "istio_requests_total";
const DURATION_BUCKET: &str = "istio_request_duration_milliseconds_bucket";
const TCP_OPENED: &str = "istio_tcp_connections_opened_total";
/// Where a sidecar answered by itself.
const NOBODY: &str = "unknown";
const BY_CALLER: &str = "source";

/// A caller and who answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: String,
    pub to: String,
    pub protocol: String,
}

/// What is known of an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests, or connections where the protocol is TCP.
    pub count: f64,
    /// Of which failed: status 500 or above, or none.
    pub failed: f64,
    /// Requests that took at most so many milliseconds, by that number in thousandths (floats have no order).
    buckets: BTreeMap<u64, f64>,
}

/// Everything the sidecars counted up to a moment.
#[derive(Clone, Debug, Default)]
pub struct Calls(pub BTreeMap<Edge, Figures>);

impl Calls {
    /// Adds what one sidecar counted.
    pub fn add(&mut self, samples: &[Sample]) {
        for sample in samples.iter().filter(|sample| sample.label("reporter") == BY_CALLER) {
            match sample.name.as_str() {
                REQUESTS => {
                    let figures = self.figures(sample, sample.label("request_protocol"));
                    figures.count += sample.value;
                    let status = sample.label("response_code").parse().unwrap_or(0);
                    let grpc_ok = matches!(sample.label("grpc_response_status"), "" | "0");
                    if !(100..500).contains(&status) || !grpc_ok {
                        figures.failed += sample.value;
                    }
                }
                DURATION_BUCKET => {
                    let Some(bound) = bound(sample.label("le")) else { continue };
                    let figures = self.figures(sample, sample.label("request_protocol"));
                    *figures.buckets.entry(bound).or_default() += sample.value;
                }
                TCP_OPENED => self.figures(sample, "tcp").count += sample.value,
                _ => {}
            }
        }
    }

    /// What was counted after `earlier`, edges without anything left out.
    pub fn since(&self, earlier: &Self) -> Self {
        let none = Figures::default();
        let rows = self.0.iter().map(|(edge, now)| {
            let then = earlier.0.get(edge).unwrap_or(&none);
            (edge.clone(), now.since(then))
        });
        Self(rows.filter(|(_, figures)| figures.count > 0.0).collect())
    }

    fn figures(&mut self, sample: &Sample, protocol: &str) -> &mut Figures {
        let to = match sample.label("destination_workload") {
            // No instance was asked.
            NOBODY => format!("{} (cached)", sample.label("destination_service_name")),
            workload => workload.to_owned(),
        };
        let edge = Edge {
            from: sample.label("source_workload").to_owned(),
            to,
            protocol: protocol.to_owned(),
        };
        self.0.entry(edge).or_default()
    }
}

impl Figures {
    /// The latency that `share` of the requests did not exceed, interpolated within its bucket.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total = *self.buckets.values().next_back()?;
        if total <= 0.0 {
            return None;
        }
        let wanted = total * share;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            let high = *bound as f64 / 1000.0;
            if *count >= wanted {
                let within = (wanted - below) / (count - below).max(1.0);
                // Nothing is known above the last bound.
                let milliseconds =
                    if *bound == u64::MAX { low } else { low + (high - low) * within };
                return Some(Duration::from_secs_f64(milliseconds / 1000.0));
            }
            (low, below) = (high, *count);
        }
        None
    }

    fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().map(|(bound, count)| {
            (*bound, count - earlier.buckets.get(bound).copied().unwrap_or_default())
        });
        Self {
            count: self.count - earlier.count,
            failed: self.failed - earlier.failed,
            buckets: buckets.collect(),
        }
    }
}

fn bound(text: &str) -> Option<u64> {
    if text == "+Inf" {
        return Some(u64::MAX);
    }
    let milliseconds: f64 = text.parse().ok()?;
    Some((milliseconds * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::metrics::samples;

    fn calls(count: u32) -> Calls {
        let labels = |rest: &str| {
            format!(
                "{{reporter=\"source\",source_workload=\"customer\",destination_workload=\"order-1\",\
                 request_protocol=\"http\"{rest}}}"
            )
        };
        let text = [
            format!("istio_requests_total{} {count}", labels(",response_code=\"201\"")),
            format!("istio_requests_total{} 2", labels(",response_code=\"503\"")),
            "istio_requests_total{reporter=\"destination\",response_code=\"201\"} 100".to_owned(),
            format!("{DURATION_BUCKET}{} {}", labels(",le=\"1\""), count / 2),
            format!("{DURATION_BUCKET}{} {count}", labels(",le=\"5\"")),
            format!("{DURATION_BUCKET}{} {count}", labels(",le=\"+Inf\"")),
            "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"order-1\",\
             destination_workload=\"notification-1\"} 7"
                .to_owned(),
        ]
        .join("\n");
        let mut calls = Calls::default();
        calls.add(&samples(&text));
        calls
    }

    #[test]
    fn edges_are_counted_once_by_the_caller() {
        let calls = calls(100);
        assert_eq!(calls.0.len(), 2);
        let (edge, figures) = calls.0.iter().next().unwrap();
        assert_eq!((edge.from.as_str(), edge.to.as_str()), ("customer", "order-1"));
        assert_eq!((figures.count, figures.failed), (102.0, 2.0));
        assert_eq!(calls.0.values().last().unwrap().count, 7.0);
    }

    #[test]
    fn quantiles_are_found_in_their_bucket() {
        let calls = calls(100);
        let figures = calls.0.values().next().unwrap();
        assert_eq!(figures.quantile(0.25), Some(Duration::from_micros(500)));
        assert_eq!(figures.quantile(0.75), Some(Duration::from_millis(3)));
        assert_eq!(Figures::default().quantile(0.5), None);
    }

    #[test]
    fn only_what_came_since_counts() {
        let rows = calls(100).since(&calls(40)).0;
        assert_eq!(rows.len(), 1, "no new connection to notification");
        let figures = rows.values().next().unwrap();
        assert_eq!((figures.count, figures.failed), (60.0, 0.0));
        assert_eq!(figures.quantile(1.0), Some(Duration::from_millis(5)));
    }
}
