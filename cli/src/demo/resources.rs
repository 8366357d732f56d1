//! The configuration the demonstration gives its mesh: that of `examples/shop/mesh`, and changes of it.

use std::path::Path;

use serde_json::Value;

use crate::files::{self, Loaded, Manifest};

/// Where the files stand, for messages.
const DIRECTORY: &str = "examples/shop/mesh";
const SERVICES: &str = include_str!("../../../examples/shop/mesh/services.yaml");
const ROUTES: &str = include_str!("../../../examples/shop/mesh/routes.yaml");
const POLICIES: &str = include_str!("../../../examples/shop/mesh/policies.yaml");
const CACHE: &str = include_str!("../../../examples/shop/mesh/cache.yaml");
const SECURITY: &str = include_str!("../../../examples/shop/mesh/security.yaml");
const PLUGINS: &str = include_str!("../../../examples/shop/plugins/plugins.yaml");

/// All resources of the shop, in the order in which they are applied.
pub fn shop() -> Loaded {
    let mut all = Loaded::default();
    for (name, text) in [
        ("services", SERVICES),
        ("routes", ROUTES),
        ("policies", POLICIES),
        ("cache", CACHE),
        ("security", SECURITY),
    ] {
        let loaded = files::parse(&format!("{DIRECTORY}/{name}.yaml"), text);
        all.manifests.extend(loaded.manifests);
        all.problems.extend(loaded.problems);
    }
    files::sort_for_apply(&mut all.manifests);
    all
}

/// The shop's plugins, with their modules in `directory`.
pub fn plugins(directory: &Path) -> String {
    PLUGINS.replace("file:///plugins/", &format!("file://{}/", directory.display()))
}

/// The plugins of [`plugins`]'s text that a request may pass by while they are not there.
pub fn open(plugins: &str) -> String {
    plugins.replace("failurePolicy: Closed", "failurePolicy: Open")
}

/// [`plugins`]'s text with something else in the place of names.
pub fn masked(plugins: &str, mask: &str) -> String {
    plugins.replace("fields: [name]", &format!("fields: [name], mask: {mask}"))
}

/// [`plugins`]'s text with a configuration that one of them does not take.
pub fn misspelt(plugins: &str) -> String {
    plugins.replace("fields: [name]", "feilds: [name]")
}

/// The route that sends `percent` of the orders to the newer version.
pub fn canary(percent: u8) -> String {
    let rest = 100_u8.saturating_sub(percent);
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: order, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: order}}]
  rules:
  - backendRefs:
    - {{name: order, port: 80, weight: {rest}}}
    - {{name: order-v2, port: 80, weight: {percent}}}
"
    )
}

