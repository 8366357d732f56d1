//! Places that only one resource can have, and who has them.

use std::collections::HashMap;

use super::{Finding, Services};
use crate::{
    Key, Resource,
    model::{
        Host, Model, ObjectName,
        applies::Applies,
        backend::Parent,
        cache_policy::CacheTarget,
        http_route::{HttpMatch, HttpRoute},
        peer_authentication::PeerAuthentication,
        request_authentication::RequestAuthentication,
        service::Service,
        traffic_policy::Target,
    },
};

/// A place that only one resource can have: a target of policies, requests that a route matches, a name of a service. Of
/// several the oldest has it (of services the first by name), and the others do nothing there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where the resource makes it: `spec.targetRefs[0]`.
    pub path: String,
    /// Resources that may claim the same have it in common. Whether they do, [`super::findings`] says.
    pub place: String,
    part: Part,
    /// What becomes of it, after the name of who has it already.
    lost: &'static str,
    /// Whether it is an oddity, too, when the resource has claimed the same before: what it says then.
    again: Option<&'static str>,
}

/// How much of a place is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    /// All of it.
    All,
    /// All of it, before everybody who writes it down: a service's own name.
    Given,
    /// One port of a service, by name. A policy for it stands instead of one for all.
    Section(String),
    /// One port of an application. Who claims all has this, too.
    AppPort(u16),
    /// The ports of a service that a route's parent means.
    Ports { service: ObjectName, port: Option<u16>, section: Option<String> },
}

const APPLIES: &str = "is older and already applies there, so this one does not";

/// Every claim that `resource` makes.
pub fn claims(resource: &Resource) -> Vec<Claim> {
    match &resource.model {
        Model::Service(service) => of_service(service),
        Model::TrafficPolicy(policy) => of_targets("policy", &policy.targets),
        Model::FaultPolicy(policy) => of_targets("fault", &policy.targets),
        Model::CachePolicy(policy) => of_cache_targets(&policy.targets),
        Model::HttpRoute(route) => of_http_route(route),
        Model::TcpRoute(route) => {
            let parents = route.parents.iter().enumerate();
            let claim = |(i, parent): (usize, &Parent)| Claim {
                path: format!("spec.parentRefs[{i}]"),
                place: format!("tcp {} {}", scope(parent, &route.name), parent.service),
                part: Part::of(parent),
                lost: "is older and already takes the connections, so this one does not",
                again: None,
            };
            parents.map(claim).collect()
        }
        Model::PeerAuthentication(policy) => of_peer_authentication(policy),
        Model::RequestAuthentication(policy) => of_issuers(policy),
        Model::Workload(_)
        | Model::AuthorizationPolicy(_)
        // Of several all limits hold.
        | Model::RateLimitPolicy(_)
        | Model::WasmPlugin(_)
        | Model::TrustBundle(_) => Vec::new(),
    }
}

impl Part {
    fn of(parent: &Parent) -> Self {
        let Parent { service, port, section } = parent.clone();
        Self::Ports { service, port, section }
    }
}

/// Consumer routes only meet routes of the same namespace.
fn scope<'a>(parent: &Parent, route: &'a ObjectName) -> &'a str {
    if parent.service.namespace == route.namespace { "" } else { &route.namespace }
}

/// Names that callers use. `<name>.<namespace>` belongs to its service, whoever else writes it down.
fn of_service(service: &Service) -> Vec<Claim> {
    let ObjectName { namespace, name } = &service.name;
    let claim =
        |path: String, place: String, part, lost| Claim { path, place, part, lost, again: None };
    let own = ["", ".svc", ".svc.cluster.local"]
        .map(|suffix| format!("host {name}.{namespace}{suffix}"))
        .into_iter()
        .chain([format!("host {namespace} {name}")]);
    let own = own.map(|place| claim("metadata.name".to_owned(), place, Part::Given, ""));
    let hosts = service.hosts.iter().enumerate().map(|(i, host)| {
        let host = host.as_str();
        // A name without a dot holds in the service's own namespace only.
        let (place, lost) = match host.contains('.') {
            true => (
                format!("host {host}"),
                "has that name, too, and comes first: callers of other namespaces than this one's reach that service, not this",
            ),
            false => (
                format!("host {namespace} {host}"),
                "has that name, too, and comes first, so callers reach that service, not this",
            ),
        };
        claim(format!("spec.hosts[{i}]"), place, Part::All, lost)
    });
    let addresses = service.addresses.iter().enumerate().map(|(i, address)| {
        let lost =
            "has that address, too, and comes first, so callers reach that service, not this";
        claim(format!("spec.addresses[{i}]"), format!("address {address}"), Part::All, lost)
    });
    own.chain(hosts).chain(addresses).collect()
}

