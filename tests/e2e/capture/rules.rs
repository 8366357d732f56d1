//! What the rules leave alone.

use super::{A, PLAIN, can_run, mesh, pod::Network};

/// Neither what passes through a machine that is a router, nor what is for such a machine itself gets lost.
#[test]
fn what_is_routed_through_is_left_alone() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, b, c) = (&network.a, &network.b, &network.c);
    let forward =
        "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    assert!(a.run("sh", &["-c", forward]).status.success());
    for (net, gateway) in [("10.77.0.0/24", "10.78.0.1"), ("fd77::/64", "fd78::1")] {
        assert!(c.run("ip", &["route", "add", net, "via", gateway]).status.success());
    }
    [a, b].into_iter().for_each(super::pod::Pod::application);
    let mut served = 0.0;
    for backend in super::BACKENDS {
        a.redirect(&["install", "--backend", backend]);
        if served == 0.0 {
            a.sidecar(&mesh(PLAIN, ""), &A);
        }
        for (host, caller) in [("10.77.0.2", "10.78.0.2"), ("[fd77::2]", "fd78::2")] {
            let passing = c.curl(&[&format!("http://{host}:9001/through")]);
            assert_eq!(passing, format!("b /through for {host}:9001 by {caller}\n"), "{backend}");
        }
        assert_eq!(c.call("10.77.0.2", 9002, ""), "hello from b\n", "{backend}");
        let requests = a.metric("istio_requests_total", &[]);
        assert_eq!(requests, served, "{backend}: the sidecar has not seen it");
        assert_eq!(a.metric("istio_tcp_connections_opened_total", &[]), 0.0, "{backend}");
        // What is for this machine is, by any of its addresses.
        for host in ["10.78.0.1", "10.77.0.1", "[fd78::1]"] {
            let own = c.curl(&[&format!("http://{host}:9001/own")]);
            assert_eq!(own, format!("a /own for {host}:9001 by 127.0.0.6\n"), "{backend}");
            served += 1.0;
            a.counts("istio_requests_total", &["reporter=\"destination\""], served);
        }
    }
}

/// Readiness and metrics are asked for by those who have no certificate, over both families.
#[test]
fn the_sidecars_own_ports_are_reached_from_outside() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, c) = (&network.a, &network.c);
    a.redirect(&["install", "--exclude-inbound-ports", "8500-8599"]);
    a.application();
    // As nobody has a port of 15020 here: somebody else's agent.
    [15020, 8555].into_iter().for_each(|port| a.files(port));
    let open = ["--ready", "[::]:15021", "--metrics", "[::]:15090"];
    a.sidecar(&mesh(PLAIN, ""), &[&A[..], &open].concat());
    for host in ["10.78.0.1", "[fd78::1]"] {
        assert_eq!(c.curl(&[&format!("http://{host}:15021/ready")]), "LIVE\n");
        let metrics = c.curl(&[&format!("http://{host}:15090/metrics")]);
        assert!(metrics.contains("# TYPE"), "{host}: {metrics}");
        for port in [15020, 8555] {
            let listed = c.curl(&[&format!("http://{host}:{port}/")]);
            assert!(listed.contains("mesh.yaml"), "{host}:{port}: {listed}");
        }
        // The operators' port is for this machine.
        assert_eq!(c.curl(&[&format!("http://{host}:15000/ready")]), "");
    }
    assert_eq!(a.metric("istio_requests_total", &[]), 0.0, "nothing has passed the sidecar");
    assert_eq!(a.metric("istio_tcp_connections_opened_total", &[]), 0.0);
}

/// What is excluded is excluded over IPv6 as well, and in both directions.
#[test]
fn exclusions_hold_for_ipv6() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, c) = (&network.a, &network.c);
    [a, c].into_iter().for_each(super::pod::Pod::application);
    a.redirect(&["install"]);
    a.sidecar(&mesh(PLAIN, ""), &A);
    for exclusion in [
        &["--exclude-outbound-ranges", "fd78::/16", "--exclude-inbound-ports", "9001"][..],
        &["--exclude-outbound-ports", "9001", "--include-inbound-ports", "9002"],
        &["--exclude-interfaces", "eth1"],
        &["--include-outbound-ranges", "fd77::/64", "--include-inbound-ports="],
        &["--exclude-groups", "0", "--exclude-inbound-ports", "9000-9001"],
    ] {
        a.redirect(&[&["install"], exclusion].concat());
        let out = a.curl(&["http://[fd78::2]:9001/"]);
        assert!(out.ends_with("by fd78::1\n"), "{exclusion:?}: {out}");
        let into = c.curl(&["http://[fd78::1]:9001/"]);
        assert!(into.ends_with("by fd78::2\n"), "{exclusion:?}: {into}");
        assert_eq!(a.metric("istio_requests_total", &[]), 0.0, "{exclusion:?}");
    }
    a.redirect(&["install"]);
    assert!(c.curl(&["http://[fd78::1]:9001/"]).ends_with("by 127.0.0.6\n"));
    a.counts("istio_requests_total", &["reporter=\"destination\""], 1.0);
}
