//! Connections that the kernel leads through sidecars: programs that know nothing of it, real rules, in network namespaces
//! of their own. Needs root; says so where it is missing.

mod on_demand;
mod plugin;
mod pod;
mod rules;

use crate::certificates::Authority;
use pod::{Network, obstacle};

/// Which tools install the rules.
const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];

/// Whether the tests can run here; says why not.
fn can_run() -> bool {
    match obstacle() {
        None => true,
        Some(why) => {
            eprintln!("skipped: {why}");
            false
        }
    }
}

/// The mesh as both sidecars know it: `orders` at pod b, `own` at pod a, each under virtual addresses that lead to nobody.
fn mesh(sidecar: &str, more: &str) -> String {
    let service = |name: &str, number: u8| {
        format!(
            "---\n{{apiVersion: leno.dev/v1alpha1, kind: Service, metadata: {{name: {name}, namespace: default}}, spec: \
             {{hosts: [{name}.test], addresses: [10.96.0.{number}, 'fd96::{number}'], ports: [{{name: http, port: 80, \
             protocol: http}}, {{name: tcp, port: 7000, protocol: tcp}}, {{name: auto, port: 7001}}]}}}}\n"
        )
    };
    let workload = |name: &str, address: &str| {
        format!(
            "---\n{{apiVersion: leno.dev/v1alpha1, kind: Workload, metadata: {{name: {name}-1, namespace: default}}, spec: \
             {{services: [{name}], address: '{address}', serviceAccount: {name}, ports: {{http: 9001, tcp: 9002, \
             auto: 9003}}{sidecar}}}}}\n"
        )
    };
    [
        service("orders", 10),
        workload("orders", "10.77.0.2"),
        service("own", 20),
        workload("own", "10.77.0.1"),
        more.to_owned(),
    ]
    .concat()
}

/// Callers connect to the application's own port, where the kernel leads them to its sidecar.
const PLAIN: &str = "";
const A: [&str; 4] = ["--name", "own-1", "--address", "10.77.0.1"];
const B: [&str; 4] = ["--name", "orders-1", "--address", "10.77.0.2"];
const REFUSED: &str = "leno_downstream_connections_refused_total";

/// Rules in both pods, applications in all, sidecars in a and b.
fn captured(backend: &str) -> Network {
    captured_with(backend, &mesh(PLAIN, ""), &[], &[])
}

fn captured_with(backend: &str, mesh: &str, at_a: &[&str], at_b: &[&str]) -> Network {
    let network = Network::new();
    for pod in [&network.a, &network.b] {
        pod.redirect(&["install", "--backend", backend]);
        pod.application();
    }
    network.c.application();
    network.a.sidecar(mesh, &[&A[..], at_a].concat());
    network.b.sidecar(mesh, &[&B[..], at_b].concat());
    network
}

