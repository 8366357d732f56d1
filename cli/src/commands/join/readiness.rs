//! Whether a sidecar of this machine is ready, as it says itself.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use crate::http_client::HttpClient;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks once, at its port for operators.
///
/// # Errors
/// Why it is not, or cannot be asked.
pub async fn ask(admin: &str) -> Result<(), String> {
    let client = HttpClient::new(&format!("http://{admin}")).map_err(|error| error.to_string())?;
    let request = Request::get("/ready").body(Full::<Bytes>::default());
    let request = request.map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    if answer.status().is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(answer.body()).trim().to_owned();
    Err(format!("is not ready: {text}"))
}

/// Asks again and again, for `limit`.
///
/// # Errors
/// What it said last.
pub async fn wait(admin: &str, limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    let mut said = "does not answer".to_owned();
    loop {
        match timeout_at(end, ask(admin)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => said = reason,
            Err(_) => return Err(said),
        }
        if Instant::now() >= end {
            return Err(said);
        }
        sleep(PAUSE).await;
    }
}
