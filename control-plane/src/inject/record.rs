//! What was done to a pod, written into its annotations, and how it is undone.

use std::collections::BTreeMap;

use leno_api::Invalid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    manifest::{Absent, Fields, made_object, object, text, unmake},
    names, obstacles,
    workload::Template,
};

/// What was done to a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Of what did it.
    pub version: String,
    /// Added containers, by the list they are in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub containers: BTreeMap<String, Vec<String>>,
    /// Added volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Added annotations, beside the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
    /// Probes as they were, by container and field.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub probes: Map<String, Value>,
    /// `spec.terminationGracePeriodSeconds` as it was, where it was changed; `null` where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "known_null")]
    pub grace: Option<Value>,
    /// What was not there before: fields of `spec`, `metadata`, `annotations`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub made: BTreeMap<String, Absent>,
}

impl Record {
    /// The record of a pod that has a sidecar of ours.
    ///
    /// # Errors
    /// When somebody has changed it so that it cannot be read.
    pub fn read(template: &Template<'_>) -> Result<Option<Self>, Invalid> {
        let at = template.at("metadata");
        let metadata = object(template.fields, "metadata", &template.path)?;
        let annotations =
            metadata.map(|metadata| object(metadata, "annotations", &at)).transpose()?;
        let Some(annotations) = annotations.flatten() else { return Ok(None) };
        let at = format!("{at}.annotations");
        let Some(record) = text(annotations, names::INJECTED, &at)? else { return Ok(None) };
        let unreadable = |error: serde_json::Error| {
            Invalid::one(
                format!("{at}.{}", names::INJECTED),
                format!(
                    "cannot be read ({error}): it says what was injected. Begin with a manifest without a sidecar"
                ),
            )
        };
        serde_json::from_str(record).map(Some).map_err(unreadable)
    }

    /// Writes the record into the pod, which has been changed as it says.
    ///
    /// # Errors
    /// When `metadata` or `annotations` is no object.
    pub fn write(mut self, template: &mut Template<'_>) -> Result<(), Invalid> {
        let at = template.at("metadata");
        let (metadata, made) = made_object(template.fields, "metadata", &template.path)?;
        self.made.extend(made.map(|absent| ("metadata".to_owned(), absent)));
        let (annotations, made) = made_object(metadata, "annotations", &at)?;
        self.made.extend(made.map(|absent| ("annotations".to_owned(), absent)));
        let text =
            serde_json::to_string(&self).map_err(|error| Invalid::one(at, error.to_string()))?;
        annotations.insert(names::INJECTED.to_owned(), Value::String(text));
        Ok(())
    }

    /// Makes the pod what it was.
    ///
    /// # Errors
    /// When it is not as a pod must be.
    pub fn undo(&self, template: &mut Template<'_>) -> Result<(), Invalid> {
        let (spec, _) = made_object(template.fields, "spec", &template.path)?;
        for list in obstacles::LISTS {
            let added = self.containers.get(list).map(Vec::as_slice).unwrap_or_default();
            remove(spec, list, added);
            self.restore_probes(spec, list);
        }
        remove(spec, "volumes", &self.volumes);
        match &self.grace {
            None => {}
            Some(Value::Null) => drop(spec.remove(GRACE)),
            Some(before) => drop(spec.insert(GRACE.to_owned(), before.clone())),
        }
        for list in ["initContainers", "volumes"] {
            unmake(spec, list, self.made.get(list).copied());
        }
        self.undo_metadata(template)
    }

    fn undo_metadata(&self, template: &mut Template<'_>) -> Result<(), Invalid> {
        let at = template.at("metadata");
        let (metadata, _) = made_object(template.fields, "metadata", &template.path)?;
        let (annotations, _) = made_object(metadata, "annotations", &at)?;
        annotations.remove(names::INJECTED);
        for key in &self.annotations {
            annotations.remove(key);
        }
        unmake(metadata, "annotations", self.made.get("annotations").copied());
        unmake(template.fields, "metadata", self.made.get("metadata").copied());
        Ok(())
    }

    fn restore_probes(&self, spec: &mut Fields, list: &str) {
        let Some(Value::Array(containers)) = spec.get_mut(list) else { return };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            let Some(Value::Object(probes)) = self.probes.get(name) else { continue };
            for (field, before) in probes {
                container.insert(field.clone(), before.clone());
            }
        }
    }
}

/// How long Kubernetes gives a pod to end.
pub(super) const GRACE: &str = "terminationGracePeriodSeconds";

fn remove(spec: &mut Fields, list: &str, added: &[String]) {
    if let Some(Value::Array(items)) = spec.get_mut(list) {
        items.retain(|item| {
            let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
            !added.iter().any(|added| added == name)
        });
    }
}

/// `null` is something that was there to say, not nothing.
mod known_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    pub fn serialize<S: Serializer>(value: &Option<Value>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().unwrap_or(&Value::Null).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(from).map(Some)
    }
}
