//! `PeerAuthentication`: whether workloads take mutual TLS, plain text, or both.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{reference::TargetRef, scope::WorkloadSelector};

/// `spec` of a `PeerAuthentication`. In the namespace `leno-system` and without a selector it is for the whole mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// The workloads it is for; all of the namespace when left out.
    pub selector: Option<WorkloadSelector>,
    /// The services whose workloads it is for, instead of `selector`.
    pub target_refs: Option<Vec<TargetRef>>,
    /// For every port that `portLevelMtls` does not name.
    pub mtls: Option<MutualTls>,
    /// By the port at which the application listens: `{9001: {mode: PERMISSIVE}}`.
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// What is taken.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTls {
    /// `UNSET` when left out.
    #[serde(default)]
    pub mode: MutualTlsMode,
}

/// The modes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the next less specific policy says; `STRICT` where none says anything.
    #[default]
    Unset,
    /// Plain text only.
    Disable,
    /// Mutual TLS and plain text.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
