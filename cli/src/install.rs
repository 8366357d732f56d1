//! What is installed in Kubernetes: the same objects for `leno install` and for the Helm chart in `deploy/helm/leno`.
//!
//! ```text
//! values.yaml of the chart ─▶ values ─╮
//!                     --set, --values ╯─▶ source ─▶ objects, webhooks, crds ─▶ manifests, in the order of creation
//!        expressions of Go templates ────▶ source ─────────╯               ╰─▶ chart: the chart's templates
//! ```
//!
//! - `values.rs`: what can be set, checked by the chart's own schema
//! - `source.rs`: where objects take what is set from
//! - `objects.rs`, `webhooks.rs`, `crds.rs` (with `structural.rs`): the objects
//! - `chart.rs`: the same objects as templates

use serde_json::Value;

pub mod chart;
pub mod crds;
mod objects;
mod source;
mod structural;
mod values;
mod webhooks;

pub use self::{
    objects::{SIDECARS, wished},
    source::Source,
    values::Values,
};

/// When an object is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// Where this setting holds: is `true`, or text that is not empty.
    Set(&'static str),
    /// Where it does not.
    Unset(&'static str),
}

/// One object to install.
#[derive(Debug)]
pub struct Object {
    /// In which of the chart's files it is.
    pub file: &'static str,
    pub when: When,
    pub manifest: Value,
}

/// Everything, in the order of creation, with the settings of `source`. The namespace is not among it.
pub fn objects(source: &Source<'_>) -> Vec<Object> {
    let definitions = |file, setting, manifests: Vec<Value>| {
        let when = When::Set(setting);
        manifests.into_iter().map(move |manifest| Object { file, when, manifest })
    };
    definitions("crds", "crds.install", crds::own())
        .chain(definitions("gateway-api", "gatewayApi.install", crds::gateway()))
        .chain(objects::all(source))
        .chain(webhooks::all(source))
        .collect()
}

/// What `leno install` prints: the namespace and everything in it, in the order of creation.
pub fn manifests(values: &Values) -> Vec<Value> {
    let source = Source::Values(values);
    let wanted = objects(&source).into_iter().filter(|object| match object.when {
        When::Always => true,
        When::Set(path) => values.holds(path),
        When::Unset(path) => !values.holds(path),
    });
    let manifests = wanted.map(|object| without_null(object.manifest));
    std::iter::once(objects::namespace()).chain(manifests).collect()
}

/// What is left out and what is null are the same to Kubernetes; people need not see it.
fn without_null(manifest: Value) -> Value {
    match manifest {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name, without_null(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_null).collect(),
        leaf => leaf,
    }
}

#[cfg(test)]
mod tests;
