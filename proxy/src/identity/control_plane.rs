//! A certificate from the control plane: a key that never leaves this process, a signing request, and a proof of who asks:
//! the token for the first certificate, that certificate itself for the next ones.

mod connector;

pub use connector::{BootstrapError, Connector};

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use leno_api::model::identity::{SpiffeId, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Endpoint,
};

use super::{Identity, now, schedule};
use crate::tls::{Credentials, Material};
use proto::{
    IssueRequest, IssueResponse, certificate_authority_client::CertificateAuthorityClient,
};

/// From connecting to the answer.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);
/// A chain of ten certificates and sixty-four roots of 4 KiB each would fit.
const MAX_RESPONSE_BYTES: usize = 512 * 1024;
/// What of the authority's words goes into log and status.
const MAX_REASON: usize = 500;
/// Proxies that hear of a new root at the same moment spread over this much.
const SIGNER_SPREAD: Duration = Duration::from_millis(500);
/// Between two renewals where the authority has said that another root signs, but still uses the old one itself.
const SIGNER_RETRY: Duration = Duration::from_secs(5);

#[expect(clippy::allow_attributes_without_reason, reason = "generated")]
pub(super) mod proto {
    tonic::include_proto!("leno.ca.v1");
}

/// Whom to ask, and for what.
#[derive(Clone, Debug)]
pub struct Options {
    /// `127.0.0.1:15012`, or a name with a port.
    pub address: String,
    /// PEM file with the roots by which the control plane is known; read anew for each connection.
    pub ca_file: PathBuf,
    /// Read anew for each request.
    pub token_file: Option<PathBuf>,
    /// Of the identity that is asked for.
    pub namespace: String,
    /// Of the identity that is asked for.
    pub service_account: String,
    /// What people know the proxy by.
    pub proxy: String,
    /// Wanted life; up to the authority when left out.
    pub ttl: Option<Duration>,
}

impl Options {
    /// Whether the bootstrap bundle can be used; it may be replaced later.
    pub(super) fn check(&self) -> Result<(), BootstrapError> {
        connector::bootstrap_roots(&self.ca_file).map(|_roots| ())
    }
}

/// Asks for certificates for ever.
pub(super) async fn run(identity: Arc<Identity>, options: Options) {
    let connector = Connector::new(identity.clone(), Some(options.ca_file.clone()));
    let asking = Asking { identity, options, connector };
    let (mut due, mut failures) = (Duration::ZERO, 0);
    // Whether to prove ourselves by the certificate; the token is tried in between when that is refused.
    let mut by_certificate = true;
    loop {
        asking.identity.wait(due).await;
        if asking.identity.is_signer_outdated() {
            tokio::time::sleep(SIGNER_SPREAD.mul_f64(rand::random())).await;
        }
        let certificate = asking.own_certificate().filter(|_| by_certificate);
        let proven_by_certificate = certificate.is_some();
        let asked = asking.ask(certificate).await;
        let life = asking.identity.state().life;
        match asked {
            Ok(()) => {
                (failures, by_certificate) = (0, true);
                due = asking.next_renewal();
            }
            Err(reason) => {
                failures += 1;
                by_certificate = !proven_by_certificate || asking.options.token_file.is_none();
                asking.identity.failed(reason);
                due = now() + schedule::backoff(failures, life.as_ref(), now(), rand::random());
            }
        }
    }
}

struct Asking {
    identity: Arc<Identity>,
    options: Options,
    connector: Connector,
}

impl Asking {
    /// Ours, as long as it proves anything.
    fn own_certificate(&self) -> Option<Arc<Credentials>> {
        connector::valid(self.identity.current())
    }

    fn next_renewal(&self) -> Duration {
        if self.identity.is_signer_outdated() {
            return now() + SIGNER_RETRY;
        }
        let life = self.identity.state().life;
        life.map_or_else(now, |life| life.renewal(rand::random()))
    }

    async fn ask(&self, certificate: Option<Arc<Credentials>>) -> Result<(), String> {
        let bundles = self.identity.state().bundles;
        let (key, csr) = signing_request()?;
        let asked = timeout(ISSUE_TIMEOUT, self.issue(csr, certificate)).await;
        let response = asked.map_err(|_| {
            let (address, limit) = (&self.options.address, ISSUE_TIMEOUT.as_secs());
            format!("the control plane at {address} did not issue a certificate within {limit} s")
        })??;
        self.accept(key, response, bundles)
    }

