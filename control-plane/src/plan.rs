//! What each proxy gets, and nothing more. Pure: objects and subscriptions in, differences out.
//!
//! ```text
//! object (JSON) ── build ─▶ Item ── index ─▶ ╮
//!                                            ├─▶ scope (one per proxy) ─▶ Delta
//! a proxy's wishes (names, hosts) ───────────╯
//! ```
//!
//! The scope of a proxy is the closure of the services it asked for:
//! - **frontends**: the services asked for, by name or by a host they answer to;
//! - the routes whose parent is a frontend: producer routes (in the service's namespace) for everybody,
//!   consumer routes (in any other namespace) only for proxies of that namespace;
//! - **backends**: the frontends, and whatever those routes send or mirror traffic to. Routes of a service
//!   that is only a backend do not apply (Gateway API for meshes), so they are not sent;
//! - of every backend the `Service`, its policies and its workloads, and the `Service`s that are a part of it
//!   (`subset`), since policies for those concern some of the workloads;
//! - the proxy's own workload and the services that it serves, with their traffic policies, but neither
//!   routes nor other workloads; the `Service`s that are a part of those, with the traffic policies of such as the
//!   workload is in;
//! - how the workloads of its own namespace, of the mesh and of the backends' namespaces are spoken to
//!   (`PeerAuthentication`);
//! - what is let in to its own workload (`AuthorizationPolicy`, `RequestAuthentication`), from its own
//!   namespace and the mesh's; what runs at it (`WasmPlugin`), from there too, and what is to run wherever one of the
//!   backends is called; whom to trust (`TrustBundle`), which is for everybody.
//!
//! A change touches only the proxies concerned and costs what changed: membership of one object in one
//! scope is decided from the object's own links and two sets, and [`interest`] finds the scopes.
//!
//! - `build.rs`: an object, read once and serialised once for all proxies
//! - `index.rs`: objects by the services they are about; which services answer to a host
//! - `interest.rs`: which proxies are concerned by a service or host
//! - `scope.rs`: what is in one proxy's scope, and why
//! - `planner.rs`: all of the above together, kept up to date change by change
//! - `diff.rs`: what changed for a proxy, and the order in which it may be sent

mod build;
mod diff;
mod index;
mod interest;
mod planner;
mod scope;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use leno_api::model::ObjectName;

pub use self::{
    build::Item,
    diff::{Delta, Verdict, rank},
    planner::Planner,
};

/// A connected proxy; never used twice within one run of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId(pub u64);

/// Who a proxy is, as far as that decides what it gets.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Short host names and consumer routes are seen from here.
    pub namespace: Arc<str>,
    /// The workload that it stands beside.
    pub workload: Option<ObjectName>,
}

/// A service that a proxy asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wish {
    /// By its own name.
    Name(ObjectName),
    /// By whatever an application called it.
    Host {
        /// Where the application is.
        namespace: Arc<str>,
        /// Lower case, without port.
        host: Arc<str>,
    },
}
