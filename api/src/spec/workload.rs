//! `Workload`: one running instance.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// `spec` of a `Workload`, written by hand or registered by its sidecar under a lease.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Names of the services it serves, in its own namespace.
    #[serde(default)]
    pub services: Vec<String>,
    /// IP address at which it listens.
    pub address: String,
    /// Where it listens, by the name of the service port: `{http: 9001}`. Where two services mean different ports by the
    /// same name, by `<service>.<port>`: `{orders.http: 9001, orders-admin.http: 9002}`.
    #[serde(default)]
    pub ports: BTreeMap<String, i64>,
    /// Present when a sidecar stands beside it: callers that have a sidecar themselves connect there.
    pub sidecar: Option<Sidecar>,
    /// Identity; `default` when left out.
    pub service_account: Option<String>,
    /// Failure domain: `a`, `eu-west-1a`.
    pub zone: Option<String>,
    /// Share of the traffic relative to its siblings: 0 (none) to 1,000; 1 when left out.
    pub weight: Option<i64>,
}

/// The sidecar beside a workload.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecar {
    /// Its inbound port at the workload's address.
    pub port: i64,
    /// Whether it takes mutual TLS there; false when left out.
    #[serde(default)]
    pub mutual_tls: bool,
}
