//! What a route does to requests and responses on their way.

use http::{HeaderName, HeaderValue, StatusCode};

use crate::{
    Path,
    invalid::Problems,
    model::{
        Host,
        backend::{Backend, parse_backend, port_number},
    },
    spec::http_route as raw,
};

const MAX_HEADERS: usize = 16;

/// One step, in the order written.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Changes request headers.
    RequestHeaders(HeaderChanges),
    /// Changes response headers.
    ResponseHeaders(HeaderChanges),
    /// Sends a copy elsewhere.
    Mirror(Mirror),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes host or path.
    Rewrite(Rewrite),
}

/// `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// Replaces all values.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Adds to those there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes.
    pub remove: Vec<HeaderName>,
}

/// Where copies go, and of how many requests.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Its weight means nothing here.
    pub backend: Backend,
    /// At most `denominator`.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

/// What is `None` stays as in the request.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<Host>,
    /// Path.
    pub path: Option<PathChange>,
    /// Port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// What is `None` stays.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// `Host` or `:authority`.
    pub hostname: Option<Host>,
    /// Path.
    pub path: Option<PathChange>,
}

/// How a path changes; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// The whole path.
    Full(String),
    /// Only the prefix that matched.
    Prefix(String),
}

/// Which filters may stand in this place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    HttpRule,
    GrpcRule,
    Backend,
}

pub(crate) fn parse_filters(
    at: &Path<'_>,
    raw: Vec<raw::HttpRouteFilter>,
    namespace: &str,
    place: Place,
    problems: &mut Problems,
) -> Vec<Filter> {
    let mut seen = Vec::new();
    let mut filters = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        let kind = raw.kind;
        if seen.contains(&kind) && kind != raw::FilterType::RequestMirror {
            problems.add(here.field("type"), format!("{kind:?} stands twice in one list"));
        }
        seen.push(kind);
        filters.extend(parse_filter(&here, raw, namespace, place, problems));
    }
    if seen.contains(&raw::FilterType::RequestRedirect)
        && seen.contains(&raw::FilterType::UrlRewrite)
    {
        problems.add(at, "RequestRedirect and URLRewrite exclude each other");
    }
    filters
}

fn parse_filter(
    at: &Path<'_>,
    raw: raw::HttpRouteFilter,
    namespace: &str,
    place: Place,
    problems: &mut Problems,
) -> Option<Filter> {
    use raw::FilterType as Type;
    check_only_named_field(at, &raw, problems)?;
    let allowed = match raw.kind {
        Type::RequestHeaderModifier | Type::ResponseHeaderModifier => true,
        Type::RequestMirror => place != Place::Backend,
        Type::RequestRedirect | Type::UrlRewrite => place == Place::HttpRule,
    };
    if !allowed {
        problems.add(at.field("type"), format!("{:?} is not possible in this place", raw.kind));
        return None;
    }
    match raw.kind {
        Type::RequestHeaderModifier => {
            let here = at.field("requestHeaderModifier");
            Some(Filter::RequestHeaders(parse_headers(
                &here,
                raw.request_header_modifier?,
                problems,
            )))
        }
        Type::ResponseHeaderModifier => {
            let here = at.field("responseHeaderModifier");
            Some(Filter::ResponseHeaders(parse_headers(
                &here,
                raw.response_header_modifier?,
                problems,
            )))
        }
        Type::RequestMirror => {
            parse_mirror(&at.field("requestMirror"), raw.request_mirror?, namespace, problems)
                .map(Filter::Mirror)
        }
        Type::RequestRedirect => {
            parse_redirect(&at.field("requestRedirect"), raw.request_redirect?, problems)
                .map(Filter::Redirect)
        }
        Type::UrlRewrite => {
            let here = at.field("urlRewrite");
            let raw = raw.url_rewrite?;
            let hostname = parse_hostname(&here, raw.hostname.as_deref(), problems);
            let path = raw.path.and_then(|path| parse_path(&here.field("path"), path, problems));
            Some(Filter::Rewrite(Rewrite { hostname, path }))
        }
    }
}

fn check_only_named_field(
    at: &Path<'_>,
    raw: &raw::HttpRouteFilter,
    problems: &mut Problems,
) -> Option<()> {
    use raw::FilterType as Type;
    let fields = [
        (
            Type::RequestHeaderModifier,
            "requestHeaderModifier",
            raw.request_header_modifier.is_some(),
        ),
        (
            Type::ResponseHeaderModifier,
            "responseHeaderModifier",
            raw.response_header_modifier.is_some(),
        ),
        (Type::RequestMirror, "requestMirror", raw.request_mirror.is_some()),
        (Type::RequestRedirect, "requestRedirect", raw.request_redirect.is_some()),
        (Type::UrlRewrite, "urlRewrite", raw.url_rewrite.is_some()),
    ];
    let mut good = Some(());
    for (kind, field, present) in fields {
        if (kind == raw.kind) != present {
            let message =
                if present { "does not belong to this type" } else { "is needed for this type" };
            problems.add(at.field(field), message);
            good = None;
        }
    }
    good
}