/// One pair of pods sees everything: what costs is to make them.
fn everything_goes_through(backend: &str) {
    let network = captured(backend);
    let (a, b) = (&network.a, &network.b);
    // HTTP by the name that a caller writes; the address is the service's own, to which nobody else answers.
    let through = ["--connect-to", "::10.96.0.10:80"];
    let http = |more: &[&str]| a.curl(&[&through[..], more].concat());
    assert_eq!(http(&["http://orders.test/x"]), "b /x for orders.test by 127.0.0.6\n");
    let two = http(&["--http2-prior-knowledge", "-w", "%{http_version}", "http://orders.test/2"]);
    assert_eq!(two, "b /2 for orders.test by 127.0.0.6\n2");
    // By the address alone, over both families.
    for host in ["10.96.0.10", "[fd96::10]"] {
        let url = format!("http://{host}/v");
        assert_eq!(a.curl(&[&url]), format!("b /v for {host} by 127.0.0.6\n"));
    }
    // TCP, where the server speaks first: declared, found out, and over IPv6.
    for (host, port) in [("10.96.0.10", 7000), ("10.96.0.10", 7001), ("fd96::10", 7000)] {
        assert_eq!(a.call(host, port, ""), "hello from b\n", "{host} {port}");
        assert_eq!(a.call(host, port, "ping\n"), "hello from b\nping\n", "{host} {port}");
    }
    // Somebody whom no mesh knows: HTTP and bytes pass, over both families.
    for (host, caller) in [("10.78.0.2", "10.78.0.1"), ("[fd78::2]", "fd78::1")] {
        let url = format!("http://{host}:9001/out");
        assert_eq!(a.curl(&[&url]), format!("c /out for {host}:9001 by {caller}\n"));
    }
    assert_eq!(a.call("10.78.0.2", 9002, ""), "hello from c\n");
    let nobody = ["destination_service_name=\"passthrough\""];
    a.counts("istio_tcp_connections_opened_total", &nobody, 1.0);
    a.counts("istio_requests_total", &nobody, 2.0);
    // An application calls its own service, and itself.
    let own = ["--connect-to", "::10.96.0.20:80", "http://own.test/self"];
    assert_eq!(a.curl(&own), "a /self for own.test by 127.0.0.6\n");
    assert_eq!(a.curl(&["http://10.77.0.1:9001/me"]), "a /me for 10.77.0.1:9001 by 10.77.0.1\n");
    assert_eq!(a.curl(&["http://127.0.0.1:9001/lo"]), "a /lo for 127.0.0.1:9001 by 127.0.0.1\n");
    // Somebody without a sidecar calls the application; its port tells which it is, and over IPv6 as well.
    let plain = network.c.curl(&["http://10.78.0.1:9001/in"]);
    assert_eq!(plain, "a /in for 10.78.0.1:9001 by 127.0.0.6\n");
    let plain = network.c.curl(&["http://[fd78::1]:9001/in6"]);
    assert_eq!(plain, "a /in6 for [fd78::1]:9001 by 127.0.0.6\n");
    assert_eq!(network.c.call("10.78.0.1", 9002, ""), "hello from a\n");
    b.counts("istio_requests_total", &["reporter=\"destination\""], 4.0);
    for pod in [a, b] {
        assert_eq!(pod.metric(REFUSED, &[]), 0.0, "{}", pod.errors());
        assert!(!pod.errors().contains("panic"), "{}", pod.errors());
    }
}

#[test]
fn everything_goes_through_by_nft() {
    if can_run() {
        everything_goes_through("nft");
    }
}

#[test]
fn everything_goes_through_by_iptables() {
    if can_run() {
        everything_goes_through("iptables-legacy");
    }
}