/// Every target of a policy of which only one applies.
fn of_targets(kind: &str, targets: &[Target]) -> Vec<Claim> {
    let claim = |(i, target): (usize, &Target)| of_target(kind, i, target);
    targets.iter().enumerate().map(claim).collect()
}

fn of_target(kind: &str, i: usize, target: &Target) -> Claim {
    Claim {
        path: format!("spec.targetRefs[{i}]"),
        place: format!("{kind} {}", target.service),
        part: target.section.clone().map_or(Part::All, Part::Section),
        lost: APPLIES,
        again: None,
    }
}

fn of_cache_targets(targets: &[CacheTarget]) -> Vec<Claim> {
    let claim = |(i, target): (usize, &CacheTarget)| match target {
        CacheTarget::Service(target) => of_target("cache", i, target),
        CacheTarget::Route { route, rule } => Claim {
            path: format!("spec.targetRefs[{i}]"),
            place: format!("cache route {route} {rule:?}"),
            part: Part::All,
            lost: APPLIES,
            again: None,
        },
    };
    targets.iter().enumerate().map(claim).collect()
}

fn of_http_route(route: &HttpRoute) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (rule_at, rule) in route.rules.iter().enumerate() {
        for (match_at, condition) in rule.matches.iter().enumerate() {
            let condition = spelled(condition);
            let any = || route.hostnames.is_empty().then_some("*").into_iter();
            let hosts = || route.hostnames.iter().map(Host::as_str).chain(any());
            for (parent, host) in
                route.parents.iter().flat_map(|parent| hosts().map(move |host| (parent, host)))
            {
                let scope = scope(parent, &route.name);
                claims.push(Claim {
                    path: format!("spec.rules[{rule_at}].matches[{match_at}]"),
                    place: format!("match {scope} {} {host} {condition}", parent.service),
                    part: Part::of(parent),
                    lost: "is older and matches the same requests, so this never does",
                    again: Some(
                        "matches the same requests and stands before it, so this never does",
                    ),
                });
            }
        }
    }
    claims
}

/// The same for conditions that mean the same: their order does not matter.
fn spelled(condition: &HttpMatch) -> String {
    let mut headers: Vec<_> = condition.headers.iter().collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    let mut query: Vec<_> = condition.query.iter().collect();
    query.sort_by_key(|(name, _)| name);
    format!("{:?} {:?} {headers:?} {query:?}", condition.path, condition.method)
}

/// The workloads that a policy is for, as it says it.
fn places(namespace: &str, applies: &Applies) -> Vec<String> {
    match applies {
        Applies::Namespace => vec![format!("{namespace} all")],
        Applies::Labels(labels) => vec![format!("{namespace} {labels:?}")],
        Applies::Services(targets) => targets
            .iter()
            .map(|target| format!("{namespace} {} {:?}", target.service, target.section))
            .collect(),
    }
}

/// Every port for which the policy says a mode, at each place it is for.
fn of_peer_authentication(policy: &PeerAuthentication) -> Vec<Claim> {
    let modes = policy.mode.iter().map(|_| ("spec.mtls".to_owned(), Part::All));
    let ports = policy
        .ports
        .keys()
        .map(|port| (format!("spec.portLevelMtls.{port}"), Part::AppPort(*port)));
    let all: Vec<_> = modes.chain(ports).collect();
    let places = places(&policy.name.namespace, &policy.applies);
    let claims = places.iter().flat_map(|place| {
        all.iter().map(move |(path, part)| Claim {
            path: path.clone(),
            place: format!("mtls {place}"),
            part: part.clone(),
            lost: "is older, as specific, and already says a mode there, so this one does not count",
            again: None,
        })
    });
    claims.collect()
}

/// Every issuer that the policy has a rule for, at each place it is for.
fn of_issuers(policy: &RequestAuthentication) -> Vec<Claim> {
    let places = places(&policy.name.namespace, &policy.applies);
    let claims = policy.rules.iter().enumerate().flat_map(|(i, rule)| {
        places.iter().map(move |place| Claim {
            path: format!("spec.jwtRules[{i}]"),
            place: format!("issuer {place} {}", rule.issuer),
            part: Part::All,
            lost: "is older and has a rule for tokens of the same issuer there; keep one of them",
            again: None,
        })
    });
    claims.collect()
}