fn parse_headers(
    at: &Path<'_>,
    raw: raw::HeaderModifier,
    problems: &mut Problems,
) -> HeaderChanges {
    let mut pairs = |field: &str, list: Vec<raw::HeaderValue>| {
        let list_at = at.field(field);
        if list.len() > MAX_HEADERS {
            problems.add(
                list_at,
                format!("has {} entries; at most {MAX_HEADERS} are allowed", list.len()),
            );
        }
        let mut parsed: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for (i, raw) in list.into_iter().enumerate() {
            let here = list_at.index(i);
            let name = header_name(&here.field("name"), &raw.name, problems);
            let value = HeaderValue::from_str(&raw.value)
                .map_err(|_| "has characters that no header value can have");
            let value = problems.take(&here.field("value"), value);
            let (Some(name), Some(value)) = (name, value) else { continue };
            if parsed.iter().any(|(other, _)| *other == name) {
                problems.add(here.field("name"), format!("`{name}` stands twice"));
            }
            parsed.push((name, value));
        }
        parsed
    };
    let set = pairs("set", raw.set);
    let add = pairs("add", raw.add);
    let remove_at = at.field("remove");
    let remove = raw.remove.iter().enumerate();
    let remove =
        remove.filter_map(|(i, name)| header_name(&remove_at.index(i), name, problems)).collect();
    HeaderChanges { set, add, remove }
}

/// A header name that a user may change: not those that frame the message.
pub(crate) fn header_name(
    at: &Path<'_>,
    text: &str,
    problems: &mut Problems,
) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("`{text}` is not a header name"));
    let name = problems.take(at, name)?;
    if ["connection", "content-length", "transfer-encoding", "upgrade", "te", "keep-alive"]
        .contains(&name.as_str())
    {
        problems.add(at, format!("`{name}` frames the message and is the proxy's own"));
        return None;
    }
    Some(name)
}

fn parse_mirror(
    at: &Path<'_>,
    raw: raw::RequestMirror,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Mirror> {
    let backend = parse_backend(&at.field("backendRef"), raw.backend_ref, namespace, problems);
    let (numerator, denominator) = match (raw.percent, raw.fraction) {
        (Some(_), Some(_)) => {
            problems.add(at, "percent and fraction exclude each other");
            return None;
        }
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (100, 100),
    };
    let share = u32::try_from(numerator).ok().zip(u32::try_from(denominator).ok());
    match share.filter(|(numerator, denominator)| numerator <= denominator && *denominator > 0) {
        Some((numerator, denominator)) => {
            Some(Mirror { backend: backend?, numerator, denominator })
        }
        None => {
            problems.add(at, "the share must be between none and all");
            None
        }
    }
}

fn parse_redirect(
    at: &Path<'_>,
    raw: raw::RequestRedirect,
    problems: &mut Problems,
) -> Option<Redirect> {
    if raw.scheme.as_deref().is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        problems.add(at.field("scheme"), "must be http or https");
    }
    let hostname = parse_hostname(at, raw.hostname.as_deref(), problems);
    let path = raw.path.and_then(|path| parse_path(&at.field("path"), path, problems));
    let port = raw.port.and_then(|port| port_number(&at.field("port"), port, problems));
    let status = match raw.status_code.unwrap_or(302) {
        code @ (301 | 302 | 303 | 307 | 308) => {
            u16::try_from(code).ok().and_then(|c| StatusCode::from_u16(c).ok())?
        }
        _ => {
            problems.add(at.field("statusCode"), "must be 301, 302, 303, 307 or 308");
            return None;
        }
    };
    Some(Redirect { scheme: raw.scheme, hostname, path, port, status })
}

fn parse_hostname(at: &Path<'_>, raw: Option<&str>, problems: &mut Problems) -> Option<Host> {
    let host = problems.take(&at.field("hostname"), Host::parse(raw?))?;
    if host.is_wildcard() {
        problems.add(at.field("hostname"), "must be one host, not a wildcard");
    }
    Some(host)
}

fn parse_path(
    at: &Path<'_>,
    raw: raw::PathModifier,
    problems: &mut Problems,
) -> Option<PathChange> {
    use raw::PathModifierType as Type;
    let change = match (raw.kind, raw.replace_full_path, raw.replace_prefix_match) {
        (Type::ReplaceFullPath, Some(full), None) => PathChange::Full(full),
        (Type::ReplacePrefixMatch, None, Some(prefix)) => PathChange::Prefix(prefix),
        _ => {
            problems.add(
                at,
                "set exactly the field that `type` names: replaceFullPath or replacePrefixMatch",
            );
            return None;
        }
    };
    let (PathChange::Full(text) | PathChange::Prefix(text)) = &change;
    if http::uri::PathAndQuery::try_from(text.as_str()).is_err() || text.contains(['?', '#']) {
        problems.add(at, format!("`{text}` is not a path"));
        return None;
    }
    Some(change)
}