#[test]
fn rules_come_and_go_without_a_trace() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let pod = &network.a;
    let foreign = ["-t", "nat", "-A", "OUTPUT", "-p", "udp", "-d", "192.0.2.1", "-j", "RETURN"];
    let foreign_is_there = || {
        let saved = String::from_utf8(pod.run("iptables-nft-save", &["-t", "nat"]).stdout).unwrap();
        saved.contains("192.0.2.1") && saved.matches("192.0.2.1").count() == 1
    };
    assert!(pod.run("iptables-nft", &foreign).status.success());
    for backend in BACKENDS {
        // Twice is once; and by another tool than before is instead of it.
        for _ in 0..2 {
            let said = pod.redirect(&["install", "--backend", backend]);
            assert!(said.starts_with(&format!("installed by {backend}: IPv4 and IPv6")), "{said}");
        }
        let shown = pod.redirect(&["show"]);
        assert_eq!(
            shown.to_lowercase().matches("to-ports 15001").count()
                + shown.matches("redirect to :15001").count(),
            if backend == "nft" { 1 } else { 2 },
            "{shown}"
        );
    }
    pod.redirect(&["install"]);
    assert_eq!(pod.redirect(&["remove"]), "removed what was installed by nft\n");
    assert_eq!(pod.redirect(&["remove"]), "there were no rules of ours\n");
    assert_eq!(pod.redirect(&["show"]), "there are no rules of ours\n");
    // What a run has left that ended half-way: chains without rules, rules that lead into them, twice.
    for rule in [
        &["-N", "LENO_OUTPUT"][..],
        &["-N", "LENO_OLD"],
        &["-A", "OUTPUT", "-p", "tcp", "-j", "LENO_OUTPUT"],
        &["-A", "OUTPUT", "-p", "tcp", "-j", "LENO_OUTPUT"],
        &["-A", "LENO_OUTPUT", "-j", "LENO_OLD"],
    ] {
        assert!(pod.run("iptables-nft", &[&["-t", "nat"][..], rule].concat()).status.success());
    }
    pod.redirect(&["install", "--backend", "iptables-nft"]);
    assert!(!pod.redirect(&["show"]).contains("LENO_OLD"));
    pod.redirect(&["remove"]);
    for (program, arguments) in [
        ("nft", &["list", "ruleset"][..]),
        ("iptables-legacy-save", &[][..]),
        ("ip6tables-legacy-save", &[][..]),
        ("ip", &["-6", "addr", "show", "dev", "lo"][..]),
    ] {
        let left = String::from_utf8(pod.run(program, arguments).stdout).unwrap();
        assert!(!left.to_lowercase().contains("leno") && !left.contains("::6/"), "{left}");
    }
    assert!(foreign_is_there());
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let pod = &network.a;
    let redirect = env!("CARGO_BIN_EXE_leno-redirect-under-test");
    let as_nobody = ["--reuid", "65534", "--clear-groups", redirect, "install"];
    let output = pod.run("setpriv", &as_nobody);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("NET_ADMIN"), "{said}");
    // Without any tool: in a mount namespace where the folders of programs are empty.
    let hide = format!(
        "mount -t tmpfs none /usr/sbin && mount -t tmpfs none /sbin && exec '{redirect}' install"
    );
    let output = pod.run("unshare", &["--mount", "sh", "-c", &hide]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("Install nftables or iptables"), "{said}");
    // Another mesh was here first.
    assert!(pod.run("iptables", &["-t", "nat", "-N", "ISTIO_OUTPUT"]).status.success());
    assert!(pod.redirect_fails(&["install"]).contains("ISTIO_OUTPUT"));
    let both = ["install", "--include-inbound-ports", "80", "--exclude-inbound-ports", "80"];
    assert!(pod.redirect_fails(&both).contains("`80` is included and excluded"));
    assert_eq!(pod.redirect(&["show"]), "there are no rules of ours\n");
    let lo = String::from_utf8(pod.run("ip", &["-6", "addr", "show", "dev", "lo"]).stdout).unwrap();
    assert!(!lo.contains("::6/"), "{lo}");
}

#[test]
fn nothing_goes_round_in_circles() {
    if !can_run() {
        return;
    }
    let network = captured("nft");
    let (a, c) = (&network.a, &network.c);
    // From outside to the sidecar's own ports: the outbound one would be a proxy for everybody.
    for port in [15000, 15001] {
        assert_eq!(c.curl(&[&format!("http://10.78.0.1:{port}/")]), "");
        let through = ["-x", &format!("http://10.78.0.1:{port}"), "http://orders.test/"];
        assert_eq!(c.curl(&through), "");
    }
    a.counts(REFUSED, &["reason=\"own_listener\""], 4.0);
    // From inside: what is sent there knowingly is a request to a proxy, and a host that nobody has is nobody's.
    let code = |url: &str| a.curl(&["-o", "/dev/null", "-w", "%{http_code}", url]);
    assert_eq!(code("http://127.0.0.1:15001/"), "404");
    assert_eq!(code("http://127.0.0.6:15006/"), "404");
    assert_eq!(code("http://10.77.0.1:15001/"), "000", "it listens on loopback only");
    let by_proxy = a.curl(&["-x", "http://127.0.0.1:15001", "http://orders.test/p"]);
    assert_eq!(by_proxy, "b /p for orders.test by 127.0.0.6\n");
}

