//! What a bad plugin costs: its own request, by its failure policy, and nothing else.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use super::*;

/// Calls that never stop, to a service behind no plugin, while something bad happens elsewhere.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn on(running: &Running) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..4).map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            let address = running.proxy.outbound;
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                while !stop.load(Relaxed) {
                    let answer = wire.ask("GET /load HTTP/1.1\r\nHost: plain\r\n\r\n").await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Relaxed);
                }
            })
        });
        let load = Self { callers: callers.collect(), stop, served };
        load.moves().await;
        load
    }

    /// Waits until every caller can have been served again.
    async fn moves(&self) {
        let before = self.served.load(Relaxed);
        until("others to be served", async || {
            (self.served.load(Relaxed) > before + 8).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.moves().await;
        self.stop.store(true, Relaxed);
        for caller in self.callers {
            caller.await.expect("no exchange without the plugin sees an error");
        }
    }
}

const KINDS: [&str; 6] = ["unreachable", "oob", "stack", "loop", "membomb", "exit"];

/// A plugin for each kind of fault, since each pauses longer with every one.
async fn one_for_each(more: &str) -> Running {
    let orders = Origin::echo("orders").await;
    let running = Running::of("", |mut mesh| {
        for kind in KINDS {
            let more = format!("limits: {{memory: 16Mi, deadline: 50ms}}\n{more}");
            mesh = mesh.service(kind, "http", &[orders.address]).yaml(&plugin(kind, kind, &more));
        }
        mesh
    })
    .await;
    for kind in KINDS {
        back(&running, kind).await;
    }
    Running { orders, ..running }
}

/// Until the pause is over the failure policy holds; then the plugin runs again.
async fn back(running: &Running, service: &str) {
    until("the plugin to come back", async || {
        let fields = "x-req-headers: add-req=x-ran:1\r\n";
        let answer = client::get_with(running.proxy.outbound, service, "/", fields).await;
        assert!(matches!(answer.status, 200 | 500), "{}", answer.text());
        (answer.status == 200 && answer.text().contains("x-ran")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_fault_costs_its_own_request_only() {
    let running = one_for_each("").await;
    let load = Load::on(&running).await;
    for kind in KINDS {
        for phase in ["req-headers", "resp-headers"] {
            let fields = format!("x-fault: {kind}\r\nx-fault-phase: {phase}\r\n");
            let answer = client::get_with(running.proxy.outbound, kind, "/", &fields).await;
            assert_eq!(answer.status, 500, "{kind} {phase}: {}", answer.text());
            assert!(answer.text().contains("(WF)"), "{}", answer.text());
            load.moves().await;
            back(&running, kind).await;
        }
    }
    load.end().await;
    let log = running.proxy.access_log_text(1).await;
    assert!(log.contains("plugin default/loop failed") && log.contains("\"WF\""), "{log}");
}

#[tokio::test]
async fn bodies_and_ends_break_no_more_than_their_own_exchange() {
    let running = Running::with("").await;
    let load = Load::on(&running).await;
    let back = async || back(&running, "orders").await;
    let fields = "x-fault: unreachable\r\nx-fault-phase: req-body\r\n";
    assert_eq!(running.post(fields, "hello").await.status, 500);
    back().await;
    // What came with its head can still be answered in its place; once the head is out, a response can only be cut.
    let mut wire = running.wire().await;
    wire.send(
        "GET / HTTP/1.1\r\nHost: orders\r\nx-fault: loop\r\nx-fault-phase: resp-body\r\n\r\n",
    )
    .await;
    if let Ok(answer) = wire.try_answer().await {
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("(WF)"), "{}", answer.text());
    }
    back().await;
    for phase in ["log", "done"] {
        let fields = format!("x-fault: unreachable\r\nx-fault-phase: {phase}\r\n");
        assert_eq!(running.get("/", &fields).await.status, 200, "{phase}");
        back().await;
    }
    load.end().await;
}

#[tokio::test]
async fn failing_open_an_exchange_goes_on_without_the_plugin() {
    let running = one_for_each("failurePolicy: Open\n").await;
    let load = Load::on(&running).await;
    for kind in KINDS {
        for phase in ["req-headers", "resp-headers"] {
            let fields = format!("x-fault: {kind}\r\nx-fault-phase: {phase}\r\nx-kept: 1\r\n");
            let answer = client::get_with(running.proxy.outbound, kind, "/open", &fields).await;
            assert_eq!(answer.status, 200, "{kind} {phase}: {}", answer.text());
            assert_eq!(answer.echo()["headers"]["x-kept"][0], "1");
            assert_eq!(answer.echo()["path"], "/open");
            assert_eq!(answer.header("x-origin"), Some("orders"));
            back(&running, kind).await;
        }
    }
    for phase in ["req-body", "resp-body"] {
        let fields = format!("x-fault: unreachable\r\nx-fault-phase: {phase}\r\n");
        let request = post(&fields, "hello").replace("Host: orders", "Host: exit");
        let answer = client::ask(running.proxy.outbound, request).await;
        assert_eq!((answer.status, &answer.echo()["body"]), (200, &"hello".into()), "{phase}");
        back(&running, "exit").await;
    }
    load.end().await;
}

#[tokio::test]
async fn a_request_that_a_broken_plugin_held_ends() {
    let running = Running::with("").await;
    let load = Load::on(&running).await;
    let mut held = running.wire().await;
    held.send("GET / HTTP/1.1\r\nHost: orders\r\nx-req-headers: 1\r\nx-held: yes\r\n\r\n").await;
    let mut body = running.wire().await;
    body.send("GET / HTTP/1.1\r\nHost: orders\r\nx-resp-body: bufstat=1,1\r\n\r\n").await;
    running.logged("resp-body op bufstat=1").await;
    let fields = "x-fault: unreachable\r\nx-fault-phase: req-headers\r\n";
    assert_eq!(running.get("/", fields).await.status, 500);
    assert_eq!(held.answer().await.status, 500);
    assert!(body.try_answer().await.is_err());
    load.end().await;
}

#[tokio::test]
async fn an_answer_after_the_end_does_nothing() {
    let running = Running::with("").await;
    for phase in ["log", "done"] {
        assert_eq!(running.get("/", &format!("x-{phase}: local=500\r\n")).await.status, 200);
    }
    running.logged("log op local=500 => 0").await;
    for _ in 0..10 {
        running.proxy.serves("orders").await;
    }
}

#[tokio::test]
async fn wild_pointers_are_answered() {
    let running = Running::with("").await;
    assert_eq!(running.get("/", "x-req-headers: badmem\r\n").await.status, 200);
    running.logged("badmem log ptr => 6").await;
    running.proxy.serves("orders").await;
}

#[tokio::test]
async fn a_timer_that_breaks_hurts_nobody_who_comes_later() {
    let running = Running::with("pluginConfig: tick=300,tickfault\nfailurePolicy: Open\n").await;
    let load = Load::on(&running).await;
    running.logged("broke: proxy_on_tick").await;
    for _ in 0..20 {
        assert_eq!(running.get("/", "").await.status, 200);
    }
    load.end().await;
}
