//! The one parser: JSON in, a valid resource or every problem out.

use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Invalid, KINDS, KindInfo, Metadata, Path,
    invalid::Problems,
    kind,
    model::{Model, ObjectName, name},
};

/// Largest resource, as JSON. etcd and Kubernetes refuse above 1.5 MiB; nothing people write comes near.
pub const MAX_RESOURCE_BYTES: usize = 1024 * 1024;

/// Reads `spec` into the model, noting problems.
pub(crate) type Parser = fn(Value, &Metadata, &mut Problems) -> Option<Model>;

/// A resource whose every rule has been checked.
#[derive(Clone, Debug)]
pub struct Resource {
    /// What it is.
    pub kind: &'static KindInfo,
    /// As written, with the namespace filled in.
    pub metadata: Metadata,
    /// What it means.
    pub model: Model,
}

/// What identifies a resource: `HTTPRoute shop/orders`.
#[derive(Clone, Debug)]
pub struct Key {
    /// What it is.
    pub kind: &'static KindInfo,
    /// Its namespace and name.
    pub name: ObjectName,
}

impl Resource {
    /// Parses and validates one object in Kubernetes shape.
    ///
    /// # Errors
    /// [`Invalid`] with every problem found: unknown kinds and fields, wrong types, broken rules.
    pub fn from_json(object: Value) -> Result<Self, Invalid> {
        let Value::Object(mut fields) = object else {
            return Err(Invalid::one(
                "",
                "must be an object with apiVersion, kind, metadata and spec",
            ));
        };
        let info = kind_from(&fields)?;
        let mut problems = Problems::default();
        for field in fields.keys() {
            if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.as_str()) {
                problems.add(
                    field,
                    "unknown field; known are apiVersion, kind, metadata, spec, status",
                );
            }
        }
        let metadata =
            fields.remove("metadata").unwrap_or_else(|| Value::Object(Default::default()));
        let metadata = read::<Metadata>(&Path::root("metadata"), metadata, &mut problems)
            .and_then(|metadata| check_metadata(metadata, &mut problems));
        let Some(metadata) = metadata else {
            return problems.finish(None);
        };
        let spec = fields.remove("spec").unwrap_or_else(|| Value::Object(Default::default()));
        refuse_nulls(info.kind, &spec, &mut problems);
        let model = (info.parse)(spec, &metadata, &mut problems);
        problems.finish(model.map(|model| Self { kind: info, metadata, model }))
    }

    /// What it is.
    pub fn kind(&self) -> &'static KindInfo {
        self.kind
    }

    /// Names, labels, versions.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Namespace and name, shared with the model.
    pub fn name(&self) -> ObjectName {
        self.model.name().clone()
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> Key {
        Key { kind: self.kind, name: self.name() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.kind, self.name)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.sort_key() == other.sort_key()
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.sort_key().hash(state);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

impl Key {
    fn sort_key(&self) -> (&str, &str, &ObjectName) {
        (self.kind.group, self.kind.kind, &self.name)
    }
}

/// Reads a raw type, noting at which path below `base` it failed.
pub(crate) fn read<T: DeserializeOwned>(
    base: &Path<'_>,
    value: Value,
    problems: &mut Problems,
) -> Option<T> {
    match serde_path_to_error::deserialize::<_, T>(value) {
        Ok(raw) => Some(raw),
        Err(error) => {
            let below = error.path().to_string();
            let path = if below == "." { base.to_string() } else { format!("{base}.{below}") };
            problems.add(path.replace(".?", "").replace(".[", "["), error.inner().to_string());
            None
        }
    }
}

/// Of these kinds a field that is left out means more than any that is written: everybody, every request, the whole
/// namespace. Nobody who writes `from: null` means that.
const WIDE_WHERE_LEFT_OUT: [&str; 6] = [
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
    "RateLimitPolicy",
    "FaultPolicy",
    "WasmPlugin",
];
/// What plugins are told is their own affair.
const PLUGIN_CONFIG: &str = "pluginConfig";

fn refuse_nulls(kind: &str, spec: &Value, problems: &mut Problems) {
    if WIDE_WHERE_LEFT_OUT.contains(&kind) {
        refuse_nulls_at(&Path::root("spec"), spec, problems);
    }
}

/// As deep as the parser of JSON goes.
fn refuse_nulls_at(at: &Path<'_>, value: &Value, problems: &mut Problems) {
    match value {
        Value::Null => {
            problems.add(
                at,
                "is null; leave the field out if it is to ask nothing, or say what it asks",
            );
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                refuse_nulls_at(&at.index(i), value, problems);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != PLUGIN_CONFIG) {
                refuse_nulls_at(&at.field(name), value, problems);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[derive(Deserialize)]
struct TypeMeta {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
}

fn kind_from(fields: &serde_json::Map<String, Value>) -> Result<&'static KindInfo, Invalid> {
    let text = |field: &str| match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Invalid::one(field, "must be a string")),
        None => Err(Invalid::one(field, "is missing; every resource says what it is")),
    };
    let meta = TypeMeta { api_version: text("apiVersion")?, kind: text("kind")? };
    let (group, version) = meta.api_version.split_once('/').unwrap_or(("", &meta.api_version));
    if let Some(info) = kind(group, version, &meta.kind).filter(|info| info.kind == meta.kind) {
        return Ok(info);
    }
    if let Some(info) = KINDS.iter().find(|info| info.kind == meta.kind) {
        let message =
            format!("{} is served as {}, not {}", info.kind, info.api_version(), meta.api_version);
        return Err(Invalid::one("apiVersion", message));
    }
    let known: Vec<_> = KINDS.iter().map(|info| info.kind).collect();
    Err(Invalid::one("kind", format!("unknown kind {}; known are {}", meta.kind, known.join(", "))))
}

fn check_metadata(mut metadata: Metadata, problems: &mut Problems) -> Option<Metadata> {
    let at = Path::root("metadata");
    let namespace = metadata.namespace.get_or_insert_with(|| "default".to_owned());
    problems.take(&at.field("namespace"), name::check_label(namespace))?;
    let generated = metadata.name.is_empty() && metadata.generate_name.is_some();
    if !generated {
        problems.take(&at.field("name"), name::check_subdomain(&metadata.name))?;
    }
    for (key, value) in &metadata.labels {
        if let Err(message) = name::check_label_pair(key, value) {
            problems.add(at.field("labels").field(key), message);
        }
    }
    Some(metadata)
}

#[cfg(test)]
mod tests;
