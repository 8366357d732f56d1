//! What the caches of proxies are to forget.
//!
//! `POST /cache/purge` with `{"service": "shop/products:80", "path": "/x?y", "timeout": "5s"}`, `prefix` or `tag` in the place of
//! `path`, or none of them for all that is kept of the service. Answers when every proxy concerned has done it, or when the time is
//! up: `{"proxies": 3, "confirmed": 2, "removed": 17, "waiting": ["shop/cart-1"]}`. Those that have not confirmed get the order all
//! the same, once they can be reached.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Json, body::Body, extract::State};
use http::HeaderMap;
use leno_api::{
    KINDS, Key, KindInfo,
    model::{Model, ObjectName, duration, service::Service},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Failure, body};
use crate::{
    access::{Action, Caller, Target},
    purge::{Outcome, Purge, What},
    store::{self, Stored},
    transport::conversation::told,
};

/// Purges being waited for at the same time.
pub(super) const MAX_PURGES: usize = 256;
/// How long proxies are waited for unless the request says so.
const WAIT: Duration = Duration::from_secs(5);
/// The longest wait: clients, ours included, take 30 s without an answer for a failure.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// An order is short.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Of a path or prefix: no proxy takes more of one. [`crate::purge::MAX_ORDERS`] of them are kept.
const MAX_PATH: usize = 4096;
/// Of a tag.
const MAX_TAG: usize = 1024;
/// Proxies that an answer names.
const MAX_NAMED: usize = 100;
/// Whoever may write these may purge: a policy can be switched off and on again.
const POLICIES: &str = "cachepolicies";

/// What is sent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Request {
    service: Option<String>,
    path: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
    timeout: Option<String>,
}

/// What is meant.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    service: ObjectName,
    port: Option<u16>,
    what: What,
    wait: Duration,
}

/// `POST /cache/purge`
pub(super) async fn purge(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Failure> {
    let request = body::resource(body, &headers, MAX_BODY_BYTES).await?;
    let request: Request = serde_json::from_value(request).map_err(|error| {
        Failure::bad_request(format!(
            "{error}; send {{\"service\": \"shop/products\", \"path\": \"/products/7\"}}, or `prefix` or `tag` in the place of `path`, or none of them"
        ))
    })?;
    let order = Order::read(request).map_err(Failure::bad_request)?;
    let namespace = Some(&*order.service.namespace);
    caller.may(Action::Write(Target { group: "leno.dev", plural: POLICIES, namespace }))?;
    let kind = api.check(&order)?;
    let _permit = api
        .purging
        .try_acquire()
        .map_err(|_| Failure::busy(format!("{MAX_PURGES} purges are waited for already")))?;
    let key = Key { kind, name: order.service.clone() };
    let scope = api.push.in_scope(key).await.map_err(|_| Failure::from(store::Error::Closed))?;
    let purge = Purge { service: order.service(), what: order.what };
    tracing::info!(service = purge.service, what = ?purge.what, %caller, "purge ordered");
    let ticket = api.purges.order(purge, &scope);
    let mut ending = api.ending.subscribe();
    let outcome = tokio::select! {
        outcome = ticket.confirmed(order.wait) => outcome,
        () = told(&mut ending) => ticket.confirmed(Duration::ZERO).await,
    };
    Ok(Json(answer(outcome)))
}

impl Order {
    fn read(request: Request) -> Result<Self, String> {
        let text = request
            .service
            .ok_or("service: is missing; write shop/products or shop/products:80")?;
        let (service, port) = service(&text).ok_or_else(|| {
            format!("service: {text:?} must be the namespace and name of a service, with or without a port: shop/products, shop/products:80")
        })?;
        let what = match (request.path, request.prefix, request.tag) {
            (None, None, None) => What::All,
            (Some(path), None, None) => What::Path(checked_path("path", path)?),
            (None, Some(prefix), None) => What::Prefix(checked_path("prefix", prefix)?),
            (None, None, Some(tag)) => What::Tag(checked_tag(tag)?),
            _ => return Err("path, prefix, tag: only one of them can be given".to_owned()),
        };
        let wait = request.timeout.map_or(Ok(WAIT), |text| duration::parse(&text));
        let wait = wait.map_err(|reason| format!("timeout: {reason}"))?;
        if wait > MAX_WAIT {
            return Err(format!("timeout: must be 0s to {}", duration::format(MAX_WAIT)));
        }
        Ok(Self { service, port, what, wait })
    }

    /// As it is sent to proxies.
    fn service(&self) -> String {
        self.port
            .map_or_else(|| self.service.to_string(), |port| format!("{}:{port}", self.service))
    }
}

impl Api {
    /// Whether there is such a service, with such a port.
    fn check(&self, order: &Order) -> Result<&'static KindInfo, Failure> {
        let name = &order.service;
        let kind = KINDS.iter().find(|info| info.kind == "Service");
        let kind = kind.ok_or_else(|| Failure::internal("there is no kind Service"))?;
        let key = store::Key::new(kind.group, kind.plural, &name.namespace, &name.name);
        let stored =
            self.store.get(&key).ok_or_else(|| Failure::not_found(kind, &name.to_string()))?;
        match order.port {
            Some(port) if !read(&stored).is_some_and(|service| has(&service, port)) => {
                Err(Failure::not_found(kind, &order.service()))
            }
            _ => Ok(kind),
        }
    }
}

fn read(stored: &Stored) -> Option<Arc<Service>> {
    match leno_api::Resource::from_json(stored.json().ok()?).ok()?.model {
        Model::Service(service) => Some(service),
        _ => None,
    }
}

fn has(service: &Service, port: u16) -> bool {
    service.ports.iter().any(|one| one.port == port)
}

fn service(text: &str) -> Option<(ObjectName, Option<u16>)> {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (text, None),
    };
    Some((ObjectName::parse(name)?, port))
}

fn checked_path(field: &str, path: String) -> Result<String, String> {
    let good = |c: char| c.is_ascii_graphic() && c != '#';
    if !path.starts_with('/') || path.len() > MAX_PATH || !path.chars().all(good) {
        return Err(format!(
            "{field}: {path:?} must begin with `/` and be at most {MAX_PATH} visible ASCII characters without `#`, as requests have it: %-escaped, with its query"
        ));
    }
    Ok(path)
}

fn checked_tag(tag: String) -> Result<String, String> {
    if tag.is_empty() || tag.len() > MAX_TAG || !tag.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!(
            "tag: {tag:?} must be 1 to {MAX_TAG} visible ASCII characters, without spaces"
        ));
    }
    Ok(tag)
}

fn answer(outcome: Outcome) -> Value {
    let Outcome { proxies, confirmed, removed, mut waiting } = outcome;
    waiting.truncate(MAX_NAMED);
    json!({"proxies": proxies, "confirmed": confirmed, "removed": removed, "waiting": waiting})
}
