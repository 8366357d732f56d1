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
//! - [`registry`]: leases of registered workloads
//! - [`http_api`]: the API for people, in Kubernetes' dialect

pub mod access;
pub mod objects;
pub mod registry;
pub mod store;
