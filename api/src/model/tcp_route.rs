//! `TCPRoute`.

use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        backend::{Backend, Parent, parse_backend, parse_parents},
        http_route::check_count,
    },
    resource::read,
    spec::tcp_route as raw,
};

const MAX_BACKENDS: usize = 64;

/// Where the connections for some services go.
#[derive(Clone, Debug)]
pub struct TcpRoute {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two routes for one port wins.
    pub created: String,
    /// At least one.
    pub parents: Vec<Parent>,
    /// By weight, at least one.
    pub backends: Vec<Backend>,
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::TcpRouteSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let parents =
        parse_parents(&at.field("parentRefs"), raw.parent_refs, &name.namespace, problems);
    let rules_at = at.field("rules");
    check_count(&rules_at, raw.rules.len(), 1, 1, problems);
    let rule_at = rules_at.index(0);
    let backends_at = rule_at.field("backendRefs");
    let rule = raw.rules.into_iter().next()?;
    check_count(&backends_at, rule.backend_refs.len(), 1, MAX_BACKENDS, problems);
    let mut backends = Vec::new();
    for (i, raw) in rule.backend_refs.into_iter().enumerate() {
        backends.extend(parse_backend(&backends_at.index(i), raw, &name.namespace, problems));
    }
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::TcpRoute(TcpRoute { name, created, parents, backends }.into()))
}
