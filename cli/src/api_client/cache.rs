//! The part of the API that is about what sidecars keep of responses.

use http::Method;
use serde::Deserialize;
use serde_json::Value;

use super::{ApiClient, Error, JSON};

const PURGE: &str = "/cache/purge";

/// What has become of a purge when the control plane answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Purged {
    /// Sidecars that call the service and keep responses.
    pub proxies: usize,
    /// Those that have carried it out.
    pub confirmed: usize,
    /// Responses that these keep no longer.
    pub removed: u64,
    /// Names of those that have not; there may be more.
    pub waiting: Vec<String>,
}

impl ApiClient {
    /// Orders a purge; `order` as the API has it. Answers when all have confirmed it, or its time is up.
    pub async fn purge(&self, order: &Value) -> Result<(Purged, Value), Error> {
        let answer = self.ask(Method::POST, PURGE, Some((JSON, order))).await?.object;
        let purged = Purged::deserialize(&answer);
        let purged = purged.map_err(|error| self.unreadable(&error.to_string()))?;
        Ok((purged, answer))
    }
}
