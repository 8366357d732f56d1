//! Which plugins see what, in which order.

use leno_api::model::wasm_plugin::Phase;

use super::*;
use crate::filter::wasm::{Chain, Slot, Unloaded};

fn plugin(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: leno.dev/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{url: 'file:///x', {spec}}}\n"
    )
}

/// Beside `shop/orders-1`.
fn beside(text: &str) -> Bench {
    let text = format!("{MESH}{text}");
    let workload = resources(&text).iter().find_map(|resource| match &resource.model {
        Model::Workload(workload) if &*workload.name.name == "orders-1" => Some(workload.clone()),
        _ => None,
    });
    Bench::of(&text, Own { workload, ..own() })
}

fn labels(chain: Option<&Arc<Chain>>) -> Vec<String> {
    let slots = chain.into_iter().flat_map(|chain| chain.slots());
    slots.map(|slot| slot.current.as_ref().unwrap_err().label.to_string()).collect()
}

impl Bench {
    fn inbound(&self) -> Vec<String> {
        labels(self.snapshot.inbound.by_destination["shop/orders:80"].plugins.as_ref())
    }

    fn outbound(&self, host: &str) -> Vec<String> {
        labels(self.snapshot.service(host).unwrap().ports[0].plugins.as_ref())
    }
}

#[test]
fn without_plugins_there_is_no_chain() {
    let bench = beside(&plugin("other/a", "match: [{mode: CLIENT_AND_SERVER}]"));
    assert!(bench.snapshot.inbound.by_destination["shop/orders:80"].plugins.is_none());
    assert!(bench.snapshot.service("orders").unwrap().ports[0].plugins.is_none());
}

#[test]
fn each_side_has_its_plugins_by_phase_and_priority() {
    let target = "targetRefs: [{kind: Service, name: orders}]";
    let mut bench = beside(
        &[
            plugin("shop/a", "phase: STATS"),
            plugin("shop/b", "phase: AUTHN"),
            plugin("shop/c", &format!("{target}, priority: -1")),
            plugin("leno-system/d", "priority: 5, match: [{mode: CLIENT_AND_SERVER}]"),
            plugin("shop/e", &format!("{target}, match: [{{mode: CLIENT}}]")),
            plugin("shop/f", "match: [{mode: CLIENT_AND_SERVER, ports: [{number: 81}]}]"),
            plugin("shop/g", "selector: {matchLabels: {app: other}}"),
        ]
        .concat(),
    );
    assert_eq!(bench.inbound(), ["shop/b", "shop/a", "leno-system/d", "shop/c"]);
    assert_eq!(bench.outbound("orders"), ["leno-system/d", "shop/e"]);
    assert_eq!(bench.outbound("orders-v2"), ["leno-system/d"]);
    // Changes reach what they concern, and nothing else.
    let untouched = bench.snapshot.service("orders-v2").unwrap().clone();
    bench.put(&resources(&plugin("shop/e", "targetRefs: [{kind: Service, name: orders}]")));
    assert_eq!(bench.inbound(), ["shop/b", "shop/a", "leno-system/d", "shop/e", "shop/c"]);
    assert_eq!(bench.outbound("orders"), ["leno-system/d"]);
    assert!(Arc::ptr_eq(bench.snapshot.service("orders-v2").unwrap(), &untouched));
    let gone = resources(&plugin("leno-system/d", ""));
    bench.remove(&gone[0]);
    assert_eq!(bench.outbound("orders-v2"), [""; 0]);
}

#[test]
fn slots_are_taken_over_with_the_phase_in_force() {
    let mut bench = beside(&plugin("shop/a", "phase: AUTHZ"));
    let unloaded = Unloaded {
        label: "taken over".into(),
        reason: String::new(),
        failure: leno_api::model::wasm_plugin::FailurePolicy::Open,
        kind: leno_api::model::wasm_plugin::PluginType::Http,
    };
    // As of a newer version, which is not in force yet.
    let slot = Slot { current: Err(Arc::new(unloaded)), canary: None, phase: Phase::Stats };
    let name = ObjectName::new("shop", "a");
    bench.slots.insert(name.clone(), slot);
    let mut dirty = Dirty::default();
    bench.inputs.touch_plugin(&name, &mut dirty);
    assert!(dirty.inbound && dirty.routes.is_empty());
    bench.compile(&dirty);
    assert_eq!(bench.inbound(), ["taken over"]);
    let chain = bench.snapshot.inbound.by_destination["shop/orders:80"].plugins.clone().unwrap();
    assert_eq!(chain.slots()[0].phase, Phase::Authz);
}