/// A sidecar that runs as somebody whom the rules do not except: what it sends comes back to it, and is refused.
#[test]
fn a_sidecar_that_the_rules_do_not_know_refuses_its_own_connections() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let a = &network.a;
    network.c.application();
    a.redirect(&["install"]);
    a.sidecar_as("4711", &mesh(PLAIN, ""), &A);
    assert_eq!(a.call("10.78.0.2", 9002, "ping\n"), "");
    let answer = a.curl(&["-o", "/dev/null", "-w", "%{http_code}", "http://10.78.0.2:9001/"]);
    assert!(answer.starts_with("50"), "{answer}");
    a.counts(REFUSED, &["reason=\"loop\""], 2.0);
    assert!(a.errors().contains("leno redirect install --user"), "{}", a.errors());
}

#[test]
fn exclusions_pass_the_sidecar_by() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, c) = (&network.a, &network.c);
    a.redirect(&["install", "--exclude-outbound-ports", "9001", "--exclude-inbound-ports", "9002"]);
    a.application();
    c.application();
    a.sidecar(&mesh(PLAIN, ""), &A);
    assert!(a.curl(&["http://10.78.0.2:9001/"]).ends_with("by 10.78.0.1\n"));
    assert_eq!(c.call("10.78.0.1", 9002, ""), "hello from a\n");
    assert_eq!(a.metric("istio_requests_total", &[]), 0.0, "nothing has passed the sidecar");
    assert_eq!(a.metric("istio_tcp_connections_opened_total", &[]), 0.0);
    // All of one interface, and one user.
    a.redirect(&["install", "--exclude-interfaces", "eth1"]);
    assert_eq!(a.call("10.78.0.2", 9002, ""), "hello from c\n");
    assert!(c.curl(&["http://10.78.0.1:9001/"]).ends_with("by 10.78.0.2\n"));
    a.redirect(&["install", "--exclude-users", "0", "--exclude-outbound-ranges", "10.78.0.0/16"]);
    assert_eq!(a.call("10.78.0.2", 9002, ""), "hello from c\n");
    assert_eq!(a.metric("istio_tcp_connections_opened_total", &[]), 0.0);
    a.redirect(&["install", "--include-outbound-ranges", "10.78.0.0/16"]);
    assert_eq!(a.call("10.78.0.2", 9002, ""), "hello from c\n");
    a.counts("istio_tcp_connections_opened_total", &["passthrough"], 1.0);
}

#[test]
fn what_the_mesh_does_not_know_can_be_refused_and_who_is_gone_is_gone() {
    if !can_run() {
        return;
    }
    let strict = ["--unknown-destinations", "refuse"];
    let network = captured_with("nft", &mesh(PLAIN, ""), &strict, &[]);
    let a = &network.a;
    let code = |url: &str| a.curl(&["-o", "/dev/null", "-w", "%{http_code}", url]);
    assert_eq!(code("http://10.78.0.2:9001/"), "404");
    assert_eq!(a.call("10.78.0.2", 9002, "ping\n"), "");
    a.counts(REFUSED, &["listener=\"outbound\"", "reason=\"NR\""], 1.0);
    assert_eq!(code("http://10.96.0.10/"), "200", "the mesh itself is known");
    // At b everything passes, but at this port nobody is.
    let b = &network.b;
    let gone = b.curl(&["-o", "/dev/null", "-w", "%{http_code}", "http://10.77.0.1:1/"]);
    assert!(gone.starts_with("50"), "{gone}");
    assert_eq!(b.call("10.77.0.1", 1, "ping\n"), "");
}

