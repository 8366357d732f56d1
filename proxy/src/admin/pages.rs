//! What the endpoints show.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use leno_api::model::{ObjectName, peer_authentication::TlsMode};
use serde_json::{Value, json};

use super::{attempts, concurrency, health};
use crate::{
    cluster::{Cluster, Endpoint, Security, breaker::Resource},
    forward::worker::Shared,
    snapshot::{InboundPort, Snapshot},
};

/// The list of endpoints, for people who open the port in a browser or with curl.
pub(super) const HELP: &str = "\
GET  /ready               200 once a configuration is in force, 503 before and while draining
GET  /stats/prometheus    metrics (also /metrics)
GET  /config_dump         the configuration in force, and what was rejected and why
GET  /clusters            endpoints, what is under way, limits (?format=json)
GET  /listeners           bound addresses (?format=json)
GET  /certs               the certificate in use and what is trusted
POST /certs/renew         ask for a new one
GET  /plugins             plugins: versions, what they did, why one is not live
GET  /cache               what is kept of responses, by policy, and how much it is of use (?format=json)
GET  /issuers             keys of token issuers that are fetched
GET  /server_info         version and uptime
GET  /logging             log filter
POST /logging?filter=F    change it: info,leno_proxy=debug
POST /healthcheck/fail    say not ready, and go on working (/healthcheck/ok takes it back)
POST /drain_listeners     stop accepting, finish what is under way
POST /quitquitquit        end the process
";

/// `/clusters` as JSON.
pub(super) fn clusters(shared: &Shared) -> Value {
    let (snapshot, now) = (shared.published.load(), shared.now());
    let clusters: Vec<Value> =
        snapshot.clusters.values().map(|cluster| self::cluster(cluster, &snapshot, now)).collect();
    json!({ "clusters": clusters })
}

fn cluster(cluster: &Cluster, snapshot: &Snapshot, now: Duration) -> Value {
    let limits = &cluster.state.limits;
    let settings = &cluster.settings;
    let endpoints: Vec<Value> = cluster
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "workload": endpoint.workload(), "address": endpoint.address().to_string(),
                "weight": endpoint.weight, "zone": endpoint.zone(), "active": endpoint.active(), "sidecar": endpoint.via_sidecar,
                "tls": security(endpoint), "peer": endpoint.peer(),
                "health": health::endpoint(endpoint, now),
            })
        })
        .collect();
    json!({
        "name": &*cluster.name,
        "protocol": cluster.protocol,
        "balancer": settings.balancer.name(),
        "active": limits.exchanges(),
        "pending": limits.in_use(Resource::Pending),
        "connections": limits.in_use(Resource::Connections),
        "rejected": limits.rejected(),
        "limits": {
            "maxConnections": settings.max_connections, "maxPending": settings.max_pending,
            "maxExchanges": settings.max_exchanges,
        },
        "timeouts": attempts::timeouts(cluster),
        "retries": attempts::retries(cluster),
        "circuit": health::circuit(cluster, now),
        "healthCheck": health::check_policy(cluster),
        "localShare": cluster.endpoints.local_share(),
        "concurrency": concurrency::page(cluster),
        "rateLimits": super::limiting::rate_limits(snapshot, cluster),
        "faults": super::limiting::faults(snapshot, cluster),
        "endpoints": endpoints,
    })
}

fn security(endpoint: &Endpoint) -> &'static str {
    match &endpoint.security {
        Security::Plain => "none",
        Security::Unavailable(why) => why.as_str(),
        Security::Mutual(_) => "mutual",
    }
}

/// `/clusters` as lines in Envoy's form: `cluster::address::figure::value`.
pub(super) fn clusters_text(shared: &Shared) -> String {
    let (mut text, now) = (String::new(), shared.now());
    let snapshot = shared.published.load();
    for cluster in snapshot.clusters.values() {
        let (name, limits) = (&cluster.name, &cluster.state.limits);
        let mut line = |rest: String| {
            text.push_str(name);
            text.push_str("::");
            text.push_str(&rest);
            text.push('\n');
        };
        line(format!("default_priority::max_connections::{}", cluster.settings.max_connections));
        line(format!("default_priority::max_pending_requests::{}", cluster.settings.max_pending));
        line(format!("default_priority::max_requests::{}", cluster.settings.max_exchanges));
        line(format!("cx_active::{}", limits.in_use(Resource::Connections)));
        line(format!("rq_pending_active::{}", limits.in_use(Resource::Pending)));
        line(format!("rq_active::{}", limits.exchanges()));
        line(format!("rq_rejected::{}", limits.rejected()));
        for rest in attempts::lines(cluster) {
            line(rest);
        }
        for rest in health::circuit_lines(cluster, now) {
            line(rest);
        }
        for rest in concurrency::lines(cluster) {
            line(rest);
        }
        for rest in super::limiting::lines(&snapshot, cluster) {
            line(rest);
        }
        for endpoint in cluster.endpoints.iter() {
            let address = endpoint.address();
            line(format!("{address}::workload::{}", endpoint.workload()));
            line(format!("{address}::rq_active::{}", endpoint.active()));
            line(format!("{address}::weight::{}", endpoint.weight));
            line(format!("{address}::tls::{}", security(endpoint)));
            for rest in health::endpoint_lines(endpoint, now) {
                line(format!("{address}::{rest}"));
            }
        }
    }
    text
}

/// `/listeners`.
pub(super) fn listeners(
    addresses: &[(&'static str, std::net::SocketAddr)],
    shared: &Shared,
) -> Value {
    let listeners: Vec<Value> = addresses
        .iter()
        .map(|(name, address)| json!({"name": name, "address": address.to_string()}))
        .collect();
    let open = shared.connections.load(Ordering::Relaxed);
    json!({
        "listeners": listeners, "connections": open, "maxConnections": shared.max_connections,
        "ports": ports(shared),
    })
}

/// Ports of our own application, and which connections they take.
fn ports(shared: &Shared) -> Vec<Value> {
    let inbound = &shared.published.load().inbound;
    let mut ports: Vec<_> = inbound.by_destination.values().collect();
    ports.sort_by(|a, b| a.destination.cmp(&b.destination));
    let port = |port: &Arc<InboundPort>| {
        let guards = port.guards.as_ref().map(|guards| {
            let of = |name: &ObjectName| name.to_string();
            let (jwt, authz) = &guards.policies;
            let jwt = jwt.iter().map(|policy| of(&policy.name));
            let authz = authz.iter().map(|policy| of(&policy.name));
            json!({
                "requestAuthentication": jwt.collect::<Vec<_>>(),
                "authorization": authz.collect::<Vec<_>>(),
            })
        });
        json!({
            "destination": &*port.destination, "address": port.address.to_string(),
            "protocol": port.protocol, "tls": mode(port.mode), "policies": guards,
        })
    };
    ports.into_iter().map(port).collect()
}

/// The same as lines: `orders:80::address::mode`.
pub(super) fn ports_text(shared: &Shared) -> String {
    let inbound = &shared.published.load().inbound;
    let line = |port: &Arc<InboundPort>| {
        format!("{}::{}::{}\n", port.destination, port.address, mode(port.mode))
    };
    let mut lines: Vec<_> = inbound.by_destination.values().map(line).collect();
    lines.sort();
    lines.concat()
}

fn mode(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Strict => "STRICT",
        TlsMode::Permissive => "PERMISSIVE",
        TlsMode::Disable => "DISABLE",
    }
}
