//! The connecting side of a mesh hop.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use leno_api::model::identity::SpiffeId;
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption,
        Tls13ClientSessionValue,
    },
    pki_types::ServerName,
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    BUFFER_LIMIT, Credentials, Error, Failure, Inside, Reason, credentials::Parts,
    path::ServerVerifier, provider, verify::Leaf,
};

/// Tickets kept per endpoint, about 1 KiB each: one per worker that is about to connect anew, where there are two.
const MAX_TICKETS: usize = 2;
/// Until the handshake is done it is not known how long the server's certificate is valid.
const UNKNOWN: i64 = i64::MIN;

/// An encrypted stream to a server.
pub type Stream<IO> = tokio_rustls::client::TlsStream<IO>;

/// Whom to reach: part of an endpoint. Remembers sessions of this endpoint alone, so that one is never resumed with
/// another, whoever has the same name.
#[derive(Debug)]
pub struct Target {
    server_name: ServerName<'static>,
    expected: SpiffeId,
    prepared: ArcSwapOption<Prepared>,
}

impl Target {
    /// The workload with identity `expected`, as part of the service that `server_name` stands for
    /// ([`leno_api::destination::server_name`]). None when that is not a DNS name.
    pub fn new(server_name: &str, expected: SpiffeId) -> Option<Self> {
        let server_name = ServerName::try_from(server_name.to_owned()).ok()?;
        matches!(server_name, ServerName::DnsName(_)).then(|| Self {
            server_name,
            expected,
            prepared: ArcSwapOption::empty(),
        })
    }

    /// Who must be there.
    pub fn expected(&self) -> &SpiffeId {
        &self.expected
    }

    /// Whether both ask for the same: a connection made for one would do for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.expected == other.expected && self.server_name == other.server_name
    }

    /// What to connect with, made at the first use of `credentials`. Sessions of earlier credentials are forgotten:
    /// they would show the peer our old certificate.
    fn prepared(&self, credentials: &Credentials) -> Result<Arc<Prepared>, Error> {
        let current = self.prepared.load_full();
        if let Some(prepared) = current.filter(|p| p.generation == credentials.generation()) {
            return Ok(prepared);
        }
        let prepared = Arc::new(Prepared {
            generation: credentials.generation(),
            config: configure(&credentials.parts(), &self.expected)?,
            tickets: Arc::default(),
        });
        self.prepared.store(Some(prepared.clone()));
        Ok(prepared)
    }
}

/// For one generation of credentials.
#[derive(Debug)]
struct Prepared {
    generation: u64,
    config: ClientConfig,
    tickets: Arc<Tickets>,
}

/// Does the handshake with a server: TLS 1.3, and the certificate of exactly the identity that `target` expects. How
/// long it may take is up to the caller. In TLS 1.3 the server judges our certificate after this has returned; its
/// refusal is an error of the first read ([`Failure::of_io`]).
///
/// # Errors
/// Why it failed. The server has been told by an alert where TLS has one.
pub async fn connect<IO>(
    io: IO,
    credentials: &Credentials,
    target: &Target,
    inside: Inside,
) -> Result<Stream<IO>, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let prepared = target
        .prepared(credentials)
        .map_err(|error| Failure::new(Reason::Handshake, error.to_string()))?;
    let store = Arc::new(Store {
        tickets: prepared.tickets.clone(),
        // One moment for the choice of a ticket and for the check afterwards, or a session could expire in between.
        now: credentials.now(),
        not_after: AtomicI64::new(UNKNOWN),
    });
    // A copy, since each connection has its own view of the tickets: a dozen reference counts.
    let mut config = prepared.config.clone();
    config.alpn_protocols = vec![inside.alpn().to_vec()];
    config.resumption =
        Resumption::store(store.clone()).tls12_resumption(Tls12Resumption::Disabled);
    let stream = TlsConnector::from(Arc::new(config))
        .connect_with(target.server_name.clone(), io, |connection| {
            connection.set_buffer_limit(Some(BUFFER_LIMIT));
        })
        .await
        .map_err(|error| Failure::of_io(&error))?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Failure::from(&rustls::Error::NoCertificatesPresented))?;
    let leaf = Leaf::read(leaf).map_err(|refusal| Failure::from(&refusal))?;
    leaf.check(credentials.trust_domain(), Some(&target.expected), store.now)
        .map_err(|refusal| Failure::from(&refusal))?;
    if connection.alpn_protocol() != Some(inside.alpn()) {
        let text = "the server did not agree by ALPN on what is inside";
        return Err(Failure::new(Reason::NoApplicationProtocol, text));
    }
    // Tickets come after this: the server sends them when it has our half of the handshake.
    store.not_after.store(leaf.not_after, Ordering::Relaxed);
    Ok(stream)
}

/// Whether a session was resumed for this stream.
pub fn resumed<IO>(stream: &Stream<IO>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

fn configure(parts: &Parts, expected: &SpiffeId) -> Result<ClientConfig, Error> {
    let (trust_domain, expected) = (parts.trust_domain.clone(), expected.clone());
    let verifier = ServerVerifier {
        anchors: parts.anchors.clone(),
        rule: move |leaf: &Leaf, now| leaf.check(&trust_domain, Some(&expected), now),
    };
    // Our certificate is shown whatever authorities a server asks for; it checks better than a list of names can.
    let own = Arc::new(SingleCertAndKey::from(parts.certified.clone()));
    let mut config = ClientConfig::builder_with_details(provider(), parts.clock.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Error::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Sessions that can be resumed, oldest first, each with the last second of the certificate that the server showed when
/// it began.
#[derive(Debug, Default)]
struct Tickets(Mutex<VecDeque<(i64, Tls13ClientSessionValue)>>);

/// One connection's view of the tickets: rustls does not say of which certificate a ticket is, but which connection
/// brought it.
#[derive(Debug)]
struct Store {
    tickets: Arc<Tickets>,
    now: i64,
    not_after: AtomicI64,
}

impl ClientSessionStore for Store {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let not_after = self.not_after.load(Ordering::Relaxed);
        if not_after == UNKNOWN {
            return;
        }
        let mut kept = self.tickets.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_TICKETS {
            kept.pop_front();
        }
        kept.push_back((not_after, ticket));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.tickets.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(not_after, _)| *not_after >= self.now);
        kept.pop_back().map(|(_, ticket)| ticket)
    }
}
