//! The connection to the control plane. It is known by its account in the mesh's own namespace, whatever name or address it
//! was reached by; the trust domain may not be known yet.

use std::{fmt, sync::Arc};

use leno_api::{
    SYSTEM_NAMESPACE,
    model::identity::{CONTROL_PLANE_ACCOUNT, SpiffeId, TrustDomain},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName},
    sign::SingleCertAndKey,
    time_provider::DefaultTimeProvider,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    Credentials, Failure, Reason,
    client::Stream,
    path::ServerVerifier,
    provider,
    verify::{Leaf, Refusal},
};

/// gRPC.
const ALPN: &[u8] = b"h2";

/// What is known before connecting.
pub struct Known<'a> {
    /// Roots to which its certificate may lead; those that cannot be read are left out.
    pub roots: Vec<CertificateDer<'static>>,
    /// Its trust domain; any when it is not known yet.
    pub trust_domain: Option<TrustDomain>,
    /// Shown to it as who we are.
    pub credentials: Option<&'a Credentials>,
}

impl fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known")
            .field("roots", &self.roots.len())
            .field("trust_domain", &self.trust_domain)
            .field("credentials", &self.credentials)
            .finish()
    }
}

/// Does the handshake with the control plane, and says who it is.
///
/// # Errors
/// Why it failed.
pub async fn connect<IO>(
    io: IO,
    server_name: ServerName<'static>,
    known: Known<'_>,
) -> Result<(Stream<IO>, SpiffeId), Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = Arc::new(configure(known)?);
    let handshake = TlsConnector::from(config).connect(server_name, io);
    let stream = handshake.await.map_err(|error| Failure::of_io(&error))?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Failure::from(&rustls::Error::NoCertificatesPresented))?;
    let leaf = Leaf::read(leaf).map_err(|refusal| Failure::from(&refusal))?;
    Ok((stream, leaf.id))
}

fn configure(known: Known<'_>) -> Result<ClientConfig, Failure> {
    let mut anchors = RootCertStore::empty();
    anchors.add_parsable_certificates(known.roots);
    if anchors.is_empty() {
        let text = "there is no trusted root by which to know the control plane";
        return Err(Failure::new(Reason::UnknownAuthority, text));
    }
    let trust_domain = known.trust_domain;
    let rule = move |leaf: &Leaf, now| check(leaf, trust_domain.as_ref(), now);
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(DefaultTimeProvider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Failure::from(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier {
            anchors: Arc::new(anchors),
            rule,
        }));
    let mut config = match known.credentials {
        Some(own) => {
            let certified = own.parts().certified;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // It is connected to once in hours: what a resumed session saves is not worth keeping it.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn check(leaf: &Leaf, trust_domain: Option<&TrustDomain>, now: i64) -> Result<(), Refusal> {
    let trust_domain = trust_domain.unwrap_or(&leaf.id.trust_domain);
    let expected = SpiffeId::new(trust_domain, SYSTEM_NAMESPACE, CONTROL_PLANE_ACCOUNT);
    leaf.check(trust_domain, Some(&expected), now)
}
