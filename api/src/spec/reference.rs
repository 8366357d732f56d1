//! References from one resource to another, as Gateway API writes them.

use schemars::JsonSchema;
use serde::Deserialize;

/// What a route is attached to. In a mesh: a `Service`, written with `group: ""` (or `leno.dev`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// `""`, `core` or `leno.dev` for a Service. Left out it means Gateway API's own group.
    pub group: Option<String>,
    /// `Service`. Left out it means `Gateway`.
    pub kind: Option<String>,
    /// Namespace of the parent; the route's own when left out.
    pub namespace: Option<String>,
    /// Name of the parent.
    pub name: String,
    /// Name of one port of the parent; all ports when both this and `port` are left out.
    pub section_name: Option<String>,
    /// Number of one port of the parent.
    pub port: Option<i64>,
}

/// Where traffic goes: a port of a `Service`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// `""`, `core` or `leno.dev`; `""` when left out.
    pub group: Option<String>,
    /// `Service`, also when left out.
    pub kind: Option<String>,
    /// The route's own namespace, also when left out.
    pub namespace: Option<String>,
    /// Name of the service.
    pub name: String,
    /// Port of the service. May be left out when the service has one port only.
    pub port: Option<i64>,
    /// Share of the traffic, relative to its siblings: 0 to 1,000,000; 1 when left out.
    pub weight: Option<i64>,
}

/// What a policy applies to.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// `""`, `core` or `leno.dev`.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// Name, in the policy's own namespace.
    pub name: String,
    /// Name of one port; all ports when left out.
    pub section_name: Option<String>,
}
