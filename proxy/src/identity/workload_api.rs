//! A certificate from a SPIFFE Workload API, such as that of a SPIRE agent. It renews by itself; every update replaces ours.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use leno_api::model::identity::TrustDomain;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context};
use tokio::time::timeout;

use super::{Identity, TICK, Woken, now, schedule};
use crate::tls::{Credentials, Material};

/// For the connection and for the first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Follows the API for ever.
pub(super) async fn run(identity: Arc<Identity>, socket: PathBuf) {
    let mut failures = 0;
    loop {
        let reason = match follow(&identity, &socket, &mut failures).await {
            Ok(Ended::Asked) => continue,
            Ok(Ended::ByServer) => "the Workload API ended the stream".to_owned(),
            Err(reason) => reason,
        };
        failures += 1;
        identity.failed(format!("{}: {reason}", socket.display()));
        let life = identity.state().life;
        let wait = schedule::backoff(failures, life.as_ref(), now(), rand::random());
        identity.wait(now() + wait).await;
    }
}

/// Why a stream is over, although nothing is wrong.
enum Ended {
    ByServer,
    /// Somebody asked for a renewal.
    Asked,
}

/// One connection, until it ends, or until somebody asks for a renewal: a new stream begins with what is current.
async fn follow(identity: &Identity, socket: &Path, failures: &mut u32) -> Result<Ended, String> {
    let mut updates = timeout(CONNECT_TIMEOUT, open(socket))
        .await
        .map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))??;
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            woken = identity.wait(now() + TICK) => match woken {
                Woken::Due => continue,
                Woken::Asked => return Ok(Ended::Asked),
            },
        };
        let Some(update) = update else { return Ok(Ended::ByServer) };
        let context = update.map_err(|error| error.to_string())?;
        *failures = 0;
        match credentials(&context, identity.current().as_deref()) {
            Ok(credentials) => identity.renewed(credentials, None),
            Err(reason) => identity.failed(reason),
        }
    }
}

async fn open(
    socket: &Path,
) -> Result<impl Stream<Item = Result<X509Context, WorkloadApiError>> + Send + Unpin, String> {
    let path = socket.display().to_string();
    let endpoint = if path.starts_with("unix:") { path } else { format!("unix:{path}") };
    let client = WorkloadApiClient::connect_to(&endpoint).await;
    let client = client.map_err(|error| error.to_string())?;
    let updates = client.stream_x509_contexts().await.map_err(|error| error.to_string())?;
    Ok(Box::pin(updates))
}

fn credentials(
    context: &X509Context,
    previous: Option<&Credentials>,
) -> Result<Credentials, String> {
    let svid = context.default_svid().ok_or("the Workload API has no identity for this proxy")?;
    let name = svid.spiffe_id().trust_domain();
    let trust_domain = TrustDomain::parse(name.as_ref())?;
    let bundle = context
        .bundle_set()
        .get_ref(name)
        .ok_or_else(|| format!("the Workload API has no bundle of {trust_domain}"))?;
    let der =
        |certificate: &spiffe::Certificate| CertificateDer::from(certificate.as_bytes().to_vec());
    let material = Material {
        chain: svid.cert_chain().iter().map(der).collect(),
        key: PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into(),
        roots: bundle.authorities().iter().map(der).collect(),
        trust_domain,
    };
    Credentials::new(material, previous).map_err(|error| error.to_string())
}
