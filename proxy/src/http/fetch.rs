//! Documents fetched from elsewhere: one GET over HTTP/1.1, bounded in time and size.

use std::{fmt::Write as _, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName, version};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// For all of a small document: name, connection, handshake, answer, redirects.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Largest of the small documents.
const MAX_BODY_BYTES: usize = 1024 * 1024;
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_REDIRECTS: usize = 3;

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be fetched.
    #[error("{0}")]
    Url(&'static str),
    /// Not done in time.
    #[error("no answer within {0:?}")]
    TooSlow(Duration),
    /// Over so many bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
    /// No connection.
    #[error("connecting: {0}")]
    Connect(#[source] io::Error),
    /// No TLS session; a certificate that is not trusted is the usual reason.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// This machine trusts nobody.
    #[error("no trusted certificate authorities were found on this machine: {0}")]
    NoRoots(String),
    /// TLS cannot be set up at all.
    #[error("TLS: {0}")]
    Setup(#[from] rustls::Error),
    /// What came back was not HTTP, or broke off.
    #[error("HTTP: {0}")]
    Http(String),
    /// Not 200.
    #[error("answered with {0}")]
    Status(StatusCode),
}

/// What is asked for, and how much of it at most.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Media types.
    pub accept: &'a str,
    /// The value of `Authorization`, told to nobody but the host of the URL.
    pub authorization: Option<&'a HeaderValue>,
    /// Largest body.
    pub max_bytes: usize,
    /// For all of it.
    pub time_limit: Duration,
    /// Redirects followed.
    pub redirects: usize,
}

/// Fetches documents. Certificates are checked against what this machine trusts.
#[derive(Debug)]
pub struct Fetcher {
    /// Read when first needed: who fetches only over http, or nothing, needs no roots.
    tls: OnceCell<Arc<ClientConfig>>,
    time_limit: Duration,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self { tls: OnceCell::new(), time_limit: TIME_LIMIT }
    }
}

impl Fetcher {
    /// The body behind `url` (http or https). Redirects are followed within the same scheme only: nobody may turn https
    /// into http, nor make one of our own plain URLs look as if it were protected.
    ///
    /// # Errors
    /// When it did not answer 200 in time, or with too much.
    pub async fn get(&self, url: &Uri) -> Result<Bytes, FetchError> {
        let wanted = Wanted {
            accept: "application/json",
            authorization: None,
            max_bytes: MAX_BODY_BYTES,
            time_limit: self.time_limit,
            redirects: MAX_REDIRECTS,
        };
        let (parts, body) = self.ask(url, &wanted).await?.into_parts();
        if parts.status == StatusCode::OK {
            Ok(body)
        } else {
            Err(FetchError::Status(parts.status))
        }
    }

    /// The answer of whoever `url` leads to in the end, by the same rules. It has a body only with status 200.
    ///
    /// # Errors
    /// When there was no answer in time, or too much of it.
    pub async fn ask(&self, url: &Uri, wanted: &Wanted<'_>) -> Result<Response<Bytes>, FetchError> {
        let limit = wanted.time_limit;
        timeout(limit, self.follow(url, wanted)).await.unwrap_or(Err(FetchError::TooSlow(limit)))
    }

    async fn follow(&self, from: &Uri, wanted: &Wanted<'_>) -> Result<Response<Bytes>, FetchError> {
        let mut url = from.clone();
        for _ in 0..=wanted.redirects {
            let known = url.authority() == from.authority();
            let authorization = wanted.authorization.filter(|_| known);
            let response = self.once(&url, &Wanted { authorization, ..*wanted }).await?;
            let status = response.status();
            if !status.is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION);
            url = redirected(&url, location.ok_or(FetchError::Status(status))?)?;
        }
        Err(FetchError::Url("too many redirects"))
    }

    async fn once(&self, url: &Uri, wanted: &Wanted<'_>) -> Result<Response<Bytes>, FetchError> {
        let (host, port, secure) = target(url)?;
        let stream = TcpStream::connect((host, port)).await.map_err(FetchError::Connect)?;
        if !secure {
            return exchange(stream, url, wanted).await;
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| FetchError::Url("the host is neither a DNS name nor an address"))?;
        let connector = TlsConnector::from(self.tls().await?);
        let stream = connector.connect(name, stream).await.map_err(FetchError::Tls)?;
        exchange(stream, url, wanted).await
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, FetchError> {
        self.tls.get_or_try_init(native_client_config).await.cloned()
    }
}

