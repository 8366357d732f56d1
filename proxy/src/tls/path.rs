//! Paths from a peer's certificate to a trusted root: built by rustls, as of a moment that allows for clocks which differ.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    credentials::seconds,
    provider,
    verify::{Leaf, Refusal},
};

/// Verifies the path with `verify`, which builds it as of a moment; a second time where our clock may be slow. The
/// certificate is read only when a path leads to a root, or to name better what is wrong with it.
pub(super) fn checked(
    end_entity: &CertificateDer<'_>,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<(), rustls::Error>,
) -> Result<Leaf, rustls::Error> {
    let error = match verify(now) {
        Ok(()) => return Leaf::read(end_entity).map_err(refused),
        Err(error) => error,
    };
    match &error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => {
            let leaf = Leaf::read(end_entity).map_err(refused)?;
            let at = u64::try_from(leaf.verification_time(seconds(now))).unwrap_or_default();
            verify(UnixTime::since_unix_epoch(Duration::from_secs(at)))?;
            Ok(leaf)
        }
        // A reason of the library's without a name of its own, such as "CA used as end entity".
        rustls::Error::InvalidCertificate(CertificateError::Other(_)) => {
            Leaf::read(end_entity).map_err(refused)?;
            Err(error)
        }
        _ => Err(error),
    }
}

/// The path of a server's certificate. The names in it are for whoever knows what to expect.
pub(super) fn of_server(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &RootCertStore,
    now: UnixTime,
) -> Result<Leaf, rustls::Error> {
    let certificate = ParsedCertificate::try_from(end_entity)?;
    let algorithms = provider().signature_verification_algorithms.all;
    checked(end_entity, now, |at| {
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            anchors,
            intermediates,
            at,
            algorithms,
        )
    })
}

/// As an error of the handshake.
pub(super) fn refused(refusal: Refusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}

/// Verifies servers: the path, then whether it is who it should be.
pub(super) struct ServerVerifier<F> {
    pub(super) anchors: Arc<RootCertStore>,
    /// Judges the leaf, at a Unix second.
    pub(super) rule: F,
}

impl<F> std::fmt::Debug for ServerVerifier<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

impl<F> ServerCertVerifier for ServerVerifier<F>
where
    F: Fn(&Leaf, i64) -> Result<(), Refusal> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = of_server(end_entity, intermediates, &self.anchors, now)?;
        (self.rule)(&leaf, seconds(now)).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
