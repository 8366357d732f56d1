//! What people write, field for field. These types only say which fields exist and of which type;
//! the rules are in [`crate::model`].

pub mod authorization_policy;
pub mod cache_policy;
pub mod fault_policy;
pub mod grpc_route;
pub mod http_route;
pub mod matching;
pub mod peer_authentication;
pub mod quantity;
pub mod rate_limit_policy;
pub mod reference;
pub mod request_authentication;
pub mod scope;
pub mod service;
pub mod tcp_route;
pub mod traffic_policy;
pub mod trust_bundle;
pub mod wasm_plugin;
pub mod workload;
