//! `Service`: a name that callers use.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `spec` of a `Service`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Names callers use. `<name>.<namespace>` always works; `<name>` alone works within the namespace.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// At least one.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses of the service: what its hosts resolve to for callers whose connections are led through their
    /// sidecars by the kernel. At most 64 IP addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Makes it a part of another service, to which routes can send: those workloads of it that have some labels.
    pub subset: Option<Subset>,
}

/// A part of a service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// A service of the same namespace that is no subset itself. Its ports are found by their names.
    pub of: String,
    /// What a workload must have, all of it; 1 to 16.
    pub match_labels: BTreeMap<String, String>,
}

/// A port of a service, as callers see it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// A DNS label; may be left out when the service has one port only (then it is `default`).
    pub name: Option<String>,
    /// 1 to 65535.
    pub port: i64,
    /// What is spoken there; found out from the first bytes when left out.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Told from the first bytes of each connection.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
}
