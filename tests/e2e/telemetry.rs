//! Metrics with Istio's names and labels, and access logs that no header can forge (FAULTS 41, 42).

use crate::{
    client::{self, Wire},
    mesh::Mesh,
    origin::Origin,
};

#[tokio::test]
async fn requests_are_counted_as_istio_does() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .service("empty", "http", &[])
        .arguments(&["--name", "caller", "--label", "version=v7"])
        .start()
        .await;
    for _ in 0..3 {
        let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(client::ask(proxy.outbound, post).await.status, 200);
    }
    client::get(proxy.outbound, "empty", "/").await;
    client::get(proxy.outbound, "nowhere", "/").await;
    let good = [
        ("reporter", "source"),
        ("source_workload", "caller"),
        ("source_workload_namespace", "default"),
        ("source_version", "v7"),
        ("destination_workload", "shop-0"),
        ("destination_workload_namespace", "default"),
        ("destination_service_name", "shop"),
        ("destination_service_namespace", "default"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "none"),
    ];
    proxy.counts("istio_requests_total", &good, 3.0).await;
    proxy.counts("istio_request_bytes_sum", &good, 15.0).await;
    proxy.counts("istio_request_duration_milliseconds_count", &good, 3.0).await;
    assert!(proxy.metric("istio_response_bytes_sum", &good).await > Some(100.0));
    for (service, code, flag) in [("empty", "503", "UH"), ("unknown", "404", "NR")] {
        let labels = [
            ("destination_service_name", service),
            ("response_code", code),
            ("response_flags", flag),
        ];
        proxy.counts("istio_requests_total", &labels, 1.0).await;
    }
    let page = proxy.page("/stats/prometheus").await;
    for family in [
        "istio_requests_total counter",
        "istio_request_duration_milliseconds histogram",
        "istio_request_bytes histogram",
        "istio_response_bytes histogram",
        "leno_downstream_connections gauge",
        "leno_config_generation gauge",
        "process_resident_memory_bytes gauge",
    ] {
        assert!(page.contains(&format!("# TYPE {family}")), "{family}");
    }
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok()),
            "{line}"
        );
    }
}

