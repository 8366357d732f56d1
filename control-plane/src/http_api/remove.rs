//! Deleting one object, or many by selector.
//!
//! An object with finalizers is only marked; it goes when the last finalizer is taken off.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    Api, Failure, MAX_BODY_BYTES, body, failure,
    resources::Call,
    write::{ATTEMPTS, author, check_owner},
};
use crate::{
    objects,
    store::{self, Expect, MAX_OPERATIONS, Operation, Stored},
};

/// What a deletion asks for beside the path: in the body, the query or both.
struct Options {
    dry_run: bool,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Options {
    async fn read(call: &Call, body: Body) -> Result<Self, Failure> {
        let options = body::options(body, &call.headers, MAX_BODY_BYTES).await?;
        let dry_run = match options.get("dryRun").map(|list| list == &json!(["All"])) {
            Some(true) => true,
            Some(false) if options["dryRun"] == json!([]) || options["dryRun"].is_null() => false,
            Some(false) => return Err(Failure::bad_request("dryRun must be [\"All\"]")),
            None => false,
        };
        let precondition = |name: &str| {
            let found = options.get("preconditions").and_then(|all| all.get(name));
            found.and_then(Value::as_str).map(ToOwned::to_owned)
        };
        Ok(Self {
            dry_run: dry_run || call.parameters.dry_run,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
        })
    }

    fn check(&self, call: &Call, object: &Value, name: &str) -> Result<(), Failure> {
        for (field, wanted) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            let found = object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
            if let Some(wanted) = wanted
                && found != Some(wanted)
            {
                let why =
                    format!("the precondition {field} {wanted:?} does not hold, it is {found:?}");
                return Err(Failure::conflict(call.place.kind, name, &why));
            }
        }
        Ok(())
    }
}

pub(super) async fn one(
    api: &Api,
    call: &Call,
    name: &str,
    body: Body,
) -> Result<Response, Failure> {
    let options = Options::read(call, body).await?;
    let _permit = api.writes.acquire().await.map_err(|_| Failure::from(store::Error::Closed))?;
    let kind = call.place.kind;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let stored = api.store.get(&call.place.key(name));
        let stored = stored.ok_or_else(|| Failure::not_found(kind, name))?;
        let object = stored.json()?;
        options.check(call, &object, name)?;
        let (operation, marked) = deletion(&stored, &object, call)?;
        if !options.dry_run {
            match api.store.commit(vec![operation]).await {
                Ok(_) => {}
                Err(store::Error::Conflict { .. }) if attempts < ATTEMPTS => continue,
                Err(error) => return Err(error.into()),
            }
            tracing::info!(resource = %stored.key, caller = %call.caller, "resource deleted");
        }
        let answer = match marked {
            Some(marked) => call.rendering.object(marked),
            None => failure::success(kind, name, object.pointer("/metadata/uid")),
        };
        return Ok(Json(answer).into_response());
    }
}

pub(super) async fn collection(api: &Api, call: &Call, body: Body) -> Result<Response, Failure> {
    let options = Options::read(call, body).await?;
    let _permit = api.writes.acquire().await.map_err(|_| Failure::from(store::Error::Closed))?;
    let listing = api.store.list(&call.place.selection());
    let mut deleted = Vec::new();
    let mut operations = Vec::new();
    for stored in &listing.items {
        let object = stored.json()?;
        if call.parameters.selector.matches(&stored.key, &object) {
            let (operation, _) = deletion(stored, &object, call)?;
            operations.push(operation);
            deleted.push(object);
        }
    }
    if !options.dry_run {
        for group in operations.chunks(MAX_OPERATIONS) {
            api.store.commit(group.to_vec()).await?;
        }
        tracing::info!(kind = call.place.kind.kind, namespace = call.place.namespace, count = deleted.len(), caller = %call.caller, "resources deleted");
    }
    let metadata = json!({"resourceVersion": api.store.revision().to_string()});
    Ok(Json(call.rendering.list(metadata, deleted)).into_response())
}

/// How to delete an object as it is now; and, where it has finalizers, what it becomes.
fn deletion(
    stored: &Arc<Stored>,
    object: &Value,
    call: &Call,
) -> Result<(Operation, Option<Value>), Failure> {
    check_owner(&call.caller, &stored.key, object)?;
    let expect = Expect::Exactly(stored.modified);
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    if finalizers.is_none_or(Vec::is_empty) {
        return Ok((Operation::Delete { key: stored.key.clone(), expect }, None));
    }
    let mut marked = object.clone();
    objects::mark_deleted(&mut marked, &author(call.parameters.manager(&call.headers)?).now);
    let answer = marked.clone();
    objects::strip_revision(&mut marked);
    let value = marked.to_string().into();
    Ok((Operation::Put { key: stored.key.clone(), value, expect }, Some(answer)))
}
