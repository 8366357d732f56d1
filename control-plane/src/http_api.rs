//! The API for people and tools, in Kubernetes' dialect: `kubectl --server`, kube clients and
//! GitOps tools work against a Leno that has no Kubernetes.
//!
//! ```text
//! request ─▶ gate (host, origin, token) ─▶ resources: what is it about, may they ─┬─▶ list, watch ─▶ store
//!                                      ├─▶ discovery, openapi                      ├─▶ write, remove ─▶ objects ─▶ validate ─▶ store
//!                                      ╰─▶ batch (apply many at once)              ╰─▶ lease ─▶ registry
//! ```
//!
//! Handlers keep nothing between requests; everything is in the store.
//!
//! - `serve.rs`: connections; [`router`]: paths
//! - `gate.rs`: who may talk to us at all; `failure.rs`: every error, as a `Status`
//! - `resources.rs`: from a path and a method to an operation; `parameters.rs`: the query
//! - `list.rs`, `watch.rs`, `selector.rs`, `rendering.rs`, `table.rs`: reading
//! - `body.rs`, `write.rs`, `remove.rs`, `batch.rs`, `warnings.rs`: writing
//! - `discovery.rs`, `openapi.rs`, `namespaces.rs`: what there is
//! - `ca.rs`: the certificate authority: roots, certificates, rotation
//! - `cache.rs`: what the caches of proxies are to forget

mod batch;
mod body;
mod ca;
mod cache;
mod discovery;
mod failure;
mod gate;
mod list;
mod namespaces;
mod openapi;
mod parameters;
mod remove;
mod rendering;
mod resources;
mod selector;
mod serve;
mod table;
#[cfg(test)]
mod tests;
mod warnings;
mod watch;
mod write;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{any, get, post},
};
use tokio::sync::{Semaphore, watch as switch};

pub use self::serve::{PORT, serve};
use self::{failure::Failure, openapi::Documents};
use crate::{
    access::Access, ca::Authority, findings::Findings, purge::Purges, push::Push,
    registry::Registry, store::Store,
};

/// Largest request body for one resource.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Largest request body for many resources at once.
pub const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Most watches at the same time; each is an open connection.
const MAX_WATCHES: usize = 4096;
/// Most writes being read or carried out at the same time; further ones wait.
const MAX_WRITES: usize = 64;

/// What the handlers work with.
pub struct Api {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    access: Access,
    /// Names under which people may call the API, beside IP addresses and localhost.
    hosts: Vec<String>,
    authority: Arc<Authority>,
    push: Arc<Push>,
    purges: Arc<Purges>,
    watches: Arc<Semaphore>,
    purging: Semaphore,
    /// Set when watches are to end.
    ending: switch::Sender<bool>,
    writes: Semaphore,
    documents: Documents,
    findings: Arc<Findings>,
    /// Who writes resources, where people do not write them here.
    source: Option<&'static str>,
}

/// What proxies are reached by.
pub struct Planes {
    pub authority: Arc<Authority>,
    pub push: Arc<Push>,
    pub purges: Arc<Purges>,
    pub findings: Arc<Findings>,
}

/// Whoever asks is sent there.
pub const KUBERNETES: &str = "Kubernetes";

impl Api {
    pub fn new(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        access: Access,
        hosts: Vec<String>,
        planes: Planes,
    ) -> Arc<Self> {
        Self::reading(store, registry, access, hosts, planes, None)
    }

    /// As [`Api::new`]; with a `source`, resources are written there and only read here.
    pub fn reading(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        access: Access,
        hosts: Vec<String>,
        planes: Planes,
        source: Option<&'static str>,
    ) -> Arc<Self> {
        let Planes { authority, push, purges, findings } = planes;
        Arc::new(Self {
            store,
            registry,
            access,
            hosts,
            authority,
            push,
            purges,
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
            purging: Semaphore::new(cache::MAX_PURGES),
            ending: switch::Sender::new(false),
            writes: Semaphore::new(MAX_WRITES),
            documents: Documents::new(),
            findings,
            source,
        })
    }
}

impl Api {
    /// # Errors
    /// 405 where resources are written elsewhere.
    fn check_writable(&self) -> Result<(), Failure> {
        let Some(source) = self.source else { return Ok(()) };
        Err(Failure::not_possible(format!(
            "resources come from {source} and can only be read here: write them there, with `kubectl apply`"
        )))
    }

    /// Ends all watches, which otherwise last as long as their clients want.
    fn end_watches(&self) {
        self.ending.send_replace(true);
    }
}

/// The whole API.
pub fn router(api: Arc<Api>) -> Router {
    let resources = Router::new()
        .route("/apis/{group}/{version}/{plural}", any(resources::everywhere))
        .route(
            "/apis/{group}/{version}/namespaces/{namespace}/{plural}",
            any(resources::collection),
        )
        .route(
            "/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}",
            any(resources::item),
        )
        .route(
            "/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}/{part}",
            any(resources::part),
        );
    let discovery = Router::new()
        .route("/api", get(discovery::core))
        .route("/api/v1", get(discovery::core_resources))
        .route("/api/v1/namespaces", get(namespaces::list).fallback(namespaces::refuse))
        .route("/api/v1/namespaces/{name}", get(namespaces::read).fallback(namespaces::refuse))
        .route("/apis", get(discovery::groups))
        .route("/apis/{group}", get(discovery::group))
        .route("/apis/{group}/{version}", get(discovery::resources))
        .route("/openapi/v2", get(openapi::v2))
        .route("/openapi/v3", get(openapi::index))
        .route("/openapi/v3/{*path}", get(openapi::v3))
        .route("/version", get(discovery::version))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/healthz", get(|| async { "ok" }));
    let authority = Router::new()
        .route(ca::BUNDLE, get(ca::bundle))
        .route("/ca/status", get(ca::status))
        .route("/ca/certificates", get(ca::certificates))
        .route("/ca/rotation", post(ca::rotate));
    let caches = Router::new().route("/cache/purge", post(cache::purge));
    resources
        .merge(discovery)
        .merge(authority)
        .merge(caches)
        .fallback(|| async { Failure::no_such_path() })
        .method_not_allowed_fallback(|| async { Failure::method_not_allowed() })
        .layer(middleware::from_fn_with_state(api.clone(), gate::check))
        .with_state(api)
}
