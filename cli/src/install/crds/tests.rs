use std::{fs, path::Path, sync::LazyLock};

use leno_api::yaml;

use super::*;

/// Keywords that a structural schema may have, from the description of `JSONSchemaProps` in
/// `apiextensions.k8s.io/v1`, less those which it forbids.
const KEYWORDS: &[&str] = &[
    "additionalProperties",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "nullable",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

fn all() -> Vec<Value> {
    own().into_iter().chain(gateway()).collect()
}

fn schema_in(definition: &Value) -> &Value {
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap()
}

/// The rules of https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
fn check_structural(schema: &Value, at: &str) {
    let fields = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema} is not a schema"));
    for keyword in fields.keys() {
        assert!(KEYWORDS.contains(&keyword.as_str()), "{at}: {keyword}");
    }
    let flag = |name: &str| fields.get(name) == Some(&true.into());
    match fields.get("type") {
        Some(of) => assert!(TYPES.contains(&of.as_str().unwrap()), "{at}: {of}"),
        None => assert!(
            flag("x-kubernetes-int-or-string") ^ flag("x-kubernetes-preserve-unknown-fields"),
            "{at}: has no type"
        ),
    }
    assert!(!(flag("x-kubernetes-int-or-string") && fields.contains_key("type")), "{at}");
    let map = fields.get("additionalProperties");
    assert!(map.is_none_or(Value::is_object), "{at}: additionalProperties");
    assert!(map.is_none() || !fields.contains_key("properties"), "{at}: map and object");
    if fields.get("type") == Some(&"array".into()) {
        assert!(fields.contains_key("items"), "{at}: an array of what?");
    }
    let properties = fields.get("properties").and_then(Value::as_object);
    for name in fields.get("required").and_then(Value::as_array).into_iter().flatten() {
        let known = properties.is_some_and(|known| known.contains_key(name.as_str().unwrap()));
        assert!(known, "{at}: requires {name}, which it does not know");
    }
    for (name, field) in properties.into_iter().flatten() {
        check_structural(field, &format!("{at}.{name}"));
    }
    for inner in ["items", "additionalProperties"].iter().filter_map(|name| fields.get(*name)) {
        check_structural(inner, &format!("{at}[]"));
    }
}

#[test]
fn every_schema_is_structural() {
    for definition in all() {
        check_structural(schema_in(&definition), definition["metadata"]["name"].as_str().unwrap());
    }
}

#[test]
#[should_panic(expected = "x.a: has no type")]
fn what_is_not_structural_is_found() {
    check_structural(&json!({"type": "object", "properties": {"a": {"description": "?"}}}), "x");
}

/// Kubernetes refuses rules about fields that the schema does not have, and rules in lists without an end.
#[test]
fn rules_are_about_fields_that_there_are() {
    for (kind, pointer, fields) in UNIONS {
        let kind = KINDS.iter().find(|info| info.kind == *kind).unwrap();
        let spec = structural(&(kind.schema)());
        let place = spec.pointer(&pointer.replace('/', "/properties/")).unwrap();
        let known: Vec<_> = place["properties"].as_object().unwrap().keys().collect();
        for field in *fields {
            assert!(known.contains(&&(*field).to_owned()), "{pointer}: {field}");
        }
    }
    let policy = definition(KINDS.iter().find(|info| info.kind == "TrafficPolicy").unwrap());
    let rules = schema_in(&policy)
        .pointer("/properties/spec/properties/hedging/x-kubernetes-validations/0")
        .unwrap();
    assert_eq!(rules["rule"], "(has(self.after) ? 1 : 0) + (has(self.p95) ? 1 : 0) == 1");
    assert_eq!(rules["message"], "set exactly one of after, p95");
}

