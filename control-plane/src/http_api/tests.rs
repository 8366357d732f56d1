//! The API over real sockets, by a client that knows nothing but HTTP.

mod access;
mod apply;
mod batch;
mod ca;
mod cache;
mod objects;
mod watching;

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    access::TokenFile,
    findings::Findings,
    store::{Key, MemoryStore},
    telemetry::Metrics,
    transport::{Incoming, tests::authority},
};

const SERVICES: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/services";
const WORKLOADS: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/workloads";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
const APPLY_MANY: &str = crate::http_api::batch::PATH;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const PATIENCE: Duration = Duration::from_secs(10);

/// A running API.
struct Server {
    address: SocketAddr,
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    directory: TempDir,
    api: Arc<Api>,
    stop: switch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

struct Answer {
    code: u16,
    head: String,
    body: Vec<u8>,
}

/// A request about to be sent. HTTP/1.0, so that the end of the connection ends the answer.
struct Call<'a> {
    server: &'a Server,
    method: &'a str,
    path: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Server {
    async fn start() -> Self {
        Self::with(Arc::new(MemoryStore::new()), false).await
    }

    async fn with(store: Arc<dyn Store>, require_token: bool) -> Self {
        // What others write would be in the way of tests that count revisions.
        Self::beside(store, Arc::new(MemoryStore::new()), require_token).await
    }

    /// With a store for the authority and the push, which may be the same.
    async fn beside(store: Arc<dyn Store>, theirs: Arc<dyn Store>, require_token: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Registry::new(store.clone());
        tokio::spawn(registry.clone().run());
        let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
        let authority = authority(directory.path(), theirs.clone(), tokens.clone()).await;
        let metrics = Arc::new(Metrics::new().unwrap());
        let findings = Findings::new(store.clone());
        let (push, task) = Push::new(theirs, findings.clone(), metrics.clone());
        tokio::spawn(task.run());
        let incoming = Incoming::new(listener, PORT, authority.clone(), metrics).unwrap();
        let access = Access::new(tokens, address, require_token);
        let hosts = vec!["leno.example".into()];
        let planes = Planes { authority, push, purges: Purges::new(), findings };
        let api = Api::new(store.clone(), registry.clone(), access, hosts, planes);
        let (stop, stopped) = switch::channel(false);
        let serving = tokio::spawn(serve(incoming, api.clone(), stopped));
        Self { address, store, registry, directory, api, stop, serving }
    }

    fn call<'a>(&'a self, method: &'a str, path: impl Into<String>) -> Call<'a> {
        let headers = vec!["Host: localhost".into(), "User-Agent: test/1".into()];
        Call { server: self, method, path: path.into(), headers, body: Vec::new() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send().await
    }

    async fn post(&self, path: &str, object: &Value) -> Answer {
        self.call("POST", path).with(JSON, object).send().await
    }

    async fn put(&self, path: &str, object: &Value) -> Answer {
        self.call("PUT", path).with(JSON, object).send().await
    }

    async fn patch(&self, path: &str, media_type: &str, patch: &Value) -> Answer {
        self.call("PATCH", path).with(media_type, patch).send().await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send().await
    }

    fn stored(&self, plural: &str, name: &str) -> Option<Value> {
        let key = Key::new("leno.dev", plural, "shop", name);
        self.store.get(&key).map(|stored| stored.json().unwrap())
    }
}

impl Call<'_> {
    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|header| !header.starts_with(&format!("{name}:")));
        self.headers.push(format!("{name}: {value}"));
        self
    }

    fn with(self, media_type: &str, body: &Value) -> Self {
        self.with_text(media_type, &body.to_string())
    }

    fn with_text(mut self, media_type: &str, body: &str) -> Self {
        self.body = body.as_bytes().to_vec();
        let length = body.len().to_string();
        self.header("Content-Type", media_type).header("Content-Length", &length)
    }

    async fn open(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.address).await.unwrap();
        let head = format!(
            "{} {} HTTP/1.0\r\n{}\r\n\r\n",
            self.method,
            self.path,
            self.headers.join("\r\n")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may answer, and close, before it has read all.
        let _ = stream.write_all(&self.body).await;
        stream
    }

    async fn send(self) -> Answer {
        let mut stream = self.open().await;
        let mut bytes = Vec::new();
        // A reset after the answer is fine: what was refused was not read to its end.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("no answer");
        Answer::read(bytes)
    }

    /// The lines of an answer that does not end.
    async fn lines(self) -> Lines {
        let mut lines = Lines(BufReader::new(self.open().await));
        assert!(lines.line().await.unwrap().contains(" 200 "), "the watch was refused");
        while !lines.line().await.unwrap().trim().is_empty() {}
        lines
    }
}

struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line));
        (read.await.expect("nothing came").unwrap() > 0).then_some(line)
    }

    /// Type, name and resourceVersion of the next event.
    async fn event(&mut self) -> Option<(String, String, String)> {
        let event: Value = serde_json::from_str(&self.line().await?).unwrap();
        let text = |pointer: &str| {
            event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Some((
            text("/type"),
            text("/object/metadata/name"),
            text("/object/metadata/resourceVersion"),
        ))
    }
}

impl Answer {
    fn read(bytes: Vec<u8>) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("no head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { code, head, body: bytes[end + 4..].to_vec() }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            panic!("not JSON: {} {}", self.head, String::from_utf8_lossy(&self.body))
        })
    }

    /// Checks a refusal: its code and reason, and that it is a `Status`. Answers with its message.
    #[track_caller]
    fn refused(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!((self.code, &status["reason"]), (code, &json!(reason)), "{status}");
        assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")));
        assert_eq!(status["code"], code);
        status["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn ok(&self) -> Value {
        assert!((200..300).contains(&self.code), "{} {}", self.head, self.json());
        self.json()
    }

    fn warnings(&self) -> Vec<&str> {
        self.head.lines().filter_map(|line| line.strip_prefix("warning: ")).collect()
    }
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}})
}

fn workload(name: &str) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001}}})
}

fn route(name: &str, backend: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]}})
}
