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
//! - [`registry`]: leases of registered workloads
//! - [`http_api`]: the API for people, in Kubernetes' dialect

pub mod store;
