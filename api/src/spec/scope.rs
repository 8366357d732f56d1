//! Which workloads a policy is for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// Workloads by their labels. Empty: every workload of the policy's namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that the workload must all have.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}