/// The host decides, as in Istio; where it is nobody's, the address does.
#[test]
fn the_host_decides_before_the_address() {
    if !can_run() {
        return;
    }
    let network = captured("nft");
    let a = &network.a;
    let elsewhere = ["-H", "Host: orders.test", "http://10.96.0.20/h"];
    assert_eq!(a.curl(&elsewhere), "b /h for orders.test by 127.0.0.6\n");
    let nobody = ["-H", "Host: nobody.test", "http://10.96.0.10/h"];
    assert_eq!(a.curl(&nobody), "b /h for nobody.test by 127.0.0.6\n");
    // The port is where the connection was going, whatever the host says.
    let outside = ["-H", "Host: orders.test", "http://10.78.0.2:9001/h"];
    assert_eq!(a.curl(&outside), "c /h for orders.test by 10.78.0.1\n");
}

const POLICY: &str = "---\n{apiVersion: leno.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: mode, namespace: \
                      default}, spec: {mtls: {mode: MODE}}}\n";

/// Ports that no service has are held to the same policies as all others.
#[test]
fn undeclared_ports_are_no_way_around_policies() {
    if !can_run() {
        return;
    }
    let deny = "---\n{apiVersion: leno.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: none, namespace: default}, \
                spec: {action: ALLOW, rules: [{from: [{source: {ipBlocks: [10.77.0.0/16]}}]}]}}\n";
    for (more, reason) in
        [(POLICY.replace("MODE", "STRICT"), "plaintext_refused"), (deny.to_owned(), "AD")]
    {
        let network = Network::new();
        let (a, c) = (&network.a, &network.c);
        a.redirect(&["install"]);
        a.application();
        let declared = mesh(PLAIN, &more).replace("tcp: 9002, ", "");
        a.sidecar(&declared, &A);
        assert_eq!(c.call("10.78.0.1", 9002, "ping\n"), "", "{reason}");
        a.counts(REFUSED, &[&format!("reason=\"{reason}\"")], 1.0);
        let code = c.curl(&["-o", "/dev/null", "-w", "%{http_code}", "http://10.78.0.1:9001/"]);
        assert_ne!(code, "200", "{reason}");
    }
}

