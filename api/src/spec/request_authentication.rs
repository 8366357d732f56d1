//! `RequestAuthentication`: which JSON Web Tokens are valid at a workload. Fields and meaning are Istio's.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{reference::TargetRef, scope::WorkloadSelector};

/// `spec` of a `RequestAuthentication`. Requests with an invalid token are refused; those without a token pass and
/// have no request principal. In the namespace `leno-system` and without a selector it is for the whole mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// The workloads it is for; all of the namespace when left out.
    pub selector: Option<WorkloadSelector>,
    /// The services whose workloads it is for, instead of `selector`.
    pub target_refs: Option<Vec<TargetRef>>,
    /// At most 64.
    #[serde(default)]
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    /// The token's `iss`.
    pub issuer: String,
    /// One of them must be in the token's `aud`; any audience when left out.
    pub audiences: Option<Vec<String>>,
    /// Where the issuer's keys are (RFC 7517): an http or https URL. Excludes `jwks`.
    pub jwks_uri: Option<String>,
    /// The issuer's keys (RFC 7517), as a string of JSON. Excludes `jwksUri`.
    pub jwks: Option<String>,
    /// Headers in which a token may be. `Authorization: Bearer <token>` when this and `fromParams` are left out.
    pub from_headers: Option<Vec<JwtHeader>>,
    /// Query parameters in which a token may be.
    pub from_params: Option<Vec<String>>,
    /// Whether the token stays in the request; false when left out.
    #[serde(default)]
    pub forward_original_token: bool,
    /// Header that gets the token's payload, base64url-encoded.
    pub output_payload_to_header: Option<String>,
    /// Headers that get single claims.
    pub output_claim_to_headers: Option<Vec<ClaimToHeader>>,
    /// By how much the clocks of issuer and proxy may differ: `0s` to `5m`; 60 s when left out.
    pub leeway: Option<String>,
}

/// A header with a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtHeader {
    /// Its name; case does not matter.
    pub name: String,
    /// What stands before the token, a space included: `Bearer `. Nothing when left out.
    pub prefix: Option<String>,
}

/// A header that gets a claim.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Its name. What callers send under it is dropped.
    pub header: String,
    /// The claim; `a.b` is `b` inside of `a`.
    pub claim: String,
}
