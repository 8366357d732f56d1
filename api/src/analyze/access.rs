//! Policies about access that have no effect, or never match, beside the other resources.

use super::{Finding, NO_EFFECT, Services, services_of};
use crate::{
    Path, Resource,
    model::{
        Model,
        applies::Applies,
        authorization_policy::{Action, AuthorizationPolicy, ConditionKey, Rule, Source},
        peer_authentication::{PeerAuthentication, TlsMode, mode_of},
        request_authentication::RequestAuthentication,
        workload::Workload,
    },
};

/// What decides whether callers can be known.
struct Known<'a> {
    workloads: Vec<&'a Workload>,
    peers: Vec<&'a PeerAuthentication>,
    requests: Vec<&'a RequestAuthentication>,
    services: Services<'a>,
}

/// Policies that say nothing at all.
pub(super) fn find_empty(resources: &[Resource], found: &mut Vec<Finding>) {
    for resource in resources {
        let (path, message) = match &resource.model {
            Model::AuthorizationPolicy(policy)
                if policy.rules.is_empty() && policy.action != Action::Allow =>
            {
                ("spec.rules", "is empty, so the policy has no effect; `[{}]` is every request")
            }
            Model::RequestAuthentication(policy) if policy.rules.is_empty() => {
                ("spec.jwtRules", "is empty, so the policy has no effect: no token is looked at")
            }
            Model::PeerAuthentication(policy)
                if policy.mode.is_none() && policy.ports.is_empty() =>
            {
                (
                    "spec.mtls",
                    "says no mode, so the policy has no effect; write `{mode: STRICT}`, say",
                )
            }
            _ => continue,
        };
        let path = path.to_owned();
        found.push(Finding { key: resource.key(), path, message: message.to_owned() });
    }
}

/// Selectors that no workload has the labels for. Where no workload of the namespace is known, they register later.
pub(super) fn find_unselected(resources: &[Resource], found: &mut Vec<Finding>) {
    let workloads = resources.iter().filter_map(|resource| match &resource.model {
        Model::Workload(workload) => Some(workload),
        _ => None,
    });
    let workloads: Vec<_> = workloads.collect();
    for resource in resources {
        let applies = match &resource.model {
            Model::PeerAuthentication(policy) => &policy.applies,
            Model::AuthorizationPolicy(policy) => &policy.applies,
            Model::RequestAuthentication(policy) => &policy.applies,
            Model::WasmPlugin(plugin) => &plugin.applies,
            _ => continue,
        };
        if !matches!(applies, Applies::Labels(_)) {
            continue;
        }
        let namespace = resource.name().namespace;
        let none = Services::new();
        let mut near = workloads
            .iter()
            .filter(|workload| Applies::Namespace.covers(&namespace, workload, None, &none))
            .peekable();
        let some = near.peek().is_some();
        if some && !near.any(|workload| applies.covers(&namespace, workload, None, &none)) {
            let path = "spec.selector.matchLabels".to_owned();
            let message = format!("no Workload has all of these labels; {NO_EFFECT}");
            found.push(Finding { key: resource.key(), path, message });
        }
    }
}

/// Rules that never match. Of a part of a configuration that cannot be said.
pub(super) fn find_unmatched(resources: &[Resource], found: &mut Vec<Finding>) {
    let known = Known::of(resources, services_of(resources));
    let spec = Path::root("spec");
    let rules_at = spec.field("rules");
    for resource in resources {
        let Model::AuthorizationPolicy(policy) = &resource.model else { continue };
        for (i, rule) in policy.rules.iter().enumerate() {
            if let Some(message) = known.why_never(policy, rule) {
                let path = rules_at.index(i).to_string();
                found.push(Finding { key: resource.key(), path, message });
            }
        }
    }
}

/// Rules of `resource` that never match where no RequestAuthentication is in its namespace or in that of the mesh: who
/// asks knows that there is none.
pub fn without_tokens(resource: &Resource) -> Vec<Finding> {
    let Model::AuthorizationPolicy(policy) = &resource.model else { return Vec::new() };
    let rules = policy.rules.iter().enumerate().filter(|(_, rule)| needs_token(rule));
    let finding = |(i, _)| {
        Finding {
        key: resource.key(),
        path: format!("spec.rules[{i}]"),
        message: "asks for a token, but no RequestAuthentication is in its namespace or the mesh's, so it never matches".to_owned(),
    }
    };
    rules.map(finding).collect()
}