/// Who has what.
#[derive(Default)]
struct Owners<'a> {
    by_place: HashMap<(String, Part), (Key, String)>,
    services: Option<&'a Services<'a>>,
}

/// Claims that others have made before, and policies for one port that stand instead of one for all.
pub(super) fn find_lost(resources: &[Resource], services: &Services<'_>, found: &mut Vec<Finding>) {
    let mut owners = Owners { by_place: HashMap::new(), services: Some(services) };
    let sorted = in_precedence(resources);
    let mut written = Vec::new();
    for resource in sorted {
        let key = resource.key();
        for claim in claims(resource) {
            match claim.part {
                Part::Given => owners.give(&key, claim),
                _ => written.push((key.clone(), claim)),
            }
        }
    }
    let mut narrow = Vec::new();
    for (key, claim) in written {
        if let Some(message) = owners.claim(&key, &claim) {
            found.push(Finding { key: key.clone(), path: claim.path.clone(), message });
        }
        if matches!(claim.part, Part::Section(_)) {
            narrow.push((key, claim));
        }
    }
    for (key, claim) in narrow {
        if let Some(message) = owners.replaced(&key, &claim) {
            found.push(Finding { key, path: claim.path, message });
        }
    }
}

impl Owners<'_> {
    fn give(&mut self, key: &Key, Claim { place, path, .. }: Claim) {
        self.by_place.entry((place, Part::All)).or_insert_with(|| (key.clone(), path));
    }

    /// Notes a claim, and says who has made it before, if somebody has.
    fn claim(&mut self, key: &Key, claim: &Claim) -> Option<String> {
        let Part::Ports { service, port, section } = &claim.part else {
            return self.claim_part(key, claim, claim.part.clone());
        };
        let known = self.services.and_then(|services| services.get(service));
        let ports: Vec<Part> = match known {
            Some(service) => {
                let meant = service.ports.iter().filter(|found| {
                    port.is_none_or(|number| number == found.port)
                        && section.as_ref().is_none_or(|section| *section == found.name)
                });
                meant.map(|port| Part::Section(port.name.clone())).collect()
            }
            None => vec![claim.part.clone()],
        };
        let all = ports.len();
        let mut lost: Vec<(String, String)> = Vec::new();
        for part in ports {
            let name = match &part {
                Part::Section(name) => name.clone(),
                _ => String::new(),
            };
            lost.extend(self.claim_part(key, claim, part).map(|message| (name, message)));
        }
        let (_, message) = lost.first()?.clone();
        if lost.len() == all {
            return Some(message);
        }
        let names: Vec<_> = lost.iter().map(|(name, _)| format!("`{name}`")).collect();
        Some(format!("on port {}: {message}", names.join(", ")))
    }

    fn claim_part(&mut self, key: &Key, claim: &Claim, part: Part) -> Option<String> {
        let wider = match part {
            Part::AppPort(_) => self.by_place.get(&(claim.place.clone(), Part::All)),
            _ => None,
        };
        let wider = wider.filter(|(owner, _)| owner != key);
        let place = (claim.place.clone(), part);
        let Some((owner, path)) = wider.or_else(|| self.by_place.get(&place)) else {
            self.by_place.insert(place, (key.clone(), claim.path.clone()));
            return None;
        };
        if owner != key {
            return Some(format!("{owner} {}", claim.lost));
        }
        let again = claim.again.filter(|_| *path != claim.path)?;
        Some(format!("{path} {again}"))
    }

    /// What is said of a policy for one port where there is one for all.
    fn replaced(&self, key: &Key, claim: &Claim) -> Option<String> {
        let Part::Section(port) = &claim.part else { return None };
        let own = self.by_place.get(&(claim.place.clone(), claim.part.clone()));
        own.filter(|(owner, _)| owner == key)?;
        let (owner, _) = self.by_place.get(&(claim.place.clone(), Part::All))?;
        (owner != key).then(|| {
            format!(
                "replaces all of {owner} on port `{port}`: nothing that is said there and not here holds for it; repeat what is to hold"
            )
        })
    }
}

/// Gateway API: older first, then by namespace and name. Services have their names by these alone.
fn in_precedence(resources: &[Resource]) -> Vec<&Resource> {
    let mut sorted: Vec<_> = resources.iter().collect();
    sorted.sort_by_cached_key(|resource| {
        let created = match &resource.model {
            Model::Service(_) => None,
            _ => resource.metadata.creation_timestamp.clone(),
        };
        (created.is_none(), created, resource.name())
    });
    sorted
}

#[cfg(test)]
mod tests;
