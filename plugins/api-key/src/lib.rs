//! `api-key`: lets in who has a key that the user service knows.
//!
//! ```text
//! request ─▶ key? ─▶ remembered? ─▶ ask the service ─▶ verdict ─▶ application
//!             401      401 403         503 if it fails    401 403
//! ```
//!
//! The verdict is kept in shared data, under a digest of the key, for all workers of the proxy. Nothing gets
//! past it unless the service said so: a call that fails is a 503.

pub mod cache;
pub mod configuration;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod verdict;