impl<'a> Known<'a> {
    fn of(resources: &'a [Resource], services: Services<'a>) -> Self {
        let (workloads, peers, requests) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = Self { workloads, peers, requests, services };
        for resource in resources {
            match &resource.model {
                Model::Workload(workload) => known.workloads.push(workload),
                Model::PeerAuthentication(policy) => known.peers.push(policy),
                Model::RequestAuthentication(policy) => known.requests.push(policy),
                _ => {}
            }
        }
        known
    }

    /// Why `rule` never matches at one of the policy's workloads.
    fn why_never(&self, policy: &AuthorizationPolicy, rule: &Rule) -> Option<String> {
        let namespace = &policy.name.namespace;
        let (identity, token) = (needs_identity(rule), needs_token(rule));
        let ports = !rule.to.is_empty() && rule.to.iter().all(|to| !to.ports.any_of.is_empty());
        if !identity && !token && !ports {
            return None;
        }
        let covered = || {
            self.workloads
                .iter()
                .filter(|workload| policy.applies.covers(namespace, workload, None, &self.services))
        };
        // What holds for all of a namespace is for those of its workloads that have the port.
        let named = !matches!(policy.applies, Applies::Namespace);
        if ports && named && !covered().any(|workload| listens(workload, rule)) {
            return covered().next().map(|workload| {
                format!("asks for ports at which Workload {} does not listen, nor any other that the policy is for, so it never matches; ports are the application's (its spec.ports), not the service's", workload.name)
            });
        }
        covered().find_map(|workload| {
            let name = &workload.name;
            if identity && self.is_plain(workload) {
                return Some(format!(
                    "asks who calls, but a PeerAuthentication lets Workload {name} take plain text only, so it never matches there"
                ));
            }
            (token && !self.takes_tokens(workload)).then(|| {
                format!("asks for a token, but no RequestAuthentication is for Workload {name}, so it never matches there")
            })
        })
    }

    fn is_plain(&self, workload: &Workload) -> bool {
        let plain = |port: &u16| {
            let peers = self.peers.iter().copied();
            mode_of(peers, workload, None, *port, &self.services) == TlsMode::Disable
        };
        !workload.ports.is_empty() && workload.ports.values().all(plain)
    }

    fn takes_tokens(&self, workload: &Workload) -> bool {
        self.requests.iter().any(|policy| {
            policy.applies.covers(&policy.name.namespace, workload, None, &self.services)
        })
    }
}

/// Whether `workload` has one of the ports that the rule asks for, as far as is known of it.
fn listens(workload: &Workload, rule: &Rule) -> bool {
    let matches = |port: &u16| {
        let text = port.to_string();
        rule.to.iter().any(|to| to.ports.any_of.iter().any(|pattern| pattern.matches(&text)))
    };
    workload.ports.is_empty() || workload.ports.values().any(matches)
}

/// Whether callers without a certificate never match.
fn needs_identity(rule: &Rule) -> bool {
    let source = |source: &Source| {
        !source.principals.any_of.is_empty() || !source.namespaces.any_of.is_empty()
    };
    needs(rule, source, |key| {
        matches!(key, ConditionKey::SourcePrincipal | ConditionKey::SourceNamespace)
    })
}

/// Whether requests without a token never match.
fn needs_token(rule: &Rule) -> bool {
    needs(
        rule,
        |source| !source.request_principals.any_of.is_empty(),
        |key| {
            matches!(
                key,
                ConditionKey::RequestPrincipal
                    | ConditionKey::RequestAudiences
                    | ConditionKey::RequestPresenter
                    | ConditionKey::Claim(_)
            )
        },
    )
}

