//! The admin port's JSON as tables. Reads leniently: a proxy may be newer or older than this program.

use std::{
    io::{self, Write},
    time::Duration,
};

use leno_api::model::duration;
use serde_json::Value;

use crate::table::Table;

pub fn routes(dump: &Value) -> Table {
    let mut table = Table::new(["service", "port", "match", "backends", "share", "route", "rule"]);
    for (service, port) in ports(dump) {
        if list(port, "routes").is_empty() {
            let (name, number) = (text(service, "name"), text(port, "port"));
            let own = format!("{name}:{number}");
            let all = ["everything", &own, "100%", "", ""].map(str::to_owned);
            table.add([name, number].into_iter().chain(all).collect());
        }
        for route in list(port, "routes") {
            let backends = list(route, "backends");
            let total: f64 = backends.iter().map(weight).sum();
            let redirects = route.get("redirect").and_then(Value::as_bool) == Some(true);
            let (mut names, mut shares) = (Vec::new(), Vec::new());
            for backend in backends {
                let missing = backend.get("missing").and_then(Value::as_bool) == Some(true);
                let remark = if missing { " (missing: answers 500)" } else { "" };
                names.push(format!("{}{remark}", text(backend, "backend")));
                shares.push(share(weight(backend), total));
            }
            if names.is_empty() && redirects {
                names.push("(redirect)".to_owned());
            }
            table.add(vec![
                text(service, "name"),
                text(port, "port"),
                text(route, "match"),
                names.join(", "),
                shares.join(", "),
                text(route, "route"),
                text(route, "rule"),
            ]);
        }
    }
    table
}

pub fn services(dump: &Value) -> Table {
    let mut table = Table::new(["service", "port", "protocol", "hosts", "routes"]);
    for (service, port) in ports(dump) {
        table.add(vec![
            text(service, "name"),
            text(port, "port"),
            text(port, "protocol"),
            text(service, "hosts"),
            list(port, "routes").len().to_string(),
        ]);
    }
    table
}

pub fn workloads(clusters: &Value) -> Table {
    let columns = ["workload", "address", "cluster", "weight", "active", "health", "reached"];
    let mut table = Table::new(columns);
    for cluster in list(clusters, "clusters") {
        for endpoint in list(cluster, "endpoints") {
            let via = match endpoint.get("sidecar").and_then(Value::as_bool) {
                Some(true) => "its sidecar",
                Some(false) => "directly",
                None => "",
            };
            table.add(vec![
                text(endpoint, "workload"),
                text(endpoint, "address"),
                text(cluster, "name"),
                text(endpoint, "weight"),
                text(endpoint, "active"),
                health(endpoint),
                via.to_owned(),
            ]);
        }
    }
    table
}

/// `ok`, `returning (40%)`, `ejected 12.5s: 5 failures in a row`, `unhealthy: answered 500`, `breaker open 4.2s: ...`;
/// empty where the proxy does not say.
fn health(endpoint: &Value) -> String {
    let Some(health) = endpoint.get("health") else { return String::new() };
    let failing = health.get("check").filter(|check| check.get("healthy") == Some(&false.into()));
    if let Some(check) = failing {
        return format!("unhealthy: {}", text(check, "error"));
    }
    match breaker(health) {
        own if own.is_empty() || own == "closed" => {}
        own => return format!("breaker {own}"),
    }
    let ejected = health.get("ejected").filter(|ejected| !ejected.is_null());
    match (ejected, health.get("factor").and_then(Value::as_f64)) {
        (Some(ejected), _) => {
            format!("ejected {}s: {}", text(ejected, "forSeconds"), text(ejected, "cause"))
        }
        (None, Some(factor)) if factor < 1.0 => format!("returning ({:.0}%)", factor * 100.0),
        (None, _) => "ok".to_owned(),
    }
}

/// `closed`, `open 4.2s: error rate ...`; empty where there is none.
fn breaker(cluster: &Value) -> String {
    let Some(circuit) = cluster.get("circuit").filter(|circuit| !circuit.is_null()) else {
        return String::new();
    };
    let state = text(circuit, "state");
    let left = circuit.get("openForSeconds").and_then(Value::as_f64);
    let left = left.map(|left| format!(" {left}s")).unwrap_or_default();
    match text(circuit, "cause") {
        cause if cause.is_empty() => state,
        cause => format!("{state}{left}: {cause}"),
    }
}

/// `7 of 12, 3 wait, 40 dropped`; empty where the application has no limit.
fn concurrency(cluster: &Value) -> String {
    let Some(found) = cluster.get("concurrency").filter(|found| !found.is_null()) else {
        return String::new();
    };
    let dropped = found.get("dropped").and_then(Value::as_object).into_iter().flatten();
    let dropped: u64 = dropped.filter_map(|(_, count)| count.as_u64()).sum();
    let (running, limit) = (text(found, "running"), text(found, "limit"));
    format!("{running} of {limit}, {} wait, {dropped} dropped", text(found, "waiting"))
}