/// Hosts, paths and methods that callers make up must not become series.
#[tokio::test]
async fn callers_cannot_make_series() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let series = async || proxy.page("/stats/prometheus").await.lines().count();
    let round = async |from: u32| {
        let mut wire = Wire::connect(proxy.outbound).await;
        for at in from..from + 200 {
            let request =
                format!("M{at} /path-{at} HTTP/1.1\r\nHost: host-{at}\r\nUser-Agent: {at}\r\n\r\n");
            assert_eq!(wire.ask(request).await.status, 404);
            wire.ask(format!("GET /path-{at} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        }
    };
    round(0).await;
    let unknown = [("response_flags", "NR")];
    proxy.counts("istio_requests_total", &unknown, 200.0).await;
    let before = series().await;
    round(1000).await;
    proxy.counts("istio_requests_total", &unknown, 400.0).await;
    assert_eq!(series().await, before);
}

#[tokio::test]
async fn the_access_log_says_what_happened() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .http_route("shop", "- {name: everything, backendRefs: [{name: shop, port: 80}]}")
        .start()
        .await;
    let fields = "User-Agent: test/1\r\nx-request-id: id-1\r\n";
    let request =
        format!("POST /a?b=c HTTP/1.1\r\nHost: shop\r\n{fields}Content-Length: 5\r\n\r\nhello");
    let answer = client::ask(proxy.outbound, request).await;
    let line = &proxy.access_log(1).await[0];
    for (name, value) in [
        ("method", "POST"),
        ("path", "/a?b=c"),
        ("authority", "shop"),
        ("user_agent", "test/1"),
        ("request_id", "id-1"),
        ("protocol", "HTTP/1.1"),
        ("listener", "outbound"),
        ("response_flags", "-"),
        ("upstream_cluster", "default/shop:80"),
        ("upstream_host", &echo.address.to_string()),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
    assert!(line["route_name"].as_str().unwrap().contains("default/shop"), "{line}");
    assert_eq!(
        (&line["response_code"], &line["bytes_received"], &line["attempts"]),
        (&200.into(), &5.into(), &1.into())
    );
    assert_eq!(line["bytes_sent"], answer.body.len());
    assert!(line["duration"].as_f64().is_some() && line["time"].as_str().unwrap().ends_with('Z'));
    assert!(line["downstream_remote_address"].as_str().unwrap().starts_with("127.0.0.1:"));
}

/// One exchange is one line of valid JSON, whatever a header holds.
#[tokio::test]
async fn no_header_forges_a_line() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let evil: &[&[u8]] = &[
        b"\",\"response_code\":200,\"x\":\"",
        b"\\\",\"a\":\"b",
        b"\x1b[31mred\x1b[0m",
        b"tab\there",
        b"\xff\xfe\x80",
        b"</script>{{7*7}}${jndi:x}",
        b"\\u000a\\n\\r",
    ];
    let mut sent = 0;
    for value in evil {
        for name in [&b"User-Agent"[..], b"x-request-id", b"Referer"] {
            let request = [
                b"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n",
                name,
                b": ",
                value,
                b"\r\n\r\n",
            ]
            .concat();
            let mut wire = Wire::connect(proxy.outbound).await;
            wire.send(request).await;
            let answered = wire.try_answer().await.is_ok_and(|answer| answer.status == 200);
            // ESC is no character of a field value: refused before it is logged.
            sent += usize::from(answered);
        }
        let path =
            value.iter().filter(|byte| byte.is_ascii_graphic()).copied().collect::<Vec<u8>>();
        let request =
            [b"GET /", &path[..], b" HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"].concat();
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(request).await;
        sent += usize::from(wire.try_answer().await.is_ok_and(|answer| answer.status == 200));
    }
    client::get(proxy.outbound, "shop", "/last").await;
    assert!(sent >= 15, "{sent}");
    let log = crate::mesh::until("the last line", async || {
        let log = proxy.access_log(sent + 1).await;
        log.iter().any(|line| line["path"] == "/last").then_some(log)
    })
    .await;
    let lasts = log.iter().filter(|line| line["path"] == "/last").count();
    assert_eq!(lasts, 1);
    for line in log {
        assert_eq!(
            line.as_object().unwrap().keys().filter(|key| *key == "response_code").count(),
            1
        );
        assert!(line.get("x").is_none() && line.get("a").is_none(), "{line}");
    }
}

/// A log that cannot be written costs lines, never requests (FAULTS 40, 43).
#[tokio::test]
async fn a_full_disk_under_the_log_costs_lines_only() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--access-log-file", "/dev/full"])
        .start()
        .await;
    for _ in 0..5 {
        proxy.serves("shop").await;
    }
    crate::mesh::until("lost lines to be counted", async || {
        (proxy.metric("leno_access_log_dropped_total", &[]).await > Some(0.0)).then_some(())
    })
    .await;
    proxy.serves("shop").await;
}

#[tokio::test]
async fn the_text_log_is_one_line_an_exchange() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--access-log", "text"])
        .start()
        .await;
    let fields = "User-Agent: a\" 503 UF \"b\r\n";
    client::get_with(proxy.outbound, "shop", "/x?y=1", fields).await;
    client::get(proxy.outbound, "nowhere", "/").await;
    let text = proxy.access_log_text(2).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("\"GET /x?y=1 HTTP/1.1\" 200 - 0 "), "{text}");
    assert!(lines[0].contains(r#""a\" 503 UF \"b""#), "{text}");
    assert!(lines[1].contains("HTTP/1.1\" 404 NR"), "{text}");
}

/// What was answered is in the log, even when the process ends right behind it.
#[tokio::test]
async fn the_last_lines_are_written_before_the_process_ends() {
    let echo = Origin::echo("a").await;
    let mut proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let burst = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n".repeat(100);
    wire.send(burst).await;
    for _ in 0..100 {
        assert_eq!(wire.answer().await.status, 200);
    }
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.ended().await.success());
    assert_eq!(proxy.access_log_now().lines().count(), 100);
}
