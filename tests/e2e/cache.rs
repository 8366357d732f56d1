//! Answers from the sidecar's own memory: what comes from there, what never may, and who tries to make it so.
//!
//! [`upstream`] is the origin, whose bodies say which request of it brought them. How old a response is says its `Age`:
//! nothing here waits for something to grow stale.

mod bad_responses;
mod enemies;
mod herds;
mod identities;
mod memory;
mod plugins;
mod poison;
mod policies;
mod purges;
mod rfc;
mod upstream;

use crate::{
    client::{self, Answer},
    mesh::{Mesh, Proxy},
};

use self::upstream::Upstream;

/// A `CachePolicy` for the service `shop` with these fields.
fn policy(fields: &str) -> String {
    policy_for("shop", "{kind: Service, name: shop}", fields)
}

/// The same for any target.
fn policy_for(name: &str, target: &str, fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: CachePolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  targetRefs: [{target}]\n{fields}"
    )
}

/// The service `shop` under a policy with these fields.
fn mesh(upstream: &Upstream, fields: &str) -> Mesh {
    Mesh::default().service("shop", "http", &[upstream.address()]).yaml(&policy(fields))
}

/// The same, running.
async fn proxy(upstream: &Upstream, fields: &str) -> Proxy {
    mesh(upstream, fields).start().await
}

async fn get(proxy: &Proxy, path: &str) -> Answer {
    client::get(proxy.outbound, "shop", path).await
}

/// With more fields, each ended by CRLF.
async fn get_with(proxy: &Proxy, path: &str, fields: &str) -> Answer {
    client::get_with(proxy.outbound, "shop", path, fields).await
}

/// A request of any method without a body.
async fn send(proxy: &Proxy, method: &str, path: &str) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    client::ask(proxy.outbound, request).await
}

/// What the sidecar says of an answer.
fn told(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("nothing")
}

fn is_hit(answer: &Answer) -> bool {
    told(answer).starts_with("leno; hit")
}

/// Asserts that this comes from memory, and is what this request of the origin brought.
fn assert_hit(answer: &Answer, body: &str) {
    assert!(is_hit(answer), "{}: {}", told(answer), answer.text());
    assert_eq!((answer.status, answer.text().as_str()), (200, body), "{}", told(answer));
}

/// Asserts that this comes from the origin.
fn assert_miss(answer: &Answer, body: &str) {
    assert!(told(answer).starts_with("leno; fwd="), "{}: {}", told(answer), answer.text());
    assert_eq!((answer.status, answer.text().as_str()), (200, body), "{}", told(answer));
}
