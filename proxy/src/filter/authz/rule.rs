//! One rule, compared with the facts. What a fact leaves open is read against the caller, which means
//! opposite things for rules that allow and rules that deny ([`Sense`]):
//!
//! - Of TCP nothing is known that is about HTTP. A rule that asks for it allows nothing; a rule that denies leaves it
//!   out of account and matches by the rest. So says Istio.
//! - A connection without a certificate has no principal and no namespace, a request without a token no request
//!   principal and no claims: positive patterns never match what is missing, negative ones always hold, in both
//!   senses. So it is in Istio, too, and why `notPrincipals` belongs into DENY policies.
//! - A header that occurs several times may be read by the application as any of its values, or as all of them
//!   joined by commas. A condition on it allows only if it holds for every reading, and denies if it holds for one
//!   (CVE-2026-26308). A value that is not UTF-8 allows nothing.
//! - A path may be read by the application as it is, decoded, with slashes joined, or without path parameters
//!   (`paths.rs`). A condition on it allows only if it holds for every reading, and denies if it holds for one.
//! - A host means the same with and without the port after it: `shop.example` in a policy is also
//!   `shop.example:8080`. The port is the caller's to write, so a policy must not depend on it unless it names it.

use std::borrow::Cow;

use http::HeaderMap;
use leno_api::model::authorization_policy::{
    self as model, Condition, ConditionKey, Operation, Patterns, Source,
};
use serde_json::Value;

use super::{Facts, HttpFacts, paths};
use crate::filter::jwt::Token;

/// Claims whose one string holds several values between blanks (RFC 8693 section 4.2; Istio has both).
const SPACED_CLAIMS: &[&str] = &["scope", "permission"];

/// What a match leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// More is allowed, or merely reported.
    Grant,
    /// Something is denied.
    Refuse,
}

/// A rule with what can be known before any request.
#[derive(Debug)]
pub struct Rule {
    rule: model::Rule,
    /// Whether anything in it is about HTTP.
    asks_http: bool,
}

impl Rule {
    /// Looks at the rule once.
    pub fn compile(rule: &model::Rule) -> Self {
        let of_source = |source: &Source| !source.request_principals.is_empty();
        let of_operation = |operation: &Operation| {
            let Operation { hosts, methods, paths, ports: _ } = operation;
            [hosts, methods, paths].iter().any(|patterns| !patterns.is_empty())
        };
        let asks_http = rule.from.iter().any(of_source)
            || rule.to.iter().any(of_operation)
            || rule.when.iter().any(|condition| is_about_http(&condition.key));
        Self { rule: rule.clone(), asks_http }
    }

    /// Whether it is about what is going on.
    pub fn matches(&self, facts: &Facts<'_>, sense: Sense) -> bool {
        if self.asks_http && facts.http.is_none() && sense == Sense::Grant {
            return false;
        }
        let model::Rule { from, to, when } = &self.rule;
        (from.is_empty() || from.iter().any(|source| is_from(source, facts)))
            && (to.is_empty() || to.iter().any(|operation| is_to(operation, facts, sense)))
            && when.iter().all(|condition| is_when(condition, facts, sense))
    }
}

fn is_about_http(key: &ConditionKey) -> bool {
    match key {
        ConditionKey::Header(_)
        | ConditionKey::RequestPrincipal
        | ConditionKey::RequestAudiences
        | ConditionKey::RequestPresenter
        | ConditionKey::Claim(_) => true,
        ConditionKey::SourceIp
        | ConditionKey::SourceNamespace
        | ConditionKey::SourcePrincipal
        | ConditionKey::DestinationIp
        | ConditionKey::DestinationPort
        | ConditionKey::Sni => false,
    }
}

fn is_from(source: &Source, facts: &Facts<'_>) -> bool {
    source.principals.matches(principal(facts))
        && source.namespaces.matches(namespace(facts))
        && source.ip_blocks.matches(facts.source)
        && (facts.http.is_none() || source.request_principals.matches(request_principal(facts)))
}

fn is_to(operation: &Operation, facts: &Facts<'_>, sense: Sense) -> bool {
    is_port(&operation.ports, facts.destination.port())
        && facts.http.as_ref().is_none_or(|http| {
            operation.methods.matches(Some(http.method))
                && is_path(&operation.paths, http.path, sense)
                && is_host(&operation.hosts, http)
        })
}

