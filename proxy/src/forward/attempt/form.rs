//! A request in the form that an upstream connection needs.

use http::{HeaderValue, Request, StatusCode, Uri, Version, header, uri};
use leno_api::model::service::Protocol;

use crate::{
    error::{Error, Flag},
    http::{body::Body, head},
};

/// The same head with another body.
pub(in crate::forward) fn with_body(request: &Request<Body>, body: Body) -> Request<Body> {
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy
}

/// What is spoken upstream: what the service says, else what the caller speaks.
pub(in crate::forward) fn speaks_http2(protocol: Protocol, downstream: Version) -> bool {
    match protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Http => false,
        Protocol::Auto | Protocol::Tcp => downstream == Version::HTTP_2,
    }
}

/// Puts a request into the form that the upstream connection needs.
pub(in crate::forward) fn prepare(
    request: &mut Request<Body>,
    http2: bool,
    upgrade: Option<&HeaderValue>,
) -> Result<(), Error> {
    if http2 {
        return to_http2(request);
    }
    let version = std::mem::replace(request.version_mut(), Version::HTTP_11);
    if let Some(authority) = request.uri().authority() {
        if !request.headers().contains_key(header::HOST) || version != Version::HTTP_2 {
            // Absolute form: the target's authority replaces Host (RFC 9112 section 3.2.2).
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad_authority())?;
            request.headers_mut().insert(header::HOST, host);
        }
        let target = std::mem::take(request.uri_mut());
        *request.uri_mut() = origin(target);
    }
    if version == Version::HTTP_2 {
        head::join_cookies(request.headers_mut());
    }
    if let Some(protocol) = upgrade {
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    Ok(())
}

fn to_http2(request: &mut Request<Body>) -> Result<(), Error> {
    let host = request.headers_mut().remove(header::HOST);
    let target = request.uri_mut();
    if target.authority().is_none() || target.scheme().is_none() {
        let from_host = host.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
        *target = absolute(std::mem::take(target), from_host)?;
    }
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

fn absolute(target: Uri, host: Option<uri::Authority>) -> Result<Uri, Error> {
    let mut parts = target.into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = parts.authority.or(host);
    parts.path_and_query =
        parts.path_and_query.or_else(|| Some(uri::PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|_| bad_authority())
}

pub(in crate::forward) fn origin(target: Uri) -> Uri {
    let path = target.into_parts().path_and_query;
    Uri::from(path.unwrap_or_else(|| uri::PathAndQuery::from_static("/")))
}

fn bad_authority() -> Error {
    Error::downstream(StatusCode::BAD_REQUEST, Flag::DPE, "Host is not a host")
}
