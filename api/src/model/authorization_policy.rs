//! `AuthorizationPolicy`.

use serde_json::Value;

pub use crate::model::{
    ip_block::{Blocks, IpBlock},
    pattern::{Pattern, Patterns},
};
use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        applies::{Applies, parse_applies},
        http_route::check_count,
        ip_block::parse_blocks,
        name::{check_label, check_subdomain},
        pattern::{Of, check_list, each_value, parse_patterns},
    },
    resource::read,
    spec::authorization_policy as raw,
};

mod condition;

pub use condition::{Condition, ConditionKey};

/// Every rule is compared with every request.
const MAX_RULES: usize = 64;

/// What happens to requests that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They pass; what no such policy matches is denied.
    Allow,
    /// They are denied, whatever else allows them.
    Deny,
    /// They are logged.
    Audit,
}

/// Who may do what at some workloads.
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown.
    pub created: String,
    /// For which workloads.
    pub applies: Applies,
    /// What happens to requests that match.
    pub action: Action,
    /// Any is enough; without rules nothing matches.
    pub rules: Vec<Rule>,
}

/// One of `from`, one of `to`, and all of `when` must match; an empty list asks nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Callers.
    pub from: Vec<Source>,
    /// Requests.
    pub to: Vec<Operation>,
    /// The rest.
    pub when: Vec<Condition>,
}

/// A caller, of whom all fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Without `spiffe://`: `cluster.local/ns/shop/sa/orders`.
    pub principals: Patterns,
    /// `<issuer>/<subject>`.
    pub request_principals: Patterns,
    /// Of the caller's identity.
    pub namespaces: Patterns,
    /// Of the caller's connection.
    pub ip_blocks: Blocks,
}

/// A kind of request, of which all fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Lower case.
    pub hosts: Patterns,
    /// Decimal numbers, of the application's port.
    pub ports: Patterns,
    /// Case matters.
    pub methods: Patterns,
    /// Of the normalised path without query.
    pub paths: Patterns,
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::AuthorizationPolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let applies = parse_applies(&at, raw.selector, raw.target_refs, &name, problems);
    let rules_at = at.field("rules");
    check_count(&rules_at, raw.rules.len(), 0, MAX_RULES, problems);
    let mut rules = Vec::new();
    for (i, rule) in raw.rules.into_iter().enumerate().take(MAX_RULES) {
        rules.push(parse_rule(&rules_at.index(i), rule, &name.namespace, problems));
    }
    let action = match raw.action {
        raw::Action::Allow => Action::Allow,
        raw::Action::Deny => Action::Deny,
        raw::Action::Audit => Action::Audit,
    };
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::AuthorizationPolicy(
        AuthorizationPolicy { name, created, applies, action, rules }.into(),
    ))
}

fn parse_rule(at: &Path<'_>, raw: raw::Rule, namespace: &str, problems: &mut Problems) -> Rule {
    Rule {
        from: each_entry(&at.field("from"), raw.from, problems, |here, from, problems| {
            parse_source(&here.field("source"), from.source, namespace, problems)
        }),
        to: each_entry(&at.field("to"), raw.to, problems, |here, to, problems| {
            parse_operation(&here.field("operation"), to.operation, problems)
        }),
        when: each_entry(&at.field("when"), raw.when, problems, condition::parse_condition),
    }
}

/// Reads each entry of a list, which must not be empty when it is there: `from: []` looks like nobody and would mean
/// everybody.
fn each_entry<Raw, T>(
    at: &Path<'_>,
    raw: Option<Vec<Raw>>,
    problems: &mut Problems,
    parse: impl Fn(&Path<'_>, Raw, &mut Problems) -> Option<T>,
) -> Vec<T> {
    let Some(raw) = raw else { return Vec::new() };
    check_list(at, raw.len(), problems);
    let entries = raw.into_iter().enumerate();
    entries.filter_map(|(i, raw)| parse(&at.index(i), raw, problems)).collect()
}

fn parse_source(
    at: &Path<'_>,
    raw: raw::Source,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Source> {
    let accounts = raw.service_accounts.is_some() || raw.not_service_accounts.is_some();
    let others = [&raw.principals, &raw.not_principals, &raw.namespaces, &raw.not_namespaces];
    if accounts && others.iter().any(|field| field.is_some()) {
        problems.add(
            at.field("serviceAccounts"),
            "and principals or namespaces exclude each other; write principals for all of them",
        );
    }
    let mut source = Source {
        principals: parse_patterns(
            at,
            ["principals", "notPrincipals"],
            Of::Principals,
            [raw.principals, raw.not_principals],
            problems,
        ),
        request_principals: parse_patterns(
            at,
            ["requestPrincipals", "notRequestPrincipals"],
            Of::Names,
            [raw.request_principals, raw.not_request_principals],
            problems,
        ),
        namespaces: parse_patterns(
            at,
            ["namespaces", "notNamespaces"],
            Of::Names,
            [raw.namespaces, raw.not_namespaces],
            problems,
        ),
        ip_blocks: parse_blocks(
            at,
            ["ipBlocks", "notIpBlocks"],
            [raw.ip_blocks, raw.not_ip_blocks],
            problems,
        ),
    };
    let mut accounts_of = |field: &str, raw: Option<Vec<String>>| {
        each_value(&at.field(field), raw, problems, |text| service_account(text, namespace))
    };
    source.principals.any_of.extend(accounts_of("serviceAccounts", raw.service_accounts));
    source.principals.none_of.extend(accounts_of("notServiceAccounts", raw.not_service_accounts));
    if source == Source::default() {
        problems.add(at, "asks nothing; leave `from` out to mean everybody");
        return None;
    }
    Some(source)
}

/// A service account of any trust domain; no trust domain has a `/`, so the suffix is exact.
fn service_account(text: &str, namespace: &str) -> Result<Pattern, String> {
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    check_label(namespace).and_then(|()| check_subdomain(account)).map_err(|_| {
        format!(
            "`{}` is not a service account; write `orders` or `shop/orders`",
            text.escape_debug()
        )
    })?;
    Ok(Pattern::Suffix(format!("/ns/{namespace}/sa/{account}")))
}

fn parse_operation(
    at: &Path<'_>,
    raw: raw::Operation,
    problems: &mut Problems,
) -> Option<Operation> {
    let mut patterns =
        |fields: [&str; 2], of, lists| parse_patterns(at, fields, of, lists, problems);
    let operation = Operation {
        hosts: patterns(["hosts", "notHosts"], Of::Hosts, [raw.hosts, raw.not_hosts]),
        ports: patterns(["ports", "notPorts"], Of::Ports, [raw.ports, raw.not_ports]),
        methods: patterns(["methods", "notMethods"], Of::Methods, [raw.methods, raw.not_methods]),
        paths: patterns(["paths", "notPaths"], Of::Paths, [raw.paths, raw.not_paths]),
    };
    if operation == Operation::default() {
        problems.add(at, "asks nothing; leave `to` out to mean every request");
        return None;
    }
    Some(operation)
}

#[cfg(test)]
mod tests;
