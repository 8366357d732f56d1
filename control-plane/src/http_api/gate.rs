//! Who may talk to us at all: the right host name, no web page of somebody else's, a known token or
//! certificate.
//!
//! A loopback API without tokens is within reach of every web page that the same person looks at.
//! Two checks keep pages out: the `Host` must be one of ours (DNS rebinding makes a foreign name
//! resolve to 127.0.0.1), and an `Origin` must be that same host (a form can be posted anywhere).

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Uri, header};

use super::{Api, Failure, ca};
use crate::{
    access::Caller,
    transport::{self, Peer},
};

pub(super) async fn check(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = admit(&api, request.uri(), request.headers());
    // What makes TLS possible in the first place has to be there for those who have no token yet.
    if admitted.is_ok() && request.uri().path() == ca::BUNDLE {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>();
    match admitted.and_then(|()| caller(&api, peer, request.headers())) {
        Ok(caller) => {
            if let Some(peer) = request.extensions().get::<Peer>() {
                peer.admission.grant();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

/// By the token that was sent, else by the certificate that was shown: people may use the one over a
/// connection that has the other.
fn caller(api: &Api, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Caller, Failure> {
    let authorization = headers.get(header::AUTHORIZATION);
    if authorization.is_none()
        && let Some(id) = transport::identity(peer, &api.authority)?
    {
        return Ok(Caller::workload(id));
    }
    Ok(api.access.caller(authorization.map(|value| value.as_bytes()))?)
}

fn admit(api: &Api, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
    let host = authority(uri, headers)?;
    if !is_ours(host_name(host), &api.hosts) {
        return Err(Failure::forbidden(format!(
            "requests for the host {host:?} are not answered, to keep foreign web pages out: use an IP address, localhost, or name the host with --api-host"
        )));
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !same_origin(origin.as_bytes(), host)
    {
        return Err(Failure::forbidden(
            "requests from web pages of other origins are not answered",
        ));
    }
    Ok(())
}

/// HTTP/2 has it in the URI, HTTP/1.1 in the header.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Failure> {
    if let Some(authority) = uri.authority() {
        return Ok(authority.as_str());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.ok_or_else(|| Failure::bad_request("the request has no readable Host header"))
}

fn host_name(authority: &str) -> &str {
    if let Some(end) = authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        return authority.get(1..=end).unwrap_or(authority);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn is_ours(host: &str, known: &[String]) -> bool {
    host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || known.iter().any(|name| host.eq_ignore_ascii_case(name))
}

fn same_origin(origin: &[u8], host: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        origin
            .strip_prefix(scheme.as_bytes())
            .is_some_and(|rest| rest.eq_ignore_ascii_case(host.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_hosts_are_answered() {
        let known = vec!["leno.example".to_owned()];
        for host in [
            "127.0.0.1:15010",
            "localhost",
            "LocalHost:1",
            "[::1]:15010",
            "10.0.0.1",
            "leno.example:80",
        ] {
            assert!(is_ours(host_name(host), &known), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "",
            "[::1",
            "notleno.example",
        ] {
            assert!(!is_ours(host_name(host), &known), "{host}");
        }
    }

    #[test]
    fn only_our_own_pages_are_answered() {
        assert!(same_origin(b"http://localhost:15010", "localhost:15010"));
        for origin in ["null", "http://evil.example", "http://localhost:8080", "localhost:15010"] {
            assert!(!same_origin(origin.as_bytes(), "localhost:15010"), "{origin}");
        }
    }
}
