//! `HTTPRoute`: Gateway API's fields, unchanged (gateway.networking.k8s.io/v1).

use schemars::JsonSchema;
use serde::Deserialize;

use super::reference::{BackendRef, ParentRef};

/// `spec` of an `HTTPRoute`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The services whose traffic this route directs.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Only requests for these hosts; any when empty. `*.example.com` is allowed.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// 1 to 64.
    pub rules: Vec<HttpRouteRule>,
}

/// One rule: which requests, what happens to them, where they go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// A name for logs and metrics.
    pub name: Option<String>,
    /// Any of these is enough; every request when empty.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    /// Applied in order.
    #[serde(default)]
    pub filters: Vec<HttpRouteFilter>,
    /// Where requests go, by weight. Without any (and without a redirect) the answer is 500.
    #[serde(default)]
    pub backend_refs: Vec<HttpBackendRef>,
    /// Bounds on time.
    pub timeouts: Option<HttpRouteTimeouts>,
    /// What is sent again (GEP-1731).
    pub retry: Option<HttpRouteRetry>,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// `PathPrefix` `/` when left out.
    pub path: Option<HttpPathMatch>,
    /// All must match.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// All must match.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    /// `GET`, `POST` ...
    pub method: Option<String>,
}

/// A condition on the path.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// `PathPrefix` when left out.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// `/` when left out.
    pub value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The whole path, case-sensitive.
    Exact,
    /// Whole segments from the start.
    #[default]
    PathPrefix,
    /// The whole path, in RE2 syntax.
    RegularExpression,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// `Exact` when left out.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Header names do not mind case; parameter names do.
    pub name: String,
    /// Value or expression.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// The whole value, case-sensitive.
    #[default]
    Exact,
    /// The whole value, in RE2 syntax.
    RegularExpression,
}

/// Something done to a request or response; exactly the field that `type` names is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteFilter {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// For `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// For `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// For `RequestMirror`.
    pub request_mirror: Option<RequestMirror>,
    /// For `RequestRedirect`.
    pub request_redirect: Option<RequestRedirect>,
    /// For `URLRewrite`.
    pub url_rewrite: Option<UrlRewrite>,
}

/// The filters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FilterType {
    /// Changes request headers.
    RequestHeaderModifier,
    /// Changes response headers.
    ResponseHeaderModifier,
    /// Sends a copy elsewhere and ignores the answer.
    RequestMirror,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host or path before the request goes on.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
}

/// Changes to headers: `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replaces all values.
    #[serde(default)]
    pub set: Vec<HeaderValue>,
    /// Adds a value to those there.
    #[serde(default)]
    pub add: Vec<HeaderValue>,
    /// Names to remove.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValue {
    /// A token (RFC 9110 section 5.6.2).
    pub name: String,
    /// At most 4,096 characters.
    pub value: String,
}

/// Where copies go, and of how many requests.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// The service that gets the copies.
    pub backend_ref: BackendRef,
    /// 0 to 100; all when both are left out.
    pub percent: Option<i64>,
    /// A finer share.
    pub fraction: Option<Fraction>,
}

/// `numerator` of `denominator`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: i64,
    /// 100 when left out.
    pub denominator: Option<i64>,
}

/// A redirect; what is left out stays as in the request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<i64>,
    /// 301, 302, 303, 307 or 308; 302 when left out.
    pub status_code: Option<i64>,
}

/// A rewrite; what is left out stays.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// Value of the `Host` header or `:authority`.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// How a path is changed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For `ReplaceFullPath`.
    pub replace_full_path: Option<String>,
    /// For `ReplacePrefixMatch`; needs a `PathPrefix` match in the rule.
    pub replace_prefix_match: Option<String>,
}

/// The ways there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// The whole path.
    ReplaceFullPath,
    /// Only the prefix that matched.
    ReplacePrefixMatch,
}

/// A backend with filters of its own. (Written out: serde cannot flatten and refuse unknown fields.)
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpBackendRef {
    /// See [`BackendRef::group`].
    pub group: Option<String>,
    /// See [`BackendRef::kind`].
    pub kind: Option<String>,
    /// See [`BackendRef::namespace`].
    pub namespace: Option<String>,
    /// See [`BackendRef::name`].
    pub name: String,
    /// See [`BackendRef::port`].
    pub port: Option<i64>,
    /// See [`BackendRef::weight`].
    pub weight: Option<i64>,
    /// Only for requests that go to this backend: header modifiers.
    #[serde(default)]
    pub filters: Vec<HttpRouteFilter>,
}

impl HttpBackendRef {
    /// The reference and the filters apart.
    pub fn split(self) -> (BackendRef, Vec<HttpRouteFilter>) {
        let Self { group, kind, namespace, name, port, weight, filters } = self;
        (BackendRef { group, kind, namespace, name, port, weight }, filters)
    }
}

/// Bounds on time, in Gateway API's duration format (`1h30m`, `500ms`); `0s` means none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteTimeouts {
    /// For the whole exchange.
    pub request: Option<String>,
    /// For one attempt; at most `request`.
    pub backend_request: Option<String>,
}

/// What is sent again, within the budget of the service's policy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRetry {
    /// After which status codes, 400 to 599; at most 32.
    #[serde(default)]
    pub codes: Vec<i64>,
    /// Retries of one request, at most; 1 to 10, what the service's policy says when left out.
    pub attempts: Option<i64>,
    /// The least time between two attempts; at most 1m, what the service's policy says when left out.
    pub backoff: Option<String>,
}
