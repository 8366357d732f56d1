//! The resources of the mesh, defined once.
//!
//! ```text
//! YAML ── yaml ──╮                                   ╭─▶ the proxy compiles it
//! JSON ──────────┴─▶ spec (raw serde) ─▶ model (valid) ─┼─▶ the control plane plans with it
//!                     │                             ╰─▶ `leno analyze` reports on it
//!                     └─▶ JSON schema (OpenAPI, CRDs, editors)
//! ```
//!
//! - [`spec`]: what people write, field for field. Unknown fields are errors.
//! - [`model`]: what it means, once every rule has been checked; the only form other code works with.
//! - [`Resource::from_json`]: the one parser, used by the API, the command line and the proxy alike.
//! - [`yaml`]: documents with the line of every field, so that an error can name it.
//! - [`analyze`]: problems that only show when several resources are seen together.
//! - [`destination`]: the name of a mesh hop's destination in TLS.
//! - [`wire`]: how resources travel to the proxies.

#![warn(missing_docs)]

pub mod analyze;
pub mod destination;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod invalid;
mod kind;
mod metadata;
pub mod model;
mod path;
mod resource;
pub mod spec;
pub mod wire;
pub mod yaml;

pub use invalid::{Invalid, Problem};
pub use kind::{Column, GATEWAY_GROUP, KINDS, KindInfo, LENO_GROUP, kind, kind_of};
pub use metadata::Metadata;
pub use path::Path;
pub use resource::{Key, MAX_RESOURCE_BYTES, Resource};

/// The mesh's own namespace: policies in it that select no workloads are for the whole mesh, and what the
/// certificate authority writes is there.
pub const SYSTEM_NAMESPACE: &str = "leno-system";
