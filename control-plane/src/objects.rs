//! What a write makes of an object: metadata upkeep and field ownership, the same for every way in.
//!
//! ```text
//! create  ─▶ created ─╮
//! replace ─▶ updated ─┼─▶ uid, generation, creationTimestamp, status kept ─▶ who owns which field ─▶ stored
//! apply   ─▶ applied ─╯
//! ```
//!
//! All of it is pure: the time, the uid and the writer's name are arguments. Nothing here looks
//! into `spec`; whether the result is valid is for `leno_api` to say afterwards.
//!
//! - `revise.rs`: created, updated
//! - `apply.rs`: server-side apply
//! - `ownership.rs`: `metadata.managedFields`; `fields.rs`: sets of field paths
//! - `patch.rs`: JSON merge patch and JSON patch, bounded
//! - `timestamp.rs`: RFC 3339

mod apply;
mod fields;
mod ownership;
mod patch;
mod revise;
#[cfg(test)]
mod tests;
pub mod timestamp;

use serde_json::{Map, Value};

pub use self::{
    apply::applied,
    ownership::Conflict,
    patch::{PatchError, json_patch, merge_patch},
    revise::{created, mark_deleted, prune_nulls, strip_revision, updated},
};

/// Who writes, and when.
#[derive(Debug, Clone)]
pub struct Author {
    /// The field manager's name: `kubectl-client-side-apply`, `leno`.
    pub manager: String,
    /// RFC 3339, as [`timestamp::now`] gives it.
    pub now: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Server-side apply without force met fields that others own.
    #[error("{}", ownership::describe(.0))]
    Conflicts(Vec<Conflict>),
    #[error("{path}: {message}")]
    Invalid { path: &'static str, message: String },
}

/// A fresh random identifier for `metadata.uid` (a version 4 UUID) from random bits.
pub fn uid(random: u128) -> String {
    // Version 4 and variant 1 have fixed places, RFC 9562 section 5.4.
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata").and_then(Value::as_object)
}

/// The object's metadata, made where there is none. `None` where the object is none.
fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object.as_object_mut()?.entry("metadata").or_insert_with(|| Map::new().into());
    metadata.as_object_mut()
}
