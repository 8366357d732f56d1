//! Rules that a plugin of the node installs, as container runtimes ask for it.

use serde_json::{Value, json};

use super::{A, PLAIN, can_run, mesh, pod::Network};

fn question(annotations: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "leno-cni",
        "prevResult": {
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "10.77.0.1/24", "interface": 0}], "somethingNew": true,
        },
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations},
    })
}

fn answer(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_plugin_of_the_node_installs_the_same_rules() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, c) = (&network.a, &network.c);
    let (done, said) = a.plugin("VERSION", &json!({"cniVersion": "1.0.0"}));
    assert!(
        done && answer(&said)["supportedVersions"].as_array().unwrap().contains(&"0.4.0".into())
    );
    // A pod that has no sidecar, or another one that writes them.
    for others in
        [json!({}), json!({"leno.dev/injected": "{}"}), json!({"leno.dev/redirect": "cni"})]
    {
        let asked = question(&others);
        let (done, said) = a.plugin("ADD", &asked);
        assert!(done && answer(&said) == asked["prevResult"], "{said}");
        assert!(a.plugin("CHECK", &asked).0);
    }
    assert_eq!(a.redirect(&["show"]), "there are no rules of ours\n");
    let annotations = json!({
        "leno.dev/redirect": "cni", "leno.dev/injected": "{}", "leno.dev/exclude-outbound-ports": "9002",
    });
    let asked = question(&annotations);
    let (done, said) = a.plugin("CHECK", &asked);
    assert!(!done && answer(&said)["details"].as_str().unwrap().contains("not in force"), "{said}");
    // Runtimes may ask twice.
    for _ in 0..2 {
        let (done, said) = a.plugin("ADD", &asked);
        assert!(done && answer(&said) == asked["prevResult"], "{said}");
    }
    assert_eq!(a.plugin("CHECK", &asked), (true, String::new()));
    [a, c].into_iter().for_each(super::pod::Pod::application);
    a.sidecar(&mesh(PLAIN, ""), &A);
    assert!(a.curl(&["http://10.78.0.2:9001/"]).ends_with("by 10.78.0.1\n"));
    a.counts("istio_requests_total", &["reporter=\"source\""], 1.0);
    assert_eq!(a.call("10.78.0.2", 9002, ""), "hello from c\n");
    assert_eq!(a.metric("istio_tcp_connections_opened_total", &[]), 0.0, "it is excluded");
    assert!(c.curl(&["http://10.78.0.1:9001/"]).ends_with("by 127.0.0.6\n"));
    // Somebody has taken a rule out.
    assert!(a.run("nft", &["flush", "chain", "inet", "leno", "leno_output"]).status.success());
    let (done, said) = a.plugin("CHECK", &asked);
    assert!(!done && answer(&said)["code"] == 100, "{said}");
    // The end of a pod, also of one that is gone: its rules went with its network.
    assert_eq!(a.plugin("DEL", &asked), (true, String::new()));
    let wrong = json!({
        "leno.dev/redirect": "cni", "leno.dev/injected": "{}", "leno.dev/exclude-outbound-ports": "none",
    });
    let (done, said) = a.plugin("ADD", &question(&wrong));
    assert!(!done && answer(&said)["code"] == 7, "{said}");
}
