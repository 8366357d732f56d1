//! What people write, field for field. These types only say which fields exist and of which type;
//! the rules are in [`crate::model`].

pub mod grpc_route;
pub mod http_route;
pub mod reference;
pub mod service;
pub mod tcp_route;
pub mod traffic_policy;
pub mod workload;
