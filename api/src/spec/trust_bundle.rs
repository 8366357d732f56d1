//! `TrustBundle`: the certificates that the mesh trusts.

use schemars::JsonSchema;
use serde::Deserialize;

/// `spec` of the `TrustBundle`, which the certificate authority alone writes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustBundleSpec {
    /// `cluster.local`.
    pub trust_domain: String,
    /// 1 to 8 root certificates, each as one PEM block.
    pub roots: Vec<String>,
    /// Lower-case hexadecimal SHA-256 of the root under which certificates are issued now.
    pub signer: String,
}
