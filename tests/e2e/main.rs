//! The sidecar as a process, with real sockets on both sides.
//!
//! - [`mesh`] writes a configuration file and runs the proxy with it; [`origin`] is what stands behind it, well behaved
//!   or not; [`client`] speaks HTTP/1.1 by the byte, [`frames`] HTTP/2 by the frame.
//! - The rest are the tests, by subject. The numbers after `FAULTS` are those of the project's list of faults.
//!
//! Everything is on the loopback interface and port 0. Waiting is bounded everywhere, and nothing measures time.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod authorization;
#[cfg(test)]
mod bad_http2_upstreams;
#[cfg(test)]
mod bad_peers;
#[cfg(test)]
mod bad_requests;
#[cfg(test)]
mod bad_upstreams;
#[cfg(test)]
mod balancing;
#[cfg(test)]
mod blame;
#[cfg(test)]
mod cache;
#[cfg(test)]
mod cache_policy;
#[cfg(test)]
mod cache_redis;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod client;
#[cfg(test)]
mod control_plane;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod health_checks;
#[cfg(test)]
mod hedging;
#[cfg(test)]
mod http1;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod http2_conformance;
#[cfg(test)]
mod http2_tunnels;
#[cfg(test)]
mod mesh;
#[cfg(test)]
mod mtls;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod origin;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod plugin_lifecycle;
#[cfg(test)]
mod plugins;
#[cfg(test)]
mod process_life;
#[cfg(test)]
mod rate_limits;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod resilience;
#[cfg(test)]
mod retries;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod streaming;
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod timeouts;
#[cfg(test)]
mod tunnels;
#[cfg(test)]
mod two_sidecars;
