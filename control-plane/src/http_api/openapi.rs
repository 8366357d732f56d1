//! OpenAPI: what `kubectl explain` reads, and what tells kubectl that this server validates.
//!
//! The schemas come from the Rust types of the kinds. Documents are made once, at start.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header};
use leno_api::{KINDS, KindInfo, Metadata};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    Api, Failure,
    discovery::{group_names, kinds_of, versions_of},
    rendering::{MediaRange, accepted},
};

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Clients ask under this name and send along the hash, so that they fetch each document once.
const V3: &str = "/openapi/v3";
/// Written with `@v1.0` or `.v1.0` by different clients.
const V2_PROTOBUF_PREFIX: &str = "application/com.github.proto-openapi.spec.v2";
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// `openapi.v2.Document {swagger: "2.0", info: {title: "Leno", version: "1"}, paths: {}}`
const EMPTY_V2_PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x09\x0a\x04Leno\x12\x011\x42\x00";

/// Per `apis/<group>/<version>`: the document, and a hash of it.
pub(super) struct Documents(BTreeMap<String, (Value, String)>);

impl Documents {
    pub(super) fn new() -> Self {
        let mut documents = BTreeMap::new();
        documents.insert("api/v1".to_owned(), with_hash(empty("v1")));
        for group in group_names() {
            for version in versions_of(group) {
                documents
                    .insert(format!("apis/{group}/{version}"), with_hash(document(group, version)));
            }
        }
        Self(documents)
    }
}

/// `/openapi/v3`: which documents there are.
pub(super) async fn index(State(api): State<Arc<Api>>) -> Json<Value> {
    let paths: Map<_, _> = api
        .documents
        .0
        .iter()
        .map(|(path, (_, hash))| {
            (path.clone(), json!({"serverRelativeURL": format!("{V3}/{path}?hash={hash}")}))
        })
        .collect();
    Json(json!({"paths": paths}))
}

/// `/openapi/v3/apis/{group}/{version}`
pub(super) async fn v3(
    State(api): State<Arc<Api>>,
    Path(path): Path<String>,
) -> Result<Json<Value>, Failure> {
    let document = api.documents.0.get(&path);
    document.map(|(document, _)| Json(document.clone())).ok_or_else(Failure::no_such_path)
}

