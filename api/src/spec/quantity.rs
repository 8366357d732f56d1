//! Amounts of bytes, as Kubernetes writes them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// `65536`, `64Ki`, `1Mi`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes such as 65536, `64Ki` or `1Mi`")]
pub enum Bytes {
    /// Bytes.
    Number(i64),
    /// Bytes, or with `Ki`, `Mi`, `Gi`, `k`, `M` or `G`.
    Text(String),
}

/// Written out as Kubernetes wants its "integer or string" in definitions of resources.
impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        })
    }
}
