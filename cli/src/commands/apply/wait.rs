//! `leno apply --wait`: stays until what was applied is live on every proxy that uses it.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{api_client::ApiClient, error::Error, files::Manifest, status::condition};

const POLL: Duration = Duration::from_millis(50);

/// How far a resource got.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Live(String),
    Pending(String),
    Rejected(String),
}

/// Tells for each resource where it is live; `false` when one was rejected or is not live in time.
pub async fn until_live(
    client: &ApiClient,
    manifests: &[Manifest],
    limit: Duration,
    out: &mut impl Write,
) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    let mut good = true;
    for manifest in manifests {
        let resource = &manifest.resource;
        let key = resource.key();
        loop {
            let object = client.get(resource.kind, &resource.name()).await?.unwrap_or_default();
            match progress(&object) {
                Progress::Live(message) => {
                    writeln!(out, "{key}: {message}")?;
                    break;
                }
                Progress::Rejected(message) => {
                    eprintln!("error: {}", manifest.locate("", &message));
                    good = false;
                    break;
                }
                Progress::Pending(message) if Instant::now() >= deadline => {
                    let message = format!("not live everywhere within {limit:?}: {message}");
                    eprintln!("error: {}", manifest.locate("", &message));
                    good = false;
                    break;
                }
                Progress::Pending(_) => sleep(POLL).await,
            }
        }
    }
    Ok(good)
}

fn progress(object: &serde_json::Value) -> Progress {
    let Some(live) = condition(object, "Live") else {
        return Progress::Pending(
            "the control plane has not said anything about it yet".to_owned(),
        );
    };
    let message = live.message.to_owned();
    match (live.status, live.reason) {
        ("True", _) | (_, "NotUsed") => Progress::Live(message),
        (_, "Rejected" | "Invalid") => Progress::Rejected(message),
        _ => Progress::Pending(message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_no_proxy_waits_for_is_live() {
        let object = |status, reason| {
            json!({"metadata": {"generation": 1}, "status": {"conditions": [
                {"type": "Live", "status": status, "reason": reason, "message": "m", "observedGeneration": 1},
            ]}})
        };
        let message = || "m".to_owned();
        assert_eq!(progress(&object("True", "Live")), Progress::Live(message()));
        assert_eq!(progress(&object("Unknown", "NotUsed")), Progress::Live(message()));
        assert_eq!(progress(&object("False", "Rejected")), Progress::Rejected(message()));
        assert_eq!(progress(&object("False", "Pending")), Progress::Pending(message()));
        assert!(matches!(progress(&json!({})), Progress::Pending(_)));
    }
}
