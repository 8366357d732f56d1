//! `WasmPlugin`: a Proxy-Wasm plugin and where it runs. Fields and meaning are Istio's where it has them.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{reference::TargetRef, scope::WorkloadSelector};

/// `spec` of a `WasmPlugin`. In the namespace `leno-system` and without a selector it is for the whole mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WasmPluginSpec {
    /// The workloads at whose proxies it runs; all of the namespace when left out.
    pub selector: Option<WorkloadSelector>,
    /// The services it is for, instead of `selector`: on the server's side at their workloads, on the client's side at
    /// whoever calls them.
    pub target_refs: Option<Vec<TargetRef>>,
    /// The module: `file:///plugins/tag.wasm` on the proxy's machine, `http://` or `https://` (with `sha256`), or
    /// `oci://registry/repository:tag` (or `@sha256:...`).
    pub url: String,
    /// SHA-256 of the module, 64 hexadecimal digits. What has another one is refused.
    pub sha256: Option<String>,
    /// When it runs; `UNSPECIFIED_PHASE` (last) when left out.
    #[serde(default)]
    pub phase: Phase,
    /// Higher goes first within a phase; 0 when left out.
    pub priority: Option<i64>,
    /// Which traffic it sees; all that comes in when left out.
    #[serde(rename = "match")]
    pub matches: Option<Vec<TrafficMatch>>,
    /// What it works on; `HTTP` when left out.
    #[serde(rename = "type", default)]
    pub kind: PluginType,
    /// Which of several plugins in the module it is (the root id).
    pub plugin_name: Option<String>,
    /// What the plugin is configured with: handed over as JSON, a string as its bare text.
    pub plugin_config: Option<Value>,
    /// The plugin's surroundings.
    pub vm_config: Option<VmConfig>,
    /// What it may use.
    pub limits: Option<Limits>,
    /// What becomes of a request when the plugin cannot run; `Closed` when left out.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// Functions of the ABI and of WASI that the plugin may use, and callbacks it gets; all when left out.
    pub capabilities: Option<BTreeSet<String>>,
    /// Whether a new version gets a part of the traffic first; at once all of it when left out.
    pub canary: Option<Canary>,
}

/// When a plugin runs, seen from a request that comes in; on the way back it is the other way round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Before tokens are looked at.
    Authn,
    /// Before policies decide who may call.
    Authz,
    /// Once the request is let in, before those without a phase.
    Stats,
    /// Last.
    #[default]
    UnspecifiedPhase,
}

/// Which traffic a plugin sees: of this side, at these ports.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficMatch {
    /// `SERVER` when left out.
    #[serde(default)]
    pub mode: WorkloadMode,
    /// Ports of services; all when left out.
    pub ports: Option<Vec<PortMatch>>,
}

/// On which side of a call a plugin runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    /// The caller's.
    Client,
    /// The callee's.
    #[default]
    Server,
    /// Both.
    ClientAndServer,
}

/// A port of a service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMatch {
    /// 1 to 65535.
    pub number: i64,
}

/// What a plugin works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginType {
    /// Requests and responses.
    #[default]
    #[serde(alias = "UNSPECIFIED_PLUGIN_TYPE")]
    Http,
    /// Connections that are not HTTP.
    Network,
}

/// A plugin's surroundings.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmConfig {
    /// Environment variables, at most 64.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// The space of shared data and shared queues, as Envoy's `vm_config.vm_id`: plugins of a namespace that name the same
    /// have it in common, and so have those that name none. At most 256 bytes.
    #[serde(default)]
    pub vm_id: String,
}

/// An environment variable.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
    /// `INLINE`, also when left out: nothing of the proxy's own environment is handed on.
    pub value_from: Option<EnvValueSource>,
}

/// Where the value of an environment variable comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvValueSource {
    /// `value`.
    Inline,
}

/// What one instance of a plugin may use. There is one for each worker of a proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Memory: `1Mi` to `1Gi`; `64Mi` when left out.
    pub memory: Option<String>,
    /// How long one callback may take; 1ms to 1s, 50ms when left out.
    pub deadline: Option<String>,
    /// The same for starting and configuring; 1ms to 30s, 2s when left out.
    pub start_deadline: Option<String>,
}

/// What becomes of a request when the plugin cannot run: it is not there yet, trapped, or took too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    /// It is answered with 500.
    #[default]
    #[serde(alias = "FAIL_CLOSE")]
    Closed,
    /// It goes on without the plugin.
    #[serde(alias = "FAIL_OPEN")]
    Open,
}

/// A new version sees a part of the exchanges until it has proven itself; if it fails more than it may, the version
/// before it gets them all back.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Canary {
    /// Exchanges it sees; 1 to 99, 10 when left out.
    pub percent: Option<i64>,
    /// Traps and overruns above which it is taken back; 0 to 100, 1 when left out.
    pub max_failure_percent: Option<i64>,
    /// Exchanges below which nothing is decided; 1 to 1,000,000, 100 when left out.
    pub minimum_requests: Option<i64>,
    /// How long it is watched; 1s to 24h, 1m when left out.
    pub window: Option<String>,
}