/// The roots of this machine; reading some hundred files blocks for a while.
async fn native_roots() -> Result<RootCertStore, FetchError> {
    let loading = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let loaded = loading.await.map_err(|error| FetchError::NoRoots(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    // Old machines carry certificates that rustls does not take; they are no reason to trust nobody.
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added > 0 {
        return Ok(roots);
    }
    let mut reasons = String::from("install ca-certificates or set SSL_CERT_FILE");
    for error in &loaded.errors {
        let _ = write!(reasons, "; {error}");
    }
    Err(FetchError::NoRoots(reasons))
}

/// For TLS to a server whose certificate this machine trusts. Reads the roots each time.
///
/// # Errors
/// When there are none.
pub async fn native_client_config() -> Result<Arc<ClientConfig>, FetchError> {
    client_config(native_roots().await?)
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, FetchError> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Host without brackets, port, and whether TLS is spoken.
fn target(url: &Uri) -> Result<(&str, u16, bool), FetchError> {
    let secure = match url.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) if *scheme == Scheme::HTTP => false,
        _ => return Err(FetchError::Url("the URL must begin with http:// or https://")),
    };
    let authority = url.authority().ok_or(FetchError::Url("the URL has no host"))?;
    if authority.as_str().contains('@') {
        return Err(FetchError::Url("the URL must not hold a user or password"));
    }
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((host, authority.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure))
}

fn redirected(from: &Uri, location: &HeaderValue) -> Result<Uri, FetchError> {
    let to = Uri::try_from(location.as_bytes())
        .map_err(|_| FetchError::Url("redirected to something that is not a URL"))?;
    let mut parts = from.clone().into_parts();
    if to.scheme().is_some() {
        if to.scheme() != from.scheme() {
            return Err(FetchError::Url("redirected to another scheme"));
        }
        return Ok(to);
    }
    if to.authority().is_some() || !to.path().starts_with('/') {
        return Err(FetchError::Url("redirected to a relative URL"));
    }
    parts.path_and_query = to.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|_| FetchError::Url("redirected to something that is not a URL"))
}

/// One request on a connection of its own, which is driven here and ends here.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin,
    url: &Uri,
    wanted: &Wanted<'_>,
) -> Result<Response<Bytes>, FetchError> {
    let failed = |error: hyper::Error| FetchError::Http(error.to_string());
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(io))
        .await
        .map_err(failed)?;
    let request = request(url, wanted)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        collect(response, wanted.max_bytes).await
    };
    // The connection may end before the last of the answer has been taken from it.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = driving => Err(FetchError::Http("the connection ended".to_owned())),
    }
}

fn request(url: &Uri, wanted: &Wanted<'_>) -> Result<Request<Empty<Bytes>>, FetchError> {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path);
    if let Some(authorization) = wanted.authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    request
        .header(header::HOST, authority)
        .header(header::ACCEPT, wanted.accept)
        .header(header::USER_AGENT, concat!("leno/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| FetchError::Url("the URL cannot be asked for"))
}

async fn collect(response: Response<Incoming>, most: usize) -> Result<Response<Bytes>, FetchError> {
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::OK {
        return Ok(Response::from_parts(parts, Bytes::new()));
    }
    let body = Limited::new(body, most).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            FetchError::TooLarge(most)
        } else {
            FetchError::Http(error.to_string())
        }
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

#[cfg(test)]
pub(crate) mod tests;
