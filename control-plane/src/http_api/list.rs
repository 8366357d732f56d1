//! Reading: one object, or a list in pages.
//!
//! A page after the first shows objects as they are by then, under the revision of the first
//! page: who watches from that revision learns everything that changed in between, so that
//! nothing is missed though no snapshot is held for anybody.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Api, Failure, parameters::Parameters, rendering::Rendering, resources::Place};
use crate::store::{Listing, Selection, Store};

/// Where a list goes on: the revision of its first page, and the last object shown.
struct Continuation {
    revision: u64,
    namespace: String,
    name: String,
}

pub(super) fn one(
    api: &Api,
    place: &Place,
    name: &str,
    rendering: &Rendering,
) -> Result<Response, Failure> {
    let stored = api.store.get(&place.key(name));
    let stored = stored.ok_or_else(|| Failure::not_found(place.kind, name))?;
    Ok(Json(rendering.stored(&stored)?).into_response())
}

pub(super) fn many(
    api: &Api,
    place: &Place,
    parameters: &Parameters,
    rendering: &Rendering,
) -> Result<Response, Failure> {
    let selection = place.selection();
    let continuation = parameters.continuation.as_deref().map(Continuation::read).transpose()?;
    let mut listing = api.store.list(&selection);
    check_revision(parameters, listing.revision)?;
    if let Some(continuation) = &continuation {
        resume(&*api.store, &selection, continuation, &mut listing)?;
    }
    let (objects, metadata) = page(&listing, parameters)?;
    Ok(Json(rendering.list(metadata, objects)).into_response())
}

/// The objects of one page, and the list's metadata.
fn page(listing: &Listing, parameters: &Parameters) -> Result<(Vec<Value>, Value), Failure> {
    let limit = parameters.limit.unwrap_or(usize::MAX);
    let mut metadata = json!({"resourceVersion": listing.revision.to_string()});
    let mut objects = Vec::new();
    let mut last = None;
    for (at, stored) in listing.items.iter().enumerate() {
        if objects.len() == limit {
            if let Some(last) = last {
                metadata["continue"] = Continuation::write(listing.revision, last).into();
            }
            if parameters.selector.is_empty() {
                metadata["remainingItemCount"] = (listing.items.len() - at).into();
            }
            break;
        }
        let object = stored.json()?;
        if parameters.selector.matches(&stored.key, &object) {
            objects.push(object);
            last = Some(&stored.key);
        }
    }
    Ok((objects, metadata))
}

/// A list is always of now: that serves every revision up to now, but none exactly.
fn check_revision(parameters: &Parameters, current: u64) -> Result<(), Failure> {
    let Some(text) = &parameters.resource_version else { return Ok(()) };
    let requested = revision(text)?;
    if requested > current {
        return Err(Failure::not_yet(requested, current));
    }
    let exact = parameters.resource_version_match.as_deref() == Some("Exact");
    if exact && requested != current {
        return Err(Failure::expired(format!(
            "lists of the past are not kept: revision {requested} was asked for, {current} is there"
        )));
    }
    Ok(())
}

fn resume(
    store: &dyn Store,
    selection: &Selection,
    continuation: &Continuation,
    listing: &mut Listing,
) -> Result<(), Failure> {
    // Could the client watch from there, as it will want to? Otherwise it must start over.
    store.watch(continuation.revision, selection.clone())?;
    let after = (continuation.namespace.as_str(), continuation.name.as_str());
    let start = listing.items.partition_point(|o| (&*o.key.namespace, &*o.key.name) <= after);
    listing.items.drain(..start);
    listing.revision = continuation.revision;
    Ok(())
}

pub(super) fn revision(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| {
        Failure::bad_request(format!(
            "resourceVersion {text:?} is not one of this server: those are numbers"
        ))
    })
}

impl Continuation {
    fn write(revision: u64, last: &crate::store::Key) -> String {
        format!("{revision}~{}~{}", last.namespace, last.name)
    }

    fn read(text: &str) -> Result<Self, Failure> {
        let mut parts = text.splitn(3, '~');
        let (Some(revision), Some(namespace), Some(name)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::bad_request("the continue token is not one of this server"));
        };
        let revision = self::revision(revision)?;
        Ok(Self { revision, namespace: namespace.into(), name: name.into() })
    }
}
