//! Plugins that see connections instead of requests, and plugins of our own application.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::mtls::{authorization, side};

/// Answers `got:` and what it got.
async fn answering() -> Origin {
    Origin::raw(|mut stream, _| async move {
        let mut bytes = vec![0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            let answer = [b"got:", &bytes[..count]].concat();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn tunnel(proxy: &Proxy) -> Option<Wire> {
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("CONNECT store:80 HTTP/1.1\r\nHost: store:80\r\n\r\n").await;
    let head = wire.head().await?;
    (head.status == 200).then_some(wire)
}

#[tokio::test]
async fn bytes_of_a_connection_pass_a_plugin() {
    let store = answering().await;
    let mesh = Mesh::default().service("store", "tcp", &[store.address]).yaml(&plugin(
        "probe",
        "store",
        "type: NETWORK\n",
    ));
    let proxy = cached(mesh).start().await;
    let mut wire = until("the plugin to be loaded", async || tunnel(&proxy).await).await;
    for (sent, received) in [
        ("hello", "got:hello"),
        ("PREPEND", "got:pre-PREPEND"),
        ("APPEND", "got:APPEND-app"),
        ("REPLACE this", "got:replaced"),
    ] {
        wire.send(sent).await;
        let answer = wire.exactly(received.len()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), received);
    }
    wire.send("HOLD ").await;
    until("it to be held", async || proxy.errors().contains("\"HOLD \"").then_some(())).await;
    wire.send("GO\n").await;
    assert_eq!(wire.exactly(12).await.unwrap(), b"got:HOLD GO\n");
    wire.finish().await;
    assert!(wire.rest().await.is_empty());
    for line in
        ["on_new_connection(", "on_upstream_data(", "on_downstream_connection_close(", "on_delete("]
    {
        until(line, async || proxy.errors().contains(line).then_some(())).await;
    }
    // A plugin ends what it does not like.
    let mut wire = tunnel(&proxy).await.unwrap();
    wire.send("CLOSE").await;
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn plugins_of_the_callee_run_before_and_after_it_decides_who_may() {
    let shop = Origin::echo("shop").await;
    let server = |name: &str, phase: &str| {
        plugin(name, "shop", &format!("phase: {phase}\npluginConfig: {name}\n"))
            .replace("mode: CLIENT", "mode: SERVER")
    };
    let deny = authorization(
        "only-tagged",
        "{action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]}",
    );
    let documents = [deny, server("early", "AUTHN"), server("late", "STATS")];
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let mesh = side(&[("shop", "http", &shop)], &documents, None);
    let callee = cached(mesh.arguments(&["--name", "callee"])).start().await;
    let get = async |path: &str, fields: &str| {
        client::get_with(callee.inbound, "shop", path, fields).await
    };
    until("the plugins to be loaded", async || (get("/", "").await.status == 200).then_some(()))
        .await;
    assert_eq!(get("/denied", "").await.status, 403);
    // The early one decides what is decided about.
    let answer = get("/denied", "x-req-headers: rep-req=:path|/open\r\n").await;
    assert_eq!((answer.status, &answer.echo()["path"]), (200, &"/open".into()));
    // A spelling of what is denied is denied.
    let answer = get("/open", "x-req-headers: rep-req=:path|/x/../denied\r\n").await;
    assert_eq!(answer.status, 403);
    // Who has called is said by the proxy alone, whatever the spelling.
    let forged = "x-req-headers: add-req=x-forwarded-client-cert:URI=spiffe,add-req=x_forwarded_client_cert:URI=spiffe\r\n";
    let answer = get("/open", forged).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let names: Vec<_> = answer.echo()["headers"].as_object().unwrap().keys().cloned().collect();
    assert!(!names.iter().any(|name| name.contains("client")), "{names:?}");
}
