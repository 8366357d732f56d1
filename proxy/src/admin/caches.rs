//! What is kept of responses, by policy, for people and for metrics.

use std::{sync::Arc, time::SystemTime};

use leno_api::model::ObjectName;
use serde_json::{Value, json};
use tokio::task::JoinError;

use crate::{
    cache::{figures::Figures, remote},
    forward::worker::Shared,
    snapshot::{Published, Snapshot},
    telemetry::metrics::caches::{Remote, Sample},
};

/// Of each policy. To find the oldest response takes a while with a large cache: not for the side thread itself.
pub(super) async fn figures(
    published: &Published,
) -> Result<Vec<(ObjectName, Figures)>, JoinError> {
    let snapshot = published.load();
    tokio::task::spawn_blocking(move || of(&snapshot)).await
}

fn of(snapshot: &Snapshot) -> Vec<(ObjectName, Figures)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let caches = snapshot.caches.iter();
    caches.map(|(policy, cache)| (policy.clone(), cache.figures(now))).collect()
}

/// `/cache` as JSON.
pub(super) fn page(figures: &[(ObjectName, Figures)]) -> Value {
    let caches: Vec<Value> = figures.iter().map(cache).collect();
    json!({ "caches": caches })
}

fn cache((policy, figures): &(ObjectName, Figures)) -> Value {
    json!({
        "policy": policy.to_string(),
        "hits": figures.hits,
        "misses": figures.misses,
        "stale": figures.stale,
        "collapsed": figures.collapsed,
        "validated": figures.validated,
        "purged": figures.purged,
        "evicted": figures.evicted,
        "urls": figures.urls,
        "bytes": figures.bytes,
        "maxBytes": figures.most_bytes,
        "savedBytes": figures.saved_bytes,
        "oldestSeconds": figures.oldest.map(|age| age.as_secs()),
        "hitRatio": figures.hit_ratio(),
    })
}

/// The same as lines: `shop/catalogue::hits::7`. What is not known has none.
pub(super) fn lines(figures: &[(ObjectName, Figures)]) -> String {
    let mut text = String::new();
    for (policy, figures) in figures {
        let known = [
            ("hits", figures.hits),
            ("misses", figures.misses),
            ("stale", figures.stale),
            ("collapsed", figures.collapsed),
            ("validated", figures.validated),
            ("purged", figures.purged),
            ("evicted", figures.evicted),
            ("urls", figures.urls),
            ("bytes", figures.bytes),
            ("max_bytes", figures.most_bytes),
            ("saved_bytes", figures.saved_bytes),
        ];
        for (name, value) in known {
            text.push_str(&format!("{policy}::{name}::{value}\n"));
        }
        if let Some(age) = figures.oldest {
            text.push_str(&format!("{policy}::oldest_seconds::{}\n", age.as_secs()));
        }
        if let Some(ratio) = figures.hit_ratio() {
            text.push_str(&format!("{policy}::hit_ratio::{ratio:.4}\n"));
        }
    }
    text
}

/// Shows them in the metrics.
pub fn show(shared: &Shared) {
    let published = shared.published.clone();
    shared.families.caches.show(move || samples(&published));
}

fn samples(published: &Published) -> Vec<Sample> {
    let snapshot = published.load();
    let caches = snapshot.caches.iter();
    let sample = |(policy, cache): (&ObjectName, &Arc<crate::cache::Cache>)| {
        // Ages are for people: whoever scrapes does so often, and must not go through all that is kept.
        let figures = cache.counters().figures(&cache.store().figures(), None);
        Sample {
            policy: policy.to_string(),
            hits: figures.hits,
            misses: figures.misses,
            stale: figures.stale,
            collapsed: figures.collapsed,
            validated: figures.validated,
            purged: figures.purged,
            evicted: figures.evicted,
            saved_bytes: figures.saved_bytes,
            bytes: figures.bytes,
            most_bytes: figures.most_bytes,
            urls: figures.urls,
            remote: cache.remote().map(|remote| {
                let remote::Figures { hits, misses, errors, dropped, state } = remote.figures();
                Remote { hits, misses, errors, dropped, state }
            }),
        }
    };
    caches.map(sample).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_shown_of_a_cache() {
        let figures = Figures {
            hits: 3,
            misses: 1,
            bytes: 10,
            most_bytes: 100,
            oldest: Some(Duration::from_millis(1_900)),
            ..Figures::default()
        };
        let name = |name| ObjectName::new("shop", name);
        let all = [(name("a"), figures), (name("b"), Figures::default())];
        let page = page(&all);
        let (a, b) = (&page["caches"][0], &page["caches"][1]);
        assert_eq!(
            (&a["policy"], &a["hits"], &a["maxBytes"]),
            (&json!("shop/a"), &json!(3), &json!(100))
        );
        assert_eq!((&a["hitRatio"], &a["oldestSeconds"]), (&json!(0.75), &json!(1)));
        assert_eq!((&b["hitRatio"], &b["oldestSeconds"]), (&Value::Null, &Value::Null));
        let text = lines(&all);
        for line in ["shop/a::hits::3", "shop/a::hit_ratio::0.7500", "shop/b::max_bytes::0"] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("shop/b::hit_ratio"), "{text}");
        assert_eq!(lines(&[]), "");
    }
}
