//! What resources mean, once every rule has been checked. Nothing here can be built from outside
//! except through the parser, so code that holds a model value need not check it again.

pub mod applies;
pub mod authorization_policy;
pub mod backend;
pub mod cache_policy;
pub mod duration;
pub mod fault_policy;
pub mod filter;
pub mod grpc_route;
pub mod http_route;
pub mod identity;
pub mod ip_block;
pub mod matching;
pub mod name;
pub mod pattern;
pub mod peer_authentication;
mod quantity;
mod range;
pub mod rate_limit_policy;
pub mod request_authentication;
pub mod service;
pub mod tcp_route;
pub mod traffic_policy;
pub mod trust_bundle;
pub mod wasm_plugin;
pub mod workload;

pub use name::{Host, ObjectName};

use std::sync::Arc;

/// The model of any kind.
#[derive(Clone, Debug)]
pub enum Model {
    /// `Service`.
    Service(Arc<service::Service>),
    /// `Workload`.
    Workload(Arc<workload::Workload>),
    /// `HTTPRoute`, and `GRPCRoute`, which means the same with other words.
    HttpRoute(Arc<http_route::HttpRoute>),
    /// `TCPRoute`.
    TcpRoute(Arc<tcp_route::TcpRoute>),
    /// `TrafficPolicy`.
    TrafficPolicy(Arc<traffic_policy::TrafficPolicy>),
    /// `PeerAuthentication`.
    PeerAuthentication(Arc<peer_authentication::PeerAuthentication>),
    /// `AuthorizationPolicy`.
    AuthorizationPolicy(Arc<authorization_policy::AuthorizationPolicy>),
    /// `RequestAuthentication`.
    RequestAuthentication(Arc<request_authentication::RequestAuthentication>),
    /// `RateLimitPolicy`.
    RateLimitPolicy(Arc<rate_limit_policy::RateLimitPolicy>),
    /// `FaultPolicy`.
    FaultPolicy(Arc<fault_policy::FaultPolicy>),
    /// `CachePolicy`.
    CachePolicy(Arc<cache_policy::CachePolicy>),
    /// `WasmPlugin`.
    WasmPlugin(Arc<wasm_plugin::WasmPlugin>),
    /// `TrustBundle`.
    TrustBundle(Arc<trust_bundle::TrustBundle>),
}

impl Model {
    /// Which one.
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Service(service) => &service.name,
            Self::Workload(workload) => &workload.name,
            Self::HttpRoute(route) => &route.name,
            Self::TcpRoute(route) => &route.name,
            Self::TrafficPolicy(policy) => &policy.name,
            Self::PeerAuthentication(policy) => &policy.name,
            Self::AuthorizationPolicy(policy) => &policy.name,
            Self::RequestAuthentication(policy) => &policy.name,
            Self::RateLimitPolicy(policy) => &policy.name,
            Self::FaultPolicy(policy) => &policy.name,
            Self::CachePolicy(policy) => &policy.name,
            Self::WasmPlugin(plugin) => &plugin.name,
            Self::TrustBundle(bundle) => &bundle.name,
        }
    }
}
