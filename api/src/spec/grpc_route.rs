//! `GRPCRoute`: Gateway API's fields, unchanged (gateway.networking.k8s.io/v1).

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    http_route::{HttpBackendRef, HttpRouteFilter, ValueMatch, ValueMatchType},
    reference::ParentRef,
};

/// `spec` of a `GRPCRoute`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// The services whose calls this route directs.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Only calls for these hosts; any when empty.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// 1 to 64.
    pub rules: Vec<GrpcRouteRule>,
}

/// One rule: which calls, what happens to them, where they go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// A name for logs and metrics.
    pub name: Option<String>,
    /// Any of these is enough; every call when empty.
    #[serde(default)]
    pub matches: Vec<GrpcRouteMatch>,
    /// Header modifiers and mirrors.
    #[serde(default)]
    pub filters: Vec<HttpRouteFilter>,
    /// Where calls go, by weight.
    #[serde(default)]
    pub backend_refs: Vec<HttpBackendRef>,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// Every method when left out.
    pub method: Option<GrpcMethodMatch>,
    /// All must match.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
}

/// A condition on the method; at least one of the two names is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// `Exact` when left out.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Full name of the service: `shop.v1.Products`.
    pub service: Option<String>,
    /// Name of the method: `GetProduct`.
    pub method: Option<String>,
}
