//! In which form an answer goes out: whole objects, a table for people, or metadata alone.

use std::time::SystemTime;

use http::{HeaderMap, header};
use leno_api::KindInfo;
use serde_json::{Value, json};

use super::{Failure, table};
use crate::store::{Error, Stored};

const OFFERED: &str = "application/json (also as Table or PartialObjectMetadata, meta.k8s.io/v1)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Object,
    Table,
    Metadata,
}

/// How to render the objects of one kind for one request.
#[derive(Debug, Clone)]
pub(super) struct Rendering {
    pub(super) kind: &'static KindInfo,
    pub(super) form: Form,
    /// Table rows carry the whole object rather than its metadata.
    pub(super) whole_rows: bool,
}

/// One media range of an `Accept` header.
pub(super) struct MediaRange<'a> {
    pub(super) media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl MediaRange<'_> {
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| *value)
    }

    pub(super) fn is_json(&self) -> bool {
        matches!(self.media_type, "application/json" | "application/*" | "*/*")
    }
}

/// The media ranges that a client accepts, as it lists them.
pub(super) fn accepted(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = lines.flat_map(|line| line.split(',')).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        MediaRange { media_type, parameters: parts.filter_map(|p| p.split_once('=')).collect() }
    });
    ranges.filter(|range| !range.media_type.is_empty()).collect()
}

impl Rendering {
    pub(super) fn of(
        kind: &'static KindInfo,
        headers: &HeaderMap,
        include_object: Option<&str>,
    ) -> Result<Self, Failure> {
        let accepted = accepted(headers);
        let form =
            if accepted.is_empty() { Some(Form::Object) } else { accepted.iter().find_map(form) };
        let form = form.ok_or_else(|| {
            let wanted: Vec<_> = accepted.iter().map(|range| range.media_type).collect();
            Failure::not_acceptable(&wanted.join(", "), OFFERED)
        })?;
        Ok(Self { kind, form, whole_rows: include_object == Some("Object") })
    }

    /// One object on its own.
    pub(super) fn object(&self, object: Value) -> Value {
        match self.form {
            Form::Object => object,
            Form::Metadata => partial(&object),
            Form::Table => table::table(self.kind, list_metadata(&object), vec![self.row(object)]),
        }
    }

    /// A list of objects.
    pub(super) fn list(&self, metadata: Value, objects: Vec<Value>) -> Value {
        match self.form {
            Form::Object => json!({
                "kind": format!("{}List", self.kind.kind), "apiVersion": self.kind.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": objects.iter().map(partial).collect::<Vec<_>>(),
            }),
            Form::Table => {
                let rows = objects.into_iter().map(|object| self.row(object)).collect();
                table::table(self.kind, metadata, rows)
            }
        }
    }

    pub(super) fn stored(&self, stored: &Stored) -> Result<Value, Error> {
        Ok(self.object(stored.json()?))
    }

    fn row(&self, object: Value) -> Value {
        let cells = table::cells(self.kind, &object, SystemTime::now());
        let carried = if self.whole_rows { object } else { partial(&object) };
        json!({"cells": cells, "object": carried})
    }
}

fn form(range: &MediaRange<'_>) -> Option<Form> {
    if !range.is_json() {
        return None;
    }
    let meta = range.parameter("g") == Some("meta.k8s.io")
        && matches!(range.parameter("v"), Some("v1" | "v1beta1"));
    match range.parameter("as") {
        None => Some(Form::Object),
        Some("Table") if meta => Some(Form::Table),
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta => Some(Form::Metadata),
        Some(_) => None,
    }
}

fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    })
}

fn list_metadata(object: &Value) -> Value {
    let revision = object.get("metadata").and_then(|metadata| metadata.get("resourceVersion"));
    json!({"resourceVersion": revision})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form_of(accept: &str) -> Result<Form, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Rendering::of(&leno_api::KINDS[0], &headers, None).map(|rendering| rendering.form)
    }

    #[test]
    fn the_first_acceptable_form_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form_of(kubectl).unwrap(), Form::Table);
        assert_eq!(
            form_of("application/vnd.kubernetes.protobuf, application/json").unwrap(),
            Form::Object
        );
        assert_eq!(form_of("*/*").unwrap(), Form::Object);
        let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(form_of(metadata).unwrap(), Form::Metadata);
        assert!(form_of("application/vnd.kubernetes.protobuf").is_err());
        assert!(form_of("application/json;as=Table;v=v2;g=meta.k8s.io").is_err());
    }
}