#[test]
fn names_are_as_kubernetes_wants_them() {
    let service = definition(KINDS.iter().find(|info| info.plural == "services").unwrap());
    assert_eq!(service["metadata"]["name"], "services.leno.dev");
    let columns = &service["spec"]["versions"][0]["additionalPrinterColumns"];
    assert_eq!(
        columns[1],
        json!({"name": "Ports", "type": "string", "jsonPath": ".spec.ports[*].port"})
    );
    for definition in gateway() {
        let approval = &definition["metadata"]["annotations"][APPROVAL];
        assert!(approval.as_str().unwrap().starts_with("unapproved"), "as Kubernetes asks for it");
    }
    assert!(own().iter().all(|definition| definition["spec"]["names"]["kind"] != "TrustBundle"));
}

/// Whether `value` is what `schema` says; unknown fields are not, though Kubernetes keeps them.
fn validate(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    if value.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ if schema["x-kubernetes-int-or-string"] == true => value.is_i64() || value.is_string(),
        _ => true,
    };
    if !right {
        return Err(format!("{at}: {value} is not {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        return Err(format!("{at}: {value} is none of {}", schema["enum"]));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        validate(item, &schema["items"], &format!("{at}[{index}]"))?;
    }
    let Some(fields) = value.as_object().filter(|_| schema["type"] == "object") else {
        return Ok(());
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    for (name, field) in fields {
        let inner = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) if schema["properties"].is_null() => continue,
            (Value::Null, Value::Null) => return Err(format!("{at}: unknown {name}")),
            (Value::Null, map) => map,
            (known, _) => known,
        };
        validate(field, inner, &format!("{at}.{name}"))?;
    }
    Ok(())
}

fn schema_of(object: &Value) -> Option<&'static Value> {
    static DEFINITIONS: LazyLock<Vec<Value>> = LazyLock::new(all);
    let definition = DEFINITIONS.iter().find(|definition| {
        let spec = &definition["spec"];
        let version = spec["versions"][0]["name"].as_str().unwrap();
        let api_version = format!("{}/{version}", spec["group"].as_str().unwrap());
        object["apiVersion"] == *api_version && object["kind"] == spec["names"]["kind"]
    })?;
    Some(schema_in(definition))
}

fn yaml_files(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // Templates are not YAML, and what is built is not ours.
            if !name.starts_with('.') && !["target", "templates", "node_modules"].contains(&&*name)
            {
                yaml_files(&path, found);
            }
        } else if name.ends_with(".yaml") || name.ends_with(".yml") {
            found.push(path);
        }
    }
}

#[test]
fn every_example_fits_its_definition() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in ["examples", "docs", "deploy", "cli", "tests"] {
        yaml_files(&root.join(folder), &mut files);
    }
    let mut checked = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for document in yaml::documents(&text).unwrap_or_default() {
            let Some(schema) = schema_of(&document.value) else { continue };
            validate(&document.value, schema, "")
                .unwrap_or_else(|error| panic!("{}{error}", file.display()));
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} examples were found");
}

#[test]
fn what_does_not_fit_is_found() {
    let policy = |spec: Value| {
        let object = json!({"apiVersion": "leno.dev/v1alpha1", "kind": "CachePolicy", "metadata": {}, "spec": spec});
        validate(&object, schema_of(&object).unwrap(), "")
    };
    let target = json!([{"kind": "Service", "name": "a"}]);
    assert_eq!(policy(json!({"targetRefs": target, "maxBytes": "64Mi"})), Ok(()));
    assert_eq!(policy(json!({"targetRefs": target, "maxBytes": 65536, "key": null})), Ok(()));
    for wrong in [
        json!({}),
        json!({"targetRefs": target, "maxBytes": 1.5}),
        json!({"targetRefs": target, "enabled": "yes"}),
        json!({"targetRefs": target, "enable": true}),
        json!({"targetRefs": target, "methods": ["POST"]}),
        json!({"targetRefs": [{"kind": "Service"}]}),
    ] {
        policy(wrong.clone()).expect_err(&wrong.to_string());
    }
}
