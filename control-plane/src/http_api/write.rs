//! Creating, replacing, patching and applying one object.
//!
//! Each is planned against the object as it is now and committed on condition that it still is;
//! where somebody else was faster and the request did not name a revision, it is planned again.

use std::time::SystemTime;

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use leno_api::{
    Invalid, KindInfo, Resource,
    model::{Model, workload::LEASE_ANNOTATION},
};
use serde_json::Value;

use super::{
    Api, Failure, MAX_BODY_BYTES,
    body::{self, Format},
    resources::{Call, Place},
    warnings,
};
use crate::{
    access::{Caller, Role},
    objects::{self, Author, timestamp},
    registry,
    store::{self, Expect, Key, Operation, Stored},
};

/// How often a write is planned again when others write the same object.
pub(super) const ATTEMPTS: usize = 8;
/// Kubernetes' alphabet for generated names: no vowels, no look-alikes, no words.
const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_CHARACTERS: usize = 5;
/// Of `generateName`, so that the whole fits a DNS label.
const MAX_PREFIX: usize = 58;

/// What is to be done to an object.
pub(super) enum Intent {
    Create(Value),
    Replace(Value),
    Merge(Value),
    JsonPatch(Value),
    Apply { config: Value, force: bool },
}

/// What that means, given the object as it is.
pub(super) struct Plan {
    pub(super) outcome: Outcome,
    pub(super) object: Value,
    pub(super) resource: Resource,
    pub(super) operation: Option<Operation>,
    /// The request itself named the revision it is about: losing a race is for its sender to know.
    pinned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Created,
    Configured,
    Unchanged,
    /// It had waited for its finalizers, and now has none.
    Deleted,
}

/// Everything about a write but the intent.
pub(super) struct Writer<'a> {
    pub(super) place: &'a Place,
    pub(super) caller: &'a Caller,
    pub(super) author: Author,
}

pub(super) async fn create(api: &Api, call: &Call, body: Body) -> Result<Response, Failure> {
    let mut object = body::resource(body, &call.headers, MAX_BODY_BYTES).await?;
    let generated = generate_name(&mut object);
    let name = object_name(&object)?;
    match carry_out(api, call, &name, Intent::Create(object.clone())).await {
        // A name that was made up may be taken; once more is enough for any number of objects
        // that the store can hold.
        Err(failure) if generated && failure.code() == StatusCode::CONFLICT => {
            set_name(&mut object, "");
            generate_name(&mut object);
            let name = object_name(&object)?;
            carry_out(api, call, &name, Intent::Create(object)).await
        }
        result => result,
    }
}

pub(super) async fn replace(
    api: &Api,
    call: &Call,
    name: &str,
    body: Body,
) -> Result<Response, Failure> {
    let object = body::resource(body, &call.headers, MAX_BODY_BYTES).await?;
    carry_out(api, call, name, Intent::Replace(object)).await
}

pub(super) async fn patch(
    api: &Api,
    call: &Call,
    name: &str,
    body: Body,
) -> Result<Response, Failure> {
    let (format, patch) = body::patch(body, &call.headers, MAX_BODY_BYTES).await?;
    let intent = match format {
        Format::JsonPatch => Intent::JsonPatch(patch),
        Format::Apply => {
            call.parameters.require_manager()?;
            Intent::Apply { config: patch, force: call.parameters.force }
        }
        _ => Intent::Merge(patch),
    };
    carry_out(api, call, name, intent).await
}