/// How callers of user and product treat them; with `retry`, they try again what failed.
pub fn stock(retry: bool) -> String {
    let retry = if retry { "\n  retry: {on: [5xx], attempts: 3}" } else { "" };
    format!(
        "\
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: stock, namespace: shop}}
spec:
  targetRefs:
  - {{group: \"\", kind: Service, name: user}}
  - {{group: \"\", kind: Service, name: product}}
  balancer: {{leastRequest: {{}}}}
  timeouts: {{connect: 5s, request: 15s}}
  breaker: {{maxConnections: 256, maxPending: 256}}{retry}
"
    )
}

/// One order a minute from each instance for customers who are greedy.
pub const GREEDY: &str = "\
apiVersion: leno.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: order, namespace: shop}
spec:
  targetRefs:
  - {group: \"\", kind: Service, name: order}
  - {group: \"\", kind: Service, name: order-v2}
  limits:
  - name: greedy
    requests: 1
    per: 1m
    matches: [{headers: [{name: x-customer, exact: greedy}]}]
";

/// Orders that fail on purpose.
pub const FAULT: &str = "\
apiVersion: leno.dev/v1alpha1
kind: FaultPolicy
metadata: {name: order, namespace: shop}
spec:
  targetRefs:
  - {group: \"\", kind: Service, name: order}
  - {group: \"\", kind: Service, name: order-v2}
  rules:
  - matches: [{headers: [{name: x-test, exact: fail}]}]
    abort: {status: 504}
";

/// A route with a service that does not exist, for requests that ask for it.
pub const DANGLING: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: order-v3, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: order}]
  rules:
  - matches: [{headers: [{name: x-try, value: v3}]}]
    backendRefs: [{name: order-v3, port: 80}]
";

/// Ways to get the route wrong: what is typed instead of what, and what that is.
pub const MISTAKES: [(&str, &str, &str); 3] = [
    ("a misspelt field", "backendRefs:", "backendRef:"),
    ("an impossible weight", "weight: 50", "weight: -50"),
    ("a port that is a word", "port: 80", "port: http"),
];

/// The one manifest in `text`.
pub fn single(file: &str, text: &str) -> Option<Manifest> {
    files::parse(file, text).manifests.pop()
}

/// The one of those in `text` that has that name.
pub fn named(text: &str, name: &str) -> Option<Manifest> {
    let mut manifests = files::parse("plugins.yaml", text).manifests.into_iter();
    manifests.find(|manifest| &*manifest.resource.name().name == name)
}

/// The weight with which `route` sends to `backend` (`shop/order:80`), in the dump of a sidecar's configuration.
/// `None` without that route; a backend that gets nothing is not in the dump.
pub fn weight(dump: &Value, route: &str, backend: &str) -> Option<u64> {
    let routes = list(dump, "services")
        .iter()
        .flat_map(|service| list(service, "ports"))
        .flat_map(|port| list(port, "routes"));
    let named = |value: &Value, field: &str, wanted: &str| {
        value.get(field).and_then(Value::as_str) == Some(wanted)
    };
    let route = routes.into_iter().find(|found| named(found, "route", route))?;
    let backend = list(route, "backends").iter().find(|found| named(found, "backend", backend));
    Some(backend.and_then(|found| found.get("weight")?.as_u64()).unwrap_or(0))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use leno_api::analyze;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_example_has_nothing_to_object_to() {
        let loaded = shop();
        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.manifests.len(), 20);
        let resources: Vec<_> =
            loaded.manifests.iter().map(|manifest| manifest.resource.clone()).collect();
        assert_eq!(analyze::findings(&resources), []);
    }

    #[test]
    fn the_canary_starts_from_the_route_in_the_example() {
        let own = single("canary.yaml", &canary(0)).unwrap();
        let example =
            shop().manifests.into_iter().find(|found| found.resource.key() == own.resource.key());
        assert_eq!(own.body(), example.unwrap().body());
    }

    #[test]
    fn what_is_tried_again_is_all_that_differs_from_the_example() {
        let own = single("stock.yaml", &stock(false)).unwrap();
        let example =
            shop().manifests.into_iter().find(|found| found.resource.key() == own.resource.key());
        assert_eq!(own.body(), example.unwrap().body());
        assert_ne!(single("stock.yaml", &stock(true)).unwrap().body(), own.body());
    }

    #[test]
    fn every_mistake_is_one() {
        for (what, right, wrong) in MISTAKES {
            let text = canary(50);
            assert!(text.contains(right), "{what}");
            let loaded = files::parse("x", &text.replace(right, wrong));
            assert!(!loaded.problems.is_empty(), "{what}");
        }
        for text in [DANGLING, GREEDY, FAULT] {
            assert!(files::parse("x", text).problems.is_empty(), "{text}: valid by itself");
        }
    }

    #[test]
    fn plugins_are_changed_in_one_place() {
        let text = plugins(Path::new("/tmp/x"));
        let spec = |text: &str, name| named(text, name).unwrap().body().pointer("/spec").cloned();
        let (quota, names) = (spec(&text, "order-quota"), spec(&text, "user-names"));
        let url = |spec: &Option<Value>| spec.as_ref().unwrap()["url"].as_str().unwrap().to_owned();
        assert_eq!(url(&quota), "file:///tmp/x/caller_quota.wasm");
        assert_eq!(url(&names), "file:///tmp/x/mask_json.wasm");
        for changed in [open(&text), masked(&text, "hidden"), misspelt(&text)] {
            assert_eq!(spec(&changed, "order-quota"), quota);
            assert_ne!(spec(&changed, "user-names"), names);
        }
    }

    #[test]
    fn weights_are_found_in_a_dump() {
        let dump = json!({"services": [{"name": "shop/order", "ports": [{"port": 80, "routes": [
            {"route": "HTTPRoute shop/order", "backends": [
                {"backend": "shop/order:80", "weight": 90}, {"backend": "shop/order-v2:80", "weight": 10},
            ]},
        ]}]}]});
        assert_eq!(weight(&dump, "HTTPRoute shop/order", "shop/order-v2:80"), Some(10));
        assert_eq!(weight(&dump, "HTTPRoute shop/order", "shop/user:80"), Some(0));
        assert_eq!(weight(&dump, "HTTPRoute shop/x", "shop/order:80"), None);
    }
}
