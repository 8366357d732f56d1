//! `GRPCRoute`, read into the same model as `HTTPRoute`: a gRPC method is the path `/service/method`, the
//! HTTP method is POST.

use http::Method;
use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        backend::parse_parents,
        filter::{Place, parse_filters},
        http_route::{
            HttpMatch, HttpRoute, HttpRule, PathMatch, check_count, parse_backends, parse_headers,
            parse_hostnames, parse_regex,
        },
    },
    resource::read,
    spec::{grpc_route as raw, http_route::ValueMatchType},
};

const MAX_RULES: usize = 64;

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::GrpcRouteSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let all_parents = raw.parent_refs.len();
    let parents =
        parse_parents(&at.field("parentRefs"), raw.parent_refs, &name.namespace, problems);
    let hostnames = parse_hostnames(&at.field("hostnames"), &raw.hostnames, problems);
    let rules_at = at.field("rules");
    check_count(&rules_at, raw.rules.len(), 1, MAX_RULES, problems);
    let mut repeated = Vec::new();
    let rules = raw.rules.into_iter().enumerate();
    let rules = rules
        .map(|(i, rule)| {
            parse_rule(&rules_at.index(i), rule, &name.namespace, &mut repeated, problems)
        })
        .collect();
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::HttpRoute(
        HttpRoute {
            kind: "GRPCRoute",
            name,
            created,
            has_other_parents: all_parents > parents.len(),
            parents,
            hostnames,
            rules,
            repeated,
        }
        .into(),
    ))
}

fn parse_rule(
    at: &Path<'_>,
    raw: raw::GrpcRouteRule,
    namespace: &str,
    repeated: &mut Vec<String>,
    problems: &mut Problems,
) -> HttpRule {
    let matches_at = at.field("matches");
    let raw_matches =
        if raw.matches.is_empty() { vec![raw::GrpcRouteMatch::default()] } else { raw.matches };
    let mut matches = Vec::new();
    for (i, raw) in raw_matches.into_iter().enumerate() {
        let here = matches_at.index(i);
        let path = match raw.method {
            Some(method) => parse_method(&here.field("method"), &method, problems),
            None => Some(PathMatch::Prefix("".into())),
        };
        let headers = parse_headers(&here.field("headers"), raw.headers, repeated, problems);
        matches.extend(path.map(|path| HttpMatch {
            path,
            method: Some(Method::POST),
            headers,
            query: Vec::new(),
        }));
    }
    let filters =
        parse_filters(&at.field("filters"), raw.filters, namespace, Place::GrpcRule, problems);
    let backends = parse_backends(&at.field("backendRefs"), raw.backend_refs, namespace, problems);
    HttpRule {
        name: raw.name,
        matches,
        filters,
        backends,
        request_timeout: None,
        attempt_timeout: None,
        retry: None,
    }
}

fn parse_method(
    at: &Path<'_>,
    raw: &raw::GrpcMethodMatch,
    problems: &mut Problems,
) -> Option<PathMatch> {
    let service = raw.service.as_deref().filter(|text| !text.is_empty());
    let method = raw.method.as_deref().filter(|text| !text.is_empty());
    if raw.kind == ValueMatchType::RegularExpression {
        let any = "[^/]+";
        let text = format!("/(?:{})/(?:{})", service.unwrap_or(any), method.unwrap_or(any));
        return parse_regex(at, &text, problems).map(PathMatch::Regex);
    }
    let token =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
    for (field, text) in [("service", service), ("method", method)] {
        if text.is_some_and(|text| !token(text)) {
            problems.add(
                at.field(field),
                "must be a name of letters, digits, `_` and (in services) `.`",
            );
            return None;
        }
    }
    match (service, method) {
        (Some(service), Some(method)) => {
            Some(PathMatch::Exact(format!("/{service}/{method}").into()))
        }
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}").into())),
        (None, Some(method)) => {
            parse_regex(at, &format!("/[^/]+/{method}"), problems).map(PathMatch::Regex)
        }
        (None, None) => {
            problems.add(at, "needs a service, a method or both");
            None
        }
    }
}