/// `/openapi/v2`: all kinds in one Swagger document, as JSON.
///
/// kubectl asks for it as protobuf, for kinds that version 3 does not know; there are none, and
/// the document that says so lets kubectl report the unknown kind rather than a missing document.
pub(super) async fn v2(headers: HeaderMap) -> Result<Response, Failure> {
    let accepted = accepted(&headers);
    if !accepted.is_empty() && !accepted.iter().any(MediaRange::is_json) {
        if accepted.iter().any(|range| range.media_type.starts_with(V2_PROTOBUF_PREFIX)) {
            let media_type = HeaderValue::from_static(V2_PROTOBUF);
            return Ok(([(header::CONTENT_TYPE, media_type)], EMPTY_V2_PROTOBUF).into_response());
        }
        let wanted: Vec<_> = accepted.iter().map(|range| range.media_type).collect();
        return Err(Failure::not_acceptable(
            &wanted.join(", "),
            "application/json; see also /openapi/v3",
        ));
    }
    let definitions: Map<_, _> = KINDS
        .iter()
        .map(|kind| (definition_name(kind), schema(kind, "#/definitions/")))
        .chain([metadata()])
        .collect();
    let document = json!({
        "swagger": "2.0", "info": {"title": "Leno", "version": env!("CARGO_PKG_VERSION")},
        "paths": {}, "definitions": definitions,
    });
    let mut response = Json(document).into_response();
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

fn with_hash(document: Value) -> (Value, String) {
    let digest = Sha256::digest(document.to_string());
    let hash = digest.iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    (document, hash)
}

fn empty(version: &str) -> Value {
    json!({"openapi": "3.0.0", "info": {"title": "Leno", "version": version}, "paths": {}, "components": {"schemas": {}}})
}

fn document(group: &str, version: &str) -> Value {
    let mut document = empty(env!("CARGO_PKG_VERSION"));
    let kinds: Vec<_> = kinds_of(group, version).collect();
    let schemas =
        kinds.iter().map(|kind| (definition_name(kind), schema(kind, "#/components/schemas/")));
    document["components"]["schemas"] = Value::Object(schemas.chain([metadata()]).collect());
    document["paths"] = Value::Object(kinds.iter().flat_map(|kind| paths(kind)).collect());
    document
}

/// `dev.leno.v1alpha1.Service`: the group back to front.
fn definition_name(kind: &KindInfo) -> String {
    let group: Vec<_> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

fn schema(kind: &KindInfo, references: &str) -> Value {
    json!({
        "type": "object",
        "description": kind.description,
        "properties": {
            "apiVersion": {"type": "string", "description": format!("{} for this kind.", kind.api_version())},
            "kind": {"type": "string", "description": format!("{} for this kind.", kind.kind)},
            "metadata": {
                "description": "Name, namespace, labels, annotations.",
                "allOf": [{"$ref": format!("{references}{METADATA}")}], "default": {},
            },
            "spec": plain((kind.schema)()),
            "status": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "description": "On how many proxies the resource is live, and which rejected it and why. Written by the control plane.",
            },
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "x-kubernetes-group-version-kind": [group_version_kind(kind)],
    })
}

/// Kubernetes' tools want a type at every place and no alternatives: `oneOf` over named strings
/// becomes one `enum`.
fn plain(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(|field| *field = plain(field.take()));
            for name in ["oneOf", "anyOf"] {
                if let Some(values) = choices(fields.get(name)) {
                    fields.remove(name);
                    fields.insert("type".into(), "string".into());
                    fields.insert("enum".into(), values.into());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    schema
}

/// The strings among which a schema chooses, where it chooses among strings only.
fn choices(alternatives: Option<&Value>) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    for alternative in alternatives?.as_array()? {
        if alternative.get("type")? != "string" {
            return None;
        }
        values.extend(alternative.get("enum")?.as_array()?.iter().cloned());
    }
    Some(values)
}

fn metadata() -> (String, Value) {
    let settings = schemars::generate::SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<Metadata>();
    (METADATA.to_owned(), schema.to_value())
}

fn group_version_kind(kind: &KindInfo) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn paths(kind: &KindInfo) -> Vec<(String, Value)> {
    let prefix = format!("/apis/{}/{}", kind.group, kind.version);
    let everywhere = format!("{prefix}/{}", kind.plural);
    let collection = format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural);
    let item = format!("{collection}/{{name}}");
    let reading = [("get", "list", &[][..])];
    let collecting = [
        ("get", "list", &[][..]),
        ("post", "post", &["application/json", "application/yaml"][..]),
        ("delete", "deletecollection", &[][..]),
    ];
    let handling = [
        ("get", "get", &[][..]),
        ("put", "put", &["application/json", "application/yaml"][..]),
        (
            "patch",
            "patch",
            &[
                "application/merge-patch+json",
                "application/json-patch+json",
                "application/apply-patch+yaml",
            ][..],
        ),
        ("delete", "delete", &[][..]),
    ];
    vec![
        (everywhere, operations(kind, &reading)),
        (collection, operations(kind, &collecting)),
        (item, operations(kind, &handling)),
    ]
}

fn operations(kind: &KindInfo, operations: &[(&str, &str, &[&str])]) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    let reference = json!({"$ref": format!("#/components/schemas/{}", definition_name(kind))});
    let operation = |(method, action, bodies): &(&str, &str, &[&str])| {
        let names: &[&str] = match *method {
            "get" => {
                &["labelSelector", "fieldSelector", "limit", "continue", "watch", "resourceVersion"]
            }
            _ => &["dryRun", "fieldManager", "fieldValidation", "force"],
        };
        let mut operation = json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": group_version_kind(kind),
            "parameters": names.iter().map(|name| parameter(name)).collect::<Vec<_>>(),
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        });
        if !bodies.is_empty() {
            let content: Map<_, _> = bodies
                .iter()
                .map(|body| {
                    let schema = if *method == "patch" {
                        json!({"type": "object"})
                    } else {
                        reference.clone()
                    };
                    ((*body).to_owned(), json!({"schema": schema}))
                })
                .collect();
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        ((*method).to_owned(), operation)
    };
    Value::Object(operations.iter().map(operation).collect())
}