    async fn issue(
        &self,
        csr: Vec<u8>,
        certificate: Option<Arc<Credentials>>,
    ) -> Result<IssueResponse, String> {
        let address = &self.options.address;
        let mut request = Request::new(IssueRequest {
            csr,
            namespace: self.options.namespace.clone(),
            service_account: self.options.service_account.clone(),
            proxy: self.options.proxy.clone(),
            ttl_seconds: self
                .options
                .ttl
                .map_or(0, |ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
        });
        if certificate.is_none() {
            request.metadata_mut().insert("authorization", self.token()?);
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address} is not an address of a control plane: {error}"))?;
        let connector = self.connector.showing(certificate);
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
            format!("cannot reach the control plane at {address}: {}", causes(&error))
        })?;
        let mut client =
            CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let response = client.issue(request).await.map_err(|status| explain(&status))?;
        Ok(response.into_inner())
    }

    fn token(&self) -> Result<MetadataValue<Ascii>, String> {
        let Some(file) = &self.options.token_file else {
            return Err(
                "there is no valid certificate to prove who this is, and no --token-file: \
                        create a join token with `leno token create`"
                    .to_owned(),
            );
        };
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the token file {}: {error}", file.display()))?;
        let header: Result<MetadataValue<Ascii>, _> = format!("Bearer {}", text.trim()).parse();
        let mut value = header
            .map_err(|_| format!("{} does not hold a token: one line of ASCII", file.display()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// What came is ours only if it fits: our key, the identity that was asked for, the mesh we are in.
    fn accept(&self, key: OwnKey, response: IssueResponse, bundles: u64) -> Result<(), String> {
        let wrong = |what: String| format!("the control plane's answer cannot be used: {what}");
        let trust_domain = TrustDomain::parse(&response.trust_domain).map_err(wrong)?;
        if let Some(ours) = self.identity.trust_domain().filter(|ours| *ours != trust_domain) {
            return Err(wrong(format!("it is for {trust_domain}; this proxy belongs to {ours}")));
        }
        let (namespace, account) = (&self.options.namespace, &self.options.service_account);
        let wanted = SpiffeId::new(&trust_domain, namespace, account);
        // A bundle that came after the request was sent is newer than the answer.
        let state = self.identity.state();
        let newer = state.bundle.as_ref().filter(|_| state.bundles != bundles);
        let roots = match newer {
            Some(bundle) => bundle.roots.clone(),
            None => response.roots.into_iter().map(CertificateDer::from).collect(),
        };
        drop(state);
        let chain = response.chain.into_iter().map(CertificateDer::from).collect();
        let material = Material { chain, key: key.0, roots, trust_domain };
        let previous = self.identity.current();
        let credentials = Credentials::new(material, previous.as_deref())
            .map_err(|error| wrong(error.to_string()))?;
        if *credentials.id() != wanted {
            return Err(wrong(format!("it names {}, not {wanted}", credentials.id())));
        }
        credentials.check_path().map_err(|error| {
            wrong(format!("its certificate leads to none of its roots: {error}"))
        })?;
        self.identity.renewed(credentials, Some(response.signer));
        Ok(())
    }
}

/// A new key for each certificate, so that none is worth more than its certificate's life.
struct OwnKey(PrivateKeyDer<'static>);

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnKey")
    }
}

/// A key and a request for it. Who it is for is proven beside it, so it names nobody.
fn signing_request() -> Result<(OwnKey, Vec<u8>), String> {
    let wrong = |error: rcgen::Error| format!("cannot make a key: {error}");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(wrong)?;
    let der = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((OwnKey(der.into()), csr.der().to_vec()))
}

fn explain(status: &Status) -> String {
    let end = status.message().floor_char_boundary(MAX_REASON);
    let message = match &status.message()[..end] {
        "" => "no reason given".to_owned(),
        message => message.escape_debug().to_string(),
    };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            format!("the control plane refuses this proxy: {message}")
        }
        code => format!("the control plane issues no certificate: {message} ({code:?})"),
    }
}

/// An error with all that caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
