//! The accepting side of a mesh hop.

use std::{sync::Arc, time::Duration};

use leno_api::{
    destination::parse_server_name,
    model::{ObjectName, identity::TrustDomain},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, HandshakeKind, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    BUFFER_LIMIT, Credentials, Error, Failure, Inside, Peer, Reason,
    credentials::{Parts, seconds},
    path::{checked, refused},
    provider,
    verify::Leaf,
};

/// One per handshake, 0.8 KiB each with the client's certificate in it. A client that opens many connections at once
/// gets as many tickets; one that opens them one after the other needs no second.
const TICKETS: usize = 1;
/// How long a client that was refused has for closing its end, and how much of what it had sent is thrown away for it: a
/// head and some body.
const PARTING: Duration = Duration::from_millis(500);
const MOST_AFTER_REFUSAL: usize = 128 * 1024;

/// An encrypted stream to a client.
pub type Stream<IO> = tokio_rustls::server::TlsStream<IO>;

/// A client that has proven who it is.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// To it.
    pub stream: Stream<IO>,
    /// Who it is.
    pub peer: Arc<Peer>,
    /// What it says is inside.
    pub inside: Inside,
    /// The service and port it means, where its server name is of the mesh's form.
    pub destination: Option<(ObjectName, u16)>,
    /// As it was sent; a valid DNS name.
    pub server_name: Option<String>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Does the handshake with a client: TLS 1.3 and a certificate of our trust domain, or a refusal. How long it may take
/// is up to the caller.
///
/// # Errors
/// Why it failed. The client has been told by an alert where TLS has one.
pub async fn accept<IO>(io: IO, credentials: &Credentials) -> Result<Accepted<IO>, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(credentials.server());
    let handshake =
        acceptor.accept_with(io, |connection| connection.set_buffer_limit(Some(BUFFER_LIMIT)));
    let stream = match handshake.into_fallible().await {
        Ok(stream) => stream,
        Err((error, io)) => {
            part(io).await;
            return Err(Failure::of_io(&error));
        }
    };
    let (_, connection) = stream.get_ref();
    // Again also after a full handshake: a parse costs a hundredth of it, and there is one path less to be wrong.
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Failure::from(&rustls::Error::NoCertificatesPresented))?;
    let leaf = Leaf::read(leaf).map_err(|refusal| Failure::from(&refusal))?;
    leaf.check(credentials.trust_domain(), None, credentials.now())
        .map_err(|refusal| Failure::from(&refusal))?;
    let inside = connection.alpn_protocol().and_then(Inside::of_alpn).ok_or_else(|| {
        Failure::new(Reason::NoApplicationProtocol, "the client did not say by ALPN what is inside")
    })?;
    let server_name = connection.server_name().map(str::to_owned);
    let destination = server_name.as_deref().and_then(parse_server_name);
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let peer = Arc::new(Peer::from(leaf));
    Ok(Accepted { stream, peer, inside, destination, server_name, resumed })
}

/// Closes so that the alert arrives. A client sends its first request before it hears that its certificate was refused;
/// closing over those bytes would reset the connection, and a reset overtakes what was sent before.
async fn part(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let parting = async {
        let mut rest = [0; 512];
        let mut left = MOST_AFTER_REFUSAL;
        if io.shutdown().await.is_err() {
            return;
        }
        while let Ok(length @ 1..) = io.read(&mut rest).await {
            left = left.saturating_sub(length);
            if left == 0 {
                return;
            }
        }
    };
    // A client that neither closes nor sends has had its time to hear us.
    let _ = timeout(PARTING, parting).await;
}

pub(super) fn configure(
    parts: &Parts,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, Error> {
    // No list of the roots' names: our clients show their certificate whatever is in it, and it would be 100 bytes each.
    let paths = WebPkiClientVerifier::builder_with_provider(parts.anchors.clone(), provider())
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| Error::Tls(error.to_string()))?;
    let verifier = ClientVerifier { paths, trust_domain: parts.trust_domain.clone() };
    let mut config = ServerConfig::builder_with_details(provider(), parts.clock.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(parts.certified.clone())));
    config.alpn_protocols = Inside::ALL.map(|inside| inside.alpn().to_vec()).into();
    config.ignore_client_order = true;
    // Tickets are stateless; the store that rustls would make has room for 256 sessions.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ticketer;
    config.send_tls13_tickets = TICKETS;
    Ok(config)
}

/// Path building by rustls, then the rules of SPIFFE.
#[derive(Debug)]
struct ClientVerifier {
    paths: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verify =
            |at| self.paths.verify_client_cert(end_entity, intermediates, at).map(|_verified| ());
        let leaf = checked(end_entity, now, verify)?;
        leaf.check(&self.trust_domain, None, seconds(now)).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.paths.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.paths.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.paths.supported_verify_schemes()
    }
}
