//! `TCPRoute`: Gateway API's fields, unchanged (gateway.networking.k8s.io/v1alpha2).

use schemars::JsonSchema;
use serde::Deserialize;

use super::reference::{BackendRef, ParentRef};

/// `spec` of a `TCPRoute`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// The services whose connections this route directs.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Exactly one (bytes tell nothing that a second could match on).
    pub rules: Vec<TcpRouteRule>,
}

/// Where connections go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteRule {
    /// A name for logs and metrics.
    pub name: Option<String>,
    /// By weight.
    pub backend_refs: Vec<BackendRef>,
}
