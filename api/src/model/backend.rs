//! What a route is attached to and where it sends traffic.

use crate::{
    Path,
    invalid::Problems,
    model::{
        ObjectName,
        name::{check_label, check_subdomain},
    },
    spec::reference as raw,
};

const MAX_WEIGHT: i64 = 1_000_000;
const MAX_PARENTS: usize = 32;

/// A service (or one port of it) whose traffic a route directs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Which one.
    pub service: ObjectName,
    /// Only this port, by number.
    pub port: Option<u16>,
    /// Only this port, by name.
    pub section: Option<String>,
}

/// A share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Which service.
    pub service: ObjectName,
    /// Which port; the only one there is when `None`.
    pub port: Option<u16>,
    /// Relative to its siblings; 0 takes nothing.
    pub weight: u32,
}

/// 1 to 65535.
pub(crate) fn port_number(at: &Path<'_>, number: i64, problems: &mut Problems) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        problems.add(at, format!("{number} is not a port; must be 1 to 65535"));
    }
    port
}

/// Reads `parentRefs`: only Services mean something in a mesh; other parents (a Gateway, say) are left to others,
/// but one Service must be among them.
pub(crate) fn parse_parents(
    at: &Path<'_>,
    raw: Vec<raw::ParentRef>,
    namespace: &str,
    problems: &mut Problems,
) -> Vec<Parent> {
    if raw.len() > MAX_PARENTS {
        problems.add(at, format!("has {} entries; at most {MAX_PARENTS} are allowed", raw.len()));
    }
    let mut parents = Vec::new();
    let mut foreign = false;
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        if !is_service(
            raw.group.as_deref().unwrap_or(crate::GATEWAY_GROUP),
            raw.kind.as_deref().unwrap_or("Gateway"),
        ) {
            foreign = true;
            continue;
        }
        let port = raw.port.and_then(|port| port_number(&here.field("port"), port, problems));
        let parent_namespace = raw.namespace.as_deref().unwrap_or(namespace);
        problems.take(&here.field("namespace"), check_label(parent_namespace));
        problems.take(&here.field("name"), check_subdomain(&raw.name));
        let service = ObjectName::new(parent_namespace, &raw.name);
        parents.push(Parent { service, port, section: raw.section_name });
    }
    if parents.is_empty() {
        let hint = "write `{group: \"\", kind: Service, name: ...}`";
        let message =
            if foreign { "names no Service, so it would do nothing here; " } else { "is needed; " };
        problems.add(at, format!("{message}{hint}"));
    }
    parents
}

/// Reads one `backendRef`.
pub(crate) fn parse_backend(
    at: &Path<'_>,
    raw: raw::BackendRef,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Backend> {
    if !is_service(raw.group.as_deref().unwrap_or(""), raw.kind.as_deref().unwrap_or("Service")) {
        problems.add(at.field("kind"), "must be a Service (group \"\" or leno.dev)");
        return None;
    }
    if raw.namespace.as_deref().is_some_and(|other| other != namespace) {
        problems.add(
            at.field("namespace"),
            format!("must be the route's own, `{namespace}`: Gateway API allows others only by a ReferenceGrant, which Leno does not have"),
        );
        return None;
    }
    problems.take(&at.field("name"), check_subdomain(&raw.name))?;
    let weight = raw.weight.unwrap_or(1);
    if !(0..=MAX_WEIGHT).contains(&weight) {
        problems.add(at.field("weight"), format!("must be 0 to {MAX_WEIGHT}"));
    }
    let port = match raw.port {
        Some(port) => Some(port_number(&at.field("port"), port, problems)?),
        None => None,
    };
    let weight = u32::try_from(weight).ok()?;
    Some(Backend { service: ObjectName::new(namespace, &raw.name), port, weight })
}

/// Whether group and kind name a Service: Kubernetes' core group, written `""` or `core`, or ours.
pub(crate) fn is_service(group: &str, kind: &str) -> bool {
    kind == "Service" && matches!(group, "" | "core" | crate::LENO_GROUP)
}