fn is_when(condition: &Condition, facts: &Facts<'_>, sense: Sense) -> bool {
    let values = &condition.values;
    let token = facts.token;
    match &condition.key {
        // Only rules that deny come here with it.
        key if facts.http.is_none() && is_about_http(key) => true,
        ConditionKey::Header(name) => {
            facts.http.is_some_and(|http| is_header(values, http.headers, name, sense))
        }
        ConditionKey::SourceIp => condition.blocks.matches(facts.source),
        ConditionKey::DestinationIp => condition.blocks.matches(facts.destination.ip()),
        ConditionKey::SourceNamespace => values.matches(namespace(facts)),
        ConditionKey::SourcePrincipal => values.matches(principal(facts)),
        ConditionKey::RequestPrincipal => values.matches(request_principal(facts)),
        ConditionKey::RequestPresenter => values.matches(token.and_then(Token::presenter)),
        ConditionKey::RequestAudiences => {
            let audiences = token.map_or(&[][..], Token::audiences);
            values.matches_values(audiences.iter().map(String::as_str))
        }
        ConditionKey::Claim(path) => {
            let claim = token.and_then(|token| token.claim(path));
            let texts = claim.map(|claim| claim_texts(claim, path)).unwrap_or_default();
            values.matches_values(texts.iter().map(|text| &**text))
        }
        ConditionKey::DestinationPort => is_port(values, facts.destination.port()),
        ConditionKey::Sni => values.matches(facts.sni.map(lower_case).as_deref()),
    }
}

fn principal<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    facts.peer.map(|peer| peer.principal)
}

fn namespace<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    facts.peer.map(|peer| &*peer.id.namespace)
}

fn request_principal<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    facts.token.and_then(Token::principal)
}

fn is_port(ports: &Patterns, port: u16) -> bool {
    ports.is_empty() || ports.matches(Some(&port.to_string()))
}

fn is_path(patterns: &Patterns, path: &str, sense: Sense) -> bool {
    if patterns.is_empty() {
        return true;
    }
    let matches = |reading: &str| patterns.matches(Some(reading));
    match sense {
        Sense::Grant => matches(path) && paths::others(path).iter().all(|other| matches(other)),
        Sense::Refuse => matches(path) || paths::others(path).iter().any(|other| matches(other)),
    }
}

fn is_host(hosts: &Patterns, http: &HttpFacts<'_>) -> bool {
    if hosts.is_empty() {
        return true;
    }
    let bracketed = if http.host.contains(':') {
        Cow::Owned(format!("[{}]", http.host))
    } else {
        Cow::Borrowed(http.host)
    };
    match http.port {
        None => hosts.matches(Some(&bracketed)),
        Some(port) => {
            let with_port = format!("{bracketed}:{port}");
            hosts.matches_values([&*bracketed, &*with_port])
        }
    }
}

fn is_header(patterns: &Patterns, headers: &HeaderMap, name: &str, sense: Sense) -> bool {
    let values = headers.get_all(name).iter();
    let mut readings: Vec<Cow<'_, str>> =
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    if readings.is_empty() {
        return patterns.matches(None);
    }
    if readings.len() > 1 {
        let joined = readings.join(",");
        readings.push(joined.into());
    }
    let holds = |reading: &Cow<'_, str>| patterns.matches(Some(reading));
    let is_text = |reading: &Cow<'_, str>| !reading.contains(char::REPLACEMENT_CHARACTER);
    match sense {
        Sense::Grant => readings.iter().all(|reading| is_text(reading) && holds(reading)),
        Sense::Refuse => readings.iter().any(holds),
    }
}

/// A claim as texts: a string, number or boolean, or a list of these. Objects are not compared.
fn claim_texts<'a>(claim: &'a Value, path: &[String]) -> Vec<Cow<'a, str>> {
    match claim {
        Value::Array(list) => list.iter().filter_map(scalar).collect(),
        Value::String(text) if matches!(path, [name] if SPACED_CLAIMS.contains(&name.as_str())) => {
            let parts = text.split(' ').filter(|part| *part != text && !part.is_empty());
            std::iter::once(text.as_str()).chain(parts).map(Cow::Borrowed).collect()
        }
        other => scalar(other).into_iter().collect(),
    }
}

fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
        _ => None,
    }
}

fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}