/// `2, 20% or 10/s, 1 under way`; `none` where nothing is sent again, empty where the proxy does not say.
fn retries(cluster: &Value) -> String {
    let Some(retries) = cluster.get("retries") else { return String::new() };
    if retries.get("attempts").and_then(Value::as_u64) == Some(0) {
        return "none".to_owned();
    }
    let (percent, floor) = match retries.get("budget") {
        Some(budget) => (text(budget, "percent"), text(budget, "minimumPerSecond")),
        None => return text(retries, "attempts"),
    };
    let (attempts, active) = (text(retries, "attempts"), text(retries, "underWay"));
    format!("{attempts}, {percent}% or {floor}/s, {active} under way")
}

/// `per-caller 100/1s, search 6000/1m Global 25%`: the share of a global limit is this sidecar's; empty without limits.
fn rate_limits(cluster: &Value) -> String {
    let limit = |limit: &Value| {
        let period = Duration::from_millis(limit.get("perMs").and_then(Value::as_u64)?);
        let rate = format!("{}/{}", text(limit, "requests"), duration::format(period));
        let scope = text(limit, "scope");
        let scope = if scope == "Global" { " Global" } else { "" };
        let share = limit.get("sharePercent").and_then(Value::as_f64);
        let share = share.map(|share| format!(" {share:.0}%")).unwrap_or_default();
        Some(format!("{} {rate}{scope}{share}", text(limit, "limit")))
    };
    let limits: Vec<_> = list(cluster, "rateLimits").iter().filter_map(limit).collect();
    limits.join(", ")
}

pub fn clusters(clusters: &Value) -> Table {
    let mut table = Table::new([
        "cluster",
        "protocol",
        "balancer",
        "endpoints",
        "active",
        "pending",
        "connections",
        "rejected",
        "retries",
        "breaker",
        "at once",
        "limits",
        "faults",
    ]);
    for cluster in list(clusters, "clusters") {
        table.add(vec![
            text(cluster, "name"),
            text(cluster, "protocol"),
            text(cluster, "balancer"),
            list(cluster, "endpoints").len().to_string(),
            text(cluster, "active"),
            text(cluster, "pending"),
            text(cluster, "connections"),
            text(cluster, "rejected"),
            retries(cluster),
            breaker(cluster),
            concurrency(cluster),
            rate_limits(cluster),
            text(cluster, "faults"),
        ]);
    }
    table
}

pub fn listeners(listeners: &Value) -> Table {
    let mut table = Table::new(["listener", "address"]);
    for listener in list(listeners, "listeners") {
        table.add(vec![text(listener, "name"), text(listener, "address")]);
    }
    table
}

pub fn print_snapshot(dump: &Value, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "generation  {}", or_dash(text(dump, "generation")))?;
    for (key, value) in dump.get("source").and_then(Value::as_object).into_iter().flatten() {
        writeln!(out, "{key:<10}  {}", or_dash(joined(value)))?;
    }
    let resources = list(dump, "resources");
    writeln!(out, "resources   {}", resources.len())?;
    if !resources.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(["kind", "namespace", "name", "version", "generation"]);
        for resource in resources {
            let metadata = |field: &str| resource.get("metadata").map(|found| text(found, field));
            table.add(vec![
                text(resource, "kind"),
                metadata("namespace").unwrap_or_default(),
                metadata("name").unwrap_or_default(),
                metadata("resourceVersion").unwrap_or_default(),
                metadata("generation").unwrap_or_default(),
            ]);
        }
        table.print(out)?;
    }
    let rejected = list(dump, "rejected");
    if !rejected.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(["rejected", "reason"]);
        for resource in rejected {
            table.add(vec![text(resource, "resource"), text(resource, "reason")]);
        }
        table.print(out)?;
    }
    Ok(())
}

fn ports(dump: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let services = list(dump, "services").iter();
    services.flat_map(|service| list(service, "ports").iter().map(move |port| (service, port)))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).map(joined).unwrap_or_default()
}

