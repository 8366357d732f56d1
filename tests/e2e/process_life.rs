//! The process: what it refuses to start with, and how it ends (FAULTS 4, 45).

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--outbound", "--inbound", "--admin"] {
        let (status, errors) = Mesh::default().arguments(&[flag, &address]).fail().await;
        assert_eq!(status.code(), Some(1));
        let name = flag.trim_start_matches('-');
        assert!(errors.contains(name) && errors.contains(&address), "{errors}");
        assert!(errors.contains("another process has this port"), "{errors}");
    }
    let (status, errors) = Mesh::default().arguments(&["--outbound", "192.0.2.1:0"]).fail().await;
    assert!(!status.success() && errors.contains("no such address"), "{errors}");
}

/// Although workers share a port, a second proxy must not quietly take a share of the first one's traffic.
#[tokio::test]
async fn a_second_proxy_on_the_same_port_is_refused() {
    let proxy = Mesh::default().arguments(&["--workers", "2"]).start().await;
    let address = proxy.outbound.to_string();
    let (status, errors) = Mesh::default().arguments(&["--outbound", &address]).fail().await;
    assert!(!status.success() && errors.contains(&address), "{errors}");
}

#[tokio::test]
async fn wrong_flags_are_explained() {
    for (arguments, expected) in [
        (&["--workers", "0"][..], "--workers"),
        (&["--outbound", "nonsense"], "--outbound"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--log", "a=b=c"], "a=b=c"),
        (&["--access-log-file", "/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let (status, errors) = Mesh::default().arguments(arguments).fail().await;
        assert!(!status.success() && errors.contains(expected), "{arguments:?}: {errors}");
    }
}

/// Answers when told to.
struct Patient {
    origin: Origin,
    go: tokio::sync::watch::Sender<bool>,
}

async fn patient() -> Patient {
    let (go, gone) = tokio::sync::watch::channel(false);
    let origin = Origin::raw(move |mut stream, _| {
        let mut gone = gone.clone();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                if gone.wait_for(|go| *go).await.is_err() {
                    return;
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Patient { origin, go }
}

async fn waiting_call(proxy: &Proxy, patient: &Patient) -> Wire {
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("the call", async || (patient.origin.open() > 0).then_some(())).await;
    wire
}

async fn draining(proxy: &Proxy) {
    until("not ready", async || {
        let answer = client::get(proxy.admin, &proxy.admin.to_string(), "/ready").await;
        (answer.status == 503 && answer.text().contains("DRAINING")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sigterm_finishes_what_is_under_way() {
    for by in ["SIGTERM", "SIGINT", "POST"] {
        let patient = patient().await;
        let mut proxy =
            Mesh::default().service("shop", "http", &[patient.origin.address]).start().await;
        let mut idle = Wire::connect(proxy.outbound).await;
        let missing = "GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n";
        assert_eq!(idle.ask(missing).await.status, 404);
        let mut wire = waiting_call(&proxy, &patient).await;
        match by {
            "SIGTERM" => proxy.signal(Signal::TERM),
            "SIGINT" => proxy.signal(Signal::INT),
            _ => {
                let post =
                    format!("POST /drain_listeners HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.admin);
                assert_eq!(client::ask(proxy.admin, post).await.status, 200);
            }
        }
        draining(&proxy).await;
        assert!(idle.is_closed().await, "an idle connection has nothing to wait for");
        until("new connections to be refused", async || {
            match tokio::net::TcpStream::connect(proxy.outbound).await {
                Err(_) => Some(()),
                Ok(stream) => {
                    Wire { stream, unread: Vec::new() }.rest().await;
                    None
                }
            }
        })
        .await;
        patient.go.send_replace(true);
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"), "{by}");
        assert_eq!(answer.header("connection"), Some("close"), "{by}");
        assert_eq!(proxy.ended().await.code(), Some(0), "{by}");
        let errors = proxy.errors();
        assert!(errors.contains("everything under way has finished"), "{errors}");
    }
}

#[tokio::test]
async fn http2_callers_are_told_to_go_away() {
    let patient = patient().await;
    let mut proxy =
        Mesh::default().service("shop", "http", &[patient.origin.address]).start().await;
    let mut raw = crate::frames::Raw::connect(&proxy).await;
    raw.send(&crate::frames::get(1)).await;
    until("the call", async || (patient.origin.open() > 0).then_some(())).await;
    proxy.signal(Signal::TERM);
    let farewell = raw.until(|frame| frame.kind == crate::frames::GOAWAY).await;
    assert_eq!(farewell.code(), 0);
    patient.go.send_replace(true);
    while let Some(frame) = raw.next().await {
        // Graceful shutdown asks for a round trip before it names the last stream.
        if frame.kind == crate::frames::PING && frame.flags == 0 {
            raw.send(&crate::frames::Frame::new(crate::frames::PING, 1, 0, frame.payload)).await;
        } else if frame.kind == crate::frames::HEADERS {
            assert_eq!(frame.stream, 1);
        }
    }
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let patient = patient().await;
    let mut proxy =
        Mesh::default().service("shop", "http", &[patient.origin.address]).start().await;
    let mut wire = waiting_call(&proxy, &patient).await;
    proxy.signal(Signal::TERM);
    draining(&proxy).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(wire.try_answer().await.is_err());
    assert!(proxy.errors().contains("ending at once"), "{}", proxy.errors());
}

/// What managers of services send to have files read again.
#[tokio::test]
async fn a_hangup_ends_nothing() {
    let patient = patient().await;
    let mut proxy =
        Mesh::default().service("shop", "http", &[patient.origin.address]).start().await;
    let mut wire = waiting_call(&proxy, &patient).await;
    proxy.signal(Signal::HUP);
    until("its word on it", async || proxy.errors().contains("SIGHUP").then_some(())).await;
    patient.go.send_replace(true);
    assert_eq!(wire.answer().await.status, 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn draining_has_an_end() {
    let patient = patient().await;
    let mut proxy = Mesh::default()
        .service("shop", "http", &[patient.origin.address])
        .arguments(&["--drain", "1"])
        .start()
        .await;
    let mut wire = waiting_call(&proxy, &patient).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(wire.try_answer().await.is_err());
    assert!(proxy.errors().contains("1 connections are cut off"), "{}", proxy.errors());
}

#[tokio::test]
async fn quitquitquit_ends_it_at_once() {
    let mut proxy = Mesh::default().start().await;
    let held = Wire::connect(proxy.outbound).await;
    let post = format!("POST /quitquitquit HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.admin);
    assert_eq!(client::ask(proxy.admin, post).await.status, 200);
    assert_eq!(proxy.ended().await.code(), Some(0));
    drop(held);
}

/// FAULTS 48, 18: running out of file descriptors is survived.
#[tokio::test]
async fn without_file_descriptors_it_waits_for_better_times() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    proxy.serves("shop").await;
    proxy.limit_descriptors(60);
    let mut held = Vec::new();
    for _ in 0..80 {
        held.push(Wire::connect(proxy.outbound).await);
    }
    let labels = [("listener", "outbound"), ("reason", "accept")];
    until("accepting to fail", async || proxy.errors().contains("accepting").then_some(())).await;
    held.truncate(10);
    until("a refusal to be counted", async || {
        let refused = proxy.metric("leno_downstream_connections_refused_total", &labels).await;
        (refused > Some(0.0)).then_some(())
    })
    .await;
    held.clear();
    until("service to go on", async || {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.try_send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        wire.try_answer().await.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}