fn needs(
    rule: &Rule,
    by_source: impl Fn(&Source) -> bool,
    by_key: impl Fn(&ConditionKey) -> bool,
) -> bool {
    (!rule.from.is_empty() && rule.from.iter().all(by_source))
        || rule
            .when
            .iter()
            .any(|condition| by_key(&condition.key) && !condition.values.any_of.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::{
        Resource,
        analyze::{findings, findings_of_all, without_tokens},
        yaml,
    };

    const WORKLOAD: &str = "
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {app: orders}}
spec: {address: 127.0.0.1, ports: {http: 9001, admin: 9002}}
";

    fn resources(documents: &[(&str, &str)]) -> Vec<Resource> {
        let mut text = WORKLOAD.to_owned();
        for (i, (kind, spec)) in documents.iter().enumerate() {
            text += &format!(
                "---\napiVersion: leno.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{i}, namespace: shop}}\nspec: {spec}\n"
            );
        }
        let documents = yaml::documents(&text).unwrap().into_iter();
        documents.map(|document| Resource::from_json(document.value).unwrap()).collect()
    }

    fn messages(documents: &[(&str, &str)]) -> Vec<String> {
        let found = findings_of_all(&resources(documents));
        found.iter().map(|f| format!("{}: {} {}", f.key, f.path, f.message)).collect()
    }

    #[test]
    fn what_is_missing_is_no_finding_of_a_part() {
        let spec = "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}";
        let documents = [("AuthorizationPolicy", spec)];
        assert_eq!(findings(&resources(&documents)), []);
        assert_eq!(messages(&documents).len(), 1);
    }

    #[test]
    fn a_denial_of_nothing_is_found() {
        for action in ["DENY", "AUDIT"] {
            let found = messages(&[("AuthorizationPolicy", &format!("{{action: {action}}}"))]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("spec.rules is empty, so the policy has no effect"));
        }
        assert_eq!(messages(&[("AuthorizationPolicy", "{}")]), [""; 0]);
        assert_eq!(messages(&[("AuthorizationPolicy", "{action: DENY, rules: [{}]}")]), [""; 0]);
    }

    #[test]
    fn policies_that_say_nothing_are_found() {
        for (kind, spec, expected) in [
            ("RequestAuthentication", "{}", &["spec.jwtRules is empty"][..]),
            ("RequestAuthentication", "{jwtRules: [{issuer: i, jwksUri: 'https://i/k'}]}", &[]),
            ("PeerAuthentication", "{}", &["spec.mtls says no mode"]),
            ("PeerAuthentication", "{mtls: {mode: UNSET}}", &["spec.mtls says no mode"]),
            ("PeerAuthentication", "{portLevelMtls: {9001: {mode: STRICT}}}", &[]),
        ] {
            let found = messages(&[(kind, spec)]);
            assert_eq!(found.len(), expected.len(), "{kind} {spec}: {found:?}");
            assert!(
                found.iter().zip(expected).all(|(found, part)| found.contains(part)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn selectors_that_nobody_has_the_labels_for_are_found() {
        for (label, expected) in [("orders", 0), ("users", 1)] {
            let selector = format!("selector: {{matchLabels: {{app: {label}}}}}");
            for (kind, rest) in [
                ("AuthorizationPolicy", "rules: [{}]"),
                ("PeerAuthentication", "mtls: {mode: STRICT}"),
                ("RequestAuthentication", "jwtRules: [{issuer: i, jwksUri: 'https://i/k'}]"),
                ("WasmPlugin", "url: 'file:///a'"),
            ] {
                let documents = [(kind, &*format!("{{{selector}, {rest}}}"))];
                let found = messages(&documents);
                assert_eq!(found.len(), expected, "{kind} {label}: {found:?}");
                let message = "spec.selector.matchLabels no Workload has all of these labels";
                assert!(found.iter().all(|found| found.contains(message)), "{found:?}");
                // Workloads register themselves: where none is written down, that says nothing.
                let alone = resources(&documents).split_off(1);
                assert_eq!(findings_of_all(&alone), []);
            }
        }
    }

    #[test]
    fn ports_are_the_applications() {
        let named = "selector: {matchLabels: {app: orders}},";
        for (scope, ports, expected) in [
            (named, "['80']", 1),
            (named, "['9001']", 0),
            (named, "['80', '9002']", 0),
            // Among all of a namespace there may be some that nobody wrote down.
            ("", "['80']", 0),
        ] {
            let policy = format!(
                "{{{scope} action: DENY, rules: [{{to: [{{operation: {{ports: {ports}}}}}]}}]}}"
            );
            let found = messages(&[("AuthorizationPolicy", &policy)]);
            assert_eq!(found.len(), expected, "{scope} {ports}: {found:?}");
            assert!(found.iter().all(|found| found.contains("spec.rules[0] asks for ports")));
        }
    }

    #[test]
    fn identities_are_not_asked_of_plain_text() {
        let plain = ("PeerAuthentication", "{mtls: {mode: DISABLE}}");
        let partly = (
            "PeerAuthentication",
            "{mtls: {mode: DISABLE}, portLevelMtls: {9002: {mode: STRICT}}}",
        );
        let asks = [
            "{rules: [{from: [{source: {principals: ['*']}}]}]}",
            "{rules: [{from: [{source: {namespaces: [a], ipBlocks: [10.0.0.0/8]}}]}]}",
            "{rules: [{when: [{key: source.principal, values: [a/b]}]}]}",
        ];
        for spec in asks {
            let policy = ("AuthorizationPolicy", spec);
            let found = messages(&[policy, plain]);
            assert_eq!(found.len(), 1, "{spec}: {found:?}");
            assert!(found[0].contains("spec.rules[0] asks who calls"), "{found:?}");
            assert!(found[0].contains("Workload shop/orders-1"), "{found:?}");
            assert_eq!(messages(&[policy, partly]), [""; 0]);
            assert_eq!(messages(&[policy]), [""; 0]);
        }
        for spec in [
            "{rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
            "{rules: [{from: [{source: {principals: ['*']}}, {source: {ipBlocks: [10.0.0.0/8]}}]}]}",
            "{rules: [{when: [{key: source.principal, notValues: [a/b]}]}]}",
        ] {
            assert_eq!(messages(&[("AuthorizationPolicy", spec), plain]), [""; 0], "{spec}");
        }
    }

    #[test]
    fn tokens_are_not_asked_where_none_are_read() {
        let rules = "jwtRules: [{issuer: i, jwksUri: 'https://i/k'}]";
        let spec = "{rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}";
        let policy = ("AuthorizationPolicy", spec);
        let found = messages(&[policy]);
        assert!(
            found.len() == 1 && found[0].contains("spec.rules[0] asks for a token"),
            "{found:?}"
        );
        let alone = &resources(&[policy])[1];
        assert_eq!(without_tokens(alone).len(), 1);
        assert_eq!(without_tokens(&resources(&[("AuthorizationPolicy", "{rules: [{}]}")])[1]), []);
        let other = format!("{{selector: {{matchLabels: {{app: users}}}}, {rules}}}");
        let found = messages(&[policy, ("RequestAuthentication", &other)]);
        assert_eq!(found.iter().filter(|found| found.contains("asks for a token")).count(), 1);
        let own = format!("{{{rules}}}");
        assert_eq!(messages(&[policy, ("RequestAuthentication", &own)]), [""; 0]);
    }

    #[test]
    fn one_issuer_in_two_policies_for_one_place_is_found() {
        let policy = |scope: &str, issuer: &str| {
            format!("{{{scope} jwtRules: [{{issuer: {issuer}, jwksUri: 'https://i/k'}}]}}")
        };
        let found = |first: &str, second: &str| {
            messages(&[("RequestAuthentication", first), ("RequestAuthentication", second)])
        };
        let labels = "selector: {matchLabels: {app: orders}},";
        let twins = found(&policy("", "a"), &policy("", "a"));
        assert_eq!(twins.len(), 1, "{twins:?}");
        assert!(
            twins[0].starts_with("RequestAuthentication shop/p1: spec.jwtRules[0] "),
            "{twins:?}"
        );
        assert_eq!(found(&policy(labels, "a"), &policy(labels, "a")).len(), 1);
        assert_eq!(found(&policy("", "a"), &policy("", "b")), [""; 0]);
        assert_eq!(found(&policy(labels, "a"), &policy("", "a")), [""; 0]);
    }
}
