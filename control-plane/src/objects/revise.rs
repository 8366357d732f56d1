//! Creation and update: what the server sets, what it keeps, what it ignores.

use serde_json::{Map, Value, json};

use super::{Author, Error, apply::set_ownership, metadata, metadata_mut, ownership::Ownership};

/// Fields of `metadata` that only the server writes.
const SERVER_FIELDS: [&str; 5] =
    ["uid", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// A new object, as it is stored.
pub fn created(mut object: Value, author: &Author, uid: &str) -> Result<Value, Error> {
    drop_server_fields(&mut object);
    let mut object = identified(object, author, uid);
    let mut ownership = Ownership::default();
    ownership.after_update(None, &object, author);
    set_ownership(&mut object, &ownership);
    Ok(object)
}

/// The object after somebody wrote it whole; equal to `live` where nothing changes.
///
/// `managedFields` are kept unless the writer sent others (as `kubectl apply --server-side` does
/// when it takes an object over from client-side apply); `[{}]` clears them.
pub fn updated(live: &Value, mut object: Value, author: &Author) -> Result<Value, Error> {
    let sent = metadata(&object).and_then(|metadata| metadata.get("managedFields"));
    let sent = sent.filter(|list| list.as_array().is_none_or(|list| !list.is_empty()));
    let mut ownership = match sent {
        Some(sent) => Ownership::parse(Some(sent))?,
        None => Ownership::of(live)?,
    };
    drop_server_fields(&mut object);
    keep_server_fields(live, &mut object);
    ownership.after_update(Some(live), &object, author);
    set_ownership(&mut object, &ownership);
    raise_generation(live, &mut object);
    Ok(object)
}

/// Removes fields with the value null: that is how people, and kubectl, write «not set».
pub fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// Marks an object that is to go once its finalizers have been taken off. The first mark stays.
pub fn mark_deleted(object: &mut Value, now: &str) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.entry("deletionTimestamp").or_insert_with(|| now.into());
        metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
    }
}

/// Removes `metadata.resourceVersion`: the store keeps it beside the object.
pub fn strip_revision(object: &mut Value) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.remove("resourceVersion");
    }
}

/// Removes what a user cannot set: status, the server's metadata and the ownership record.
pub(super) fn drop_server_fields(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = metadata_mut(object) {
        for name in SERVER_FIELDS {
            metadata.remove(name);
        }
        for name in ["resourceVersion", "managedFields", "selfLink", "generateName"] {
            metadata.remove(name);
        }
    }
}

fn keep_server_fields(live: &Value, object: &mut Value) {
    if let (Some(status), Some(fields)) = (live.get("status"), object.as_object_mut()) {
        fields.insert("status".into(), status.clone());
    }
    let (Some(kept), Some(fields)) = (metadata(live), metadata_mut(object)) else { return };
    for name in SERVER_FIELDS {
        if let Some(value) = kept.get(name) {
            fields.insert(name.into(), value.clone());
        }
    }
}

/// Gives a new object its identity.
pub(super) fn identified(mut object: Value, author: &Author, uid: &str) -> Value {
    if let Some(metadata) = metadata_mut(&mut object) {
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), author.now.clone().into());
        metadata.insert("generation".into(), json!(1));
    }
    object
}

/// The generation counts what was asked for: everything but metadata and status.
pub(super) fn raise_generation(live: &Value, object: &mut Value) {
    if asked(live) == asked(object) {
        return;
    }
    let before = metadata(live).and_then(|metadata| metadata.get("generation"));
    let generation = before.and_then(Value::as_u64).unwrap_or(0) + 1;
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert("generation".into(), generation.into());
    }
}

fn asked(object: &Value) -> Option<Map<String, Value>> {
    let mut fields = object.as_object()?.clone();
    fields.remove("metadata");
    fields.remove("status");
    Some(fields)
}
