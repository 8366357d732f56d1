//! TLS connections to the control plane for tonic: certificates and configuration come over the same port.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tonic::codegen::Service;

use super::super::{Identity, now};
use crate::tls::{
    Credentials, Failure,
    client::Stream,
    control_plane::{self, Known},
};

/// For each address and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A bundle of a hundred roots with all their comments.
const MAX_BUNDLE_BYTES: u64 = 1024 * 1024;

/// Why the bootstrap bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Not there, not readable.
    #[error("the bundle of roots {path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what it should be.
    #[error(
        "{path} holds no certificates in PEM form{detail}; the control plane keeps its own in `root.pem` of its data directory, and `leno ca bundle` shows it"
    )]
    NoRoots {
        /// Which file.
        path: PathBuf,
        /// With a colon in front, or nothing.
        detail: String,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Without a host or a port.
    #[error("{0} is not an address of a control plane")]
    Address(Uri),
    /// TCP.
    #[error("{0}")]
    Connect(io::Error),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(Failure),
    /// Neither a bundle nor roots from the mesh.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Too slow.
    #[error("no TLS connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
}

/// Connects to the control plane and makes sure that it is the control plane, for
/// [`tonic::transport::Endpoint::connect_with_connector`]. The endpoint's scheme must be `http`: tonic is not to do TLS itself.
///
/// Shows our certificate as long as there is a valid one. Trusts the roots of the bootstrap file, read anew for each
/// connection, and those of the mesh.
#[derive(Clone, Debug)]
pub struct Connector {
    identity: Arc<Identity>,
    ca_file: Option<PathBuf>,
    shown: Shown,
}

#[derive(Clone, Debug)]
enum Shown {
    /// Whatever is valid when it connects.
    Current,
    Exactly(Option<Arc<Credentials>>),
}

impl Connector {
    /// For a proxy with this identity. Without a bundle only the roots that come with the identity are trusted.
    pub fn new(identity: Arc<Identity>, ca_file: Option<PathBuf>) -> Self {
        Self { identity, ca_file, shown: Shown::Current }
    }

    /// The same, showing exactly this certificate, or none.
    pub(super) fn showing(&self, credentials: Option<Arc<Credentials>>) -> Self {
        Self { shown: Shown::Exactly(credentials), ..self.clone() }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream<TcpStream>>, ConnectError> {
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(ConnectError::Address(uri));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| ConnectError::Address(uri.clone()))?;
        let tcp = TcpStream::connect((host, port)).await.map_err(ConnectError::Connect)?;
        tcp.set_nodelay(true).map_err(ConnectError::Connect)?;
        let credentials = match self.shown {
            Shown::Current => valid(self.identity.current()),
            Shown::Exactly(credentials) => credentials,
        };
        let known = Known {
            roots: roots(self.ca_file.as_deref(), self.identity.current().as_deref())?,
            trust_domain: self.identity.trust_domain(),
            credentials: credentials.as_deref(),
        };
        let connected = control_plane::connect(tcp, server_name, known).await;
        let (stream, server) = connected.map_err(ConnectError::Tls)?;
        // The first control plane that proves itself by the bundle says which mesh this is.
        let ours = self.identity.pinned.get_or_init(|| server.trust_domain.clone());
        if *ours == server.trust_domain {
            return Ok(TokioIo::new(stream));
        }
        let text = format!("{server} is not of the trust domain {ours}");
        Err(ConnectError::Tls(Failure::new(crate::tls::Reason::WrongTrustDomain, text)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connected = timeout(CONNECT_TIMEOUT, connector.connect(uri)).await;
            connected.unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

/// Those that still prove something.
pub(super) fn valid(credentials: Option<Arc<Credentials>>) -> Option<Arc<Credentials>> {
    let now = i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
    credentials.filter(|credentials| credentials.not_after() >= now)
}

/// The bundle's and the mesh's; a bundle that has become unreadable is missed only where there are no others.
fn roots(
    ca_file: Option<&Path>,
    credentials: Option<&Credentials>,
) -> Result<Vec<CertificateDer<'static>>, BootstrapError> {
    let mut roots = credentials.map_or_else(Vec::new, |known| known.roots().to_vec());
    match ca_file.map(bootstrap_roots) {
        None => {}
        Some(Ok(more)) => roots.extend(more),
        Some(Err(error)) if roots.is_empty() => return Err(error),
        Some(Err(error)) => tracing::warn!("{error}"),
    }
    Ok(roots)
}

/// Reads a bundle of PEM certificates.
pub(super) fn bootstrap_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, BootstrapError> {
    let read = |source| BootstrapError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > MAX_BUNDLE_BYTES {
        return Err(read(io::Error::other(format!("{length} bytes are too many"))));
    }
    let text = std::fs::read(path).map_err(read)?;
    let none = |detail| BootstrapError::NoRoots { path: path.to_owned(), detail };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let roots = roots.map_err(|error| none(format!(": {error}")))?;
    if roots.is_empty() { Err(none(String::new())) } else { Ok(roots) }
}
