//! Conditions on requests, as Leno's own policies write them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{http_route::HttpPathMatch, traffic_policy::Empty};

/// Which requests: all that is set must match.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMatch {
    /// On the path, as in an `HTTPRoute`.
    pub path: Option<HttpPathMatch>,
    /// `GET`, `POST` ...
    pub method: Option<String>,
    /// All must match; at most 16.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
}

/// A condition on a header. Exactly one of `exact` and `present` is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Case does not matter.
    pub name: String,
    /// The whole value, case-sensitive.
    pub exact: Option<String>,
    /// Whatever its value.
    pub present: Option<Empty>,
}
