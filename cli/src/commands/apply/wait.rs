//! `leno apply --wait`: stays until what was applied is live on every proxy that uses it.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    api_client::ApiClient,
    error::Error,
    files::Manifest,
    status::{Progress, progress},
};

const POLL: Duration = Duration::from_millis(50);

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