async fn carry_out(
    api: &Api,
    call: &Call,
    name: &str,
    intent: Intent,
) -> Result<Response, Failure> {
    let _permit = api.writes.acquire().await.map_err(|_| Failure::from(store::Error::Closed))?;
    let writer = Writer {
        place: &call.place,
        caller: &call.caller,
        author: author(call.parameters.manager(&call.headers)?),
    };
    let key = call.place.key(name);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let live = api.store.get(&key);
        let plan = writer.plan(&key, live.as_deref(), &intent)?;
        let operation = plan.operation.clone().filter(|_| !call.parameters.dry_run);
        let Some(operation) = operation else { return Ok(answer(api, call, &plan, None)) };
        let kind = call.place.kind;
        match api.store.commit(vec![operation]).await {
            Ok(committed) => {
                let Writer { caller, author, .. } = &writer;
                tracing::info!(resource = %key, outcome = ?plan.outcome, %caller, manager = author.manager, "resource written");
                return Ok(answer(api, call, &plan, Some(committed.revision)));
            }
            Err(store::Error::Conflict { .. }) if matches!(intent, Intent::Create(_)) => {
                return Err(Failure::already_exists(kind, name));
            }
            Err(error @ store::Error::Conflict { .. }) if plan.pinned || attempts == ATTEMPTS => {
                return Err(Failure::conflict(kind, name, &error.to_string()));
            }
            Err(store::Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer(api: &Api, call: &Call, plan: &Plan, revision: Option<u64>) -> Response {
    let code = match plan.outcome {
        Outcome::Created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let object = call.rendering.object(plan.answer(revision));
    let mut response = (code, Json(object)).into_response();
    warnings::attach(&mut response, &warnings::about(api, &plan.resource));
    response
}

impl Plan {
    /// The object as it is after the write at `revision`, or would be without one.
    pub(super) fn answer(&self, revision: Option<u64>) -> Value {
        let mut object = self.object.clone();
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let written = revision.filter(|_| self.operation.is_some());
        if let (Some(revision), Some(metadata)) = (written, metadata) {
            metadata.insert("resourceVersion".into(), revision.to_string().into());
        }
        object
    }
}

impl Writer<'_> {
    /// What `intent` means for an object as it is now.
    pub(super) fn plan(
        &self,
        key: &Key,
        live: Option<&Stored>,
        intent: &Intent,
    ) -> Result<Plan, Failure> {
        let kind = self.place.kind;
        if matches!(intent, Intent::Create(_)) && live.is_some() {
            return Err(Failure::already_exists(kind, &key.name));
        }
        let before = live.map(Stored::json).transpose()?;
        if let Some(before) = &before {
            check_owner(self.caller, key, before)?;
        }
        let (mut object, pinned) = match &before {
            None => (self.made(key, intent)?, false),
            Some(before) => self.changed(key, before, intent)?,
        };
        let resource = self.check(key, &object)?;
        let Some((live, before)) = live.zip(before) else {
            let operation = put(key, &object, Expect::MustNotExist);
            return Ok(Plan { outcome: Outcome::Created, object, resource, operation, pinned });
        };
        let expect = Expect::Exactly(live.modified);
        if is_finished(&object) {
            let operation = Some(Operation::Delete { key: key.clone(), expect });
            return Ok(Plan { outcome: Outcome::Deleted, object, resource, operation, pinned });
        }
        let mut unchanged = before.clone();
        objects::strip_revision(&mut unchanged);
        if object == unchanged {
            let outcome = Outcome::Unchanged;
            return Ok(Plan { outcome, object: before, resource, operation: None, pinned });
        }
        let operation = put(key, &object, expect);
        let revision = before.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
        object["metadata"]["resourceVersion"] = revision;
        Ok(Plan { outcome: Outcome::Configured, object, resource, operation, pinned })
    }

    /// An object that is not there yet.
    fn made(&self, key: &Key, intent: &Intent) -> Result<Value, Failure> {
        let kind = self.place.kind;
        let uid = objects::uid(rand::random());
        let failed = |error| Failure::objects(kind, &key.name, &error);
        match intent {
            Intent::Create(object) => {
                let object = self.identified(key, object.clone())?;
                objects::created(object, &self.author, &uid).map_err(failed)
            }
            Intent::Apply { config, force } => {
                let config = self.identified(key, config.clone())?;
                if config.pointer("/metadata/resourceVersion").is_some() {
                    return Err(Failure::conflict(
                        kind,
                        &key.name,
                        "it does not exist, but a resourceVersion was given",
                    ));
                }
                objects::applied(None, config, &self.author, *force, &uid).map_err(failed)
            }
            Intent::Replace(_) | Intent::Merge(_) | Intent::JsonPatch(_) => {
                Err(Failure::not_found(kind, &key.name))
            }
        }
    }

    /// An object that is there, and whether the request named the revision it is about.
    fn changed(
        &self,
        key: &Key,
        before: &Value,
        intent: &Intent,
    ) -> Result<(Value, bool), Failure> {
        let kind = self.place.kind;
        let failed = |error| Failure::objects(kind, &key.name, &error);
        let patch_failed = |error| Failure::patch(kind, &key.name, &error);
        let mut live = before.clone();
        objects::strip_revision(&mut live);
        let mut next = before.clone();
        // Patches start from the object with its revision: only a changed one is a condition.
        let mut pinned = false;
        match intent {
            Intent::Create(object) | Intent::Replace(object) => {
                next = object.clone();
                pinned = object.pointer("/metadata/resourceVersion").is_some();
            }
            Intent::Merge(patch) => {
                objects::merge_patch(&mut next, patch).map_err(patch_failed)?;
                pinned = patch.pointer("/metadata/resourceVersion").is_some();
            }
            Intent::JsonPatch(patch) => {
                objects::json_patch(&mut next, patch.clone()).map_err(patch_failed)?;
            }
            Intent::Apply { config, force } => {
                let config = self.identified(key, config.clone())?;
                let pinned = check_preconditions(kind, before, &config)?;
                let object = objects::applied(Some(&live), config, &self.author, *force, "");
                return Ok((object.map_err(failed)?, pinned));
            }
        }
        let next = self.identified(key, next)?;
        check_preconditions(kind, before, &next)?;
        Ok((objects::updated(&live, next, &self.author).map_err(failed)?, pinned))
    }

    /// The object with the names that the path gave it; others are refused.
    fn identified(&self, key: &Key, mut object: Value) -> Result<Value, Failure> {
        let kind = self.place.kind;
        objects::prune_nulls(&mut object);
        let version = kind.api_version();
        for (field, expected) in [
            ("/apiVersion", version.as_str()),
            ("/kind", kind.kind),
            ("/metadata/name", &key.name),
            ("/metadata/namespace", &key.namespace),
        ] {
            match object.pointer(field) {
                Some(found) if found != expected => {
                    let field = field.trim_start_matches('/').replace('/', ".");
                    return Err(Failure::bad_request(format!(
                        "{field} is {found} but the request is about {expected:?}"
                    )));
                }
                _ => {}
            }
        }
        set_name(&mut object, &key.name);
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".into(), key.namespace.as_ref().into());
        }
        Ok(object)
    }

    /// Whether the result is valid, by the one parser, and may be written by this caller.
    fn check(&self, key: &Key, object: &Value) -> Result<Resource, Failure> {
        let kind = self.place.kind;
        let refuse = |invalid: &Invalid| Failure::invalid(kind, &key.name, invalid);
        let resource = Resource::from_json(object.clone()).map_err(|invalid| refuse(&invalid))?;
        let Model::Workload(workload) = &resource.model else { return Ok(resource) };
        if let Some(own) = &self.caller.service_account
            && *own != workload.service_account
        {
            return Err(Failure::forbidden(format!(
                "{} may only write workloads of the service account {own:?}, not of {:?}",
                self.caller, workload.service_account
            )));
        }
        let path = format!("metadata.annotations[{LEASE_ANNOTATION}]");
        let lease = registry::lease_of(object).map_err(|e| refuse(&Invalid::one(&path, e)))?;
        if self.caller.role == Role::Workload && lease.is_none() {
            return Err(Failure::forbidden(format!(
                "{} may only write workloads under a lease: set {path}, for example to 30s",
                self.caller
            )));
        }
        Ok(resource)
    }
}

/// A workload may only touch what workloads registered, and where its account is known, only those of that account:
/// what is there now decides, not what is to be there.
///
/// # Errors
/// 403
pub(super) fn check_owner(caller: &Caller, key: &Key, live: &Value) -> Result<(), Failure> {
    if caller.role != Role::Workload {
        return Ok(());
    }
    if !matches!(registry::lease_of(live), Ok(Some(_))) {
        return Err(Failure::forbidden(format!(
            "{caller} may only touch workloads under a lease, and {key} was written by hand"
        )));
    }
    let account = registry::account_of(live);
    match &caller.service_account {
        Some(own) if own != account => Err(Failure::forbidden(format!(
            "{caller} may only touch workloads of the service account {own:?}, and {key} is of {account:?}"
        ))),
        _ => Ok(()),
    }
}

/// Who writes, as of now.
pub(super) fn author(manager: String) -> Author {
    Author { manager, now: timestamp::rfc3339(SystemTime::now()) }
}

fn put(key: &Key, object: &Value, expect: Expect) -> Option<Operation> {
    Some(Operation::Put { key: key.clone(), value: object.to_string().into(), expect })
}

/// A revision or uid in what was sent must be that of the object; whether a revision was.
fn check_preconditions(kind: &KindInfo, before: &Value, sent: &Value) -> Result<bool, Failure> {
    let name = before.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    for field in ["resourceVersion", "uid"] {
        let of = |object: &Value| object.pointer(&format!("/metadata/{field}")).cloned();
        if let (Some(sent), Some(found)) = (of(sent), of(before))
            && sent != found
            && sent != ""
        {
            let why =
                format!("the object has been modified: {field} {sent} was sent, {found} is there");
            return Err(Failure::conflict(kind, name, &why));
        }
    }
    Ok(sent.pointer("/metadata/resourceVersion").is_some_and(|revision| revision != ""))
}

/// Marked for deletion, and nobody's finalizer is left.
fn is_finished(object: &Value) -> bool {
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    object.pointer("/metadata/deletionTimestamp").is_some() && finalizers.is_none_or(Vec::is_empty)
}

/// Makes up a name where there is only a prefix for one.
fn generate_name(object: &mut Value) -> bool {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let prefix = object.pointer("/metadata/generateName").and_then(Value::as_str);
    let (true, Some(prefix)) = (name.is_empty(), prefix) else { return false };
    let prefix: String = prefix.chars().take(MAX_PREFIX).collect();
    let letter = |_| {
        let at = rand::random_range(0..NAME_ALPHABET.len());
        char::from(NAME_ALPHABET.get(at).copied().unwrap_or(b'x'))
    };
    let ending: String = (0..NAME_CHARACTERS).map(letter).collect();
    set_name(object, &format!("{prefix}{ending}"));
    true
}

fn set_name(object: &mut Value, name: &str) {
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("name".into(), name.into());
    }
}

fn object_name(object: &Value) -> Result<String, Failure> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
    name.ok_or_else(|| Failure::bad_request("metadata.name (or generateName) is missing"))
}
