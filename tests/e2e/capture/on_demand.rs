//! A connection to an address of which the sidecar has not heard yet: it asks, and the application waits.

use serde_json::json;

use super::{A, can_run, pod::Network};

#[test]
fn an_address_is_asked_for_when_it_is_first_called() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, b, c) = (&network.a, &network.b, &network.c);
    [b, c].into_iter().for_each(super::pod::Pod::application);
    a.redirect(&["install"]);
    a.managed_sidecar("own", &A);
    // Each answers to one address that nobody has called, and is called once in one way.
    let service = |number: u8| {
        let addresses = [format!("10.96.1.{number}"), format!("fd96:1::{number}")];
        a.create(
            "services",
            &json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
                "metadata": {"name": format!("s{number}"), "namespace": "default"},
                "spec": {"addresses": addresses, "ports": [
                    {"name": "http", "port": 80, "protocol": "http"},
                    {"name": "tcp", "port": 7000, "protocol": "tcp"},
                ]},
            }),
        );
        a.create(
            "workloads",
            &json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
                "metadata": {"name": format!("s{number}-1"), "namespace": "default"},
                "spec": {
                    "services": [format!("s{number}")], "address": "10.77.0.2",
                    "ports": {"http": 9001, "tcp": 9002},
                },
            }),
        );
    };
    (1..=5).for_each(service);
    let ready = || a.curl(&["http://127.0.0.1:15000/ready"]) == "LIVE\n";
    let deadline = std::time::Instant::now() + crate::mesh::PATIENCE;
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "{}", a.errors());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let http = |host: &str| a.curl(&[&format!("http://{host}/v")]);
    assert_eq!(http("10.96.1.1"), "b /v for 10.96.1.1 by 10.77.0.1\n");
    assert_eq!(http("[fd96:1::2]"), "b /v for [fd96:1::2] by 10.77.0.1\n");
    assert_eq!(a.call("10.96.1.3", 7000, ""), "hello from b\n", "the server speaks first");
    assert_eq!(a.call("10.96.1.4", 7000, "ping\n"), "hello from b\nping\n");
    assert_eq!(a.call("fd96:1::5", 7000, ""), "hello from b\n");
    // Nobody has this one, which is known then, until somebody does.
    assert_eq!(http("10.78.0.2:9001"), "c /v for 10.78.0.2:9001 by 10.78.0.1\n");
    let outside = ["-o", "/dev/null", "-w", "%{http_code}", "--connect-timeout", "1"];
    let code = |host: &str| a.curl(&[&outside[..], &[&format!("http://{host}/")]].concat());
    assert_ne!(code("10.96.1.9"), "200");
    service(9);
    let deadline = std::time::Instant::now() + crate::mesh::PATIENCE;
    while code("10.96.1.9") != "200" {
        assert!(std::time::Instant::now() < deadline, "{}", a.errors());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(!a.errors().contains("does not say who answers"), "{}", a.errors());
}
