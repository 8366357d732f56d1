//! One GET: reads the keys of an issuer by HTTPS. The only file here that names hyper.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// For all of it: an issuer that takes longer is asked again later.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads at most `max_bytes`. Redirects are not followed: an issuer's keys are where they are said to be.
///
/// # Errors
/// Says what went wrong.
pub async fn get(url: &Uri, roots: &Arc<RootCertStore>, max_bytes: usize) -> Result<Bytes, String> {
    let fetched = timeout(TIMEOUT, fetch(url, roots, max_bytes)).await;
    fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}

/// Whom the operating system trusts (`SSL_CERT_FILE` names others).
///
/// # Errors
/// Where there is nobody.
pub fn native_roots() -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err("this machine has no trusted certificates for https: install ca-certificates, or set SSL_CERT_FILE".into());
    }
    Ok(Arc::new(roots))
}

async fn fetch(url: &Uri, roots: &Arc<RootCertStore>, max_bytes: usize) -> Result<Bytes, String> {
    let host = url.host().ok_or("the URL has no host")?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((name, port)).await;
    let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
    if !tls {
        return exchange(stream, url, max_bytes).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let stream = connector(roots)?.connect(server, stream).await;
    exchange(stream.map_err(|error| format!("TLS: {error}"))?, url, max_bytes).await
}

fn connector(roots: &Arc<RootCertStore>) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(roots.clone()).with_no_client_auth();
    Ok(Arc::new(config).into())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Uri,
    max_bytes: usize,
) -> Result<Bytes, String> {
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) =
        http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), max_bytes).collect().await;
        Ok(body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes())
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // What it has read is still to be taken up by the answer.
            Ok(()) => answer.await,
            Err(error) => Err(failed(error)),
        },
    }
}