fn joined(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(joined).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn weight(backend: &Value) -> f64 {
    backend.get("weight").and_then(Value::as_f64).unwrap_or(1.0)
}

fn share(weight: f64, total: f64) -> String {
    if total <= 0.0 {
        return "0%".to_owned();
    }
    let percent = weight * 100.0 / total;
    // 33.3%, but 90% rather than 90.0%.
    let rounded = (percent * 10.0).round() / 10.0;
    format!("{rounded}%")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dump() -> Value {
        json!({
            "generation": 7,
            "source": {"kind": "control plane", "address": "127.0.0.1:15012"},
            "resources": [{"kind": "Service", "metadata": {"name": "orders", "namespace": "shop", "resourceVersion": "12"}}],
            "services": [{"name": "shop/orders", "hosts": ["orders", "o.example"], "ports": [
                {"port": 80, "protocol": "http", "routes": [{
                    "route": "HTTPRoute shop/orders", "rule": "0", "match": ["PathPrefix /v1 GET"],
                    "backends": [
                        {"backend": "shop/orders:80", "weight": 2, "missing": false},
                        {"backend": "shop/orders-v2:80", "weight": 1, "missing": true},
                    ],
                }]},
            ]}],
            "rejected": [{"resource": "HTTPRoute shop/x", "reason": "two of a kind"}],
        })
    }

    fn printed(mut table: Table) -> String {
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn routes_show_where_which_share_goes() {
        let text = printed(routes(&dump()));
        let row = text.lines().nth(1).unwrap();
        for cell in [
            "PathPrefix /v1 GET",
            "shop/orders:80, shop/orders-v2:80 (missing: answers 500)",
            "66.7%, 33.3%",
        ] {
            assert!(row.contains(cell), "{text}");
        }
    }

    #[test]
    fn a_port_without_routes_gets_everything_itself() {
        let dump =
            json!({"services": [{"name": "shop/user", "ports": [{"port": 80, "routes": []}]}]});
        let text = printed(routes(&dump));
        assert!(text.contains("shop/user   80     everything   shop/user:80   100%"), "{text}");
    }

    #[test]
    fn a_snapshot_tells_what_was_rejected_and_why() {
        let mut out = Vec::new();
        print_snapshot(&dump(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("generation  7\n"), "{text}");
        assert!(text.contains("HTTPRoute shop/x   two of a kind"), "{text}");
        assert!(text.contains("127.0.0.1:15012"), "{text}");
    }

    #[test]
    fn workloads_are_those_of_all_clusters() {
        let clusters = json!({"clusters": [{"name": "shop/orders:80", "balancer": "leastRequest", "endpoints": [
            {"workload": "shop/orders-1", "address": "127.0.0.1:9001", "weight": 1, "active": 3, "sidecar": true},
        ]}]});
        let text = printed(workloads(&clusters));
        assert!(text.contains("shop/orders-1   127.0.0.1:9001   shop/orders:80"), "{text}");
        assert!(text.contains("its sidecar"), "{text}");
        assert!(printed(self::clusters(&clusters)).contains("leastRequest"));
    }

    #[test]
    fn health_is_told_in_words() {
        let of = |health: Value| self::health(&json!({ "health": health }));
        assert_eq!(of(json!({"factor": 1.0, "ejected": null})), "ok");
        assert_eq!(of(json!({"factor": 0.4, "ejected": null})), "returning (40%)");
        let ejected = json!({"forSeconds": 12.5, "cause": "5 failures in a row"});
        let told = of(json!({"factor": 0.0, "ejected": ejected}));
        assert_eq!(told, "ejected 12.5s: 5 failures in a row");
        let check = json!({"healthy": false, "error": "answered 500"});
        assert_eq!(of(json!({"factor": 0.0, "check": check})), "unhealthy: answered 500");
        let check = json!({"healthy": true, "error": null});
        let open = json!({"state": "open", "openForSeconds": 4.2, "cause": "error rate 80 %"});
        let told = of(json!({"factor": 1.0, "check": check, "circuit": open}));
        assert_eq!(told, "breaker open 4.2s: error rate 80 %");
        assert_eq!(of(json!({"factor": 1.0, "circuit": {"state": "closed"}})), "ok");
        assert_eq!(self::health(&json!({})), "", "an older proxy does not say");
    }

    #[test]
    fn a_breaker_is_told_in_words() {
        let of = |circuit: Value| self::breaker(&json!({ "circuit": circuit }));
        assert_eq!(of(Value::Null), "");
        assert_eq!(of(json!({"state": "closed", "openForSeconds": null, "cause": null})), "closed");
        let open = json!({"state": "open", "openForSeconds": 4.2, "cause": "error rate 80 %"});
        assert_eq!(of(open), "open 4.2s: error rate 80 %");
        let half = json!({"state": "half-open", "openForSeconds": null, "cause": "x"});
        assert_eq!(of(half), "half-open: x");
    }

    #[test]
    fn limits_and_faults_are_told_in_words() {
        let own = json!({"limit": "per-caller", "requests": 100, "perMs": 1000, "scope": "Local", "sharePercent": null});
        let all = json!({"limit": "search", "requests": 6000, "perMs": 60_000, "scope": "Global", "sharePercent": 25.4});
        let cluster =
            json!({"name": "shop/user:80", "rateLimits": [own, all], "faults": "shop/slow"});
        assert_eq!(rate_limits(&cluster), "per-caller 100/1s, search 6000/1m Global 25%");
        assert_eq!(rate_limits(&json!({})), "", "an older proxy does not say");
        let printed = printed(clusters(&json!({ "clusters": [cluster] })));
        assert!(printed.contains("search 6000/1m Global 25%   shop/slow"), "{printed}");
    }

    #[test]
    fn shares_add_up_to_what_they_are() {
        assert_eq!(share(90.0, 100.0), "90%");
        assert_eq!(share(0.0, 0.0), "0%");
    }
}
