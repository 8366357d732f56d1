//! Who may do what at one port of our application: `AuthorizationPolicy`, decided. Pure.
//!
//! The order is Istio's: what a DENY policy matches is denied; without ALLOW policies the rest is allowed; else what
//! no ALLOW policy matches is denied. AUDIT changes nothing. Where a fact is missing or says several things, what
//! follows from it never allows more ([`rule`]).

mod paths;
mod rule;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::HeaderMap;
use leno_api::model::{
    authorization_policy::{Action, AuthorizationPolicy},
    identity::SpiffeId,
};

use self::rule::{Rule, Sense};
use crate::filter::jwt::Token;

/// Policies of one inbound port, by what they do.
#[derive(Debug, Default)]
pub struct Policies {
    deny: Box<[Policy]>,
    allow: Box<[Policy]>,
    audit: Box<[Policy]>,
    /// What a denial is put down to when no ALLOW policy matches.
    unmatched: Arc<str>,
}

#[derive(Debug)]
struct Policy {
    /// `shop/allow-orders`.
    name: Arc<str>,
    rules: Box<[Rule]>,
}

/// What is known of a request, or of a connection whose content is not ours to read.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whose certificate the connection came with; `None` on a plain one.
    pub peer: Option<Peer<'a>>,
    /// The other end of the connection. Never what a header says.
    pub source: IpAddr,
    /// Where the application listens.
    pub destination: SocketAddr,
    /// The TLS server name, if there was one.
    pub sni: Option<&'a str>,
    /// `None` for opaque TCP.
    pub http: Option<HttpFacts<'a>>,
    /// The verified token of the request.
    pub token: Option<&'a Token>,
}

/// An identity that a certificate has proven.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The identity.
    pub id: &'a SpiffeId,
    /// The same without `spiffe://`.
    pub principal: &'a str,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    /// As sent; methods are case-sensitive.
    pub method: &'a str,
    /// Lower case, without port, IPv6 without brackets: `http::head::Target`.
    pub host: &'a str,
    /// The port that was written after the host.
    pub port: Option<u16>,
    /// Normalised, without query.
    pub path: &'a str,
    /// All of them.
    pub headers: &'a HeaderMap,
}

/// What is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed {
        /// The first AUDIT policy that matches.
        audited: Option<Arc<str>>,
    },
    /// 403, or the connection is closed.
    Denied {
        /// `shop/deny-admin`; for the log and the metric, not for the caller.
        policy: Arc<str>,
        /// For the log.
        why: &'static str,
    },
}

impl Policies {
    /// Compiles the policies that are for one port of the workload ([`leno_api::model::applies::Applies::covers`] says
    /// which).
    pub fn compile(policies: impl IntoIterator<Item = Arc<AuthorizationPolicy>>) -> Self {
        let (mut deny, mut allow, mut audit) = (Vec::new(), Vec::new(), Vec::new());
        for policy in policies {
            let list = match policy.action {
                Action::Deny => &mut deny,
                Action::Allow => &mut allow,
                Action::Audit => &mut audit,
            };
            let name: Arc<str> = format!("{}/{}", policy.name.namespace, policy.name.name).into();
            list.push(Policy { name, rules: policy.rules.iter().map(Rule::compile).collect() });
        }
        let unmatched = match &allow[..] {
            [only] => only.name.clone(),
            several => format!("{} ALLOW policies", several.len()).into(),
        };
        Self { deny: deny.into(), allow: allow.into(), audit: audit.into(), unmatched }
    }

    /// Whether there are none: then everything is allowed and nobody needs to be asked.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.audit.is_empty()
    }

    /// Decides.
    pub fn decide(&self, facts: &Facts<'_>) -> Verdict {
        if let Some(policy) = first(&self.deny, facts, Sense::Refuse) {
            return Verdict::Denied { policy, why: "a DENY policy matches" };
        }
        if !self.allow.is_empty() && first(&self.allow, facts, Sense::Grant).is_none() {
            return Verdict::Denied {
                policy: self.unmatched.clone(),
                why: "no ALLOW policy matches",
            };
        }
        Verdict::Allowed { audited: first(&self.audit, facts, Sense::Grant) }
    }
}

fn first(policies: &[Policy], facts: &Facts<'_>, sense: Sense) -> Option<Arc<str>> {
    let matches = |policy: &&Policy| policy.rules.iter().any(|rule| rule.matches(facts, sense));
    policies.iter().find(matches).map(|policy| policy.name.clone())
}

#[cfg(test)]
mod tests;
