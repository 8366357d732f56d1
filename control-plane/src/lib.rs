//! The Leno control plane: what people want and who runs where go in, what each proxy needs
//! comes out.
//!
//! ```text
//! desired state   store ──╮
//!                         ├─▶ push (one task, one writer) ─▶ plan (pure) ─▶ a watch per proxy ─▶ xds ─▶ proxies
//! who runs where  registry╯
//! ```
//!
//! - [`store`]: every object, one revision counter, watch from a revision
//! - [`objects`]: what a write makes of an object: metadata, field ownership
//! - [`access`]: bearer tokens and roles
//! - [`ca`]: certificates for whoever has proven who they are
//! - [`inject`]: the sidecar beside the containers of a pod
//! - [`findings`]: what is odd about resources beside each other
//! - [`plan`]: what each proxy gets, pure
//! - [`push`]: the single writer that plans changes and leaves them for the streams
//! - [`purge`]: what the caches of proxies are to forget, and who has done so
//! - [`quota`]: limits that proxies have together, shared out by demand, pure
//! - [`registry`]: leases of registered workloads
//! - [`kubernetes`]: Kubernetes as the source of truth, mirrored into the store
//! - [`transport`]: connections to our ports, plain or TLS, and who is at their other end
//! - [`http_api`]: the API for people, in Kubernetes' dialect
//! - [`webhook`]: what the Kubernetes API server asks before pods and resources are made
//! - [`xds`]: the streams of the proxies
//! - `app.rs`: puts it together; `settings.rs`: flags and environment

pub mod access;
mod app;
pub mod ca;
pub mod findings;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod http_api;
pub mod inject;
pub mod kubernetes;
pub mod objects;
pub mod plan;
pub mod purge;
pub mod push;
pub mod quota;
pub mod registry;
mod settings;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod webhook;
pub mod xds;

pub use self::{
    app::{Addresses, Error, Running, run, start},
    settings::{LogFormat, Settings},
};