/// What is said to a port that is declared `tcp` is the application's affair, also where it looks like HTTP and the sidecar
/// has to look, as mutual TLS is taken there, too. Where nothing is declared, only what can be nothing else is HTTP.
#[test]
fn bytes_that_look_like_http_are_bytes_where_that_is_declared() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let authority = Authority::new();
    let (a, c) = (&network.a, &network.c);
    let mesh =
        mesh(", sidecar: {port: 15006, mutualTls: true}", &POLICY.replace("MODE", "PERMISSIVE"));
    a.redirect(&["install"]);
    a.application();
    let flags = readable(a, &authority.flags("own"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    a.sidecar(&mesh, &[&A[..], &flags].concat());
    for (port, said) in [
        (9002, "GET key\r\n"),
        (9002, "GET / HTTP/1.1\r\nhost: own.test\r\n\r\n"),
        (9002, "OPTIONS sip:a@b SIP/2.0\r\n"),
        (9003, "GET key\r\n"),
        (9003, "GET http://elsewhere.test/ HTTP/1.1\r\n\r\n"),
    ] {
        let heard = c.call("10.78.0.1", port, said);
        assert_eq!(heard, format!("hello from a\n{said}"), "{port}");
    }
    // The same after a silence, in which the application speaks; what HTTP is stays HTTP.
    assert_eq!(c.call("10.78.0.1", 9002, ""), "hello from a\n");
    assert!(c.curl(&["http://10.78.0.1:9001/p"]).starts_with("a /p for"));
    // It is counted when it is over for us, which is after the caller has it all.
    a.counts("istio_requests_total", &[], 1.0);
    assert_eq!(a.metric("istio_requests_total", &[]), 1.0, "bytes are no requests");
}

/// An interface with nothing but its link-local IPv6 address is a way in as well.
#[test]
fn neighbours_do_not_pass_the_sidecar_by_over_ipv6() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let (a, c) = (&network.a, &network.c);
    for interface in ["eth0", "eth1"] {
        let flush = ["-6", "addr", "flush", "dev", interface, "scope", "global"];
        assert!(a.run("ip", &flush).status.success());
    }
    let link_local = |pod: &pod::Pod, interface: &str| {
        let deadline = std::time::Instant::now() + crate::mesh::PATIENCE;
        loop {
            let show =
                ["-6", "-o", "addr", "show", "dev", interface, "scope", "link", "-tentative"];
            let shown = String::from_utf8(pod.run("ip", &show).stdout).unwrap();
            let mut words = shown.split_ascii_whitespace();
            if let Some(address) = words.find_map(|word| word.strip_suffix("/64")) {
                return address.to_owned();
            }
            assert!(std::time::Instant::now() < deadline, "{interface} has no address of its link");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    let (own, neighbour) = (link_local(a, "eth1"), link_local(c, "eth0"));
    let said = a.redirect(&["install"]);
    assert!(said.contains("IPv4 and IPv6"), "{said}");
    a.application();
    c.application();
    a.sidecar(&mesh(PLAIN, ""), &A);
    let through = c.curl(&[&format!("http://[{own}%25eth0]:9001/l")]);
    assert!(through.starts_with("a /l for") && through.ends_with("by 127.0.0.6\n"), "{through}");
    a.counts("istio_requests_total", &["reporter=\"destination\""], 1.0);
    // What goes to the link goes by itself.
    let out = a.curl(&[&format!("http://[{neighbour}%25eth1]:9001/o")]);
    assert!(out.starts_with("c /o for"), "{out}");
    assert_eq!(a.metric("istio_requests_total", &["reporter=\"source\""]), 0.0);
}

/// Between sidecars with certificates everything is under mutual TLS, also what the server begins.
#[test]
fn captured_connections_are_carried_under_mutual_tls() {
    if !can_run() {
        return;
    }
    let network = Network::new();
    let authority = Authority::new();
    let mesh = mesh(", sidecar: {port: 15006, mutualTls: true}", "");
    for (pod, name, account) in [(&network.a, &A, "own"), (&network.b, &B, "orders")] {
        pod.redirect(&["install"]);
        pod.application();
        let flags = readable(pod, &authority.flags(account));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        pod.sidecar(&mesh, &[&name[..], &flags].concat());
    }
    let a = &network.a;
    assert_eq!(a.curl(&["http://10.96.0.10/t"]), "b /t for 10.96.0.10 by 127.0.0.6\n");
    for port in [7000, 7001] {
        assert_eq!(a.call("10.96.0.10", port, ""), "hello from b\n", "{port}");
        assert_eq!(a.call("10.96.0.10", port, "ping\n"), "hello from b\nping\n", "{port}");
    }
    assert_eq!(
        a.curl(&["--connect-to", "::10.96.0.20:80", "http://own.test/s"]),
        "a /s for own.test by 127.0.0.6\n"
    );
    network.b.counts("istio_requests_total", &["connection_security_policy=\"mutual_tls\""], 1.0);
    network.b.counts("istio_tcp_connections_opened_total", &["mutual_tls"], 4.0);
    // Nothing comes in plain, to ports that are declared or not.
    let code = a.curl(&["-o", "/dev/null", "-w", "%{http_code}", "http://10.77.0.2:9001/"]);
    assert!(code.starts_with("50"), "{code}");
    network.b.counts(REFUSED, &["reason=\"plaintext_refused\""], 1.0);
}

/// The files of `flags` where the user as which the sidecar runs can read them.
fn readable(pod: &pod::Pod, flags: &[String]) -> Vec<String> {
    let copy = |flag: &String| match std::fs::read_to_string(flag) {
        Ok(text) => {
            let name = std::path::Path::new(flag).file_name().unwrap().to_str().unwrap();
            pod.private_file(name, &text)
        }
        Err(_) => flag.clone(),
    };
    flags.iter().map(copy).collect()
}
