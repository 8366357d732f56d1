//! `CachePolicy`: what callers keep of a service's responses.

use schemars::JsonSchema;
use serde::Deserialize;

use super::quantity::Bytes;

/// `spec` of a `CachePolicy`. The sidecars of callers keep responses as RFC 9111 lets a shared cache; what is said here
/// comes on top. A response that is not `public` is only ever shown to the identity it was fetched for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CachePolicySpec {
    /// The services and routes it applies to, 1 to 16, in its own namespace. A policy of a route wins over that of the
    /// service, one of a rule over that of its route, one of a port over that of all ports.
    pub target_refs: Vec<CacheTargetRef>,
    /// Whether responses are kept at all; true when left out. False turns it off for what is targeted, whatever a
    /// policy for more says.
    pub enabled: Option<bool>,
    /// Memory for all responses that are kept under this policy, in each sidecar, in bytes or as `64Mi`; 1Mi to 64Gi,
    /// 64Mi when left out.
    pub max_bytes: Option<Bytes>,
    /// The largest response that is kept, in bytes or as `1Mi`; 1Ki to an eighth of `maxBytes`, 1Mi when left out (or
    /// that eighth, where it is less).
    pub max_object_bytes: Option<Bytes>,
    /// How long a response is fresh that does not say so; 1s to 8760h. When left out, only as long as its age lets
    /// guess (RFC 9111 section 4.2.2).
    pub default_ttl: Option<String>,
    /// How long a response with status 404, 405, 410, 414 or 501 is fresh that does not say so; 1s to 8760h. As other
    /// statuses when left out.
    pub negative_ttl: Option<String>,
    /// Keeps responses to GET for so long whatever they say of it (`no-store`, `private`, `Set-Cookie`), though never for
    /// other identities; 1s to 8760h. For those who know the origin better than it does. Off when left out.
    pub force_ttl: Option<String>,
    /// How long a response that is no longer fresh is served while a new one is fetched, where it does not say so
    /// itself (RFC 5861); 0s to 8760h, 0s when left out.
    pub stale_while_revalidate: Option<String>,
    /// How long a response that is no longer fresh is served when no new one can be had, where it does not say so
    /// itself (RFC 5861); 0s to 8760h, 0s when left out.
    pub stale_if_error: Option<String>,
    /// What is answered from memory; GET and HEAD when left out.
    pub methods: Option<Vec<CacheMethod>>,
    /// Only responses with these statuses are kept, 1 to 64 of 200 to 599 without 206 and 304. All that RFC 9111 lets
    /// when left out.
    pub statuses: Option<Vec<i64>>,
    /// What tells responses of one URL apart, beside what they say in `Vary`.
    pub key: Option<CacheKey>,
    /// The response header with the tags by which responses can be purged; `Surrogate-Key` and `Cache-Tag` when left
    /// out.
    pub tags_header: Option<String>,
    /// How requests for the same response share one fetch. On by default.
    pub collapse: Option<Collapse>,
    /// A Redis that all sidecars share as a second tier, for `public` responses only; none when left out. When it is slow
    /// or gone, requests go on without it.
    pub redis: Option<Redis>,
}

/// What a cache policy applies to.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheTargetRef {
    /// `""`, `core` or `leno.dev` for a Service, `gateway.networking.k8s.io` for an HTTPRoute.
    #[serde(default)]
    pub group: String,
    /// `Service` or `HTTPRoute`.
    pub kind: String,
    /// Name, in the policy's own namespace.
    pub name: String,
    /// Name of one port of the service, or of one rule of the route; all when left out.
    pub section_name: Option<String>,
}

/// A method whose requests can be answered from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CacheMethod {
    /// The whole response.
    Get,
    /// Its head, also of a response that was fetched with GET.
    Head,
}

/// What tells responses apart.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheKey {
    /// Request headers whose values become part of the key; up to 16.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Cookies whose values become part of the key; up to 16.
    #[serde(default)]
    pub cookies: Vec<String>,
    /// Which parameters of the query count; the whole query as it is written when left out.
    pub query: Option<CacheQuery>,
}

/// Which parameters of the query count. Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheQuery {
    /// Only these, up to 64; an empty list leaves the query out of the key. Case counts.
    pub include: Option<Vec<String>>,
    /// All but these, 1 to 64. Case counts.
    pub exclude: Option<Vec<String>>,
}

/// How requests share a fetch.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Collapse {
    /// How long a request waits for a response that is already being fetched, before it goes to the origin itself;
    /// 0s to 1m, 5s when left out. 0s: every request that finds nothing goes at once.
    pub wait: Option<String>,
}

/// A second tier that sidecars share.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redis {
    /// `host:port`, such as `redis.shop:6379`.
    pub address: String,
    /// Whether TLS is spoken; false when left out.
    pub tls: Option<bool>,
    /// For Redis' access lists; needs `passwordFile`. Redis' default user when left out.
    pub username: Option<String>,
    /// Path of a file at the sidecar that holds the password and nothing else. Without a password when left out.
    pub password_file: Option<String>,
    /// How long a request waits for Redis; 1ms to 1s, 50ms when left out.
    pub timeout: Option<String>,
}
