//! `AuthorizationPolicy`: who may do what at a workload. Fields and meaning are Istio's.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{reference::TargetRef, scope::WorkloadSelector};

/// `spec` of an `AuthorizationPolicy`. In the namespace `leno-system` and without a selector it is for the whole mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The workloads it is for; all of the namespace when left out.
    pub selector: Option<WorkloadSelector>,
    /// The services whose workloads it is for, instead of `selector`.
    pub target_refs: Option<Vec<TargetRef>>,
    /// At most 64; any is enough. Without rules nothing matches: `ALLOW` then denies everything.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// `ALLOW` when left out.
    #[serde(default)]
    pub action: Action,
}

/// What happens to requests that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// They pass; what no such policy of the workload matches is denied.
    #[default]
    Allow,
    /// They are denied, whatever else allows them.
    Deny,
    /// They are logged.
    Audit,
}

/// All of `from`, `to` and `when` must match; `{}` matches everything.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Any is enough; everybody when left out.
    pub from: Option<Vec<From>>,
    /// Any is enough; everything when left out.
    pub to: Option<Vec<To>>,
    /// All are needed.
    pub when: Option<Vec<Condition>>,
}

/// A caller.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// Which one.
    pub source: Source,
}

/// Whose requests; every field that is set must match. Values may begin or end with `*`; `*` alone is any value.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Identities as certificates prove them: `cluster.local/ns/shop/sa/orders`.
    pub principals: Option<Vec<String>>,
    /// Identities that do not match.
    pub not_principals: Option<Vec<String>>,
    /// `<issuer>/<subject>` of a valid JWT.
    pub request_principals: Option<Vec<String>>,
    /// Those that do not match.
    pub not_request_principals: Option<Vec<String>>,
    /// Namespaces as certificates prove them.
    pub namespaces: Option<Vec<String>>,
    /// Those that do not match.
    pub not_namespaces: Option<Vec<String>>,
    /// `<namespace>/<service account>`, or an account of the policy's namespace; excludes `principals` and `namespaces`.
    pub service_accounts: Option<Vec<String>>,
    /// Those that do not match.
    pub not_service_accounts: Option<Vec<String>>,
    /// Addresses of the peer of the connection: `10.0.0.0/8`, `192.0.2.7`.
    pub ip_blocks: Option<Vec<String>>,
    /// Those that do not match.
    pub not_ip_blocks: Option<Vec<String>>,
}

/// Something done.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// What.
    pub operation: Operation,
}

/// Which requests; every field that is set must match. Values may begin or end with `*`; `*` alone is any value.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Hosts of the request; case does not matter.
    pub hosts: Option<Vec<String>>,
    /// Those that do not match.
    pub not_hosts: Option<Vec<String>>,
    /// Ports at which the application listens.
    pub ports: Option<Vec<String>>,
    /// Those that do not match.
    pub not_ports: Option<Vec<String>>,
    /// Methods, in capitals. gRPC is always `POST`.
    pub methods: Option<Vec<String>>,
    /// Those that do not match.
    pub not_methods: Option<Vec<String>>,
    /// Normalised paths without query; for gRPC `/package.service/method`. `{*}` is one segment, `{**}` any rest.
    pub paths: Option<Vec<String>>,
    /// Those that do not match.
    pub not_paths: Option<Vec<String>>,
}

/// A further condition: one of `values`, and none of `notValues`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// `request.headers[x]`, `request.auth.claims[a][b]`, `source.ip`, `destination.port`, ...
    pub key: String,
    /// Those that match.
    pub values: Option<Vec<String>>,
    /// Those that do not match.
    pub not_values: Option<Vec<String>>,
}
